"""Entries of dirty rings become marks in the right logs, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import accel
from accel.address import PAGE_SIZE
from accel.memory.dirty import DirtyClient, DirtyLog
from accel.memory.dirty_rings import merge_entries
from accel.memory.slot_plan import Slot

VGA = DirtyClient.VGA


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), max_size=40),
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 8), st.booleans()), min_size=3, max_size=3),
)
def test_merge_marks_the_pages_of_slots_that_log_and_are_there(entries, shapes) -> None:
    block = accel.MemoryRegion.ram("ram", 16 * PAGE_SIZE).host_memory()
    logs = [DirtyLog(16 * PAGE_SIZE) for _ in shapes]
    for log in logs:
        log.start(VGA)
    slots = {
        number: Slot(
            gpa=number << 32,
            hva=block.address + first * PAGE_SIZE,
            size=count * PAGE_SIZE,
            readonly=False,
            block=block,
            log=logs[number] if is_logged else None,
        )
        for number, (first, count, is_logged) in enumerate(shapes)
    }
    merge_entries(entries, slots.get)
    for number, (first, count, is_logged) in enumerate(shapes):
        expected = {first + page for one, page in entries if one == number and page < count and is_logged}
        snapshot = logs[number].collect(VGA, 0, 16 * PAGE_SIZE)
        assert {page for page in range(16) if snapshot.is_dirty(page * PAGE_SIZE)} == expected

"""What the model keeps does not grow with what a guest has done, but with what is mapped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from accel.address import PAGE_SIZE
from accel.memory.ram_block import RamBlock
from accel.memory.slot_plan import Slot
from accel_mock.kvm.memslots import MemSlots
from accel_mock.kvm.mmu import Fault
from accel_mock.kvm.running import Running
from accel_mock.kvm.zap import FastInvalidate, ZapAll, ZapSlot, ZapStrategy

PAGES = 400
KEPT = 50
STRATEGIES = [FastInvalidate, partial(ZapAll, yields=False), partial(ZapAll, yields=True), ZapSlot]


@pytest.mark.parametrize("way", STRATEGIES, ids=["fast", "all", "all-yield", "slot"])
def test_mock_slots_that_come_and_go_leave_nothing(
    way: Callable[[], ZapStrategy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each slot is elsewhere in the guest and in the host; some lose a page to the host before they go."""
    monkeypatch.setattr("accel_mock.kvm.host_pages.KEPT", KEPT)
    block = RamBlock("block", PAGES * PAGE_SIZE)
    memslots = MemSlots(4, Running())
    mmu = memslots.mmu
    mmu.strategy = way()
    for number in range(PAGES // 2):
        gpa, hva = number << 21, block.address + 2 * number * PAGE_SIZE
        slot = Slot(gpa, 2 * PAGE_SIZE, hva, False, block)
        memslots.create(number % 4, slot)
        for page in range(2):
            assert mmu.fault(gpa + page * PAGE_SIZE, write=True) is Fault.FIXED
        if number % 3 == 0:
            with memslots.notifiers.invalidating(hva, hva + PAGE_SIZE):
                pass
        memslots.delete(number % 4, slot)
        assert (len(memslots.table), mmu.pages, len(mmu.rmap)) == (0, {}, 0)
        assert 0 < len(mmu.host.accessed) <= KEPT
        assert 0 < len(mmu.host.dirty) <= KEPT

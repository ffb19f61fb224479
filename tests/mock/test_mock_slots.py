"""The mock's slots: their rules and logs, where a guest finds its bytes, and the waits of a slot call for vCPUs."""

import errno
import threading

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from accel.address import AddressRange
from accel.errors import BackendError, MemorySlotError
from accel.exits import ExitKind
from accel.memory.dirty import DirtyLog
from accel.memory.ram_block import RamBlock
from accel.memory.slot_plan import Slot
from accel.program import GuestProgram, Load, Loop, Out
from accel_mock.coalesced import MockCoalescedRing
from accel_mock.kvm.memslots import MemSlots
from accel_mock.kvm.mmu import Fault
from accel_mock.kvm.page_log import PageLog
from accel_mock.kvm.running import Running
from accel_mock.vcpu import MockVcpu

PAGE = 0x1000
BASE = 0x20_0000
BLOCK = RamBlock("block", 64 * PAGE)


def _slot(gpa: int, pages: int = 1, *, at: int = 0, readonly: bool = False) -> Slot:
    return Slot(gpa, pages * PAGE, BLOCK.address + at * PAGE, readonly, BLOCK)


def _memslots(count: int, running: Running | None = None) -> MemSlots:
    return MemSlots(count, Running() if running is None else running)


def _vcpu(memslots: MemSlots, running: Running) -> MockVcpu:
    return MockVcpu(memslots, running, threading.Lock(), MockCoalescedRing())


def _place(memslots: MemSlots, address: int, *, write: bool = False) -> tuple[memoryview, int] | None:
    """Return where a guest finds the byte at an address; None where it comes out."""
    mmu = memslots.mmu
    if mmu.walk(address, write=write) is None and mmu.fault(address, write=write) is Fault.MMIO:
        return None
    found = mmu.walk(address, write=write)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("number", "slot", "code"),
    [
        (0, _slot(0x8000), errno.EINVAL),  # the number is in use
        (4, _slot(0x8000), errno.EINVAL),  # too high
        (-1, _slot(0x8000), errno.EINVAL),
        (1, _slot(0x8001), errno.EINVAL),
        (1, evolve(_slot(0x8000), size=0x800), errno.EINVAL),
        (1, evolve(_slot(0x8000), hva=BLOCK.address + 1), errno.EINVAL),
        (1, evolve(_slot(0x8000), size=0), errno.EINVAL),
        (1, _slot((1 << 64) - PAGE, 2), errno.EINVAL),
        (1, _slot(0x8000, 2, at=63), errno.EINVAL),  # beyond its block
        (1, _slot(0x8000, at=-1), errno.EINVAL),
        (1, _slot(0x1000, 2), errno.EEXIST),
        (1, _slot(0x3000, 2), errno.EEXIST),
        (1, _slot(0x1000, 8), errno.EEXIST),
        (1, _slot(0x2000), errno.EEXIST),
    ],
)
def test_mock_slots_create_that_breaks_a_rule_is_refused(number: int, slot: Slot, code: int) -> None:
    memslots = _memslots(4)
    memslots.create(0, _slot(0x2000, 2))
    before = memslots.table
    with pytest.raises(MemorySlotError) as caught:
        memslots.create(number, slot)
    assert (caught.value.errno, caught.value.slot, caught.value.gpa) == (code, number, slot.gpa)
    assert memslots.table is before


def test_mock_slots_neighbours_and_the_last_page_of_all_are_no_overlap() -> None:
    memslots = _memslots(4)
    for number, gpa in enumerate((0x2000, 0x1000, 0x3000, (1 << 64) - PAGE)):
        memslots.create(number, _slot(gpa))
    assert [one.number for one in memslots.table.slots] == [1, 0, 2, 3]


def test_mock_slots_delete_frees_range_and_number_and_wants_a_slot() -> None:
    memslots = _memslots(1)
    memslots.create(0, _slot(0x2000))
    memslots.delete(0, _slot(0x2000))
    with pytest.raises(MemorySlotError) as caught:
        memslots.delete(0, _slot(0x2000))
    assert (caught.value.errno, caught.value.size) == (errno.EINVAL, 0)
    memslots.create(0, _slot(0x2000, 2))


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(1, 4), st.booleans(), st.booleans()), max_size=25))
def test_mock_slots_table_agrees_with_a_page_by_page_model(
    calls: list[tuple[int, int, bool, bool]],
) -> None:
    """Random calls against a dict of pages; the slot's number is its first page."""
    memslots = _memslots(16)
    for page in range(20):
        BLOCK.view[page * PAGE + 0x123] = page
    pages: dict[int, tuple[int, bool]] = {}  # page → (slot number, readonly)
    for page, count, readonly, create in calls:
        span = range(page, page + count)
        if create:
            slot = _slot(page * PAGE, count, at=page, readonly=readonly)
            free = not any(one in pages for one in span) and all(number != page for number, _ in pages.values())
            try:
                memslots.create(page, slot)
            except MemorySlotError:
                assert not free
            else:
                assert free
                pages.update((one, (page, readonly)) for one in span)
        else:
            there = any(number == page for number, _ in pages.values())
            try:
                memslots.delete(page, _slot(page * PAGE))
            except MemorySlotError:
                assert not there
            else:
                assert there
                pages = {one: what for one, what in pages.items() if what[0] != page}
        table = memslots.table
        for one in range(20):
            address = one * PAGE + 0x123
            for _ in range(2):  # the second time by the entry that the first made
                found, writable = _place(memslots, address), _place(memslots, address, write=True)
                assert (found is not None) == (one in pages)
                assert (writable is not None) == (one in pages and not pages[one][1])
                if found is not None:
                    memory, offset = found
                    assert memory[offset : offset + 1].tobytes() == bytes([one])
            numbers = {table_slot.number for table_slot in table.overlapping(AddressRange.sized(address, 1))}
            assert numbers == ({pages[one][0]} if one in pages else set())


def test_mock_slots_place_is_the_byte_of_the_block() -> None:
    memslots = _memslots(1)
    memslots.create(0, _slot(0x8000, 2, at=3))
    BLOCK.view[4 * PAGE + 5] = 0x77
    memory, offset = _place(memslots, 0x9005) or (b"", 0)
    assert memory[offset] == 0x77


def test_mock_slots_hold_their_memory_until_they_are_cleared() -> None:
    running = Running()
    memslots = _memslots(1, running)
    block = RamBlock("short", PAGE)
    memslots.create(0, Slot(0, PAGE, block.address, False, block))
    vcpu = _vcpu(memslots, running)
    vcpu.load_program(GuestProgram((Load(0),)))
    assert vcpu.run() == ExitKind.HALT
    mapping = block._map
    block.close()
    assert not mapping.closed
    memslots.clear()
    # Its TLB has a translation until it hears of the flush, which is at its next entry or its end.
    vcpu.close()
    block.close()
    assert mapping.closed


def test_mock_slots_call_returns_when_running_vcpus_have_the_new_table() -> None:
    """Each deletion shows as at least one exit, and no TLB has a slot once its delete has returned."""
    running = Running()
    memslots = _memslots(1, running)
    memslots.create(0, _slot(0))
    vcpu = _vcpu(memslots, running)
    vcpu.load_program(GuestProgram((Out(0x80, 1), Loop((Load(0),) * 8, None))))
    exits, started, stop = [], threading.Event(), threading.Event()
    used_deleted = []

    def main() -> None:
        while not stop.is_set():
            exits.append(vcpu.run())
            started.set()

    thread = threading.Thread(target=main)
    thread.start()
    assert started.wait(60)
    try:
        for _ in range(20):
            memslots.delete(0, _slot(0))
            used_deleted.append(dict(vcpu.readable))
            memslots.create(0, _slot(0))
    finally:
        stop.set()
        vcpu.kick(0)
        thread.join()
    assert used_deleted == [{}] * 20
    assert exits.count(ExitKind.MMIO) >= 1


def test_mock_slots_call_does_not_wait_for_a_vcpu_that_is_outside() -> None:
    running = Running()
    memslots = _memslots(1, running)
    vcpu = _vcpu(memslots, running)
    vcpu.load_program(GuestProgram((Load(0),)))
    assert vcpu.run() == ExitKind.MMIO
    memslots.create(0, _slot(0))
    assert vcpu.run() == ExitKind.HALT


# logs


@given(st.integers(1, 40), st.lists(st.integers(0, 40 * PAGE - 1), max_size=12))
def test_page_log_has_the_pages_of_the_bytes_once(count: int, offsets: list[int]) -> None:
    log = PageLog(count * PAGE)
    inside = [offset for offset in offsets if offset < count * PAGE]
    for offset in inside:
        log.note(offset)
    taken = log.take()
    assert len(taken) == (count + 7) // 8
    assert {page for page in range(8 * len(taken)) if taken[page // 8] & 1 << page % 8} == {
        offset // PAGE for offset in inside
    }
    assert log.take() == bytes(len(taken))


@pytest.fixture
def toggled() -> tuple[MemSlots, Slot, Slot]:
    """Slot 0 of a VM, which does not log; then that slot, and the same one logging."""
    memslots, plain = _memslots(2), _slot(BASE, 9)
    memslots.create(0, plain)
    return memslots, plain, plain.with_log(DirtyLog(BLOCK.max_size))


def test_mock_slots_toggle_leaves_the_slot_where_it_is_and_begins_with_no_page(
    toggled: tuple[MemSlots, Slot, Slot],
) -> None:
    memslots, plain, logged = toggled
    for page in range(9):  # writable before anybody logs
        assert _place(memslots, BASE + page * PAGE + 5, write=True)
    for _ in range(2):
        memslots.toggle(0, logged)
        assert memslots.take_dirty(0, logged) == b"\0\0"
        for _ in range(2):
            assert _place(memslots, BASE) == _place(memslots, BASE), "read only"
            memory, offset = _place(memslots, BASE + 8 * PAGE + 5, write=True) or (b"", 0)
            assert (len(memory), offset) == (9 * PAGE, 8 * PAGE + 5)
            assert memslots.take_dirty(0, logged) == b"\0\1"
            assert memslots.take_dirty(0, logged) == b"\0\0"
        _place(memslots, BASE, write=True)
        assert [one.slot.log for one in memslots.table.slots] == [logged.log]
        memslots.toggle(0, plain)
        assert [one.log for one in memslots.table.slots] == [None]
        assert _place(memslots, BASE, write=True)


@pytest.mark.parametrize("field", ["number", "gpa", "size", "hva", "readonly"])
def test_mock_slots_toggle_of_something_else_is_refused_by_name(toggled, field) -> None:
    memslots, _, logged = toggled
    values = {"gpa": logged.gpa, "size": logged.size, "hva": logged.hva, "readonly": False}
    if field != "number":
        values[field] = True if field == "readonly" else values[field] + PAGE
    other, number = Slot(**values, block=logged.block, log=logged.log), int(field == "number")
    before = memslots.table
    with pytest.raises(MemorySlotError) as caught:
        memslots.toggle(number, other)
    assert memslots.table is before
    error = caught.value
    assert (error.errno, error.slot, error.gpa, error.size) == (errno.EINVAL, number, other.gpa, other.size)
    assert error.flags == (3 if other.readonly else 1)


def test_mock_slots_without_a_log_have_none_to_take(toggled) -> None:
    memslots, plain, logged = toggled
    for number in (0, 1):
        with pytest.raises(BackendError, match=rf"mock dirty-log call failed: ENOENT .*slot {number}, GPA {BASE:#x}"):
            memslots.take_dirty(number, plain)
    memslots.toggle(0, logged)
    memslots.delete(0, logged)
    with pytest.raises(BackendError, match="ENOENT"):
        memslots.take_dirty(0, logged)

"""`SlotsByAddress` beside lists of bytes, and under a `SlotListener`: what it finds, reads, writes and refuses."""

from __future__ import annotations

import errno
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

import accel
from accel.address import PAGE_SIZE, AddressRange
from accel.errors import AddressError, MemorySlotError
from accel.memory.dirty import DirtyClient
from accel.memory.ram_block import RamBlock
from accel.memory.slot_listener import SlotListener, SlotRules
from accel.memory.slot_plan import Slot
from accel.memory.slot_table import SlotsByAddress

PAGES = 6


@pytest.fixture(scope="module")
def block() -> RamBlock:
    return RamBlock("ram", PAGES * PAGE_SIZE)


def slot(block: RamBlock, gpa: int, page: int, pages: int, *, readonly: bool = False) -> Slot:
    """Return a slot of `pages` pages at `gpa` that shows those of `block` from `page` on."""
    return Slot(gpa, pages * PAGE_SIZE, block.address + page * PAGE_SIZE, readonly, block)


LAYOUT = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.booleans()), max_size=5)


def laid_out(
    block: RamBlock, layout: list[tuple[int, int, bool]]
) -> tuple[SlotsByAddress, dict[int, tuple[int, bool]]]:
    """Return a table with slots one behind the other, with gaps; and for each page where its bytes lie in the block."""
    table, pages, at = SlotsByAddress(), {}, 0
    for number, (gap, count, readonly) in enumerate(layout):
        at += gap
        first = number % (PAGES - count + 1)
        table.create(slot(block, at * PAGE_SIZE, first, count, readonly=readonly))
        pages |= {at + n: (first + n, readonly) for n in range(count)}
        at += count
    return table, pages


@given(LAYOUT)
def test_slots_by_address_finds_the_slot_of_each_page_and_none_in_gaps(
    block: RamBlock, layout: list[tuple[int, int, bool]]
) -> None:
    table, pages = laid_out(block, layout)
    assert len(table) == len(list(table)) == len(layout)
    for page in range(20):
        for address in (page * PAGE_SIZE, page * PAGE_SIZE + PAGE_SIZE - 1):
            found = table.find(address)
            assert (found is not None) == (page in pages)
            if found is not None:
                assert address in range(found.gpa, found.gpa + found.size)
    starts = [one.gpa for one in table]
    assert starts == sorted(starts)
    window = AddressRange(2 * PAGE_SIZE, 7 * PAGE_SIZE)
    assert [one.gpa for one in table.within(window)] == [gpa for gpa in starts if window.start <= gpa < window.end]


@given(
    LAYOUT,
    st.lists(
        st.tuples(
            st.integers(0, 12 * PAGE_SIZE // 8 - 1),
            st.sampled_from([1, 2, 4, 8]),
            st.none() | st.integers(0, (1 << 70) - 1),
            st.booleans(),
        ),
        max_size=20,
    ),
)
def test_slots_by_address_access_does_what_bytes_do(
    block: RamBlock, layout: list[tuple[int, int, bool]], accesses: list[tuple[int, int, int | None, bool]]
) -> None:
    table, pages = laid_out(block, layout)
    model = bytearray(block.view)
    for word, size, value, add in accesses:
        address = word * 8
        where = pages.get(address // PAGE_SIZE)
        found = table.access(address, size, value, add=add)
        if where is None or (where[1] and value is not None):
            assert found is None
            continue
        at = where[0] * PAGE_SIZE + address % PAGE_SIZE
        old = int.from_bytes(model[at : at + size], "little")
        assert found == old
        if value is not None:
            wanted = (old + value if add else value) % 256**size
            model[at : at + size] = wanted.to_bytes(size, "little")
    assert block.view == model


@pytest.mark.parametrize("value", [None, 7])
def test_slots_by_address_access_beyond_a_slot_touches_nothing_of_the_block_behind_it(
    block: RamBlock, value: int | None
) -> None:
    table = SlotsByAddress()
    table.create(slot(block, 0x1000, 1, 1))
    before = bytes(block.view)
    with pytest.raises(AddressError, match="8 bytes at 0x1ffc go beyond the slot that ends at 0x2000"):
        table.access(0x1FFC, 8, value)
    assert block.view == before
    assert table.access(0x1FF8, 8) is not None


@pytest.fixture
def table():
    """A table that follows the memory of a VM."""
    with accel.open_accelerator("mock") as mock, mock.create_vm() as vm:
        found = SlotsByAddress(2)
        vm.memory.add_listener(SlotListener(found, SlotRules(owner="the test"), "least"))
        yield vm, found


def test_slots_by_address_under_a_listener_follow_the_map_and_mark_what_is_written(table) -> None:
    vm, slots = table
    ram = accel.MemoryRegion.ram("ram", 4 * PAGE_SIZE)
    vm.memory.add(ram, at=0x10000)
    assert slots.access(0x11000, 4, 0x1234) == 0
    assert ram.read(PAGE_SIZE, 2) == b"\x34\x12"
    ram.start_log(DirtyClient.VGA)
    slots.access(0x12008, 8)
    slots.access(0x13FF8, 8, 5)
    pages = vm.dirty_log.collect(ram, DirtyClient.VGA).ranges()
    assert list(pages) == [AddressRange(3 * PAGE_SIZE, 4 * PAGE_SIZE)]
    ram.move(0x40000)
    assert slots.access(0x13FF8, 8) is None
    assert slots.access(0x43FF8, 8) == 5
    vm.memory.remove(ram)
    assert (len(slots), slots.find(0x43FF8)) == (0, None)


def test_slots_by_address_that_are_full_say_how_many_there_can_be(table) -> None:
    vm, slots = table
    for number in range(2):
        vm.memory.add(accel.MemoryRegion.ram(f"ram {number}", PAGE_SIZE), at=number * 0x10000)
    with pytest.raises(
        MemorySlotError, match=r"mapping a slot failed: ENOSPC .* slot 2, GPA 0x50000, .*; there can be 2"
    ):
        vm.memory.add(accel.MemoryRegion.ram("one more", PAGE_SIZE), at=0x50000)
    assert [one.gpa for one in slots] == [0, 0x10000]


class Refusing(SlotsByAddress):
    """Tells a hypervisor that refuses one address."""

    def __init__(self, refused: int) -> None:
        super().__init__()
        self.refused = refused
        self.calls: list[tuple[str, int]] = []

    def map(self, one: Slot) -> None:
        self.tell("map", one)

    def unmap(self, one: Slot) -> None:
        self.tell("unmap", one)

    def relog(self, old: Slot, new: Slot) -> None:
        self.tell("log" if new.log else "no log", new)

    def tell(self, what: str, one: Slot) -> None:
        if one.gpa == self.refused:
            raise MemorySlotError(what, errno.EIO, slot=0, gpa=one.gpa, hva=one.hva, size=one.size, flags=0)
        self.calls.append((what, one.gpa))


def test_slots_by_address_of_a_class_of_ones_own_tell_of_each_change_and_keep_nothing_that_is_refused() -> None:
    slots = Refusing(0x50000)
    with accel.open_accelerator("mock") as mock, mock.create_vm() as vm:
        vm.memory.add_listener(SlotListener(slots, SlotRules(), "least"))
        ram = accel.MemoryRegion.ram("ram", PAGE_SIZE)
        vm.memory.add(ram, at=0x10000)
        with pytest.raises(MemorySlotError):
            ram.move(0x50000)
        assert [one.gpa for one in slots] == [0x10000]
        ram.start_log(DirtyClient.VGA)
        assert slots.find(0x10000).log is not None
        ram.stop_log(DirtyClient.VGA)
        assert slots.find(0x10000).log is None
        slots.refused = 0x10000
        with pytest.raises(MemorySlotError):
            vm.memory.remove(ram)
        assert slots.find(0x10000) is not None
        slots.refused = -1
    assert slots.calls == [("map", 0x10000), ("log", 0x10000), ("no log", 0x10000)]


def test_slots_by_address_additions_of_many_threads_are_all_made(block: RamBlock) -> None:
    table = SlotsByAddress()
    table.create(slot(block, 0, 0, 1))
    block.view[:8] = bytes(8)
    start = threading.Barrier(4)

    def add() -> None:
        start.wait()
        for _ in range(2000):
            table.access(0, 8, 1, add=True)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert table.access(0, 8) == 8000

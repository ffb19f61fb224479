"""Address spaces: access from the host and from the guest through one view, across whatever borders it has."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.address import ADDRESS_SPACE_SIZE, PAGE_SIZE
from accel.errors import AddressError
from accel.locks import DEVICE_LOCK, Lock
from accel.memory import guest_access
from accel.memory.region import MemoryRegion


class Device:
    """Reads as the low byte of each offset, and notes what happens to it."""

    def __init__(self, size: int = 0x100, lock: Lock | None = None) -> None:
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int, int]] = []
        self.held: list[bool] = []
        self.region = MemoryRegion.mmio("device", size, read=self._read, write=self._write, lock=lock)
        self.watched: Lock | None = lock

    def _read(self, offset: int, size: int) -> int:
        self._note()
        self.reads.append((offset, size))
        return int.from_bytes(bytes((offset + at) & 0xFF for at in range(size)), "little")

    def _write(self, offset: int, value: int, size: int) -> None:
        self._note()
        self.writes.append((offset, value, size))

    def _note(self) -> None:
        if self.watched is not None:
            self.held.append(self.watched.held())


@pytest.fixture
def space(stage):
    """RAM at 0 to 0x1000, ROM to 0x2000, a device to 0x2100, nothing to 0x3000, RAM to 0x4000."""
    device = Device()
    with stage.transaction():
        stage.memory.add(MemoryRegion.ram("low", 0x1000), 0)
        stage.memory.add(MemoryRegion.rom("bios", bytes(range(256)) * 16), 0x1000)
        stage.memory.add(device.region, 0x2000)
        stage.memory.add(MemoryRegion.ram("high", 0x1000), 0x3000)
    stage.memory.device = device
    return stage.memory


# from the host


def test_address_space_host_reads_and_writes_across_sections(space) -> None:
    space.write(0xFFE, b"abcd")
    assert space.read(0xFFE, 4) == b"abcd"
    assert space.read(0x1000, 4) == b"cd\x02\x03", "the host may write ROM"
    assert space.read(0x1FFE, 6) == b"\xfe\xff\x00\x01\x02\x03"
    assert space.device.reads == [(0, 1), (1, 1), (2, 1), (3, 1)], "devices are read byte by byte"
    space.write(0x1FFF, b"xyz")
    assert space.device.writes == [(0, ord("y"), 1), (1, ord("z"), 1)]


@pytest.mark.parametrize(("address", "size"), [(0x2100, 1), (0x20FF, 2), (0x2FFF, 2), (0, 0x4001), (1 << 40, 8)])
def test_address_space_host_access_to_nothing_is_refused_whole(space, address: int, size: int) -> None:
    before = space.read(0, 0x2100)
    space.device.writes.clear()
    with pytest.raises(AddressError, match=r"nothing is mapped at 0x.* of 'memory'"):
        space.read(address, size)
    with pytest.raises(AddressError, match=f"in \\[{address:#x}, {address + size:#x}\\)"):
        space.write(address, b"x" * size)
    assert space.device.writes == []
    assert space.read(0, 0x2100) == before


def test_address_space_host_error_names_the_first_address_that_is_missing(space) -> None:
    with pytest.raises(AddressError, match="nothing is mapped at 0x2100 "):
        space.read(0, 0x4000)


@pytest.mark.parametrize(("address", "size"), [(-1, 1), (0, -1), (ADDRESS_SPACE_SIZE, 1), (ADDRESS_SPACE_SIZE - 1, 2)])
def test_address_space_host_access_outside_of_all_addresses_is_refused(space, address: int, size: int) -> None:
    with pytest.raises(AddressError):
        space.read(address, size)


def test_address_space_host_access_to_no_bytes_is_nothing(space) -> None:
    assert space.read(0x2800, 0) == b""
    space.write(0x2800, b"")


def test_address_space_host_reads_what_a_view_shows_while_it_is_changed(space, stage) -> None:
    """RAM that shrinks in a transaction that is still open is all there for everybody else."""
    (high,) = (child for child in space.root.children if child.name == "high")
    space.write(0x3FFE, b"ok")
    with stage.transaction():
        high.resize(0x800)
        assert space.read(0x3FFE, 2) == b"ok"
        assert guest_access.load(space, 0x3FFE, 2) == int.from_bytes(b"ok", "little")
        guest_access.store(space, 0x3FFE, 0x4141, 2)
        space.write(0x3FFC, b"BB")
    with pytest.raises(AddressError):
        space.read(0x3FFE, 2)
    high.resize(0x1000)
    assert space.read(0x3FFC, 4) == b"BBAA"


# from the guest


def test_address_space_guest_access_inside_one_section(space) -> None:
    guest_access.store(space, 0x10, 0x11223344_55667788, 8)
    assert guest_access.load(space, 0x10, 8) == 0x11223344_55667788
    assert guest_access.load(space, 0x12, 2) == 0x5566
    guest_access.store(space, 0x1000, 0xFFFF, 2)
    assert guest_access.load(space, 0x1000, 2) == 0x0100, "a guest's write to ROM vanishes"
    assert guest_access.load(space, 0x2004, 4) == 0x07060504
    guest_access.store(space, 0x2008, 0xDEADBEEF, 4)
    assert space.device.reads == [(4, 4)]
    assert space.device.writes == [(8, 0xDEADBEEF, 4)]
    assert space.unassigned == 0


def test_address_space_guest_access_across_a_border_asks_each_owner_for_its_bytes(space) -> None:
    guest_access.store(space, 0xFFE, 0x44332211, 4)
    assert space.read(0xFFE, 4) == b"\x11\x22\x00\x01", "the part in ROM vanishes"
    assert guest_access.load(space, 0xFFE, 4) == 0x01002211
    assert guest_access.load(space, 0x1FFE, 4) == 0x0100FFFE
    assert space.device.reads == [(0, 1), (1, 1)]
    guest_access.store(space, 0x1FFE, 0x44332211, 4)
    assert space.device.writes == [(0, 0x33, 1), (1, 0x44, 1)]
    assert space.unassigned == 0


def test_address_space_guest_access_to_nothing_reads_ones_and_counts_once(space) -> None:
    assert guest_access.load(space, 0x2800, 8) == (1 << 64) - 1
    assert space.unassigned == 1
    guest_access.store(space, 0x2800, 5, 4)
    assert space.unassigned == 2
    assert guest_access.load(space, 0x2800, 1) == 0xFF
    assert space.unassigned == 3
    assert guest_access.load(space, 0x20FE, 4) == 0xFFFF_FFFE, "two bytes of the device, and two of nothing"
    assert space.unassigned == 4
    guest_access.store(space, 0x2FFE, 0x44332211, 4)
    assert space.read(0x3000, 2) == b"\x33\x44"
    assert space.unassigned == 5


def test_address_space_guest_access_at_the_last_address(stage) -> None:
    stage.io.add(MemoryRegion.mmio("last", 1, read=lambda offset, size: 0x5A), 0xFFFF)
    assert guest_access.load(stage.io, 0xFFFF, 2) == 0xFF5A
    assert guest_access.load(stage.memory, ADDRESS_SPACE_SIZE - 1, 4) == 0xFFFF_FFFF


def test_address_space_device_without_handlers_reads_ones_and_swallows_writes(stage) -> None:
    stage.memory.add(MemoryRegion.mmio("mute", 0x100), 0)
    assert guest_access.load(stage.memory, 4, 4) == 0xFFFF_FFFF
    guest_access.store(stage.memory, 4, 1, 4)
    assert stage.memory.read(4, 2) == b"\xff\xff"
    assert stage.memory.unassigned == 0


def test_address_space_device_that_answers_too_wide_is_cut(stage) -> None:
    stage.memory.add(MemoryRegion.mmio("wide", 0x100, read=lambda offset, size: -2), 0)
    assert guest_access.load(stage.memory, 0, 2) == 0xFFFE


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 0x48), st.sampled_from([1, 2, 4, 8]), st.integers(0, 1 << 64)), max_size=12))
def test_address_space_guest_sees_little_endian_bytes(make_stage, accesses) -> None:
    """Stores and loads of any size and place, against a plain array of bytes; the middle is ROM, the end nothing."""
    stage = make_stage()
    with stage.transaction():
        stage.memory.add(MemoryRegion.ram("a", 0x10), 0)
        stage.memory.add(MemoryRegion.rom("b", b"\x77" * 8), 0x10)
        stage.memory.add(MemoryRegion.ram("c", 0x28), 0x18)
    model = bytearray(0x10) + b"\x77" * 8 + bytearray(0x28) + b"\xff" * 0x18
    for address, size, value in accesses:
        value &= (1 << 8 * size) - 1
        guest_access.store(stage.memory, address, value, size)
        for index in range(size):
            at = address + index
            if at < 0x10 or 0x18 <= at < 0x40:
                model[at] = value >> 8 * index & 0xFF
        assert guest_access.load(stage.memory, address, size) == int.from_bytes(model[address : address + size], "little")
    assert stage.memory.read(0, 0x40) == bytes(model[:0x40])


def test_address_space_access_of_one_guest_instruction_uses_one_view(stage) -> None:
    """The first byte's handler changes the map; the second byte still goes where it went when the access began."""
    seen = []

    def read(offset: int, size: int) -> int:
        if not seen:
            stage.memory.add(MemoryRegion.mmio("new", 0x10, read=lambda offset, size: 0xEE), 0x10, priority=1)
        seen.append(offset)
        return 0x11

    stage.memory.add(MemoryRegion.mmio("one", 0x10, read=read), 0)
    stage.memory.add(MemoryRegion.mmio("two", 0x10, read=lambda offset, size: 0x22), 0x10)
    assert guest_access.load(stage.memory, 0xF, 2) == 0x2211
    assert guest_access.load(stage.memory, 0xF, 2) == 0xEE11


def test_address_space_host_read_uses_one_view(stage) -> None:
    def read(offset: int, size: int) -> int:
        stage.memory.root.children[-1].set_enabled(False)
        return 0x11

    with stage.transaction():
        stage.memory.add(MemoryRegion.ram("late", PAGE_SIZE), 0x1000)
        stage.memory.add(MemoryRegion.mmio("one", 0x1000, read=read), 0)
    stage.memory.write(0x1000, b"z")
    assert stage.memory.read(0xFFF, 2) == b"\x11z"
    assert stage.memory.view.find(0x1000) is None


# queued writes


def test_address_space_store_run_hands_a_run_over_in_one_call(stage) -> None:
    runs = []
    device = MemoryRegion.mmio("port", 8, write_run=lambda offset, data: runs.append((offset, data)))
    stage.io.add(MemoryRegion.alias("window", device, 2, 4), 0x3F8)
    guest_access.store_run(stage.io, 0x3F9, 1, b"hello")
    assert runs == [(3, b"hello")]


def test_address_space_store_run_without_a_run_handler_stores_one_by_one(stage) -> None:
    device = Device()
    stage.io.add(device.region, 0x100)
    guest_access.store_run(stage.io, 0x102, 1, b"ab")
    guest_access.store_run(stage.io, 0x104, 2, b"abcd")
    assert device.writes == [(2, 0x61, 1), (2, 0x62, 1), (4, 0x6261, 2), (4, 0x6463, 2)]
    guest_access.store_run(stage.io, 0x900, 2, b"abcd")
    assert stage.io.unassigned == 2


def test_address_space_store_run_of_wide_writes_does_not_use_the_run_handler(stage) -> None:
    writes = []
    stage.io.add(
        MemoryRegion.mmio("port", 8, write=lambda *access: writes.append(access), write_run=lambda *run: 1 / 0), 0
    )
    guest_access.store_run(stage.io, 0, 2, b"abcd")
    assert writes == [(0, 0x6261, 2), (0, 0x6463, 2)]


# locks


@pytest.mark.parametrize("own", [False, True])
def test_address_space_handlers_run_under_the_devices_lock_or_the_big_lock(stage, own: bool) -> None:
    lock = Lock(DEVICE_LOCK) if own else None
    runs = []
    device = Device(lock=lock)
    queued = MemoryRegion.mmio("q", 8, write_run=lambda offset, data: runs.append(device.watched.held()), lock=lock)
    stage.memory.add(device.region, 0)
    stage.memory.add(queued, 0x1000)
    device.watched = lock or stage.big_lock
    guest_access.load(stage.memory, 0, 4)
    guest_access.store(stage.memory, 0, 1, 4)
    stage.memory.read(0, 1)
    stage.memory.write(0, b"x")
    guest_access.store_run(stage.memory, 0x1000, 1, b"x")
    assert device.held == [True] * 4
    assert runs == [True]
    assert not device.watched.held()
    assert stage.big_lock.held() is False


def test_address_space_ram_is_served_without_any_lock(space, stage, spawn) -> None:
    """A vCPU that reads RAM must not wait for a transaction that another thread has open."""
    begun, done = threading.Event(), threading.Event()

    def hog() -> None:
        with stage.transaction():
            begun.set()
            assert done.wait(20)

    worker = spawn(hog)
    assert begun.wait(20)
    guest_access.store(space, 0, 7, 1)
    assert guest_access.load(space, 0, 1) == 7
    assert space.read(0, 1) == b"\x07"
    done.set()
    worker.join()


# the tree


def test_address_space_prints_the_tree(stage) -> None:
    ram, box = MemoryRegion.ram("ram", "64K"), MemoryRegion.container("box", 0x1000)
    box.add(MemoryRegion.mmio("inner", 8), 0x10)
    with stage.transaction():
        stage.memory.add(box, 0x20000, priority=1)
        stage.memory.add(ram, 0)
        stage.memory.add(MemoryRegion.alias("window", ram, 0x100, 0x200), 0x30000)
        stage.memory.add(MemoryRegion.rom("bios", b"x"), 0x40000)
    box.set_enabled(False)
    assert str(stage.memory).splitlines() == [
        "address-space: memory",
        "  0000000000000000-ffffffffffffffff (prio 0, container): memory",
        "    0000000000000000-000000000000ffff (prio 0, ram): ram",
        "    0000000000020000-0000000000020fff (prio 1, container): box [disabled]",
        "      0000000000020010-0000000000020017 (prio 0, mmio): inner",
        "    0000000000030000-00000000000301ff (prio 0, alias): window of ram @0x100",
        "    0000000000040000-0000000000040000 (prio 0, rom): bios",
    ]

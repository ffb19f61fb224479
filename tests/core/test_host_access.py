"""Access from the host: across sections, to devices, zero copy, beside a map that changes, and all that is refused."""

from __future__ import annotations

import array
import os
import sys
import threading
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.address import ADDRESS_SPACE_SIZE, PAGE_SIZE
from accel.errors import AddressError, ClosedError, UsageError
from accel.locks import DEVICE_LOCK, Lock
from accel.memory import guest_access
from accel.memory.backing import Backing
from accel.memory.dirty import DirtyClient
from accel.memory.flat_view import FlatView
from accel.memory.host_access import HostAccess
from accel.memory.mmio import AccessSizes, MmioOps
from accel.memory.parts import by_one_view
from accel.memory.region import MemoryRegion


class Device:
    """Bytes behind callbacks, 0, 1, 2, … at first; notes each call."""

    def __init__(self, size: int = 0x100) -> None:
        self.memory = bytearray(at & 0xFF for at in range(size))
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.reads.append((offset, size))
        return int.from_bytes(self.memory[offset : offset + size], "little")

    def write(self, offset: int, value: int, size: int) -> None:
        self.writes.append((offset, value, size))
        self.memory[offset : offset + size] = value.to_bytes(size, "little")

    def region(self, **rules) -> MemoryRegion:
        return MemoryRegion.mmio("device", len(self.memory), ops=MmioOps(self.read, self.write, **rules))


@pytest.fixture
def space(stage):
    """RAM at 0 to 0x1000, ROM to 0x2000, a device to 0x2100, nothing to 0x3000, RAM to 0x4000."""
    device = Device()
    with stage.transaction():
        stage.memory.add(MemoryRegion.ram("low", 0x1000), 0)
        stage.memory.add(MemoryRegion.rom("bios", bytes(range(256)) * 16), 0x1000)
        stage.memory.add(device.region(), 0x2000)
        stage.memory.add(MemoryRegion.ram("high", 0x1000), 0x3000)
    stage.memory.device = device
    return stage.memory


def region_of(space, address: int) -> MemoryRegion:
    return space.translate(address)[0]


# reading and writing


def test_host_access_reads_and_writes_across_sections(space) -> None:
    space.write(0xFFE, b"abcd")
    assert space.read(0xFFE, 4) == b"abcd"
    assert space.read(0x1000, 4) == b"cd\x02\x03", "the host may write ROM"
    assert space.read(0x1FFE, 6) == b"\xfe\xff\x00\x01\x02\x03"
    assert space.device.reads == [(0, 4)]
    space.write(0x1FFF, b"xyz")
    assert space.read(0x1FFF, 1) == b"x"
    assert space.device.writes == [(0, int.from_bytes(b"yz", "little"), 2)]


def test_host_access_read_into_fills_the_buffer_across_sections(space) -> None:
    space.write(0xFFE, b"abcd")
    buffer = bytearray(b"?" * 8)
    space.read_into(0xFFE, memoryview(buffer)[2:6])
    assert buffer == b"??abcd??"
    into = array.array("I", [0, 0])
    space.read_into(0x1FFC, into)
    assert into.tobytes() == b"\xfc\xfd\xfe\xff\x00\x01\x02\x03"
    space.read_into(0x1000, buffer)
    assert bytes(buffer) == b"cd" + bytes(range(2, 8))


def test_host_access_takes_any_bytes_in_a_row(space) -> None:
    for address in (0x10, 0xFFC):
        space.write(address, array.array("H", [0x2211, 0x4433, 0x6655]))
        assert space.read(address, 6) == b"\x11\x22\x33\x44\x55\x66"
        space.write(address, memoryview(bytearray(b"abcdef"))[1:5])
        assert space.read(address, 6) == b"bcde\x55\x66"


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("address", [0x13, 0xFFD, 0x1FFC, 0x2010, 0x20F1])
def test_host_access_numbers_of_each_size_and_order(space, size: int, order, address: int) -> None:
    value = int.from_bytes(bytes(range(0x91, 0x91 + size)), order)
    space.store(address, value, size, order)
    assert space.load(address, size, order) == value
    assert space.read(address, size) == bytes(range(0x91, 0x91 + size))
    space.store(address, (1 << 8 * size) - 1, size, order)
    assert space.read(address, size) == b"\xff" * size


@pytest.mark.parametrize("address", [0x10, 0xFFE, 0x2010])
@pytest.mark.parametrize("value", [-1, 1 << 32, 1 << 70])
def test_host_access_store_of_a_number_that_does_not_fit_is_refused(space, address: int, value: int) -> None:
    before = space.read(0, 0x2100)
    with pytest.raises(AddressError, match=f"value {value:#x} does not fit into 4 bytes at {address:#x}"):
        space.store(address, value, 4)
    assert space.read(0, 0x2100) == before
    assert space.device.writes == []


def test_host_access_translate_gives_region_and_offset(stage) -> None:
    ram = MemoryRegion.ram("ram", 0x2000)
    stage.memory.add(MemoryRegion.alias("window", MemoryRegion.alias("inner", ram, 0x100), 0x300, 0x80), 0x5000)
    assert stage.memory.translate(0x5000) == (ram, 0x400)
    assert stage.memory.translate(0x507F) == (ram, 0x47F)
    for address in (0x4FFF, 0x5080, -1, ADDRESS_SPACE_SIZE, 1 << 70):
        with pytest.raises(AddressError, match=rf"nothing is mapped at {address:#x} of 'memory'"):
            stage.memory.translate(address)


# refusals


ACCESSES = {
    "read": lambda space, address, size: space.read(address, size),
    "read_into": lambda space, address, size: space.read_into(address, bytearray(size)),
    "write": lambda space, address, size: space.write(address, b"x" * size),
    "write as guest": lambda space, address, size: space.write(address, b"x" * size, as_guest=True),
    "copy from": lambda space, address, size: space.copy(0, address, size),
    "copy to": lambda space, address, size: space.copy(address, 0, size),
    "mark_dirty": lambda space, address, size: space.mark_dirty(address, size),
    "ram_view": lambda space, address, size: space.ram_view(address, size),
}


@pytest.mark.parametrize("access", [name for name in ACCESSES if name != "ram_view"])
@pytest.mark.parametrize(("address", "size"), [(0x2100, 1), (0x20FF, 2), (0x2FFF, 2), (0x1F00, 0x1200), (1 << 40, 8)])
def test_host_access_to_nothing_is_refused_whole(space, access: str, address: int, size: int) -> None:
    before = space.read(0, 0x2100)
    space.device.reads.clear()
    with pytest.raises(AddressError, match=rf"nothing is mapped at 0x.* of 'memory', in \[{address:#x}, "):
        ACCESSES[access](space, address, size)
    assert (space.device.reads, space.device.writes) == ([], [])
    assert space.read(0, 0x2100) == before


def test_host_access_error_names_the_first_address_that_is_missing(space) -> None:
    with pytest.raises(AddressError, match="nothing is mapped at 0x2100 "):
        space.read(0, 0x4000)


@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize("address", [-1, ADDRESS_SPACE_SIZE, ADDRESS_SPACE_SIZE - 1, 1 << 80])
def test_host_access_outside_of_all_addresses_is_refused(space, access: str, address: int) -> None:
    with pytest.raises(AddressError):
        ACCESSES[access](space, address, 2)


@pytest.mark.parametrize("access", ["read", "copy from", "copy to", "mark_dirty", "ram_view"])
def test_host_access_of_a_negative_size_is_refused(space, access: str) -> None:
    for address in (0x10, 0x2000, 0x2800):
        with pytest.raises(AddressError, match="is no address range"):
            ACCESSES[access](space, address, -1)


def test_host_access_to_no_bytes_is_nothing_wherever_it_is(space) -> None:
    for address in (0, 0x2000, 0x2800, ADDRESS_SPACE_SIZE):
        assert space.read(address, 0) == b""
        space.write(address, b"")
        space.read_into(address, bytearray())
        space.copy(address, 0x2800, 0)
        space.mark_dirty(address, 0)
        with pytest.raises(AddressError, match="a view of no bytes"):
            space.ram_view(address, 0)
    with pytest.raises(AddressError):
        space.read(-1, 0)
    assert (space.device.reads, space.device.writes) == ([], [])


@pytest.mark.parametrize("address", [0x10, 0xFFF, 0x2000, 0x2800])
@pytest.mark.parametrize(
    "access",
    [
        lambda space, address: space.read(str(address), 2),
        lambda space, address: space.read(float(address), 2),
        lambda space, address: space.read(None, 2),
        lambda space, address: space.read(address, 2.0),
        lambda space, address: space.read(address, "2"),
        lambda space, address: space.read_into(address, b"no"),
        lambda space, address: space.read_into(address, memoryview(bytearray(8))[::2]),
        lambda space, address: space.read_into(address, 2),
        lambda space, address: space.write(address, "no"),
        lambda space, address: space.write(address, 2),
        lambda space, address: space.write(address, None),
        lambda space, address: space.write(address, memoryview(bytearray(8))[::2]),
        lambda space, address: space.write(str(address), b"no"),
        lambda space, address: space.write(float(address), b"no"),
        lambda space, address: space.copy(float(address), 0, 2),
        lambda space, address: space.copy(0, str(address), 2),
        lambda space, address: space.copy(address, 0, "2"),
        lambda space, address: space.ram_view(float(address), 2),
        lambda space, address: space.ram_view(address, "2"),
        lambda space, address: space.mark_dirty(str(address), 2),
        lambda space, address: space.load(float(address), 2),
        lambda space, address: space.load(address, 3),
        lambda space, address: space.load(address, 0),
        lambda space, address: space.load(address, 16),
        lambda space, address: space.load(address, "2"),
        lambda space, address: space.load(address, [2]),
        lambda space, address: space.load(address, 2, "middle"),
        lambda space, address: space.store(address, 1, 3),
        lambda space, address: space.store(address, 1, 2, "big-endian"),
        lambda space, address: space.store(address, "1", 2),
        lambda space, address: space.store(address, 1.0, 2),
        lambda space, address: space.store(address, None, 2),
        lambda space, address: space.store(str(address), 1, 2),
        lambda space, address: space.translate(str(address)),
        lambda space, address: space.translate(None),
    ],
)
def test_host_access_with_what_is_no_number_or_no_bytes_is_refused(space, access, address: int) -> None:
    before = space.read(0, 0x2100)
    with pytest.raises(UsageError):
        access(space, address)
    assert space.read(0, 0x2100) == before


# devices


@pytest.mark.parametrize(
    ("valid", "offset", "size", "calls"),
    [
        (AccessSizes(1, 8, unaligned=True), 0, 12, [(0, 8), (8, 4)]),
        (AccessSizes(1, 8, unaligned=True), 1, 4, [(1, 4)]),
        (AccessSizes(1, 8, unaligned=True), 1, 5, [(1, 1), (2, 2), (4, 2)]),
        (AccessSizes(1, 8), 1, 4, [(1, 1), (2, 2), (4, 1)]),
        (AccessSizes(1, 4), 0, 8, [(0, 4), (4, 4)]),
        (AccessSizes(1, 1), 2, 4, [(2, 1), (3, 1), (4, 1), (5, 1)]),
        (AccessSizes(2, 4), 2, 10, [(2, 2), (4, 4), (8, 4)]),
        (AccessSizes(4, 4, unaligned=True), 2, 4, [(2, 4)]),
    ],
)
def test_host_access_asks_a_device_in_the_widest_accesses_it_takes(stage, valid, offset: int, size: int, calls) -> None:
    device = Device()
    stage.memory.add(device.region(valid=valid), 0x1000)
    assert stage.memory.read(0x1000 + offset, size) == bytes(range(offset, offset + size))
    stage.memory.write(0x1000 + offset, b"\xa5" * size)
    into = bytearray(size)
    stage.memory.read_into(0x1000 + offset, into)
    assert into == b"\xa5" * size
    assert device.reads == calls * 2
    assert [(at, length) for at, _, length in device.writes] == calls


@pytest.mark.parametrize(
    ("valid", "offset", "size", "first"),
    [
        (AccessSizes(4, 4), 0, 6, r"2 bytes at 0x2004"),
        (AccessSizes(4, 4), 2, 4, r"2 bytes at 0x2002"),
        (AccessSizes(2, 8), 0, 1, r"1 bytes at 0x2000"),
        (AccessSizes(8, 8), 0, 4, r"4 bytes at 0x2000"),
    ],
)
def test_host_access_of_sizes_that_a_device_refuses_does_nothing(stage, valid, offset: int, size: int, first) -> None:
    device = Device()
    with stage.transaction():
        stage.memory.add(MemoryRegion.ram("ram", 0x2000), 0)
        stage.memory.add(device.region(valid=valid), 0x2000)
    address = 0x2000 + offset
    accesses = [
        lambda: stage.memory.read(address, size),
        lambda: stage.memory.read_into(address, bytearray(size)),
        lambda: stage.memory.write(address, b"x" * size),
        lambda: stage.memory.copy(address, 0, size),
        lambda: stage.memory.copy(0, address, size),
    ]
    if offset == 0:
        accesses += [
            lambda: stage.memory.write(address - 4, b"x" * (size + 4)),
            lambda: stage.memory.read(address - 4, size + 4),
        ]
    for access in accesses:
        with pytest.raises(AddressError, match=f"{first} of 'memory' are refused by 'device', which takes accesses of"):
            access()
    assert (device.reads, device.writes) == ([], [])
    assert stage.memory.read(0, 0x2000) == bytes(0x2000)
    assert stage.memory.unassigned == 0, "it counts what guests do"


def test_host_access_to_a_big_endian_device_is_the_bus_order_of_its_bytes(stage) -> None:
    registers = {0: 0x11223344, 4: 0}
    ops = MmioOps(
        read=lambda offset, size: registers[offset],
        write=lambda offset, value, size: registers.update({offset: value}),
        implemented=AccessSizes(4, 4),
        endian="big",
    )
    stage.memory.add(MemoryRegion.mmio("big", 8, ops=ops), 0)
    assert stage.memory.read(0, 4) == b"\x11\x22\x33\x44"
    assert stage.memory.load(0, 4, "big") == 0x11223344
    assert stage.memory.load(1, 2, "big") == 0x2233
    stage.memory.store(4, 0xAABBCCDD, 4, "big")
    stage.memory.write(1, b"\x99")
    assert registers == {0: 0x11993344, 4: 0xAABBCCDD}


def test_host_access_to_a_device_without_callbacks_reads_ones_and_swallows_writes(stage) -> None:
    stage.memory.add(MemoryRegion.mmio("mute", 0x100), 0)
    stage.memory.write(0, b"abc")
    assert stage.memory.read(4, 11) == b"\xff" * 11


def test_host_access_write_for_an_ioeventfd_rings_it(stage) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        device = Device()
        region = device.region()
        region.add_eventfd(8, fd, size=2, match=7)
        stage.memory.add(region, 0x1000)
        stage.memory.store(0x1008, 7, 2)
        stage.memory.store(0x1008, 8, 2)
        stage.memory.store(0x1008, 7, 4)
        assert os.eventfd_read(fd) == 1
        assert device.writes == [(8, 8, 2), (8, 7, 4)]
    finally:
        os.close(fd)


@pytest.mark.parametrize("own", [False, True])
def test_host_access_reaches_devices_under_their_lock_or_the_big_lock(stage, own: bool) -> None:
    lock = Lock(DEVICE_LOCK) if own else None
    watched, held = lock or stage.big_lock, []
    region = MemoryRegion.mmio(
        "device",
        0x100,
        read=lambda offset, size: held.append(watched.held()) or 0,
        write=lambda offset, value, size: held.append(watched.held()),
        lock=lock,
    )
    stage.memory.add(region, 0)
    stage.memory.read(0, 1)
    stage.memory.write(0, b"xyz")
    stage.memory.load(0, 4)
    assert held == [True] * 4
    assert not watched.held()
    assert not stage.big_lock.held()


def test_host_access_to_ram_takes_no_lock(space, stage, spawn) -> None:
    begun, done = threading.Event(), threading.Event()

    def hog() -> None:
        with stage.transaction():
            begun.set()
            assert done.wait(60)

    worker = spawn(hog)
    assert begun.wait(60)
    space.store(0, 7, 1)
    space.copy(1, 0, 1)
    assert space.read(0, 2) == b"\x07\x07"
    assert space.ram_view(0, 2) == b"\x07\x07"
    done.set()
    worker.join()


# what is read-only for the guest


def test_host_access_writes_memory_that_the_guest_cannot(stage) -> None:
    written: list[tuple[int, int, int]] = []
    ops = MmioOps(read=lambda offset, size: 0xE0, write=lambda *access: written.append(access))
    flash, ram = MemoryRegion.rom_device("flash", b"", 0x1000, ops=ops), MemoryRegion.ram("ram", 0x1000)
    with stage.transaction():
        stage.memory.add(MemoryRegion.rom("rom", b"", 0x1000), 0)
        stage.memory.add(flash, 0x1000)
        stage.memory.add(MemoryRegion.alias("kept", ram, readonly=True), 0x2000)
    for address in (2, 0xFFF, 0x1103, 0x2003):
        stage.memory.write(address, b"ab")
        assert stage.memory.read(address, 2) == b"ab"
        stage.memory.copy(address + 8, address, 2)
        stage.memory.store(address + 4, 0x6463, 2)
        assert stage.memory.read(address + 4, 6) == b"cd\0\0ab"
    flash.set_romd(False)
    stage.memory.write(0x1000, b"new")
    assert stage.memory.read(0x1000, 3) == b"\xe0\x00\xe0", "reads reach the callbacks"
    flash.set_romd(True)
    assert stage.memory.read(0x1000, 3) == b"new"
    assert written == []


@pytest.mark.parametrize("kind", ["rom", "alias", "readonly"])
def test_host_access_as_guest_is_refused_where_the_guest_cannot_write(stage, kind: str) -> None:
    if kind == "rom":
        kept = MemoryRegion.rom("kept", b"", 0x1000)
    else:
        kept = MemoryRegion.ram("kept", 0x1000)
        if kind == "readonly":
            kept.set_readonly(True)
    with stage.transaction():
        stage.memory.add(MemoryRegion.ram("ram", 0x1000), 0)
        stage.memory.add(MemoryRegion.alias("window", kept, readonly=True) if kind == "alias" else kept, 0x1000)
    for access in (
        lambda: stage.memory.write(0x1010, b"no", as_guest=True),
        lambda: stage.memory.write(0xFFF, b"no", as_guest=True),
        lambda: stage.memory.store(0x1010, 1, 4, as_guest=True),
        lambda: stage.memory.copy(0x1010, 0, 4, as_guest=True),
        lambda: stage.memory.copy(0xFFF, 0, 4, as_guest=True),
    ):
        with pytest.raises(AddressError, match=r"'kept' at 0x10[01]0 of 'memory' is read-only for the guest"):
            access()
    assert stage.memory.read(0, 0x2000) == bytes(0x2000)
    stage.memory.write(0, b"yes", as_guest=True)
    stage.memory.copy(8, 0x1000, 4, as_guest=True)
    stage.memory.store(0x10, 1, 2, as_guest=True)


@pytest.mark.parametrize("romd", [True, False])
def test_host_access_as_guest_gives_a_rom_devices_callbacks_its_writes(stage, romd: bool) -> None:
    written: list[tuple[int, int, int]] = []
    ops = MmioOps(read=lambda offset, size: 0xE0, write=lambda *access: written.append(access))
    flash = MemoryRegion.rom_device("flash", b"flash!", 0x1000, ops=ops)
    stage.memory.add(flash, 0x1000)
    flash.set_romd(romd)
    stage.memory.store(0x1004, 0xAA, 1, as_guest=True)
    stage.memory.write(0x1008, b"abc", as_guest=True)
    assert written == [(4, 0xAA, 1), (8, 0x6261, 2), (10, 0x63, 1)]
    assert flash.read(0, 6) == b"flash!"


def test_host_access_to_a_read_only_file_is_refused_whole(stage, tmp_path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\x5a" * PAGE_SIZE)
    with stage.transaction():
        stage.memory.add(MemoryRegion.ram("ram", PAGE_SIZE), 0)
        stage.memory.add(MemoryRegion.ram("image", PAGE_SIZE, backing=Backing.file(path, readonly=True)), PAGE_SIZE)
    for access in (
        lambda: stage.memory.write(PAGE_SIZE, b"no"),
        lambda: stage.memory.write(PAGE_SIZE - 1, b"no"),
        lambda: stage.memory.store(PAGE_SIZE, 1, 4),
        lambda: stage.memory.copy(PAGE_SIZE - 1, 0, 2),
    ):
        with pytest.raises(AddressError, match="'image' at 0x1000 of 'memory' is a read-only file"):
            access()
    assert stage.memory.read(0, 2 * PAGE_SIZE) == bytes(PAGE_SIZE) + b"\x5a" * PAGE_SIZE
    assert stage.memory.ram_view(PAGE_SIZE, 4).readonly


# copying


def test_host_access_copy_between_memory_and_devices(space) -> None:
    space.write(0x10, b"12345678")
    space.copy(0x2004, 0x10, 8)
    assert space.device.writes == [(4, 0x3837363534333231, 8)]
    space.copy(0x3000, 0x2002, 12)
    assert space.read(0x3000, 12) == b"\x02\x0312345678\x0c\x0d"
    space.copy(0x20F0, 0x2004, 2)
    assert space.device.writes[-1] == (0xF0, 0x3231, 2)


def test_host_access_copy_between_spaces(space, stage) -> None:
    device = Device(0x10)
    stage.io.add(device.region(), 0x100)
    space.write(0xFFE, b"abcd")
    space.copy(0x104, 0xFFE, 4, into=stage.io)
    assert device.writes == [(4, 0x64636261, 4)]
    stage.io.copy(0x3000, 0x100, 8, into=space)
    assert space.read(0x3000, 8) == b"\x00\x01\x02\x03abcd"
    with pytest.raises(AddressError, match="nothing is mapped at 0x3000 of 'io'"):
        space.copy(0x3000, 0, 8, into=stage.io)
    stage.io.add(Device(0x10).region(valid=AccessSizes(4, 4)), 0x200)
    with pytest.raises(AddressError, match="2 bytes at 0x200 of 'io' are refused by 'device'"):
        space.copy(0x200, 0, 2, into=stage.io)


SPAN = 0xA0


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(st.integers(0, SPAN), st.integers(0, SPAN), st.integers(0, SPAN), st.integers(0, 2)), max_size=12
    )
)
def test_host_access_agrees_with_an_array_of_bytes(make_stage, steps) -> None:
    """Random reads, writes and overlapping copies over RAM, ROM, a device, and the same memory twice."""
    stage = make_stage()
    device = Device(0x20)
    twice = MemoryRegion.ram("a", 0x40)
    with stage.transaction():
        stage.memory.add(twice, 0)
        stage.memory.add(device.region(valid=AccessSizes(1, 4)), 0x40)
        stage.memory.add(MemoryRegion.alias("a again", twice, 0, 0x30), 0x60)
        stage.memory.add(MemoryRegion.rom("c", b"", 0x10), 0x90)
    cells = [("a", at) for at in range(0x40)] + [("b", at) for at in range(0x20)]
    cells += [("a", at) for at in range(0x30)] + [("c", at) for at in range(0x10)]
    model = {cell: cell[1] if cell[0] == "b" else 0 for cell in cells}
    for step, (one, two, size, kind) in enumerate(steps):
        fits = one + size <= SPAN and (kind != 2 or two + size <= SPAN)
        data = bytes((step * 37 + at) & 0xFF for at in range(size))
        try:
            if kind == 0:
                assert stage.memory.read(one, size) == bytes(model[cell] for cell in cells[one : one + size])
            elif kind == 1:
                stage.memory.write(one, data)
            else:
                stage.memory.copy(one, two, size)
        except AddressError:
            assert not fits
            continue
        assert fits
        if kind == 2:
            data = bytes(model[cell] for cell in cells[two : two + size])
        if kind:
            model |= zip(cells[one : one + size], data, strict=True)
    assert stage.memory.read(0, SPAN) == bytes(model[cell] for cell in cells)


# zero copy


def test_host_access_ram_view_is_the_memory_itself(space) -> None:
    view = space.ram_view(0x10, 4)
    space.write(0x10, b"abcd")
    assert view == b"abcd"
    view[1:3] = b"XY"
    assert space.read(0x10, 4) == b"aXYd"


def test_host_access_ram_view_is_read_only_where_the_guest_cannot_write(space, stage) -> None:
    flash, ram = MemoryRegion.rom_device("flash", b"flash!"), MemoryRegion.ram("ram", 0x100)
    with stage.transaction():
        space.add(flash, 0x8000)
        space.add(ram, 0x9000)
        space.add(MemoryRegion.alias("window", ram, readonly=True), 0xA000)
    assert [space.ram_view(at, 2).readonly for at in (0x10, 0x1000, 0x8000, 0x9000, 0xA000)] == [
        False,
        True,
        True,
        False,
        True,
    ]
    region, offset = space.translate(0x1000)
    region.view(offset, 4)[:] = b"rom!"
    assert space.ram_view(0x1000, 4) == b"rom!", "a loader asks the region for a writable view"


def test_host_access_ram_view_goes_across_sections_of_one_piece_of_memory(stage) -> None:
    ram = MemoryRegion.ram("ram", 0x3000)
    with stage.transaction():
        stage.memory.add(MemoryRegion.alias("one", ram, 0, 0x1000), 0)
        stage.memory.add(MemoryRegion.alias("two", ram, 0x1000, 0x1000, readonly=True), 0x1000)
        stage.memory.add(MemoryRegion.alias("far", ram, 0, 0x1000), 0x2000)
    assert len(stage.memory.view) == 3
    ram.write(0xFFE, b"abcd")
    view = stage.memory.ram_view(0xFFE, 4)
    assert view == b"abcd"
    assert view.readonly
    with pytest.raises(AddressError, match="'ram' at 0x2000 of 'memory' is not the same piece of host memory"):
        stage.memory.ram_view(0x1FFF, 2)


@pytest.mark.parametrize(
    ("address", "size", "problem"),
    [
        (0xFFF, 2, "'bios' at 0x1000 of 'memory' is not the same piece"),
        (0x1FFF, 2, "'device' at 0x2000 of 'memory' is no memory; read it"),
        (0x2000, 1, "is no memory"),
        (0x3FFF, 2, "nothing is mapped at 0x4000"),
        (0x2800, 1, "nothing is mapped at 0x2800"),
    ],
)
def test_host_access_ram_view_of_anything_else_is_refused(space, address: int, size: int, problem: str) -> None:
    with pytest.raises(AddressError, match=problem):
        space.ram_view(address, size)


def test_host_access_ram_view_of_a_rom_device_that_is_no_memory_now_is_refused(stage) -> None:
    flash = MemoryRegion.rom_device("flash", b"flash!")
    stage.memory.add(flash, 0)
    flash.set_romd(False)
    with pytest.raises(AddressError, match="is no memory"):
        stage.memory.ram_view(0, 2)


# the dirty log


def test_host_access_writes_are_in_the_dirty_log(space) -> None:
    high = region_of(space, 0x3000)
    high.start_log(DirtyClient.VGA)
    log = high.dirty_log()
    writes = [
        lambda: space.write(0x3010, b"x"),
        lambda: space.write(0x3010, memoryview(b"x")),
        lambda: space.store(0x3010, 1, 4),
        lambda: space.store(0x3010, 1, 4, as_guest=True),
        lambda: space.copy(0x3010, 0, 4),
        lambda: space.copy(0x3010, 0xFFF, 4),
        lambda: space.mark_dirty(0x3FFF, 1),
    ]
    for write in writes:
        write()
        assert log.collect(DirtyClient.VGA, 0, 0x1000).page_count == 1
    space.read(0x3000, 0x1000)
    space.copy(0, 0x3000, 0x100)
    space.write(0x3000, b"")
    space.mark_dirty(0x3000, 0)
    assert log.collect(DirtyClient.VGA, 0, 0x1000).page_count == 0


# beside a map that changes


def test_host_access_reads_what_a_view_shows_while_it_is_changed(space, stage) -> None:
    """RAM that shrinks in a transaction that is still open is all there for everybody else."""
    high = region_of(space, 0x3000)
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


@pytest.mark.parametrize("access", ["read", "read_into", "copy"])
def test_host_access_goes_on_in_the_map_that_it_began_with(stage, access: str) -> None:
    """A device's callback takes away the RAM behind it, for good, in the middle of the access."""
    late = MemoryRegion.ram("late", PAGE_SIZE)

    def read(offset: int, size: int) -> int:
        if late.parent is not None:
            stage.memory.remove(late)
            late.release()
        return 0x11

    with stage.transaction():
        stage.memory.add(late, 0x1000)
        stage.memory.add(MemoryRegion.mmio("one", 0x1000, read=read), 0)
        stage.memory.add(MemoryRegion.ram("ram", 0x1000), 0x8000)
    stage.memory.write(0x1000, b"z")
    if access == "read":
        found = stage.memory.read(0xFFF, 2)
    elif access == "read_into":
        stage.memory.read_into(0xFFF, found := bytearray(2))
    else:
        stage.memory.copy(0x8000, 0xFFF, 2)
        found = stage.memory.read(0x8000, 2)
    assert found == b"\x11z"
    with pytest.raises(ClosedError):
        late.read(0, 1)
    assert stage.memory.view.find(0x1000) is None


def test_host_access_write_goes_on_in_the_map_that_it_began_with(stage) -> None:
    late = MemoryRegion.ram("late", PAGE_SIZE)

    def write(offset: int, value: int, size: int) -> None:
        stage.memory.remove(late)
        late.release()

    with stage.transaction():
        stage.memory.add(late, 0x1000)
        stage.memory.add(MemoryRegion.mmio("one", 0x1000, write=write), 0)
    memory = stage.memory.ram_view(0x1000, 1)
    stage.memory.write(0xFFF, b"ab")
    assert memory == b"b"


def test_host_access_ram_view_outlives_region_and_vm(stage) -> None:
    ram = MemoryRegion.ram("ram", PAGE_SIZE)
    stage.memory.add(ram, 0)
    stage.memory.write(0x10, b"kept")
    view = stage.memory.ram_view(0x10, 4)
    rest = stage.memory.ram_view(0x100, 4)
    stage.memory.remove(ram)
    ram.release()
    stage.transactions.close()
    del ram
    assert view == b"kept"
    rest[:] = b"more"
    assert rest == b"more"


def test_host_access_after_the_memory_is_released_says_so(stage) -> None:
    ram = MemoryRegion.ram("ram", PAGE_SIZE)
    stage.memory.add(ram, 0)
    stage.transactions.close()
    assert stage.memory.read(0, 4) == bytes(4)
    ram.release()
    for access in (
        lambda: stage.memory.read(0, 4),
        lambda: stage.memory.write(0, b"abcd"),
        lambda: stage.memory.copy(0, 8, 4),
        lambda: stage.memory.load(0, 4),
        lambda: stage.memory.store(0, 1, 4),
        lambda: stage.memory.ram_view(0, 4),
        lambda: guest_access.load(stage.memory, 0, 4),
        lambda: guest_access.store(stage.memory, 0, 1, 4),
    ):
        with pytest.raises(ClosedError, match="the host memory of 'ram' is released"):
            access()


def test_by_one_view_begins_again_with_a_later_view_only() -> None:
    class Space:
        def __init__(self, *views: str) -> None:
            self.views = list(views)

        @property
        def view(self):
            return self.views.pop(0) if len(self.views) > 1 else self.views[0]

    def make(view: str) -> str:
        if view == "gone":
            raise ClosedError("released")
        return view

    assert by_one_view(Space("gone", "new"), make) == "new"
    with pytest.raises(ClosedError):
        by_one_view(Space("gone"), make)


class Restless(HostAccess):
    """Shows two maps in turn: another one each time that somebody looks."""

    name = "restless"
    closed = False

    def __init__(self, big_lock: Lock, *views: FlatView) -> None:
        self.big_lock = big_lock
        self._views = cycle(views)

    @property
    def view(self) -> FlatView:
        return next(self._views)


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("access", ["read", "read_into", "write", "copy", "copy long", "mark_dirty"])
def test_host_access_looks_at_one_view(stage, access: str, turn: int) -> None:
    maps = {letter: [MemoryRegion.ram(letter, 0x1000) for _ in range(4)] for letter in "AB"}
    views = []
    for letter, regions in maps.items():
        with stage.transaction():
            for number, region in enumerate(regions):
                region.write(0, letter.encode() * 0x1000 if number < 2 else bytes(0x1000))
                region.start_log(DirtyClient.VGA)
                region.dirty_log().clear(DirtyClient.VGA, 0, 0x1000)
                stage.memory.add(region, number * 0x1000, priority=len(views))
        views.append(stage.memory.view)
    space = Restless(stage.big_lock, views[turn], views[1 - turn])
    if access == "read":
        assert space.read(0xFFE, 4) in (b"AAAA", b"BBBB")
    elif access == "read_into":
        space.read_into(0xFFE, buffer := bytearray(4))
        assert buffer in (b"AAAA", b"BBBB")
    elif access == "write":
        space.write(0x2FFE, b"word")
        assert {maps[letter][2].read(0xFFE, 2) + maps[letter][3].read(0, 2) for letter in "AB"} == {b"word", bytes(4)}
    elif access == "mark_dirty":
        space.mark_dirty(0x2FFE, 4)
        pages = [[one.dirty_log().is_dirty(DirtyClient.VGA, 0, 0x1000) for one in maps[letter]] for letter in "AB"]
        assert sorted(pages) == [[False] * 4, [False, False, True, True]]
    else:
        space.copy(*((0x2FFE, 0xFFE, 4) if access == "copy long" else (0x2000, 0, 4)))
        for letter in "AB":
            copied = maps[letter][2].read(0xFFE, 2) + maps[letter][3].read(0, 2) + maps[letter][2].read(0, 4)
            assert set(copied) <= {0, ord(letter)}, f"{letter} was given {copied}"


@pytest.fixture
def hurry():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


SIZE = 64 << 10


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("access", ["read", "read_into", "copy"])
def test_host_access_sees_a_concurrent_change_whole_or_not_at_all(stage, spawn, access: str) -> None:
    """64 KiB over two sections, while another thread flips both of them between A and B in one transaction."""
    half = SIZE // 2
    halves = {letter: [MemoryRegion.ram(f"{letter}{number}", half) for number in range(2)] for letter in (b"A", b"B")}
    with stage.transaction():
        for letter, pair in halves.items():
            for number, region in enumerate(pair):
                region.write(0, letter * half)
                stage.memory.add(region, number * half)
        stage.memory.add(MemoryRegion.ram("copy", SIZE), SIZE)
        for region in halves[b"B"]:
            region.set_enabled(False)
    done = threading.Event()

    def flip() -> None:
        shown = False
        while not done.is_set():
            shown = not shown
            with stage.transaction():
                for region in halves[b"B"]:
                    region.set_enabled(shown)
                for region in halves[b"A"]:
                    region.set_enabled(not shown)

    flipper = spawn(flip)
    seen = set()
    buffer = bytearray(SIZE)
    try:
        for count in range(100_000):
            if access == "read":
                data = stage.memory.read(0, SIZE)
            elif access == "read_into":
                stage.memory.read_into(0, buffer)
                data = bytes(buffer)
            else:
                stage.memory.copy(SIZE, 0, SIZE)
                data = stage.memory.read(SIZE, SIZE)
            seen.add(data)
            assert len(seen) <= 2
            if count >= 10_000 and len(seen) == 2:
                break
    finally:
        done.set()
    flipper.join()
    assert seen == {b"A" * SIZE, b"B" * SIZE}


@pytest.mark.usefixtures("hurry")
def test_host_access_and_guest_access_never_meet_released_memory(stage, spawn) -> None:
    """RAM comes, goes and is released over other RAM, under readers that always find one or the other."""
    stage.memory.add(MemoryRegion.ram("under", 0x2000), 0)
    begun, done = threading.Event(), threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            begun.set()
            over = MemoryRegion.ram("over", 0x1000)
            over.write(0, b"\1" * 0x1000)
            stage.memory.add(over, 0, priority=1)
            stage.memory.remove(over)
            over.release()

    worker = spawn(come_and_go)
    seen = set()
    try:
        assert begun.wait(60)
        for _ in range(3000):
            seen.add(stage.memory.read(0, 8))
            seen.add(stage.memory.read(0xFF0, 0x20)[:8])
            seen.add(stage.memory.load(8, 8).to_bytes(8, "little"))
            seen.add(bytes(stage.memory.ram_view(0x10, 8)))
            seen.add(guest_access.load(stage.memory, 0x20, 8).to_bytes(8, "little"))
            seen.add(guest_access.load(stage.memory, 0xFFC, 8).to_bytes(8, "little")[:2] * 4)
            guest_access.store(stage.memory, 0x800, 0, 8)
            guest_access.store(stage.memory, 0xFFF, 1, 2)
            stage.memory.write(0x808, b"x")
            stage.memory.copy(0x810, 0, 8)
    finally:
        done.set()
    worker.join()
    assert seen <= {b"\0" * 8, b"\1" * 8}

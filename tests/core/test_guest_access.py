"""What a guest's access comes to: one owner or several, devices that refuse, ROM devices, ioeventfds, queued writes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from accel.address import ADDRESS_SPACE_SIZE
from accel.locks import DEVICE_LOCK, Lock
from accel.memory import guest_access
from accel.memory.dirty import DirtyClient
from accel.memory.mmio import ANY_ACCESS, AccessSizes, MmioOps, natural_pieces
from accel.memory.region import MemoryRegion


class Device:
    """Bytes behind callbacks, 0, 1, 2, … at first; notes each call and whether `watched` is held then."""

    def __init__(self, size: int = 0x100, endian="little") -> None:
        self.memory = bytearray(at & 0xFF for at in range(size))
        self.endian = endian
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int, int]] = []
        self.held: list[bool] = []
        self.watched: Lock | None = None

    def read(self, offset: int, size: int) -> int:
        self._note()
        self.reads.append((offset, size))
        return int.from_bytes(self.memory[offset : offset + size], self.endian)

    def write(self, offset: int, value: int, size: int) -> None:
        self._note()
        self.writes.append((offset, value, size))
        self.memory[offset : offset + size] = value.to_bytes(size, self.endian)

    def _note(self) -> None:
        if self.watched is not None:
            self.held.append(self.watched.held())

    def ops(self, **rules) -> MmioOps:
        return MmioOps(self.read, self.write, endian=self.endian, **rules)

    def region(self, lock: Lock | None = None, **rules) -> MemoryRegion:
        return MemoryRegion.mmio("device", len(self.memory), ops=self.ops(**rules), lock=lock)


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


@pytest.fixture
def bell() -> Iterator[int]:
    """An eventfd."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def rung(fd: int) -> int:
    """Return how often it rang since the last time."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


# one owner


def test_guest_access_inside_one_section(space) -> None:
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


def test_guest_access_to_nothing_reads_ones_and_counts_once(space) -> None:
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


def test_guest_access_at_the_last_address(stage) -> None:
    stage.io.add(MemoryRegion.mmio("last", 1, read=lambda offset, size: 0x5A), 0xFFFF)
    assert guest_access.load(stage.io, 0xFFFF, 2) == 0xFF5A
    assert guest_access.load(stage.memory, ADDRESS_SPACE_SIZE - 1, 4) == 0xFFFF_FFFF


def test_guest_access_to_a_device_without_callbacks_reads_ones_and_swallows_writes(stage) -> None:
    stage.memory.add(MemoryRegion.mmio("mute", 0x100), 0)
    assert guest_access.load(stage.memory, 4, 4) == 0xFFFF_FFFF
    guest_access.store(stage.memory, 4, 1, 4)
    assert stage.memory.unassigned == 0


def test_guest_access_to_a_device_that_answers_too_wide_is_cut(stage) -> None:
    stage.memory.add(MemoryRegion.mmio("wide", 0x100, read=lambda offset, size: -2), 0)
    assert guest_access.load(stage.memory, 0, 2) == 0xFFFE


def test_guest_access_writes_are_in_the_dirty_log(stage) -> None:
    ram, rom = MemoryRegion.ram("ram", 0x2000), MemoryRegion.rom("rom", b"", 0x1000)
    with stage.transaction():
        stage.memory.add(ram, 0)
        stage.memory.add(rom, 0x2000)
        for region in (ram, rom):
            region.start_log(DirtyClient.VGA)
    guest_access.load(stage.memory, 0, 8)
    guest_access.store(stage.memory, 0x1FFF, 0x5555, 2)
    log = ram.dirty_log()
    assert [log.is_dirty(DirtyClient.VGA, page) for page in (0, 0x1000)] == [False, True]
    log.clear(DirtyClient.VGA, 0, 0x2000)
    guest_access.store(stage.memory, 0x10, 1, 1)
    assert [log.is_dirty(DirtyClient.VGA, page) for page in (0, 0x1000)] == [True, False]
    guest_access.store(stage.memory, 0x2000, 1, 1)
    assert not rom.dirty_log().is_dirty(DirtyClient.VGA, 0)


# the rules of a device


@pytest.mark.parametrize(
    ("valid", "offset", "size", "accepted"),
    [
        (AccessSizes(4, 4), 4, 4, True),
        (AccessSizes(4, 4), 4, 2, False),
        (AccessSizes(4, 4), 0, 8, False),
        (AccessSizes(4, 4), 2, 4, False),
        (AccessSizes(4, 4, unaligned=True), 2, 4, True),
        (AccessSizes(1, 2), 0, 4, False),
        (AccessSizes(1, 2), 1, 1, True),
    ],
)
def test_guest_access_that_a_device_refuses_counts_once(stage, valid, offset: int, size: int, accepted: bool) -> None:
    device = Device()
    stage.memory.add(device.region(valid=valid), 0x1000)
    value = guest_access.load(stage.memory, 0x1000 + offset, size)
    assert value == (int.from_bytes(bytes(range(offset, offset + size)), "little") if accepted else (1 << 8 * size) - 1)
    assert stage.memory.unassigned == (not accepted)
    guest_access.store(stage.memory, 0x1000 + offset, 0x55, size)
    assert device.writes == ([(offset, 0x55, size)] if accepted else [])
    assert stage.memory.unassigned == 2 * (not accepted)


def test_guest_access_reaches_the_callbacks_as_they_take_it(stage) -> None:
    device = Device(0x10, endian="big")
    stage.memory.add(device.region(implemented=AccessSizes(2, 4)), 0)
    assert guest_access.load(stage.memory, 0, 8) == 0x07060504_03020100
    guest_access.store(stage.memory, 1, 0x99, 1)
    assert device.reads == [(0, 4), (4, 4), (0, 2)]
    assert device.writes == [(0, 0x0099, 2)]


# across a border


def test_guest_access_across_a_border_gives_each_owner_its_run(space) -> None:
    guest_access.store(space, 0xFFE, 0x44332211, 4)
    assert space.read(0xFFE, 4) == b"\x11\x22\x00\x01", "the part in ROM vanishes"
    assert guest_access.load(space, 0xFFE, 4) == 0x01002211
    assert guest_access.load(space, 0x1FFE, 4) == 0x0100FFFE
    assert space.device.reads == [(0, 2)], "one call, not one for each byte"
    guest_access.store(space, 0x1FFE, 0x44332211, 4)
    assert space.device.writes == [(0, 0x4433, 2)]
    assert space.unassigned == 0


def test_guest_access_across_a_border_obeys_each_devices_rules(stage) -> None:
    """Four bytes, two of each: one device takes them, the other wants four."""
    one, two = Device(8), Device(8)
    with stage.transaction():
        stage.memory.add(one.region(valid=AccessSizes(2, 2)), 0)
        stage.memory.add(two.region(valid=AccessSizes(4, 4)), 8)
    assert guest_access.load(stage.memory, 6, 4) == 0xFFFF_0706
    assert stage.memory.unassigned == 1
    guest_access.store(stage.memory, 6, 0x44332211, 4)
    assert stage.memory.unassigned == 2
    assert (one.writes, two.writes) == ([(6, 0x2211, 2)], [])
    assert guest_access.load(stage.memory, 5, 4) == 0xFFFF_FFFF, "three bytes are 1 and 2, and 1 is refused"
    assert (one.reads, two.reads) == ([(6, 2)], [])
    assert stage.memory.unassigned == 3, "both refused it, and it counts once"


def test_guest_access_across_several_holes_counts_once(stage) -> None:
    with stage.transaction():
        stage.memory.add(MemoryRegion.ram("one", 1), 1)
        stage.memory.add(MemoryRegion.ram("two", 2), 4)
    guest_access.store(stage.memory, 0, 0x88776655_44332211, 8)
    assert stage.memory.unassigned == 1
    assert guest_access.load(stage.memory, 0, 8) == 0xFFFF6655_FFFF22FF
    assert stage.memory.unassigned == 2


def test_guest_access_of_one_instruction_uses_one_view(stage) -> None:
    """The first part's handler changes the map; the second part still goes where it went when the access began."""
    late, seen = MemoryRegion.ram("late", 0x10), []

    def read(offset: int, size: int) -> int:
        if not seen:
            stage.memory.add(MemoryRegion.mmio("new", 0x10, read=lambda offset, size: 0xEE), 0x10, priority=1)
            stage.memory.remove(late)
            late.release()
        seen.append(offset)
        return 0x11

    late.write(0, b"\x22")
    with stage.transaction():
        stage.memory.add(MemoryRegion.mmio("one", 0x10, read=read), 0)
        stage.memory.add(late, 0x10)
    assert guest_access.load(stage.memory, 0xF, 2) == 0x2211
    assert guest_access.load(stage.memory, 0xF, 2) == 0xEE11


class Later:
    """A space that shows a map of before to whoever looks first."""

    def __init__(self, space, before) -> None:
        self._space = space
        self._before = [before]

    @property
    def view(self):
        return self._before.pop() if self._before else self._space.view


@pytest.mark.parametrize(("address", "size"), [(0x10, 4), (0xFFE, 4)])
def test_guest_access_that_comes_too_late_for_released_memory_finds_what_shows_now(stage, address, size) -> None:
    gone = MemoryRegion.ram("gone", 0x1000)
    with stage.transaction():
        stage.memory.add(MemoryRegion.ram("under", 0x2000), 0)
        stage.memory.add(gone, 0, priority=1)
    before = stage.memory.view
    stage.memory.remove(gone)
    gone.release()
    guest_access.store(Later(stage.memory, before), address, 0x44332211, size)
    assert stage.memory.load(address, 4) == 0x44332211
    assert guest_access.load(Later(stage.memory, before), address, size) == 0x44332211


LAYOUT = [("ram", 0x20), ("rom", 8), ("one", 0x18), ("two", 0x10), (None, 8), ("flash", 0x10), ("one", 0x10)]
SPAN = sum(size for _, size in LAYOUT)
POWERS = st.sampled_from([1, 2, 4, 8])
RULES = st.builds(
    lambda low, high, unaligned: AccessSizes(min(low, high), max(low, high), unaligned=unaligned),
    POWERS,
    POWERS,
    st.booleans(),
)


def is_accepted(valid: AccessSizes, offset: int, size: int) -> bool:
    pieces = [(offset, size)] if size in (1, 2, 4, 8) else list(natural_pieces(offset, size))
    return all(valid.min <= length <= valid.max and (valid.unaligned or at % length == 0) for at, length in pieces)


@settings(max_examples=150)
@given(
    st.tuples(RULES, RULES, RULES),
    st.tuples(RULES | st.just(ANY_ACCESS), st.sampled_from(["little", "big"])),
    st.booleans(),
    st.lists(
        st.tuples(st.booleans(), st.integers(0, SPAN), st.integers(1, 8), st.integers(0, (1 << 64) - 1)), max_size=10
    ),
)
def test_guest_access_agrees_with_a_list_of_owners(make_stage, rules, how, romd: bool, accesses) -> None:
    """Any access over RAM, ROM, two devices, a hole, a ROM device and an alias, against bytes with an owner each."""
    stage = make_stage()
    valid = dict(zip(("one", "two", "flash"), rules, strict=True))
    implemented, endian = how
    devices = {name: Device(0x18, endian) for name in valid}
    ops = {name: device.ops(valid=valid[name], implemented=implemented) for name, device in devices.items()}
    regions = {
        "ram": MemoryRegion.ram("ram", 0x20),
        "rom": MemoryRegion.rom("rom", b"\x77" * 8),
        "one": MemoryRegion.mmio("one", 0x18, ops=ops["one"]),
        "two": MemoryRegion.mmio("two", 0x10, ops=ops["two"]),
        "flash": MemoryRegion.rom_device("flash", b"\x99" * 0x10, ops=ops["flash"]),
    }
    regions["flash"].set_romd(romd)
    model = {"ram": bytearray(0x20), "rom": bytearray(b"\x77" * 8), "flash memory": bytearray(b"\x99" * 0x10)}
    model |= {name: bytearray(range(0x18)) for name in valid}
    # For each address: the number of its part in the layout, its region, and the offset in that.
    owners: list[tuple[int, str | None, int]] = []
    with stage.transaction():
        at = 0
        for number, (name, size) in enumerate(LAYOUT):
            if name is not None:
                stage.memory.add(MemoryRegion.alias(f"window {number}", regions[name], 0, size), at)
            owners += [(number, name, offset) for offset in range(size)]
            at += size
    owners += [(-1, None, 0)] * 8

    unassigned = 0
    for is_write, address, size, value in accesses:
        runs: dict[int, list[int]] = {}
        for index in range(size):
            runs.setdefault(owners[address + index][0], []).append(index)
        expected, missing = bytearray(b"\xff" * size), False
        data = value.to_bytes(8, "little")[:size]
        for indices in runs.values():
            _, name, offset = owners[address + indices[0]]
            place, part = slice(offset, offset + len(indices)), slice(indices[0], indices[-1] + 1)
            is_memory = name in ("ram", "rom") or (name == "flash" and romd and not is_write)
            if name is None or (not is_memory and not is_accepted(valid[name], offset, len(indices))):
                missing = True
            elif not is_write:
                expected[part] = model["flash memory" if name == "flash" and romd else name][place]
            elif name != "rom":
                model[name][place] = data[part]
        unassigned += missing
        event(f"{'write' if is_write else 'read'} of {len(runs)} parts, {'not all' if missing else 'all'} served")
        if is_write:
            guest_access.store(stage.memory, address, int.from_bytes(data, "little"), size)
        else:
            assert guest_access.load(stage.memory, address, size) == int.from_bytes(expected, "little")
        assert stage.memory.unassigned == unassigned
    assert regions["ram"].read(0, 0x20) == model["ram"]
    assert regions["rom"].read(0, 8) == model["rom"]
    assert regions["flash"].read(0, 0x10) == model["flash memory"]
    assert {name: device.memory for name, device in devices.items()} == {name: model[name] for name in valid}


# ROM devices


@pytest.mark.parametrize("lock", [None, Lock(DEVICE_LOCK)])
def test_guest_access_to_a_rom_device_reads_memory_until_it_is_told_otherwise(stage, lock) -> None:
    """A flash chip: a write of 0x90 makes it answer with its state, a write of 0xff makes it memory again."""
    seen = []

    def write(offset: int, value: int, size: int) -> None:
        seen.append((offset, value, size))
        if lock is None:
            flash.set_romd(value == 0xFF)

    ops = MmioOps(read=lambda offset, size: 0x80 + offset, write=write, valid=AccessSizes(1, 2))
    flash = MemoryRegion.rom_device("flash", b"flash!", 0x1000, ops=ops, lock=lock)
    stage.memory.add(flash, 0x1800)
    assert guest_access.load(stage.memory, 0x1801, 4) == int.from_bytes(b"lash", "little"), "memory has no rules"
    guest_access.store(stage.memory, 0x1802, 0x90, 1)
    if lock is not None:
        flash.set_romd(False)
    assert guest_access.load(stage.memory, 0x1802, 2) == 0x82
    assert guest_access.load(stage.memory, 0x1804, 4) == 0xFFFF_FFFF, "refused by its rules"
    guest_access.store(stage.memory, 0x1804, 0xFF, 4)
    assert stage.memory.unassigned == 2
    guest_access.store(stage.memory, 0x1800, 0xFF, 2)
    if lock is not None:
        flash.set_romd(True)
    assert guest_access.load(stage.memory, 0x1800, 2) == int.from_bytes(b"fl", "little")
    assert seen == [(2, 0x90, 1), (0, 0xFF, 2)]
    assert flash.read(0, 6) == b"flash!"


# ioeventfds


@pytest.mark.parametrize(
    ("doorbell", "write", "rings"),
    [
        ({"size": 4}, (4, 0x1234, 4), True),
        ({"size": 4}, (4, 0x1234, 2), False),
        ({"size": 4}, (0, 0x1234, 4), False),
        ({"size": 4}, (2, 0x1234, 4), False),
        ({"size": 2, "match": 7}, (4, 7, 2), True),
        ({"size": 2, "match": 7}, (4, 8, 2), False),
        ({"size": 2, "match": 7}, (4, 7, 4), False),
        ({}, (4, 1, 1), True),
        ({}, (4, 1, 8), True),
        ({}, (5, 1, 1), False),
    ],
)
def test_guest_access_write_for_an_ioeventfd_rings_and_goes_nowhere_else(stage, bell, doorbell, write, rings) -> None:
    device = Device()
    region = device.region()
    stage.memory.add(region, 0x1000)
    region.add_eventfd(4, bell, **doorbell)
    offset, value, size = write
    guest_access.store(stage.memory, 0x1000 + offset, value, size)
    assert rung(bell) == rings
    assert device.writes == ([] if rings else [write])
    guest_access.load(stage.memory, 0x1000 + offset, size)
    assert rung(bell) == 0
    region.remove_eventfd(4, bell, **doorbell)
    guest_access.store(stage.memory, 0x1000 + offset, value, size)
    assert rung(bell) == 0
    assert device.writes[-1] == write
    assert stage.memory.unassigned == 0


def test_guest_access_rings_where_the_device_would_refuse(stage, bell) -> None:
    region = Device().region(valid=AccessSizes(4, 4))
    region.add_eventfd(0, bell, size=2)
    stage.memory.add(region, 0)
    guest_access.store(stage.memory, 0, 1, 2)
    assert rung(bell) == 1
    assert stage.memory.unassigned == 0


def test_guest_access_part_of_a_write_rings_nothing(stage, bell) -> None:
    device = Device(8)
    region = device.region()
    region.add_eventfd(0, bell, size=2)
    stage.memory.add(region, 0x1000)
    guest_access.store(stage.memory, 0xFFE, 0x44332211, 4)
    assert rung(bell) == 0
    assert device.writes == [(0, 0x4433, 2)]


def test_guest_access_full_ioeventfd_stays_full(stage, bell) -> None:
    os.eventfd_write(bell, (1 << 64) - 2)
    region = Device().region()
    region.add_eventfd(0, bell)
    stage.memory.add(region, 0)
    guest_access.store(stage.memory, 0, 1, 4)
    assert rung(bell) == (1 << 64) - 2


# queued writes


def test_store_run_hands_a_run_over_in_one_call(stage) -> None:
    runs = []
    device = MemoryRegion.mmio("port", 8, write_run=lambda offset, data: runs.append((offset, data)))
    stage.io.add(MemoryRegion.alias("window", device, 2, 4), 0x3F8)
    guest_access.store_run(stage.io, 0x3F9, 1, b"hello")
    assert runs == [(3, b"hello")]


def test_store_run_without_a_run_handler_stores_one_by_one(stage) -> None:
    device = Device()
    stage.io.add(device.region(), 0x100)
    guest_access.store_run(stage.io, 0x102, 1, b"ab")
    guest_access.store_run(stage.io, 0x104, 2, b"abcd")
    assert device.writes == [(2, 0x61, 1), (2, 0x62, 1), (4, 0x6261, 2), (4, 0x6463, 2)]
    guest_access.store_run(stage.io, 0x900, 2, b"abcd")
    assert stage.io.unassigned == 2


def test_store_run_of_wide_writes_does_not_use_the_run_handler(stage) -> None:
    writes = []
    stage.io.add(
        MemoryRegion.mmio("port", 8, write=lambda *access: writes.append(access), write_run=lambda *run: 1 / 0), 0
    )
    guest_access.store_run(stage.io, 0, 2, b"abcd")
    assert writes == [(0, 0x6261, 2), (0, 0x6463, 2)]


def test_store_run_of_bytes_that_the_device_refuses_is_dropped_and_counted(stage) -> None:
    runs = []
    ops = MmioOps(write_run=lambda *run: runs.append(run), write=lambda *access: 1 / 0, valid=AccessSizes(2, 4))
    stage.io.add(MemoryRegion.mmio("port", 8, ops=ops), 0)
    guest_access.store_run(stage.io, 0, 1, b"abc")
    assert (runs, stage.io.unassigned) == ([], 3)


@pytest.mark.parametrize(("size", "match", "rings"), [(1, None, 3), (0, None, 3), (1, ord("b"), 1), (2, None, 0)])
def test_store_run_rings_for_each_write(stage, bell, size: int, match: int | None, rings: int) -> None:
    writes: list[bytes] = []
    region = MemoryRegion.mmio(
        "port",
        8,
        write=lambda offset, value, size: writes.append(bytes([value])),
        write_run=lambda offset, data: writes.append(data),
    )
    region.add_eventfd(2, bell, size=size, match=match)
    stage.io.add(region, 0x100)
    guest_access.store_run(stage.io, 0x102, 1, b"abc")
    assert rung(bell) == rings
    assert writes == ([b"a", b"c"] if rings == 1 else [] if rings else [b"abc"])
    guest_access.store_run(stage.io, 0x103, 1, b"xyz")
    assert writes[-1] == b"xyz", "it is at another place"


def test_store_run_to_memory_is_the_last_write(space) -> None:
    guest_access.store_run(space, 0x10, 2, b"abcd")
    assert space.read(0x10, 4) == b"cd\0\0"


# locks


@pytest.mark.parametrize("own", [False, True])
def test_guest_access_reaches_devices_under_their_lock_or_the_big_lock(stage, own: bool) -> None:
    lock = Lock(DEVICE_LOCK) if own else None
    runs = []
    device = Device(8)
    device.watched = lock or stage.big_lock
    queued = MemoryRegion.mmio("q", 8, write_run=lambda offset, data: runs.append(device.watched.held()), lock=lock)
    stage.memory.add(device.region(lock), 0)
    stage.memory.add(queued, 0x1000)
    guest_access.load(stage.memory, 0, 4)
    guest_access.store(stage.memory, 0, 1, 4)
    guest_access.load(stage.memory, 6, 4)
    guest_access.store(stage.memory, 6, 1, 4)
    guest_access.store_run(stage.memory, 0x1000, 1, b"x")
    assert device.held == [True] * 4
    assert runs == [True]
    assert not device.watched.held()
    assert stage.big_lock.held() is False


def test_guest_access_to_ram_takes_no_lock(space, stage, spawn) -> None:
    """A vCPU that reads RAM must not wait for a transaction that another thread has open."""
    begun, done = threading.Event(), threading.Event()

    def hog() -> None:
        with stage.transaction():
            begun.set()
            assert done.wait(60)

    worker = spawn(hog)
    assert begun.wait(60)
    guest_access.store(space, 0, 7, 1)
    assert guest_access.load(space, 0, 1) == 7
    guest_access.store(space, 0xFFF, 7, 2)
    assert guest_access.load(space, 0xFFF, 2) == 7
    done.set()
    worker.join()

"""Port dispatch: each access reaches the device that the view in force shows, whatever was there before."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import accel
from accel import port_dispatch
from accel.exits import pack_io
from accel.locks import DEVICE_LOCK, Lock
from accel.memory.mmio import AccessSizes, MmioOps
from accel.port_dispatch import PortDispatch

PORT = 0x100


class Recorder:
    """A device that notes what is written and reads as `value`."""

    def __init__(self, value: int = 0x8877_6655_4433_2211) -> None:
        self.seen: list[tuple[int, int, int]] = []
        self.value = value

    def region(self, size: int = 16, **more: object) -> accel.MemoryRegion:
        return accel.MemoryRegion.mmio("recorder", size, read=self.read, write=self.write, **more)

    def read(self, offset: int, size: int) -> int:
        return self.value + offset

    def write(self, offset: int, value: int, size: int) -> None:
        self.seen.append((offset, value, size))


@pytest.fixture
def vm() -> Iterator[accel.Vm]:
    with accel.open_accelerator("mock") as mock, mock.create_vm() as vm:
        yield vm


@pytest.fixture
def data() -> memoryview:
    return memoryview(bytearray(4096))


@pytest.fixture
def ports(vm: accel.Vm, data: memoryview) -> PortDispatch:
    return PortDispatch(vm.io, data, vm.big_lock)


@pytest.fixture
def bell() -> Iterator[int]:
    """An eventfd."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def exit_to(ports: PortDispatch, word: int) -> None:
    """Dispatch an exit as the loop of a vCPU thread does."""
    if ports.view is not ports._io.view:
        ports.clear()
    (ports.handlers.get(word) or ports.build(word))()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_port_dispatch_write_reaches_the_device_with_offset_and_size(vm, ports, data, size):
    device = Recorder()
    vm.io.add(device.region(), at=PORT)
    data[:4] = b"\x11\x22\x33\x44"
    ports.build(pack_io(is_out=True, size=size, port=PORT + 4))()
    assert device.seen == [(4, 0x4433_2211 & (1 << 8 * size) - 1, size)]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_port_dispatch_read_fills_the_item_and_nothing_else(vm, ports, data, size):
    vm.io.add(Recorder().region(), at=PORT)
    data[:8] = b"\xee" * 8
    ports.build(pack_io(is_out=False, size=size, port=PORT))()
    assert data[:8] == b"\x11\x22\x33\x44"[:size] + b"\xee" * (8 - size)


def test_port_dispatch_unassigned_port_reads_ones_and_takes_writes(vm, ports, data):
    ports.build(pack_io(is_out=True, size=1, port=PORT))()
    assert vm.io.unassigned == 1
    ports.build(pack_io(is_out=False, size=2, port=PORT))()
    assert data[:2] == b"\xff\xff"
    assert vm.io.unassigned == 2


def test_port_dispatch_string_access_moves_every_item(vm, ports, data):
    device = Recorder()
    vm.io.add(device.region(), at=PORT)
    data[:6] = b"\x01\x00\x02\x00\x03\x00"
    ports.build(pack_io(is_out=True, size=2, port=PORT, count=3))()
    assert device.seen == [(0, 1, 2), (0, 2, 2), (0, 3, 2)]


def test_port_dispatch_holds_the_regions_own_lock_and_not_the_big_lock(vm, ports):
    own, held = Lock(DEVICE_LOCK), []
    region = accel.MemoryRegion.mmio(
        "locked", 1, write=lambda *_: held.append((own.held(), vm.big_lock.held())), lock=own
    )
    vm.io.add(region, at=PORT)
    ports.build(pack_io(is_out=True, size=1, port=PORT))()
    assert held == [(True, False)]
    assert not own.held()


def test_port_dispatch_handler_that_raises_releases_the_lock(vm, ports):
    def fail(offset: int, size: int) -> int:
        raise ValueError("no such register")

    vm.io.add(accel.MemoryRegion.mmio("failing", 1, read=fail), at=PORT)
    with pytest.raises(ValueError, match="no such register"):
        ports.build(pack_io(is_out=False, size=1, port=PORT))()
    assert not vm.big_lock.held()


def test_port_dispatch_keeps_a_bounded_number_of_handlers(ports, monkeypatch):
    monkeypatch.setattr(port_dispatch, "MAX_HANDLERS", 10)
    for count in range(2, 100):
        ports.build(pack_io(is_out=True, size=1, port=PORT, count=count))
        assert len(ports.handlers) <= 10


def test_port_dispatch_access_that_the_device_refuses_is_counted_once(vm, ports, data):
    device = Recorder()
    ops = MmioOps(device.read, device.write, valid=AccessSizes(2, 2))
    vm.io.add(accel.MemoryRegion.mmio("recorder", 8, ops=ops), at=PORT)
    for number, (size, offset, count) in enumerate([(1, 0, 1), (4, 0, 1), (2, 1, 1), (1, 0, 3)]):
        data[:4] = b"\0\0\0\0"
        before = vm.io.unassigned
        exit_to(ports, pack_io(is_out=False, size=size, port=PORT + offset, count=count))
        assert data[: size * count] == b"\xff" * (size * count), number
        exit_to(ports, pack_io(is_out=True, size=size, port=PORT + offset, count=count))
        assert vm.io.unassigned == before + 2 * count
    assert device.seen == []
    exit_to(ports, pack_io(is_out=True, size=2, port=PORT + 2))
    assert device.seen == [(2, 0xFFFF, 2)]


@pytest.mark.parametrize("count", [1, 3])
def test_port_dispatch_calls_are_those_that_the_device_takes(vm, ports, data, count):
    device = Recorder()
    ops = MmioOps(device.read, device.write, implemented=AccessSizes(1, 2), endian="big")
    vm.io.add(accel.MemoryRegion.mmio("recorder", 8, ops=ops), at=PORT)
    data[: 4 * count] = b"\x11\x22\x33\x44" * count
    exit_to(ports, pack_io(is_out=True, size=4, port=PORT, count=count))
    assert device.seen == [(0, 0x1122, 2), (2, 0x3344, 2)] * count
    exit_to(ports, pack_io(is_out=False, size=2, port=PORT + 2, count=count))
    assert data[: 2 * count] == b"\x22\x13" * count


@pytest.mark.parametrize("count", [1, 3])
def test_port_dispatch_write_for_an_ioeventfd_rings_as_long_as_there_is_one(vm, ports, data, bell, count):
    device = Recorder()
    region = device.region()
    vm.io.add(region, at=PORT)
    word = pack_io(is_out=True, size=2, port=PORT + 4, count=count)
    data[: 2 * count] = b"\x07\x00" * count
    exit_to(ports, word)
    assert device.seen == [(4, 7, 2)] * count
    region.add_eventfd(4, bell, size=2, match=7)
    exit_to(ports, word)
    assert os.eventfd_read(bell) == count
    data[:1] = b"\x08"
    exit_to(ports, word)
    assert device.seen == [(4, 7, 2)] * count + [(4, 8, 2)]
    if count > 1:
        assert os.eventfd_read(bell) == count - 1
    region.remove_eventfd(4, bell, size=2, match=7)
    data[:1] = b"\x07"
    device.seen.clear()
    exit_to(ports, word)
    assert device.seen == [(4, 7, 2)] * count


def test_port_dispatch_item_of_a_string_sees_what_the_item_before_changed(vm, ports, data):
    seen = []

    def write(offset: int, value: int, size: int) -> None:
        seen.append(("first", value))
        region.set_enabled(False)

    region = accel.MemoryRegion.mmio("first", 1, write=write)
    vm.io.add(accel.MemoryRegion.mmio("second", 1, write=lambda at, value, size: seen.append(("second", value))), PORT)
    vm.io.add(region, PORT, priority=1)
    data[:3] = b"abc"
    exit_to(ports, pack_io(is_out=True, size=1, port=PORT, count=3))
    assert seen == [("first", 0x61), ("second", 0x62), ("second", 0x63)]


def test_port_dispatch_build_after_a_change_forgets_the_handlers_of_before(vm, ports):
    """A view that comes between the loop's look at it and `build` must not make the old handlers look new."""
    old, new = Recorder(), Recorder()
    vm.io.add(old.region(), at=PORT)
    word = pack_io(is_out=True, size=1, port=PORT)
    exit_to(ports, word)
    vm.io.add(new.region(), at=PORT, priority=1)
    ports.build(pack_io(is_out=True, size=1, port=PORT + 1))
    exit_to(ports, word)
    assert (len(old.seen), len(new.seen)) == (1, 1)

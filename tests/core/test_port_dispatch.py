"""Port and memory dispatch: each access reaches the device that the view in force shows, whatever was there before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import accel
from accel import port_dispatch
from accel.exits import pack_io
from accel.locks import DEVICE_LOCK, Lock
from accel.mmio_dispatch import MmioDispatch
from accel.port_dispatch import PortDispatch
from accel.run_control import RunControl
from accel.vcpu_thread import VcpuThread

PORT = 0x100
ADDRESS = 0x9000_0000


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
def record() -> memoryview:
    return memoryview(bytearray(32)).cast("Q")


@pytest.fixture
def devices(vm: accel.Vm, record: memoryview) -> MmioDispatch:
    return MmioDispatch(vm.memory, record, vm.big_lock)


def _shape(size: int, *, is_write: bool) -> int:
    return size | is_write << 32


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
    ports.build(pack_io(is_out=False, size=2, port=PORT))()
    assert data[:2] == b"\xff\xff"
    assert vm.io.unassigned >= 2


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


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_mmio_dispatch_write_reaches_the_device_with_offset_and_size(vm, devices, record, size):
    device = Recorder()
    vm.memory.add(device.region(), at=ADDRESS)
    record[1] = 0x8877_6655_4433_2211
    handler = devices.find(ADDRESS + 8, _shape(size, is_write=True))
    handler()
    assert device.seen == [(8, 0x8877_6655_4433_2211 & (1 << 8 * size) - 1, size)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_mmio_dispatch_read_fills_the_word(vm, devices, record, size):
    vm.memory.add(Recorder().region(), at=ADDRESS)
    record[1] = 0xEEEE_EEEE_EEEE_EEEE
    handler = devices.find(ADDRESS, _shape(size, is_write=False))
    handler()
    assert record[1] == 0x8877_6655_4433_2211 & (1 << 8 * size) - 1


def test_mmio_dispatch_serves_only_what_lies_within_one_device(vm, devices):
    vm.memory.add(accel.MemoryRegion.ram("ram", "4K"), at=0)
    vm.memory.add(Recorder().region(size=16), at=ADDRESS)
    for address, size in ((0, 1), (0x8000, 4), (ADDRESS + 14, 4), (ADDRESS, 3)):
        assert devices.find(address, _shape(size, is_write=False)) is None


def test_mmio_dispatch_after_a_memory_change_finds_the_new_device(vm, devices, record):
    old, new = Recorder(), Recorder()
    region = old.region()
    vm.memory.add(region, at=ADDRESS)
    record[1] = 7
    shape = _shape(1, is_write=True)
    devices.find(ADDRESS, shape)()
    with vm.transaction():
        vm.memory.remove(region)
        vm.memory.add(new.region(), at=ADDRESS)
    devices.find(ADDRESS, shape)()
    assert (old.seen, new.seen) == ([(0, 7, 1)], [(0, 7, 1)])


def test_mmio_dispatch_keeps_a_bounded_number_of_handlers(vm, devices, monkeypatch):
    monkeypatch.setattr("accel.mmio_dispatch.MAX_HANDLERS", 10)
    vm.memory.add(Recorder().region(size=4096), at=ADDRESS)
    for offset in range(100):
        assert devices.find(ADDRESS + offset, _shape(1, is_write=False)) is not None
        assert len(devices._handlers) <= 10


def test_vcpu_thread_counts_a_fault_although_a_device_is_there_by_now(vm):
    """RAM before and during the exit, and a device when it is dispatched: the fault was spurious all the same."""
    ram, device = accel.MemoryRegion.ram("ram", "4K"), Recorder()
    vm.memory.add(ram, at=ADDRESS)
    vcpu = vm.create_vcpu(0)
    thread = VcpuThread(vcpu, RunControl(1), lambda: None)
    vcpu.gate.entered = vm.history.completed
    exited = vm.history.started
    vcpu.backend.record[0], vcpu.backend.record[2] = ADDRESS, _shape(1, is_write=True)
    with vm.transaction():
        vm.memory.remove(ram)
        vm.memory.add(device.region(size=4096), at=ADDRESS)
    thread._mmio(exited)
    assert device.seen == [(0, 0, 1)]
    assert thread.spurious == {ADDRESS: 1}


def test_vcpu_thread_counts_no_fault_at_a_device(vm):
    device = Recorder()
    vm.memory.add(device.region(), at=ADDRESS)
    vcpu = vm.create_vcpu(0)
    thread = VcpuThread(vcpu, RunControl(1), lambda: None)
    vcpu.gate.entered = vm.history.completed
    vcpu.backend.record[0], vcpu.backend.record[2] = ADDRESS, _shape(1, is_write=False)
    thread._mmio(vm.history.started)
    assert vcpu.backend.record[1] == 0x11
    assert thread.spurious == {}

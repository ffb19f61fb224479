"""Memory dispatch: each access reaches the device that the view in force shows, and what a handler may not decide."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import accel
from accel.memory.mmio import AccessSizes, MmioOps
from accel.mmio_dispatch import MmioDispatch
from accel.run_control import RunControl
from accel.vcpu_thread import VcpuThread

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
def record() -> memoryview:
    return memoryview(bytearray(32)).cast("Q")


@pytest.fixture
def devices(vm: accel.Vm, record: memoryview) -> MmioDispatch:
    return MmioDispatch(vm.memory, record, vm.big_lock)


@pytest.fixture
def thread(vm: accel.Vm) -> VcpuThread:
    """A vCPU's thread that is not started."""
    return VcpuThread(vm.create_vcpu(0), RunControl(1), lambda: None)


@pytest.fixture
def bell() -> Iterator[int]:
    """An eventfd."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def _shape(size: int, *, is_write: bool) -> int:
    return size | is_write << 32


def write(thread: VcpuThread, address: int, value: int, size: int) -> None:
    """Let the thread serve a guest's write that came out."""
    _exit(thread, address, value, _shape(size, is_write=True))


def read(thread: VcpuThread, address: int, size: int) -> int:
    """Let the thread serve a guest's read that came out, and return what the guest gets."""
    _exit(thread, address, 0, _shape(size, is_write=False))
    return thread.vcpu.backend.record[1] & (1 << 8 * size) - 1


def _exit(thread: VcpuThread, address: int, word: int, shape: int) -> None:
    vm, record = thread.vcpu.vm, thread.vcpu.backend.record
    thread.vcpu.gate.entered = vm.history.completed
    record[0], record[1], record[2] = address, word, shape
    thread._mmio(vm.history.started)


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


def test_mmio_dispatch_access_that_the_device_refuses_is_counted_once(vm, thread):
    device = Recorder()
    ops = MmioOps(device.read, device.write, valid=AccessSizes(4, 4))
    vm.memory.add(accel.MemoryRegion.mmio("recorder", 16, ops=ops), at=ADDRESS)
    for number, (offset, size) in enumerate([(0, 1), (0, 8), (2, 4), (4, 3)]):
        assert read(thread, ADDRESS + offset, size) == (1 << 8 * size) - 1
        write(thread, ADDRESS + offset, 0x55, size)
        assert vm.memory.unassigned == 2 * (number + 1)
    assert device.seen == []
    write(thread, ADDRESS + 4, 0x55, 4)
    assert device.seen == [(4, 0x55, 4)]


def test_mmio_dispatch_calls_are_those_that_the_device_takes(vm, thread):
    device = Recorder(0x1122)
    ops = MmioOps(device.read, device.write, implemented=AccessSizes(2, 2), endian="big")
    vm.memory.add(accel.MemoryRegion.mmio("recorder", 16, ops=ops), at=ADDRESS)
    write(thread, ADDRESS, 0x44332211, 4)
    write(thread, ADDRESS + 5, 0x99, 1)
    assert device.seen == [(0, 0x1122, 2), (2, 0x3344, 2), (4, 0x1199, 2)]
    assert read(thread, ADDRESS, 4) == 0x2411_2211


def test_mmio_dispatch_write_for_an_ioeventfd_rings_as_long_as_there_is_one(vm, thread, bell):
    device = Recorder()
    region = device.region()
    vm.memory.add(region, at=ADDRESS)
    write(thread, ADDRESS + 4, 7, 4)
    region.add_eventfd(4, bell, size=4, match=7)
    write(thread, ADDRESS + 4, 7, 4)
    assert os.eventfd_read(bell) == 1
    write(thread, ADDRESS + 4, 8, 4)
    write(thread, ADDRESS + 4, 7, 2)
    region.remove_eventfd(4, bell, size=4, match=7)
    write(thread, ADDRESS + 4, 7, 4)
    assert device.seen == [(4, 7, 4), (4, 8, 4), (4, 7, 2), (4, 7, 4)]
    with pytest.raises(BlockingIOError):
        os.eventfd_read(bell)


def test_mmio_dispatch_rom_device_is_switched_by_its_own_handler(vm, thread):
    """Its handlers stay right through each switch; a part of a page never gets a mapping, so its reads come out."""
    ops = MmioOps(read=lambda offset, size: 0xE0 + offset, write=lambda at, value, size: flash.set_romd(value == 0xFF))
    flash = accel.MemoryRegion.rom_device("flash", b"flash memory", ops=ops)
    vm.memory.add(flash, at=ADDRESS)
    for _ in range(3):
        assert read(thread, ADDRESS, 4) == int.from_bytes(b"flas", "little")
        write(thread, ADDRESS, 0x90, 1)
        assert read(thread, ADDRESS + 2, 1) == 0xE2
        write(thread, ADDRESS, 0xFF, 1)
    assert flash.read(0, 12) == b"flash memory"
    assert vm.memory.unassigned == 0

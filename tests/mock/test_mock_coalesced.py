"""Coalesced port writes of the mock: what is queued, what exits, and in which order it arrives."""

import errno
from collections.abc import Callable

import pytest

from accel.errors import BackendError, MemorySlotError
from accel.exits import Halt, IoOut
from accel.memory.listener import PRIORITY_ACCEL, MemoryListener, Update
from accel.memory.region import MemoryRegion
from accel.program import ERRORS, GuestProgram, Load, Loop, Out, text
from accel.vm import Vcpu, Vm
from accel_mock.coalesced import RING_SIZE

PORT = 0xE9


def _attach(vm: Vm, ports: int = 4) -> tuple[MemoryRegion, list[tuple[int, int, int]]]:
    written: list[tuple[int, int, int]] = []

    def write(offset: int, value: int, size: int) -> None:
        written.append((offset, value, size))

    region = MemoryRegion.mmio("console", ports, write=write, coalesced=True)
    vm.io.add(region, at=PORT)
    return region, written


def test_mock_coalesced_writes_arrive_in_order_without_an_exit(vm: Vm, vcpu: Vcpu) -> None:
    _, written = _attach(vm)
    ops = (Out(PORT, 1), Out(PORT + 1, 0x302, 2), Load(0x2000, expect=1), Out(PORT, ERRORS, 4))
    vcpu.load_program(GuestProgram(ops))
    assert vcpu.run() == Halt()
    assert written == []
    vm.drain()
    assert written == [(0, 1, 1), (1, 0x302, 2), (0, 1, 4)]
    vm.drain()
    assert len(written) == 3


def test_mock_coalesced_full_ring_makes_the_write_exit_and_keeps_it(vm: Vm, vcpu: Vcpu) -> None:
    _, written = _attach(vm)
    data = bytes(n % 251 for n in range(3 * RING_SIZE))
    vcpu.load_program(GuestProgram(text(PORT, data)))
    seen = bytearray()
    while isinstance(found := vcpu.run(), IoOut):
        vm.drain()
        assert len(written) == RING_SIZE - 1
        seen += bytes(value for _, value, _ in written) + found.data
        written.clear()
    vm.drain()
    assert seen + bytes(value for _, value, _ in written) == data


def test_mock_coalesced_write_that_is_not_wholly_inside_exits(vm: Vm, vcpu: Vcpu) -> None:
    _attach(vm, ports=4)
    vcpu.load_program(GuestProgram((Out(PORT - 1, 0, 2), Out(PORT + 3, 0, 2), Out(PORT + 4, 0))))
    assert [getattr(vcpu.run(), "port", None) for _ in range(3)] == [PORT - 1, PORT + 3, PORT + 4]
    assert vcpu.run() == Halt()


def test_mock_coalesced_region_that_goes_makes_writes_exit(vm: Vm, vcpu: Vcpu) -> None:
    region, written = _attach(vm)
    vcpu.load_program(GuestProgram((Loop((Out(PORT, 1),), 2),)))
    vm.io.remove(region)
    assert vcpu.run() == IoOut(PORT, 1, 1, b"\1")
    vm.io.add(region, at=PORT)
    assert vcpu.run() == Halt()
    vm.drain()
    assert written == [(0, 1, 1)]


class Failing(MemoryListener):
    """Comes after the accelerator's own listener, and fails when asked to."""

    name = "failing"
    priority = PRIORITY_ACCEL + 1

    def __init__(self) -> None:
        self.fails = False

    def prepare(self) -> Update | None:
        return FailingUpdate() if self.fails else None


class FailingUpdate(Update):
    def apply(self) -> None:
        raise BackendError("injected", errno.EIO)

    def undo(self) -> None:
        pass


def test_mock_coalesced_change_is_taken_back_when_a_later_step_fails(vm: Vm, vcpu: Vcpu) -> None:
    failing = Failing()
    vm.io.add_listener(failing)
    region, written = _attach(vm)
    failing.fails = True
    with pytest.raises(BackendError, match="injected"):
        vm.io.remove(region)
    vcpu.load_program(GuestProgram((Out(PORT, 1),)))
    assert vcpu.run() == Halt()
    vm.drain()
    assert written == [(0, 1, 1)]
    failing.fails = False


def test_mock_coalesced_refused_change_keeps_the_ports_as_they_were(
    open_mock: Callable[..., Vm],
) -> None:
    vm = open_mock(slot_count=1)
    vcpu = vm.create_vcpu(0)
    region, _ = _attach(vm)

    def change() -> None:
        with vm.transaction():
            vm.io.remove(region)
            for n in range(2):
                vm.memory.add(MemoryRegion.ram("ram", 0x1000), at=n << 20)

    with pytest.raises(MemorySlotError):
        change()
    vm.io.add(MemoryRegion.mmio("other", 1), at=PORT + 0x100)  # a change that is made, and tells of no zone
    vcpu.load_program(GuestProgram((Out(PORT, 1),)))
    assert vcpu.run() == Halt()

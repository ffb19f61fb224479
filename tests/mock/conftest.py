"""A VM of the mock, with RAM, and a vCPU that runs what a test gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from accel.exits import Exit
from accel.memory.region import MemoryRegion
from accel.program import GuestProgram, Op
from accel.vm import OpenAccelerator, Vcpu, Vm
from accel_mock.plugin import MockAccelerator

#: Where the fixtures' RAM ends.
RAM_END = 0x10000


@pytest.fixture
def open_mock() -> Iterator[Callable[..., Vm]]:
    """Make VMs of the mock without memory, with the options that are given; they are closed in the end."""
    opened: list[OpenAccelerator] = []

    def make(**options: object) -> Vm:
        opened.append(OpenAccelerator(MockAccelerator(), options))
        return opened[-1].create_vm()

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def vm(open_mock: Callable[..., Vm]) -> Vm:
    """A VM with RAM from 0 to `RAM_END`."""
    made = open_mock()
    made.memory.add(MemoryRegion.ram("ram", RAM_END), at=0)
    return made


@pytest.fixture
def vcpu(vm: Vm) -> Vcpu:
    """A vCPU of `vm`, without a program."""
    return vm.create_vcpu(0)


@pytest.fixture
def start(vcpu: Vcpu) -> Callable[..., Exit]:
    """Load operations into `vcpu` and run it to its first exit."""

    def run(*ops: Op) -> Exit:
        vcpu.load_program(GuestProgram(ops))
        return vcpu.run()

    return run

"""A workload's machine as it stands when the guest starts, built without any accelerator.

The map of a machine does not depend on what runs it, so it can be shown where nothing can: the machine is built on an
accelerator of this file's own that takes whatever it is given and maps nothing. Layer: above the workload session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import evolve

from accel.arch.x86 import X86State
from accel.backend import Accelerator, Availability, VcpuBackend, VmBackend, VmConfig
from accel.errors import StateError
from accel.hookspecs import hookimpl
from accel.machine import Machine
from accel.memory.listener import MemoryListener
from accel.plugins import plugin_manager
from accel.program import GuestProgram
from accel.workload.schema import Accelerators, Workload
from accel.workload.session import Session

_NAME = "map-only"


class _Vcpu(VcpuBackend):
    """Has no state and never runs."""

    record = memoryview(bytearray(64)).cast("Q")
    io_data = memoryview(bytearray(8))

    def run(self) -> int:
        raise StateError("a machine that only shows its memory map runs nothing; use accelctl run")

    def kick(self, thread_id: int) -> None:
        """Do nothing: there is no run to end."""

    def read_state(self) -> X86State:
        return X86State()

    def write_state(self, state: X86State) -> None:
        """Forget it."""

    def load_program(self, program: GuestProgram) -> None:
        """Forget it."""

    def close(self) -> None:
        """Nothing is held."""


class _Vm(VmBackend):
    max_vcpus = 4096

    def create_vcpu(self, index: int) -> VcpuBackend:
        return _Vcpu()

    def memory_listener(self) -> MemoryListener:
        return MemoryListener()

    def set_irq(self, line: int, level: bool) -> None:
        """Forget it."""

    def close(self) -> None:
        """Nothing is held."""


class _MapOnly(Accelerator):
    name = _NAME
    executes = frozenset({"x86", "program"})

    def probe(self) -> Availability:
        return Availability(True)

    def create_vm(self, config: VmConfig) -> VmBackend:
        return _Vm()


class _Plugin:
    @hookimpl
    def accel_register_accelerators(self, register: Callable[[Accelerator], None]) -> None:
        register(_MapOnly())


@contextmanager
def staged(workload: Workload, name: str) -> Iterator[Machine]:
    """Give the machine of `workload` with its devices, regions and image in place; it cannot run.

    Raises:
        UsageError: The workload asks for what cannot be.
        AddressError: The host has less memory than it asks for.
    """
    # What memory holds, and of what host memory it is, does not show, and could take gigabytes or make a file.
    machine = evolve(workload.machine, accelerators=Accelerators((_NAME,)), backing=None)
    regions = tuple(evolve(region, fill=None, backing=None) for region in workload.regions)
    plugin = _Plugin()
    plugin_manager().register(plugin, _NAME)
    try:
        with Session(evolve(workload, machine=machine, regions=regions), name) as session:
            yield session.machine
    finally:
        plugin_manager().unregister(plugin)

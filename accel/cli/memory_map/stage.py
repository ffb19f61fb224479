"""A workload's machine as it stands when the guest starts, built without any accelerator.

The map of a machine does not depend on what runs it, so it can be shown where nothing can: the machine is built on an
accelerator of this file's own that takes whatever it is given and maps nothing; or, for a dry run, leaves the mapping
to another accelerator's dry VM. Layer: above the workload session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from attrs import evolve

from accel.arch.x86 import X86State
from accel.backend import Accelerator, Availability, Capability, RecordedCall, VcpuBackend, VmBackend, VmConfig
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
    capabilities = frozenset({Capability.IRQCHIP, Capability.PIT})
    max_vcpus = 4096

    def create_vcpu(self, index: int) -> VcpuBackend:
        return _Vcpu()

    def memory_listener(self) -> MemoryListener:
        return MemoryListener()

    def set_irq(self, line: int, level: bool) -> None:
        """Forget it."""

    def close(self) -> None:
        """Nothing is held."""


class _DryVm(_Vm):
    """Has its memory mapped by the dry VM `memory`, and vCPUs that are none of its."""

    def __init__(self, memory: VmBackend) -> None:
        self._memory = memory
        self.page_size = memory.page_size
        self.capabilities = memory.capabilities

    def memory_listener(self) -> MemoryListener:
        return self._memory.memory_listener()

    def io_listener(self) -> MemoryListener | None:
        return self._memory.io_listener()

    def take_calls(self) -> Sequence[RecordedCall]:
        return self._memory.take_calls()

    def close(self) -> None:
        self._memory.close()


class _MapOnly(Accelerator):
    name = _NAME
    executes = frozenset({"x86", "program", "arm64"})

    def __init__(self, memory: Accelerator | None) -> None:
        self._memory = memory
        if memory is not None:
            self.options = memory.options  # type: ignore[misc]  # a class attribute of those that a plugin registers

    def probe(self) -> Availability:
        return Availability(True)

    def create_vm(self, config: VmConfig) -> VmBackend:
        return _Vm() if self._memory is None else _DryVm(self._memory.create_dry_vm(VmConfig(config.options)))


class _Plugin:
    def __init__(self, memory: Accelerator | None) -> None:
        self._memory = memory

    @hookimpl
    def accel_register_accelerators(self, register: Callable[[Accelerator], None]) -> None:
        register(_MapOnly(self._memory))


@contextmanager
def staged(workload: Workload, name: str) -> Iterator[Machine]:
    """Give the machine of `workload` with its devices, regions and image in place; it cannot run.

    Raises:
        UsageError: The workload asks for what cannot be.
        AddressError: The host has less memory than it asks for.
    """
    with staged_session(workload, name) as session:
        yield session.machine


@contextmanager
def staged_session(workload: Workload, name: str, memory: Accelerator | None = None) -> Iterator[Session]:
    """Give the session of such a machine, whose memory a dry VM of `memory` maps, if there is one.

    Raises:
        UsageError: As for `staged`; or the accelerator cannot map such memory.
        CapabilityError: The accelerator lacks something that its options or the memory ask for.
    """
    # What memory holds, and of what host memory it is, does not show, and could take gigabytes or make a file.
    machine = evolve(workload.machine, accelerators=Accelerators((_NAME,)), backing=None)
    regions = tuple(evolve(region, fill=None, backing=None) for region in workload.regions)
    options = {} if memory is None else {_NAME: workload.accelerator_options.get(memory.name, {})}
    plugin = _Plugin(memory)
    plugin_manager().register(plugin, _NAME)
    try:
        changed = evolve(workload, machine=machine, regions=regions, accelerator_options=options)
        with Session(changed, name) as session:
            yield session
    finally:
        plugin_manager().unregister(plugin)

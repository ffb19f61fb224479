"""What `accel` finds of this plugin: the accelerator ``kvm``. Importing it opens nothing and loads no ctypes."""

from __future__ import annotations

from collections.abc import Callable

from accel.backend import DIRTY_RING_OPTION, MEMORY_OPTIONS, Accelerator, Availability, VmBackend, VmConfig
from accel.errors import BackendError
from accel.hookspecs import hookimpl
from accel.options import Option


class KvmAccelerator(Accelerator):
    """Linux KVM through ``/dev/kvm``."""

    name = "kvm"
    summary = "Linux KVM: x86 guests through /dev/kvm"
    executes = frozenset({"x86"})
    priority = 100
    options = (
        *MEMORY_OPTIONS,
        DIRTY_RING_OPTION,
        Option(
            "kick_signal",
            "int",
            23,
            "signal that brings a vCPU out of the guest; change it if this process uses that one (SIGURG)",
            minimum=1,
            maximum=64,
        ),
    )

    def probe(self) -> Availability:
        """Open ``/dev/kvm`` and ask; closes it again."""
        from accel_kvm.system import KvmSystem

        try:
            system = KvmSystem()
        except BackendError as error:
            return Availability(False, str(error))
        try:
            return Availability(True, capabilities=system.capabilities(), details=system.details())
        finally:
            system.close()

    def create_vm(self, config: VmConfig) -> VmBackend:
        """Create a VM with a file descriptor of ``/dev/kvm`` of its own."""
        from accel_kvm.vm import KvmVm

        return KvmVm(config)


@hookimpl
def accel_register_accelerators(register: Callable[[Accelerator], None]) -> None:
    """Register ``kvm``."""
    register(KvmAccelerator())


@hookimpl
def accel_register_scenarios(register: Callable[[str], None]) -> None:
    """Register the scenarios of this plugin's own code."""
    register("accel_kvm.scenarios")

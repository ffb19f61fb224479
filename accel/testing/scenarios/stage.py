"""A VM with vCPU threads and no machine around it: what scenarios about running guests are set up with.

For the scenarios of accelerators: one brings its `Accelerator`, with the kernel or hypervisor below replaced, and says
what the guests do; the threads, gates, transactions and counters are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from accel.backend import Accelerator, VmConfig
from accel.errors import ClosedError
from accel.run_control import RunControl
from accel.vcpu_thread import VcpuThread
from accel.vm import Vm

#: The modules whose accesses matter where guests run while memory changes. Those of transactions are made under the big
#: lock, and the steps of that are visible; `GUARDED` are the modules for whoever does not take that for granted.
RUNNING = (
    "accel.blocker",
    "accel.gate",
    "accel.wakeup",
    "accel.memory.commit",
    "accel.memory.served",
    "accel.memory.guest_access",
    "accel.mmio_dispatch",
    "accel.port_dispatch",
    "accel.vcpu",
    "accel.vcpu_thread",
)
GUARDED = (
    "accel.memory.address_space",
    "accel.memory.damage",
    "accel.memory.journal",
    "accel.memory.slot_listener",
    "accel.memory.slot_update",
    "accel.memory.transaction",
)


class Stage:
    """A VM and a run of its vCPUs.

    Args:
        accelerator: Creates the VM.
        cpus: How many vCPUs.
        options: The VM's.

    Attributes:
        vm: The VM.
        control: The run.
        cpus: The vCPU threads.
    """

    def __init__(self, accelerator: Accelerator, cpus: int = 1, **options: object) -> None:
        self.vm = Vm(accelerator, VmConfig(options))
        self.control = RunControl(cpus)
        self.cpus = [VcpuThread(self.vm.create_vcpu(n), self.control, self._kick_all) for n in range(cpus)]

    def threads(self) -> dict[str, Callable[[], object]]:
        """Return what the vCPU threads do, by name."""
        return {f"vCPU {n}": cpu._main for n, cpu in enumerate(self.cpus)}

    def stop(self) -> None:
        """End the run, from any thread."""
        self.control.request_stop()
        self._kick_all()

    def check(self) -> None:
        """Raise what ended the run, if that was an error."""
        *_, crash, error = self.control.ending
        if error is not None or crash is not None:
            raise error or crash or AssertionError

    def _kick_all(self) -> None:
        for vcpu in self.vm.vcpus:
            with suppress(ClosedError):
                vcpu.kick()

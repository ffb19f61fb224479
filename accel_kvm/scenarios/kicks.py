"""Scenarios of the kick: whoever kicks a vCPU out of KVM gets it out, wherever its thread stands.

A kick that is lost leaves the guest spinning: nobody can go on, or an inhibit runs out of time.
"""

from __future__ import annotations

from collections.abc import Callable

from accel import Interrupted, IoOut
from accel.program import Out
from accel.testing.explore.scenario import scenario
from accel.testing.scenarios.stage import RUNNING, Stage
from accel_kvm.plugin import KvmAccelerator
from accel_kvm.scenarios.kernel import Kernel

#: The modules whose accesses matter here.
INSTRUMENTED = (*RUNNING, "accel_kvm.vcpu", "accel_kvm.scenarios")


@scenario("kvm-kick", instrument=INSTRUMENTED, tags=("kvm",))
class Kick:
    """One thread inhibits and another stops the run while a KVM guest spins: it comes out for both."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.stage = Stage(KvmAccelerator())
        self.kernel.guest(self.stage.vm.vcpus[0].backend)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {**self.stage.threads(), "inhibitor": self.inhibit, "stopper": self.stage.stop}

    def inhibit(self) -> None:
        with self.stage.vm.big_lock, self.stage.vm.blocker.inhibit(10.0):
            pass

    def check(self) -> None:
        self.stage.check()


@scenario("kvm-kick-finish", instrument=INSTRUMENTED, bound=3, tags=("kvm",))
class KickDuringFinish:
    """A thread kicks a vCPU whose own loop is completing an access to read registers: the next run comes out."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.stage = Stage(KvmAccelerator())
        self.vcpu = self.stage.vm.vcpus[0]
        self.kernel.guest(self.vcpu.backend, Out(0x80, 1))
        self.stopping = False

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"vCPU 0": self.loop, "stopper": self.stop}

    def loop(self) -> None:
        while True:
            exit = self.vcpu.run()
            if isinstance(exit, IoOut):
                self.vcpu.read_state()
            elif isinstance(exit, Interrupted) and self.stopping:
                return

    def stop(self) -> None:
        self.stopping = True
        self.vcpu.kick()

    def check(self) -> None:
        """Nothing is left to check: a kick that is lost is a deadlock."""

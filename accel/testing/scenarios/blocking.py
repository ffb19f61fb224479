"""Scenarios of the accel-blocker: one who inhibits, and those who are inside, come, nest and pass."""

from __future__ import annotations

from collections.abc import Callable

from accel.testing.explore.scenario import require, scenario
from accel.testing.scenarios.guests import BLOCKER, FakeVcpu, Scene


@scenario("inhibit", instrument=BLOCKER, bound=1)
class Inhibit(Scene):
    """One thread inhibits while two vCPUs and a VM call come and go: nobody is inside meanwhile, nobody is left."""

    def __init__(self) -> None:
        super().__init__()
        self.spinning = FakeVcpu(self, "vCPU 0", spins=True)
        self.exiting = FakeVcpu(self, "vCPU 1", spins=False)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {
            "inhibitor": self.inhibit,
            "vCPU 0": self.spinning.once,
            "vCPU 1": self.exiting.once,
            "VM call": self.vm_call,
        }

    def inhibit(self) -> None:
        with self.big_lock, self.held():
            pass
        # The run is over: a guest that was let in again comes out for good.
        self.spinning.kick()


@scenario("inhibit-vcpus", instrument=BLOCKER)
class TwoVcpus(Scene):
    """One thread inhibits while one vCPU spins and another comes and goes: part of `inhibit`, explored further."""

    def __init__(self) -> None:
        super().__init__()
        self.spinning = FakeVcpu(self, "vCPU 0", spins=True)
        self.exiting = FakeVcpu(self, "vCPU 1", spins=False)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"inhibitor": self.inhibit, "vCPU 0": self.spinning.once, "vCPU 1": self.exiting.once}

    def inhibit(self) -> None:
        with self.big_lock, self.held():
            pass
        self.spinning.kick()


@scenario("two-spinning", instrument=BLOCKER, bound=1)
class TwoSpinning(Scene):
    """One thread inhibits while two vCPUs spin: both are kicked out, and the last to leave tells."""

    def __init__(self) -> None:
        super().__init__()
        self.vcpus = [FakeVcpu(self, f"vCPU {n}", spins=True) for n in range(2)]

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"inhibitor": self.inhibit, **{vcpu.gate.name: vcpu.once for vcpu in self.vcpus}}

    def inhibit(self) -> None:
        with self.big_lock, self.held():
            pass
        for vcpu in self.vcpus:
            vcpu.kick()


@scenario("inhibit-nested", instrument=BLOCKER, bound=3)
class Nested(Scene):
    """One thread inhibits twice over and passes the gates itself: the others are held until the outer one ends."""

    def __init__(self) -> None:
        super().__init__()
        self.own = FakeVcpu(self, "its own vCPU", spins=False)
        self.other = FakeVcpu(self, "vCPU 1", spins=True)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"inhibitor": self.inhibit, "vCPU 1": self.other.once}

    def inhibit(self) -> None:
        with self.big_lock, self.held():
            with self.blocker.inhibit(1.0):
                self.pass_in()
            self.pass_in()
        self.own.once()
        self.other.kick()

    def pass_in(self) -> None:
        """Do on the vCPU and the VM what only who inhibits may do meanwhile."""
        gate = self.own.gate
        gate.enter()
        gate.leave()
        with self.blocker.vm_call("its own call"):
            pass


@scenario("vm-calls", instrument=BLOCKER)
class VmCalls(Scene):
    """A VM call inside a VM call, and one under the big lock, while one thread inhibits: none waits for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.exiting = FakeVcpu(self, "vCPU 0", spins=False)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"inhibitor": self.inhibit, "caller": self.nest, "vCPU 0": self.handle}

    def inhibit(self) -> None:
        with self.big_lock, self.held():
            pass

    def nest(self) -> None:
        with self.blocker.vm_call("outer"):
            self.judge.comes_in("outer")
            with self.blocker.vm_call("inner"):
                require(not self.judge.holding, "everybody is held, but for a call inside a call")
            self.judge.goes_out("outer")

    def handle(self) -> None:
        """Run the guest and handle its exit, which takes a VM call under the big lock."""
        self.exiting.once()
        with self.big_lock:
            self.vm_call("handler")


@scenario("inhibit-in-a-row", instrument=BLOCKER, bound=3)
class InARow(Scene):
    """One thread inhibits three times in a row while VM calls come: one that waited passes before the next inhibit."""

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"inhibitor": self.inhibit, "caller": self.call}

    def inhibit(self) -> None:
        with self.big_lock:
            waited = passes = 0
            for _ in range(3):
                with self.held():
                    require(not waited or self.judge.passes > passes, "a call waited through two inhibits in a row")
                    waited, passes = self.blocker._waiting, self.judge.passes

    def call(self) -> None:
        for _ in range(2):
            self.vm_call()


@scenario("inhibit-in-a-hurry", instrument=BLOCKER, bound=3, timeouts=True)
class InAHurry(Scene):
    """One thread inhibits twice in a row, without time for a vCPU that waited to pass: the vCPU waits once more."""

    prompt = False

    def __init__(self) -> None:
        super().__init__()
        self.exiting = FakeVcpu(self, "vCPU 0", spins=False)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"inhibitor": self.inhibit, "vCPU 0": self.exiting.once}

    def inhibit(self) -> None:
        with self.big_lock:
            for _ in range(2):
                with self.held():
                    pass


@scenario("two-inhibitors", instrument=BLOCKER)
class TwoInhibitors(Scene):
    """Two threads inhibit one after the other: a vCPU that waited through the first passes before the second."""

    def __init__(self) -> None:
        super().__init__()
        self.exiting = FakeVcpu(self, "vCPU 0", spins=False)
        self.waited = 0

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"inhibitor 0": self.inhibit, "inhibitor 1": self.inhibit, "vCPU 0": self.exiting.once}

    def inhibit(self) -> None:
        with self.big_lock, self.held():
            starved = self.waited and not self.judge.passes
            require(not starved, "the vCPU waited through two inhibits in a row")
            self.waited = self.blocker._waiting


@scenario("two-inhibitors-kick", instrument=BLOCKER)
class TwoKicks(Scene):
    """Two threads inhibit one after the other while a vCPU spins: it comes out for each, and goes on in between."""

    def __init__(self) -> None:
        super().__init__()
        self.spinning = FakeVcpu(self, "vCPU 0", spins=True)
        self.left = 2

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"inhibitor 0": self.inhibit, "inhibitor 1": self.inhibit, "vCPU 0": self.run}

    def inhibit(self) -> None:
        with self.big_lock:
            with self.held():
                pass
            self.left -= 1
            if not self.left:
                self.spinning.kick()

    def run(self) -> None:
        while self.left:
            self.spinning.once()

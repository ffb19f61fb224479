"""Scenarios of the accel-blocker where something ends: a vCPU, an inhibitor's patience, the VM."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from accel.errors import AccelError, ClosedError, InhibitTimeoutError, MapLostError
from accel.testing.explore.scenario import require, scenario
from accel.testing.scenarios.guests import BLOCKER, FakeVcpu, Scene


@scenario("vcpu-comes-and-goes", instrument=BLOCKER)
class ComesAndGoes(Scene):
    """One vCPU is made, runs and is removed, another is removed while inside, and one thread inhibits."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = FakeVcpu(self, "vCPU 0", spins=True)
        self.gone.gate.mark()
        self.judge.comes_in("vCPU 0")

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"inhibitor": self.inhibit, "remover": self.remove, "creator": self.create}

    def inhibit(self) -> None:
        with self.big_lock, self.held():
            pass

    def remove(self) -> None:
        # Its thread has died inside and will never leave.
        self.judge.goes_out("vCPU 0")
        self.blocker.remove_gate(self.gone.gate)

    def create(self) -> None:
        vcpu = FakeVcpu(self, "vCPU 1", spins=False)
        vcpu.once()
        self.blocker.remove_gate(vcpu.gate)

    def check(self) -> None:
        super().check()
        require(not self.blocker.gates, "a gate that was removed is still there")


@scenario("inhibit-times-out", instrument=BLOCKER, timeouts=True)
class TimesOut(Scene):
    """An inhibit whose time may be over just when everybody is out: all go on, and the next inhibit holds them."""

    prompt = False

    def __init__(self) -> None:
        super().__init__()
        self.spinning = FakeVcpu(self, "vCPU 0", spins=True)
        self.called = threading.Event()
        self.held_count = 0

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"inhibitor": self.inhibit, "vCPU 0": self.spinning.once, "VM call": self.call}

    def inhibit(self) -> None:
        with self.big_lock, suppress(InhibitTimeoutError), self.held(0.1):
            self.held_count += 1
        # Whatever came of it, the call goes on by itself, without another inhibit that lets it in.
        self.called.wait()
        with self.big_lock, self.held():
            self.held_count += 1
        self.spinning.kick()

    def call(self) -> None:
        self.vm_call()
        self.called.set()

    def check(self) -> None:
        super().check()
        counted = self.blocker.stats.inhibits
        require(counted == self.held_count, f"{counted} inhibits were counted, {self.held_count} held")


class Refused(Scene):
    """A vCPU that spins, one that exits, and a VM call, until nobody may come in any more."""

    #: What everybody gets then.
    error: type[AccelError]

    def __init__(self) -> None:
        super().__init__()
        self.spinning = FakeVcpu(self, "vCPU 0", spins=True)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"ender": self.end, "vCPU 0": self.spin, "VM call": self.call}

    def end(self) -> None:
        raise NotImplementedError

    def spin(self) -> None:
        try:
            while True:
                require(self.spinning.once(), "a guest that spins exited by itself")
        except self.error:
            pass

    def call(self) -> None:
        with suppress(self.error):
            self.vm_call()


@scenario("poison", instrument=BLOCKER)
class Poison(Refused):
    """A VM is poisoned while it is held: whoever is inside comes out, and all get the error, also who waits."""

    error = MapLostError

    def end(self) -> None:
        with self.big_lock, self.held():
            self.blocker.poison(MapLostError("nothing is left", ()))
            self.judge.shut = True


@scenario("close", instrument=BLOCKER, bound=3)
class Close(Refused):
    """A VM is closed while guests run and calls come: whoever is inside comes out, and all get the error."""

    error = ClosedError

    def end(self) -> None:
        with self.big_lock:
            self.blocker.close()
            self.judge.shut = True

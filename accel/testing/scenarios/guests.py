"""A blocker, vCPUs of a fake accelerator, and a judge: what the scenarios of the accel-blocker are set up with.

Nothing here is instrumented, so a scenario's own bookkeeping costs no steps. That hides nothing as long as what the
judge keeps follows from how far each task has come, and not from who came first: each combination of places where the
tasks stand is visited, and judged, once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from accel.blocker import AccelBlocker
from accel.locks import BIG_LOCK, Lock
from accel.testing.explore.scenario import require

#: The modules whose accesses matter.
BLOCKER = ("accel.blocker", "accel.gate", "accel.wakeup")


class Judge:
    """Knows who is inside the accelerator and who holds it: never both.

    Attributes:
        inside: Who is inside.
        holding: Whether everybody is to be outside.
        shut: Whether nobody may come in any more.
        passes: How often anybody came in.
    """

    def __init__(self) -> None:
        self.inside: set[str] = set()
        self.holding = False
        self.shut = False
        self.passes = 0
        self._step = threading.Event()

    def comes_in(self, name: str) -> None:
        """Note that somebody has passed in."""
        require(not self.holding, f"{name} came in while everybody is held")
        require(not self.shut, f"{name} came in where nobody may any more")
        self.inside.add(name)
        self.passes += 1

    def goes_out(self, name: str) -> None:
        """Note that somebody is about to pass out."""
        self.inside.discard(name)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Judge a time in which nobody may be inside; others may come before it ends."""
        require(not self.inside, f"{', '.join(sorted(self.inside))} inside while everybody is held")
        self.holding = True
        yield
        self._step.set()
        self.holding = False


class Scene:
    """A blocker with its big lock and a judge.

    Attributes:
        big_lock: The blocker's.
        blocker: What is explored.
        judge: Who judges.
        prompt: Whether nobody may wait until a time is over: if all else waits, a wake-up was lost.
    """

    prompt = True

    def __init__(self) -> None:
        self.big_lock = Lock(BIG_LOCK)
        self.blocker = AccelBlocker(self.big_lock)
        self.judge = Judge()

    @contextmanager
    def held(self, timeout: float = 1.0) -> Iterator[None]:
        """Inhibit, and judge it; needs the big lock."""
        with self.blocker.inhibit(timeout), self.judge.held():
            yield

    def vm_call(self, name: str = "a VM call") -> None:
        """Make a call on the VM."""
        with self.blocker.vm_call(name):
            self.judge.comes_in(name)
            self.judge.goes_out(name)

    def check(self) -> None:
        """Find nobody inside, nobody waiting and nothing left behind."""
        blocker = self.blocker
        require(not any(gate.busy for gate in blocker.gates), "a gate is still busy")
        require(not blocker._vm_calls, f"VM calls that ended are still counted: {list(blocker._vm_calls.values())}")
        require(not blocker._waiting, f"{blocker._waiting} still count as waiting, and nobody waits")
        waited = blocker.stats.wait_seconds
        require(not (self.prompt and waited), f"a wake-up was lost: the inhibitor waited for {waited:g} s")


class FakeVcpu:
    """A vCPU whose guest exits by itself, or spins until it is kicked; the kick is sticky, as every backend's.

    Attributes:
        gate: Its gate.
        spins: Whether its guest never exits by itself.
    """

    def __init__(self, scene: Scene, name: str, *, spins: bool) -> None:
        self._judge = scene.judge
        self._kicked = threading.Event()
        self.spins = spins
        self.gate = scene.blocker.add_gate(name, self.kick)

    def kick(self, thread_id: int = 0) -> None:
        """Bring it out, now or as soon as it goes in."""
        self._kicked.set()

    def once(self) -> bool:
        """Pass in, run the guest, and pass out as a vCPU's thread does; return whether it was kicked."""
        gate, name = self.gate, self.gate.name
        gate.enter()
        self._judge.comes_in(name)
        kicked = self._run()
        self._judge.goes_out(name)
        if kicked:
            gate.step_out()
        else:
            gate.leave()
        return kicked

    def _run(self) -> bool:
        if self.spins:
            self._kicked.wait()
        elif not self._kicked.is_set():
            return False
        # Before it returns, and on the thread that runs it.
        self._kicked.clear()
        return True

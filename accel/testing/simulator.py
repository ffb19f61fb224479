"""The engine of a simulation: who goes next is drawn from a seed, and a clock goes on when nobody can.

Layer: `accel.testing`, above `explore.engine`, in whose place the cooperative threads and clocks of a world use it.
`accel.testing.simulate` says what for.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from typing import Any

from accel.testing.explore.engine import Engine
from accel.testing.explore.scheduler import Scheduler
from accel.testing.explore.task import Choice, Task, Violation, step_text

#: Virtual time of an operation of a guest.
OPERATION_SECONDS = 1e-6
#: Virtual time of a step, such as to take a lock: so that a loop of them does not keep the clock from going on.
_STEP_SECONDS = 1e-7
#: Steps from one collection of garbage to the next: at a known moment, since what ends there may take steps itself.
_STEPS_TO_COLLECT = 1 << 20


class _Nobody:
    """Stands for a chooser: a simulator chooses by itself."""

    prefix: list[tuple[int, bool]] = []
    expected: int | None = None
    left = 0

    def choose(self, engine: Scheduler, choices: list[Choice]) -> Choice | None:
        raise NotImplementedError


class Simulator(Engine):
    """An engine that goes on by a seed and a clock, and keeps no record but a digest."""

    START = 0.0

    def __init__(self, seed: int, most_seconds: float | None) -> None:
        super().__init__(_Nobody(), shared=set())
        self.now = self.START
        self._end_at = None if most_seconds is None else self.now + most_seconds
        self._finished = False
        self._digest = 0
        self._draw = random.Random(f"schedule {seed}").getrandbits
        # How far threads and vCPUs go, as bits of the draw: near and far interleavings are both worth trying.
        self._step_bits = 1 + 2 * (self._draw(16) % 3)
        self._turn_bits = 2 + 2 * (self._draw(16) % 3)
        self._left = 1
        # The waits of all tasks that have not ended; a task that waits for nothing has neither.
        self._alive: list[Task] = []
        self._deadlines: dict[Task, float] = {}
        self._collect_at = _STEPS_TO_COLLECT

    @property
    def digest(self) -> str:
        """The digest of all so far."""
        return f"{self._digest & (1 << 64) - 1:016x}"

    # tasks

    def spawn(self, name: str, run: Callable[[], object], *, daemon: bool = False) -> Task:
        """See `Engine.spawn`."""
        task = super().spawn(name, run, daemon=daemon)
        task.greenlet.parent = self._hub
        self._alive.append(task)
        return task

    def begin(self, task: Task) -> None:
        """See `Engine.begin`: here a task begins when it is chosen, since that takes time."""

    def finish(self) -> None:
        """End the simulation once the current task ends, which is the function's."""
        self._finished = True

    def run(self) -> None:
        """Run until the function has ended, or to a violation."""
        try:
            while self.violation is None and not self._finished:
                task = self._pick()
                if task is None:
                    break
                self.current = task
                task.greenlet.switch()
                self._alive = [one for one in self._alive if not one.done]
        finally:
            self._end()

    def _pick(self) -> Task | None:
        """Return who goes on, after moving the clock if nobody could; None if nobody ever can."""
        now, deadlines = self.now, self._deadlines
        can = []
        first: float | None = None
        for task in self._alive:
            if task.done:
                continue
            if task.ready is None or task.ready():
                can.append(task)
                continue
            deadline = deadlines.get(task)
            if deadline is None:
                continue
            if deadline <= now:
                can.append(task)
            elif first is None or deadline < first:
                first = deadline
        if not can:
            if first is None:
                stuck = "; ".join(f"{one.name}: {step_text(one.step)}" for one in self._alive if not one.done)
                self._fail(Violation("deadlock", f"nobody can go on: {stuck}"))
                return None
            self.now = first
            can = [one for one in self._alive if not one.done and deadlines.get(one) == first]
        if self._end_at is not None and self.now > self._end_at:
            spent = self._end_at - self.START
            where = "; ".join(f"{one.name}: {step_text(one.step)}" for one in self._alive if not one.done)
            self._fail(Violation("livelock", f"not over after {spent:g} virtual seconds: {where}"))
            return None
        if self.steps >= self._collect_at:
            self._collect_at = self.steps + _STEPS_TO_COLLECT
            gc.collect()
        task = can[0] if len(can) == 1 else can[self._draw(16) % len(can)]
        self._digest = hash((self._digest, task.index, self.steps, self.now))
        return task

    def _switch(self, current: Task) -> None:
        task = self._pick()
        if task is current:
            return
        if task is None:
            self._hub.switch()
        else:
            self.current = task
            task.greenlet.switch()

    # steps

    def sync(
        self,
        owner: object,
        step: str,
        ready: Callable[[], bool] | None = None,
        timeout: float | None = None,
        write: bool = True,
    ) -> bool:
        """See `Engine.sync`: others go on where it waits, and now and then where it need not."""
        task = self.current
        if task is None or self.aborting:
            return True
        self.steps += 1
        self.now += _STEP_SECONDS
        if ready is None or ready():
            self._left -= 1
            if self._left:
                return True
            self._left = 1 + self._draw(self._step_bits)
        task.ready, task.step = ready, step
        if timeout is not None:
            self._deadlines[task] = self.now + timeout
        self._switch(task)
        task.ready = None
        if timeout is not None:
            del self._deadlines[task]
        return ready is None or ready()

    def passes(self) -> bool:
        """Make a step at which nothing is waited for; return False if it is one to stop at, so `sync` is to make it."""
        if self._left <= 1 or self.current is None:
            return False
        self._left -= 1
        self.steps += 1
        self.now += _STEP_SECONDS
        return True

    def take_turn(self, operations: int) -> int:
        """Let so many operations of a guest have taken their time; return how many come next; see `accel.turns`."""
        task = self.current
        if task is not None and not self.aborting and operations:
            self.steps += 1
            task.ready, task.step = _never, "execute"
            self._deadlines[task] = self.now + operations * OPERATION_SECONDS
            self._switch(task)
            task.ready = None
            del self._deadlines[task]
        return 1 + self._draw(self._turn_bits)

    def release(self, mutex: object, name: str) -> None:
        """See `Engine.release`."""
        self.steps += 1

    def acquired(self, mutex: object) -> None:
        """Nothing is learnt of data."""

    def access(self, owner: object, key: object, name: str, *, write: bool, value: object = None) -> None:
        """Data is no place to stop at."""


def quick_lock(lock: Any, simulator: Simulator) -> Any:
    """Return the cooperative `lock`, but quick where it is free: guests' stores take one each."""
    passes = simulator.passes

    class Lock(lock):  # type: ignore[misc]
        _locked: bool

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if not self._locked and passes():
                self._locked = True
                return True
            return bool(super().acquire(blocking, timeout))

        def __enter__(self) -> bool:
            return self.acquire()

        def release(self) -> None:
            if self._locked:
                # No place to stop at: whatever others do before, they can do after it just as well.
                self._locked = False
            else:
                super().release()

        def __exit__(self, *what: object) -> None:
            self.release()

    return Lock


def _never() -> bool:
    return False

"""Runs a machine and everything around it so that it repeats exactly: one seed, one run, on a clock that is not real.

Layer: `accel.testing`, above `explore.world`, whose copies of modules with cooperative threads it uses. Where the
explorer goes through schedules and makes every access visible, a simulation is one long run at full speed: who goes
next, and how long, is drawn from a seed; threads change at waits, locks and every few operations of a guest.

Time. A step of a thread takes a moment, an operation of a guest `OPERATION_SECONDS`, a wait as long as it says. When
nobody can go on, the clock jumps to the first time at which somebody can. So a wait for a second takes no real time,
and a figure of time is as repeatable as any other.

What does not repeat: addresses of the host, which some messages name, and what code outside of `accel` does by the real
clock, real threads or the order of sets of texts. Accelerators that run in hardware are passed over (`accel.turns`).
"""

from __future__ import annotations

import gc
import importlib.metadata
import random
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from attrs import frozen

from accel.hookspecs import PROJECT
from accel.testing.explore.engine import Choice, Engine, Location, Task, Violation, step_text
from accel.testing.explore.world import World

T = TypeVar("T")

#: Virtual time of an operation of a guest.
OPERATION_SECONDS = 1e-6
#: Virtual time of a step, such as to take a lock: so that a loop of them does not keep the clock from going on.
_STEP_SECONDS = 1e-7
#: Steps from one collection of garbage to the next: at a known moment, since what ends there may take steps itself.
_STEPS_TO_COLLECT = 1 << 20
#: Values, the same for all: who simulates can use them as they are.
VALUES = (
    "accel.address",
    "accel.options",
    "accel.exits",
    "accel.program",
    "accel.result",
    "accel.arch",
    "accel.memory.backing",
    "accel.workload.schema",
)


@frozen
class Simulated(Generic[T]):
    """What came of a simulation.

    Attributes:
        value: What the function returned.
        digest: Stands for the whole interleaving: equal if everything happened in the same order at the same times.
        seconds: Virtual time that it took.
        steps: Steps of all threads.
    """

    value: T
    digest: str
    seconds: float
    steps: int


class Simulation:
    """What a simulated function is given.

    Attributes:
        accel: The library, in a copy for this simulation. Classes of the ordinary one do not belong with it, but for
            errors, exits, results and the operations of guest programs.
        threading: What the function starts threads with.
        time: What it waits with.
        random: Chance that repeats.
        seed: As given.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self.seed = seed
        self.random = random.Random(f"function {seed}")
        self.accel: Any = world.load("accel")
        self.threading: Any = world.stand_in("threading")
        self.time: Any = world.stand_in("time")

    def load(self, name: str) -> Any:
        """Return a module in the copy that belongs to this simulation, such as ``accel.devices``."""
        return self._world.load(name)


def simulate(function: Callable[[Simulation], T], seed: int = 0, *, most_seconds: float | None = 60.0) -> Simulated[T]:
    """Call `function` in a simulation, and return what it returns with a digest of all that happened.

    The same function with the same seed does the same; another seed gives another interleaving. Threads that still run
    when the function returns are given up.

    Args:
        function: Takes a `Simulation`; may start machines and threads.
        seed: Any integer.
        most_seconds: Virtual time after which it is given up; None for no limit.

    Raises:
        Violation: Nobody can go on, the time is over, or a thread ended with an exception.
        Exception: What the function raises, with a note that says the seed.
    """
    simulator = _Simulator(seed, most_seconds)
    world = World((), copied=_plugins(), shared=VALUES)
    result: list[T] = []
    errors: list[BaseException] = []

    def main() -> None:
        try:
            result.append(function(Simulation(world, seed)))
        except Exception as error:  # noqa: BLE001 - raised to the caller
            errors.append(error)
        simulator.finish()

    turns: Any = world.load("accel.turns")
    turns.take = simulator.take_turn
    simulator.spawn("main", main)
    world.runtime.engine = simulator
    collecting = gc.isenabled()
    # A collection could end objects anywhere, and begins at other places in a second run.
    gc.disable()
    try:
        simulator.run()
    finally:
        world.runtime.engine = None
        if collecting:
            gc.enable()
    # A function that is given up may raise something else on its way out.
    error = simulator.violation or next(iter(errors), None)
    if error is not None:
        error.add_note(f"simulated with seed={seed}, which repeats it")
        raise error
    return Simulated(result[0], simulator.digest, simulator.now - _Simulator.START, simulator.steps)


def _plugins() -> set[str]:
    """Return the packages that bring plugins: they must find each other's copies."""
    return {point.module.partition(".")[0] for point in importlib.metadata.entry_points(group=PROJECT)}


class _Nobody:
    """Stands for a chooser: a simulator chooses by itself."""

    prefix: list[tuple[int, bool]] = []

    def choose(self, engine: Engine, choices: list[Choice]) -> Choice | None:
        raise NotImplementedError


class _Simulator(Engine):
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
        self._somewhere = Location(0, "", None)

    @property
    def digest(self) -> str:
        """The digest of all so far."""
        return f"{self._digest & (1 << 64) - 1:016x}"

    # tasks

    def spawn(self, name: str, run: Callable[[], object]) -> Task:
        """See `Engine.spawn`."""
        task = super().spawn(name, run)
        self._alive.append(task)
        return task

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
        self, location: Location, step: str, ready: Callable[[], bool] | None = None, timeout: float | None = None
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

    def release(self, mutex: object, location: Location, step: str) -> None:
        """See `Engine.release`."""
        self.steps += 1

    def acquired(self, mutex: object) -> None:
        """Nothing is learnt of data."""

    def access(self, owner: object, key: object, name: str, *, write: bool, value: object = None) -> None:
        """Data is no place to stop at."""

    def place(self, owner: object, key: object, name: str) -> Location:
        """All places are one."""
        return self._somewhere


def _never() -> bool:
    return False

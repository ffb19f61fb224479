"""Tries schedules: all with a bounded number of preemptions, or many at random; stops at the first violation.

Systematic: depth first over the choices of `engine`, with at most so many preemptions (a switch away from a task that
could go on, or a wait that times out while somebody could). A prefix whose happens-before order was come to before,
with the same task going and no more preemptions used, leads to nothing new and is cut off: that is the partial-order
reduction. It loses no behaviour within the bound, since equal orders lead to equal states. (The idea of caching
happens-before orders is CHESS's: Musuvathi and Qadeer, 2007.) Lower bounds are tried first, so that what is found is
found with as few preemptions as can be.

Which data is visible is learnt: what two tasks use, one of them writing. When an execution finds more of it, the
search begins again with that; at the end all of it was visible throughout.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from attrs import define, frozen

from accel.errors import UsageError
from accel.testing.explore.choosers import Again, DepthFirst, RandomChooser
from accel.testing.explore.engine import Engine, Everything
from accel.testing.explore.schedule import Replay, Segment
from accel.testing.explore.scheduler import NOT_THE_SAME
from accel.testing.explore.task import Observer, Violation
from accel.testing.explore.world import World

#: Executions at random by which shared data is learnt before anything is counted.
_LEARNING = 20
#: Executions from one call of `Explorer.watch` to the next.
_WATCHED = 100


class Run(Protocol):
    """One run of a scenario: made anew for each execution."""

    def threads(self) -> dict[str, Callable[[], object]]:
        """Return what runs side by side, by name."""

    def check(self) -> None:
        """Raise Violation if what came of it, once all have ended, is wrong."""


@define
class Counts:
    """How much was explored.

    Attributes:
        schedules: Executions to the end.
        cut: Executions that were given up where they came to a known order.
        states: Distinct happens-before orders at which there was a choice.
        steps: Visible steps of all.
        longest: Visible steps of the longest.
    """

    schedules: int = 0
    cut: int = 0
    states: int = 0
    steps: int = 0
    longest: int = 0


@frozen
class Found:
    """A violation, with the schedule that leads to it.

    Attributes:
        violation: What.
        schedule: How.
        preemptions: How many preemptions it takes.
        tasks: The names of the tasks, in order.
    """

    violation: Violation
    schedule: list[Segment]
    preemptions: int
    tasks: tuple[str, ...]


@frozen
class Exploration:
    """What came of a search.

    Attributes:
        found: The violation, or None.
        counts: How much was explored.
        bound: Most preemptions; None at random.
        exhaustive: Whether every schedule within the bound was covered.
        unlimited: Whether every schedule was, since none takes more preemptions.
        shared: The data that was visible.
    """

    found: Found | None
    counts: Counts
    bound: int | None
    exhaustive: bool
    shared: frozenset[str]
    unlimited: bool = False


class Explorer:
    """Explores one scenario in one world.

    Args:
        world: Where its code lives.
        make: Sets a run up; called for each execution.
        limit: Visible steps after which an execution counts as a livelock.
        timeouts: Whether waits may time out while somebody could go on, each of which costs as much as a preemption.
    """

    def __init__(self, world: World, make: Callable[[], Run], *, limit: int = 20_000, timeouts: bool = True) -> None:
        self._timeouts = timeouts
        self._world = world
        self._make = make
        self._limit = limit
        #: Called now and then while it searches, with what was explored so far and the preemptions that are tried.
        self.watch: Callable[[Counts, int], object] | None = None
        self._shared: frozenset[str] = frozenset()

    def systematic(self, bound: int, *, most: int | None = None) -> Exploration:
        """Try all schedules with up to `bound` preemptions, fewer first, or give up after `most` executions.

        Raises:
            UsageError: The scenario does not run the same way twice.
        """
        with _validation():
            self._learn()
            while True:
                known = self._shared
                explored = self._deepen(bound, most)
                if explored.found is not None or not explored.exhaustive or self._shared is known:
                    return explored

    def _learn(self) -> None:
        """Learn which data is shared, as far as a few executions at random show it."""
        for seed in range(_LEARNING):
            self._execute(RandomChooser(seed))

    def _deepen(self, bound: int, most: int | None) -> Exploration:
        counts = Counts()
        known = self._shared
        signature = self._execute(DepthFirst(0)).signature
        for depth in range(bound + 1):
            search = DepthFirst(depth)
            more = True
            first = True
            while more:
                if most is not None and counts.schedules + counts.cut >= most:
                    counts.states = search.states
                    return Exploration(None, counts, bound, False, self._shared)
                engine = self._execute(search)
                if first and engine.signature != signature and self._shared is known:
                    raise UsageError(NOT_THE_SAME.format("the first schedule came to another order"))
                first = False
                counts.steps += engine.steps
                counts.longest = max(counts.longest, engine.steps)
                counts.schedules += not search.was_cut
                counts.cut += search.was_cut
                if self.watch is not None and not (counts.schedules + counts.cut) % _WATCHED:
                    self.watch(counts, depth)
                if engine.violation is not None:
                    counts.states = search.states
                    return self._found(engine, search.decisions, counts, bound)
                if self._shared is not known:
                    return Exploration(None, counts, bound, True, self._shared)
                more = search.back()
            counts.states = search.states
            if not search.limited:
                return Exploration(None, counts, bound, True, self._shared, unlimited=True)
        return Exploration(None, counts, bound, True, self._shared)

    def at_random(self, seed: int, executions: int) -> Exploration:
        """Try schedules chosen at random; the same seed gives the same ones in an explorer that is new."""
        counts = Counts()
        with _validation():
            self._learn()
            for number in range(executions):
                chooser = RandomChooser(seed + number)
                engine = self._execute(chooser)
                counts.schedules += 1
                counts.steps += engine.steps
                counts.longest = max(counts.longest, engine.steps)
                if engine.violation is not None:
                    return self._found(engine, chooser.decisions, counts, None)
        return Exploration(None, counts, None, False, self._shared)

    def replay(self, schedule: list[Segment], observer: Observer | None = None) -> tuple[Engine, str]:
        """Repeat a schedule; return the execution, and where the schedule does not fit, or an empty text.

        The observer hears of all accesses, also of data that only one task uses.
        """
        chooser = Replay(schedule)
        with _validation():
            engine = self._execute(chooser, shared=Everything(), observer=observer)
        return engine, chooser.off

    def _found(
        self, engine: Engine, decisions: list[tuple[int, bool]], counts: Counts, bound: int | None
    ) -> Exploration:
        """Repeat what led to a violation, to write it down."""
        again = Again(decisions)
        repeated = self._execute(again, shared=engine.shared)
        violation, second = engine.violation, repeated.violation
        # Its text may name addresses of the host.
        if (
            violation is None
            or second is None
            or (violation.kind, engine.signature) != (second.kind, repeated.signature)
        ):
            raise UsageError(NOT_THE_SAME.format(f"once it ended with {violation}, then with {second}"))
        tasks = tuple(task.name for task in engine.tasks)
        found = Found(violation, again.recorder.segments(), again.preemptions, tasks)
        return Exploration(found, counts, bound, False, self._shared)

    def _execute(
        self, chooser: Any, *, shared: Container[str] | None = None, observer: Observer | None = None
    ) -> Engine:
        runtime = self._world.runtime
        # What lock validation saw in one execution must not be found in another, which would not repeat.
        graphs = self._world.load("accel.lock_graph").__dict__
        graphs["current"] = graphs["PROCESS"] = graphs["LockGraph"]()
        engine = Engine(
            chooser,
            shared=self._shared if shared is None else shared,
            limit=self._limit,
            observer=observer,
            timeouts=self._timeouts,
        )
        run = self._make()
        for name, body in run.threads().items():
            engine.spawn(name, body)
        runtime.engine = engine
        try:
            engine.run()
        finally:
            runtime.engine = None
        if engine.violation is None and not getattr(chooser, "was_cut", False):
            self._judge(engine, run)
        if shared is None and not engine.found <= self._shared:
            self._shared |= engine.found
        return engine

    def _judge(self, engine: Engine, run: Run) -> None:
        try:
            run.check()
        except Violation as violation:
            engine.violation = violation
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
            engine.violation = Violation("exception", f"at the end: {type(error).__name__}: {error}")
            engine.violation.__cause__ = error


@contextmanager
def _validation() -> Iterator[None]:
    """Have locks check their order."""
    before = os.environ.get("ACCEL_LOCKDEP")
    os.environ["ACCEL_LOCKDEP"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["ACCEL_LOCKDEP"]
        else:
            os.environ["ACCEL_LOCKDEP"] = before

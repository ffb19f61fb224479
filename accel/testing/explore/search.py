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
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from attrs import define, frozen

from accel.testing.explore.engine import Choice, Engine, Violation
from accel.testing.explore.schedule import Recorder, Replay, Segment
from accel.testing.explore.world import World

#: Executions at random by which shared data is learnt before anything is counted.
_LEARNING = 20


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
        shared: The data that was visible.
    """

    found: Found | None
    counts: Counts
    bound: int | None
    exhaustive: bool
    shared: frozenset[str]


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
        self._shared: set[str] = set()

    def systematic(self, bound: int, *, most: int | None = None) -> Exploration:
        """Try all schedules with up to `bound` preemptions, fewer first, or give up after `most` executions."""
        for seed in range(_LEARNING):
            self._execute(_Random(seed))
        while True:
            known = len(self._shared)
            explored = self._deepen(bound, most)
            if explored.found is not None or not explored.exhaustive or len(self._shared) == known:
                return explored

    def _deepen(self, bound: int, most: int | None) -> Exploration:
        counts = Counts()
        known = len(self._shared)
        for depth in range(bound + 1):
            search = _DepthFirst(depth)
            more = True
            while more:
                if most is not None and counts.schedules + counts.cut >= most:
                    return Exploration(None, counts, bound, False, frozenset(self._shared))
                engine = self._execute(search)
                counts.steps += engine.steps
                counts.longest = max(counts.longest, engine.steps)
                counts.schedules += not search.was_cut
                counts.cut += search.was_cut
                if engine.violation is not None:
                    counts.states += search.states
                    return self._found(engine.violation, search.decisions, counts, bound)
                if len(self._shared) != known:
                    return Exploration(None, counts, bound, True, frozenset(self._shared))
                more = search.back()
            counts.states = search.states
        return Exploration(None, counts, bound, True, frozenset(self._shared))

    def at_random(self, seed: int, executions: int) -> Exploration:
        """Try schedules chosen at random; execution n uses seed + n."""
        counts = Counts()
        for number in range(executions):
            chooser = _Random(seed + number)
            engine = self._execute(chooser)
            counts.schedules += 1
            counts.steps += engine.steps
            counts.longest = max(counts.longest, engine.steps)
            if engine.violation is not None:
                return self._found(engine.violation, chooser.decisions, counts, None)
        return Exploration(None, counts, None, False, frozenset(self._shared))

    def replay(self, schedule: list[Segment], observer: Any = None) -> tuple[Engine, str]:
        """Repeat a schedule; return the execution, and where the schedule does not fit, or an empty text.

        The observer hears of all accesses, also of data that only one task uses.
        """
        chooser = Replay(schedule)
        engine = self._execute(chooser, everything=True, observer=observer)
        return engine, chooser.off

    def _found(
        self, violation: Violation, decisions: list[tuple[int, bool]], counts: Counts, bound: int | None
    ) -> Exploration:
        again = _Again(decisions)
        engine = self._execute(again)
        tasks = tuple(task.name for task in engine.tasks)
        found = Found(violation, again.recorder.segments(), again.preemptions, tasks)
        return Exploration(found, counts, bound, False, frozenset(self._shared))

    def _execute(self, chooser: Any, *, everything: bool = False, observer: Any = None) -> Engine:
        runtime = self._world.runtime
        engine = Engine(
            chooser,
            shared=None if everything else self._shared,
            limit=self._limit,
            observer=observer,
            timeouts=self._timeouts,
        )
        with _validation():
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
        if not everything:
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


class _Random:
    """Chooses at random: mostly that the task goes on, so that others come at it from afar."""

    def __init__(self, seed: int) -> None:
        self.prefix: list[tuple[int, bool]] = []
        self.decisions: list[tuple[int, bool]] = []
        self._random = random.Random(seed)
        self._stay = self._random.choice((0.3, 0.6, 0.9))

    def choose(self, engine: Engine, choices: list[Choice]) -> Choice:
        """Return one of them."""
        chosen = choices[0]
        if chosen.task is not engine.current or chosen.timeout or self._random.random() >= self._stay:
            chosen = self._random.choice(choices)
        self.decisions.append((chosen.task.index, chosen.timeout))
        return chosen


class _Again:
    """Makes the same decisions once more, and writes them down as a schedule."""

    def __init__(self, decisions: list[tuple[int, bool]]) -> None:
        self.prefix: list[tuple[int, bool]] = []
        self.recorder = Recorder()
        self.preemptions = 0
        self._decisions = iter(decisions)

    def choose(self, engine: Engine, choices: list[Choice]) -> Choice:
        """Return what was chosen then."""
        index, timeout = next(self._decisions)
        for choice in choices:
            if choice.task.index == index and choice.timeout == timeout:
                self.recorder.note(engine, choice)
                self.preemptions += choice.cost
                return choice
        raise RuntimeError("the scenario does not run the same way twice: it must not depend on chance or on time")


class _Node:
    """A choice of the execution that goes on.

    Attributes:
        ways: What can be chosen: whose turn, whether it times out, what it costs.
        used: Preemptions before.
        decisions: Decisions before.
        taken: Which way is followed.
    """

    __slots__ = ("decisions", "taken", "used", "ways")

    def __init__(self, ways: list[tuple[int, bool, int]], used: int, decisions: int) -> None:
        self.ways = ways
        self.used = used
        self.decisions = decisions
        self.taken = 0


class _DepthFirst:
    """Goes through all choices with up to `bound` preemptions; one object for all executions of a search."""

    def __init__(self, bound: int) -> None:
        self.prefix: list[tuple[int, bool]] = []
        self.decisions: list[tuple[int, bool]] = []
        self.was_cut = False
        self._bound = bound
        self._used = 0
        self._nodes: list[_Node] = []
        # (signature, who goes) → fewest preemptions used there.
        self._known: dict[tuple[int, int], int] = {}

    @property
    def states(self) -> int:
        """How many different orders were come to."""
        return len(self._known)

    def choose(self, engine: Engine, choices: list[Choice]) -> Choice | None:
        """Return the first way, which costs nothing, and note the others; give up at a known order."""
        chosen = choices[0]
        if len(choices) > 1:
            going = chosen.task.index if chosen.task is engine.current and not chosen.timeout else -1
            key = engine.signature, going
            known = self._known.get(key)
            if known is not None and known <= self._used:
                self.was_cut = True
                return None
            self._known[key] = self._used
            left = self._bound - self._used
            ways = [(one.task.index, one.timeout, one.cost) for one in choices if one.cost <= left]
            if len(ways) > 1:
                self._nodes.append(_Node(ways, self._used, len(self.decisions)))
        self.decisions.append((chosen.task.index, chosen.timeout))
        return chosen

    def back(self) -> bool:
        """Go to the last choice that has another way within the bound; return whether there is one."""
        nodes = self._nodes
        while nodes:
            node = nodes[-1]
            node.taken += 1
            if node.taken < len(node.ways):
                index, timeout, cost = node.ways[node.taken]
                self._used = node.used + cost
                del self.decisions[node.decisions :]
                self.decisions.append((index, timeout))
                self.prefix = self.decisions[:]
                self.was_cut = False
                return True
            nodes.pop()
        return False

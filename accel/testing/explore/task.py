"""What an execution is made of: tasks, the places that they touch, the ways to go on, and what may come of it.

Layer: the lowest of the explorer, beside `greenlet`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import greenlet

if TYPE_CHECKING:
    from accel.testing.explore.scheduler import Scheduler

#: The name of the clock among data.
CLOCK = "clock"

#: Makes hashes of those who have no number of their own.
_NOBODY = 0x9E3779B97F4A7C15


class Abort(greenlet.GreenletExit):  # type: ignore[misc]
    """Ends a task whose execution is given up."""


class Violation(Exception):
    """What a scenario forbids has happened.

    Attributes:
        kind: ``invariant``, ``exception``, ``deadlock`` or ``livelock``.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Location:
    """Something that tasks read and write, or synchronise on.

    Attributes:
        number: The same in every execution that came to it the same way.
        owner: What it belongs to; kept, so that its id is not used again.
        written: Signature of the last write.
        read: Sum of the signatures of the reads since.
    """

    __slots__ = ("number", "owner", "read", "written")

    def __init__(self, number: int, owner: object) -> None:
        self.number = number
        self.owner = owner
        self.written = 0
        self.read = 0


#: What a task is about to do: words, or the name of data, whether it is written, and what with.
Step = str | tuple[str, bool, object]

#: Of which object's id, and what of it.
Place = tuple[int, object]


class Task:
    """One thread of a scenario.

    Attributes:
        index: Its place in the engine's list.
        name: For people.
        number: The same in every execution in which it was begun the same way.
        count: Accesses that it made, visible or not; says where in it a switch was.
        named: Locations that it came to first.
        begun: Tasks that it began.
        last: Signature of its last step.
        ready: Returns whether its next step can be made; None if it can always.
        timeout: Seconds until that step gives up, or None.
        timed_out: Whether it was let go on for that reason.
        step: What it is about to do, for people.
        place: Where it is about to do it, and whether it writes there.
        on: The choice that it goes on, at no cost; `stay` the decision.
        spawner: What began it and waits for its first step, or None.
        done: Whether it has ended.
        daemon: Whether it may be left behind.
        held: The mutexes that it holds, by id.
        atomic: Whether it is in something that is one step, and `going` whether it has stopped before that already.
    """

    __slots__ = (
        "atomic", "begun", "count", "daemon", "done", "going", "greenlet", "held", "index", "last", "name", "named",
        "number", "on", "place", "ready", "spawner", "stay", "step", "timed_out", "timeout", "writes",
    )  # fmt: skip

    def __init__(self, index: int, name: str, parent: Task | None, run: Callable[[], None]) -> None:
        self.index = index
        self.name = name
        if parent is None:
            self.number = hash((_NOBODY, index))
        else:
            parent.begun += 1
            self.number = hash((parent.number, parent.begun))
        self.greenlet = greenlet.greenlet(run)
        self.spawner: Any = None
        self.on = Choice(self, timeout=False, cost=0)
        self.stay = (index, False)
        self.count = 0
        self.named = 0
        self.begun: int = 0
        self.last = self.number
        self.ready: Callable[[], bool] | None = None
        self.timeout: float | None = None
        self.timed_out = False
        self.step: Step = "start"
        self.place: Place = (0, None)
        self.writes = True
        self.done = False
        self.daemon = False
        self.held: frozenset[int] = frozenset()
        self.atomic = False
        self.going = False


class Choice:
    """A way to go on: let `task` go on, or its wait time out; `cost` is 1 if it preempts a task that could go on."""

    __slots__ = ("cost", "task", "timeout")

    def __init__(self, task: Task, *, timeout: bool, cost: int) -> None:
        self.task = task
        self.timeout = timeout
        self.cost = cost


class Chooser(Protocol):
    """Decides how an execution goes on.

    Attributes:
        prefix: The first decisions: whose turn, and whether its wait times out.
        expected: The signature before the last of them, or None; another one says that the scenario depends on chance.
        left: How many more preemptions it may choose.
    """

    prefix: list[tuple[int, bool]]
    expected: int | None
    left: int

    def choose(self, engine: Scheduler, choices: list[Choice]) -> Choice | None:
        """Return one of the ways, of which there is at least one, the first the cheapest; None gives it up.

        `Scheduler.current` is the task that has come to a step, or None if it has ended.
        """


class Observer(Protocol):
    """Hears of each visible step as it is made; for step tables."""

    def __call__(self, task: Task, step: str, *, timed_out: bool) -> None:
        """Note it."""


def step_text(step: Step) -> str:
    """Return a step for people."""
    if isinstance(step, str):
        return step
    name, write, value = step
    if not write:
        return f"read {name}"
    if isinstance(value, int) and value > 0xFFFF:
        # Words with an address of the host in them differ between processes; their low bits say what changes.
        shown = f"0x…{value & 0xFFF:03x}"
    else:
        shown = repr(value) if isinstance(value, (bool, int, str)) else type(value).__name__
    return f"write {name}" if value is None else f"write {name} = {shown}"

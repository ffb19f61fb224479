"""One execution: tasks as greenlets, of which one goes at a time, and a chooser that says which at every visible step.

A step is visible if another task could tell when it happened: a synchronisation operation, or a read or write of data
that several tasks use. A task stops before each of its visible steps. When it is let go on, it makes the step and runs
up to the next; so whole executions are sequences of steps, and two with the same sequence come to the same.

The signature of a prefix is that of its happens-before order: the sum of a hash for each step, made of the task, what
it touched, the step before it in its task and those of other tasks that it depends on. Prefixes that differ only in
the order of independent steps have one signature, and lead to one state.

Sequentially consistent: each step sees all before it. Weak memory order cannot be shown here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import greenlet

_MASK = (1 << 64) - 1

#: The name of the clock among data.
CLOCK = "clock"


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
        name: For people.
        written: Signature of the last write.
        read: Sum of the signatures of the reads since.
    """

    __slots__ = ("name", "number", "owner", "read", "written")

    def __init__(self, number: int, name: str, owner: object) -> None:
        self.number = number
        self.name = name
        self.owner = owner  # kept, so that its id is not used again
        self.written = 0
        self.read = 0


#: What a task is about to do: words, or the name of data, whether it is written, and what with.
Step = str | tuple[str, bool, object]


class Task:
    """One thread of a scenario.

    Attributes:
        index: Its number, from 0.
        name: For people.
        count: Accesses that it made, visible or not; says where in it a switch was.
        ready: Returns whether its next step can be made; None if it can always.
        timeout: Seconds until that step gives up, or None.
        timed_out: Whether it was let go on for that reason.
        step: What it is about to do, for people.
        done: Whether it has ended.
        held: The mutexes that it holds, by id.
        atomic: Whether it is in something that is one step, and `going` whether it has stopped before that already.
    """

    __slots__ = (
        *("atomic", "count", "done", "going", "greenlet", "held", "index", "last", "name", "named", "ready", "step"),
        *("timed_out", "timeout"),
    )

    def __init__(self, index: int, name: str, run: Callable[[], None]) -> None:
        self.index = index
        self.name = name
        self.greenlet = greenlet.greenlet(run)
        self.count = 0
        self.named = 0
        self.last = index + 1
        self.ready: Callable[[], bool] | None = None
        self.timeout: float | None = None
        self.timed_out = False
        self.step: Step = "start"
        self.done = False
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
        prefix: The first decisions, each the index of a task, and whether its wait times out.
    """

    prefix: list[tuple[int, bool]]

    def choose(self, engine: Engine, choices: list[Choice]) -> Choice | None:
        """Return one of the ways, of which there is at least one, the first the cheapest; None gives it up.

        `Engine.current` is the task that has come to a step, or None if it has ended.
        """


class Observer(Protocol):
    """Hears of each visible step as it is made; for step tables."""

    def __call__(self, task: Task, step: str, *, timed_out: bool) -> None:
        """Note it."""


class Engine:
    """One execution of a scenario's tasks.

    Args:
        chooser: Decides.
        shared: The names of data that is visible, ``Class.attribute``; None makes all visible.
        limit: Visible steps after which it counts as a livelock.
        observer: Hears of each step.
        timeouts: Whether waits may time out while somebody could go on.

    Attributes:
        current: The task that goes now, or None outside of all.
        signature: Of what has happened so far.
        now: The clock, in seconds.
        violation: What was found, or None.
        found: Names of data that turned out to be shared and was not visible.
        containers: By id, each container and the attribute that it was last loaded from, by which it is called.
        aborting: Whether it is being given up, so that nothing waits any more.
    """

    def __init__(
        self,
        chooser: Chooser,
        *,
        shared: set[str] | None = None,
        limit: int = 20_000,
        observer: Observer | None = None,
        timeouts: bool = True,
    ) -> None:
        self.chooser = chooser
        self.shared = shared
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self.signature = 0
        self.steps = 0
        # So that the sum of a few time-outs is exact: one that is over by a rounding error would be waited for again.
        self.now = 0.0
        self.aborting = False
        self.violation: Violation | None = None
        self.found: set[str] = set()
        self.containers: dict[int, tuple[object, str]] = {}
        self._limit = limit
        self._observer = observer
        self._timeouts = timeouts
        # What is decided beforehand; see `Chooser.prefix`.
        self._prefix = chooser.prefix
        self._decisions = 0
        self._hub = greenlet.getcurrent()
        self._places: dict[tuple[int, object], Location] = {}
        # Of data: the object, who used it first, whether anybody wrote it, and what all who used it held.
        self._users: dict[tuple[int, object], tuple[object, Task, bool, frozenset[int]]] = {}
        self._given_up = False

    # tasks

    def spawn(self, name: str, run: Callable[[], object]) -> Task:
        """Add a task; it begins when it is chosen."""
        task = Task(len(self.tasks), name, lambda: self._body(task, run))
        task.greenlet.parent = self._hub
        self.tasks.append(task)
        return task

    def _body(self, task: Task, run: Callable[[], object]) -> None:
        try:
            run()
        except Abort:
            pass
        except Violation as violation:
            self._fail(violation)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
            found = Violation("exception", f"{task.name}: {type(error).__name__}: {error}")
            found.__cause__ = error
            self._fail(found)
        task.done = True

    def _fail(self, violation: Violation) -> None:
        if self.violation is None and not self.aborting:
            self.violation = violation

    def run(self) -> None:
        """Run all tasks to their end, to a violation, or until the chooser gives up."""
        try:
            while self.violation is None and not self._given_up:
                self.current = None
                task = self._next(None)
                if task is None:
                    break
                self.current = task
                task.greenlet.switch()
        finally:
            self._end()

    def _end(self) -> None:
        self.aborting = True
        for task in self.tasks:
            if not task.greenlet.dead:
                self.current = task
                task.greenlet.throw(Abort)
        self.current = None

    def _next(self, current: Task | None) -> Task | None:
        """Decide who goes on, `current` being about to make a step or blocked; None if nobody can or shall."""
        if self._decisions < len(self._prefix):
            index, timeout = self._prefix[self._decisions]
            self._decisions += 1
            task = self.tasks[index]
            task.timed_out = timeout
            return task
        self._decisions += 1
        goes_on = current is not None and (current.ready is None or current.ready())
        choices: list[Choice] = []
        if goes_on and current is not None:
            choices.append(Choice(current, timeout=False, cost=0))
        cost = 1 if goes_on else 0
        waiting = []
        for task in self.tasks:
            if task.done:
                continue
            if task is not current and (task.ready is None or task.ready()):
                choices.append(Choice(task, timeout=False, cost=cost))
            elif task.timeout is not None and (task is not current or not goes_on):
                waiting.append(task)
        if not choices:
            choices = [Choice(task, timeout=True, cost=0) for task in waiting]
        elif self._timeouts:
            choices.extend(Choice(task, timeout=True, cost=1) for task in waiting)
        if not choices:
            if any(not task.done for task in self.tasks):
                stuck = "; ".join(f"{task.name}: {step_text(task.step)}" for task in self.tasks if not task.done)
                self._fail(Violation("deadlock", f"nobody can go on: {stuck}"))
            return None
        choice = self.chooser.choose(self, choices)
        if choice is None:
            self._given_up = True
            return None
        choice.task.timed_out = choice.timeout
        return choice.task

    def _switch(self, current: Task) -> None:
        """Let whoever is chosen go on; returns when `current` is."""
        self.steps += 1
        if self.steps > self._limit:
            self._fail(
                Violation("livelock", f"not over after {self._limit} steps; {current.name}: {step_text(current.step)}")
            )
            self._hub.switch()
        task = self._next(current)
        if task is current:
            return
        if task is None:
            self._hub.switch()
        else:
            self.current = task
            task.greenlet.switch()

    # steps

    def acquired(self, mutex: object) -> None:
        """Note that the current task holds a mutex: data that is used under it only need not be visible itself."""
        if self.current is not None:
            self.current.held |= {id(mutex)}

    def release(self, mutex: object, location: Location, step: str) -> None:
        """Make a step that gives up a mutex, which others can only wait for.

        It is no place to stop at: whatever others do before it they can do after it just as well, so the executions
        that stop at the next step come to the same.
        """
        task = self.current
        if task is None or self.aborting:
            return
        task.count += 1
        task.held -= {id(mutex)}
        self._note(task, location, write=True)
        if self._observer is not None:
            self._observer(task, step, timed_out=False)

    def sync(
        self, location: Location, step: str, ready: Callable[[], bool] | None = None, timeout: float | None = None
    ) -> bool:
        """Make a synchronisation step of the current task, once `ready`; return whether it is, not the time over."""
        task = self.current
        if task is None or self.aborting:
            return True
        task.count += 1
        task.ready, task.timeout, task.step = ready, timeout, step
        self._switch(task)
        task.ready = task.timeout = None
        timed_out, task.timed_out = task.timed_out, False
        if timed_out:
            assert timeout is not None
            self.now += timeout
            self._learn(task, self, "now", CLOCK, write=True)
            self._note(task, self.place(self, "now", CLOCK), write=True)
        self._note(task, location, write=True)
        if self._observer is not None:
            self._observer(task, step, timed_out=timed_out)
        return not timed_out

    def access(self, owner: object, key: object, name: str, *, write: bool, value: object = None) -> None:
        """Make a read or a write of data of the current task: that of `owner` which `key` names.

        Args:
            owner: An object.
            key: What of it.
            name: The name of such data, as in `shared`.
            write: Whether it is written.
            value: What is written, if that is to be told.
        """
        task = self.current
        if task is None or self.aborting:
            return
        task.count += 1
        shared = self.shared
        if shared is None or name in shared:
            task.step = (name, write, value)
            if not task.going:
                self._switch(task)
                task.going = task.atomic
            self._note(task, self.place(owner, key, name), write=write)
            if self._observer is not None:
                self._observer(task, step_text(task.step), timed_out=False)
            if shared is not None:
                return
        self._learn(task, owner, key, name, write=write)

    def _learn(self, task: Task, owner: object, key: object, name: str, *, write: bool) -> None:
        """Note that data turns out to be used by several tasks with no mutex that all of them hold."""
        known = self._users.get((id(owner), key))
        if known is None:
            self._users[id(owner), key] = (owner, task, write, task.held)
            return
        _, other, written, held = known
        if held and not held <= task.held:
            held &= task.held
            self._users[id(owner), key] = (owner, other, written, held)
        if other is not task and (write or written) and not held:
            self.found.add(name)
        if write and not written:
            self._users[id(owner), key] = (owner, other, True, held)

    def place(self, owner: object, key: object, name: str) -> Location:
        """Return the location of `key` in `owner`, named by who came to it first."""
        found = self._places.get((id(owner), key))
        if found is None:
            task = self.current
            if task is None:
                number = hash((-1, len(self._places)))
            else:
                task.named += 1
                number = hash((task.index, task.named))
            found = self._places[id(owner), key] = Location(number, name, owner)
        return found

    def _note(self, task: Task, location: Location, *, write: bool) -> None:
        if write:
            task.last = hash((task.index, location.number, 1, task.last, location.written, location.read))
            location.written = task.last
            location.read = 0
        else:
            task.last = hash((task.index, location.number, 0, task.last, location.written))
            location.read = (location.read + task.last) & _MASK
        self.signature = (self.signature + task.last) & _MASK


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

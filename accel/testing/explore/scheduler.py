"""Runs the tasks of an execution as greenlets, one at a time, each up to where it stops, as a chooser says.

Layer: below `engine`, which says what a step is. A task goes on by `_switch`, in its own greenlet: whoever is chosen is
switched to from there. The hub is the greenlet that runs the whole; it goes on where a task ends or nobody can.
"""

from __future__ import annotations

from collections.abc import Callable, Container

import greenlet

from accel.errors import UsageError
from accel.testing.explore.history import History
from accel.testing.explore.task import Abort, Choice, Chooser, Observer, Task, Violation, step_text

#: What is wrong with a scenario whose executions differ.
NOT_THE_SAME = (
    "the scenario does not run the same way twice: {}; it must not depend on chance, real time, the order of a set of "
    "objects, or what an earlier run left behind"
)
#: Steps that a task may make while it is brought to its end.
_LAST_STEPS = 1000


class Scheduler(History):
    """Runs the tasks of one execution.

    Args:
        chooser: Decides.
        shared: The names of data that is visible, ``Class.attribute``, and of mutexes whose release is.
        limit: Steps, visible or not, after which it counts as a livelock.
        observer: Hears of each step.
        timeouts: Whether waits may time out while somebody could go on.

    Attributes:
        current: The task that goes now, or None outside of all.
        now: The clock, in seconds.
        violation: What was found, or None.
        containers: By id, each container and the attribute that it was first found in, by which it is called.
        aborting: Whether it is being given up, so that nothing waits any more.
    """

    def __init__(
        self,
        chooser: Chooser,
        *,
        shared: Container[str],
        limit: int = 20_000,
        observer: Observer | None = None,
        timeouts: bool = True,
    ) -> None:
        super().__init__()
        self.chooser = chooser
        self.shared = shared
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self.steps = 0
        # So that the sum of a few time-outs is exact: one that is over by a rounding error would be waited for again.
        self.now = 0.0
        self.aborting = False
        self.violation: Violation | None = None
        self.containers: dict[int, tuple[object, str]] = {}
        self._unseen = 0
        self._limit = limit
        self._observer = observer
        self._timeouts = timeouts
        self._prefix = chooser.prefix
        self._fixed = len(self._prefix)
        self._decisions = 0
        self._hub = greenlet.getcurrent()
        self._over = False
        self._differs = ""

    # tasks

    def spawn(self, name: str, run: Callable[[], object], *, daemon: bool = False) -> Task:
        """Add a task, which `begin` or `run` begins. A daemon may wait for ever once the others have ended."""
        task = Task(len(self.tasks), name, self.current, lambda: self._body(task, run))
        task.daemon = daemon
        self.tasks.append(task)
        return task

    def begin(self, task: Task) -> None:
        """Run a task up to its first step, which others cannot tell from running it up to there later."""
        spawner = self.current
        task.spawner = greenlet.getcurrent()
        task.greenlet.parent = task.spawner
        self.current = task
        task.greenlet.switch()
        self.current = spawner
        if self.violation is not None and spawner is not None:
            self._hub.switch()

    def _begun(self, task: Task) -> None:
        """Go back to who began a task; returns when it is chosen."""
        spawner, task.spawner = task.spawner, None
        task.greenlet.parent = self._hub
        spawner.switch()

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
        """Run all tasks to their end, to a violation, or until the chooser gives up.

        Raises:
            UsageError: What was decided beforehand cannot be done: the scenario does not run the same way twice.
        """
        try:
            for task in list(self.tasks):
                if self.violation is None:
                    self.begin(task)
            while self.violation is None and not self._over:
                self.current = None
                chosen = self._next(None)
                if chosen is None:
                    break
                self.current = chosen
                chosen.greenlet.switch()
        finally:
            self._end()
        if self._differs:
            raise UsageError(NOT_THE_SAME.format(self._differs))

    def differs(self, where: str) -> None:
        """Give up, since this is not the execution that it was; `run` raises."""
        self._differs = self._differs or where
        self._over = True

    def _end(self) -> None:
        self.aborting = True
        for task in self.tasks:
            if not task.greenlet.dead:
                self.current = task
                task.count = 0
                task.greenlet.throw(Abort)
        self.current = None

    def _abort(self, task: Task) -> None:
        """End a task once more whose last rites do not end, since nothing waits any more."""
        task.count += 1
        if task.count > _LAST_STEPS:
            raise Abort

    # decisions

    def _next(self, current: Task | None) -> Task | None:
        """Decide who goes on, `current` being about to make a step or blocked; None if nobody can or shall."""
        at = self._decisions
        self._decisions = at + 1
        if at < self._fixed:
            return self._decided(at, current)
        goes_on = current is not None and (current.ready is None or current.ready())
        choices = [current.on] if current is not None and goes_on else []
        if not goes_on or self.chooser.left:
            self._others(current, goes_on, choices)
        if not choices:
            if any(not task.done and not task.daemon for task in self.tasks):
                stuck = "; ".join(f"{task.name}: {step_text(task.step)}" for task in self.tasks if not task.done)
                self._fail(Violation("deadlock", f"nobody can go on: {stuck}"))
            return None
        choice = self.chooser.choose(self, choices)
        if choice is None or self._over:
            self._over = True
            return None
        choice.task.timed_out = choice.timeout
        return choice.task

    def _others(self, current: Task | None, goes_on: bool, choices: list[Choice]) -> None:
        """Add the ways in which another task goes on, or a wait times out."""
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
            choices.extend(Choice(task, timeout=True, cost=0) for task in waiting)
        elif self._timeouts and self.chooser.left:
            choices.extend(Choice(task, timeout=True, cost=1) for task in waiting)

    def _decided(self, at: int, current: Task | None) -> Task | None:
        """Return whom the chooser's prefix says, if that can be."""
        index, timeout = self._prefix[at]
        if at == self._fixed - 1 and self.chooser.expected not in (None, self.signature):
            self.differs(f"after {at} decisions, other things had happened")
            return None
        task = self.tasks[index] if index < len(self.tasks) else None
        if task is None or task.done:
            self.differs(f"decision {at} is about a task that is not there")
            return None
        if task is not current and not timeout and task.ready is not None and not task.ready():
            self.differs(f"decision {at}: {task.name} cannot go on")
            return None
        task.timed_out = timeout
        return task

    def _switch(self, current: Task) -> None:
        """Let whoever is chosen go on; returns when `current` is."""
        if current.spawner is not None:
            self._begun(current)
            return
        self.steps += 1
        at = self._decisions
        if at < self._fixed - 1 and self._prefix[at] == current.stay:
            self._decisions = at + 1
            return
        if self.steps > self._limit:
            self._live(current)
        task = self._next(current)
        if task is current:
            return
        if task is None:
            self._hub.switch()
        else:
            self.current = task
            task.greenlet.switch()

    def _live(self, task: Task) -> None:
        self._fail(Violation("livelock", f"not over after {self._limit} steps; {task.name}: {step_text(task.step)}"))
        self._hub.switch()

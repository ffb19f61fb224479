"""One execution: tasks as greenlets, of which one goes at a time, and a chooser that says which at every visible step.

A step is visible if another task could tell when it happened: a synchronisation operation, or a read or write of data
that several tasks use. A task stops before each of its visible steps. When it is let go on, it makes the step and runs
up to the next; so whole executions are sequences of steps, and two with the same sequence come to the same.

What is no place to stop. Data that is only ever used under one mutex, which whoever looks at it must hold. And the
release of a mutex: others can only wait for it, and whatever they do before it they can do after it just as well. That
is not so if somebody *tries* the mutex, or waits for it with a time-out; once an execution did, releases of it are
steps like others, in the executions that follow (`Engine.found`).

The signature of a prefix is that of its happens-before order: the sum of a hash for each step, made of the task, what
it touched, the step before it in its task and those of other tasks that it depends on. Prefixes that differ only in
the order of independent steps have one signature, and lead to one state.

Sequentially consistent: each step sees all before it. Weak memory order cannot be shown here.
"""

from __future__ import annotations

from collections.abc import Callable

from accel.testing.explore.scheduler import Scheduler
from accel.testing.explore.task import CLOCK, step_text


class Everything:
    """The names of all data."""

    def __contains__(self, name: object) -> bool:
        return True


class Engine(Scheduler):
    """One execution of a scenario's tasks, as code that is explored sees it: each method is a step."""

    def tried(self, name: str) -> None:
        """Note that somebody looks at a mutex without waiting for it for good, so that its release is a step."""
        step = f"release {name}"
        if step not in self.shared:
            self.found.add(step)

    def acquired(self, mutex: object) -> None:
        """Note that the current task holds a mutex: data that is used under it only need not be visible itself."""
        if self.current is not None:
            self.current.held |= {id(mutex)}

    def release(self, mutex: object, name: str) -> None:
        """Make the step that gives up a mutex; no place to stop at, unless somebody tries it: see above."""
        task = self.current
        if task is None:
            return
        step = f"release {name}"
        if not self.aborting and step in self.shared:
            self.sync(mutex, step)
            task.held -= {id(mutex)}
            return
        task.held -= {id(mutex)}
        if self.aborting:
            return
        task.count += 1
        self._note(task, self._place(task, (id(mutex), "sync"), mutex), write=True)
        if self._observer is not None:
            task.step = step
            self._observer(task, step, timed_out=False)

    def sync(
        self,
        owner: object,
        step: str,
        ready: Callable[[], bool] | None = None,
        timeout: float | None = None,
        write: bool = True,
    ) -> bool:
        """Make a synchronisation step of the current task, once `ready`; return whether it is, not the time over.

        Args:
            owner: What it is about.
            step: For people.
            ready: Whether it can be made; None if always.
            timeout: Seconds until it gives up, or None.
            write: Whether it changes something, so that its order with others of its kind matters.
        """
        task = self.current
        if task is None:
            return True
        if self.aborting:
            self._abort(task)
            return True
        task.count += 1
        task.ready, task.timeout, task.step = ready, timeout, step
        task.place = place = id(owner), "sync"
        task.writes = write
        self._unseen = 0
        self._switch(task)
        task.ready = task.timeout = None
        timed_out, task.timed_out = task.timed_out, False
        if timed_out:
            assert timeout is not None
            self.now += timeout
            clock = id(self), "now"
            self._learn(task, clock, self, CLOCK, write=True)
            self._note(task, self._place(task, clock, self), write=True)
        self._note(task, self._place(task, place, owner), write=write)
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
        if task is None:
            return
        if self.aborting:
            self._abort(task)
            return
        task.count += 1
        place = id(owner), key
        visible = name in self.shared
        if not visible:
            self._unseen += 1
            if self._unseen > self._limit:
                # Perhaps it waits for what others do, who are to have a chance.
                self.found.add(name)
                visible = True
        if visible:
            self._unseen = 0
            if not task.going:
                task.step = (name, write, value)
                task.place = place
                task.writes = write
                self._switch(task)
                task.going = task.atomic
            self._note(task, self._place(task, place, owner), write=write)
            if self._observer is not None:
                task.step = (name, write, value)
                self._observer(task, step_text(task.step), timed_out=False)
            elif key != "[]":
                return
        self._learn(task, place, owner, name, write=write)

"""What stand-ins and instrumented code ask for the execution that goes on.

Layer: above `engine`, below `primitives`, `threads` and `accesses`. Outside of an execution, while a scenario is set up
and judged, one thread does everything and nothing waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from accel.testing.explore.engine import Engine
from accel.testing.explore.task import Task, Violation

#: The ident of the thread that sets up and judges.
MAIN = 1


class Runtime:
    """What stand-ins and instrumented code ask for the execution that goes on.

    Attributes:
        engine: The execution, or None.
        local_type: What stands in for `threading.local`, whose attributes belong to one task each.
    """

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.local_type: type = threading.local

    @property
    def task(self) -> Task | None:
        """The task that goes now, or None."""
        return None if self.engine is None else self.engine.current

    def sync(
        self,
        owner: object,
        step: str,
        ready: Callable[[], bool] | None = None,
        timeout: float | None = None,
        write: bool = True,
    ) -> bool:
        """Make a step on `owner`; see `Engine.sync`. Outside of an execution, what is not ready never will be."""
        engine = self.engine
        if engine is None or engine.current is None:
            if ready is not None and not ready():
                if timeout is None:
                    raise Violation("deadlock", f"while set up or judged: {step}")
                return False
            return True
        return engine.sync(owner, step, ready, timeout, write) or engine.aborting

    def acquire(self, mutex: object, name: str, ready: Callable[[], bool], *, blocking: bool, timeout: float) -> bool:
        """Make the step that takes a mutex which its taker alone releases; return whether it is taken."""
        engine = self.engine
        if engine is not None and (timeout >= 0 or not blocking):
            engine.tried(name)
        if not blocking:
            self.sync(mutex, f"try {name}")
            taken = ready()
        else:
            taken = self.sync(mutex, f"acquire {name}", ready, None if timeout < 0 else timeout)
        if taken and engine is not None:
            engine.acquired(mutex)
        return taken

    def release(self, mutex: object, name: str) -> None:
        """Make the step of a release; see `Engine.release`."""
        if self.engine is not None:
            self.engine.release(mutex, name)

    def ident(self) -> int:
        """Return the current task's number as a thread's."""
        engine = self.engine
        task = None if engine is None else engine.current
        return MAIN if task is None else MAIN + 1 + task.index

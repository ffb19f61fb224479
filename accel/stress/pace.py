"""How long a combination runs, and how often the map changes: by time or by number, back to back or at a rate.

Layer: above `figures`. The main thread's; Ctrl-C ends any wait in here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from accel.errors import StateError
from accel.run import Run
from accel.stress.figures import Figures

#: Seconds between two looks at the faults so far.
_LOOK = 0.05
#: Runs without a change, one after the other, that are put up with.
_MOST_IDLE = 200


class Pace:
    """Says when to change, and when it is over; its clock runs only while changes are made.

    Args:
        figures: What is written while it goes on.
        seconds: For how long, or None.
        updates: How many changes, or None; one of the two is given.
        rate: Changes in a second; None makes them back to back.
        live: Told of the figures, some times in a second.
        now: The clock, in seconds.
        sleep: Waits for so many seconds of that clock.
    """

    def __init__(
        self,
        figures: Figures,
        seconds: float | None,
        updates: int | None,
        rate: float | None,
        live: Callable[[Figures], None],
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._figures = figures
        self._seconds = seconds
        self._updates = updates
        self._every = 0.0 if rate is None else 1.0 / rate
        self._live = live
        self._now = now
        self._sleep = sleep
        self._idle = 0

    @property
    def over(self) -> bool:
        """Whether it has been long enough."""
        figures = self._figures
        if self._updates is not None and figures.updates >= self._updates:
            return True
        return self._seconds is not None and figures.seconds >= self._seconds

    def change(self, run: Run, one_change: Callable[[], float]) -> None:
        """Change until it is over or the run has ended; `one_change` returns the seconds that it took.

        Raises:
            StateError: Runs end before there is any change, time after time, so that it would never be over.
            AccelError: A change failed.
        """
        made = self._figures.updates
        self._change(run, one_change)
        self._idle = 0 if self._figures.updates > made else self._idle + 1
        if self._idle >= _MOST_IDLE and not self.over:
            raise StateError(f"the guest ended {_MOST_IDLE} times before its memory could change; let it run longer")

    def _change(self, run: Run, one_change: Callable[[], float]) -> None:
        figures = self._figures
        before, faults = figures.seconds, figures.faults
        started = due = self._now()
        looked = 0.0
        try:
            while not self.over and not run.done:
                figures.latencies.add(one_change())
                figures.updates += 1
                due += self._every
                if self._every and (wait := due - self._now()) > 0:
                    self._sleep(wait)
                due = max(due, self._now() - self._every)  # who is late makes no burst
                figures.seconds = before + self._now() - started
                if figures.seconds - looked > _LOOK:
                    looked = figures.seconds
                    figures.timeline.add(looked, figures.updates, faults + sum(run.spurious_faults_so_far()))
                    self._live(figures)
        finally:
            figures.seconds = before + self._now() - started

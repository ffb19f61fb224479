"""A thread beside a run whose failure ends the run and is raised to whoever waits for it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from contextlib import suppress

from accel.machine import Machine


class Worker(ABC):
    """Works while a machine runs.

    Attributes:
        stopping: Set once the work must end; `work` looks at it between its steps.
        error: What `work` raised. Stable once `stop` has returned.
    """

    def __init__(self, name: str, machine: Machine) -> None:
        self.stopping = threading.Event()
        self.error: BaseException | None = None
        self._machine = machine
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    @abstractmethod
    def work(self) -> None:
        """Do the work, until it is done or `stopping` is set."""

    def wake(self) -> None:
        """Bring `work` out of what it waits in, if that is anything else than `stopping`."""

    def start(self) -> None:
        """Start the thread; the machine runs."""
        self._thread.start()

    def stop(self) -> None:
        """Let the work end, and wait until it has; may be called without `start`."""
        self.stopping.set()
        self.wake()
        if self._thread.ident is not None:
            self._thread.join()

    def _main(self) -> None:
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001 - the session raises it
            self.error = error
            with suppress(Exception):
                # A vCPU that cannot be kicked, or does not come out now, is an error of the run itself, which `wait`
                # raises.
                self._machine.stop()

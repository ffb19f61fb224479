"""The housekeeper: a thread per run that hands on what would otherwise wait for the next exit.

Coalesced writes do not exit, and a console's bytes are buffered; a guest that prints and then spins or halts
would never show them. Every few milliseconds this thread drains the ring and flushes the devices, so that
bytes show within 50 ms. It kicks no vCPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

#: Seconds between two rounds: short enough for people, long enough to leave the GIL to the vCPUs.
PERIOD = 0.01


class Housekeeper:
    """Calls `tick` periodically until it is stopped.

    Args:
        tick: What to do; takes the locks it needs.
        failed: Takes what `tick` raises; there is no further tick.
    """

    def __init__(self, tick: Callable[[], None], failed: Callable[[BaseException], None]) -> None:
        self._tick = tick
        self._failed = failed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop it and wait until it has ended; nothing happens if the host could not start it."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def is_current(self) -> bool:
        """Return whether the caller is this thread."""
        return threading.current_thread() is self._thread

    def _main(self) -> None:
        while not self._stop.wait(PERIOD):
            try:
                self._tick()
            except BaseException as error:  # noqa: BLE001 - it is raised to whoever waits for the run
                self._failed(error)
                return

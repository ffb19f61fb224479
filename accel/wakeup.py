"""An event that one thread waits for, made of one bare lock: `threading.Event` is Python code on a condition.

Lowest layer. Setting one that is set is harmless: whoever waits has not taken it yet, and what it looks at after
taking it was written before.
"""

from __future__ import annotations

import threading


class Wakeup:
    """An event that its only waiter takes back by waiting; anyone sets it."""

    def __init__(self) -> None:
        # Locked while it is not set.
        self._unset = threading.Lock()
        self._unset.acquire()

    def set(self) -> None:
        """Wake the waiter, or keep its next `wait` from waiting."""
        try:
            self._unset.release()
        except RuntimeError:
            # Set already. To look first would leave time for another thread in between.
            pass

    def clear(self) -> None:
        """Forget that it was set; for the waiter."""
        self._unset.acquire(blocking=False)

    def wait(self, timeout: float = -1) -> bool:
        """Wait until it is set, or for `timeout` seconds; take it back and return True if it was."""
        return self._unset.acquire(timeout=timeout)

"""The journal of a transaction: how to take each edit back, and what waits until all of them are in force.

Savepoints are lengths of it. Whoever ends a transaction by an exception first says so with a plain assignment to
`torn`, which no interrupt (Ctrl-C) can tear apart, and only then takes back; if an interrupt keeps it from that,
whoever comes next does. Layer: below `transaction`. Guarded by the big lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

_log = logging.getLogger("accel.memory")

Savepoint = tuple[int, int]


class Journal:
    """Edits that can still be taken back.

    Attributes:
        torn: The savepoint to which the journal has to go back before anything else, or None.
    """

    def __init__(self) -> None:
        self.torn: Savepoint | None = None
        self._undo: list[Callable[[], None]] = []
        self._deferred: list[Callable[[], None]] = []

    def __len__(self) -> int:
        """Return how many edits can be taken back."""
        return len(self._undo)

    @property
    def savepoint(self) -> Savepoint:
        """Where it stands."""
        return len(self._undo), len(self._deferred)

    def note(self, undo: Callable[[], None]) -> None:
        """Note how to take back an edit; `undo` must not raise."""
        self._undo.append(undo)

    def defer(self, finish: Callable[[], None]) -> None:
        """Note what to do in `settle`."""
        self._deferred.append(finish)

    def mend(self) -> None:
        """Take back what was noted since `torn`, latest first. Interrupts have to be held back."""
        if self.torn is not None:
            edits, deferred = self.torn
            del self._deferred[deferred:]
            while len(self._undo) > edits:
                self._undo.pop()()
            self.torn = None

    def settle(self) -> None:
        """Let nothing be taken back any more, and do what waited for that; what raises is logged.

        What ends the program does so once all of it is done.
        """
        self._undo.clear()
        end: BaseException | None = None
        while self._deferred:
            finish = self._deferred.pop(0)
            try:
                finish()
            except Exception:  # noqa: BLE001 - it is too late to refuse anything
                _log.exception("what was put off until a memory change was in force failed")
            except BaseException as error:  # noqa: BLE001 - raised below
                end = end or error
        if end is not None:
            raise end

"""Ctrl-C that waits: a block in which no interrupt arrives, so that what it does is done whole or not at all.

Python runs the handler of a signal on the main thread, between any two instructions of whatever runs there, and the
usual handler of SIGINT raises. In the middle of a memory change that would leave slots, tree and view
different. Other threads never see it. Lowest layer; no lock.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

# The functions of C behind those of the signal module, which make an enum of each handler and take seven times as long.
_get_handler: Callable[[int], object] = _signal.getsignal
_set_handler: Callable[[int, object], object] = _signal.signal
_SIGINT = int(signal.SIGINT)


class _Keeper:
    """Stands in for the handler of SIGINT and keeps the signal for it."""

    __slots__ = ("_frame", "_handler", "_pending")

    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self._handler = handler
        self._pending = False
        self._frame: FrameType | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._pending = True
        self._frame = frame

    def restore(self) -> None:
        """Put the handler back, and give it what came meanwhile."""
        _set_handler(_SIGINT, self._handler)
        self.deliver()

    def deliver(self) -> None:
        """Give the handler what came so far."""
        if self._pending:
            frame, self._frame, self._pending = self._frame, None, False
            self._handler(_SIGINT, frame)


class interrupts_held_back:
    """A context in which SIGINT is kept until the end, where its handler runs; nests, on any thread.

    Costs a few microseconds on the main thread and next to nothing on others.
    """

    __slots__ = ("_keeper",)

    def __enter__(self) -> None:
        self._keeper: _Keeper | None = None
        if threading.current_thread() is not threading.main_thread():
            return
        handler = _get_handler(_SIGINT)
        if not callable(handler) or isinstance(handler, _Keeper):
            # Ignored, fatal, somebody's in C, or held back already: nothing would be raised here.
            return
        keeper = _Keeper(handler)
        try:
            _set_handler(_SIGINT, keeper)
        except ValueError:
            # The main thread of a sub-interpreter, where no handler runs.
            return
        self._keeper = keeper

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper is not None:
            self._keeper.restore()


def deliver_interrupts() -> None:
    """Let through what is held back so far: for a wait inside, before anything has changed; any thread.

    Raises:
        KeyboardInterrupt: With the usual handler, if SIGINT came.
    """
    if threading.current_thread() is threading.main_thread():
        keeper = _get_handler(_SIGINT)
        if isinstance(keeper, _Keeper):
            keeper.deliver()

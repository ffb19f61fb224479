"""SIGTERM and SIGHUP as interrupts: they end a command as Ctrl-C does, so that everything is put in order first.

Going through the handler of SIGINT, they too wait while something must not be interrupted (`accel.interrupts`). Where
SIGINT is ignored, or a signal has a handler or is ignored already (as by nohup), everything is left as it is.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)


class EndingSignals:
    """Which signal asks the process to end, if one does. Main thread only.

    Attributes:
        received: The first one that came, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def exit_code(self, code: int) -> int:
        """Return what the process exits with: 128 plus the signal, or else `code`."""
        return code if self.received is None else 128 + self.received

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the signal and interrupt what the main thread does."""
        if self.received is None:
            self.received = number
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            handler(signal.SIGINT, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def ending_signals() -> Iterator[EndingSignals]:
    """Give the signals that end the block as an interrupt; elsewhere than on the main thread, none does."""
    ending = EndingSignals()
    taken = []
    if threading.current_thread() is threading.main_thread():
        for number in _ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, ending.handle)
                taken.append(number)
    try:
        yield ending
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)

"""A terminal as the guest's serial line: raw while the guest runs, and put back whatever happens.

In raw mode each key goes to the guest at once, Enter as the carriage return that a serial terminal sends; nothing is
echoed but by the guest. Output processing stays on, so that a guest's bare line feeds do not make stairs. Ctrl-C
stays with the host and interrupts the run; Ctrl-A is the escape key:

=============  ==========================
Ctrl-A x       ends the run
Ctrl-A c       sends Ctrl-C to the guest
Ctrl-A Ctrl-A  sends Ctrl-A to the guest
=============  ==========================

The terminal is put back when the block ends, which SIGTERM and SIGHUP do too (`accel.cli.signals`), by atexit, and
while SIGTSTP suspends the process. Source: termios(3).
"""

from __future__ import annotations

import atexit
import os
import signal
import termios
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

ESCAPE = b"\x01"
HINT = "serial line on this terminal: Ctrl-A x ends the run, Ctrl-A c sends Ctrl-C, Ctrl-C interrupts"

#: A character of 0 switches a special key off (_POSIX_VDISABLE on Linux).
_DISABLED = b"\0"

# Places in what tcgetattr returns.
_IFLAG, _LFLAG, _CC = 0, 3, 6


def usable(descriptor: int) -> bool:
    """Return whether `descriptor` is a terminal that this process may take over: it is in the foreground."""
    try:
        return os.isatty(descriptor) and os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False


class RawTerminal:
    """A context in which a terminal is raw; use it on the main thread.

    Args:
        descriptor: The terminal.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._saved: list[Any] = termios.tcgetattr(descriptor)
        self._suspend_handler: Any = None

    def __enter__(self) -> Self:
        atexit.register(self.restore)
        if threading.current_thread() is threading.main_thread():
            self._suspend_handler = signal.signal(signal.SIGTSTP, self._suspend)
        self._make_raw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
        atexit.unregister(self.restore)
        if self._suspend_handler is not None:
            signal.signal(signal.SIGTSTP, self._suspend_handler)

    def restore(self) -> None:
        """Put the terminal back; may be called twice, and when it is gone."""
        self._set(self._saved)

    def _make_raw(self) -> None:
        attributes = termios.tcgetattr(self._descriptor)
        attributes[_IFLAG] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR | termios.ISTRIP | termios.IXON)
        attributes[_LFLAG] &= ~(termios.ICANON | termios.ECHO | termios.ECHONL | termios.IEXTEN)
        attributes[_CC][termios.VMIN], attributes[_CC][termios.VTIME] = 1, 0
        # These keys are the guest's; only Ctrl-C stays.
        for key in (termios.VQUIT, termios.VSUSP):
            attributes[_CC][key] = _DISABLED
        self._set(attributes)

    def _set(self, attributes: list[Any]) -> None:
        try:
            # At once: a terminal that nobody reads would keep TCSADRAIN waiting for ever.
            termios.tcsetattr(self._descriptor, termios.TCSANOW, attributes)
        except termios.error:
            # The terminal is gone, and there is nothing to put back.
            pass

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        self.restore()
        os.kill(os.getpid(), signal.SIGSTOP)
        if usable(self._descriptor):
            self._make_raw()


class Keys:
    """What is typed, without the escapes.

    Args:
        chunks: What the terminal gives.
        end: Called for Ctrl-A x; the iteration ends there.
    """

    def __init__(self, chunks: Iterable[bytes], end: Callable[[], None]) -> None:
        self._chunks = chunks
        self._end = end

    def __iter__(self) -> Iterator[bytes]:
        escaped = False
        for chunk in self._chunks:
            typed = bytearray()
            for key in chunk:
                if not escaped:
                    escaped = key == ESCAPE[0]
                    if not escaped:
                        typed.append(key)
                    continue
                escaped = False
                if key in b"xX":
                    yield bytes(typed)
                    self._end()
                    return
                typed += {ord("c"): b"\x03", ord("C"): b"\x03", ESCAPE[0]: ESCAPE}.get(key, bytes((key,)))
            yield bytes(typed)

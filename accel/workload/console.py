"""Where all console devices of a run write: one capture, one sink, in the order in which the bytes are handed on.

Layer: above `accel.devices.console`, whose sink it is. It keeps that module's promise that a sink which takes
nothing never blocks a vCPU: it asks the sink's descriptor before each write, under the lock that keeps two
devices from writing at once.
"""

from __future__ import annotations

import io
import select
import threading
from collections.abc import Callable
from typing import BinaryIO

from accel.devices.console import Capture

#: Bytes of console output that a report keeps: half from the start, half from the end.
CAPTURE_LIMIT = 1 << 20
# A pipe that polls as writable takes so much without blocking (PIPE_BUF, pipe(7)).
_CHUNK = 4096


class Console:
    """Captures what is written to it, and passes it on; as much of a binary file as a device's `output` needs.

    Args:
        sink: Takes the bytes; None only captures. It is never closed here.
        capture_limit: See `CAPTURE_LIMIT`.
        until: Text to look out for; empty for none.
        on_found: Called once, when all of it was written; on whichever thread that was, with the console's lock held.
    """

    def __init__(
        self,
        sink: BinaryIO | None = None,
        capture_limit: int = CAPTURE_LIMIT,
        *,
        until: bytes = b"",
        on_found: Callable[[], None] = lambda: None,
    ) -> None:
        # Guards all that follows.
        self._write_lock = threading.Lock()
        self._sink = sink
        self._capture = Capture(capture_limit)
        self._last = b""
        self._until, self._on_found = until, on_found
        self._found = False
        # What of the bytes written last may be the beginning of the text.
        self._tail = b""
        self._poll: select.poll | None = None
        if sink is not None and _descriptor(sink) is not None:
            self._poll = select.poll()
            self._poll.register(sink, select.POLLOUT)

    def fileno(self) -> int:
        """Return the sink's descriptor, so that a device can wait until it takes bytes. Raises OSError without."""
        descriptor = None if self._sink is None else _descriptor(self._sink)
        if descriptor is None:
            raise io.UnsupportedOperation("the console's sink has no file descriptor")
        return descriptor

    def flush(self) -> None:
        """Do nothing: what `write` took is with the sink."""

    def write(self, data: bytes) -> int:
        """Capture what the sink takes of `data` now, and return how much that is.

        Raises:
            Exception: What the sink raised, once; after that, bytes are captured only.
        """
        with self._write_lock:
            taken = self._give(data)
            self._capture.add(data[:taken])
            self._last = data[taken - 1 : taken] or self._last
            if self._until and not self._found:
                self._look(data[:taken])
            return taken

    @property
    def found(self) -> bool:
        """Whether the text to look out for was written."""
        with self._write_lock:
            return self._found

    @property
    def captured(self) -> bytes:
        """What was written, or its start and end with a line about what is left out between them."""
        with self._write_lock:
            return self._capture.value()

    @property
    def total(self) -> int:
        """Bytes written."""
        with self._write_lock:
            return self._capture.total

    @property
    def truncated(self) -> bool:
        """Whether `captured` leaves bytes out."""
        with self._write_lock:
            return self._capture.left_out > 0

    @property
    def mid_line(self) -> bool:
        """Whether the last line is not ended."""
        with self._write_lock:
            return self._last not in (b"", b"\n")

    def _look(self, data: bytes) -> None:
        seen = self._tail + data
        self._tail = seen[max(0, len(seen) - len(self._until) + 1) :]
        if self._until in seen:
            self._found = True
            self._on_found()

    def _give(self, data: bytes) -> int:
        sink = self._sink
        if sink is None:
            return len(data)
        try:
            if self._poll is not None and not self._poll.poll(0):
                return 0
            written: int | None = sink.write(data[:_CHUNK])
            sink.flush()
        except BlockingIOError as error:
            return getattr(error, "characters_written", 0)
        except Exception:
            self._sink = None
            self._poll = None
            raise
        if written is None:
            # Raw files say None where they would block; other objects with a `write` just return nothing.
            return 0 if isinstance(sink, io.RawIOBase) else len(data[:_CHUNK])
        return written


def _descriptor(sink: BinaryIO) -> int | None:
    try:
        return sink.fileno()
    except (AttributeError, OSError, ValueError):
        return None

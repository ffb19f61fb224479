"""Where the bytes of a guest console go: a buffer that is cheap to append to, a sink, and a capture.

Layer: below the devices; knows no device and no machine.

Who does what. A device appends each byte to `pending` on the vCPU thread (`put` is `bytearray.append`
itself). A thread of the machine calls `flush` every few milliseconds, which hands what is pending to the
sink. Appending takes no lock: it is one C call, and so is removing from the front, so neither sees the
other half done, no byte is lost or overtakes another, and no buffer is exported that would make `append`
raise. Handing on holds `_lock`, so that two threads never write to the sink out of order.

Why memory stays bounded. A writer that takes `pending` above `bound` calls `relieve`, which hands on in the
writer's own thread and waits up to `patience` for a sink that takes nothing. A handler runs under the big
lock, so waiting for ever would keep everyone from stopping the machine; waiting a little for each write
slows a flood to a trickle instead, and only a sink that is stuck for very long meets `limit`, which is an
error, never a silent loss.

Sinks with a file descriptor are polled first and given at most one page, which a pipe that polls as writable
takes without blocking (PIPE_BUF, pipe(7)); short writes and non-blocking descriptors are served. Other sinks
are simply called, and may block whoever hands on.
"""

from __future__ import annotations

import io
import math
import select
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

_CHUNK = 4096
_RETRY_S = 0.001


class Capture:
    """The first and the last bytes of a stream, at most `limit` in all. Not thread safe."""

    __slots__ = ("_first", "_first_limit", "_last", "_last_limit", "total")

    def __init__(self, limit: int) -> None:
        self._first_limit = limit - limit // 2
        self._last_limit = limit // 2
        self._first = bytearray()
        self._last = bytearray()
        #: Bytes that were added, kept or not.
        self.total = 0

    def add(self, data: bytes) -> None:
        """Append `data`; amortised O(len(data))."""
        self.total += len(data)
        room = self._first_limit - len(self._first)
        if room > 0:
            self._first += data[:room]
            data = data[room:]
        self._last += data
        excess = len(self._last) - self._last_limit
        if excess > 0:
            del self._last[:excess]

    @property
    def left_out(self) -> int:
        """Bytes that are not kept."""
        return self.total - len(self._first) - len(self._last)

    def value(self) -> bytes:
        """Return what is kept; a line says where bytes are left out, so that nothing matches across it."""
        gap = b"\n[... %d bytes left out ...]\n" % self.left_out if self.left_out else b""
        return bytes(self._first) + gap + bytes(self._last)


class ConsoleOutput:
    """The output side of a guest console.

    Args:
        sink: Binary file that takes the bytes; None keeps only the capture. It is never closed here.
        capture_limit: Bytes that `captured` keeps: half of it from the start, half from the end.
        bound: Pending bytes above which a writer must call `relieve`.
        limit: Pending bytes above which `relieve` gives up on the sink.
        patience: Seconds that `relieve` waits for the sink at most.

    Attributes:
        pending: Bytes that the sink has not taken yet. Any thread may append; only `ConsoleOutput` removes.
        put: Append one byte (0..255). After it, call `relieve` if `pending` is longer than `bound`.
        bound: See above; never changes.
    """

    __slots__ = (
        "_capture",
        "_captured",
        "_limit",
        "_lock",
        "_patience",
        "_poll",
        "_sink",
        "_unsettled",
        "bound",
        "pending",
        "put",
    )

    def __init__(
        self,
        sink: BinaryIO | None = None,
        *,
        capture_limit: int = 1 << 20,
        bound: int = 64 << 10,
        limit: int = 8 << 20,
        patience: float = 0.05,
    ) -> None:
        self.pending = bytearray()
        self.put: Callable[[int], None] = self.pending.append
        self.bound = bound
        self._limit = limit
        self._patience = patience
        # Guards all that follows, and who removes from `pending`.
        self._lock = threading.Lock()
        self._capture = Capture(capture_limit)
        # How many of the first pending bytes are in the capture already.
        self._captured = 0
        self._sink = sink
        self._poll = _poller(sink)
        # Whether the sink's own buffer holds bytes that its descriptor has not taken.
        self._unsettled = False

    @property
    def sink(self) -> BinaryIO | None:
        """The sink; None also once a sink has failed. Pending bytes go to the one that is set."""
        return self._sink

    @sink.setter
    def sink(self, sink: BinaryIO | None) -> None:
        with self._lock:
            self._sink = sink
            self._poll = _poller(sink)
            self._unsettled = False

    def write(self, data: bytes) -> None:
        """Append a run of bytes; any thread. Raises as `relieve` does."""
        self.pending.extend(data)
        if len(self.pending) > self.bound:
            self.relieve()

    def relieve(self) -> None:
        """Hand on in the writer's own thread, down to half of `bound`, for `patience` seconds at most.

        Raises:
            TimeoutError: The sink took nothing for so long that `limit` bytes are pending.
            Exception: Whatever the sink raised; it is dropped (see `flush`).
        """
        deadline = time.monotonic() + self._patience
        if self._lock.acquire(timeout=self._patience):
            try:
                self._hand_on(len(self.pending) - self.bound // 2, deadline)
            finally:
                self._lock.release()
        if len(self.pending) > self._limit:
            raise TimeoutError(
                f"the console's sink takes no more bytes; {len(self.pending)} are waiting "
                f"(limit {self._limit}): read what the guest prints, or give it another output"
            )

    def flush(self, wait: float = 0.0) -> None:
        """Hand what is pending now to the sink, and flush it; any thread.

        Without `wait`, what the sink does not take at once stays pending, which is no error. `math.inf`
        waits until it is taken.

        A sink that raises is let go of: the exception comes out of this call (or of the writer's `relieve`)
        once, and every byte from then on is captured and counted only.

        Args:
            wait: Seconds to wait for a sink that takes nothing.

        Raises:
            TimeoutError: `wait` is over and bytes are left; they stay pending.
            Exception: Whatever the sink raised.
        """
        deadline = time.monotonic() + wait
        with self._lock:
            left = self._hand_on(len(self.pending), deadline)
        if wait > 0 and left:
            raise TimeoutError(f"the console's sink did not take all bytes within {wait:g} s; {left} are left")

    def captured(self) -> bytes:
        """Return what was written so far, handed on or not; complete unless `truncated`.

        Beyond `capture_limit`, it is the first half of the limit, a line that says how much is left out, and
        the last half.
        """
        with self._lock:
            self._capture_pending()
            return self._capture.value()

    @property
    def truncated(self) -> bool:
        """Whether `captured` leaves bytes out."""
        with self._lock:
            self._capture_pending()
            return self._capture.left_out > 0

    @property
    def total(self) -> int:
        """Bytes written so far."""
        with self._lock:
            self._capture_pending()
            return self._capture.total

    def _capture_pending(self) -> None:
        """Capture what is pending; under `_lock`."""
        fresh = bytes(self.pending[self._captured :])
        self._capture.add(fresh)
        self._captured += len(fresh)

    def _hand_on(self, count: int, deadline: float) -> int:
        """Hand on the first `count` pending bytes, until `deadline`; return how many are left of them.

        Under `_lock`. A count from before the call, so that a guest that prints meanwhile cannot keep it
        busy.
        """
        self._capture_pending()
        try:
            while (count > 0 or self._unsettled) and self._ready(deadline):
                taken = self._give(bytes(self.pending[: min(count, _CHUNK)]))
                del self.pending[:taken]
                self._captured -= taken
                count -= taken
                if not taken and not self._pause(deadline):
                    break
        except Exception:
            self._sink = None
            self._poll = None
            self._unsettled = False
            raise
        return count or int(self._unsettled)

    def _ready(self, deadline: float) -> bool:
        """Wait until the sink's descriptor takes bytes; return False at `deadline`."""
        if self._poll is None:
            return True
        left = deadline - time.monotonic()
        # Rounded up: a wait of 0 would spin through the last millisecond.
        return bool(self._poll.poll(None if left == math.inf else max(0, math.ceil(left * 1000))))

    def _give(self, data: bytes) -> int:
        """Write `data` to the sink and flush it; return how many bytes it took."""
        sink = self._sink
        if sink is None:
            return len(data)
        try:
            written: int | None = sink.write(data)
        except BlockingIOError as error:
            # What a buffered writer took although its descriptor would block.
            written = getattr(error, "characters_written", 0)
        if written is None:
            # Raw files say None where they would block; other objects with a `write` just return nothing.
            written = 0 if isinstance(sink, io.RawIOBase) else len(data)
        try:
            sink.flush()
            self._unsettled = False
        except BlockingIOError:
            self._unsettled = True
        return written

    def _pause(self, deadline: float) -> bool:
        """Wait before asking a sink again that took nothing; return False at `deadline`."""
        if time.monotonic() >= deadline:
            return False
        time.sleep(_RETRY_S)
        return True


def _poller(sink: BinaryIO | None) -> select.poll | None:
    """Return a poll object for the sink's file descriptor, or None where it has none."""
    if sink is None:
        return None
    try:
        descriptor = sink.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll

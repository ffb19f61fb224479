"""What comes in over the serial line: chunks from a descriptor or a text, fed by a thread as the guest takes them.

Layer: above the devices. `DescriptorChunks` reads, `LineInput` feeds; the terminal of `accelctl` puts its escape
keys between the two.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, runtime_checkable

from accel.errors import StateError
from accel.machine import Machine
from accel.workload.worker import Worker

_CHUNK = 4096
#: Seconds that `feed` waits for a guest that does not read, before this thread looks whether it must end.
_PATIENCE = 0.05


@runtime_checkable
class TakesInput(Protocol):
    """A device that takes input from the host, such as `accel.devices.Serial`."""

    def feed(self, data: bytes, timeout: float | None = 0.0) -> int:
        """Queue input and return how many bytes were taken, after waiting up to `timeout` for room."""

    def input_done(self) -> None:
        """Say that no more comes."""


class DescriptorChunks:
    """What a file descriptor gives until its end, as chunks; `wake` ends the iteration from any thread.

    Args:
        descriptor: Readable; it is not closed here.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC)

    def __iter__(self) -> Iterator[bytes]:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._wake_read in ready:
                return
            try:
                data = os.read(self._descriptor, _CHUNK)
            except BlockingIOError:
                continue
            except OSError:
                # A terminal whose other end is gone reads as EIO: nothing more comes.
                return
            if not data:
                return
            yield data

    def wake(self) -> None:
        """End the iteration."""
        os.write(self._wake_write, b"\0")

    def close(self) -> None:
        """Release what it opened itself; no iteration is going on."""
        os.close(self._wake_read)
        os.close(self._wake_write)


class LineInput(Worker):
    """Feeds chunks to a serial device, no faster than the guest reads them.

    Args:
        machine: Ended if feeding fails.
        line: The device.
        chunks: What to feed; its end is the end of the input.
        wake: Ends the iteration of `chunks` from another thread.
    """

    def __init__(
        self, machine: Machine, line: TakesInput, chunks: Iterable[bytes], wake: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__("line-input", machine)
        self._line = line
        self._chunks = chunks
        self._wake = wake

    def wake(self) -> None:
        """End the wait for the next chunk."""
        self._wake()

    def work(self) -> None:
        """Feed all chunks, and say when they are over."""
        try:
            for chunk in self._chunks:
                self._feed(chunk)
                if self.stopping.is_set():
                    return
            self._line.input_done()
        except StateError:
            # The device was closed, which ends its input too.
            return

    def _feed(self, data: bytes) -> None:
        while data and not self.stopping.is_set():
            data = data[self._line.feed(data, timeout=_PATIENCE) :]

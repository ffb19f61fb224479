"""Turns: at any moment at most one thread is in the engines of a VM, a vCPU that runs or one that changes the map.

Why. Unicorn makes a locked instruction out of a plain load, an operation and a plain store, and engines know nothing
of each other. vCPUs that ran at the same time would tear each other's atomic operations. And no engine's map may
change while it runs. With turns, locked instructions are atomic and memory is as strongly ordered as can be, for the
price that several vCPUs are not faster than one.

How long. A vCPU that waits lets the one inside go on for `SLICE_S`, then asks it to stop before its next instruction.
Turns are handed over in the order of arrival, so whoever just had one queues up behind those who wait. Whoever changes
the map goes first and asks at once.

The lock is a leaf: its owner takes no other lock of this project. It is owned across `run`'s call into the engine.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from accel_unicorn.switch import ATTENTION

#: How long a vCPU runs on while another waits.
SLICE_S = 0.001


class Turn:
    """Who may enter the engines of one VM.

    Attributes:
        wanted: Whether somebody waits. Read by the one inside, without a lock.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        # All guarded by `_mutex`: whether somebody is inside, the control block of the vCPU that is, and those who
        # wait, each for a lock of its own that is released when the turn is handed over.
        self._taken = False
        self._inside: memoryview | None = None
        self._queue: deque[threading.Lock] = deque()

    @property
    def wanted(self) -> bool:
        return bool(self._queue)

    def take(self, words: memoryview) -> None:
        """Wait for a turn of the vCPU with this control block."""
        with self._mutex:
            if not self._taken:
                self._taken = True
                self._inside = words
                return
            gate = self._line_up(first=False)
        while not gate.acquire(timeout=SLICE_S):
            self._ask()
        with self._mutex:
            self._inside = words

    def give(self) -> None:
        """Hand the turn on."""
        with self._mutex:
            self._inside = None
            if self._queue:
                self._queue.popleft().release()
            else:
                self._taken = False

    @contextmanager
    def nobody_inside(self) -> Iterator[None]:
        """Keep every vCPU of the VM out of its engine for as long as the block takes; any thread, not nested."""
        with self._mutex:
            gate = None if not self._taken else self._line_up(first=True)
            self._taken = True
        if gate is not None:
            while True:
                self._ask()
                if gate.acquire(timeout=SLICE_S):
                    break
        try:
            yield
        finally:
            self.give()

    def _line_up(self, *, first: bool) -> threading.Lock:
        gate = threading.Lock()
        gate.acquire()
        if first:
            self._queue.appendleft(gate)
        else:
            self._queue.append(gate)
        return gate

    def _ask(self) -> None:
        """Ask the vCPU inside to stop before its next instruction."""
        with self._mutex:
            if self._inside is not None:
                self._inside[ATTENTION] = 1

"""Turns: at any moment at most one thread is in the engines of a VM, a vCPU that runs or one that changes the map.

Why. Unicorn makes a locked instruction out of a plain load, an operation and a plain store, and engines know nothing
of each other. vCPUs that ran at the same time would tear each other's atomic operations. And no engine's map may
change while it runs. With turns, locked instructions are atomic and memory is as strongly ordered as can be, for the
price that several vCPUs are not faster than one.

How long. A vCPU that waits lets the one inside go on for `SLICE_S`, then asks it to stop before its next instruction.
Turns are handed over in the order of arrival, so whoever just had one queues up behind those who wait. Whoever changes
the map goes first and asks at once.

The lock is a leaf: its owner takes no other lock of this project. It is owned across `run`'s call into the engine.
Each exit takes and gives the turn, so that costs two lock operations where nobody waits.
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
    """Who may enter the engines of one VM."""

    def __init__(self) -> None:
        # Held by whoever has the turn, also while it is handed over; not by the same thread that released it.
        self._turn = threading.Lock()
        # The control block of the vCPU inside. Set by the one that has the turn.
        self._inside: memoryview | None = None
        # Those who wait, each for a lock of its own that is released when it gets the turn. Guarded by `_mutex`, but
        # looked at without whether it is empty: who lines up at that moment finds out by itself, a slice later.
        self._queue: deque[threading.Lock] = deque()
        self._mutex = threading.Lock()

    @property
    def wanted(self) -> bool:
        """Whether somebody waits; asked by the one inside."""
        return bool(self._queue)

    def take(self, words: memoryview) -> None:
        """Wait for a turn of the vCPU with this control block."""
        if self._queue or not self._turn.acquire(False):
            self._wait(first=False)
        self._inside = words

    def give(self) -> None:
        """Hand the turn on."""
        self._inside = None
        if not self._queue:
            self._turn.release()
            return
        with self._mutex:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._turn.release()

    @contextmanager
    def nobody_inside(self) -> Iterator[None]:
        """Keep every vCPU of the VM out of its engine for as long as the block takes; any thread, not nested."""
        if not self._turn.acquire(False):
            self._wait(first=True)
        try:
            yield
        finally:
            self.give()

    def _wait(self, *, first: bool) -> None:
        gate = threading.Lock()
        gate.acquire()
        with self._mutex:
            if first:
                self._queue.appendleft(gate)
            else:
                self._queue.append(gate)
        if first:
            self._ask()
        while not gate.acquire(timeout=SLICE_S):
            with self._mutex:
                # Nobody hands over what was free when this one lined up.
                if self._turn.acquire(False):
                    self._queue.remove(gate)
                    return
            self._ask()

    def _ask(self) -> None:
        """Ask the vCPU inside to stop before its next instruction."""
        inside = self._inside
        if inside is not None:
            inside[ATTENTION] = 1

"""Turns: at any moment at most one thread is in the engines of a VM, a vCPU that runs or one that changes the map.

Why. Unicorn makes a locked instruction out of a plain load, an operation and a plain store, and engines know nothing
of each other. vCPUs that ran at the same time would tear each other's atomic operations. And no engine's map may
change while it runs. With turns, locked instructions are atomic and memory is as strongly ordered as can be, for the
price that several vCPUs are not faster than one.

How long. The vCPU that waits longest lets the one inside go on for `SLICE_S`, then asks it to stop before its next
instruction. Turns are handed over in the order of arrival, so whoever just had one queues up behind those who wait.
Whoever changes the map goes first and asks at once, but for a vCPU that was only just let in: else it got nothing done
between changes that follow each other.

Who has it stands in a dictionary, not in a lock: `dict.setdefault` takes the turn and notes whose it is in one step. An
interrupt (Ctrl-C) can come behind any call, so what a lock's `acquire` returned may never be seen, and nobody could
tell whether the turn is to be given back. For the same reason `owner` and `queue` are open to the vCPU, which takes and
gives the turn with each exit, in its own frame.

It is a leaf: whoever has it takes no other lock of this project. It is had across `run`'s call into the engine.

When the process ends, no thread is left in an engine: Python is about to free the stack under it.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from accel_unicorn.switch import ATTENTION

#: How long a vCPU runs on while another waits.
SLICE_S = 0.001
#: Longest wait for a vCPU to come out when the process ends.
_LAST_S = 5.0


class Turn:
    """Who may enter the engines of one VM.

    Attributes:
        owner: Under 0, the control block of the vCPU that has the turn; empty if nobody has it. Set by `setdefault`
            only, deleted by whoever has it.
        queue: Those who wait: a lock that is released when they get the turn, and their control block. Guarded by a
            mutex, but looked at without whether it is empty: who lines up at that moment finds out by itself, a
            slice later.
    """

    def __init__(self) -> None:
        self.owner: dict[int, memoryview] = {}
        self.queue: deque[tuple[threading.Lock, memoryview]] = deque()
        self._mutex = threading.Lock()
        # When the turn was last handed over.
        self._since = 0.0
        _turns.add(self)

    @property
    def wanted(self) -> bool:
        """Whether somebody waits; asked by the one inside."""
        return bool(self.queue)

    def take(self, words: memoryview) -> None:
        """Wait for a turn of the vCPU with this control block."""
        if self.queue or self.owner.setdefault(0, words) is not words:
            self.wait(words)

    def give(self, words: memoryview) -> None:
        """Hand the turn on, if this vCPU has it."""
        if self.owner.get(0) is words:
            del self.owner[0]
        if self.queue:
            self.hand_on()

    def hand_on(self) -> None:
        """Let the first of the queue in, if nobody is."""
        with self._mutex:
            if self.queue:
                gate, words = self.queue[0]
                if self.owner.setdefault(0, words) is words:
                    self.queue.popleft()
                    self._since = time.monotonic()
                    gate.release()

    @contextmanager
    def nobody_inside(self) -> Iterator[None]:
        """Keep every vCPU of the VM out of its engine for as long as the block takes; any thread, not nested."""
        nobody = _nobody()
        try:
            if self.owner.setdefault(0, nobody) is not nobody:
                self.wait(nobody, first=True)
            yield
        finally:
            self.give(nobody)

    def stop(self, patience: float) -> None:
        """Take the turn and never give it; give up after `patience` seconds."""
        nobody = _nobody()
        if self.owner.setdefault(0, nobody) is not nobody:
            self.wait(nobody, first=True, until=time.monotonic() + patience)

    def wait(self, words: memoryview, *, first: bool = False, until: float | None = None) -> None:
        """Line up for a turn and wait for it."""
        gate = threading.Lock()
        gate.acquire()
        entry = (gate, words)
        try:
            with self._mutex:
                if first:
                    self.queue.appendleft(entry)
                else:
                    self.queue.append(entry)
            if first and time.monotonic() - self._since >= SLICE_S:
                self._ask()
            while not gate.acquire(timeout=SLICE_S):
                now = time.monotonic()
                with self._mutex:
                    # Nobody hands over what was free when this one lined up.
                    if self.owner.setdefault(0, words) is words or (until is not None and now > until):
                        self._leave(entry)
                        return
                    is_next = self.queue[0] is entry
                if is_next and now - self._since >= SLICE_S:
                    self._ask()
        except BaseException:
            # An interrupt. It may have the turn by now; `give` sees to that.
            with self._mutex:
                self._leave(entry)
            self.give(words)
            raise

    def _leave(self, entry: tuple[threading.Lock, memoryview]) -> None:
        if entry in self.queue:
            self.queue.remove(entry)

    def _ask(self) -> None:
        """Ask the vCPU inside to stop before its next instruction."""
        inside = self.owner.get(0)
        if inside is not None:
            inside[ATTENTION] = 1


def _nobody() -> memoryview:
    """Return a control block of no vCPU, for whoever has the turn without one."""
    return memoryview(bytearray(8)).cast("Q")


_turns: weakref.WeakSet[Turn] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for turn in list(_turns):
        turn.stop(_LAST_S)


# In the child of a fork nobody is inside but on paper.
os.register_at_fork(after_in_child=_turns.clear)

"""Locks with a class each: what they protect, in which order they are taken, and who holds them.

Order, outermost first (a lock may be taken while holding those before it, never those after it):

    big lock → device locks → coalesced ring;   big lock → slots locks → gates;   any of these → dirty logs

With validation on (``ACCEL_LOCKDEP=1``, always in the tests) every acquisition is checked against the ranks of
the locks that the thread holds, and a violation raises `LockError` at the place of the mistake, whether or not
anyone would have deadlocked. Being inside a gate counts as holding it. With validation off, a `Lock` is the C
implementation of `threading.RLock`, methods and ``with`` included: it costs nothing extra on the path of a guest
exit, and no interrupt (Ctrl-C) falls between taking it and being inside the ``with``.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from attrs import frozen

from accel.errors import LockError


@frozen
class LockClass:
    """What all locks of one purpose have in common.

    Attributes:
        name: As it appears in errors and in ``docs/explanation/locking.md``.
        rank: Position in the order: lower is taken first, equal ranks never nest.
        protects: What may be touched only while holding it.
        comment: Why it exists.
        nests: Whether one thread may hold several of its rank; only where something else keeps two threads from
            taking them in different orders.
    """

    name: str
    rank: int
    protects: str
    comment: str = ""
    nests: bool = False


BIG_LOCK = LockClass(
    "big_lock",
    10,
    "region trees, address spaces, devices without a lock of their own, machine state",
    "one per VM; held from a transaction's begin to its end and around device handlers; never while inside a gate",
)
DEVICE_LOCK = LockClass(
    "device_lock",
    20,
    "one device that declares its own lock",
    "held neither at a gate nor at a transaction's begin",
)
RING_LOCK = LockClass(
    "ring_lock",
    30,
    "the read index of the coalesced ring",
    "a leaf: entries are taken out under it and handed to devices after it is released",
)
SLOTS_LOCK = LockClass(
    "slots_lock",
    40,
    "the slot table of one accelerator's memory listener",
    "held while a change is applied, from before the hold to after the last slot call; several are taken by "
    "transactions only, under the big lock",
    nests=True,
)
GATE = LockClass(
    "gate",
    45,
    "calls into the accelerator, which an inhibitor waits for",
    "no mutex: being inside counts as holding it, so nothing that an inhibitor holds may be taken inside",
)
GATES_LOCK = LockClass(
    "gates_lock",
    50,
    "the set of gates and the count of VM calls inside",
    "a leaf, held for a few instructions only, never around a call into the accelerator",
)
DIRTY_LOCK = LockClass(
    "dirty_lock",
    60,
    "the dirty bitmaps of one RAM block and the count of each client",
    "a leaf, taken by anyone at any time, inside a gate too; held for one pass over a bitmap at most",
)

LOCK_CLASSES = (BIG_LOCK, DEVICE_LOCK, RING_LOCK, SLOTS_LOCK, GATE, GATES_LOCK, DIRTY_LOCK)


class Ranked(Protocol):
    """What a thread can hold: a `Lock`, or a gate that it is inside of."""

    @property
    def lock_class(self) -> LockClass:
        """Its class."""


class _Held(threading.local):
    """What this thread holds, in the order it took it; filled only with validation on."""

    def __init__(self) -> None:
        self.what: list[Ranked] = []


_held = _Held()


def validation_enabled() -> bool:
    """Return whether locks and gates made from now on check their order."""
    return os.environ.get("ACCEL_LOCKDEP", "") not in ("", "0")


def check_order(wanted: LockClass) -> None:
    """Raise LockError if the calling thread holds something that is not taken before `wanted`."""
    for other in _held.what:
        rank = other.lock_class.rank
        if rank > wanted.rank or (rank == wanted.rank and not wanted.nests):
            chain = " → ".join(one.lock_class.name for one in _held.what)
            rule = f"it must be taken before {other.lock_class.name}" if rank > wanted.rank else "one at a time"
            raise LockError(f"{wanted.name} is taken while holding {chain}; {rule}")


def note_taken(what: Ranked) -> None:
    """Note that the calling thread holds `what` from now on."""
    _held.what.append(what)


def note_released(what: Ranked) -> None:
    """Note that the calling thread holds `what` once less; nothing happens if it does not."""
    for index in range(len(_held.what) - 1, -1, -1):
        if _held.what[index] is what:
            del _held.what[index]
            return


if TYPE_CHECKING:

    class _RLock:
        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
        def release(self) -> None: ...
        def __enter__(self) -> bool: ...
        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None: ...
        def _is_owned(self) -> bool: ...

else:
    # `threading.RLock` is a function; this is the class of what it makes.
    _RLock = type(threading.RLock())


class Lock(_RLock):
    """A re-entrant mutex of a `LockClass`, usable as a context manager; everything else is `threading.RLock`'s.

    With validation on, making one makes a lock that checks the order.
    """

    __slots__ = ("lock_class",)

    def __new__(cls, lock_class: LockClass) -> Lock:
        """Return a lock, of the kind that checks its order if validation is on."""
        return super().__new__(_CheckedLock if validation_enabled() else cls)

    def __init__(self, lock_class: LockClass) -> None:
        self.lock_class = lock_class

    def held(self) -> bool:
        """Return whether the calling thread holds it."""
        return self._is_owned()

    def assert_held(self) -> None:
        """Raise LockError unless the calling thread holds it."""
        if not self._is_owned():
            raise LockError(f"{self.lock_class.name} must be held here and is not")

    def assert_not_held(self, why: str) -> None:
        """Raise LockError if the calling thread holds it; `why` says what would go wrong."""
        if self._is_owned():
            raise LockError(f"{self.lock_class.name} is held: {why}")


class _CheckedLock(Lock):
    """A lock that checks its order before it is taken."""

    __slots__ = ()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it; see `threading.RLock.acquire`. Raises LockError if that is out of order."""
        if not self._is_owned():
            check_order(self.lock_class)
        taken = super().acquire(blocking, timeout)
        if taken:
            note_taken(self)
        return taken

    def release(self) -> None:
        """Release it once."""
        super().release()
        note_released(self)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

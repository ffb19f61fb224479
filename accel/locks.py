"""Locks with a class each: what they protect, in which order they are taken, and who holds them.

Order, outermost first (a lock may be taken while holding those before it, never those after it):

    big lock → device locks → coalesced ring;   big lock → slots locks → gates

With validation on (``ACCEL_LOCKDEP=1``, always in the tests) every acquisition is checked against the ranks of
the locks that the thread holds, and a violation raises `LockError` at the place of the mistake, whether or not
anyone would have deadlocked. With validation off, `Lock.acquire` and `Lock.release` are the C methods of a
`threading.RLock`, so a lock costs nothing extra on the path of a guest exit.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Any

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
    """

    name: str
    rank: int
    protects: str
    comment: str = ""


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
    "held while a change is applied, from before the hold to after the last slot call",
)
GATES_LOCK = LockClass(
    "gates_lock",
    50,
    "the set of gates and the count of VM calls inside",
    "a leaf, held for a few instructions only, never around a call into the accelerator",
)

LOCK_CLASSES = (BIG_LOCK, DEVICE_LOCK, RING_LOCK, SLOTS_LOCK, GATES_LOCK)


class _Held(threading.local):
    """The locks that this thread holds, in the order it took them; filled only with validation on."""

    def __init__(self) -> None:
        self.locks: list[Lock] = []


_held = _Held()


def validation_enabled() -> bool:
    """Return whether locks made from now on check their order."""
    return os.environ.get("ACCEL_LOCKDEP", "") not in ("", "0")


class Lock:
    """A re-entrant mutex of a `LockClass`, usable as a context manager.

    `acquire` takes the arguments of `threading.RLock.acquire`.
    """

    __slots__ = ("_lock", "acquire", "lock_class", "release")

    def __init__(self, lock_class: LockClass) -> None:
        self.lock_class = lock_class
        self._lock: Any = threading.RLock()
        if validation_enabled():
            self.acquire: Any = self._checked_acquire
            self.release: Any = self._checked_release
        else:
            self.acquire = self._lock.acquire
            self.release = self._lock.release

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def held(self) -> bool:
        """Return whether the calling thread holds it."""
        return bool(self._lock._is_owned())

    def assert_held(self) -> None:
        """Raise LockError unless the calling thread holds it."""
        if not self._lock._is_owned():
            raise LockError(f"{self.lock_class.name} must be held here and is not")

    def assert_not_held(self, why: str) -> None:
        """Raise LockError if the calling thread holds it; `why` says what would go wrong."""
        if self._lock._is_owned():
            raise LockError(f"{self.lock_class.name} is held: {why}")

    def _checked_acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not self.held():
            for other in _held.locks:
                if other.lock_class.rank >= self.lock_class.rank:
                    chain = " → ".join(lock.lock_class.name for lock in _held.locks)
                    raise LockError(
                        f"{self.lock_class.name} is taken while holding {chain}; "
                        f"it must be taken before {other.lock_class.name}"
                    )
        taken = bool(self._lock.acquire(blocking, timeout))
        if taken:
            _held.locks.append(self)
        return taken

    def _checked_release(self) -> None:
        self._lock.release()
        for index in range(len(_held.locks) - 1, -1, -1):
            if _held.locks[index] is self:
                del _held.locks[index]
                break

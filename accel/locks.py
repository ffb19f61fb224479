"""Locks with a class each: what they protect, in which order they are taken, and who holds them.

Order, outermost first (a lock may be taken while holding those before it, never those after it):

    waiting for a vCPU's thread → big lock;   big lock → device locks → coalesced ring;
    big lock → slots locks → gates;   any of these → dirty logs

With validation on (``ACCEL_LOCKDEP=1``, always in the tests) every acquisition is checked against the locks that the
thread holds: by the ranks of their classes, and by what any thread did before (`accel.lock_graph`). A violation raises
`LockError` at the place of the mistake, with a report, whether or not anyone would have deadlocked. Being inside a gate
counts as holding it, and so does owing others what they wait for (`completing`). With validation off, a `Lock` is the C
implementation of `threading.RLock`, methods and ``with`` included: it costs nothing extra on the path of a guest
exit, and no interrupt (Ctrl-C) falls between taking it and being inside the ``with``.

The classes are data and stand in `accel.lock_classes`; locks with readers stand in `accel.read_locks`.
"""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from accel import lock_graph
from accel.errors import LockError
from accel.lock_classes import BIG_LOCK as BIG_LOCK
from accel.lock_classes import DEVICE_LOCK as DEVICE_LOCK
from accel.lock_classes import DIRTY_LOCK as DIRTY_LOCK
from accel.lock_classes import GATE as GATE
from accel.lock_classes import GATES_LOCK as GATES_LOCK
from accel.lock_classes import LOCK_CLASSES as LOCK_CLASSES
from accel.lock_classes import RING_LOCK as RING_LOCK
from accel.lock_classes import SLOTS_LOCK as SLOTS_LOCK
from accel.lock_classes import VCPU_THREAD as VCPU_THREAD
from accel.lock_classes import LockClass as LockClass
from accel.lock_classes import LockUse, Mode
from accel.lock_graph import Entry
from accel.lock_graph import LockGraph as LockGraph

#: Where locks are taken for somebody else, whose place is the one to show.
_TAKERS = ("accel.gate", "accel.read_locks", "accel.locks", "accel.blocker", "contextlib")


class Ranked(Protocol):
    """What a thread can hold: a `Lock`, or a gate that it is inside of."""

    @property
    def lock_class(self) -> LockClass:
        """Its class."""


class _Held(threading.local):
    """What this thread holds, in the order it took it; filled only with validation on."""

    def __init__(self) -> None:
        self.what: list[Entry] = []


_held = _Held()


def validation_enabled() -> bool:
    """Return whether locks and gates made from now on check their order."""
    return lock_graph.current is not lock_graph.PROCESS or os.environ.get("ACCEL_LOCKDEP", "") not in ("", "0")


def check_order(wanted: LockClass, mode: Mode | None = None) -> None:
    """Raise LockError if the calling thread holds something that `wanted` must not be waited for with.

    Args:
        wanted: The class of what the thread is about to take, or to wait for.
        mode: How; by default as the class says.
    """
    if _held.what:
        _check(_held.what, wanted.uses[wanted.mode if mode is None else mode])


def _check(held: list[Entry], wanted: LockUse, *, waits: bool = True) -> None:
    graph = lock_graph.current
    known = graph.known
    for entry in held:
        if (entry[1], wanted) not in known:
            graph.admit(held, wanted, waits=waits)
            return


def note_taken(what: Ranked, mode: Mode | None = None) -> None:
    """Note that the calling thread holds `what` from now on.

    Args:
        what: What it took.
        mode: How; by default as its class says.
    """
    lock_class = what.lock_class
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in _TAKERS:
        frame = frame.f_back
    _held.what.append((what, lock_class.uses[lock_class.mode if mode is None else mode], frame.f_code, frame.f_lasti))


def note_released(what: Ranked) -> None:
    """Note that the calling thread holds `what` once less; nothing happens if it does not."""
    held = _held.what
    for index in range(len(held) - 1, -1, -1):
        if held[index][0] is what:
            del held[index]
            return


def waiting_for(wait_class: LockClass) -> None:
    """Say that the calling thread is about to wait until a thread that is `completing` this class has done so.

    Raises:
        LockError: It holds what such a thread may take first, or is itself such a thread.
    """
    check_order(wait_class, Mode.WAIT)


class completing:
    """A context in which the calling thread owes others what they wait for; whatever it takes inside comes first.

    Args:
        wait_class: What the others are `waiting_for`.
    """

    __slots__ = ("_checked", "lock_class")

    def __init__(self, wait_class: LockClass) -> None:
        self.lock_class = wait_class
        self._checked = validation_enabled()

    def __enter__(self) -> None:
        if self._checked:
            note_taken(self, Mode.DUTY)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        note_released(self)


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
        held = _held.what
        if held and not self._is_owned():
            _check(held, self.lock_class.uses[0], waits=blocking)
        frame = sys._getframe(1)
        taken = _RLock.acquire(self, blocking, timeout)
        if taken:
            held.append((self, self.lock_class.uses[0], frame.f_code, frame.f_lasti))
        return taken

    def release(self) -> None:
        """Release it once."""
        _RLock.release(self)
        note_released(self)

    def __enter__(self) -> bool:
        held = _held.what
        if held and not self._is_owned():
            _check(held, self.lock_class.uses[0])
        frame = sys._getframe(1)
        _RLock.acquire(self)
        held.append((self, self.lock_class.uses[0], frame.f_code, frame.f_lasti))
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _RLock.release(self)
        note_released(self)

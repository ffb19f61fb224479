"""Locks with readers: a reader/writer lock, and read sections whose end can be waited for, as in the kernel's SRCU.

Layer: above `accel.locks`, which validates them: with validation on, each acquisition and each wait is an edge of the
acquisition graph, with the mode that says who waits for whom (`accel.lock_classes.Mode`).

Both keep their state under a condition of their own, a leaf. They are Python code, for paths that are not hot; the
gates of vCPUs are what this project has for those.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

from accel.errors import LockError
from accel.lock_classes import Mode
from accel.locks import LockClass, check_order, note_released, note_taken, validation_enabled


class _Section:
    """A context that takes on entry and releases on exit."""

    __slots__ = ("_release", "_take")

    def __init__(self, take: Callable[[], object], release: Callable[[], None]) -> None:
        self._take = take
        self._release = release

    def __enter__(self) -> None:
        self._take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()


class RwLock:
    """Many readers or one writer. Neither side is re-entrant, but for readers of a lock that is not fair.

    A fair lock serves in the order of arrival, so a reader waits behind a writer that waits already, and a thread that
    reads twice may wait for itself: for the validator its readers are shared. With ``fair=False`` readers pass writers
    that wait; they are recursive, nobody waits for itself, and readers that never pause keep writers out for ever.

    Args:
        lock_class: Its class.
        fair: Whether readers wait behind writers.
    """

    def __init__(self, lock_class: LockClass, *, fair: bool = True) -> None:
        self.lock_class = lock_class
        self._read_mode = Mode.SHARED if fair else Mode.RECURSIVE
        self._checked = validation_enabled()
        # Guards what follows.
        self._changed = threading.Condition()
        # How often each thread reads, the thread that writes or 0, and who waits: true for writers.
        self._readers: dict[int, int] = {}
        self._writer = 0
        self._queue: deque[list[bool]] = deque()

    def read(self) -> _Section:
        """Return a context that reads."""
        return _Section(self.acquire_read, self.release_read)

    def write(self) -> _Section:
        """Return a context that writes."""
        return _Section(self.acquire_write, self.release_write)

    def acquire_read(self, timeout: float | None = None) -> bool:
        """Take it for reading; return False if `timeout` seconds were not enough.

        Raises:
            LockError: The thread writes, or, with validation on, this is out of order.
        """
        me = threading.get_ident()
        if self._checked:
            check_order(self.lock_class, self._read_mode)
        with self._changed:
            if self._writer == me:
                raise LockError(f"{self.lock_class.name} is wanted for reading by the thread that writes")
            if not self._wait(False, timeout):
                return False
            self._readers[me] = self._readers.get(me, 0) + 1
        if self._checked:
            note_taken(self, self._read_mode)
        return True

    def release_read(self) -> None:
        """Release it once; by the thread that took it. Raises LockError if it does not read."""
        me = threading.get_ident()
        with self._changed:
            if me not in self._readers:
                raise LockError(f"{self.lock_class.name} is not held for reading here")
            self._readers[me] -= 1
            if not self._readers[me]:
                del self._readers[me]
            self._changed.notify_all()
        note_released(self)

    def acquire_write(self, timeout: float | None = None) -> bool:
        """Take it for writing; return False if `timeout` seconds were not enough.

        Raises:
            LockError: The thread has it already, or, with validation on, this is out of order.
        """
        me = threading.get_ident()
        if self._checked:
            check_order(self.lock_class, Mode.EXCLUSIVE)
        with self._changed:
            if self._writer == me or me in self._readers:
                raise LockError(f"{self.lock_class.name} is wanted for writing by a thread that has it")
            if not self._wait(True, timeout):
                return False
            self._writer = me
        if self._checked:
            note_taken(self, Mode.EXCLUSIVE)
        return True

    def release_write(self) -> None:
        """Release it; by the thread that took it. Raises LockError if it does not write."""
        with self._changed:
            self._assert_writer()
            self._writer = 0
            self._changed.notify_all()
        note_released(self)

    def assert_read(self) -> None:
        """Raise LockError unless the calling thread reads or writes."""
        me = threading.get_ident()
        with self._changed:
            if self._writer != me and me not in self._readers:
                raise LockError(f"{self.lock_class.name} must be held here and is not")

    def assert_write(self) -> None:
        """Raise LockError unless the calling thread writes."""
        with self._changed:
            self._assert_writer()

    def _assert_writer(self) -> None:
        if self._writer != threading.get_ident():
            raise LockError(f"{self.lock_class.name} must be held for writing here and is not")

    def _wait(self, writes: bool, timeout: float | None) -> bool:
        """Wait until it is the caller's turn; under `_changed`."""
        # A list, since places are told apart by identity.
        place = [writes]
        self._queue.append(place)
        try:
            return self._changed.wait_for(lambda: self._may_pass(place), timeout)
        finally:
            # By index, since equal places are not the same place.
            del self._queue[next(index for index, one in enumerate(self._queue) if one is place)]
            self._changed.notify_all()

    def _may_pass(self, place: list[bool]) -> bool:
        if self._writer:
            return False
        if place[0]:
            return not self._readers and self._queue[0] is place
        if self._read_mode is Mode.RECURSIVE:
            return True
        for one in self._queue:
            if one is place:
                return True
            if one[0]:
                return False
        return False


class SrcuDomain:
    """Read sections that cost readers no wait, and a way to wait until those that were there before have ended.

    A writer publishes a new value, waits with `synchronize`, and may then release the old one: who still saw it has
    left. Readers that come later are not waited for. Sections nest, and a reader never waits for anybody.

    Whatever is held around `synchronize` must not be taken inside a section, which the validator sees from two threads
    that never met. What is released before `synchronize` may be.

    Args:
        lock_class: Its class.
    """

    def __init__(self, lock_class: LockClass) -> None:
        self.lock_class = lock_class
        self._checked = validation_enabled()
        # Guards what follows.
        self._changed = threading.Condition()
        # Each `synchronize` begins an epoch; how many readers began in each that has any.
        self._epoch = 0
        self._readers: dict[int, int] = {}

    def read(self) -> SrcuSection:
        """Return a context that is a read section; a new one each time."""
        return SrcuSection(self)

    def synchronize(self, timeout: float | None = None) -> bool:
        """Wait until every section that had begun has ended; return False if `timeout` seconds were not enough.

        Raises:
            LockError: With validation on: the thread is in a section, or holds what is taken in one.
        """
        if self._checked:
            check_order(self.lock_class, Mode.SYNC)
        with self._changed:
            self._epoch += 1
            mine = self._epoch
            return self._changed.wait_for(lambda: all(epoch >= mine for epoch in self._readers), timeout)

    def enter(self) -> int:
        """Begin a section; return what `leave` takes. Any thread may end it, but it is validated on one only."""
        with self._changed:
            epoch = self._epoch
            self._readers[epoch] = self._readers.get(epoch, 0) + 1
        return epoch

    def leave(self, epoch: int) -> None:
        """End a section that `enter` began."""
        with self._changed:
            self._readers[epoch] -= 1
            if not self._readers[epoch]:
                del self._readers[epoch]
                self._changed.notify_all()


class SrcuSection:
    """One read section of an `SrcuDomain`, as a context."""

    __slots__ = ("_domain", "_epoch", "lock_class")

    def __init__(self, domain: SrcuDomain) -> None:
        self._domain = domain
        self._epoch = 0
        self.lock_class = domain.lock_class

    def __enter__(self) -> None:
        if self._domain._checked:
            check_order(self.lock_class, Mode.RECURSIVE)
        self._epoch = self._domain.enter()
        if self._domain._checked:
            note_taken(self, Mode.RECURSIVE)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._domain.leave(self._epoch)
        note_released(self)

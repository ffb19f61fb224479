"""MMU notifiers: the host tells that it is about to unmap pages of guest memory, and that it has.

Between the two, which are a pair, no page fault may map such a page; and no set of memslots may be replaced while any
pair is open, since what began with one set must end with it. Source: the kernel's commit "KVM: Block memslot updates
across range_start() and range_end()", on the locking page.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accel.locks import Lock, completing, waiting_for
from accel_mock.kvm.lock_classes import MN_ACTIVE, MN_INVALIDATE


class MmuNotifiers:
    """The pairs of one VM.

    Args:
        unmap: Takes what is mapped of host addresses [start, end) out of the shadow page table, and flushes TLBs.

    Attributes:
        sequence: Grows with every pair that ends; read before a fault looks the host's page up.
    """

    def __init__(self, unmap: Callable[[int, int], None]) -> None:
        self.sequence = 0
        self._unmap = unmap
        # Guards what follows; the wait for none is on `_none`.
        self._lock = Lock(MN_INVALIDATE)
        self._none = threading.Condition(self._lock)  # type: ignore[arg-type]
        # Open pairs: those that count for memslot updates, and the ranges of those that count for faults.
        self._active = 0
        self._ranges: list[tuple[int, int]] = []

    def invalidate_range_start(self, start: int, end: int) -> None:
        """Hear that host addresses [start, end) are about to be unmapped: nothing of them is mapped from now on."""
        with self._lock:
            self._active += 1
            self._ranges.append((start, end))
        self._unmap(start, end)

    def invalidate_range_end(self, start: int, end: int) -> None:
        """Hear that they were; wakes a memslot update that waits for the last pair to end."""
        with self._lock:
            self.sequence += 1
            self._ranges.remove((start, end))
            self._active -= 1
            if not self._active:
                self._none.notify_all()

    @contextmanager
    def invalidating(self, start: int, end: int) -> Iterator[None]:
        """Return a context that is a pair."""
        with completing(MN_ACTIVE):
            self.invalidate_range_start(start, end)
            try:
                yield
            finally:
                self.invalidate_range_end(start, end)

    def retry(self, sequence: int, address: int) -> bool:
        """Return whether what a fault found for a host address at `sequence` may be old; under the MMU lock."""
        with self._lock:
            return self.sequence != sequence or any(start <= address < end for start, end in self._ranges)

    @contextmanager
    def none_active(self) -> Iterator[None]:
        """Wait until no pair is open, and keep new ones from opening inside the block, which must not wait.

        Not fair: pairs that overlap each other may keep it waiting for ever, which the kernel accepts too.
        """
        waiting_for(MN_ACTIVE)
        with self._none:
            self._none.wait_for(lambda: not self._active)
            yield

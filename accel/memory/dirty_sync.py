"""Dirty logs across accelerators: bringing in what they noted, and logging all memory at once.

What host and devices write is marked at once (`accel.memory.dirty`); what the guest writes, only the accelerator
knows, until its listener is asked (``log_sync``). Source: the dirty log of QEMU's memory API
(include/system/memory.h), the rules only. Layer: above `transaction`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from accel.errors import StateError
from accel.memory.dirty import DirtyClient, DirtyLog, DirtySnapshot
from accel.memory.listener import MemoryListener, falling, name_listener, overrides, rising, tell
from accel.memory.region import MemoryRegion

if TYPE_CHECKING:
    from accel.memory.transaction import Transactions


class DirtySync:
    """The dirty logs of one VM; all methods take the big lock.

    Args:
        transactions: The VM's.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        # Guarded by the big lock: how often all memory is logged, and the logs that were started for it.
        self._count = 0
        self._logs: list[DirtyLog] = []
        transactions.cover = lambda region: self._cover(region, is_new=True)

    @property
    def is_global(self) -> bool:
        """Whether all memory is logged."""
        return self._count > 0

    def start_global(self) -> None:
        """Log all memory for `DirtyClient.MIGRATION`; counted. Memory that comes later is logged, all of it dirty.

        Raises:
            AccelError: A listener cannot do it; nothing is logged that was not.
            ListenerError: The same, where it raised something that is no AccelError.
            StateError: A transaction is open.
        """
        with self._transactions.exclusive(), self._transactions.transaction():
            self._set_count(self._count + 1)
            if self._count > 1:
                return
            self._start_listeners()
            self._transactions.journal(self._stop_listeners)
            self._log_all(int(DirtyClient.MIGRATION))

    def stop_global(self) -> None:
        """Take back one `start_global`; after the last, the bits are gone.

        Raises:
            StateError: There was none, or a transaction is open.
        """
        with self._transactions.exclusive(), self._transactions.transaction():
            if not self._count:
                raise StateError("all memory is not logged, so that cannot stop")
            self._set_count(self._count - 1)
            if not self._count:
                self._log_all(0)
                self._transactions.defer(self._stop_listeners)

    def sync(self, region: MemoryRegion | None = None) -> None:
        """Bring in what the accelerators know of written pages, of one region or of all that is logged.

        O(sections of the views). A page that is written meanwhile is in this log or in the next.

        Raises:
            AccelError: A listener failed; what was brought in stays in the logs.
            StateError: A transaction is open.
        """
        with self._transactions.exclusive():
            asked: list[MemoryListener] = []
            for space in self._transactions.spaces:
                logged = [section for section in space.view if section.log_mask and region in (None, section.region)]
                for listener in space.listeners:
                    if overrides(listener, "log_sync_global"):
                        if not any(listener is other for other in asked):
                            asked.append(listener)
                            self._call(listener, "log_sync_global")
                    elif overrides(listener, "log_sync"):
                        for section in logged:
                            self._call(listener, "log_sync", section)
            if region is None:
                for listener in self._listeners():
                    self._call(listener, "log_global_after_sync")

    def collect(
        self, region: MemoryRegion, client: DirtyClient, offset: int = 0, size: int | None = None
    ) -> DirtySnapshot:
        """Return which pages of a part of `region` were written, and forget that for `client`.

        Args:
            region: RAM that `client` logs.
            client: Who asks.
            offset: Where the part begins.
            size: Its bytes; to the region's end where it is None.

        Raises:
            StateError: `client` does not log it, or a transaction is open.
            AccelError: See `sync`.
        """
        size = region.size - offset if size is None else size
        with self._transactions.exclusive():
            self.sync(region)
            snapshot = region.dirty_log().collect(client, offset, size)
            # The listener notes the pages again from now on; whoever reads them does so later.
            for space in self._transactions.spaces:
                listeners = [one for one in space.listeners if overrides(one, "log_clear")]
                for section in space.view if listeners else ():
                    start = max(snapshot.offset, section.offset)
                    end = min(snapshot.offset + snapshot.size, section.offset + section.range.size)
                    if section.region is region and start < end:
                        shift = section.range.start - section.offset
                        for listener in listeners:
                            self._call(listener, "log_clear", section.part(start + shift, end + shift))
            return snapshot

    # inside

    def _listeners(self) -> list[MemoryListener]:
        return rising(one for space in self._transactions.spaces for one in space.listeners)

    def _set_count(self, count: int) -> None:
        old = self._count
        self._transactions.journal(lambda: setattr(self, "_count", old))
        self._count = count

    def _start_listeners(self) -> None:
        started: list[MemoryListener] = []
        for listener in self._listeners():
            try:
                self._call(listener, "log_global_start")
            except BaseException:
                for other in falling(started):
                    tell(other, "log_global_stop", other.log_global_stop)
                raise
            started.append(listener)

    def _stop_listeners(self) -> None:
        for listener in falling(self._listeners()):
            tell(listener, "log_global_stop", listener.log_global_stop)
        for log in self._logs:
            log.stop(DirtyClient.MIGRATION)
        self._logs.clear()

    def _log_all(self, mask: int) -> None:
        transactions = self._transactions
        old = transactions.log_mask
        transactions.journal(lambda: setattr(transactions, "log_mask", old))
        transactions.log_mask = mask
        transactions.damage_all()
        if mask:
            for space in transactions.spaces:
                for section in space.view:
                    if section.region.block is not None:
                        self._cover(section.region, is_new=False)

    def _cover(self, region: MemoryRegion, *, is_new: bool) -> None:
        """Log `region`, which comes into a view while all memory is logged; new contents are dirty."""
        log = region.dirty_log()
        if not any(log is other for other in self._logs):
            log.start(DirtyClient.MIGRATION)
            self._logs.append(log)
            if is_new and region.block is not None:
                log.mark(0, region.block.max_size, DirtyClient.MIGRATION)

    @staticmethod
    def _call(listener: MemoryListener, step: str, *arguments: object) -> None:
        try:
            getattr(listener, step)(*arguments)
        except Exception as error:
            named = name_listener(error, listener.name, step)
            if named is error:
                raise
            raise named from error

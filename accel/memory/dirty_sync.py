"""Dirty logs across accelerators: bringing in what they noted, and logging all memory at once.

What host and devices write is marked at once (`accel.memory.dirty`); what the guest writes, only the accelerator
knows, until its listener is asked (``log_sync``) or the mapping goes. What it owes is in `accel.memory.listener`. So a
written page is at each moment in the log, or noted by a listener that will be asked: who collects until nobody writes
any more has missed none.

Source: the dirty log of QEMU's memory API (include/system/memory.h), the rules only. Layer: above `transaction`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

from accel.address import AddressRange
from accel.errors import StateError
from accel.interrupts import interrupts_held_back
from accel.memory.damage import Damage
from accel.memory.dirty import DirtyClient, DirtyLog, DirtySnapshot
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.listener import MemoryListener, call, falling, overrides, tell_all
from accel.memory.region import MemoryRegion

if TYPE_CHECKING:
    from accel.memory.address_space import AddressSpace
    from accel.memory.transaction import Transactions

_Shown = list[tuple["AddressSpace", list[MemoryRegionSection]]]


class DirtySync:
    """The dirty logs of one VM; all methods take the big lock, and none works inside a transaction.

    Args:
        transactions: The VM's.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        # Guarded by the big lock: how often all memory is logged, and the logs that were started for it, by identity.
        self._count = 0
        self._logs: dict[int, DirtyLog] = {}
        transactions.cover = self._cover_new

    @property
    def is_global(self) -> bool:
        """Whether all memory is logged."""
        return self._count > 0

    def start_global(self) -> None:
        """Log all memory for `DirtyClient.MIGRATION`; counted. Memory that comes later is logged, all of it dirty.

        Raises:
            AccelError: A listener cannot do it, or there is no memory for the bitmaps; nothing is logged that was not.
            StateError: A transaction is open.
        """
        with self._transactions.exclusive(), self._transactions.transaction(), interrupts_held_back():
            self._set_count(self._count + 1)
            if self._count > 1:
                return
            with self._transactions.telling():
                self._start_listeners()
            self._transactions.journal(self._stop)
            for space in self._transactions.spaces:
                for section in space.view:
                    if section.region.block is not None:
                        self._cover(section.region)
            self._set_mask(int(DirtyClient.MIGRATION))

    def stop_global(self) -> None:
        """Take back one `start_global`; after the last, the bits are gone.

        Raises:
            AccelError: A listener refused; all memory is still logged.
            StateError: There was no `start_global`, or a transaction is open.
        """
        with self._transactions.exclusive(), self._transactions.transaction():
            if not self._count:
                raise StateError("not all memory is logged, so that cannot stop")
            self._set_count(self._count - 1)
            if not self._count:
                self._set_mask(0)
                self._transactions.defer(self._stop)

    def sync(self, region: MemoryRegion | None = None) -> None:
        """Bring in what the accelerators noted of written pages, of one region or of all that is logged.

        Listeners are asked by priority: once each, or for each logged section, space by space and upward. A page that
        is written meanwhile is in this log or in the next. O(sections that show the region), or O(all sections).

        Raises:
            AccelError: A listener failed; what was brought in stays in the logs.
            StateError: A transaction is open.
        """
        with self._transactions.exclusive(), interrupts_held_back(), self._transactions.telling():
            self._sync(self._shown(region))
            if region is None:
                for listener in self._transactions.listeners:
                    call(listener, "log_global_after_sync", listener.log_global_after_sync)

    def collect(
        self, region: MemoryRegion, client: DirtyClient, offset: int = 0, size: int | None = None
    ) -> DirtySnapshot:
        """Return which pages of a part of `region` were written, and forget that for `client`.

        Read the pages afterwards: what is written between is in the next snapshot as well. O(pages / 8) besides `sync`.

        Args:
            region: RAM that `client` logs.
            client: Who asks.
            offset: Where the part begins.
            size: Its bytes; to the region's end where it is None.

        Raises:
            AccelError: A listener failed; nothing is forgotten.
            AddressError: The part is not inside.
            StateError: `client` does not log it, or a transaction is open.
        """
        size = region.size - offset if size is None else size
        with self._transactions.exclusive(), interrupts_held_back(), self._transactions.telling():
            log = region.dirty_log()
            # Refuses what `collect` would, before anybody is asked.
            log.is_dirty(client, offset, size)
            shown = self._shown(region)
            self._sync(shown)
            snapshot = log.collect(client, offset, size)
            try:
                self._clear(shown, snapshot)
            except BaseException:
                for window in snapshot.ranges():
                    log.mark(window.start, window.size, client)
                raise
            return snapshot

    # asking listeners

    def _shown(self, region: MemoryRegion | None) -> _Shown:
        """Return the logged sections, all or those of `region`, space by space and ascending."""
        spaces = self._transactions.spaces
        if region is None:
            return [(space, [section for section in space.view if section.log_mask]) for space in spaces]
        places = Damage({space.root for space in spaces})
        places.note(region, 0, region.size)
        shown = []
        for space in spaces:
            found = {
                section.range.start: section
                for start, end in places.windows(space.root)
                for section in space.view.overlapping(AddressRange(start, end))
                if section.region is region and section.log_mask
            }
            shown.append((space, [found[start] for start in sorted(found)]))
        return shown

    def _sync(self, shown: _Shown) -> None:
        listeners = self._transactions.listeners
        with self._transactions.held() if any(one.log_sync_needs_hold for one in listeners) else nullcontext():
            self._ask(shown)

    def _ask(self, shown: _Shown) -> None:
        for listener in self._transactions.listeners:
            if overrides(listener, "log_sync_global"):
                call(listener, "log_sync_global", listener.log_sync_global)
            elif overrides(listener, "log_sync"):
                for section in _heard(listener, shown):
                    call(listener, "log_sync", listener.log_sync, section)

    def _clear(self, shown: _Shown, snapshot: DirtySnapshot) -> None:
        """Tell that the listeners' part of the log was collected. Whoever reads the pages does so later."""
        for listener in self._transactions.listeners:
            if overrides(listener, "log_clear"):
                for section in _heard(listener, shown):
                    shift = section.range.start - section.offset
                    start = max(snapshot.offset + shift, section.range.start)
                    end = min(snapshot.offset + snapshot.size + shift, section.range.end)
                    if start < end:
                        call(listener, "log_clear", listener.log_clear, section.part(start, end))

    # all memory

    def _set_count(self, count: int) -> None:
        self._transactions.journal(partial(setattr, self, "_count", self._count))
        self._count = count

    def _set_mask(self, mask: int) -> None:
        transactions = self._transactions
        transactions.journal(partial(setattr, transactions, "log_mask", transactions.log_mask))
        transactions.log_mask = mask
        transactions.damage_all()

    def _start_listeners(self) -> None:
        started: list[MemoryListener] = []
        for listener in self._transactions.listeners:
            try:
                call(listener, "log_global_start", listener.log_global_start)
            except BaseException:
                tell_all(falling(started), "log_global_stop")
                raise
            started.append(listener)

    def _stop(self) -> None:
        """Log all memory no more: what `stop_global` puts off, and how `start_global` is taken back."""
        logs, self._logs = self._logs, {}
        for log in logs.values():
            log.stop(DirtyClient.MIGRATION)
        with self._transactions.telling():
            tell_all(falling(self._transactions.listeners), "log_global_stop")

    def _cover(self, region: MemoryRegion) -> Callable[[], None] | None:
        """Log `region` while all memory is logged; return how to make all of it dirty, or None if it is logged."""
        log = region.dirty_log()
        if id(log) in self._logs:
            return None
        log.start(DirtyClient.MIGRATION)
        self._logs[id(log)] = log
        self._transactions.journal(partial(self._uncover, log))
        return partial(log.mark, 0, log.size, DirtyClient.MIGRATION)

    def _cover_new(self, region: MemoryRegion) -> None:
        """Log `region`, which comes into a view; nobody has its contents, so all of them are dirty."""
        mark = self._cover(region)
        if mark is not None:
            # Once it is in force: a client that logs it already keeps its bits where it is not.
            self._transactions.defer(mark)

    def _uncover(self, log: DirtyLog) -> None:
        if self._logs.pop(id(log), None) is not None:
            log.stop(DirtyClient.MIGRATION)


def _heard(listener: MemoryListener, shown: _Shown) -> Iterable[MemoryRegionSection]:
    for space, sections in shown:
        if any(one is listener for one in space.listeners):
            yield from sections

"""Memory listeners: who is told when an address space changes, and in which order.

Callback names and priorities are QEMU's (include/system/memory.h). In one transaction a listener hears ``begin``;
then, for each space it listens to, what goes and what comes; then ``prepare``; and in the end ``commit`` once
everything is in force, or ``abort`` if nothing is:

1. section by section, ``eventfd_del`` and ``coalesced_io_del`` for what goes, then ``region_del`` for each section
   that goes;
2. ``region_add`` for a section that comes, ``region_nop`` for one that stays, and after that ``log_start`` or
   ``log_stop`` where its log mask changed;
3. section by section, ``coalesced_io_add`` and ``eventfd_add`` for what comes.

Each of the three goes upward by address. Whoever's ``begin`` was called, even if it raised, hears one of ``commit``
and ``abort``, once. A section that moves or is cut goes and comes with all its queued ranges and ioeventfds.

Among listeners, whatever begins, adds or starts goes from low priority to high; what deletes, stops or aborts from
high to low; equal priorities in order of registration, in whichever space. Registering a listener with a space replays
the whole view to it as additions, with ``log_global_start`` before if that is on; removing it mirrors that.

``region_nop`` is told for all that stays, so a listener that overrides it makes each commit cost as much as the map
has sections. No other callback does. No callback may edit memory.

A listener that makes the change real (an accelerator) also implements `prepare`: it notes the sections while it
hears them, and hands back an `Update` that the transaction applies, with everyone held if it asks for it.

Dirty logs
----------
What an accelerator that logs the guest's writes owes, so that no written page is ever missing from
``section.region.dirty``:

- *From when.* A section that comes with a `log_mask` is logged from its mapping's first moment; one whose mask
  becomes more than 0 (``log_start``) from `apply` on; until its mask is 0 (``log_stop``) or it goes.
- *What goes.* Before a mapping that logs is deleted, in `apply` and in `undo` alike, the pages that it noted are merged
  into the log, though nobody asked: the region may be shown elsewhere a moment later, or again in the same place.
  The vCPUs must not be able to write between the two, so the update sets `needs_hold`. Pages that were merged by a
  change that is undone stay merged: they were written.
- *log_sync* merges what is noted, and may leave it noted.
- *log_clear* is told after the log was collected. It lets go of those noted pages only that a ``log_sync`` merged,
  and has the next write to them noted. A page that was noted since must stay: nobody has seen it yet.

One page too many in a log costs a copy; one too few loses data.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from accel.errors import AccelError, ListenerError
from accel.locks import Lock

if TYPE_CHECKING:
    from accel.address import AddressRange
    from accel.memory.flat_view import MemoryRegionSection
    from accel.memory.ioeventfd import IoEventFd

_log = logging.getLogger("accel.memory")

P = ParamSpec("P")
R = TypeVar("R")

PRIORITY_MIN = 0
PRIORITY_ACCEL = 10
PRIORITY_DEV_BACKEND = 10


class Update(ABC):
    """What a listener is about to do. All methods are called under the big lock and `lock`.

    Attributes:
        needs_hold: Whether the guest could see half of it, or of its undoing after a step of its own failed, unless
            every vCPU is held.
        needs_hold_unless_last: Whether the guest could see half of its undoing after all its steps were made. That
            happens where another update of the same commit comes later and fails, so a hold is needed if there is one.
        watches: Whether it changes nothing and only hears when the others do, so that it is no reason for a hold.
        lock: Held from before the hold to after the last step, if there is one.
    """

    needs_hold: bool = False
    needs_hold_unless_last: bool = False
    watches: bool = False
    lock: Lock | None = None

    @abstractmethod
    def apply(self) -> None:
        """Make the change real, step by step. Raises if a step fails; `undo` is called next."""

    @abstractmethod
    def undo(self) -> None:
        """Take back every step that was made, newest first.

        Raises:
            AccelError: A step could not be taken back; the VM's map is lost.
        """


class UpdateInTurn(Update):
    """Two updates of one listener, one after the other; undone in reverse. At most one of them has a lock."""

    def __init__(self, first: Update, second: Update) -> None:
        self.needs_hold = first.needs_hold or first.needs_hold_unless_last or second.needs_hold
        self.needs_hold_unless_last = second.needs_hold_unless_last
        self.lock = first.lock or second.lock
        self._left = [first, second]
        self._begun: list[Update] = []

    def apply(self) -> None:
        """Apply the first, then the second."""
        for update in self._left:
            self._begun.append(update)
            update.apply()

    def undo(self) -> None:
        """Undo what was begun, the second first."""
        while self._begun:
            self._begun[-1].undo()
            self._begun.pop()


class MemoryListener:
    """Base of memory listeners; every callback does nothing. All run under the big lock.

    A callback before `prepare` that raises, or `prepare` itself, refuses the change: everything is as it was.

    Attributes:
        name: For messages.
        priority: See the module's text.
        origin: Whose it is and how to do without it, for messages; of a listener that a plugin's hook brought.
        log_sync_needs_hold: Whether `log_sync` is complete only with all vCPUs out of the guest.
    """

    name: str = "listener"
    priority: int = PRIORITY_MIN
    origin: str | None = None
    log_sync_needs_hold: bool = False

    # a transaction

    def begin(self) -> None:
        """A transaction tells its changes now; forget what is left of an earlier one."""

    def region_del(self, section: MemoryRegionSection) -> None:
        """`section` goes."""

    def region_add(self, section: MemoryRegionSection) -> None:
        """`section` comes. Its `log_mask` says who logs it from the start."""

    def region_nop(self, section: MemoryRegionSection) -> None:
        """`section` stays as it is, but perhaps for its log mask, queued ranges and ioeventfds."""

    def log_start(self, section: MemoryRegionSection, old: int, new: int) -> None:
        """`section` stays and is logged for more clients than before: mask `old` becomes `new`."""

    def log_stop(self, section: MemoryRegionSection, old: int, new: int) -> None:
        """`section` stays and is logged for fewer clients than before: mask `old` becomes `new`.

        Where a mask gains one client and loses another, both are told, `log_start` first.
        """

    def coalesced_io_add(self, section: MemoryRegionSection, window: AddressRange) -> None:
        """Writes to `window`, addresses of `section`, may be queued."""

    def coalesced_io_del(self, section: MemoryRegionSection, window: AddressRange) -> None:
        """Writes to `window`, addresses of `section`, are not queued any more."""

    def eventfd_add(self, section: MemoryRegionSection, eventfd: IoEventFd) -> None:
        """Writes in `section` ring `eventfd`, whose offset is the address in the space."""

    def eventfd_del(self, section: MemoryRegionSection, eventfd: IoEventFd) -> None:
        """Writes in `section` do not ring `eventfd` any more."""

    def prepare(self) -> Update | None:
        """Return what to apply for the changes heard since `begin`, or None; nothing has changed yet.

        Raises:
            AccelError: The change cannot be made; the transaction is rolled back.
        """
        return None

    def commit(self) -> None:
        """All changes are in force and the vCPUs run again. What it raises is logged; there is no veto."""

    def abort(self) -> None:
        """The transaction was rolled back: forget what was heard since `begin`. What it raises is logged."""

    # dirty logs, outside of transactions

    def log_sync(self, section: MemoryRegionSection) -> None:
        """Merge the written pages of `section` that were noted into ``section.region.dirty``."""

    def log_sync_global(self) -> None:
        """The same for everything at once; a listener overrides this one or `log_sync`."""

    def log_clear(self, section: MemoryRegionSection) -> None:
        """The log of `section` was collected: note again the pages that were merged, and keep the others."""

    def log_global_start(self) -> None:
        """All memory is going to be logged: each section's mask follows. Raises AccelError if that cannot be."""

    def log_global_stop(self) -> None:
        """Memory is logged only where its own mask says so again."""

    def log_global_after_sync(self) -> None:
        """All listeners have merged what they knew."""


def overrides(listener: MemoryListener, callback: str) -> bool:
    """Return whether `listener` has a `callback` of its own, so that it is worth calling."""
    own: object = getattr(listener, callback)
    return getattr(own, "__func__", None) is not getattr(MemoryListener, callback)


def call(listener: MemoryListener, step: str, function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """Call `function`, which does `step` for `listener`.

    Raises:
        AccelError: It raised this, which now says the listener's name, its plugin if it has one, and the step.
        ListenerError: It raised some other exception, which is the cause.
    """
    try:
        return function(*arguments, **options)
    except AccelError as error:
        if error.listener is None:
            blame(listener, step, error)
        raise
    except Exception as error:
        failed = ListenerError(listener.name, step, error)
        blame(listener, step, failed)
        raise failed from error


def blame(listener: MemoryListener, step: str, error: AccelError) -> None:
    """Note in `error` that `listener` raised it in `step`."""
    error.listener, error.step, error.origin = listener.name, step, listener.origin


def tell(listener: MemoryListener, step: str) -> None:
    """Make a call that must not fail: what it raises is logged."""
    try:
        getattr(listener, step)()
    except Exception:  # noqa: BLE001 - what happened is not to be changed by who hears of it
        origin = "" if listener.origin is None else f" ({listener.origin})"
        _log.exception("memory listener '%s' failed in %s%s", listener.name, step, origin)


def tell_all(listeners: Iterable[MemoryListener], step: str) -> None:
    """Make the same call to each, which must not fail; what ends the program does so once all have heard."""
    end: BaseException | None = None
    for listener in listeners:
        try:
            tell(listener, step)
        except BaseException as error:  # noqa: BLE001 - raised below
            end = end or error
    if end is not None:
        raise end


def rising(listeners: Iterable[MemoryListener]) -> list[MemoryListener]:
    """Return `listeners`, each once, from low priority to high, equal ones as they are."""
    unique = {id(listener): listener for listener in listeners}
    return sorted(unique.values(), key=lambda one: one.priority)


def falling(listeners: Iterable[MemoryListener]) -> list[MemoryListener]:
    """Return `listeners` from high priority to low, equal ones as they are."""
    return sorted(listeners, key=lambda one: -one.priority)

"""Memory transactions: journalled edits, savepoints, and one commit in phases.

record → prepare → hold → apply → publish → resume → observe, as ``docs/explanation/architecture.md`` draws it.
Edits are journalled while the big lock is held; each nested ``with`` is a savepoint. Only the outermost commit
acts: listeners note the change, those that make it real plan it and may refuse, vCPUs are held if a plan asks for
it, the steps are applied, the new views are published, the vCPUs go on. If any step fails, everything is
undone under the same hold and the tree goes back, so the map before stays in force.

An interrupt (Ctrl-C) counts as a failure until the first step is applied; from there to the last observer it waits.
Publishing empties the journal, so whatever is raised later takes nothing back; and a journal that an interrupt
kept from being taken back is taken back before the next transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from accel.blocker import AccelBlocker
from accel.errors import ClosedError, LockError, MapLostError, StateError, UsageError
from accel.interrupts import interrupts_held_back
from accel.locks import Lock
from accel.memory.flat_view import FlatView, MemoryRegionSection, diff, render
from accel.memory.listener import MemoryListener, Update

if TYPE_CHECKING:
    from accel.memory.address_space import AddressSpace

_log = logging.getLogger("accel.memory")

Atomic = Literal["address", "map"]


@frozen
class _SpaceChange:
    """One space's part in a commit."""

    space: AddressSpace
    old: FlatView
    new: FlatView
    listeners: tuple[MemoryListener, ...]


class Transactions:
    """The transactions of one VM.

    Args:
        big_lock: Held from begin to end of each.
        blocker: Holds the vCPUs.
        hold: ``inhibit``, or ``unsafe`` to hold nobody (but for ``atomic="map"``).
        inhibit_timeout: Longest wait for the vCPUs, in seconds.
        before_commit: Called before a change is made, to deliver what the guest did under the map before. Edits
            that it makes become part of the change.

    Attributes:
        commits: Outermost transactions that changed a view.
        unheld: Those of them that held nobody.
    """

    def __init__(
        self,
        big_lock: Lock,
        blocker: AccelBlocker,
        *,
        hold: str = "inhibit",
        inhibit_timeout: float = 10.0,
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self.big_lock = big_lock
        self.commits = 0
        self.unheld = 0
        self._blocker = blocker
        self._hold = hold
        self._inhibit_timeout = inhibit_timeout
        self._before_commit = before_commit
        self._spaces: list[AddressSpace] = []
        # Guarded by the big lock: the undo of each edit, oldest first.
        self._journal: list[Callable[[], None]] = []
        self._depth = 0
        self._whole_map = False
        self._committing = False
        self._closed = False

    def close(self) -> None:
        """Refuse transactions from now on: the accelerator's side is gone. Takes the big lock."""
        with self.big_lock:
            self._closed = True

    def add_space(self, space: AddressSpace) -> None:
        """Make `space` part of every commit."""
        with self.big_lock:
            self._spaces.append(space)

    @property
    def active(self) -> bool:
        """Whether the calling thread is inside a transaction."""
        return self.big_lock.held() and self._depth > 0

    @contextmanager
    def transaction(self, atomic: Atomic = "address") -> Iterator[None]:
        """Open a transaction, or a savepoint inside the open one; takes the big lock.

        Args:
            atomic: ``address``: each address goes straight from its old meaning to its new one. ``map``: the
                vCPUs are always held, so that the guest sees all of the change or none.

        Raises:
            AccelError: The commit was refused or failed; the map before is in force.
            MapLostError: A failed change could not be undone, now or before; the guest never runs again.
            StateError: Called by a listener during a commit.
            ClosedError: The VM is closed.
            UsageError: `atomic` is neither.
        """
        if atomic not in ("address", "map"):
            raise UsageError(f"atomic = {atomic!r}: must be 'address' or 'map'")
        with self.big_lock:
            self._check_idle()
            savepoint = len(self._journal)
            self._depth += 1
            self._whole_map |= atomic == "map"
            try:
                yield
                if self._depth == 1 and self._journal:
                    self._commit()
                    self._journal.clear()
            except BaseException:
                with interrupts_held_back():
                    self._roll_back(savepoint)
                raise
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._whole_map = False

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Take the big lock for something that must not happen inside a transaction. Raises StateError."""
        with self.big_lock:
            self._check_idle()
            if self._depth:
                raise StateError("listeners are registered and removed outside of transactions")
            yield

    def journal(self, undo: Callable[[], None]) -> None:
        """Note how to take back the edit that is being made; needs the big lock.

        Raises:
            LockError: No transaction is open.
        """
        if not self.active:
            raise LockError("a region is edited outside of a transaction")
        self._journal.append(undo)

    def replay(self, space: AddressSpace, listener: MemoryListener, old: FlatView, new: FlatView) -> None:
        """Take one listener from `old` to `new`, applying what it asks for; needs the big lock."""
        self._perform([_SpaceChange(space, old, new, (listener,))], publish=False)

    def _check_idle(self) -> None:
        if self._closed:
            raise ClosedError("the VM is closed, so its memory does not change any more")
        if self._committing:
            raise StateError("memory cannot be edited by a listener while a transaction commits")
        if not self._depth:
            self._roll_back(0)

    def _roll_back(self, savepoint: int) -> None:
        while len(self._journal) > savepoint:
            self._journal[-1]()
            self._journal.pop()

    def _commit(self) -> None:
        self._before_commit()
        changes = []
        for space in self._spaces:
            new = render(space.root)
            if new != space.view:
                changes.append(_SpaceChange(space, space.view, new, space.listeners))
        if changes:
            self._perform(changes, publish=True)

    # the phases

    def _perform(self, changes: Sequence[_SpaceChange], *, publish: bool) -> None:
        self._blocker.check()
        listeners: list[MemoryListener] = []
        for change in changes:
            listeners.extend(one for one in change.listeners if one not in listeners)
        listeners.sort(key=lambda one: one.priority)
        in_force = False
        self._committing = True
        try:
            self._record(changes, listeners)
            updates = [update for one in listeners if (update := one.prepare()) is not None]
            with interrupts_held_back():
                self._apply_held(changes, updates, publish=publish)
                in_force = True
                for listener in listeners:
                    self._tell(listener, "commit")
        except BaseException:
            if not in_force:
                with interrupts_held_back():
                    for listener in _falling(listeners):
                        self._tell(listener, "abort")
            raise
        finally:
            self._committing = False

    def _record(self, changes: Sequence[_SpaceChange], listeners: Sequence[MemoryListener]) -> None:
        for listener in listeners:
            listener.begin()
        for change in changes:
            delta = diff(change.old, change.new)
            for section in reversed(delta.removed):
                for listener in _falling(change.listeners):
                    if section.region.coalesced:
                        listener.coalesced_io_del(section)
                    listener.region_del(section)
            staying = set(map(id, delta.kept))
            for section in _ascending(delta.kept, delta.added):
                for listener in change.listeners:
                    if id(section) in staying:
                        listener.region_nop(section)
                        continue
                    listener.region_add(section)
                    if section.region.coalesced:
                        listener.coalesced_io_add(section)

    def _apply_held(self, changes: Sequence[_SpaceChange], updates: Sequence[Update], *, publish: bool) -> None:
        needed = any(update.needs_hold for update in updates)
        held = self._whole_map or (needed and self._hold != "unsafe")
        with ExitStack() as stack:
            for lock in {id(update.lock): update.lock for update in updates if update.lock}.values():
                stack.enter_context(lock)
            if held:
                stack.enter_context(self._blocker.inhibit(self._inhibit_timeout))
            if not publish:
                self._apply(updates)
                return
            recorded = [(change, change.space.history) for change in changes if change.space.history is not None]
            for change, history in recorded:
                history.start(change.new)
            try:
                self._apply(updates)
                for change in changes:
                    change.space.view = change.new
            except BaseException:
                for change, history in recorded:
                    history.start(change.old)
                raise
            finally:
                for _, history in recorded:
                    history.complete(gate.entered for gate in self._blocker.gates)
            # From here on nothing is taken back.
            self._journal.clear()
            self.commits += 1
            self.unheld += not held

    def _apply(self, updates: Sequence[Update]) -> None:
        begun: list[Update] = []
        try:
            for update in updates:
                begun.append(update)
                update.apply()
        except BaseException:
            try:
                for update in reversed(begun):
                    update.undo()
            except BaseException as error:
                lost = error if isinstance(error, MapLostError) else _map_lost(error)
                self._blocker.poison(lost)
                raise lost from error
            raise

    @staticmethod
    def _tell(listener: MemoryListener, end: Literal["commit", "abort"]) -> None:
        try:
            if end == "commit":
                listener.commit()
            else:
                listener.abort()
        except Exception:  # noqa: BLE001 - what happened is not to be changed by who hears of it
            _log.exception("memory listener '%s' failed in %s", listener.name, end)


def _map_lost(error: BaseException) -> MapLostError:
    return MapLostError(f"a failed memory change could not be undone ({error!r})")


def _falling(listeners: Sequence[MemoryListener]) -> Sequence[MemoryListener]:
    """Return `listeners` from high priority to low, equal ones in order of registration."""
    return sorted(listeners, key=lambda one: -one.priority)


def _ascending(kept: Sequence[MemoryRegionSection], added: Sequence[MemoryRegionSection]) -> list[MemoryRegionSection]:
    return sorted((*kept, *added), key=lambda section: section.range.start)

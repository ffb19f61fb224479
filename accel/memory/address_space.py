"""Address spaces: a root region, the view of it that is in force, and who is told when that changes.

`view` is an immutable value that a transaction replaces as a whole. Access from the host is `host_access`, the base
of this class; what a guest's access does is `guest_access`.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from accel.errors import ClosedError, StateError
from accel.interrupts import interrupts_held_back
from accel.locks import Lock
from accel.memory.flat_view import EMPTY_VIEW, FlatView
from accel.memory.host_access import HostAccess
from accel.memory.listener import MemoryListener, call, tell
from accel.memory.region import MemoryRegion
from accel.memory.served import ServedHistory

if TYPE_CHECKING:
    from accel.memory.transaction import Transactions


class AddressSpace(HostAccess):
    """One space of a VM: its memory, its ports, or what a device sees of them.

    Args:
        name: For people, such as ``memory`` or ``io``.
        transactions: The VM's.
        root: What it shows; several spaces may share one, or show it through aliases.
        history: Generations of the map, for the space that accelerators map RAM of.
        fixed: Whether it lives as long as the VM, as memory and ports do.

    Attributes:
        name: As given.
        root: As given.
        view: The map in force; replaced under the big lock, read without.
        listeners: In order of priority; replaced under the big lock.
        history: As given.
        big_lock: The VM's.
        unassigned: Guest accesses that nothing served, or that a device refused. Guarded by the big lock.
        closed: Whether it was closed, or the transaction that it was made in failed.

    Raises:
        RegionError: `root` belongs to another VM.
        StateError: A transaction of this VM is committing.
    """

    def __init__(
        self,
        name: str,
        transactions: Transactions,
        root: MemoryRegion,
        history: ServedHistory | None = None,
        *,
        fixed: bool = False,
    ) -> None:
        self.name = name
        self.root = root
        self.view: FlatView = EMPTY_VIEW
        self.listeners: tuple[MemoryListener, ...] = ()
        self.history = history
        self.big_lock: Lock = transactions.big_lock
        self.unassigned = 0
        self.closed = False
        self._transactions = transactions
        self._fixed = fixed
        self._abandoned = False
        with transactions.transaction():
            # Where the transaction fails, what it made never was, and nothing that is put in there would ever show.
            transactions.journal(partial(setattr, self, "closed", True))
            root.claim(transactions)
            transactions.add_space(self)

    def close(self) -> None:
        """Tell the listeners that everything goes, and show nothing any more; may be called twice, and after the VM.

        The regions stay the VM's; other spaces may show them.

        Raises:
            StateError: A transaction is open, or it is the VM's own memory or port space.
            AccelError: A listener failed; the space is as it was, but for the listeners that are gone already.
        """
        if self.closed or self._abandoned:
            return
        if self._fixed:
            raise StateError(f"address space '{self.name}' is the VM's own; close the VM")
        try:
            with self._transactions.exclusive():
                for listener in reversed(self.listeners):
                    self.remove_listener(listener)
                self._transactions.remove_space(self)
                self.closed = True
                self.view = EMPTY_VIEW
        except ClosedError:
            # Another thread closed the VM while this one waited for the big lock.
            if not self._abandoned:
                raise

    def abandon(self) -> None:
        """Note that the VM is closed: there is nothing left to tell, and the view stays for those who read."""
        self._abandoned = True

    # the tree

    def add(self, region: MemoryRegion, at: int, priority: int = 0) -> None:
        """Add `region` to the root; see `MemoryRegion.add`."""
        self._check_open()
        self.root.add(region, at, priority)

    def remove(self, region: MemoryRegion) -> None:
        """Remove `region` from the root; see `MemoryRegion.remove`."""
        self._check_open()
        self.root.remove(region)

    def __str__(self) -> str:
        """Return the tree as it stands, a line for each region. Takes the big lock."""
        with self.big_lock:
            return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        lines = [f"address-space: {self.name}"]
        pending = [(self.root, 0, 1)]
        while pending:
            region, base, depth = pending.pop()
            last = base + region.size - 1
            what, state = region.name, "" if region.enabled else " [disabled]"
            if region.target is not None:
                shown = region.target_offset + region.size - 1
                what = f"alias {what} @{region.target.name} {region.target_offset:016x}-{shown:016x}"
            lines.append(
                f"{'  ' * depth}{base:016x}-{last:016x} (prio {region.priority}, {region.kind.value}): {what}{state}"
            )
            pending.extend(
                (child, base + child.offset, depth + 1)
                for child in sorted(region.children, key=lambda child: -child.offset)
            )
        return lines

    # listeners

    def add_listener(self, listener: MemoryListener) -> None:
        """Register `listener` and replay the view to it as additions, in a transaction of its own.

        Raises:
            StateError: It is registered already, a transaction is open, or the space is closed.
            AccelError: The listener refused; it is not registered.
        """
        transactions = self._transactions
        with transactions.exclusive(), interrupts_held_back(), ExitStack() as undo:
            self._check_open()
            if any(one is listener for one in self.listeners):
                raise StateError(f"listener '{listener.name}' is registered with '{self.name}' already")
            if transactions.log_mask and not any(one is listener for one in transactions.listeners):
                with transactions.telling():
                    call(listener, "log_global_start", listener.log_global_start)
                undo.callback(self._tell_stop, listener)
            transactions.replay(self, listener, EMPTY_VIEW, self.view)
            undo.pop_all()
            self.listeners = tuple(sorted((*self.listeners, listener), key=lambda one: one.priority))
            transactions.note_listeners()

    def remove_listener(self, listener: MemoryListener) -> None:
        """Tell `listener` that everything goes, and forget it.

        Raises:
            StateError: It is not registered, or a transaction is open.
            AccelError: The listener failed; it stays registered.
        """
        transactions = self._transactions
        with transactions.exclusive(), interrupts_held_back():
            if not any(one is listener for one in self.listeners):
                raise StateError(f"listener '{listener.name}' is not registered with '{self.name}'")
            transactions.replay(self, listener, self.view, EMPTY_VIEW)
            self.listeners = tuple(one for one in self.listeners if one is not listener)
            transactions.note_listeners()
            if transactions.log_mask and not any(one is listener for one in transactions.listeners):
                self._tell_stop(listener)

    def _tell_stop(self, listener: MemoryListener) -> None:
        with self._transactions.telling():
            tell(listener, "log_global_stop")

    def count_unassigned(self) -> None:
        """Count a guest's access that nothing served. Takes the big lock."""
        with self.big_lock:
            self.unassigned += 1

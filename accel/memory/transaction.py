"""Memory transactions: journalled edits, savepoints, and one commit at the end of the outermost.

Edits are journalled while the big lock is held; each nested ``with`` is a savepoint, whose exception takes back its own
edits only. The outermost commit renders what was damaged (`accel.memory.damage`), and `accel.memory.commit` makes the
change real, or raises with everything as before; then the tree goes back as well, so the map before stays in force.

Once a commit is in force the journal is empty, so whatever is raised later takes nothing back. What a transaction that
an interrupt (Ctrl-C) tore apart left in the journal is taken back before anything else is done.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from accel.blocker import AccelBlocker
from accel.errors import ClosedError, LockError, StateError, UsageError
from accel.interrupts import interrupts_held_back
from accel.locks import Lock
from accel.memory.commit import Commit, Hold
from accel.memory.damage import Damage
from accel.memory.flat_view import FlatView
from accel.memory.journal import Journal
from accel.memory.listener import MemoryListener, rising
from accel.memory.pins import Pins
from accel.memory.record import SpaceChange
from accel.memory.region import MemoryRegion
from accel.memory.render import follow
from accel.memory.splice import diff

if TYPE_CHECKING:
    from accel.memory.address_space import AddressSpace

Atomic = Literal["address", "map"]


class _Thread(threading.local):
    """The VM whose transaction a thread is in, while it is in one."""

    transactions: Transactions | None = None


_thread = _Thread()


class Transactions:
    """The transactions of one VM.

    Args:
        big_lock: Held from begin to end of each.
        blocker: Holds the vCPUs.
        hold: ``inhibit``, or ``unsafe`` to hold nobody (but for ``atomic="map"``, and with user-fault handlers).
        inhibit_timeout: See the attribute.
        before_commit: Called before a change is made, to deliver what the guest did under the map before. Edits
            that it makes become part of the change.

    Attributes:
        inhibit_timeout: Longest wait for the vCPUs, in seconds; whoever changes it does for the next wait.
        commits: Outermost transactions that changed a view.
        unheld: Those of them that held nobody.
        spaces: The address spaces, in order of creation; replaced under the big lock.
        listeners: The listeners of all spaces, each once, from low priority to high, equal ones in order of
            registration; replaced under the big lock.
        log_mask: Clients that log all memory (`DirtyClient`). Guarded by the big lock.
        cover: Called with each region that comes into a view while there are such clients.
        hold_vcpus: Holds the vCPUs for a context in place of the blocker, given the longest wait; or None.
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
        self.spaces: tuple[AddressSpace, ...] = ()
        self.listeners: tuple[MemoryListener, ...] = ()
        self.log_mask = 0
        self.cover: Callable[[MemoryRegion], None] = lambda region: None
        self.hold_vcpus: Callable[[float], AbstractContextManager[None]] | None = None
        self._blocker = blocker
        self._hold = hold
        self.inhibit_timeout = inhibit_timeout
        self._before_commit = before_commit
        # All of these are guarded by the big lock.
        self._registered: tuple[MemoryListener, ...] = ()
        self._roots: Counter[Any] = Counter()
        self._damage = Damage(self._roots)
        self._journal = Journal()
        self._pins = Pins()
        self._depth = 0
        self._whole_map = False
        self._telling = False
        self._closed = False

    def close(self) -> None:
        """Refuse transactions from now on: the accelerator's side is gone. Takes the big lock; may be called twice.

        A transaction that is open fails at its end.
        """
        with self.big_lock, interrupts_held_back():
            self._closed = True
            self._pins.clear()

    # spaces and listeners

    def add_space(self, space: AddressSpace) -> None:
        """Make `space`, which has no view yet, part of every commit, and publish its view."""
        with self.transaction():
            self.journal(partial(self._set_spaces, self.spaces))
            self._set_spaces((*self.spaces, space))
            self._damage.note_root(space.root)

    def remove_space(self, space: AddressSpace) -> None:
        """Let `space`, which has no listeners any more, be part of no commit."""
        with self.exclusive(), interrupts_held_back():
            if any(one is space for one in self.spaces):
                self._set_spaces(tuple(one for one in self.spaces if one is not space))
                self._pins.drop(space.view)

    def _set_spaces(self, spaces: tuple[AddressSpace, ...]) -> None:
        self.spaces = spaces
        self._roots.clear()
        self._roots.update(space.root for space in spaces)

    def note_listeners(self) -> None:
        """Bring `listeners` up to date with those of the spaces; needs the big lock."""
        now = {id(one): one for space in self.spaces for one in space.listeners}
        # Who was there before keeps the rank of its first registration.
        stay = [now.pop(id(one)) for one in self._registered if id(one) in now]
        self._registered = (*stay, *now.values())
        self.listeners = tuple(rising(self._registered))

    def replay(self, space: AddressSpace, listener: MemoryListener, old: FlatView, new: FlatView) -> None:
        """Take one listener from `old` to `new`, applying what it asks for; needs the big lock."""
        delta = diff(old.sections, new.sections)
        change = SpaceChange(space, new, delta, (listener,), publish=False)
        with interrupts_held_back():
            self._run(Commit([change], [listener], self._blocker, self.hold_vcpus))

    def held(self) -> AbstractContextManager[None]:
        """Return a context in which all vCPUs are out of the guest. Needs the big lock; raises InhibitTimeoutError."""
        return (self.hold_vcpus or self._blocker.inhibit)(self.inhibit_timeout)

    # what edits need

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
            StateError: Called by a listener that is being told something, or inside a transaction of another VM.
            ClosedError: The VM is closed.
            UsageError: `atomic` is neither.
        """
        if atomic not in ("address", "map"):
            raise UsageError(f"atomic = {atomic!r}: must be 'address' or 'map'")
        self.check_thread()
        with self.big_lock:
            self.check_idle()
            savepoint = self._journal.savepoint
            _thread.transactions = self
            # From here into the block nothing is called, so that no interrupt comes between.
            self._whole_map |= atomic == "map"
            self._depth += 1
            try:
                yield
                self._mend()
                if self._depth == 1 and self._journal:
                    self._commit()
            except BaseException:
                self._journal.torn = savepoint
                self._mend()
                raise
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._whole_map = False
                    _thread.transactions = None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Take the big lock for something that must not happen inside a transaction. Raises StateError."""
        self.check_thread()
        with self.big_lock:
            self.check_idle()
            if self._depth:
                raise StateError(
                    "a transaction is open; listeners and spaces come and go outside of it, "
                    "and dirty logs are read and cleared there"
                )
            yield

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Refuse edits inside the block, which calls listeners; needs the big lock."""
        before, self._telling = self._telling, True
        try:
            yield
        finally:
            self._telling = before

    def journal(self, undo: Callable[[], None]) -> None:
        """Note how to take back the edit that is being made; needs the big lock.

        Raises:
            LockError: No transaction is open.
        """
        if not self.active:
            raise LockError("a region is edited outside of a transaction")
        self._journal.note(undo)

    def defer(self, finish: Callable[[], None]) -> None:
        """Note what to do once the edit that is being made is in force; needs the big lock. It must not raise."""
        self._journal.defer(finish)

    def damage(self, region: Any, start: int, end: int) -> None:
        """Note that what `region` shows at its offsets [start, end) changes; needs the big lock."""
        self._damage.note(region, start, end)

    def damage_all(self) -> None:
        """Note that everything may change; needs the big lock."""
        self._damage.note_all()

    def check_idle(self) -> None:
        """Refuse what no listener may do, and nobody once the VM is closed; needs the big lock.

        Raises:
            StateError: A listener is being told something.
            ClosedError: The VM is closed.
        """
        if self._closed:
            raise ClosedError("the VM is closed, so its memory does not change any more")
        if self._telling:
            raise StateError(
                "memory cannot be edited by a listener while it is told of a change, nor the VM closed; do that later"
            )
        self._mend()

    def check_thread(self) -> None:
        """Refuse to wait for a VM's big lock in a transaction of another: a third thread may do the reverse.

        Raises:
            StateError: The calling thread is inside a transaction of another VM.
        """
        other = _thread.transactions
        if other is not None and other is not self and other.active:
            raise StateError("a transaction of another VM is open on this thread; end it first")

    # inside

    def _mend(self) -> None:
        """Take back what a transaction that ended with an exception left."""
        if self._journal.torn is not None:
            with interrupts_held_back():
                self._journal.mend()
                if not self._journal:
                    self._damage.clear()

    def _commit(self) -> None:
        self._before_commit()
        if self._closed:
            raise ClosedError("the VM was closed inside the transaction")
        changes = self._changes()
        with interrupts_held_back():
            if not changes:
                self._settle()
                return
            if self.log_mask:
                for change in changes:
                    for section in change.delta.added:
                        if section.region.block is not None:
                            self.cover(section.region)
            heard = {id(one) for change in changes for one in change.listeners}
            commit = Commit(
                changes, [one for one in self.listeners if id(one) in heard], self._blocker, self.hold_vcpus
            )
            self._pins.take(commit.added)
            try:
                self._run(commit)
            finally:
                if commit.in_force:
                    self.commits += 1
                    self.unheld += not commit.held
                    self._pins.drop(commit.removed)
                    self._settle()
                elif not commit.lost:
                    # Where it is lost nobody knows what is mapped, so nothing is let go of.
                    self._pins.drop(commit.added)

    def _changes(self) -> list[SpaceChange]:
        """Render what was damaged; nothing has changed yet."""
        changes = []
        for space in self.spaces:
            windows = self._damage.windows(space.root)
            if windows:
                new, delta = follow(space.view, windows, space.root, self.log_mask)
                if delta:
                    changes.append(SpaceChange(space, new, delta, space.listeners))
        return changes

    def _run(self, commit: Commit) -> None:
        self._blocker.check()
        hold: Hold = "always" if self._whole_map else "never" if self._hold == "unsafe" else "asked"
        if self._pins.user_faults and not self._whole_map:
            # A vCPU that waits for a page would have the accelerator wait inside the kernel; `accel.memory.user_fault`.
            hold = "changes"
        with self.telling():
            commit.run(hold, self.inhibit_timeout)

    def _settle(self) -> None:
        self._damage.clear()
        with self.telling():
            self._journal.settle()

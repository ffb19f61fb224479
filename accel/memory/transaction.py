"""Memory transactions: journalled edits, savepoints, and one commit at the end of the outermost.

Edits are journalled while the big lock is held; each nested ``with`` is a savepoint, whose exception takes back its own
edits only. The outermost commit renders what was damaged (`accel.memory.damage`), and `accel.memory.commit` makes the
change real, or raises with everything as before; then the tree goes back as well, so the map before stays in force.

Once a commit is in force the journal is empty, so whatever is raised later takes nothing back; and a journal that an
interrupt kept from being taken back is taken back before the next transaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from accel.blocker import AccelBlocker
from accel.errors import ClosedError, LockError, MapLostError, StateError, UsageError
from accel.interrupts import interrupts_held_back
from accel.locks import Lock
from accel.memory.commit import Commit, SpaceChange
from accel.memory.damage import Damage
from accel.memory.flat_view import FlatView
from accel.memory.listener import MemoryListener
from accel.memory.ram_block import RamBlock
from accel.memory.region import MemoryRegion
from accel.memory.render import paint
from accel.memory.splice import diff, splice

if TYPE_CHECKING:
    from accel.memory.address_space import AddressSpace

Atomic = Literal["address", "map"]


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
        spaces: The address spaces, in order of creation; replaced under the big lock.
        log_mask: Clients that log all memory (`DirtyClient`). Guarded by the big lock.
        cover: Called with each region that comes into a view while there are such clients.
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
        self.log_mask = 0
        self.cover: Callable[[MemoryRegion], None] = lambda region: None
        self._blocker = blocker
        self._hold = hold
        self._inhibit_timeout = inhibit_timeout
        self._before_commit = before_commit
        # Guarded by the big lock: the undo of each edit, oldest first, and what waits for the change to be in force.
        self._journal: list[Callable[[], None]] = []
        self._deferred: list[Callable[[], None]] = []
        self._roots: Counter[Any] = Counter()
        self._damage = Damage(self._roots)
        # How many sections of published views show each block: an accelerator may have mapped it for them.
        self._pins: Counter[RamBlock] = Counter()
        self._depth = 0
        self._whole_map = False
        self._committing = False
        self._closed = False

    def close(self) -> None:
        """Refuse transactions from now on: the accelerator's side is gone. Takes the big lock."""
        with self.big_lock:
            self._closed = True
            for block in self._pins.elements():
                block.release()
            self._pins.clear()

    # spaces

    def add_space(self, space: AddressSpace) -> None:
        """Make `space`, which has no view yet, part of every commit, and publish its view."""
        with self.transaction():
            self.journal(partial(self._set_spaces, self.spaces))
            self._set_spaces((*self.spaces, space))
            self._damage.note_root(space.root)

    def remove_space(self, space: AddressSpace) -> None:
        """Let `space`, which has no listeners any more, be part of no commit."""
        with self.exclusive():
            self._set_spaces(tuple(one for one in self.spaces if one is not space))
            self._unpin(section.region.block for section in space.view)

    def _set_spaces(self, spaces: tuple[AddressSpace, ...]) -> None:
        self.spaces = spaces
        self._roots.clear()
        self._roots.update(space.root for space in spaces)

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
            StateError: Called by a listener during a commit.
            ClosedError: The VM is closed.
            UsageError: `atomic` is neither.
        """
        if atomic not in ("address", "map"):
            raise UsageError(f"atomic = {atomic!r}: must be 'address' or 'map'")
        with self.big_lock:
            self._check_idle()
            savepoint, deferred = len(self._journal), len(self._deferred)
            self._depth += 1
            self._whole_map |= atomic == "map"
            try:
                yield
                if self._depth == 1 and self._journal:
                    self._commit()
                    self._settle()
            except BaseException:
                with interrupts_held_back():
                    self._roll_back(savepoint, deferred)
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
                raise StateError(
                    "a transaction is open; listeners and spaces come and go outside of it, "
                    "and dirty logs are read and cleared there"
                )
            yield

    def journal(self, undo: Callable[[], None]) -> None:
        """Note how to take back the edit that is being made; needs the big lock.

        Raises:
            LockError: No transaction is open.
        """
        if not self.active:
            raise LockError("a region is edited outside of a transaction")
        self._journal.append(undo)

    def defer(self, finish: Callable[[], None]) -> None:
        """Note what to do once the edit that is being made is in force; needs the big lock. It must not raise."""
        self._deferred.append(finish)

    def damage(self, region: Any, start: int, end: int) -> None:
        """Note that what `region` shows at its offsets [start, end) changes; needs the big lock."""
        self._damage.note(region, start, end)

    def damage_all(self) -> None:
        """Note that everything may change; needs the big lock."""
        self._damage.note_all()

    def replay(self, space: AddressSpace, listener: MemoryListener, old: FlatView, new: FlatView) -> None:
        """Take one listener from `old` to `new`, applying what it asks for; needs the big lock."""
        delta = diff(old.sections, new.sections)
        self._perform([SpaceChange(space, new, delta, (listener,), publish=False)], lambda held: None)

    # inside

    def _check_idle(self) -> None:
        if self._closed:
            raise ClosedError("the VM is closed, so its memory does not change any more")
        if self._committing:
            raise StateError("memory cannot be edited by a listener while a transaction commits")
        if not self._depth:
            self._roll_back(0, 0)

    def _roll_back(self, savepoint: int, deferred: int) -> None:
        del self._deferred[deferred:]
        while len(self._journal) > savepoint:
            self._journal[-1]()
            self._journal.pop()
        if not self._journal:
            self._damage.clear()

    def _settle(self) -> None:
        """Nothing is taken back any more."""
        self._journal.clear()
        self._damage.clear()
        while self._deferred:
            self._deferred.pop(0)()

    def _commit(self) -> None:
        self._before_commit()
        changes = []
        for space in self.spaces:
            windows = self._damage.windows(space.root)
            if windows:
                new, delta = splice(space.view, windows, partial(paint, space.root, log_mask=self.log_mask))
                if delta:
                    changes.append(SpaceChange(space, new, delta, space.listeners))
        if not changes:
            return
        if self.log_mask:
            for change in changes:
                for section in change.delta.added:
                    if section.region.block is not None:
                        self.cover(section.region)
        coming = self._pin(section.region.block for change in changes for section in change.delta.added)
        try:
            self._perform(changes, self._count)
        except MapLostError:
            # Nobody knows what the accelerator maps, so nothing is let go of.
            raise
        except BaseException:
            if self._journal:
                self._unpin(coming)
            raise
        self._unpin(section.region.block for change in changes for section in change.delta.removed)

    def _count(self, held: bool) -> None:
        """A change is in force."""
        self.commits += 1
        self.unheld += not held
        self._settle()

    def _perform(self, changes: list[SpaceChange], in_force: Callable[[bool], None]) -> None:
        self._blocker.check()
        commit = Commit(changes, self._blocker)
        hold: Literal["always", "asked", "never"] = "never" if self._hold == "unsafe" else "asked"
        self._committing = True
        try:
            commit.run(hold="always" if self._whole_map else hold, timeout=self._inhibit_timeout, in_force=in_force)
        finally:
            self._committing = False

    def _pin(self, blocks: Iterable[RamBlock | None]) -> list[RamBlock]:
        pinned = []
        for block in blocks:
            if block is not None:
                block.retain()
                self._pins[block] += 1
                pinned.append(block)
        return pinned

    def _unpin(self, blocks: Iterable[RamBlock | None]) -> None:
        for block in blocks:
            if block is not None:
                block.release()
                self._pins[block] -= 1
                if not self._pins[block]:
                    del self._pins[block]

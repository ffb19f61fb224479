"""A VM's memory with several spaces over shared trees, edited at random and judged after every commit.

`World` makes each edit twice, on real regions and on the model of `memory_oracle`, and complains (`Complaint`) when
they differ. A step is a kind and three numbers that pick among what there is, so that Hypothesis (`test_memory_model`)
and a seeded generator (`memory_drive`) make them alike, and a failing run can be made shorter by leaving steps out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from memory_checks import check_regions, check_spaces
from memory_choices import FIXED, is_sparse
from memory_oracle import UNIT, Model, Record, Shown, new_record
from memory_replay import Complaint, Refusal, Replay, require
from memory_steps import PUT_OFF, STEPS

from accel.blocker import AccelBlocker
from accel.errors import AccelError, ListenerError
from accel.locks import BIG_LOCK, Lock
from accel.memory import damage
from accel.memory.address_space import AddressSpace
from accel.memory.dirty_sync import DirtySync
from accel.memory.flat_view import FlatView
from accel.memory.region import MemoryRegion
from accel.memory.transaction import Transactions

#: Cells of the main root at first.
SPAN = 96


class _TakeBack(Exception):
    """Raised inside a transaction to have it taken back."""


class World:
    """See the module's text.

    Args:
        tight: Whether a few places are so many that everything is taken for damaged.

    Attributes:
        model: The plain model.
        real: The regions by name.
        spaces: The spaces by name.
        counts: ``steps``, ``changing``, ``overlapping``, ``aliasing``, ``refused``, ``undone``, ``commits``, …
        story: What was done, for people.
        failed: Whether a step ended in a complaint.
    """

    def __init__(self, *, tight: bool = False) -> None:
        self._limits = (damage.MAX_PLACES, damage.MAX_WINDOWS)
        if tight:
            damage.MAX_PLACES, damage.MAX_WINDOWS = 9, 2
        self.lock = Lock(BIG_LOCK)
        self.transactions = Transactions(self.lock, AccelBlocker(self.lock))
        self.sync = DirtySync(self.transactions)
        self.model = Model()
        self.real: dict[str, MemoryRegion] = {}
        self.names: dict[int, str] = {}
        self.spaces: dict[str, AddressSpace] = {}
        self.roots: dict[str, str] = {}
        self.listeners: dict[str, list[Replay]] = {}
        self.heard: dict[str, list[tuple[str, str, int]]] = {}
        self.counts: Counter[str] = Counter()
        self.story: list[str] = []
        self.failed = False
        self.serial = 0
        self.rank = 0
        self._open: list[tuple[AbstractContextManager[None], dict[str, Record]]] = []
        self._uncommitted: list[list[str]] = []
        self._published: dict[str, list[Shown]] = {}
        self.views: dict[str, FlatView] = {}
        self.expected: dict[str, list[Shown]] = {}
        self.shown: set[str] = set()
        self._make_spaces()
        self.check()

    def _make_spaces(self) -> None:
        self.born("main", new_record("container", SPAN), MemoryRegion.container("main", SPAN * UNIT))
        self.born("device", new_record("container", SPAN), MemoryRegion.container("device", SPAN * UNIT))
        for name, at, size, offset in (("low", 0, 40, 0), ("high", 50, 60, 24)):
            self.rank += 1
            real = MemoryRegion.alias(name, self.real["main"], offset * UNIT, size * UNIT)
            values = {"target": "main", "target_offset": offset, "parent": "device", "at": at, "rank": self.rank}
            self.born(name, new_record("alias", size, **values), real)
            self.real["device"].add(real, at * UNIT)
        self.open_space("memory", "main", (10, 0, 10))
        self.open_space("twin", "main", (5,))
        self.open_space("device", "device", (10,))

    # what edits use

    def born(self, name: str, record: Record, real: MemoryRegion) -> None:
        """Take a region that nobody owns into the world."""
        self.real[name] = real
        self.names[id(real)] = name
        for regions in (self.model.regions, *(snapshot for _, snapshot in self._open)):
            regions[name] = record
        self.model.change(name)

    def forget(self, name: str) -> None:
        """Let go of a region that stands nowhere and that nothing leads to."""
        del self.names[id(self.real.pop(name))], self.model.regions[name]
        self.model.change("main")

    def change(self, name: str, **values: Any) -> None:
        """Change a record, for good where no journal keeps the edit."""
        self.model.change(name, **values)
        if not self.model.regions[name]["owned"]:
            for _, snapshot in self._open:
                snapshot[name] = self.model.regions[name]

    def claim(self, *names: str) -> None:
        """Make regions and all that hangs together with them the VM's."""
        for name in names:
            for one in self.model.leads_to(name, upward=True):
                self.model.change(one, owned=True)

    @property
    def depth(self) -> int:
        """Transactions that are open."""
        return len(self._open)

    # steps

    def step(self, kind: str, a: int, b: int, c: int) -> None:
        """Do what the numbers mean for this kind of step, if they mean anything now."""
        before = len(self.story)
        if is_sparse(self) and kind in PUT_OFF:
            kind = "grow"
        try:
            STEPS[kind](self, a, b, c)
        except Exception as error:
            self.failed = True
            told = "\n  ".join(self.story)
            cause = "" if error.__cause__ is None else f" ({error.__cause__!r})"
            raise Complaint(f"{type(error).__name__}: {error}{cause}\nat the end of:\n  {told}") from error
        if len(self.story) == before:
            self.counts["idle"] += 1

    def edit(self, text: str, name: str, make: Callable[[], object], change: Callable[[], None] | None) -> None:
        """Make an edit of region `name` by `make`, and by `change` in the model; None where it must be refused."""
        self.story.append("  " * self.depth + text + ("" if change else "  (refused)"))
        if change is None:
            views = [space.view for space in self.spaces.values()]
            try:
                make()
            except AccelError:
                self.counts["refused"] += 1
            else:
                raise Complaint(f"{text}: was not refused")
            require(views == [space.view for space in self.spaces.values()], text, "changed a view")
            self.check_regions()
            return
        flags = self._flags(name)
        make()
        change()
        flags |= self._flags(name)
        before = self.expected
        self.look()
        if self.expected != before:
            flags.add("changing")
        self._uncommitted.append(["steps", *sorted(flags)])
        if not self.depth:
            self._committed()

    def _flags(self, name: str) -> set[str]:
        """Return whether a region overlaps with what shows beside it, and whether it shows through an alias."""
        flags = {"overlapping"} if self.overlaps(name) else set()
        above: str | None = name
        targets = {
            self.model.regions[one]["target"] for one in self.shown if one not in FIXED
        }  # The aliases of the main root would make every edit one that shows through an alias.
        while above is not None and not flags & {"aliasing"}:
            if above in targets or self.model.regions[above]["kind"] == "alias":
                flags.add("aliasing")
            above = self.model.regions[above]["parent"]
        return flags

    def overlaps(self, name: str) -> bool:
        """Return whether a region and one beside it both have something to show at one address that shows."""
        parent = self.model.regions[name]["parent"]
        if parent not in self.shown:
            return False
        mine = self._shown_cells(name, parent)
        return any(mine & self._shown_cells(one, parent) for one in self.model.children(parent) if one != name)

    def _shown_cells(self, name: str, parent: str) -> set[int]:
        at, size = self.model.regions[name]["at"], self.model.regions[parent]["size"]
        return {number for number, piece in enumerate(self.model.cells(name)[0][: max(size - at, 0)], at) if piece}

    # transactions

    def begin(self) -> None:
        """Open a transaction, or a savepoint in the open one."""
        self.story.append("  " * self.depth + "begin")
        context = self.transactions.transaction()
        context.__enter__()
        self._open.append((context, dict(self.model.regions)))
        self._uncommitted.append(["mark"])

    def end(self, refuser: Replay | None = None) -> None:
        """Close the innermost transaction; with a `refuser`, the outermost is refused by that listener."""
        if self.depth > 1:
            self._open.pop()[0].__exit__(None, None, None)
            self.story.append("  " * self.depth + "end")
            self._uncommitted = self._without_mark()
            return
        context, snapshot = self._open.pop()
        self.story.append("end" + ("" if refuser is None else f", refused by {refuser.name}"))
        refused = refuser is not None and any(
            self.expected[space] != self._published[space]
            for space in self.expected
            if refuser in self.listeners[space]
        )
        if refuser is not None:
            refuser.refuses = True
        try:
            context.__exit__(None, None, None)
        except ListenerError as error:
            if not refused or not isinstance(error.__cause__, Refusal):
                raise
            self._undone(snapshot)
            refused = False
            self.counts["refused commits"] += 1
        finally:
            if refuser is not None:
                refuser.refuses = False
        require(not refused, "a refused change was made")
        self._committed()

    def take_back(self) -> None:
        """Leave the innermost transaction by an exception."""
        context, snapshot = self._open.pop()
        self.story.append("  " * self.depth + "take back")
        error = _TakeBack()
        require(not context.__exit__(_TakeBack, error, None), "the exception was lost")
        self._undone(snapshot)
        self.check_regions()
        if not self.depth:
            self._committed()

    def _without_mark(self) -> list[list[str]]:
        at = max(number for number, entry in enumerate(self._uncommitted) if entry == ["mark"])
        return self._uncommitted[:at] + self._uncommitted[at + 1 :]

    def _undone(self, snapshot: dict[str, Record]) -> None:
        while (entry := self._uncommitted.pop()) != ["mark"]:
            self.counts["undone"] += entry[0] == "steps"
        self.model.restore(snapshot)
        self.look()

    def _committed(self) -> None:
        for entry in self._uncommitted:
            self.counts.update(one for one in entry if one != "mark")
        self._uncommitted.clear()
        self.check()

    # spaces and listeners

    def open_space(self, name: str, root: str, priorities: tuple[int, ...] = (10,)) -> None:
        """Make a space with listeners of these priorities."""
        self.story.append(f"space {name} of {root}")
        self.spaces[name] = AddressSpace(name, self.transactions, self.real[root])
        self.claim(root)
        self.roots[name] = root
        self.listeners[name], self.heard[name] = [], []
        for number, priority in enumerate(priorities):
            self.add_listener(name, Replay(f"{name}-{number}", priority, self.heard[name]))
        self.look()

    def close_space(self, name: str) -> None:
        """Close a space."""
        self.story.append(f"close space {name}")
        self.spaces.pop(name).close()
        for one in self.listeners.pop(name):
            require(not one.map and not one.queued and not one.bells, one.name, "keeps something of a closed space")
        del self.roots[name], self.heard[name], self.views[name]
        self.look()

    def add_listener(self, space: str, listener: Replay) -> None:
        """Register a listener."""
        self.spaces[space].add_listener(listener)
        self.listeners[space].append(listener)
        self.heard[space].clear()

    def remove_listener(self, space: str, listener: Replay) -> None:
        """Take a listener away."""
        self.spaces[space].remove_listener(listener)
        self.listeners[space].remove(listener)
        self.heard[space].clear()
        empty = not listener.map and not listener.queued and not listener.bells
        require(empty and not listener.logs_all, listener.name, "keeps something after its removal")

    # checks

    def look(self) -> None:
        """Ask the model what the spaces must show."""
        roots = set(self.roots.values())
        sections = {root: self.model.sections(root) for root in roots}
        self.expected = {space: sections[root] for space, root in self.roots.items()}
        self.shown = set().union(*(self.model.shown_names(root) for root in roots))

    def check(self) -> None:
        """Complain unless all is what the model says; outside of transactions."""
        changed = {name for name, wanted in self.expected.items() if wanted != self._published.get(name, [])}
        self.counts["commits"] += check_spaces(self, changed)
        self._published = self.expected
        if self.counts["commits"] % 4 == 0:
            self.check_regions()

    def check_regions(self) -> None:
        """Complain unless the regions are what the model says."""
        check_regions(self)

    def close(self) -> None:
        """End what is open, judge once more, and close the spaces."""
        while self.depth:
            self.end()
        self.check()
        self.check_regions()
        for name in list(self.spaces):
            self.close_space(name)

    def abandon(self) -> None:
        """Let go of the lock and of the limits, however the run ended."""
        damage.MAX_PLACES, damage.MAX_WINDOWS = self._limits
        while self.depth:
            context, _ = self._open.pop()
            error = _TakeBack()
            context.__exit__(_TakeBack, error, None)

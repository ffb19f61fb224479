"""Where regions stand: parents, children, aliases, and the edits of place, journalled in the VM's transaction.

Regions nest at offsets; where siblings overlap the higher priority wins, ties go to the latest added, and holes of
a container or alias show what lies under it. Any region may have children, which lie over what it is made of
itself. Source: QEMU's memory API (docs/devel/memory.rst), the rules only. Layer: below `region`, which adds what a
region is made of.

Each edit of a tree that belongs to a VM notes how to take it back, and tells the VM which part of which region may
show differently from now on (`RegionOwner.damage`), so that a commit looks at nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any, Protocol, Self, TypeVar
from weakref import WeakSet

from accel.address import ADDRESS_SPACE_SIZE, parse_size
from accel.errors import RegionError, UsageError
from accel.interrupts import interrupts_held_back
from accel.memory.children import Children

_serials = count(1)
_PLACE = frozenset(("offset", "size", "priority"))


class RegionOwner(Protocol):
    """The VM a region belongs to, as far as the tree is concerned (see `accel.memory.transaction`)."""

    def transaction(self) -> AbstractContextManager[object]:
        """Return the context of an edit."""

    def journal(self, undo: Callable[[], None]) -> None:
        """Note how to take back the edit that is being made."""

    def defer(self, finish: Callable[[], None]) -> None:
        """Note what to do once the edit that is being made is in force; it must not raise."""

    def damage(self, region: Any, start: int, end: int) -> None:
        """Note that what `region` shows at its offsets [start, end) changes, wherever it shows."""


class RegionNode:
    """A region's place among others; users make a `MemoryRegion`.

    Attributes:
        name: For people; need not be unique.
        size: Bytes, up to 2^64.
        offset: Where it stands in its `parent`.
        priority: Signed; compared with its siblings only.
        serial: Ranks siblings of one priority: the later added, the higher.
        enabled: Whether it shows.
        parent: The region it was added to, or None.
        target: What an alias shows, from `target_offset` on.
    """

    __slots__ = (
        "__weakref__",
        "_aliases",
        "_children",
        "_owner",
        "enabled",
        "name",
        "offset",
        "parent",
        "priority",
        "serial",
        "size",
        "target",
        "target_offset",
    )

    parent: Self | None
    target: Self | None
    _children: Children[Self] | None
    #: The aliases with this region for a target, from when they belong to the VM. Guarded by the big lock.
    _aliases: WeakSet[Self] | None

    def __init__(self, name: str, size: int | str, *, target: Self | None = None, target_offset: int = 0) -> None:
        self.name = name
        self.size = parse_size(size)
        if not 0 < self.size <= ADDRESS_SPACE_SIZE:
            raise RegionError(name, f"size {self.size:#x} is not in 1 to 2^64")
        self.target = target
        self.target_offset = target_offset
        self._check_target_offset(target_offset)
        self.offset = 0
        self.priority = 0
        self.serial = 0
        self.enabled = True
        self.parent = None
        self._children = None
        self._aliases = None
        self._owner: RegionOwner | None = None

    # edits of place

    def add(self, child: Self, at: int, priority: int = 0) -> None:
        """Put `child` at offset `at` of this region.

        Raises:
            RegionError: `child` has a parent already, belongs to another VM, contains this region (itself or through
                an alias), or would reach beyond 2^64; or this region is an alias.
        """
        # A region without a VM that gets a VM's region for a child becomes that VM's too, with all around it.
        owner = self._owner or child._owner
        with self._editing(owner):
            if self.target is not None:
                raise RegionError(self.name, f"is an alias and shows nothing of its own; add to '{self.target.name}'")
            _check_place(child, at, self)
            _check_priority(child, priority)
            if child.parent is not None:
                raise RegionError(child.name, f"is in '{child.parent.name}' already; remove it there first")
            if _reaches(child, self):
                raise RegionError(
                    child.name, f"contains '{self.name}', itself or through an alias, and cannot be added to it"
                )
            if owner is not None:
                child.claim(owner)
                self.claim(owner)
                owner.journal(lambda: _unlink(child))
            _link(child, self, at, priority, next(_serials))
            child._damage()

    def remove(self, child: Self) -> None:
        """Take `child` out. Raises RegionError if it is not in here."""
        with self._editing(self._owner):
            if child.parent is not self:
                raise RegionError(child.name, f"is not in '{self.name}'")
            child._damage()
            if self._owner is not None:
                at, priority, serial = child.offset, child.priority, child.serial
                self._owner.journal(lambda: _link(child, self, at, priority, serial))
            _unlink(child)

    def move(self, at: int) -> None:
        """Stand at another offset of the parent; the rank among siblings stays.

        Raises:
            RegionError: It is in no region, or would reach beyond 2^64.
        """
        with self._editing(self._owner):
            parent = self._in_parent("move")
            _check_place(self, at, parent)
            self._damage()
            self._change(offset=at)
            self._damage()

    def set_priority(self, priority: int) -> None:
        """Rank among the siblings with another priority; those of the same, as if it was added when it was.

        Raises:
            RegionError: It is in no region.
        """
        with self._editing(self._owner):
            self._in_parent("change its priority")
            _check_priority(self, priority)
            self._change(priority=priority)
            self._damage()

    def set_enabled(self, enabled: bool) -> None:
        """Show the region, or hide it with all that is in it."""
        with self._editing(self._owner):
            self._damage()
            self._change(enabled=enabled)
            self._damage()

    def set_target_offset(self, offset: int) -> None:
        """Show the target of an alias from another offset on. Raises RegionError if it is no alias."""
        with self._editing(self._owner):
            if self.target is None:
                raise RegionError(self.name, "is no alias, so it has no offset in a target")
            self._check_target_offset(offset)
            self._change(target_offset=offset)
            self._damage()

    def _resize(self, size: int) -> None:
        """Change the size; what is checked and what else depends on it is the caller's."""
        at = 0 if self.parent is None else self.offset
        if not 0 < size <= ADDRESS_SPACE_SIZE - at:
            raise RegionError(self.name, f"size {size:#x} at {at:#x} is not in 1 to 2^64")
        old = self.size
        self._damage(min(old, size), max(old, size))
        self._change(size=size)

    # looking around

    @property
    def children(self) -> tuple[Self, ...]:
        """All children, highest priority first; among equals the latest added first; of a VM's region, for whoever
        has the big lock. O(n log n)."""
        return () if self._children is None else self._children.ranked()

    def children_in(self, start: int, end: int) -> list[Self]:
        """Return the children that reach into the offsets [start, end), in the order of `children`."""
        return [] if self._children is None else self._children.overlapping(start, end)

    def aliases(self) -> list[Self]:
        """Return the aliases with this region for a target that belong to the same VM; needs the big lock."""
        return [] if self._aliases is None else list(self._aliases)

    def claim(self, owner: RegionOwner) -> None:
        """Make this region, all it leads to and all that those stand in the property of `owner`, in a transaction.

        So what belongs to a VM leads only to what does, and stands only in what does: no edit of it, and none of a
        container around it, is left out of the journal.

        Raises:
            RegionError: One of them belongs to another VM; nothing has changed.
        """
        if self._owner is owner:
            return
        claimed = [
            one for one in _walk(self, lambda one: one._owner is not owner, upward=True) if one._owner is not owner
        ]
        for region in claimed:
            if region._owner is not None:
                raise RegionError(region.name, "belongs to another VM; make a region of its own for each VM")
        owner.journal(lambda: _disown(claimed))
        for region in claimed:
            region._owner = owner
            if region.target is not None:
                if region.target._aliases is None:
                    region.target._aliases = WeakSet()
                region.target._aliases.add(region)

    # inside an edit

    @staticmethod
    def _editing(owner: RegionOwner | None) -> AbstractContextManager[object]:
        return nullcontext() if owner is None else owner.transaction()

    def _damage(self, start: int = 0, end: int | None = None) -> None:
        if self._owner is not None and self.enabled:
            self._owner.damage(self, start, self.size if end is None else end)

    def _change(self, **values: object) -> None:
        """Assign attributes, with the journal entry that takes it back."""
        if self._owner is not None:
            old = {name: getattr(self, name) for name in values}
            self._owner.journal(lambda: self._assign(old))
        self._assign(values)

    def _assign(self, values: dict[str, object]) -> None:
        siblings: Any = None if self.parent is None or _PLACE.isdisjoint(values) else self.parent._children
        with interrupts_held_back():
            if siblings is not None:
                siblings.discard(self)
            for name, value in values.items():
                setattr(self, name, value)
            if siblings is not None:
                siblings.add(self)

    def _in_parent(self, what: str) -> RegionNode:
        if self.parent is None:
            raise RegionError(self.name, f"is in no region, so it cannot {what}; add it to one first")
        parent: RegionNode = self.parent
        return parent

    def _check_target_offset(self, offset: int) -> None:
        if not isinstance(offset, int):
            raise UsageError(f"offset {offset!r} of what '{self.name}' shows is no whole number")
        if not 0 <= offset < ADDRESS_SPACE_SIZE:
            target = "" if self.target is None else self.target.name
            raise RegionError(self.name, f"offset {offset:#x} in '{target}' is negative or not below 2^64")


N = TypeVar("N", bound=RegionNode)


def _link(child: N, parent: N, at: int, priority: int, serial: int) -> None:
    with interrupts_held_back():
        # An interrupt may have come before the removal that this takes back.
        _unlink(child)
        child.offset, child.priority, child.serial = at, priority, serial
        if parent._children is None:
            parent._children = Children()
        parent._children.add(child)
        child.parent = parent


def _unlink(child: RegionNode) -> None:
    """Take `child` out of its parent, if it is in one."""
    with interrupts_held_back():
        if child.parent is not None and child.parent._children is not None:
            child.parent._children.discard(child)
        child.parent = None


def _disown(regions: list[N]) -> None:
    for region in regions:
        region._owner = None
        if region.target is not None and region.target._aliases is not None:
            region.target._aliases.discard(region)


def _walk(top: N, descend: Callable[[N], bool], *, upward: bool = False) -> Iterator[N]:
    """Yield `top` and what it leads to, each once; behind those that `descend` refuses it does not look.

    With `upward`, also the parents of those, and what they lead to.
    """
    seen = {id(top)}
    pending = [top]
    while pending:
        region = pending.pop()
        yield region
        if not descend(region):
            continue
        below = [] if region._children is None else list(region._children)
        if region.target is not None:
            below.append(region.target)
        if upward and region.parent is not None:
            below.append(region.parent)
        for one in below:
            if id(one) not in seen:
                seen.add(id(one))
                pending.append(one)


def _reaches(child: N, parent: N) -> bool:
    """Return whether `child` leads to `parent`, which would make a circle.

    What belongs to a VM is not walked downward, as that may be the whole tree: from there on the question is asked
    upward from `parent`.
    """
    border = set()
    for region in _walk(child, lambda one: one._owner is None):
        if region is parent:
            return True
        if region._owner is not None:
            border.add(id(region))
    if not border or parent._owner is None:
        return False
    seen = {id(parent)}
    pending = [parent]
    while pending:
        region = pending.pop()
        if id(region) in border:
            return True
        for above in (*region.aliases(), *([] if region.parent is None else [region.parent])):
            if id(above) not in seen:
                seen.add(id(above))
                pending.append(above)
    return False


def _check_place(child: RegionNode, at: int, parent: RegionNode) -> None:
    if not isinstance(at, int):
        raise UsageError(f"offset {at!r} of '{child.name}' in '{parent.name}' is no whole number")
    if not 0 <= at <= ADDRESS_SPACE_SIZE - child.size:
        raise RegionError(child.name, f"of size {child.size:#x} at {at:#x} of '{parent.name}' does not end by 2^64")


def _check_priority(region: RegionNode, priority: int) -> None:
    if not isinstance(priority, int):
        raise UsageError(f"priority {priority!r} of '{region.name}' is no whole number")

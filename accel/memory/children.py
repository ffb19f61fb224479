"""The children of one region, found by place: what keeps the cost of an edit apart from the number of siblings.

Children overlap as they like, so order by address alone does not tell which of them reach into a window. They are
kept by size class (the power of two that their size fits into), each class ordered by offset: in a class nothing
that begins further before the window than the class's size can reach into it. Layer: below `region`. Guarded by
whatever guards the tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

from sortedcontainers import SortedKeyList


class Child(Protocol):
    """What is kept: its place must not change while it is inside."""

    offset: int
    size: int
    priority: int
    serial: int


C = TypeVar("C", bound=Child)


class Children(Generic[C]):
    """A set of children; see the module's text.

    Complexity: `add` and `discard` O(log n); `overlapping` O(classes · log n + k log k) for k children found, where
    there are as many classes as there are sizes that differ by more than a factor of two.
    """

    __slots__ = ("_classes", "_count")

    def __init__(self) -> None:
        self._classes: dict[int, Any] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[C]:
        """Yield all, in no order."""
        for siblings in self._classes.values():
            yield from siblings

    def add(self, child: C) -> None:
        """Put `child` in, which must not be inside."""
        power = (child.size - 1).bit_length()
        siblings = self._classes.get(power)
        if siblings is None:
            siblings = self._classes[power] = SortedKeyList(key=_offset)
        siblings.add(child)
        self._count += 1

    def discard(self, child: C) -> None:
        """Take `child` out, if it is inside."""
        power = (child.size - 1).bit_length()
        siblings = self._classes.get(power)
        if siblings is None or child not in siblings:
            return
        siblings.remove(child)
        self._count -= 1
        if not siblings:
            del self._classes[power]

    def overlapping(self, start: int, end: int) -> list[C]:
        """Return the children with an offset in [start, end), by rank: highest priority first, then latest added."""
        found: list[C] = []
        for power, siblings in self._classes.items():
            first = start - (1 << power) + 1
            found.extend(child for child in siblings.irange_key(first, end - 1) if child.offset + child.size > start)
        if len(found) > 1:
            found.sort(key=_rank)
        return found

    def ranked(self) -> tuple[C, ...]:
        """Return all by rank. O(n log n)."""
        return tuple(sorted(self, key=_rank))


def _offset(child: Child) -> int:
    return child.offset


def _rank(child: Child) -> tuple[int, int]:
    return -child.priority, -child.serial

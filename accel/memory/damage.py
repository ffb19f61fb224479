"""Damage: which windows of which address spaces may show something else than before, from edits of the tree.

An edit says which part of which region changes. From there the way leads upward, through parents and aliases, to each
root under which the part shows, shifted and clipped as rendering would do it downward. Layer: above `region_tree`,
below `transaction`, which renders the windows at commit. Guarded by the big lock.

What is noted may be too much, never too little: it is noted with the tree as it stands before and after each edit, so
that all edits of a transaction together change nothing outside of what was noted.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from accel.address import ADDRESS_SPACE_SIZE
from accel.memory.region_tree import RegionNode

#: Places and windows noted one by one; past that, everything is taken for damaged.
MAX_PLACES = 4096
MAX_WINDOWS = 1 << 16


class Damage:
    """Windows by root.

    Args:
        roots: The roots of all spaces, by identity; may change while this lives.
    """

    def __init__(self, roots: Collection[RegionNode]) -> None:
        self._roots = roots
        self._windows: dict[RegionNode, list[tuple[int, int]]] = {}

    def note(self, region: RegionNode, start: int, end: int) -> None:
        """Note that what `region` shows at its offsets [start, end) changes. O(places at which it shows)."""
        # A region is visited once for each window, so that aliases which lead to the same place cost nothing more.
        seen = {(id(region), start, end)}
        pending: list[tuple[Any, int, int]] = [(region, start, end)]
        while pending:
            region, start, end = pending.pop()
            if region in self._roots:
                self._add(region, start, end)
            above = [(alias, -alias.target_offset) for alias in region.aliases()]
            if region.parent is not None:
                above.append((region.parent, region.offset))
            for one, shift in above:
                low, high = max(start + shift, 0), min(end + shift, one.size)
                place = (id(one), low, high)
                if low < high and one.enabled and place not in seen:
                    seen.add(place)
                    pending.append((one, low, high))
            if len(seen) > MAX_PLACES:
                self.note_all()
                return

    def note_root(self, root: RegionNode) -> None:
        """Note that all of `root` changes."""
        # Not up to its size: it may have been larger before the transaction, or become so.
        self._windows[root] = [(0, ADDRESS_SPACE_SIZE)]

    def note_all(self) -> None:
        """Note that everything changes."""
        for root in self._roots:
            self.note_root(root)

    def clear(self) -> None:
        """Forget it all."""
        self._windows.clear()

    def windows(self, root: RegionNode) -> list[tuple[int, int]]:
        """Return the windows [start, end) of addresses under `root`, in no order; they may overlap."""
        return self._windows.get(root, [])

    def _add(self, root: RegionNode, start: int, end: int) -> None:
        windows = self._windows.setdefault(root, [])
        if len(windows) < MAX_WINDOWS:
            windows.append((start, end))
        else:
            self.note_root(root)

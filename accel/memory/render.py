"""Rendering: from a region tree to the sections that show inside one window of addresses.

The tree is walked by rank, and whoever comes first keeps the addresses that it covers; only children that reach into
the window are looked at. Source: QEMU's memory API (docs/devel/memory.rst), the rules only. Layer: above
`splice`, with which it shares the joining of neighbours.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection

from accel.address import ADDRESS_SPACE_SIZE, AddressRange
from accel.errors import RegionError
from accel.memory.flat_view import FlatView, MemoryRegionSection
from accel.memory.region import MemoryRegion, RegionKind
from accel.memory.splice import ViewDiff, merged, splice

#: Levels of regions and aliases inside each other.
MAX_DEPTH = 256
#: Places at which regions show, each alias of a region counted anew: aliases of aliases multiply. To refuse a tree
#: costs at most as much as to paint this many twice, a few seconds.
MAX_PLACEMENTS = 1 << 18


def render(root: MemoryRegion, window: AddressRange | None = None, log_mask: int = 0) -> FlatView:
    """Return the flat view of `root`, placed at address 0, inside `window`; without one, all of it."""
    start, end = (0, ADDRESS_SPACE_SIZE) if window is None else (window.start, window.end)
    return FlatView(paint(root, start, end, log_mask))


def follow(
    view: FlatView, damage: Collection[tuple[int, int]], root: MemoryRegion, log_mask: int = 0
) -> tuple[FlatView, ViewDiff]:
    """Return the view of `root` that follows `view`, and the difference; see `splice` and `paint`.

    Where one region reaches into many windows, they can cost more than everything: that is painted then.

    Raises:
        RegionError: As `paint`.
    """
    left = MAX_PLACEMENTS

    def paint_some(start: int, end: int) -> list[MemoryRegionSection]:
        nonlocal left
        canvas = _Canvas(root, log_mask, left)
        canvas.paint(root, 0, start, end, (False, False, False), 0)
        left = canvas.left
        return list(merged(canvas.sections))

    try:
        return splice(view, damage, paint_some)
    except RegionError:
        if len(damage) == 1:
            raise
        return splice(view, [(0, ADDRESS_SPACE_SIZE)], lambda start, end: paint(root, start, end, log_mask))


def paint(root: MemoryRegion, start: int, end: int, log_mask: int = 0) -> list[MemoryRegionSection]:
    """Return the sections that `root`, placed at address 0, shows inside [start, end), ascending.

    Args:
        root: Top of the tree.
        start: First address of the window.
        end: First address after it.
        log_mask: Clients (`DirtyClient`) that log all memory, besides those of each region.

    Complexity: O(k · log n) for k regions that reach into the window among n siblings each; k counts a region once
    for each place at which it shows.

    Raises:
        RegionError: The tree is deeper than `MAX_DEPTH`, or unfolds into more than `MAX_PLACEMENTS`.
    """
    canvas = _Canvas(root, log_mask, MAX_PLACEMENTS)
    canvas.paint(root, 0, start, end, (False, False, False), 0)
    return list(merged(canvas.sections))


class _Canvas:
    """Sections found so far, ascending; what is painted first stays. `left` is how many places may still come."""

    def __init__(self, root: MemoryRegion, log_mask: int, left: int) -> None:
        self.sections: list[MemoryRegionSection] = []
        self.left = left
        self._starts: list[int] = []
        self._root = root
        self._log_mask = log_mask

    def paint(
        self, region: MemoryRegion, base: int, start: int, end: int, flags: tuple[bool, bool, bool], depth: int
    ) -> None:
        """Paint `region` inside [start, end).

        Args:
            region: What to paint.
            base: Address of its first byte; may lie outside of all addresses.
            start: First address that it may show at.
            end: First address after those.
            flags: read-only, non-volatile, unmergeable: what stands above it is.
            depth: Levels above it.
        """
        start, end = max(start, base), min(end, base + region.size)
        if not region.enabled or start >= end or self._covers(start, end):
            return
        self.left -= 1
        if self.left < 0:
            raise RegionError(
                self._root.name, f"unfolds into more than {MAX_PLACEMENTS} places; let fewer aliases show each other"
            )
        if depth > MAX_DEPTH:
            raise RegionError(region.name, f"lies more than {MAX_DEPTH} levels deep; nest fewer regions and aliases")
        flags = (flags[0] or region.readonly, flags[1] or region.nonvolatile, flags[2] or region.unmergeable)
        if region.target is not None:
            self.paint(region.target, base - region.target_offset, start, end, flags, depth + 1)
            return
        for child in region.children_in(start - base, end - base):
            self.paint(child, base + child.offset, start, end, flags, depth + 1)
        if region.kind is not RegionKind.CONTAINER:
            self._fill(region, base, start, end, flags)

    def _covers(self, start: int, end: int) -> bool:
        """Return whether one section covers [start, end), so that nothing of what comes now can show."""
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and self.sections[index].range.end >= end

    def _fill(self, region: MemoryRegion, base: int, at: int, end: int, flags: tuple[bool, bool, bool]) -> None:
        """Let `region` show at those addresses in [at, end) that nothing covers yet."""
        index = bisect_right(self._starts, at)
        if index and self.sections[index - 1].range.end > at:
            at = self.sections[index - 1].range.end
        while at < end:
            taken = self.sections[index].range if index < len(self.sections) else None
            stop = end if taken is None else min(end, taken.start)
            if at < stop:
                self.sections.insert(index, self._section(region, at - base, AddressRange(at, stop), flags))
                self._starts.insert(index, at)
                index += 1
            if taken is None:
                return
            at = taken.end
            index += 1

    def _section(
        self, region: MemoryRegion, offset: int, window: AddressRange, flags: tuple[bool, bool, bool]
    ) -> MemoryRegionSection:
        logged = 0 if region.block is None else region.log_mask | self._log_mask
        return MemoryRegionSection(
            window, region, offset, flags[0], region.romd, flags[1], flags[2], logged, region.coalesced, region.eventfds
        )

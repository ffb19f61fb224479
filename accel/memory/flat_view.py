"""Flat views: what the guest sees at each address, as an immutable sorted list of sections.

`render` walks a region tree inside a window and lets the highest priority fill each gap first. `FlatView`
looks addresses up by bisection; `diff` tells what went, came and stayed between two views. Source: QEMU's
memory API (docs/devel/memory.rst), the rules only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from attrs import evolve, field, frozen

from accel.address import ADDRESS_SPACE_SIZE, AddressRange
from accel.memory.region import MemoryRegion, RegionKind


@frozen
class MemoryRegionSection:
    """A range of addresses that shows one part of one terminal region; the unit that listeners see.

    Two sections are the same mapping if all fields are equal.

    Attributes:
        range: Addresses in the space.
        region: RAM, ROM or MMIO; never a container or alias.
        offset: Where in the region the range begins.
        readonly: Whether guest writes are kept out, by the region or anything above it.
        unmergeable: Whether it stays apart from an equal neighbour.
    """

    range: AddressRange
    region: MemoryRegion
    offset: int
    readonly: bool = False
    unmergeable: bool = False

    @property
    def is_ram(self) -> bool:
        """Whether it is memory (RAM or ROM) that an accelerator can map."""
        return self.region.block is not None

    @property
    def host_address(self) -> int:
        """Host-virtual address of its first byte, for RAM and ROM."""
        assert self.region.block is not None
        return self.region.block.address + self.offset

    def span(self, start: int, size: int) -> memoryview:
        """Return the `size` bytes of RAM or ROM that it shows from `start`, an address in `range`, on.

        They are there whatever has become of the region since: a view stays readable.
        """
        assert self.region.block is not None
        at = self.offset + start - self.range.start
        return self.region.block.view[at : at + size]

    def __str__(self) -> str:
        what = "rom" if self.is_ram and self.readonly else self.region.kind.value
        return f"{self.range.start:016x}-{self.range.end - 1:016x} {what}: {self.region.name} @{self.offset:#x}"


@frozen
class FlatView:
    """Sections in ascending order, without overlap; addresses between them are unassigned.

    Complexity: `find` is O(log n).
    """

    sections: tuple[MemoryRegionSection, ...] = ()
    _starts: list[int] = field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_starts", [section.range.start for section in self.sections])

    def __iter__(self) -> Iterator[MemoryRegionSection]:
        return iter(self.sections)

    def __len__(self) -> int:
        return len(self.sections)

    def find(self, address: int) -> MemoryRegionSection | None:
        """Return the section that shows `address`, or None."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0:
            section = self.sections[index]
            if address < section.range.end:
                return section
        return None

    def overlapping(self, window: AddressRange) -> Iterator[MemoryRegionSection]:
        """Yield, ascending, the sections with an address in `window`."""
        for index in range(max(0, bisect_right(self._starts, window.start) - 1), len(self.sections)):
            section = self.sections[index]
            if section.range.start >= window.end:
                return
            if section.range.overlaps(window):
                yield section

    def __str__(self) -> str:
        return "\n".join(map(str, self.sections)) or "(empty)"


EMPTY_VIEW = FlatView()
_EVERYTHING = AddressRange(0, ADDRESS_SPACE_SIZE)


def render(root: MemoryRegion, window: AddressRange = _EVERYTHING) -> FlatView:
    """Return the flat view of `root`, placed at address 0, inside `window`.

    Complexity: O(regions + sections · log sections).
    """
    canvas = _Canvas()
    canvas.paint(root, 0, window, readonly=False, unmergeable=False)
    return FlatView(tuple(_merged(canvas.sections)))


class _Canvas:
    """Sections found so far, ascending; what is painted first stays."""

    def __init__(self) -> None:
        self.sections: list[MemoryRegionSection] = []
        self._starts: list[int] = []

    def paint(self, region: MemoryRegion, base: int, clip: AddressRange, *, readonly: bool, unmergeable: bool) -> None:
        """Paint `region` with its first byte at `base`, which may lie outside of all addresses."""
        start, end = max(clip.start, base), min(clip.end, base + region.size)
        if not region.enabled or start >= end:
            return
        clip = AddressRange(start, end)
        readonly |= region.readonly
        unmergeable |= region.unmergeable
        if region.kind is RegionKind.ALIAS:
            assert region.target is not None
            shifted = base - region.target_offset
            self.paint(region.target, shifted, clip, readonly=readonly, unmergeable=unmergeable)
            return
        for child in region.children:
            self.paint(child, base + child.offset, clip, readonly=readonly, unmergeable=unmergeable)
        if region.kind is not RegionKind.CONTAINER:
            self._fill(MemoryRegionSection(clip, region, start - base, readonly, unmergeable))

    def _fill(self, section: MemoryRegionSection) -> None:
        """Add the parts of `section` that nothing covers yet."""
        at, end = section.range.start, section.range.end
        index = bisect_right(self._starts, at)
        if index and self.sections[index - 1].range.end > at:
            at = self.sections[index - 1].range.end
        while at < end:
            taken = self.sections[index].range if index < len(self.sections) else None
            stop = end if taken is None else min(end, taken.start)
            if at < stop:
                shift = at - section.range.start
                part = evolve(section, range=AddressRange(at, stop), offset=section.offset + shift)
                self.sections.insert(index, part)
                self._starts.insert(index, at)
                index += 1
            if taken is None:
                return
            at = taken.end
            index += 1


def _merged(sections: list[MemoryRegionSection]) -> Iterator[MemoryRegionSection]:
    """Join neighbours that continue each other."""
    last: MemoryRegionSection | None = None
    for section in sections:
        if last is not None and _continues(last, section):
            last = evolve(last, range=AddressRange(last.range.start, section.range.end))
            continue
        if last is not None:
            yield last
        last = section
    if last is not None:
        yield last


def _continues(last: MemoryRegionSection, section: MemoryRegionSection) -> bool:
    return (
        last.range.end == section.range.start
        and last.region is section.region
        and last.offset + last.range.size == section.offset
        and last.readonly == section.readonly
        and not last.unmergeable
        and not section.unmergeable
    )


@frozen
class ViewDiff:
    """What a change of view means: each list is ascending."""

    removed: tuple[MemoryRegionSection, ...]
    added: tuple[MemoryRegionSection, ...]
    kept: tuple[MemoryRegionSection, ...]


def diff(old: FlatView, new: FlatView) -> ViewDiff:
    """Return which sections of `old` are gone, which of `new` came, and which stayed. O(n)."""
    removed: list[MemoryRegionSection] = []
    added: list[MemoryRegionSection] = []
    kept: list[MemoryRegionSection] = []
    before, after = list(reversed(old.sections)), list(reversed(new.sections))
    while before and after:
        if before[-1] == after[-1]:
            kept.append(after.pop())
            before.pop()
        elif before[-1].range.start <= after[-1].range.start:
            removed.append(before.pop())
        else:
            added.append(after.pop())
    removed.extend(reversed(before))
    added.extend(reversed(after))
    return ViewDiff(tuple(removed), tuple(added), tuple(kept))

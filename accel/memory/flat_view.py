"""Flat views: what the guest sees at each address, as an immutable sorted list of sections.

`FlatView` looks addresses up by bisection. How views are made is `accel.memory.render`, and how one follows from the
one before `accel.memory.splice`. Source: QEMU's memory API (docs/devel/memory.rst), the rules only.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from attrs import evolve, field, frozen

from accel.address import AddressRange
from accel.errors import AddressError
from accel.memory.ioeventfd import IoEventFd
from accel.memory.mmio import MmioOps
from accel.memory.region import MemoryRegion

#: Parts that are put into a copy of a view one by one; more are put together with what stays between them.
_FEW_PARTS = 16


@frozen
class MemoryRegionSection:
    """A range of addresses that shows one part of one terminal region; the unit that listeners see.

    An immutable value: what it says was so when its view was made. Two are the same mapping if all fields up to
    `unmergeable` are equal; the others may change while the mapping stays.

    Attributes:
        range: Addresses in the space.
        region: What shows; never an alias.
        offset: Where in the region the range begins.
        readonly: Whether guest writes are kept out of the memory, by the region or anything above it.
        romd: Whether it is a ROM device in its memory mode.
        nonvolatile: Whether the memory outlives power-off, by the region or anything above it.
        unmergeable: Whether it stays apart from an equal neighbour.
        log_mask: The dirty-log clients (`DirtyClient`) that log it.
        coalesced: Offsets in the region whose writes may be queued.
        eventfds: The ioeventfds of the region, at offsets in it.
    """

    range: AddressRange
    region: MemoryRegion
    offset: int
    readonly: bool = False
    romd: bool = False
    nonvolatile: bool = False
    unmergeable: bool = False
    log_mask: int = field(default=0, eq=False)
    coalesced: tuple[AddressRange, ...] = field(default=(), eq=False, repr=False)
    eventfds: tuple[IoEventFd, ...] = field(default=(), eq=False, repr=False)

    @property
    def is_ram(self) -> bool:
        """Whether it is memory that an accelerator can map: RAM, ROM, or a ROM device in its memory mode."""
        region = self.region
        return region.block is not None and (region.ops is None or self.romd)

    @property
    def maps_readonly(self) -> bool:
        """Whether an accelerator must map it so that guest writes come out."""
        return self.readonly or self.romd

    @property
    def host_address(self) -> int:
        """Host-virtual address of its first byte, where it is memory."""
        assert self.region.block is not None
        return self.region.block.address + self.offset

    def ops(self, *, is_write: bool) -> MmioOps | None:
        """Return the callbacks that serve such an access; None where memory does."""
        return None if self.is_ram and not (is_write and self.romd) else self.region.ops

    def span(self, start: int, size: int) -> memoryview:
        """Return the `size` bytes of memory that it shows from `start`, an address in `range`, on.

        They are there whatever has become of the region since: a view stays readable.
        """
        assert self.region.block is not None
        at = self.offset + start - self.range.start
        return self.region.block.span(at, size)

    def store(self, start: int, data: bytes | memoryview) -> None:
        """Write to the memory that it shows from `start` on, and note that for the clients that log it.

        Raises:
            AddressError: The host cannot write this memory.
        """
        span = self.span(start, len(data))
        if span.readonly:
            raise AddressError(f"the memory of '{self.region.name}' is a read-only file; write to a copy of it")
        span[:] = data
        self.region.mark_dirty(self.offset + start - self.range.start, len(data))

    def part(self, start: int, end: int) -> MemoryRegionSection:
        """Return the section for its addresses [start, end)."""
        # Spelled out, as attrs' evolve takes three times as long.
        return MemoryRegionSection(
            AddressRange(start, end),
            self.region,
            self.offset + start - self.range.start,
            self.readonly,
            self.romd,
            self.nonvolatile,
            self.unmergeable,
            self.log_mask,
            self.coalesced,
            self.eventfds,
        )

    def coalesced_ranges(self) -> list[AddressRange]:
        """Return the addresses that it shows of `coalesced`, ascending."""
        shift = self.range.start - self.offset
        found = []
        for window in self.coalesced:
            start, end = max(window.start + shift, self.range.start), min(window.end + shift, self.range.end)
            if start < end:
                found.append(AddressRange(start, end))
        return found

    def eventfds_at(self) -> list[IoEventFd]:
        """Return those `eventfds` that it shows whole, with the address in the space for an offset."""
        shift = self.range.start - self.offset
        return [
            evolve(one, offset=one.offset + shift)
            for one in self.eventfds
            if self.range.start <= one.offset + shift and one.offset + shift + (one.size or 1) <= self.range.end
        ]

    def __str__(self) -> str:
        what = "rom" if self.is_ram and self.maps_readonly else self.region.kind.value
        return f"{self.range.start:016x}-{self.range.end - 1:016x} {what}: {self.region.name} @{self.offset:#x}"


class FlatView:
    """Sections in ascending order, without overlap; addresses between them are unassigned. Immutable.

    Where the sections begin and end also stands in arrays: a lookup in a large map then touches few cache lines, and
    copying them for the next view counts no references.

    Args:
        sections: The sections.

    Complexity: `find`, `locate` and `index` are O(log n).
    """

    __slots__ = ("_lasts", "_sections", "_starts")

    def __init__(self, sections: Iterable[MemoryRegionSection] = ()) -> None:
        self._sections = list(sections)
        self._starts, self._lasts = _bounds(self._sections)

    @property
    def sections(self) -> tuple[MemoryRegionSection, ...]:
        """All of them. O(n)."""
        return tuple(self._sections)

    @overload
    def __getitem__(self, index: int) -> MemoryRegionSection: ...

    @overload
    def __getitem__(self, index: slice) -> list[MemoryRegionSection]: ...

    def __getitem__(self, index: int | slice) -> MemoryRegionSection | list[MemoryRegionSection]:
        """Return a section by its number, or some."""
        return self._sections[index]

    def __iter__(self) -> Iterator[MemoryRegionSection]:
        return iter(self._sections)

    def __len__(self) -> int:
        return len(self._sections)

    def __eq__(self, other: object) -> bool:
        return self._sections == other._sections if isinstance(other, FlatView) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self._sections))

    def find(self, address: int) -> MemoryRegionSection | None:
        """Return the section that shows `address`, or None."""
        index = bisect_right(self._starts, address) - 1
        return self._sections[index] if index >= 0 and address <= self._lasts[index] else None

    def locate(self, address: int) -> tuple[MemoryRegion, int] | None:
        """Return the region that shows `address` and the offset in it, or None."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address > self._lasts[index]:
            return None
        section = self._sections[index]
        return section.region, section.offset + address - self._starts[index]

    def index(self, address: int) -> int:
        """Return the number of the first section that ends after `address`."""
        index = bisect_right(self._starts, address) - 1
        return index if index >= 0 and address <= self._lasts[index] else index + 1

    def overlapping(self, window: AddressRange) -> Iterator[MemoryRegionSection]:
        """Yield, ascending, the sections with an address in `window`."""
        for index in range(self.index(window.start), len(self._sections)):
            section = self._sections[index]
            if section.range.start >= window.end or not window.size:
                return
            yield section

    def windows(self, address: int, size: int, name: str) -> list[tuple[MemoryRegionSection, int, int]]:
        """Return the sections that serve `size` bytes from `address` on, ascending: (section, address, size) of each.

        Args:
            address: Where it begins.
            size: Bytes.
            name: Of the space, for the message.

        Raises:
            AddressError: Nothing serves one of the addresses.
        """
        wanted = AddressRange.sized(address, size)
        found = []
        # Plain numbers: ranges would take as long as all else that an access to memory across sections does.
        sections, index, at, end = self._sections, self.index(address), address, wanted.end
        while at < end:
            if index == len(sections) or self._starts[index] > at:
                raise AddressError(f"nothing is mapped at {at:#x} of '{name}', in {wanted}")
            stop = min(self._lasts[index] + 1, end)
            found.append((sections[index], at, stop - at))
            at = stop
            index += 1
        return found

    def replaced(self, parts: Sequence[tuple[int, int, Sequence[MemoryRegionSection]]]) -> FlatView:
        """Return the view with other sections in place of some.

        Args:
            parts: `(first, last, sections)`: these instead of numbers `first` up to but not including `last`;
                ascending and apart.
        """
        view = FlatView.__new__(FlatView)
        if len(parts) <= _FEW_PARTS:
            # One copy, and a move for each part, all of it in C.
            view._sections, view._starts, view._lasts = self._sections[:], self._starts[:], self._lasts[:]
            for first, last, new in reversed(parts):
                view._sections[first:last] = new
                view._starts[first:last], view._lasts[first:last] = _bounds(new)
            return view
        view._sections, view._starts, view._lasts = [], array("Q"), array("Q")
        at = 0
        for first, last, new in (*parts, (len(self._sections), len(self._sections), ())):
            starts, lasts = _bounds(new)
            view._sections += self._sections[at:first]
            view._sections += new
            view._starts += self._starts[at:first] + starts
            view._lasts += self._lasts[at:first] + lasts
            at = last
        return view

    def first_from(self, address: int) -> int:
        """Return the number of the first section that begins at `address` or after it."""
        return bisect_left(self._starts, address)

    def __str__(self) -> str:
        return "\n".join(map(str, self._sections)) or "(empty)"


def _bounds(sections: Sequence[MemoryRegionSection]) -> tuple[array[int], array[int]]:
    """Return the first and the last address of each."""
    starts = array("Q", [section.range.start for section in sections])
    return starts, array("Q", [section.range.end - 1 for section in sections])


EMPTY_VIEW = FlatView()

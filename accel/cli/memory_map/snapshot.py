"""A machine's memory map as values: the tree of each space as rows, its flat view, and who claims what.

Rows are in the order in which they are printed, parents before children and siblings by address. Regions have numbers,
since names need not be unique. Nothing here recurses, so a tree may be as deep as it likes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attrs import field, frozen

from accel.cli.memory_map.claims import Stack, claims_below, stacked
from accel.devices.base import Device
from accel.errors import UsageError
from accel.machine import Machine
from accel.memory.address_space import AddressSpace
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.region import MemoryRegion
from accel.options import nearest


@frozen
class AliasTarget:
    """What an alias shows: the bytes [start, end) of the region `id`."""

    id: int
    name: str
    start: int
    end: int


@frozen
class TreeRow:
    """One region where it stands in a tree.

    Attributes:
        id: Its number in the map.
        parent: The number of the region that it stands in, or None.
        depth: How many regions are above it.
        rank: Its place in the order of painting: of two rows of a tree, the lower one is in front.
        kind: What it is made of.
        served: What kind of region answers, as `served_kind` says.
        start: Where its first byte stands; perhaps beyond its parent's end, where it does not show.
        owner: The device that it belongs to, where that is known.
        alias: What it shows, if it is an alias.
    """

    id: int
    parent: int | None
    depth: int
    rank: int
    name: str
    kind: str
    served: str
    start: int
    size: int
    priority: int
    enabled: bool
    readonly: bool
    nonvolatile: bool
    coalesced: bool
    owner: str | None
    alias: AliasTarget | None

    @property
    def end(self) -> int:
        """The address after its last byte."""
        return self.start + self.size


@frozen
class FlatRow:
    """One range of a flat view: the addresses [start, end) show the region `id` from `offset` on.

    Attributes:
        kind: What kind of region answers, as `served_kind` says.
    """

    id: int
    start: int
    end: int
    name: str
    kind: str
    offset: int
    priority: int
    readonly: bool
    nonvolatile: bool
    owner: str | None


@frozen
class SpaceMap:
    """One address space.

    Attributes:
        tree: Its root, and all regions in it.
        flat: What each address shows, ascending.
        stacks: Who claims what, ascending.
    """

    name: str
    tree: tuple[TreeRow, ...]
    flat: tuple[FlatRow, ...]
    stacks: tuple[Stack, ...]


@frozen
class MemoryMap:
    """A machine's map.

    Attributes:
        name: What it is the map of.
        detached: The trees of regions that aliases show and that stand in none of `spaces`.
        numbers: The number of each region, by its `id()`.
        owners: The name of each region's device, by its `id()`, where it is known.
    """

    name: str
    spaces: tuple[SpaceMap, ...]
    detached: tuple[tuple[TreeRow, ...], ...]
    numbers: Mapping[int, int] = field(repr=False)
    owners: Mapping[int, str] = field(repr=False)


def take_snapshot(machine: Machine, name: str, space: str | None = None) -> MemoryMap:
    """Return the map of `machine`, or of its address space `space` only. Takes the big lock.

    Raises:
        UsageError: There is no such space, or its aliases lead to too many regions.
    """
    with machine.vm.big_lock:
        spaces = list(machine.vm.address_spaces)
        if space is not None:
            names = [one.name for one in spaces]
            if space not in names:
                raise UsageError(f"no address space '{space}'; {nearest(space, names)}")
            spaces = [one for one in spaces if one.name == space]
        return _Reader(machine.devices).read(name, spaces)


@frozen
class _Place:
    """A region where it stands in a tree."""

    region: MemoryRegion
    depth: int
    start: int


class _Reader:
    """Numbers regions and finds their owners while it reads trees."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = {id(device): device.name for device in devices}
        self._held = {
            id(value): device.name
            for device in devices
            for value in getattr(device, "__dict__", {}).values()
            if isinstance(value, MemoryRegion)
        }
        self._numbers: dict[int, int] = {}
        self._owners: dict[int, str] = {}

    def read(self, name: str, spaces: Sequence[AddressSpace]) -> MemoryMap:
        trees = [self._places(space.root) for space in spaces]
        # Aliases in these lead on to others.
        detached: list[list[_Place]] = []
        for places in self._and_more(trees, detached):
            for place in places:
                target = place.region.target
                if target is not None and id(target) not in self._numbers:
                    detached.append(self._places(_top(target)))
        maps = tuple(
            SpaceMap(
                space.name, self._rows(tree), tuple(map(self._flat_row, space.view)), tuple(stacked(claims_below(root)))
            )
            for space, tree, root in zip(spaces, trees, (space.root for space in spaces), strict=True)
        )
        return MemoryMap(name, maps, tuple(map(self._rows, detached)), self._numbers, self._owners)

    @staticmethod
    def _and_more(first: list[list[_Place]], growing: list[list[_Place]]) -> Iterator[list[_Place]]:
        """Yield the trees in `first`, and then those in `growing`, which grows meanwhile."""
        yield from first
        yield from growing

    def _places(self, root: MemoryRegion) -> list[_Place]:
        found = []
        pending = [_Place(root, 0, 0)]
        while pending:
            place = pending.pop()
            region = place.region
            found.append(place)
            # Spaces may share a root.
            self._numbers.setdefault(id(region), len(self._numbers))
            owner = self._owner(region)
            if owner is not None:
                self._owners[id(region)] = owner
            # Highest priority first where they begin at one address; the last one pushed is the next.
            children = sorted(region.children, key=lambda child: child.offset)
            pending.extend(_Place(child, place.depth + 1, place.start + child.offset) for child in reversed(children))
        return found

    def _owner(self, region: MemoryRegion) -> str | None:
        """Return the device whose callbacks the region has, that holds it, or that owns what it stands in."""
        for callback in (getattr(region.ops, "read", None), getattr(region.ops, "write", None)):
            name = self._devices.get(id(getattr(callback, "__self__", None)))
            if name is not None:
                return name
        held = self._held.get(id(region))
        return held if held is not None or region.parent is None else self._owners.get(id(region.parent))

    def _rows(self, places: list[_Place]) -> tuple[TreeRow, ...]:
        ranks = _ranks(places[0].region)
        return tuple(self._row(place, ranks[id(place.region)]) for place in places)

    def _row(self, place: _Place, rank: int) -> TreeRow:
        region = place.region
        target = region.target
        alias = None
        if target is not None:
            start = region.target_offset
            alias = AliasTarget(self._numbers[id(target)], target.name, start, start + region.size)
        return TreeRow(
            id=self._numbers[id(region)],
            parent=self._numbers[id(region.parent)] if place.depth else None,
            depth=place.depth,
            rank=rank,
            name=region.name,
            kind=region.kind.value,
            served=served_kind(region),
            start=place.start,
            size=region.size,
            priority=region.priority,
            enabled=region.enabled,
            readonly=region.readonly,
            nonvolatile=region.nonvolatile,
            coalesced=bool(region.coalesced),
            owner=self._owners.get(id(region)),
            alias=alias,
        )

    def _flat_row(self, section: MemoryRegionSection) -> FlatRow:
        region = section.region
        return FlatRow(
            id=self._numbers[id(region)],
            start=section.range.start,
            end=section.range.end,
            name=region.name,
            kind=served_kind(region, section.readonly),
            offset=section.offset,
            priority=region.priority,
            readonly=section.readonly,
            nonvolatile=section.nonvolatile,
            owner=self._owners.get(id(region)),
        )


def served_kind(region: MemoryRegion, readonly: bool = False) -> str:
    """Return what kind of region answers where `region` shows: for an alias what it leads to in the end.

    RAM that is read-only, there or on the way, is ``rom``; a ROM device whose reads are trapped is ``mmio``.
    """
    readonly = readonly or region.readonly
    while region.target is not None:
        region = region.target
        readonly = readonly or region.readonly
    kind: str = region.kind.value
    if kind == "romd" and not region.romd:
        return "mmio"
    return "rom" if kind == "ram" and readonly else kind


def _top(region: MemoryRegion) -> MemoryRegion:
    while region.parent is not None:
        region = region.parent
    return region


def _ranks(root: MemoryRegion) -> dict[int, int]:
    """Return the place of each region of a tree in the order of painting, by its `id()`."""
    ranks: dict[int, int] = {}
    pending: list[tuple[MemoryRegion, bool]] = [(root, False)]
    while pending:
        region, below_done = pending.pop()
        if below_done:
            ranks[id(region)] = len(ranks)
        else:
            pending.append((region, True))
            pending.extend((child, False) for child in reversed(region.children))
    return ranks

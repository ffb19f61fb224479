"""A space's map as a chart: rows of addresses, what each shows, and bars for the regions that lead there.

A row is a range in which nothing in the picture begins or ends. Bars are in the order of painting, the one in front
first. A region that shows whole and by itself needs no bar; its range in the flat view says all about it.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise

from attrs import frozen

from accel.cli.memory_map.claims import Claim, Stack
from accel.cli.memory_map.snapshot import FlatRow, MemoryMap, SpaceMap, TreeRow

#: Aliases of aliases can make rows without end; beyond so many, several become one.
_MOST_EDGES = 6000


class State(enum.Enum):
    """What a row sees of a bar."""

    SHOWN = "shown"
    HIDDEN = "hidden"
    EMPTY = "empty"
    DISABLED = "disabled"


@frozen
class Fold:
    """What a row or a bar stands for that is in the place of several.

    Attributes:
        names: Of what is folded, in order.
        kinds: The kinds of region that show in a row.
        alike: Whether they repeat what stands above.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    alike: bool


@frozen
class Row:
    """The addresses [start, end), and the range of the flat view that they are a part of.

    Attributes:
        fold: What they stand for, if they are several rows in one that do not all show the same.
    """

    start: int
    end: int
    flat: FlatRow | None
    fold: Fold | None = None

    @property
    def size(self) -> int:
        """How many addresses it has."""
        return self.end - self.start


@frozen
class Bar:
    """A region across the rows from `first` on, one for each of `states`.

    Attributes:
        fold: What it stands for, if it is several bars in one; `region` is that in front.
    """

    region: TreeRow
    first: int
    states: tuple[State, ...]
    fold: Fold | None = None

    @property
    def end(self) -> int:
        """The row after its last one."""
        return self.first + len(self.states)


@frozen
class Chart:
    """What is drawn of one space."""

    name: str
    regions: int
    rows: tuple[Row, ...]
    bars: tuple[Bar, ...]


@frozen
class _Extent:
    """The addresses at which a region could show: inside all that it stands in."""

    region: TreeRow
    start: int
    end: int
    enabled: bool


@frozen
class _Seen:
    """What the claims to a row say.

    Attributes:
        front: Numbers of the regions of the tree that lead to what shows.
        claimed: Numbers of those that lead to any claim.
        crowded: Whether there are more claims than are known.
    """

    front: Collection[int]
    claimed: Collection[int]
    crowded: bool


def build_chart(space: SpaceMap, memory_map: MemoryMap) -> Chart:
    """Return the chart of `space`."""
    shown = _sizes_shown(space.stacks, memory_map.numbers)
    extents = [one for one in _extents(space.tree)[1:] if _needs_bar(one, shown)]
    root = space.tree[0]
    edges = {root.start, root.end}
    edges.update(edge for row in space.flat for edge in (row.start, row.end))
    edges.update(edge for one in extents for edge in (one.start, one.end))
    rows = _rows(_thinned(sorted(edges)), space.flat)
    bars = _bars(extents, rows, _seen(rows, space.stacks, memory_map.numbers))
    return Chart(space.name, len(space.tree) - 1, tuple(rows), tuple(bars))


def _extents(tree: tuple[TreeRow, ...]) -> list[_Extent]:
    found: dict[int, _Extent] = {}
    for row in tree:
        above = None if row.parent is None else found[row.parent]
        start = row.start if above is None else max(row.start, above.start)
        end = row.end if above is None else min(row.end, above.end)
        found[row.id] = _Extent(row, start, max(start, end), row.enabled and (above is None or above.enabled))
    return list(found.values())


def _sizes_shown(stacks: tuple[Stack, ...], numbers: Mapping[int, int]) -> dict[int, int]:
    """Return how much of each region shows where it stands itself."""
    sizes: dict[int, int] = {}
    for stack in stacks:
        step = stack.claims[0].step
        if step.in_tree:
            number = numbers[id(step.region)]
            sizes[number] = sizes.get(number, 0) + stack.end - stack.start
    return sizes


def _needs_bar(extent: _Extent, shown: Mapping[int, int]) -> bool:
    size = extent.end - extent.start
    return size > 0 and shown.get(extent.region.id, 0) < size


def _thinned(edges: list[int]) -> list[int]:
    """Return no more than about `_MOST_EDGES` of them, the first and the last among them."""
    step = -(-len(edges) // _MOST_EDGES)
    return edges[:-1:step] + edges[-1:]


def _rows(edges: list[int], flat: tuple[FlatRow, ...]) -> list[Row]:
    starts = [row.start for row in flat]
    ends = [row.end for row in flat]
    rows = []
    for start, end in pairwise(edges):
        here = flat[bisect_right(ends, start) : bisect_left(starts, end)]
        if all(one.start <= start and end <= one.end for one in here):
            rows.append(Row(start, end, here[0] if here else None))
        else:
            kinds = dict.fromkeys(one.kind for one in here)
            rows.append(Row(start, end, None, Fold(tuple(one.name for one in here), tuple(kinds), alike=False)))
    return rows


def _seen(rows: list[Row], stacks: tuple[Stack, ...], numbers: Mapping[int, int]) -> list[_Seen]:
    starts = [stack.start for stack in stacks]
    found = []
    for row in rows:
        index = max(0, bisect_right(starts, row.start) - 1)
        here = []
        while index < len(stacks) and stacks[index].start < row.end:
            if stacks[index].end > row.start:
                here.append(stacks[index])
            index += 1
        at_start = here and here[0].start <= row.start
        found.append(
            _Seen(
                _in_tree(here[0].claims[0], numbers) if at_start else (),
                {number for stack in here for claim in stack.claims for number in _in_tree(claim, numbers)},
                any(stack.count > len(stack.claims) for stack in here),
            )
        )
    return found


def _in_tree(claim: Claim, numbers: Mapping[int, int]) -> list[int]:
    return [numbers[id(step.region)] for step in claim.step.way() if step.in_tree]


def _bars(extents: list[_Extent], rows: list[Row], seen: list[_Seen]) -> Iterator[Bar]:
    starts = [row.start for row in rows]
    for extent in sorted(extents, key=lambda one: one.region.rank):
        # Rows that were thinned out begin before the region, or end after it.
        first, end = bisect_right(starts, extent.start) - 1, bisect_left(starts, extent.end)
        yield Bar(extent.region, first, tuple(_state(extent, seen[index]) for index in range(first, end)))


def _state(extent: _Extent, seen: _Seen) -> State:
    if not extent.enabled:
        return State.DISABLED
    if extent.region.id in seen.front:
        return State.SHOWN
    return State.HIDDEN if extent.region.id in seen.claimed or seen.crowded else State.EMPTY

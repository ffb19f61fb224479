"""Who claims an address: every region that shows there or would, from the front to the back, and why the first wins.

A region claims what is left of it when the containers and aliases on the way to it have cut it; a container claims
nothing by itself. Claims are found in the order in which a view is painted: children by priority, among equals the
latest added first, then the region itself. So of two claims to an address the earlier one wins, and what tells them
apart is found where their ways from the root part.

Cost: O(n log n) for n claims, and at most `KEPT` claims are kept for each range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Literal

from attrs import frozen
from sortedcontainers import SortedList

from accel.errors import UsageError
from accel.memory.region import MemoryRegion, RegionKind

#: Claims kept for one range: the winner and those next behind it.
KEPT = 33
#: Aliases of aliases can show one region any number of times; more than this are not followed.
MOST_STEPS = 200_000
_MOST_LISTED = 50_000

Rule = Literal["priority", "later", "child"]


@frozen(eq=False)
class Step:
    """One region on the way from a space's root to what claims addresses; another way is another step.

    Attributes:
        above: The container, or alias, that leads to it; None for the root.
        depth: Steps from the root.
        in_tree: Whether it stands in the tree, and is not seen through an alias.
    """

    region: MemoryRegion
    above: Step | None
    depth: int
    in_tree: bool

    def way(self) -> Iterator[Step]:
        """Yield this step and those above it, up to the root."""
        step: Step | None = self
        while step is not None:
            yield step
            step = step.above


@frozen(eq=False)
class Claim:
    """A region's claim to the addresses [start, end).

    Attributes:
        step: The region, and the way to it.
        offset: Where in the region `start` is.
        readonly: Whether guest writes are kept out, by the region or anything on the way.
    """

    step: Step
    start: int
    end: int
    offset: int
    readonly: bool

    @property
    def region(self) -> MemoryRegion:
        """What claims them."""
        return self.step.region

    @property
    def aliases(self) -> list[str]:
        """Names of the aliases that lead to it, the first one first."""
        return [one.region.name for one in self.step.way() if one.region.target is not None][::-1]


@frozen(eq=False)
class Stack:
    """The claims to one range, none of which begins or ends inside it.

    Attributes:
        claims: From the front to the back: the winner, and at most `KEPT` - 1 behind it.
        count: How many there are.
    """

    start: int
    end: int
    claims: tuple[Claim, ...]
    count: int


def claims_below(root: MemoryRegion) -> list[Claim]:
    """Return all claims to addresses of `root`, standing at 0, in order of painting.

    Raises:
        UsageError: Aliases lead to more than `MOST_STEPS` regions.
    """
    found: list[Claim] = []
    taken = 0
    # The region, the step above it, where its first byte stands, the addresses it may have, and whether they are
    # read-only. A step in the place of the region is that region's own claim, after its children's.
    pending: list[tuple[MemoryRegion | Step, Step | None, int, int, int, bool]] = [(root, None, 0, 0, root.size, False)]
    while pending:
        region, above, base, start, end, readonly = pending.pop()
        if isinstance(region, Step):
            found.append(Claim(region, start, end, start - base, readonly))
            continue
        start, end = max(start, base), min(end, base + region.size)
        if not region.enabled or start >= end:
            continue
        taken += 1
        if taken > MOST_STEPS:
            raise UsageError(
                f"the aliases in '{root.name}' show more than {MOST_STEPS:,} regions; overlaps and pictures end there"
            )
        readonly = readonly or region.readonly
        seen = above is not None and (above.region.target is not None or not above.in_tree)
        step = Step(region, above, 0 if above is None else above.depth + 1, not seen)
        if region.target is not None:
            pending.append((region.target, step, base - region.target_offset, start, end, readonly))
            continue
        if region.kind is not RegionKind.CONTAINER:
            pending.append((step, None, base, start, end, readonly))
        pending.extend((child, step, base + child.offset, start, end, readonly) for child in reversed(region.children))
    return found


def stacked(claims: list[Claim]) -> list[Stack]:
    """Return the claims by range, ascending; `claims` are in order of painting."""
    edges: dict[int, tuple[list[int], list[int]]] = {}
    for rank, claim in enumerate(claims):
        edges.setdefault(claim.start, ([], []))[0].append(rank)
        edges.setdefault(claim.end, ([], []))[1].append(rank)
    active = SortedList()
    found = []
    for start, end in pairwise(sorted(edges)):
        begun, ended = edges[start]
        active.update(begun)
        for rank in ended:
            active.remove(rank)
        if active:
            found.append(Stack(start, end, tuple(claims[rank] for rank in islice(active, KEPT)), len(active)))
    return found


def listed_overlaps(stacks: Sequence[Stack]) -> tuple[list[Stack], int]:
    """Return those that several regions claim, and how many of them there are beyond the returned ones.

    As many as have about `_MOST_LISTED` claims together: aliases of aliases can overlap in very many places.
    """
    overlaps = [stack for stack in stacks if stack.count > 1]
    count, listed = 0, 0
    while count < len(overlaps) and listed < _MOST_LISTED:
        listed += len(overlaps[count].claims)
        count += 1
    return overlaps[:count], len(overlaps) - count


def why(winner: Claim, hidden: Claim, shown: Callable[[str], str] = str) -> tuple[Rule, str]:
    """Return the rule by which `winner` hides `hidden` where both claim an address, and the reason in words."""
    behind = hidden.step
    front = next(step for step in winner.step.way() if step.depth <= behind.depth)
    if front is behind:
        return "child", f"'{shown(winner.region.name)}' stands inside '{shown(behind.region.name)}'"
    behind = next(step for step in behind.way() if step.depth <= front.depth)
    while front.above is not behind.above:
        assert front.above is not None
        assert behind.above is not None
        front, behind = front.above, behind.above
    assert front.above is not None
    names = shown(front.region.name), shown(behind.region.name), shown(front.above.region.name)
    if front.region.priority != behind.region.priority:
        text = "'{}' has priority {} in '{}', '{}' has {}"
        return "priority", text.format(names[0], front.region.priority, names[2], names[1], behind.region.priority)
    return "later", f"'{names[0]}' was added to '{names[2]}' later than '{names[1]}', with the same priority"

"""A memory map as text in the form that QEMU's ``info mtree`` has made familiar: hex ranges with their last address.

Trees nest by indentation; what aliases show and no tree has follows as ``memory-region``. The flat view and the
overlaps are lists of ranges.
"""

from __future__ import annotations

from collections.abc import Iterator

from accel.cli.memory_map.claims import Claim, Stack, listed_overlaps, why
from accel.cli.memory_map.names import shown
from accel.cli.memory_map.snapshot import FlatRow, MemoryMap, TreeRow, served_kind

#: Hidden regions listed for one range; the rest is a number.
_LISTED = 8


def tree_lines(memory_map: MemoryMap, *, owners: bool) -> Iterator[str]:
    """Yield the trees of all spaces, and of what only aliases show."""
    for space in memory_map.spaces:
        yield f"address-space: {shown(space.name)}"
        yield from _tree(space.tree, owners)
        yield ""
    for tree in memory_map.detached:
        yield f"memory-region: {shown(tree[0].name)}"
        yield from _tree(tree, owners)
        yield ""


def _tree(rows: tuple[TreeRow, ...], owners: bool) -> Iterator[str]:
    for row in rows:
        what = shown(row.name)
        if row.alias is not None:
            what = f"alias {what} @{shown(row.alias.name)} {_range(row.alias.start, row.alias.end)}"
        if row.readonly and row.served != "rom":
            what += " [readonly]"
        if not row.enabled:
            what += " [disabled]"
        kind = _kind(row.served, row.nonvolatile)
        owner = _owner(row.owner) if owners else ""
        yield f"{'  ' * (row.depth + 1)}{_range(row.start, row.end)} (prio {row.priority}, {kind}): {what}{owner}"


def flat_lines(memory_map: MemoryMap) -> Iterator[str]:
    """Yield the flat view of each space."""
    for number, space in enumerate(memory_map.spaces):
        yield f"FlatView #{number}"
        yield f' AS "{shown(space.name)}", root: {shown(space.tree[0].name)}'
        yield f" Root memory region: {shown(space.tree[0].name)}"
        for row in space.flat:
            kind = _kind(row.kind, row.nonvolatile)
            yield f"  {_range(row.start, row.end)} (prio {row.priority}, {kind}): {_flat(row)}"
        if not space.flat:
            yield "  nothing shows"
        yield ""


def _flat(row: FlatRow) -> str:
    at = f" @{row.offset:016x}" if row.offset else ""
    return shown(row.name) + at + _owner(row.owner)


def overlap_lines(memory_map: MemoryMap) -> Iterator[str]:
    """Yield each range that several regions claim: who has it, whom it hides, and why."""
    for space in memory_map.spaces:
        yield f"overlaps: {shown(space.name)}"
        stacks, left_out = listed_overlaps(space.stacks)
        for stack in stacks:
            yield from _overlap(stack, memory_map)
        if left_out:
            yield f"  and {left_out:,} more ranges"
        if not stacks:
            yield "  none"
        yield ""


def _overlap(stack: Stack, memory_map: MemoryMap) -> Iterator[str]:
    winner, *hidden = stack.claims
    yield f"  {_range(stack.start, stack.end)} {_claim(winner, stack, memory_map)}"
    for claim in hidden[:_LISTED]:
        yield f"    hides {_claim(claim, stack, memory_map)}: {why(winner, claim, shown)[1]}"
    if stack.count - 1 > _LISTED:
        yield f"    hides {stack.count - 1 - _LISTED:,} more"


def _claim(claim: Claim, stack: Stack, memory_map: MemoryMap) -> str:
    region = claim.region
    offset = claim.offset + stack.start - claim.start
    text = f"(prio {region.priority}, {served_kind(region, claim.readonly)}): {shown(region.name)}"
    if offset:
        text += f" @{offset:016x}"
    if claim.aliases:
        text += f" through {', '.join(map(shown, claim.aliases))}"
    return text + _owner(memory_map.owners.get(id(region)))


def _kind(kind: str, nonvolatile: bool) -> str:
    return f"nv-{kind}" if nonvolatile else kind


def _range(start: int, end: int) -> str:
    return f"{start:016x}-{end - 1:016x}"


def _owner(name: str | None) -> str:
    return "" if name is None else f" owner: {shown(name)}"

"""A memory map as plain data for JSON. ``docs/reference/accelctl.md`` describes it; addresses are hex strings."""

from __future__ import annotations

from typing import Any

from accel.cli.memory_map.claims import Claim, Stack, listed_overlaps, why
from accel.cli.memory_map.names import in_data
from accel.cli.memory_map.snapshot import FlatRow, MemoryMap, SpaceMap, TreeRow, served_kind

#: The number under ``format``; it changes when a field of before goes or means something else.
FORMAT = 1


def map_data(memory_map: MemoryMap) -> dict[str, Any]:
    """Return the trees, flat views and overlaps of all spaces."""
    return {
        "format": FORMAT,
        "name": in_data(memory_map.name),
        "spaces": [_space(space, memory_map) for space in memory_map.spaces],
        "detached": [[_tree_row(row) for row in tree] for tree in memory_map.detached],
    }


def _space(space: SpaceMap, memory_map: MemoryMap) -> dict[str, Any]:
    stacks, left_out = listed_overlaps(space.stacks)
    return {
        "name": in_data(space.name),
        "tree": [_tree_row(row) for row in space.tree],
        "flat": [_flat_row(row) for row in space.flat],
        "overlaps": [_overlap(stack, memory_map) for stack in stacks],
        "overlaps_left_out": left_out,
    }


def _tree_row(row: TreeRow) -> dict[str, Any]:
    alias = row.alias
    return {
        "id": row.id,
        "parent": row.parent,
        "depth": row.depth,
        "name": in_data(row.name),
        "kind": row.kind,
        "served": row.served,
        **_range(row.start, row.end),
        "priority": row.priority,
        "enabled": row.enabled,
        "readonly": row.readonly,
        "nonvolatile": row.nonvolatile,
        "coalesced": row.coalesced,
        "owner": _owner(row.owner),
        "alias": None
        if alias is None
        else {"id": alias.id, "name": in_data(alias.name), **_range(alias.start, alias.end)},
    }


def _flat_row(row: FlatRow) -> dict[str, Any]:
    return {
        **_range(row.start, row.end),
        "id": row.id,
        "name": in_data(row.name),
        "kind": row.kind,
        "offset": f"{row.offset:#x}",
        "priority": row.priority,
        "readonly": row.readonly,
        "nonvolatile": row.nonvolatile,
        "owner": _owner(row.owner),
    }


def _overlap(stack: Stack, memory_map: MemoryMap) -> dict[str, Any]:
    winner, *behind = stack.claims
    hidden = []
    for claim in behind:
        rule, text = why(winner, claim, in_data)
        hidden.append({**_claim(claim, stack, memory_map), "rule": rule, "why": text})
    return {
        **_range(stack.start, stack.end),
        "winner": _claim(winner, stack, memory_map),
        "hidden": hidden,
        "hidden_count": stack.count - 1,
    }


def _claim(claim: Claim, stack: Stack, memory_map: MemoryMap) -> dict[str, Any]:
    region = claim.region
    return {
        "id": memory_map.numbers[id(region)],
        "name": in_data(region.name),
        "kind": served_kind(region, claim.readonly),
        "offset": f"{claim.offset + stack.start - claim.start:#x}",
        "priority": region.priority,
        "through": [in_data(name) for name in claim.aliases],
        "owner": _owner(memory_map.owners.get(id(region))),
    }


def _owner(name: str | None) -> str | None:
    return None if name is None else in_data(name)


def _range(start: int, end: int) -> dict[str, str]:
    return {"start": f"{start:#x}", "end": f"{end:#x}"}

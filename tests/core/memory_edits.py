"""Edits of place for `memory_world`: what three numbers mean among the regions that there are.

Each function takes the world and three numbers, and makes one edit or does nothing; whether the edit must be refused,
it says from the model alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory_choices import (
    FIXED,
    host_region,
    loose_regions,
    place_in,
    priority_of,
    size_of,
    some_region,
    standing_region,
)
from memory_oracle import UNIT, new_record

from accel.memory.region import MemoryRegion

if TYPE_CHECKING:
    from memory_world import World

#: Regions of the world besides those that are there from the start; past that, edits use what there is.
MOST = 22
_LEAVES = ("ram", "mmio", "ram", "container", "romd", "mmio", "rom", "container")


def grow(world: World, a: int, b: int, c: int) -> None:
    """Make a region, perhaps with another in it, and add it."""
    if len(world.model.regions) >= MOST + len(FIXED):
        add(world, a, b, c)
        return
    name = _make(world, _LEAVES[a % len(_LEAVES)], size_of(b))
    if a % 5 == 4:
        inner = _make(world, _LEAVES[c % len(_LEAVES)], size_of(c))
        _add(world, inner, name, b % 4, 0)
        if b % 4 == 3:
            # What belongs to nobody yet can be the target of an alias as well.
            return
    host = host_region(world, c)
    _add(world, name, host, place_in(world, host, b * 7 + a, c), priority_of(c))


def _make(world: World, kind: str, size: int) -> str:
    world.serial += 1
    name = f"{kind}{world.serial}"
    most = size
    if kind == "ram":
        most = size * 2
        real = MemoryRegion.ram(name, size * UNIT, most * UNIT)
    elif kind == "rom":
        real = MemoryRegion.rom(name, b"", size * UNIT)
    elif kind == "romd":
        real = MemoryRegion.rom_device(name, b"", size * UNIT)
    elif kind == "mmio":
        real = MemoryRegion.mmio(name, size * UNIT)
    else:
        size *= 2
        real = MemoryRegion.container(name, size * UNIT)
    world.story.append("  " * world.depth + f"{name} = {kind} of {size}")
    world.born(name, new_record(kind, size, max_size=most), real)
    return name


def add(world: World, a: int, b: int, c: int) -> None:
    """Add a region that stands nowhere; or add one that stands somewhere, which is refused."""
    loose = loose_regions(world)
    if not loose:
        if a % 16:
            move(world, a, b, c)
            return
        loose = list(world.model.regions)
    name, host = loose[a % len(loose)], host_region(world, c)
    _add(world, name, host, -1 if c == 255 else place_in(world, host, b, c), priority_of(b + c))


def _add(world: World, name: str, host: str, at: int, priority: int) -> None:
    model = world.model
    possible = (
        at >= 0
        and model.regions[host]["kind"] != "alias"
        and model.regions[name]["parent"] is None
        and host not in model.leads_to(name)
    )
    world.rank += 1
    rank = world.rank

    def change() -> None:
        if model.regions[name]["owned"] or model.regions[host]["owned"]:
            world.claim(name, host)
        world.change(name, parent=host, at=at, priority=priority, rank=rank)

    world.edit(
        f"{host}.add({name}, {at}, {priority})",
        name,
        lambda: world.real[host].add(world.real[name], at * UNIT, priority),
        change if possible else None,
    )


def remove(world: World, a: int, b: int, c: int) -> None:
    """Take a region out, or, seldom, try to take it out of another."""
    name = standing_region(world, a)
    if name is None:
        return
    parent = world.model.regions[name]["parent"]
    host = parent if b < 250 else "device"
    world.edit(
        f"{host}.remove({name})",
        name,
        lambda: world.real[host].remove(world.real[name]),
        (lambda: world.change(name, parent=None)) if host == parent else None,
    )


def move(world: World, a: int, b: int, c: int) -> None:
    """Move a region."""
    name = standing_region(world, a)
    if name is None:
        return
    at = -1 if b == 255 else place_in(world, world.model.regions[name]["parent"], b, c)
    world.edit(
        f"{name}.move({at})",
        name,
        lambda: world.real[name].move(at * UNIT),
        (lambda: world.change(name, at=at)) if at >= 0 else None,
    )


def resize(world: World, a: int, b: int, c: int) -> None:
    """Resize a region, roots too."""
    name = FIXED[a % 2] if c % 16 == 1 or (world.depth and c % 4 == 1) else some_region(world, a)
    if name is None:
        return
    record = world.model.regions[name]
    size = 48 + b % 64 if name in FIXED[:2] else size_of(b) * (2 if record["kind"] == "container" else 1)
    if c == 255:
        size = 0
    possible = size > 0 and (record["kind"] in ("container", "mmio", "alias") or size <= record["max_size"])
    world.edit(
        f"{name}.resize({size})",
        name,
        lambda: world.real[name].resize(size * UNIT),
        (lambda: world.change(name, size=size)) if possible else None,
    )


def set_priority(world: World, a: int, b: int, c: int) -> None:
    """Rank a region anew, mostly one that overlaps with another."""
    contested = [one for one in world.model.regions if world.overlaps(one)]
    name = contested[a % len(contested)] if contested and a < 240 else standing_region(world, a)
    if name is None:
        return
    priority = (1, -1, 2, 0, -2, 3)[b % 6]
    world.edit(
        f"{name}.set_priority({priority})",
        name,
        lambda: world.real[name].set_priority(priority),
        lambda: world.change(name, priority=priority),
    )


def alias(world: World, a: int, b: int, c: int) -> None:
    """Make an alias of anything, and add it; in place of one that stands nowhere, if there are many."""
    model = world.model
    if len(model.regions) >= MOST + len(FIXED):
        spare = next((one for one in loose_regions(world) if _is_spare(world, one)), None)
        if spare is None or world.depth:
            add(world, a, b, c)
            return
        world.forget(spare)
    names = [one for one in model.regions if one in world.shown] or list(model.regions)
    foreign = [one for one, record in model.regions.items() if record["parent"] and not record["owned"]]
    target = foreign[a % len(foreign)] if foreign and c % 4 == 1 else names[a % len(names)]
    offset = b % max(model.regions[target]["size"], 2) & (~1 if b % 8 else ~0)
    size = size_of(b + c)
    flags = {"readonly": c % 7 == 6, "nonvolatile": c % 3 == 2, "unmergeable": c % 5 == 4}
    host = host_region(world, c)
    at, priority = place_in(world, host, a * 5 + b, c), priority_of(a + c)
    others = [one for one in names if model.regions[one]["kind"] == "alias" and one not in FIXED]
    if others and c % 2 == 0:
        # Go on where another alias ends, in the target and beside it, so that what both show may be joined.
        other = model.regions[others[a % len(others)]]
        target, host, priority = other["target"], other["parent"] or host, other["priority"]
        offset, at = other["target_offset"] + other["size"], other["at"] + other["size"]
        flags["unmergeable"] = b % 2 == 1
    world.serial += 1
    name = f"alias{world.serial}"
    world.story.append("  " * world.depth + f"{name} = alias of {target}, {offset}, {size} {flags}")
    real = MemoryRegion.alias(name, world.real[target], offset * UNIT, size * UNIT, **flags)
    world.born(name, new_record("alias", size, target=target, target_offset=offset, **flags), real)
    _add(world, name, host, at, priority)


def _is_spare(world: World, name: str) -> bool:
    records = world.model.regions.values()
    named = any(name in (record["target"], record["parent"]) for record in records)
    return not named and name not in world.roots.values()


def set_target_offset(world: World, a: int, b: int, c: int) -> None:
    """Let an alias show another part."""
    name = some_region(world, a, "alias")
    if name is None or name not in world.shown:
        alias(world, a, b, c)
        return
    record = world.model.regions[name]
    offset = -1 if c == 255 else place_in(world, record["target"], b, c)
    beside = [one for one in world.model.children(record["parent"] or name) if one != name]
    beside = [one for one in beside if world.model.regions[one]["target"] == record["target"]]
    if beside and c % 2 == 0:
        # So that it shows what the other one would show there.
        other = world.model.regions[beside[b % len(beside)]]
        offset = max(other["target_offset"] + record["at"] - other["at"], 0)
    world.edit(
        f"{name}.set_target_offset({offset})",
        name,
        lambda: world.real[name].set_target_offset(offset * UNIT),
        (lambda: world.change(name, target_offset=offset)) if offset >= 0 else None,
    )

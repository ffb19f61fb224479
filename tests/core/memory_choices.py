"""How the steps of `memory_world` choose among the regions that there are, by numbers from 0 to 255.

Numbers near 0 mean the simplest choice, so that Hypothesis shrinks towards it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memory_world import World

#: The regions that are there from the start: two roots, and what the second shows of the first.
FIXED = ("main", "device", "low", "high")


def some_region(world: World, number: int, *kinds: str) -> str | None:
    """Return a region, mostly one that shows; of these kinds, if any are given."""
    records = world.model.regions
    every = [one for one in records if (not kinds or records[one]["kind"] in kinds) and one not in FIXED[:2]]
    chosen = [one for one in every if one in world.shown]
    names = chosen if chosen and number < 224 else every
    return names[number % len(names)] if names else None


def standing_region(world: World, number: int) -> str | None:
    """Return a region that stands in another, mostly one that shows or that stands in one that does."""
    records = world.model.regions
    standing = [one for one, record in records.items() if record["parent"]]
    chosen = [one for one in standing if one in world.shown]
    if number % 8 == 7:
        chosen = [one for one in standing if records[one]["parent"] in world.shown and one not in world.shown]
    names = chosen if chosen and number < 240 else standing
    return names[number % len(names)] if names else None


def is_sparse(world: World) -> bool:
    """Return whether so little shows that a step had better add something."""
    return len(world.shown) < 9


def loose_regions(world: World) -> list[str]:
    """Return the regions that stand nowhere, but for the roots."""
    return [one for one, record in world.model.regions.items() if not record["parent"] and one not in FIXED[:2]]


def host_region(world: World, number: int) -> str:
    """Return a region to add something to: mostly a container that shows."""
    records = world.model.regions
    if number % 8 == 7:
        names = [one for one, record in records.items() if record["kind"] != "container"]
    elif number % 8 == 6:
        names = [one for one, record in records.items() if record["kind"] == "container"]
    else:
        names = [one for one in records if records[one]["kind"] == "container" and one in world.shown]
        names = ["main", "main", *(one for one in names if one not in FIXED)]
    return names[number // 8 % len(names)] if names else "main"


def place_in(world: World, host: str, b: int, c: int) -> int:
    """Return a cell in `host`, seldom one in the middle of a page; now and then one that reaches over its end."""
    size = max(world.model.regions[host]["size"], 2)
    return b % size if c % 8 == 7 else b % size & ~1


def priority_of(c: int) -> int:
    """Return a priority, mostly 0, so that there are ties."""
    return (0, 0, 0, 1, -1, 2, 0, 1, -2, 0)[c % 10]


def size_of(b: int) -> int:
    """Return 1 to 32 cells, mostly whole pages."""
    return b % 32 + 1 if b % 8 == 7 else (b % 16 + 1) * 2

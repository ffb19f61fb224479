"""Edits of what a region is like for `memory_world`; see `memory_edits`."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

from memory_choices import some_region
from memory_oracle import UNIT

from accel.memory.dirty import DirtyClient

if TYPE_CHECKING:
    from memory_world import World

#: What others show through, so that a leaf may show in several ways; or anything.
_SHARING = (("alias",), (), ())


def set_enabled(world: World, a: int, b: int, c: int) -> None:
    """Show or hide a region; a hidden one is shown soon."""
    records = world.model.regions
    hidden = [one for one in records if not records[one]["enabled"] and records[one]["parent"] in world.shown]
    name = hidden[b % len(hidden)] if hidden and c % 2 else some_region(world, a)
    if name is not None:
        _set(world, name, "enabled", not world.model.regions[name]["enabled"])


def set_readonly(world: World, a: int, b: int, c: int) -> None:
    """Turn read-only on or off, or try that with ROM."""
    name = some_region(world, a, *_SHARING[b % 3]) if b < 250 else "main"
    if name is not None:
        wanted = not world.model.regions[name]["readonly"]
        _set(world, name, "readonly", wanted, possible=wanted or world.model.regions[name]["kind"] != "rom")


def set_nonvolatile(world: World, a: int, b: int, c: int) -> None:
    """Turn non-volatile on or off."""
    name = some_region(world, a, *_SHARING[b % 3]) if b < 250 else "main"
    if name is not None:
        _set(world, name, "nonvolatile", not world.model.regions[name]["nonvolatile"])


def set_romd(world: World, a: int, b: int, c: int) -> None:
    """Switch the mode of a ROM device, or try that with another region."""
    name = some_region(world, a, "romd") if b < 240 else some_region(world, a)
    if name is not None:
        record = world.model.regions[name]
        _set(world, name, "romd", not record["romd"], possible=record["kind"] == "romd")


def _set(world: World, name: str, what: str, wanted: bool, *, possible: bool = True) -> None:
    world.edit(
        f"{name}.set_{what}({wanted})",
        name,
        lambda: getattr(world.real[name], f"set_{what}")(wanted),
        (lambda: world.change(name, **{what: wanted})) if possible else None,
    )


def log(world: World, a: int, b: int, c: int) -> None:
    """Start or stop logging a region for a client, or both, or try that with one that has no memory."""
    name = some_region(world, a, "ram", "rom", "romd") if b < 248 else some_region(world, a)
    if name is None:
        return
    clients = (DirtyClient.VGA, DirtyClient.CODE, DirtyClient.MIGRATION)
    counts = dict(world.model.regions[name]["logs"])
    logged = [one for one in clients if counts.get(int(one))]
    if logged and not world.depth and c % 3 == 2:
        world.begin()
        _log(world, name, logged[0], stops=True)
        _log(world, name, clients[b % 3], stops=False)
        world.end()
    else:
        client = clients[b % 3]
        _log(world, name, client, stops=c % 2 == 1 and (client in logged or c > 240))


def _log(world: World, name: str, client: DirtyClient, *, stops: bool) -> None:
    record = world.model.regions[name]
    counts = dict(record["logs"])
    count = counts.get(int(client), 0)
    what = "stop_log" if stops else "start_log"
    possible = count > 0 if stops else record["kind"] in ("ram", "rom", "romd")
    counts[int(client)] = count + (-1 if stops else 1)
    logs = tuple(sorted(counts.items()))
    world.edit(
        f"{name}.{what}({client.name})",
        name,
        lambda: getattr(world.real[name], what)(client),
        (lambda: world.change(name, logs=logs)) if possible else None,
    )


def coalesce(world: World, a: int, b: int, c: int) -> None:
    """Let writes be queued, or no writes any more, or try that where it cannot be."""
    name = some_region(world, a, "mmio") if b < 248 else some_region(world, a)
    if name is None:
        return
    record = world.model.regions[name]
    if record["coalesced"] and c % 3 == 2:
        world.edit(
            f"{name}.clear_coalescing()",
            name,
            world.real[name].clear_coalescing,
            lambda: world.change(name, coalesced=()),
        )
        return
    step = UNIT // 4
    start = b % (record["size"] * 4) * step
    end = start + (c % 12 + 1) * step
    apart = all(end <= one or other <= start for one, other in record["coalesced"])
    possible = record["kind"] == "mmio" and end <= record["size"] * UNIT and apart
    ranges = tuple(sorted((*record["coalesced"], (start, end))))
    world.edit(
        f"{name}.add_coalescing({start:#x}, {end - start:#x})",
        name,
        lambda: world.real[name].add_coalescing(start, end - start),
        (lambda: world.change(name, coalesced=ranges)) if possible else None,
    )


def ring(world: World, a: int, b: int, c: int) -> None:
    """Add or remove an ioeventfd, some of them across the border of two cells, or try one that cannot be."""
    name = some_region(world, a, "mmio") if b < 248 else some_region(world, a)
    if name is None:
        return
    record = world.model.regions[name]
    bells = record["eventfds"]
    if bells and c % 3 == 2:
        bell = bells[b % len(bells)]
        _ring(world, name, "remove", bell, possible=True)
        return
    offset = b % (record["size"] + 1) * UNIT - (2 if c % 5 == 4 else 0)
    size, match, fd = (0, 1, 2, 4, 8)[c % 5], None, _eventfds()[c % 3]
    if size and c % 7 == 6:
        match = c % 3
    taken = any(_collide(one, (offset, size, match)) for one in bells)
    inside = offset >= 0 and offset + max(size, 1) <= record["size"] * UNIT
    possible = record["kind"] == "mmio" and inside and not taken
    _ring(world, name, "add", (offset, size, match, fd), possible=possible)


def _collide(one: tuple[int, int, int | None, int], other: tuple[int, int, int | None]) -> bool:
    """Return whether one write could ring both."""
    sizes, values = {one[1], other[1]}, {one[2], other[2]}
    return one[0] == other[0] and (len(sizes) == 1 or 0 in sizes) and (len(values) == 1 or None in values)


@cache
def _eventfds() -> list[int]:
    return [os.eventfd(0) for _ in range(3)]


def _ring(world: World, name: str, what: str, bell: tuple[int, int, Any, int], *, possible: bool) -> None:
    offset, size, match, fd = bell
    bells = [one for one in world.model.regions[name]["eventfds"] if one != bell]
    if what == "add":
        bells.append(bell)
    bells.sort(key=lambda one: (one[0], one[1], one[2] is None, one[2] or 0))
    world.edit(
        f"{name}.{what}_eventfd{(offset, fd, size, match)}",
        name,
        lambda: getattr(world.real[name], f"{what}_eventfd")(offset, fd, size, match),
        (lambda: world.change(name, eventfds=tuple(bells))) if possible else None,
    )

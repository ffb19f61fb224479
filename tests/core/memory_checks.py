"""What must hold in a `memory_world` outside of transactions, said by its model."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from memory_oracle import UNIT, Shown, bells, queued
from memory_replay import Replay, check_order, require

from accel.memory.flat_view import FlatView
from accel.memory.render import render

if TYPE_CHECKING:
    from memory_world import World


def check_spaces(world: World, changed: Collection[str]) -> int:
    """Complain unless views, renderings and listeners are what the model says.

    Args:
        world: The world.
        changed: The spaces whose views must have changed since the last check; the others must be the same objects.

    Returns:
        In how many spaces the listeners were told of a change.
    """
    told = 0
    for name, space in world.spaces.items():
        wanted = world.expected[name]
        same = space.view is world.views.get(name, space.view)
        require(name in changed or same, name, "has a new view that is the same")
        world.views[name] = space.view
        whole = render(space.root, None, world.transactions.log_mask)
        _check_view(world, name, space.view, whole, wanted)
        for listener in world.listeners[name]:
            _check_listener(world, space.view, listener, wanted)
        heard = world.heard[name]
        if heard:
            require(name in changed, name, "was told although nothing changed:", heard)
            check_order(heard, world.listeners[name])
            heard.clear()
            told += 1
    require(not world.transactions._journal, "the journal is not empty")
    require(not world.lock.held(), "the big lock is held")
    return told


def _check_view(world: World, name: str, view: FlatView, whole: FlatView, wanted: list[Shown]) -> None:
    found = [_shown(world, section) for section in view]
    require(found == wanted, name, "shows", *found, "\n  and must show", *wanted)
    anew = [_shown(world, section) for section in whole]
    require(view == whole and found == anew, name, "shows", *found, "\n  and rendered anew", *anew)
    numbers = [view.index(section.range.start) for section in view]
    require(numbers == list(range(len(view))), name, "finds its sections as", numbers)


def _shown(world: World, section: Any) -> Shown:
    return Shown(
        section.range.start,
        section.range.end,
        world.names[id(section.region)],
        section.offset,
        section.readonly,
        section.romd,
        section.nonvolatile,
        section.unmergeable,
        section.log_mask,
        tuple((window.start, window.end) for window in section.coalesced),
        tuple((one.offset, one.size, one.match, one.fd) for one in section.eventfds),
    )


def _check_listener(world: World, view: FlatView, listener: Replay, wanted: list[Shown]) -> None:
    name = listener.name
    require(not listener.is_open, name, "is inside a transaction")
    known = [listener.map[start] for start in sorted(listener.map)]
    if len(known) != len(view) or any(one is not other for one, other in zip(known, view, strict=True)):
        found = [_shown(world, section) for section in known]
        require(found == wanted, name, "knows", *found, "\n  and must know", *wanted)
    masks = [listener.masks[one.start] for one in wanted]
    require(masks == [one.log_mask for one in wanted], name, "knows log masks", masks)
    step = UNIT // 4
    cells = {(one, at) for one, start, end in listener.queued for at in range(start, end, step)}
    require(cells == queued(wanted), name, "knows as queued", cells, "and must know", queued(wanted))
    require(listener.bells == bells(wanted), name, "knows ioeventfds", listener.bells, "of", bells(wanted))
    require(listener.logs_all == (world.model.global_logs > 0), name, "was not told of the log of all memory")


def check_regions(world: World) -> None:
    """Complain unless the real regions have the model's attributes, children and owners."""
    for name, real in world.real.items():
        record = world.model.regions[name]
        parent = record["parent"]
        wanted = (
            record["size"] * UNIT,
            parent,
            (record["at"] * UNIT, record["priority"]) if parent else None,
            record["enabled"],
            record["readonly"],
            record["nonvolatile"],
            record["romd"],
            record["target_offset"] * UNIT,
            record["owned"],
            sum(client for client, count in record["logs"] if count),
            record["coalesced"],
            record["eventfds"],
            world.model.children(name)[::-1],
            record["size"] * UNIT if real.block else None,
        )
        found = (
            real.size,
            real.parent and world.names[id(real.parent)],
            (real.offset, real.priority) if real.parent else None,
            real.enabled,
            real.readonly,
            real.nonvolatile,
            real.romd,
            real.target_offset,
            real._owner is not None,
            real.log_mask,
            tuple((window.start, window.end) for window in real.coalesced),
            tuple((one.offset, one.size, one.match, one.fd) for one in real.eventfds),
            [world.names[id(child)] for child in real.children],
            real.block and real.block.size,
        )
        require(found == wanted, name, "is", found, "\n  and must be", wanted)

"""Steps of `memory_world` that are no edits: transactions, spaces, listeners and the log of all memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory_edits import move
from memory_replay import Replay

if TYPE_CHECKING:
    from memory_world import World


def begin(world: World, a: int, b: int, c: int) -> None:
    """Open a transaction or a savepoint."""
    if world.depth < 3:
        world.begin()


def end(world: World, a: int, b: int, c: int) -> None:
    """Close the innermost transaction; sometimes a listener refuses the whole."""
    if not world.depth:
        move(world, a, b, c)
        return
    listeners = [one for some in world.listeners.values() for one in some]
    refuser = listeners[b % len(listeners)] if world.depth == 1 and a % 8 == 7 and listeners else None
    world.end(refuser)


def take_back(world: World, a: int, b: int, c: int) -> None:
    """Leave the innermost transaction by an exception."""
    if world.depth:
        world.take_back()
    else:
        move(world, a, b, c)


def listen(world: World, a: int, b: int, c: int) -> None:
    """Register a listener late, or take one away; it is judged at once and after each commit."""
    if world.depth:
        return
    space = list(world.spaces)[a % len(world.spaces)]
    listeners = world.listeners[space]
    world.serial += 1
    if listeners and (len(listeners) > 3 or c % 2):
        gone = listeners[b % len(listeners)]
        world.story.append(f"take {gone.name} away")
        world.remove_listener(space, gone)
    else:
        late = Replay(f"{space}-late{world.serial}", (10, 0, 20)[c % 3], world.heard[space])
        world.story.append(f"register {late.name}")
        world.add_listener(space, late)
    world.check()


def log_all(world: World, a: int, b: int, c: int) -> None:
    """Start or stop the log of all memory."""
    if world.depth:
        return
    starts = not world.model.global_logs or (c % 4 == 3 and world.model.global_logs < 3)
    world.story.append("start_global" if starts else "stop_global")
    if starts:
        world.sync.start_global()
    else:
        world.sync.stop_global()
    world.model.log_all(world.model.global_logs + (1 if starts else -1))
    world.look()
    world.check()


def space(world: World, a: int, b: int, c: int) -> None:
    """Open one more space, of any region that there is, or close it."""
    if world.depth:
        return
    if "more" in world.spaces:
        world.close_space("more")
    else:
        names = sorted(world.shown)
        world.open_space("more", names[a % len(names)] if b % 4 and names else list(world.model.regions)[a % 4])
    world.check()

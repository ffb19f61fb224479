"""The built-in changes of the map: which states there are, what shows in each, and how to go from one to the next.

Every change touches the slot of some part of the touched area, and leaves all of that area RAM with the same bytes.
`MapState` and `next_state` are pure; `ChangingMap` owns the windows through which the RAM shows. Layer: above `area`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from random import Random
from typing import Literal, get_args

from attrs import evolve, frozen

from accel.address import PAGE_SIZE
from accel.machine import Machine
from accel.memory.region import MemoryRegion
from accel.stress.area import BASE, HOLES, LEAST, MOST, MOVING, READ_END, TOUCHED

Change = Literal["split", "merge", "grow", "shrink", "hole", "move", "readonly"]
CHANGES: tuple[Change, ...] = get_args(Change)

_MOST_CUTS = 4
#: Where cuts may be; where the read-only part ends there is an edge already, at times.
_CUTS = tuple(cut for cut in range(PAGE_SIZE, TOUCHED, PAGE_SIZE) if cut != READ_END)
#: Where the moving piece shows when it is away: one of these many places, so far apart.
_PLACES, _DISTANCE = 8, 16 << 20


@frozen
class Window:
    """A part of the RAM that shows somewhere.

    Attributes:
        at: Guest-physical address.
        offset: Where in the RAM it begins.
        size: Bytes.
        readonly: Whether the guest cannot write it.
    """

    at: int
    offset: int
    size: int
    readonly: bool


@frozen
class MapState:
    """What of the RAM shows where.

    The tail has grown, or has a hole, or has a piece elsewhere. No two of these at once: so each change of the tail is
    one of the window at the end of the touched area.

    Attributes:
        size: Bytes that show, from the start of the RAM on, but for what follows.
        cuts: Offsets in the touched area where one window ends and another begins, ascending.
        hole: Offsets of a part of the tail that does not show.
        moved: Where the moving piece of the tail shows, or None where it is in its place.
        readonly: Whether what the guest only reads cannot be written.
    """

    size: int = LEAST
    cuts: tuple[int, ...] = ()
    hole: tuple[int, int] | None = None
    moved: int | None = None
    readonly: bool = False

    def windows(self) -> frozenset[Window]:
        """Return the windows that show it."""
        shown = frozenset(self._in_place())
        if self.moved is None:
            return shown
        return shown | {Window(self.moved, MOVING.start, MOVING.size, False)}

    def _in_place(self) -> Iterator[Window]:
        gaps = [] if self.hole is None else [self.hole]
        if self.moved is not None:
            gaps.append((MOVING.start, MOVING.end))
        edges = {0, self.size, *self.cuts, *itertools.chain.from_iterable(gaps)}
        if self.readonly:
            edges.add(READ_END)
        for start, end in itertools.pairwise(sorted(edges)):
            if (start, end) not in gaps:
                yield Window(BASE + start, start, end - start, self.readonly and start < READ_END)


def next_state(state: MapState, change: Change, choose: Random) -> MapState:
    """Return another state: that after `change`, or where there is no more of it, after what makes room for it."""
    match change:
        case "split":
            if len(state.cuts) == _MOST_CUTS:
                return evolve(state, cuts=())
            return evolve(state, cuts=tuple(sorted({*state.cuts, _new_cut(state, choose)})))
        case "merge":
            if not state.cuts:
                return evolve(state, cuts=_some_cuts(choose))
            gone = choose.choice(state.cuts)
            return evolve(state, cuts=tuple(cut for cut in state.cuts if cut != gone))
        case "grow":
            size = LEAST if state.size == MOST else _page(choose, state.size + PAGE_SIZE, MOST)
            return evolve(state, size=size, hole=None, moved=None)
        case "shrink":
            size = MOST if state.size == LEAST else _page(choose, LEAST, state.size - PAGE_SIZE)
            return evolve(state, size=size, hole=None, moved=None)
        case "hole":
            return evolve(state, size=LEAST, hole=_other_hole(state, choose), moved=None)
        case "move":
            away = BASE + choose.randint(1, _PLACES) * _DISTANCE
            return evolve(state, size=LEAST, hole=None, moved=away if state.moved is None else None)
        case "readonly":
            return evolve(state, readonly=not state.readonly)


def _page(choose: Random, first: int, last: int) -> int:
    """Return one of the page boundaries from `first` to `last`."""
    return choose.randint(first // PAGE_SIZE, last // PAGE_SIZE) * PAGE_SIZE


def _new_cut(state: MapState, choose: Random) -> int:
    return choose.choice([cut for cut in _CUTS if cut not in state.cuts])


def _some_cuts(choose: Random) -> tuple[int, ...]:
    return tuple(sorted(choose.sample(_CUTS, _MOST_CUTS)))


def _other_hole(state: MapState, choose: Random) -> tuple[int, int]:
    """Return a hole that begins elsewhere, so that the window before it becomes another one."""
    while True:
        start = _page(choose, HOLES.start, HOLES.end - PAGE_SIZE)
        if state.hole is None or start != state.hole[0]:
            return start, _page(choose, start + PAGE_SIZE, HOLES.end)


class ChangingMap:
    """RAM in a machine that shows through windows. One thread changes it.

    Attributes:
        ram: The RAM; its contents can be had here whatever shows.
        state: What shows now.
    """

    def __init__(self, machine: Machine) -> None:
        self.ram = MemoryRegion.ram("stress", MOST)
        self.state = MapState()
        self._machine = machine
        self._shown: dict[Window, MemoryRegion] = {}
        self.become(self.state)

    def become(self, state: MapState) -> float:
        """Go to another state, in one transaction; return the seconds that it took, edits and commit.

        Raises:
            AccelError: The commit failed; the map before is in force.
        """
        wanted = state.windows()
        memory = self._machine.memory
        gone = [window for window in self._shown if window not in wanted]
        new = {window: self._alias(window) for window in wanted if window not in self._shown}
        started = time.perf_counter()
        with self._machine.transaction():
            for window in gone:
                memory.remove(self._shown[window])
            for window, region in new.items():
                memory.add(region, window.at)
        took = time.perf_counter() - started
        for window in gone:
            del self._shown[window]
        self._shown |= new
        self.state = state
        return took

    def _alias(self, window: Window) -> MemoryRegion:
        # No part of its neighbour, so that a cut stays one.
        name = f"stress-{window.offset:#x}"
        region = MemoryRegion.alias(name, self.ram, window.offset, window.size, unmergeable=True)
        region.set_readonly(window.readonly)
        return region

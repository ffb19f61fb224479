"""Jobs about commits: one region edited among many, with rendering beside it, and the replay to a new listener."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count as count_up

from accel.address import PAGE_SIZE
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.listener import MemoryListener
from accel.memory.region import MemoryRegion
from accel.memory.render import render
from benchmarks import scenes

_Edit = Callable[[MemoryRegion], None]
_Side = Callable[[int], list[float]]
#: Regions are taken in strides of a prime, so that turns meet the whole map.
_STEP = 7919


@contextmanager
def commits(kind: str, count: str, listener: str) -> Iterator[Mapping[str, _Side]]:
    """Edits of one region of a scene (`benchmarks.scenes`), each a commit, there and back again."""
    with scenes.scene(kind, int(count), listener) as scene:
        home = scene.home

        def resize_all(turns: int) -> list[float]:
            return [part / len(scene.ram) for _ in range(turns) for part in _resize_all(scene)]

        yield {
            "resize": _pairs(scene.ram, lambda one: one.resize(scenes.GROWN), lambda one: one.resize(scenes.SIZE)),
            "remove": _pairs(scene.ram, home.remove, lambda one: home.add(one, one.offset)),
            "move": _pairs(
                scene.ram,
                lambda one: one.move(one.offset + PAGE_SIZE),
                lambda one: one.move(one.offset - PAGE_SIZE),
            ),
            "enable": _pairs(scene.ram, lambda one: one.set_enabled(False), lambda one: one.set_enabled(True)),
            "readonly": _pairs(scene.ram, lambda one: one.set_readonly(True), lambda one: one.set_readonly(False)),
            "resize-all": resize_all,
            "render": lambda turns: [_timed(lambda: render(scene.space.root)) for _ in range(turns)],
        }


@contextmanager
def replay(count: str) -> Iterator[Mapping[str, _Side]]:
    """A listener that is registered with a space of `count` sections, beside a loop that tells it the same."""
    with scenes.scene("ram", int(count), "none") as scene:
        space = scene.space

        def register(turns: int) -> list[float]:
            costs = []
            for _ in range(turns):
                listener = _Heard()
                costs.append(_timed(lambda: space.add_listener(listener)) / len(space.view))  # noqa: B023
                listener.check(len(space.view))
                space.remove_listener(listener)
                listener.check(0)
            return costs

        def loop(turns: int) -> list[float]:
            costs = []
            for _ in range(turns):
                listener = _Heard()
                started = time.perf_counter()
                add = listener.region_add
                for section in space.view:
                    add(section)
                costs.append((time.perf_counter() - started) / len(space.view))
                listener.check(len(space.view))
            return costs

        yield {"replay": register, "loop": loop}


class _Heard(MemoryListener):
    name = "heard"

    def __init__(self) -> None:
        self.sections: dict[int, MemoryRegionSection] = {}

    def region_add(self, section: MemoryRegionSection) -> None:
        self.sections[section.range.start] = section

    def region_del(self, section: MemoryRegionSection) -> None:
        del self.sections[section.range.start]

    def check(self, wanted: int) -> None:
        """Raise SystemExit unless it knows of so many sections."""
        if len(self.sections) != wanted:
            raise SystemExit(f"the listener knows of {len(self.sections)} sections, not {wanted}")


def _pairs(regions: list[MemoryRegion], there: _Edit, back: _Edit) -> _Side:
    """Return a side that edits regions, one after the other, and takes that back; an even number of commits."""
    turn = count_up()

    def take(count: int) -> list[float]:
        costs = []
        for _ in range(max(1, count // 2)):
            region = regions[next(turn) * _STEP % len(regions)]
            started = time.perf_counter()
            there(region)
            between = time.perf_counter()
            back(region)
            costs += [between - started, time.perf_counter() - between]
        return costs

    return take


def _resize_all(scene: scenes.Scene) -> Iterator[float]:
    """Yield the seconds that growing, and then shrinking, all regions in one transaction takes."""
    for size in (scenes.GROWN, scenes.SIZE):
        started = time.perf_counter()
        with scene.transactions.transaction():
            for region in scene.ram:
                region.resize(size)
        yield time.perf_counter() - started


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started

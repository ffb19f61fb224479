"""The job about memory: what a section of a view, a view that is kept, and a region take of Python's heap, in bytes."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from accel.memory.region import MemoryRegion
from accel.memory.render import render
from benchmarks import scenes
from benchmarks.resident import now_kib

_Side = Callable[[int], list[float]]
#: Regions that are made to be weighed.
_REGIONS = 2000


class _Plain:
    """What the least that says as much as a region would be: an object with a handful of slots."""

    __slots__ = ("end", "name", "owner", "parent", "priority", "read", "start", "write")

    def __init__(self, index: int) -> None:
        self.name = f"plain{index}"
        self.start, self.end, self.priority = index * scenes.STRIDE, index * scenes.STRIDE + scenes.SIZE, 0
        self.owner = self.parent = self.read = self.write = None


@contextmanager
def footprint(count: str) -> Iterator[Mapping[str, _Side]]:
    """A map of `count` sections of RAM. The side ``resident`` counts all that it takes of the process."""
    gc.collect()
    before = now_kib()
    with scenes.scene("ram", int(count), "none") as scene:
        gc.collect()
        resident = (now_kib() - before) * 1024 / int(count)
        space = scene.space

        def plain() -> object:
            rows = [(one.range.start, one.range.end, one.region, one.offset) for one in space.view]
            return rows, [row[0] for row in rows]

        def kept() -> object:
            old = space.view
            scene.ram[0].resize(scenes.GROWN if scene.ram[0].size == scenes.SIZE else scenes.SIZE)
            return old

        sides: dict[str, Callable[[], float]] = {
            "section": lambda: _weight(lambda: render(space.root)) / len(space.view),
            "plain-section": lambda: _weight(plain) / len(space.view),
            "kept": lambda: _weight(kept) / len(space.view),
            "ram": lambda: _weight(lambda: _stand(lambda index: MemoryRegion.ram("ram", scenes.SIZE))) / _REGIONS,
            "mmio": lambda: _weight(lambda: _stand(_mmio)) / _REGIONS,
            "plain-region": lambda: _weight(lambda: [_Plain(index) for index in range(_REGIONS)]) / _REGIONS,
            "resident": lambda: resident,
        }
        yield {name: lambda turns, weigh=weigh: [weigh()] for name, weigh in sides.items()}  # type: ignore[misc]


def _mmio(index: int) -> MemoryRegion:
    return MemoryRegion.mmio(f"device{index}", scenes.SIZE, read=lambda offset, size: 0)


def _stand(make: Callable[[int], MemoryRegion]) -> MemoryRegion:
    """Return a container with many regions that are nobody's yet."""
    top = MemoryRegion.container("top")
    for index in range(_REGIONS):
        top.add(make(index), at=index * scenes.STRIDE)
    return top


def _weight(make: Callable[[], object]) -> float:
    """Return the bytes that what `make` returns keeps, and what else it leaves behind."""
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
        del made
        return size
    finally:
        tracemalloc.stop()

"""The job about bulk access by the host: `read` and `write` of much memory, beside a plain copy of a memoryview."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from accel.address import PAGE_SIZE
from accel.memory.address_space import AddressSpace
from accel.memory.region import MemoryRegion
from benchmarks import scenes

_Side = Callable[[int], list[float]]


@contextmanager
def bulk(sections: str, size: str) -> Iterator[Mapping[str, _Side]]:
    """Access to `size` bytes that `sections` sections of RAM show side by side.

    The side ``read-extra`` costs the bytes that a read needs at its height beyond those that it returns, and
    ``write-extra`` those that a write needs.
    """
    length, parts = int(size), int(sections)
    with scenes.scene("ram", 1, "none") as scene:
        space, base = scene.space, 0
        with scene.transactions.transaction():
            for index in range(parts):
                part = MemoryRegion.ram(f"part{index}", length // parts)
                space.add(part, at=base + index * (length // parts))
        if len(space.view) != parts + 1:
            raise SystemExit(f"{len(space.view)} sections, not {parts + 1}")
        # Memory that is there already, as what a guest works with is; the peer's is one piece.
        peer = MemoryRegion.ram("peer", max(length, PAGE_SIZE)).view()[:length]
        data = bytes(range(256)) * (length // 256)
        space.write(base, data)
        peer[:] = data
        yield {
            "read": _each(partial(space.read, base, length)),
            "plain-read": _each(partial(bytes, peer)),
            "write": _each(partial(space.write, base, data)),
            "plain-write": _each(partial(peer.__setitem__, slice(None), data)),
            "read-extra": lambda count: [_height(partial(space.read, base, length)) - length],
            "write-extra": lambda count: [_height(partial(space.write, base, data))],
        }
        _check(space, base, data)


def _check(space: AddressSpace, base: int, data: bytes) -> None:
    if space.read(base, len(data)) != data:
        raise SystemExit("what was written is not what is read")


def _each(call: Callable[[], object]) -> _Side:
    """Return a side that makes the call; its cost is the mean."""

    def take(count: int) -> list[float]:
        started = time.perf_counter()
        for _ in range(count):
            call()
        return [(time.perf_counter() - started) / count]

    return take


def _height(call: Callable[[], object]) -> float:
    """Return the most bytes of Python's heap that the call needs, its result included."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

"""The job about dirty logs: one page marked, a big bitmap merged, and collected; beside plain ints and bytearrays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from accel.address import PAGE_SIZE
from accel.memory.dirty import DirtyClient, DirtyLog

_Side = Callable[[int], list[float]]
#: What is logged, and every how many pages one is dirty in the bitmap that is merged.
BYTES = 4 << 30
_EVERY = 61


@contextmanager
def dirty() -> Iterator[Mapping[str, _Side]]:
    """A log of 4 GiB with one client, and a bitmap in which one page in `_EVERY` is dirty."""
    log, marked = DirtyLog(BYTES), DirtyLog(BYTES)
    log.start(DirtyClient.MIGRATION)
    marked.start(DirtyClient.MIGRATION)
    pages = BYTES // PAGE_SIZE
    found = sum(1 << bit for bit in range(0, 8 * _EVERY, _EVERY)).to_bytes(_EVERY, "little")
    bitmap = (found * (pages // 8 // _EVERY + 1))[: pages // 8]
    peer, peer_marked = bytearray(pages // 8), bytearray(pages // 8)
    client = DirtyClient.MIGRATION

    def mark(offset: int) -> None:
        page = offset // PAGE_SIZE
        peer_marked[page >> 3] |= 1 << (page & 7)

    def merge(count: int) -> list[float]:
        return [_timed(lambda: log.merge(0, bitmap)) for _ in range(count)]

    def plain_merge(count: int) -> list[float]:
        return [_timed(lambda: _or_into(peer, bitmap)) for _ in range(count)]

    def collect(count: int) -> list[float]:
        costs = []
        for _ in range(count):
            log.merge(0, bitmap)
            started = time.perf_counter()
            taken = log.collect(client, 0, BYTES)
            costs.append(time.perf_counter() - started)
            if taken.bitmap != bitmap:
                raise SystemExit("what was collected is not what was merged")
        return costs

    def plain_collect(count: int) -> list[float]:
        costs = []
        for _ in range(count):
            started = time.perf_counter()
            taken = bytes(peer)
            peer[:] = bytes(len(peer))
            costs.append(time.perf_counter() - started)
            del taken
        return costs

    def walk(count: int) -> list[float]:
        log.merge(0, bitmap)
        taken = log.collect(client, 0, BYTES)
        return [_timed(lambda: sum(1 for _ in taken.ranges())) for _ in range(count)]

    def plain_walk(count: int) -> list[float]:
        return [_timed(lambda: sum(1 for page in range(pages) if bitmap[page >> 3] >> (page & 7) & 1))] * min(count, 1)

    yield {
        "mark": _each(lambda offset: marked.mark(offset, 4)),
        "plain-mark": _each(mark),
        "merge": merge,
        "plain-merge": plain_merge,
        "collect": collect,
        "plain-collect": plain_collect,
        "walk": walk,
        "plain-walk": plain_walk,
    }


def _or_into(bits: bytearray, bitmap: bytes) -> None:
    whole = int.from_bytes(bits, "little") | int.from_bytes(bitmap, "little")
    bits[:] = whole.to_bytes(len(bits), "little")


def _each(call: Callable[[int], object]) -> _Side:
    def take(count: int) -> list[float]:
        offsets = [index * 7919 * PAGE_SIZE % BYTES for index in range(count)]
        started = time.perf_counter()
        for offset in offsets:
            call(offset)
        return [(time.perf_counter() - started) / count]

    return take


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started

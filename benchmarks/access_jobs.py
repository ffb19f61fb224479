"""The job about small accesses by the host to a map of many sections, each beside a bisection over plain lists."""

from __future__ import annotations

import random
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from benchmarks import scenes

_Side = Callable[[int], list[float]]
_BYTES = 4


@contextmanager
def access(count: str) -> Iterator[Mapping[str, _Side]]:
    """Accesses at random addresses of `count` sections."""
    with scenes.scene("ram", int(count), "none") as scene:
        space = scene.space
        starts = [section.range.start for section in space.view]
        plain = [
            (section.range.start, section.range.end, section.region, section.offset, section.region.view())
            for section in space.view
        ]
        # The same addresses in each run; not the first of a section, so that offsets are not all 0.
        choose = random.Random(1)
        addresses = [choose.choice(starts) + choose.randrange(8, scenes.SIZE - 8, 4) for _ in range(4096)]

        def find(address: int) -> tuple[object, int] | None:
            start, end, region, offset, _ = plain[bisect_right(starts, address) - 1]
            return (region, offset + address - start) if address < end else None

        def load(address: int) -> int:
            start, end, _, offset, view = plain[bisect_right(starts, address) - 1]
            at = offset + address - start
            return int.from_bytes(view[at : at + _BYTES], "little") if address + _BYTES <= end else -1

        def store(address: int, value: int) -> None:
            start, end, _, offset, view = plain[bisect_right(starts, address) - 1]
            at = offset + address - start
            if address + _BYTES <= end:
                view[at : at + _BYTES] = value.to_bytes(_BYTES, "little")

        for address in addresses:
            space.store(address, address & 0xFFFF, _BYTES)
            if space.translate(address) != find(address) or load(address) != address & 0xFFFF:
                raise SystemExit("the space and the plain lists disagree")
            store(address, address >> 16 & 0xFFFF)
            if space.load(address, _BYTES) != address >> 16 & 0xFFFF:
                raise SystemExit("what the peer stored is not there")
        yield {
            "translate": _each(addresses, space.translate),
            "plain-translate": _each(addresses, find),
            "load": _each(addresses, lambda address: space.load(address, _BYTES)),
            "plain-load": _each(addresses, load),
            "store": _each(addresses, lambda address: space.store(address, address & 0xFFFF, _BYTES)),
            "plain-store": _each(addresses, lambda address: store(address, address & 0xFFFF)),
        }


def _each(addresses: list[int], call: Callable[[int], object]) -> _Side:
    """Return a side that makes the call for as many of the addresses as it is asked to; its cost is the mean."""

    def take(count: int) -> list[float]:
        chosen = [addresses[index % len(addresses)] for index in range(count)]
        started = time.perf_counter()
        for address in chosen:
            call(address)
        return [(time.perf_counter() - started) / count]

    return take

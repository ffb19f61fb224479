"""The dirty log of 4 GiB of RAM with one client, beside a plain bytearray without a lock."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.bench import Bench, Comparison
from benchmarks.samples import Side
from benchmarks.turns import TurnSide, python_job, start

NAME = "dirty"
SUMMARY = "the dirty log of 4 GiB, one client"
#: Side, what it is, its peer, and how often in a turn.
_PAIRS = (
    ("mark", "mark one page", "a bit of a bytearray", 10_000),
    ("merge", "merge a bitmap of 4 GiB", "OR of two big ints", 60),
    ("collect", "collect and clear 4 GiB", "copy and clear a bytearray", 60),
    ("walk", "list the ranges of 4 GiB, 1 page in 61 dirty", "a loop over the pages", 1),
)


def measure(bench: Bench) -> Sequence[Comparison]:
    """Measure all."""
    with ExitStack() as stack:
        process = start(stack, {"dirty": python_job("dirty")})["dirty"]
        sides = bench.alternate(
            {
                name: TurnSide(process, name, bench.scaled(count))
                for what, _, _, count in _PAIRS
                for name in (what, f"plain-{what}")
            },
            turns=1,
        )
    return [
        Comparison(text, "µs", Side("accel", sides[what].samples), Side(peer, sides[f"plain-{what}"].samples))
        for what, text, peer, _ in _PAIRS
    ]

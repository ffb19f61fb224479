"""What a map costs in memory: Python's heap for each section of a view of 10,000, for each region, and all of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from attrs import evolve

from benchmarks.bench import Bench, Comparison
from benchmarks.samples import Side
from benchmarks.turns import TurnSide, python_job, start

NAME = "footprint"
SUMMARY = "memory of a map of many ranges"
_SECTIONS = 10_000
#: Side, what it is, its peer and what that is.
_PAIRS = (
    ("section", "a section of a view", "plain-section", "a tuple of four and a start"),
    ("kept", "the view before, kept beside it: a section", "section", "rendered again"),
    ("ram", "a region of RAM in a container", "plain-region", "an object with 8 slots"),
    ("mmio", "a region of MMIO in a container", "plain-region", "an object with 8 slots"),
)


def measure(bench: Bench) -> Sequence[Comparison]:
    """Measure all, in bytes."""
    # Memory hardly varies: once more shows that it does not.
    bench = evolve(bench, rounds=min(bench.rounds, 2))
    count = bench.map_size(_SECTIONS)
    names = dict.fromkeys(name for side, _, peer, _ in _PAIRS for name in (side, peer))
    with ExitStack() as stack:
        process = start(stack, {"footprint": python_job("footprint", str(count))})["footprint"]
        sides = bench.alternate({name: TurnSide(process, name, 1, factor=1.0) for name in names}, turns=1)
        resident = process.turn("resident", 1)["costs"][0]
    notes = {"ranges": f"{count:,}", "resident, for each range with its region": f"{resident:.0f} B"}
    return [
        Comparison(
            text,
            "B",
            Side("accel", sides[side].samples),
            Side(peer_text, sides[peer].samples),
            notes=notes if side == "section" else {},
        )
        for side, text, peer, peer_text in _PAIRS
    ]

"""Host access to guest memory: lookups and small accesses in a map of many sections, and much memory at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.bench import TURNS, Bench, Comparison, Goal
from benchmarks.samples import Side
from benchmarks.turns import TurnProcess, TurnSide, python_job, start

NAME = "access"
SUMMARY = "host access to guest memory"
_SECTIONS = 10_000
_LOOKUPS = 2_000
_SMALL = {"translate": "translate", "load": "load of 4 bytes", "store": "store of 4 bytes"}
_TRANSLATE_GOAL = 1.5
_MIB = 1 << 20
#: Sizes, how often in a turn, and the turns of a round.
_BULK = (
    (4096, 1_000, TURNS),
    (64 << 10, 300, TURNS),
    (_MIB, 40, TURNS),
    (64 * _MIB, 1, 2),
    (256 * _MIB, 1, 1),
)
#: At least 0.8 of the plain copy's speed, for sections of 1 MiB and more.
_BULK_GOAL = 1 / 0.8
_BULK_FROM = _MIB
_MANY = 16


def measure(bench: Bench) -> Sequence[Comparison]:
    """Measure small accesses, then big ones to one section and across sixteen."""
    found = _small(bench, bench.map_size(_SECTIONS))
    sizes = {_scaled(bench, size): (count, turns) for size, count, turns in _BULK}
    for size, (count, turns) in sizes.items():
        for sections in (1, _MANY):
            with ExitStack() as stack:
                process = start(stack, {"bulk": python_job("bulk", str(sections), str(size))})["bulk"]
                found += _bulk(bench, process, (sections, size), count, turns)
    return found


def _scaled(bench: Bench, size: int) -> int:
    """Return a size for a quick look, in whole pages and never more than the full one."""
    return max(4096, round(size * min(1.0, bench.scale)) & ~4095)


def _small(bench: Bench, sections: int) -> list[Comparison]:
    count = bench.scaled(_LOOKUPS)
    with ExitStack() as stack:
        process = start(stack, {"access": python_job("access", str(sections))})["access"]
        sides = bench.alternate(
            {name: TurnSide(process, name, count) for what in _SMALL for name in (what, f"plain-{what}")}
        )
    found = []
    for what, text in _SMALL.items():
        name, side = f"{text} among {sections:,}", sides[what]
        # A busy host only adds to a time.
        least = Goal(f"{name}, µs in the least round", _TRANSLATE_GOAL, min(side.values))
        peer = Side("bisect and a plain list", sides[f"plain-{what}"].samples)
        found.append(Comparison(name, "µs", Side("accel", side.samples), peer, [least] if what == "translate" else []))
    return found


def _bulk(bench: Bench, process: TurnProcess, shape: tuple[int, int], count: int, turns: int) -> list[Comparison]:
    sections, size = shape
    sides = bench.alternate(
        {
            name: TurnSide(process, name, bench.scaled(count))
            for what in ("read", "write")
            for name in (what, f"plain-{what}")
        },
        turns,
    )
    found = []
    for what, peer in (("read", "bytes(memoryview)"), ("write", "slice of a memoryview")):
        extra = process.turn(f"{what}-extra", 1)["costs"][0]
        one = Comparison(
            f"{what} {_size(size)}, {'one section' if sections == 1 else f'{sections} sections'}",
            "µs",
            Side("accel", sides[what].samples),
            Side(peer, sides[f"plain-{what}"].samples),
            notes={"heap beyond the data": f"{extra / 1024:.1f} KiB", "GiB/s": _speed(size, sides[what])},
        )
        # A busy host can spoil the ratio of medians as well as that of the least costs.
        value = min(one.ratio, one.quiet_ratio)
        has_goal = size >= sections * _BULK_FROM
        goals = [Goal(f"{one.name}, times the plain copy", _BULK_GOAL, value)] if has_goal else []
        found.append(Comparison(one.name, one.unit, one.side, one.peer, goals, one.notes))
    return found


def _speed(size: int, side: Side) -> str:
    return f"{size / (1 << 30) / (side.median / 1e6):.1f}"


def _size(size: int) -> str:
    return f"{size // _MIB} MiB" if size % _MIB == 0 else f"{size // 1024} KiB"

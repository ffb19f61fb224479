"""A guest's exit and the way back in: `Machine.run` with the shipped serial device beside a loop in C."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import guests
from benchmarks.bench import Bench, Comparison, Goal
from benchmarks.guest_runs import run_here, run_in_c

NAME = "exit"
SUMMARY = "exit round trip through Machine.run, beside C"
#: In each turn.
_WRITES = 20_000
_GOAL = 1.30


def measure(bench: Bench) -> Sequence[Comparison]:
    """Measure port exits, which a goal is set for, and memory exits."""
    return [_measure_port(bench), _measure_memory(bench)]


def _measure_port(bench: Bench) -> Comparison:
    count = bench.scaled(_WRITES)
    sides = bench.alternate(
        {
            "accel": lambda: run_here(bench, guests.EXITS, count, "serial"),
            "C": lambda: run_in_c(bench, guests.EXITS, count, "serial"),
        }
    )
    found = Comparison("port write exit (serial)", "µs", sides["accel"], sides["C"])
    return Comparison(
        found.name,
        found.unit,
        found.side,
        found.peer,
        goals=[Goal("exit round trip, times C", _GOAL, found.ratio)],
        notes={"added per exit": _added(found)},
    )


def _measure_memory(bench: Bench) -> Comparison:
    count = bench.scaled(_WRITES)
    image = guests.write_image(bench.scratch, "mmio.bin", guests.MMIO_IMAGE)
    sides = bench.alternate(
        {
            "accel": lambda: run_here(bench, image, count, "mmio"),
            "C": lambda: run_in_c(bench, image, count, "mmio"),
        }
    )
    found = Comparison("memory write exit (MMIO)", "µs", sides["accel"], sides["C"])
    return Comparison(found.name, found.unit, found.side, found.peer, notes={"added per exit": _added(found)})


def _added(found: Comparison) -> str:
    return f"{found.side.median - found.peer.median:.2f} µs"

"""A console byte on its way to a file, by coalescing: `Machine.run` with the debug console beside C's exit.

The time per byte is that of the whole run, the guest's own loop included; what that loop takes by itself is measured
too, since it is all that is left where instructions are emulated slowly.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import guests
from benchmarks.bench import Bench, Comparison, Goal
from benchmarks.guest_runs import run_here, run_in_c

NAME = "console"
SUMMARY = "a console byte delivered by coalescing, beside C's exit"
#: In each turn.
_WRITES = 20_000
_GOAL = 0.3


def measure(bench: Bench) -> Sequence[Comparison]:
    """Measure the coalesced byte beside C's exit, and beside C's own coalesced byte."""
    count = bench.scaled(_WRITES)
    image = guests.CONSOLE
    silent = guests.write_image(bench.scratch, "silent.bin", guests.silent(image.read_bytes()))
    sides = bench.alternate(
        {
            "accel": lambda: run_here(bench, image, count, "console", "coalesced"),
            "C, each byte an exit": lambda: run_in_c(bench, image, count, "console"),
            "C, coalesced": lambda: run_in_c(bench, image, count, "console", "coalesced"),
            "guest's loop alone": lambda: run_in_c(bench, silent, count, "console", "silent"),
        }
    )
    accel, exits, loop = sides["accel"], sides["C, each byte an exit"], sides["guest's loop alone"]
    alone = f"{loop.median:.2f} µs"
    beside_exit = Comparison("console byte, coalesced", "µs", accel, exits)
    return [
        Comparison(
            beside_exit.name,
            beside_exit.unit,
            accel,
            exits,
            goals=[Goal("console byte by coalescing, times C's exit", _GOAL, beside_exit.ratio)],
            notes={"guest's loop alone": alone},
        ),
        Comparison(
            "console byte, both coalesced", "µs", accel, sides["C, coalesced"], notes={"guest's loop alone": alone}
        ),
    ]

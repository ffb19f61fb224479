"""RAM split and made one again under running vCPUs, a transaction each, beside a C program with the same protocol.

The time of the whole transaction counts: editing the regions, working out what that means for the view and the slots,
and the hold. What of it is the hold, which is what the C program does, is a figure of its own. Faults fail the run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median

from benchmarks.bench import Bench, Comparison, Goal
from benchmarks.processes import BenchmarkError
from benchmarks.samples import Sample, Side, percentile, ratio
from benchmarks.turns import TurnProcess, python_job, start

NAME = "split"
SUMMARY = "RAM split and merged under running vCPUs, plan=replace"
_VCPUS = (1, 2, 4)
_GAPS = {0: "back to back", 500: "0.5 ms apart"}
_UPDATES = 100
_TURNS = 3
_P50_GOAL, _P99_GOAL = 1.5, 2.0


class _Updates:
    """One side in one mode: a turn's cost is the middle of its updates. Remembers them all."""

    def __init__(self, process: TurnProcess, gap: int, count: int, *, knows_hold: bool) -> None:
        self.costs: list[float] = []
        self.held: list[float] = []
        self.kicks = self.faults = 0
        self._process = process
        self._gap = gap
        self._count = count
        self._knows_hold = knows_hold

    def __call__(self) -> Sample:
        """Take a turn."""
        kicks, faults = self._process.turn("counts", 1)["costs"]
        data = self._process.turn(f"gap{self._gap}", self._count)
        costs = [cost * 1e6 for cost in data["costs"]]
        self.costs += costs
        if self._knows_hold:
            self.held += [cost * 1e6 for cost in self._process.turn("held", 1)["costs"]]
        kicks_now, faults_now = self._process.turn("counts", 1)["costs"]
        self.kicks += int(kicks_now - kicks)
        self.faults += int(faults_now - faults)
        return Sample(median(costs), int(data["peak_kib"]), {"done": int(data["done"]), "faults": self.faults})

    @property
    def p99(self) -> float:
        """What 99 of 100 updates do not exceed, in µs."""
        return percentile(self.costs, 99)


def measure(bench: Bench) -> Sequence[Comparison]:
    """Measure updates with each number of vCPUs, back to back and apart."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        bench.skip("split updates: /dev/kvm cannot be opened")
        return []
    found: list[Comparison] = []
    for vcpus in _VCPUS:
        with ExitStack() as stack:
            commands = {
                "accel": python_job("split", str(vcpus)),
                "C": [str(bench.baselines.program("split")), str(vcpus)],
            }
            found += _of_vcpus(bench, vcpus, start(stack, commands))
    return found


def _of_vcpus(bench: Bench, vcpus: int, processes: Mapping[str, TurnProcess]) -> list[Comparison]:
    count = 2 * max(1, bench.scaled(_UPDATES // 2))
    updates = {
        (name, gap): _Updates(process, gap, count, knows_hold=name == "accel")
        for gap in _GAPS
        for name, process in processes.items()
    }
    sides = bench.alternate({f"{name} {gap}": one for (name, gap), one in updates.items()}, _TURNS)
    return [
        _comparison(vcpus, gap, (updates["accel", gap], updates["C", gap]), (sides[f"accel {gap}"], sides[f"C {gap}"]))
        for gap in _GAPS
    ]


def _comparison(vcpus: int, gap: int, both: tuple[_Updates, _Updates], sides: tuple[Side, Side]) -> Comparison:
    accel, c = both
    name = f"split, {vcpus} vCPU{'s' * (vcpus > 1)}, {_GAPS[gap]}"
    if accel.faults or c.faults:
        raise BenchmarkError(f"{name}: {accel.faults} spurious faults here and {c.faults} in C; there may be none")
    times = ratio(*sides)
    # The share is taken from the same updates, so that it does not drift with the host.
    held = times * median(accel.held) / median(accel.costs)
    goals = [
        Goal(f"{name}: p50, times C's", _P50_GOAL, times),
        Goal(f"{name}: p50 of the hold alone, times C's", _P50_GOAL, held),
    ]
    if vcpus == 1:
        goals.append(Goal(f"{name}: p99, times C's", _P99_GOAL, accel.p99 / c.p99))
    notes = {
        "p99": f"{accel.p99:.0f} µs, C {c.p99:.0f}, ratio {accel.p99 / c.p99:.2f}",
        "hold alone": f"{median(accel.held):.0f} µs, ratio {held:.2f}; p99 {percentile(accel.held, 99):.0f} µs",
        "kicks for each update": f"{accel.kicks / len(accel.costs):.2f}, C {c.kicks / len(c.costs):.2f}",
        "faults": f"{accel.faults}, C {c.faults}",
    }
    return Comparison(name, "µs", Side("accel", sides[0].samples), Side("C", sides[1].samples), goals, notes)

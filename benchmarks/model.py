"""Guest operations of one vCPU on the mock, in an ordinary run and in one from a seed, beside a plain Python loop."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.bench import Bench, Comparison, Goal
from benchmarks.processes import run_worker
from benchmarks.samples import Sample, Side

NAME = "model"
SUMMARY = "guest operations on the mock: a mix of loads, stores and adds"

_OPERATIONS = 640_000
#: People put the mock into their test suites: so many operations a second, or more.
_LEAST_PER_SECOND = 150_000
_JOBS = {"model": "mock: one guest operation", "model-repeatable": "mock from a seed: one guest operation"}


def measure(bench: Bench) -> Sequence[Comparison]:
    """Measure both kinds of runs."""
    return [_compare(bench, job, name) for job, name in _JOBS.items()]


def _compare(bench: Bench, job: str, name: str) -> Comparison:
    count = bench.scaled(_OPERATIONS)
    rounds = [run_worker(job, str(count)) for _ in range(bench.rounds)]

    def side(name: str, key: str) -> Side:
        return Side(name, tuple(Sample(data[key] / count * 1e6, data["peak_kib"]) for data in rounds))

    mine = side("accel", "seconds")
    return Comparison(
        name,
        "µs",
        mine,
        side("plain Python, pack and unpack", "peer_seconds"),
        [Goal(f"{name}, µs", 1e6 / _LEAST_PER_SECOND, mine.median)],
        {"operations per second": f"{1e6 / mine.median:,.0f}"},
    )

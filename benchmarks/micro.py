"""Small pieces of the hot paths, each beside its peer: plain Python, or the same calls in C."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.bench import Bench, Comparison, Goal
from benchmarks.processes import run_worker
from benchmarks.samples import Sample, Side

NAME = "micro"
SUMMARY = "gate, lock, dispatch and transactions, each beside a peer"

_REPEATS = 200_000
_RESIZES = 400

#: Job, what it is, and its peer, which the same process measures.
_PAIRS = (
    ("gate", "blocker: enter + leave a gate", "threading.Lock pair"),
    ("lock-pair", "Lock: acquire + release", "threading.RLock pair"),
    ("port-dispatch", "port write: dispatch + handler", "Serial.write called directly"),
    ("null-transaction", "empty memory transaction", "with an RLock"),
)
#: Most microseconds of a job.
_GOALS = {"gate": 0.4}


def measure(bench: Bench) -> Sequence[Comparison]:
    """Measure all pieces."""
    return [*(_pair(bench, *pair) for pair in _PAIRS), _resize(bench)]


def _pair(bench: Bench, job: str, name: str, peer: str) -> Comparison:
    count = bench.scaled(_REPEATS)
    rounds = [run_worker(job, str(count)) for _ in range(bench.rounds)]

    def side(name: str, key: str) -> Side:
        return Side(name, tuple(Sample(data[key] / count * 1e6, data["peak_kib"]) for data in rounds))

    mine = side("accel", "seconds")
    goals = [Goal(f"{name}, µs", _GOALS[job], mine.median)] if job in _GOALS else []
    return Comparison(name, "µs", mine, side(peer, "peer_seconds"), goals)


def _resize(bench: Bench) -> Comparison:
    count = bench.scaled(_RESIZES)

    def sample(data: dict[str, float]) -> Sample:
        return Sample(data["seconds"] / count * 1e6, int(data["peak_kib"]))

    sides = bench.alternate(
        {
            "accel": lambda: sample(run_worker("resize", str(count))),
            "C: add + delete a slot": lambda: sample(bench.run_baseline("slots", str(count))),
        }
    )
    return Comparison("RAM grows + shrinks, no vCPU", "µs", sides["accel"], sides["C: add + delete a slot"])

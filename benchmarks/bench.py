"""What a benchmark gets and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import Factory, frozen

from benchmarks.processes import Baselines, BenchmarkError, run_json
from benchmarks.samples import Sample, Side, alternate, ratio, ratio_spread

#: Turns of each side in a round.
TURNS = 5
#: Regions in the smallest map of a quick look.
_LEAST_MAP = 20


@frozen
class Goal:
    """A figure that the project wants to stay below, and what it came to here."""

    text: str
    limit: float
    value: float

    @property
    def met(self) -> bool:
        """Whether it did."""
        return self.value <= self.limit

    def to_data(self) -> dict[str, object]:
        """Return it as plain data for JSON."""
        return {"text": self.text, "limit": self.limit, "value": self.value, "met": self.met}


@frozen
class Comparison:
    """One side beside another.

    Attributes:
        name: What was measured.
        unit: Of all costs.
        side: This library.
        peer: What it is compared with.
        goals: Figures to stay below.
        notes: Further figures, as text by name.
    """

    name: str
    unit: str
    side: Side
    peer: Side
    goals: Sequence[Goal] = ()
    notes: Mapping[str, str] = Factory(dict)

    @property
    def ratio(self) -> float:
        """How many times the peer's median this library's is."""
        return ratio(self.side, self.peer)

    @property
    def ratio_spread(self) -> tuple[float, float]:
        """The least and the greatest ratio within a round."""
        return ratio_spread(self.side, self.peer)

    @property
    def quiet_ratio(self) -> float:
        """The ratio of the least costs: what is left once the host's other work is out of the way."""
        return min(self.side.values) / min(self.peer.values)

    def to_data(self) -> dict[str, object]:
        """Return it as plain data for JSON."""
        return {
            "name": self.name,
            "unit": self.unit,
            "ratio": self.ratio,
            "quiet_ratio": self.quiet_ratio,
            "ratio_spread": list(self.ratio_spread),
            "side": self.side.to_data(),
            "peer": self.peer.to_data(),
            "goals": [goal.to_data() for goal in self.goals],
            "notes": dict(self.notes),
        }


@frozen
class Bench:
    """How to run the benchmarks.

    Attributes:
        baselines: The C programs.
        scratch: A folder for what they write.
        rounds: Samples of each side, each made of some turns.
        scale: What counts are multiplied with: below 1 for a quick look.
        skipped: What could not be measured on this host, and why.
    """

    baselines: Baselines
    scratch: Path
    rounds: int = 7
    scale: float = 1.0
    skipped: list[str] = Factory(list)

    def scaled(self, count: int) -> int:
        """Return how often to do what a full run does `count` times."""
        return max(1, round(count * self.scale))

    def map_size(self, count: int) -> int:
        """Return of how many regions to make the map that a full run makes of `count`; never more."""
        return max(_LEAST_MAP, round(count * min(1.0, self.scale)))

    def skip(self, reason: str) -> None:
        """Note what cannot be measured on this host."""
        self.skipped.append(reason)

    def run_baseline(self, program: str, *arguments: str) -> dict[str, int | float]:
        """Run a C program and return what it prints. Raises BenchmarkError."""
        return run_json([str(self.baselines.program(program)), *arguments])

    def alternate(self, sides: Mapping[str, Callable[[], Sample]], turns: int = TURNS) -> dict[str, Side]:
        """Measure `sides` in rounds of alternating turns; see `samples.alternate`."""
        return alternate(self.rounds, turns, sides)


def require_equal(what: str, expected: int, counts: Mapping[str, int]) -> None:
    """Raise BenchmarkError unless all `counts` are as expected: otherwise the sides did different things."""
    wrong = {name: count for name, count in counts.items() if count != expected}
    if wrong:
        raise BenchmarkError(f"{what}: {expected} expected, but {wrong}")

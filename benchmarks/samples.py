"""Samples of one side of a benchmark, and rounds that alternate between the sides.

Pure but for calling what is measured. Absolute times drift on shared hosts, so the sides take turns within each
round, in an order that swaps from round to round, and the figure that counts is the ratio of their medians.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

from attrs import field, frozen


@frozen
class Sample:
    """What one side did in one round.

    Attributes:
        value: Its cost, in the benchmark's unit.
        peak_kib: The most resident memory of its process so far, in KiB.
        counts: What it counted, to be compared with other sides.
    """

    value: float
    peak_kib: int
    counts: Mapping[str, int] = field(factory=dict)


@frozen
class Side:
    """All rounds of one side."""

    name: str
    samples: tuple[Sample, ...]

    @property
    def values(self) -> tuple[float, ...]:
        """The cost of each round."""
        return tuple(sample.value for sample in self.samples)

    @property
    def median(self) -> float:
        """The middle cost."""
        return median(self.values)

    @property
    def peak_kib(self) -> int:
        """The most resident memory in any round, in KiB."""
        return max(sample.peak_kib for sample in self.samples)

    def to_data(self) -> dict[str, object]:
        """Return it as plain data for JSON."""
        return {
            "name": self.name,
            "median": self.median,
            "values": list(self.values),
            "peak_kib": self.peak_kib,
            "counts": [dict(sample.counts) for sample in self.samples],
        }


def ratio(of: Side, to: Side) -> float:
    """Return how many times `to`'s median `of`'s is."""
    return of.median / to.median


def ratio_spread(of: Side, to: Side) -> tuple[float, float]:
    """Return the least and the greatest ratio within one round."""
    ratios = [mine / other for mine, other in zip(of.values, to.values, strict=True)]
    return min(ratios), max(ratios)


def alternate(rounds: int, sides: Mapping[str, Callable[[], Sample]]) -> dict[str, Side]:
    """Run every side once in each round, forwards and backwards in turn; return what they took, by name."""
    taken: dict[str, list[Sample]] = {name: [] for name in sides}
    order = list(sides)
    for _ in range(rounds):
        for name in order:
            taken[name].append(sides[name]())
        order.reverse()
    return {name: Side(name, tuple(samples)) for name, samples in taken.items()}

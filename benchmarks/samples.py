"""Samples of one side of a benchmark, and rounds that alternate between the sides.

Pure but for calling what is measured. Absolute times drift on shared hosts, within a second by half and more, so each
round is made of short turns that the sides take one after the other, in an order that swaps each time. What a side
took in a round is the mean of its turns, and the figure that counts is the ratio of the medians of all rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from statistics import fmean, median

from attrs import field, frozen


@frozen
class Sample:
    """What one side did in one turn, or in one round.

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


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the least of `values` that `percent` of them do not exceed."""
    return sorted(values)[max(0, ceil(len(values) * percent / 100) - 1)]


def alternate(rounds: int, turns: int, sides: Mapping[str, Callable[[], Sample]]) -> dict[str, Side]:
    """Give every side `turns` turns in each round, forwards and backwards; return what they took, by name."""
    taken: dict[str, list[Sample]] = {name: [] for name in sides}
    order = list(sides)
    for _ in range(rounds):
        found: dict[str, list[Sample]] = {name: [] for name in sides}
        for _ in range(turns):
            for name in order:
                found[name].append(sides[name]())
            order.reverse()
        for name, samples in found.items():
            taken[name].append(_together(samples))
    return {name: Side(name, tuple(samples)) for name, samples in taken.items()}


def _together(samples: Sequence[Sample]) -> Sample:
    """Return the turns of a round as one sample: mean cost, greatest memory, and the sums of what was counted."""
    counts: dict[str, int] = {}
    for sample in samples:
        for name, count in sample.counts.items():
            counts[name] = counts.get(name, 0) + count
    return Sample(fmean(sample.value for sample in samples), max(sample.peak_kib for sample in samples), counts)

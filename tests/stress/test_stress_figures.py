"""What is counted in a stress run, in bounded memory."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.stress.figures import Combination, Figures, Latencies, Timeline

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=200)
ONE = Combination("read", 1, "inhibit", "replace")


def counted(times: list[float]) -> Latencies:
    latencies = Latencies()
    for time in times:
        latencies.add(time)
    return latencies


@given(TIMES, st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_quantile_is_within_a_bucket_of_the_exact_one(times: list[float], part: float) -> None:
    exact = sorted(times)[math.ceil(part * len(times)) - 1]
    found = counted(times).quantile(part)
    assert exact * 0.999 <= found <= exact * 1.023


@given(TIMES, TIMES)
def test_merged_latencies_are_those_of_both(one: list[float], other: list[float]) -> None:
    both = counted(one)
    both.merge(counted(other))
    expected = counted(one + other)
    assert (both.buckets, both.count, both.longest) == (expected.buckets, expected.count, expected.longest)


def test_latencies_without_any_have_no_quantile() -> None:
    assert Latencies().quantile(0.5) == 0.0


def test_latencies_of_less_than_a_microsecond_count_as_one() -> None:
    assert counted([0.0, 1e-9]).buckets == {0: 2}


def test_timeline_keeps_few_points_with_the_first_and_the_last() -> None:
    timeline = Timeline()
    for number in range(1, 10_001):
        timeline.add(float(number), number, number)
    assert len(timeline.points) <= 600
    assert timeline.points[0] == (0.0, 0, 0)
    assert timeline.points[-1] == (10_000.0, 10_000, 10_000)
    assert timeline.points == sorted(timeline.points)


@pytest.mark.parametrize("name", ["served", "unserved", "unplaced", "guest_errors", "host_errors"])
def test_figures_are_clean_only_without_any_fault_or_error(name: str) -> None:
    assert Figures(ONE, updates=5, inhibits=5).clean
    assert not Figures(ONE, updates=5, **{name: 1}).clean


def test_figures_count_a_crash_with_an_address_once() -> None:
    assert Figures(ONE, served=3, unserved=2, crashes=4, unplaced=2).faults == 7

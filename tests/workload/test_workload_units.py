"""Durations: what is one, what is not, and that writing and reading agree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.errors import UsageError
from accel.workload.units import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [("5us", 5), ("5ms", 5_000), ("1.5ms", 1_500), ("1s", 1_000_000), ("0.25s", 250_000), (" 2 min ", 120_000_000)],
)
def test_parse_duration_units_give_microseconds(text: str, microseconds: int) -> None:
    assert parse_duration(text) == microseconds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("5", "is no duration"),
        ("ms", "is no duration"),
        ("-5ms", "is no duration"),
        ("5h", "is no duration"),
        ("1e3ms", "is no duration"),
        ("9" * 40 + "s", "is no duration"),
        ("0ms", "above zero"),
        ("0.5us", "finer than a microsecond"),
    ],
)
def test_parse_duration_of_what_is_none_says_why(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_duration(text)


@given(st.integers(min_value=1, max_value=10**15))
def test_format_duration_then_parse_returns_the_same(microseconds: int) -> None:
    assert parse_duration(format_duration(microseconds)) == microseconds

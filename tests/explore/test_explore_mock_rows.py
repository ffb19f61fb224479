"""The table of mechanisms in the docs: each row has what is right and what is wrong, and together they are all."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

from accel.testing.explore.catalogue import all_scenarios

_PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "how-kvm-updates-memory.md"
_TABLE = _PAGE.read_text().partition("| mechanism |")[2].partition("\n\n")[0].splitlines()[2:]
ROWS = {cells[1].strip(): (cells[2], cells[3]) for line in _TABLE for cells in (line.split("|"),)}
OURS = {name: one for name, one in all_scenarios()[0].items() if name.startswith("mock/")}


def _named(cell: str, *, wrong: bool) -> set[str]:
    """Return the scenarios that a cell names, some of them by a pattern."""
    found: set[str] = set()
    for pattern in re.findall(r"`(mock/[^`]+)`", cell):
        matching = {name for name in fnmatch.filter(OURS, pattern) if bool(OURS[name].wrong) is wrong}
        assert matching, f"{pattern} is no scenario"
        found |= matching
    return found


@pytest.mark.parametrize("row", ROWS)
def test_explore_mock_row_has_scenarios_as_it_is_and_with_a_mistake(row: str) -> None:
    right, wrong = ROWS[row]
    assert _named(right, wrong=False)
    assert _named(wrong, wrong=True)


def test_explore_mock_rows_are_all_scenarios() -> None:
    named = {name for cells in ROWS.values() for n, cell in enumerate(cells) for name in _named(cell, wrong=n == 1)}
    assert set(OURS) - named == set()


def test_explore_mock_each_mechanism_has_a_mistake_and_each_mistake_a_mechanism() -> None:
    """By name: what stands before ``-wrong-``. A merge has a right scenario for each hold, and one mistake."""
    right = {name for name, one in OURS.items() if not one.wrong}
    broken = {name.partition("-wrong-")[0] for name, one in OURS.items() if one.wrong}
    assert {name for name in broken - right if not fnmatch.filter(right, f"{name}-*")} == set()
    alone = {name for name in right - broken if not any(name.startswith(f"{one}-") for one in broken - right)}
    # These are beside others: what would be wrong of them is wrong of those.
    assert alone == {"mock/fast-fault-pinned", "mock/zap-fast", "mock/zap-slot"}

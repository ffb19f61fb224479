"""What each way to zap a memslot costs, counted."""

from __future__ import annotations

import pytest

from accel_mock.kvm.zap_costs import ZapRow, zap_costs, zap_table

PAGES, ENTRIES, VCPUS, ROUNDS = 6, 10, 3, 40


@pytest.fixture(scope="module")
def rows() -> dict[str, ZapRow]:
    """The costs, by way."""
    made = zap_costs(PAGES, ENTRIES, VCPUS, ROUNDS)
    print(zap_table(made))
    return {row.way: row for row in made}


def test_zap_costs_only_the_way_that_yields_and_begins_again_does_not_end(rows: dict[str, ZapRow]) -> None:
    assert [way for way, row in rows.items() if not row.ends] == ["all, yielding"]
    # It was given up after so many rounds, with more pages than there were.
    assert rows["all, yielding"].cost.restarts == ROUNDS


def test_zap_costs_all_in_one_hold_is_the_longest_hold(rows: dict[str, ZapRow]) -> None:
    cost = rows["all, not yielding"].cost
    assert (cost.holds, cost.restarts) == (1, 0)
    assert cost.longest == cost.entries == 2 * PAGES * ENTRIES
    assert max(row.cost.longest for row in rows.values()) == cost.longest


def test_zap_costs_of_the_slot_only_leaves_the_other_slots(rows: dict[str, ZapRow]) -> None:
    row = rows["the slot's only"]
    assert row.cost.entries == row.cost.longest == PAGES * ENTRIES
    assert row.lost == 0
    assert {way: row.lost for way, row in rows.items() if row.ends and row.lost} == {
        "all, not yielding": PAGES * ENTRIES,
        "fast invalidate": PAGES * ENTRIES,
    }


def test_zap_costs_fast_invalidate_gives_way_after_each_page_and_zaps_none_twice(rows: dict[str, ZapRow]) -> None:
    cost = rows["fast invalidate"].cost
    assert cost.longest == ENTRIES
    assert cost.entries == 2 * PAGES * ENTRIES
    # One hold to begin the generation, one for each old page, and one that finds none left.
    assert cost.holds == 1 + 2 * PAGES + 1


def test_zap_costs_without_vcpus_the_way_that_yields_ends_too() -> None:
    assert [row.ends for row in zap_costs(PAGES, ENTRIES, 0, ROUNDS)] == [True] * 4


def test_zap_table_has_a_row_for_each_way(rows: dict[str, ZapRow]) -> None:
    lines = zap_table(tuple(rows.values())).splitlines()
    assert len(lines) == 2 + len(rows)
    assert "| the slot's only | yes | 60 | 1 | 60 | 0 | 0 |" in lines

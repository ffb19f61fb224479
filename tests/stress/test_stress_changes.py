"""The built-in changes keep what guests touch, and each of them changes a slot of it."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.address import PAGE_SIZE
from accel.machine import Machine
from accel.stress.area import BASE, LEAST, MOST, MOVING, READ_END, TOUCHED, pattern, tail_bytes
from accel.stress.changes import CHANGES, Change, ChangingMap, MapState, Window, next_state

SEQUENCES = st.tuples(st.integers(0, 1 << 32), st.lists(st.sampled_from(CHANGES), min_size=1, max_size=40))


def states(seed: int, changes: list[Change]) -> list[MapState]:
    choose, made = Random(seed), [MapState()]
    for change in changes:
        made.append(next_state(made[-1], change, choose))
    return made


def pages(windows: frozenset[Window]) -> dict[int, tuple[int, bool]]:
    """Return what each page shows: its offset in the RAM, and whether it is read-only."""
    shown: dict[int, tuple[int, bool]] = {}
    for window in windows:
        for at in range(0, window.size, PAGE_SIZE):
            assert window.at + at not in shown, "two windows overlap"
            shown[window.at + at] = window.offset + at, window.readonly
    return shown


def expected_pages(state: MapState) -> dict[int, tuple[int, bool]]:
    shown = {BASE + at: (at, state.readonly and at < READ_END) for at in range(0, state.size, PAGE_SIZE)}
    if state.hole is not None:
        for at in range(*state.hole, PAGE_SIZE):
            del shown[BASE + at]
    if state.moved is not None:
        for at in range(MOVING.start, MOVING.end, PAGE_SIZE):
            del shown[BASE + at]
            shown[state.moved + at - MOVING.start] = at, False
    return shown


@given(SEQUENCES)
def test_windows_show_each_page_of_the_state_once(sequence: tuple[int, list[Change]]) -> None:
    for state in states(*sequence):
        assert pages(state.windows()) == expected_pages(state)


@given(SEQUENCES)
def test_every_state_shows_all_that_guests_touch_in_its_place(sequence: tuple[int, list[Change]]) -> None:
    for state in states(*sequence):
        shown = pages(state.windows())
        for at in range(0, TOUCHED, PAGE_SIZE):
            offset, readonly = shown[BASE + at]
            assert offset == at
            assert not (readonly and at >= READ_END), "what guests write is read-only"


@given(SEQUENCES)
def test_every_change_replaces_a_window_of_what_guests_touch(sequence: tuple[int, list[Change]]) -> None:
    made = states(*sequence)
    for before, after in pairwise(made):
        gone = before.windows() - after.windows()
        assert any(BASE <= window.at < BASE + TOUCHED for window in gone), (before, after)


@given(SEQUENCES)
def test_states_stay_within_their_bounds(sequence: tuple[int, list[Change]]) -> None:
    for state in states(*sequence):
        assert LEAST <= state.size <= MOST
        assert list(state.cuts) == sorted(set(state.cuts))
        assert len(state.cuts) <= 4
        assert (state.size > LEAST) + (state.hole is not None) + (state.moved is not None) <= 1


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_does_what_its_name_says_before_long(change: Change) -> None:
    made = states(1, [change] * 12)
    seen = {
        "split": any(len(b.cuts) > len(a.cuts) for a, b in pairwise(made)),
        "merge": any(len(b.cuts) == len(a.cuts) - 1 for a, b in pairwise(made)),
        "grow": any(b.size > a.size for a, b in pairwise(made)),
        "shrink": any(b.size < a.size for a, b in pairwise(made)),
        "hole": any(state.hole for state in made),
        "move": any(state.moved for state in made),
        "readonly": any(state.readonly for state in made),
    }
    assert seen[change]


def test_every_cut_is_a_change_while_a_part_is_readonly() -> None:
    made = states(2, ["readonly", *["split", "split", "merge", "merge", "merge"] * 400])  # so that each page is cut
    cuts = {cut for state in made for cut in state.cuts}
    assert len(cuts) == TOUCHED // PAGE_SIZE - 2
    assert all(before.windows() != after.windows() for before, after in pairwise(made))


def test_changes_of_one_seed_are_the_same_each_time() -> None:
    changes = [*CHANGES] * 5
    assert states(3, changes) == states(3, changes)
    assert states(3, changes) != states(4, changes)


def test_map_shows_the_same_bytes_after_every_change() -> None:
    choose = Random(5)
    with Machine.create("mock", memory="4M") as machine:
        memory = ChangingMap(machine)
        contents = bytes(TOUCHED) + tail_bytes()
        memory.ram.write(0, contents)
        for _ in range(100):
            memory.become(next_state(memory.state, choose.choice(CHANGES), choose))
            shown = {(item.range.start, item.range.end) for item in machine.memory.view if item.range.start >= BASE}
            assert shown == {(one.at, one.at + one.size) for one in memory.state.windows()}
            for one in memory.state.windows():
                assert machine.memory.read(one.at, one.size) == contents[one.offset : one.offset + one.size]


def test_pattern_is_never_all_ones_and_differs_from_word_to_word() -> None:
    words = [pattern(address) for address in range(BASE, BASE + 0x10_0000, 8)]
    assert len(set(words)) == len(words)
    assert max(words) < 1 << 63

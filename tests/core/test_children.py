"""Children: found by place as a linear scan finds them, and ranked."""

from __future__ import annotations

import pytest
from attrs import define
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.address import ADDRESS_SPACE_SIZE
from accel.memory.children import Children

TOP = ADDRESS_SPACE_SIZE


@define(eq=False)
class Place:
    """Anything that has a place."""

    offset: int
    size: int
    priority: int
    serial: int


def scan(places: list[Place], start: int, end: int) -> list[Place]:
    """Find what has an address in [start, end) by looking at every address of neither."""
    reaching = [one for one in places if max(one.offset, start) < min(one.offset + one.size, end)]
    return ranked(reaching)


def ranked(places: list[Place]) -> list[Place]:
    return sorted(sorted(places, key=lambda one: one.serial, reverse=True), key=lambda one: one.priority, reverse=True)


NEAR = st.integers(0, 70)
SIZES = st.integers(1, 40) | st.sampled_from([1, 2, 3, 4, 7, 8, 9, 16, 31, 32, 33, 64, 1 << 20, TOP // 2, TOP])
OFFSETS = NEAR | st.sampled_from([TOP // 2, TOP - 1, TOP - 8])
PLACES = st.lists(st.tuples(OFFSETS, SIZES, st.integers(-2, 2)), max_size=25)
WINDOWS = st.lists(st.tuples(OFFSETS, SIZES), min_size=1, max_size=8)


@settings(max_examples=300)
@given(PLACES, WINDOWS, st.lists(st.integers(0, 30), max_size=12))
def test_children_overlapping_are_those_that_a_scan_finds(
    made: list[tuple[int, int, int]], windows: list[tuple[int, int]], gone: list[int]
) -> None:
    places = [Place(offset, size, priority, serial) for serial, (offset, size, priority) in enumerate(made)]
    children: Children[Place] = Children()
    for one in places:
        children.add(one)
    for number in gone:
        if places:
            one = places.pop(number % len(places))
            children.discard(one)
            children.discard(one)
    for start, size in windows:
        assert children.overlapping(start, start + size) == scan(places, start, start + size)
    assert list(children.ranked()) == ranked(places)
    assert sorted(children, key=id) == sorted(places, key=id)
    assert len(children) == len(places)


def test_children_of_one_place_are_told_apart() -> None:
    children: Children[Place] = Children()
    twins = [Place(0x1000, 0x100, 0, serial) for serial in range(3)]
    for one in twins:
        children.add(one)
    children.discard(twins[1])
    assert children.overlapping(0x10FF, 0x1100) == [twins[2], twins[0]]
    assert children.overlapping(0x1100, 0x1101) == []
    assert children.overlapping(0xFFF, 0x1000) == []
    children.discard(Place(0x1000, 0x100, 0, 9))
    children.discard(Place(0x9000, 0x9000, 0, 9))
    assert len(children) == 2


@pytest.mark.parametrize("size", [1, 2, 3, 1 << 12, (1 << 12) + 1, TOP])
def test_children_reach_up_to_their_last_address(size: int) -> None:
    children: Children[Place] = Children()
    one = Place(0, size, 0, 0)
    children.add(one)
    assert children.overlapping(size - 1, size) == [one]
    assert children.overlapping(size, size + 1) == []


def test_children_looked_at_are_few_where_few_reach_in() -> None:
    """What makes an edit cost the same among many siblings: those of one size are found by bisection."""

    class Counted(Place):
        looked = 0

        @property
        def size(self) -> int:  # type: ignore[override]
            Counted.looked += 1
            return 16

        @size.setter
        def size(self, value: int) -> None:
            pass

    children: Children[Counted] = Children()
    for number in range(10_000):
        children.add(Counted(number * 16, 16, 0, number))
    Counted.looked = 0
    assert len(children.overlapping(80_000, 80_032)) == 2
    assert Counted.looked <= 6

"""Placing things in free RAM: the algebra of ranges against sets of addresses, and first fit."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from accel.address import AddressRange
from accel.arch.placement import Placer, merge_ranges, show_ranges, subtract_ranges

SPACE = 64
RANGES = st.lists(
    st.tuples(st.integers(0, SPACE), st.integers(0, SPACE)).map(lambda pair: AddressRange(min(pair), max(pair))),
    max_size=8,
)


def addresses(ranges):
    return {address for item in ranges for address in range(item.start, item.end)}


def assert_canonical(ranges):
    assert all(item.size for item in ranges)
    assert all(low.end < high.start for low, high in pairwise(ranges))


@given(RANGES)
def test_merge_ranges_any_keeps_the_addresses_in_canonical_form(ranges):
    merged = merge_ranges(ranges)
    assert addresses(merged) == addresses(ranges)
    assert_canonical(merged)


@given(RANGES, RANGES)
def test_subtract_ranges_any_is_set_difference_in_canonical_form(ranges, taken):
    left = subtract_ranges(ranges, taken)
    assert addresses(left) == addresses(ranges) - addresses(taken)
    assert_canonical(left)


@given(RANGES, RANGES, st.lists(st.tuples(st.integers(1, 16), st.sampled_from([1, 2, 4, 8])), max_size=12))
def test_placer_any_requests_takes_the_lowest_free_aligned_place(ram, taken, requests):
    window = AddressRange(4, 60)
    placer = Placer(ram, taken, window)
    free = (addresses(ram) & addresses([window])) - addresses(taken)
    for size, alignment in requests:
        fitting = [start for start in range(0, SPACE, alignment) if free.issuperset(range(start, start + size))]
        found = placer.place(size, alignment)
        if not fitting:
            assert found is None
            continue
        assert found == AddressRange.sized(fitting[0], size)
        free -= addresses([found])


def test_show_ranges_many_shows_four_and_counts_the_rest():
    ranges = [AddressRange.sized(0x1000 * index, 1) for index in range(6)]
    assert show_ranges(ranges).endswith("[0x3000, 0x3001) and 2 more")


def test_show_ranges_none_says_nowhere():
    assert show_ranges([]) == "nowhere"

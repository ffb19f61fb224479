"""Page tables for mappings of a caller's own, read back by a walker as the CPU would read them."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.arch.x86_paging import page_tables
from accel.errors import AddressError

PAGE = 4096
HALF = 1 << 47


def walk(base, tables, virtual):
    """Return the physical address of `virtual`, or None where it is not mapped writable."""
    table = base
    for shift in (39, 30, 21, 12):
        entry = struct.unpack_from("<Q", tables, table - base + (virtual >> shift & 511) * 8)[0]
        if entry & 3 != 3:
            return None
        table = entry & ((1 << 52) - PAGE)
    return table + virtual % PAGE


def placed(number):
    """Return a page number of either half as a virtual address."""
    return number * PAGE if number * PAGE < HALF else number * PAGE + (1 << 64) - 2 * HALF


NUMBERS = st.one_of(
    st.integers(0, (2 * HALF) // PAGE - 1),
    st.sampled_from([0, 511, 512, 513, HALF // PAGE - 1, HALF // PAGE, 2 * HALF // PAGE - 1]),
)


@given(st.integers(0, 1 << 30), st.dictionaries(NUMBERS, st.integers(0, (1 << 40) - 1), max_size=12))
def test_page_tables_any_pages_lead_where_they_should_and_their_neighbours_nowhere(base, pages):
    tables = page_tables(base * PAGE, [(placed(one), physical * PAGE, PAGE) for one, physical in pages.items()])
    for number, physical in pages.items():
        assert walk(base * PAGE, tables, placed(number) + 5) == physical * PAGE + 5
    near = {(one + step) % (2 * HALF // PAGE) for one in pages for step in (-1, 1, 512)} - pages.keys()
    assert {walk(base * PAGE, tables, placed(one)) for one in near} <= {None}


def test_page_tables_a_range_across_two_tables_maps_each_page():
    tables = page_tables(0x1000, [(0x1F_F000, 0x50_0000, 3 * PAGE)])
    assert [walk(0x1000, tables, 0x1F_F000 + at * PAGE) for at in range(-1, 4)] == [
        None,
        0x50_0000,
        0x50_1000,
        0x50_2000,
        None,
    ]
    assert len(tables) == 5 * PAGE


@given(st.lists(NUMBERS, min_size=2, max_size=12, unique=True))
def test_page_tables_mappings_added_at_the_end_change_no_entry_that_is_present(numbers):
    mappings = [(placed(one), at * PAGE, PAGE) for at, one in enumerate(numbers)]
    before, after = page_tables(0x1000, mappings[:-1]), page_tables(0x1000, mappings)
    entries = zip(struct.iter_unpack("<Q", before), struct.iter_unpack("<Q", after), strict=False)
    assert all(old in (new, (0,)) for old, new in entries)


@pytest.mark.parametrize(
    ("base", "mapping", "message"),
    [
        (0x1001, (0, 0, PAGE), "the tables' base 0x1001 is no multiple of 0x1000"),
        (0, (0x10, 0, PAGE), "virtual address 0x10 is no multiple"),
        (0, (0, 0x10, PAGE), "physical address 0x10 is no multiple"),
        (0, (0, 0, 17), "size 0x11 is no multiple"),
        (0, (0, 0, -PAGE), "is no multiple of 0x1000 from 0"),
        (0, (0, 1 << 52, PAGE), "from 0 to 0xffffffffff000"),
        (0, (HALF - PAGE, 0, 2 * PAGE), "nothing can lie between 0x800000000000 and 0xffff800000000000"),
        (0, ((1 << 64) - PAGE, 0, 2 * PAGE), "virtual address 0xfffffffffffff000 is no multiple"),
    ],
)
def test_page_tables_what_cannot_be_mapped_is_refused(base, mapping, message):
    with pytest.raises(AddressError) as caught:
        page_tables(base, [mapping])
    assert message in str(caught.value)


def test_page_tables_a_page_mapped_twice_is_refused():
    with pytest.raises(AddressError, match="virtual address 0x2000 is mapped twice"):
        page_tables(0, [(0x1000, 0, 2 * PAGE), (0x2000, 0x9000, PAGE)])

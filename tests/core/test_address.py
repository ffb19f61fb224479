"""AddressRange, alignment and sizes, against sets of addresses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.address import ADDRESS_SPACE_SIZE, AddressRange, align_down, align_up, format_size, parse_size
from accel.errors import AddressError

TOP = ADDRESS_SPACE_SIZE

small = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda ends: AddressRange(min(ends), max(ends)))


def _addresses(range_: AddressRange) -> set[int]:
    return set(range(range_.start, range_.end))


@given(small, small)
def test_address_range_agrees_with_sets_of_addresses(one: AddressRange, other: AddressRange) -> None:
    mine, theirs = _addresses(one), _addresses(other)
    assert one.size == len(mine)
    assert one.covers(other) == (mine >= theirs)
    assert one.overlaps(other) == bool(mine & theirs)
    both = one.intersection(other)
    assert (set() if both is None else _addresses(both)) == mine & theirs
    assert [at in one for at in range(14)] == [at in mine for at in range(14)]


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (4, 3), (0, TOP + 1), (TOP + 1, TOP + 1)])
def test_address_range_that_is_malformed_raises_with_hex(start: int, end: int) -> None:
    with pytest.raises(AddressError, match=f"\\[{start:#x}, {end:#x}\\)"):
        AddressRange(start, end)


def test_address_range_may_end_at_two_to_the_64() -> None:
    whole = AddressRange.sized(0, TOP)
    assert whole.size == TOP
    assert TOP - 1 in whole
    assert TOP not in whole
    with pytest.raises(AddressError):
        AddressRange.sized(1, TOP)


def test_address_range_prints_hex_and_sorts_by_start() -> None:
    assert str(AddressRange(0x10, 0x20)) == "[0x10, 0x20)"
    assert repr(AddressRange(0x10, 0x20)) == "AddressRange(0x10, 0x20)"
    assert sorted([AddressRange(5, 6), AddressRange(1, 9)]) == [AddressRange(1, 9), AddressRange(5, 6)]


@given(st.integers(0, TOP), st.integers(1, 1 << 40))
def test_align_gives_the_nearest_multiple(value: int, alignment: int) -> None:
    down, up = align_down(value, alignment), align_up(value, alignment)
    assert down % alignment == up % alignment == 0
    assert down <= value <= up
    assert value - down < alignment
    assert up - value < alignment


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        (" 4096 ", 4096),
        ("010", 10),
        ("0x1000", 0x1000),
        ("0X10", 16),
        ("0x1000_0000", 0x1000_0000),
        ("1_000", 1000),
        ("12B", 12),
        ("64M", 64 << 20),
        ("64MB", 64 << 20),
        ("64MiB", 64 << 20),
        ("64m", 64 << 20),
        ("4 K", 4 << 10),
        ("2G", 2 << 30),
        ("1T", 1 << 40),
        ("0x2K", 2 << 10),
        (7, 7),
    ],
)
def test_parse_size_of_what_people_write(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "K", "-1", "-4K", "1.5G", "4P", "0x", "0x_", "1_", "1__0", "_1", "64iB", "64MiBB", "1\u212a", "٤", "9" * 5000],
)
def test_parse_size_of_anything_else_raises_address_error(text: str) -> None:
    with pytest.raises(AddressError, match="is no size; write bytes or a unit") as caught:
        parse_size(text)
    assert len(str(caught.value)) < 200


def test_parse_size_of_a_negative_number_raises() -> None:
    with pytest.raises(AddressError, match="-5 is negative"):
        parse_size(-5)


@pytest.mark.parametrize("size", [4096.5, None, b"4K"])
def test_parse_size_of_what_is_neither_text_nor_a_whole_number_raises(size: object) -> None:
    with pytest.raises(AddressError, match="is no size; write a whole number of bytes or text"):
        parse_size(size)  # type: ignore[arg-type]


@given(st.text(max_size=12))
def test_parse_size_never_raises_anything_else(text: str) -> None:
    try:
        assert parse_size(text) >= 0
    except AddressError:
        pass


@given(st.integers(0, 1 << 70))
def test_format_size_is_read_back_as_the_same(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_format_size_takes_the_largest_unit_that_divides() -> None:
    assert [format_size(size) for size in (0, 1, 1023, 1024, 1 << 20, 3 << 30, (1 << 30) + 1024, 1 << 50)] == [
        "0", "1", "1023", "1K", "1M", "3G", "1048577K", "1024T",
    ]  # fmt: skip

"""Bitmaps, against lists of bits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.memory.bitmap import any_set, clear_bits, cut, set_bits, turns, widened


def bits_of(bitmap: bytes) -> list[bool]:
    return [digit == "1" for byte in bitmap for digit in f"{byte:08b}"[::-1]]


def bitmap_of(bits: list[bool]) -> bytes:
    padded = [*bits, *[False] * (-len(bits) % 8)]
    return bytes(sum(bit << n for n, bit in enumerate(padded[at : at + 8])) for at in range(0, len(padded), 8))


@st.composite
def bitmaps_with_a_range(draw: st.DrawFn) -> tuple[bytes, int, int]:
    bitmap = draw(st.binary(max_size=40) | st.builds(bytes, st.integers(0, 40)))
    first = draw(st.integers(0, 8 * len(bitmap)))
    return bitmap, first, draw(st.integers(first, 8 * len(bitmap)))


@given(bitmaps_with_a_range())
def test_bitmap_set_and_clear_touch_the_bits_of_the_range_only(given_bits: tuple[bytes, int, int]) -> None:
    bitmap, first, end = given_bits
    before = bits_of(bitmap)
    for change, value in ((set_bits, True), (clear_bits, False)):
        changed = bytearray(bitmap)
        change(changed, first, end)
        assert bits_of(changed) == before[:first] + [value] * (end - first) + before[end:]


@given(bitmaps_with_a_range())
def test_bitmap_any_set_looks_at_the_bits_of_the_range_only(given_bits: tuple[bytes, int, int]) -> None:
    bitmap, first, end = given_bits
    assert any_set(bitmap, first, end) is any(bits_of(bitmap)[first:end])


@given(bitmaps_with_a_range())
def test_bitmap_cut_is_the_range_without_surplus_bits(given_bits: tuple[bytes, int, int]) -> None:
    bitmap, first, end = given_bits
    assert cut(bitmap, first, end - first) == bitmap_of(bits_of(bitmap)[first:end])


@given(st.binary(max_size=300) | st.builds(bytes, st.integers(0, 300)))
def test_bitmap_turns_are_where_a_bit_differs_from_the_one_before(bitmap: bytes) -> None:
    bits = [False, *bits_of(bitmap), False]
    assert list(turns(bitmap)) == [n for n in range(len(bits) - 1) if bits[n] is not bits[n + 1]]


@given(st.binary(max_size=20), st.sampled_from([1, 2, 4, 8, 16, 32, 512]), st.integers(0, 1000))
def test_bitmap_widened_repeats_each_bit_up_to_the_limit(bitmap: bytes, factor: int, limit: int) -> None:
    expected = [bit for bit in bits_of(bitmap) for _ in range(factor)][:limit]
    wide = bits_of(widened(bitmap, factor, limit))
    assert wide[: len(expected)] == expected
    assert not any(wide[len(expected) :])
    assert len(wide) < len(expected) + 8


@pytest.mark.parametrize("factor", [1 << 18, 1 << 52])
def test_bitmap_widened_by_a_huge_factor_needs_little_memory(factor: int) -> None:
    assert widened(b"\x01" + b"\xff" * 7, factor, 10) == b"\xff\x03"

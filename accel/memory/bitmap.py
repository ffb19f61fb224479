"""Bitmaps as accelerators deliver them, at the speed of C: bit n is bit n % 8 of byte n // 8.

Layer: lowest of the memory, ints and bytes only. Nothing here checks its arguments or takes a lock; callers do.
A bytearray is filled and cleared by slice assignments, and becomes a big integer for what has to touch all bits.
"""

from __future__ import annotations

from collections.abc import Iterator

#: Bytes that `turns` looks at in one step. More are faster over clean pages and slower over dirty ones; measured.
_STEP = 64


def _edges(first: int, end: int) -> tuple[int, int, int, int]:
    """Return the bytes that hold the first and the last of some bits (at least one), and each one's share of them."""
    last = end - 1
    return first >> 3, last >> 3, 0xFF << (first & 7) & 0xFF, 0xFF >> (7 - (last & 7))


def set_bits(bits: bytearray, first: int, end: int) -> None:
    """Set the bits from `first` up to but not including `end`. Complexity: O(1) in one byte, else O(bytes)."""
    if first == end:
        return
    low, high, head, tail = _edges(first, end)
    if low == high:
        bits[low] |= head & tail
        return
    bits[low] |= head
    bits[low + 1 : high] = b"\xff" * (high - low - 1)
    bits[high] |= tail


def clear_bits(bits: bytearray, first: int, end: int) -> None:
    """Clear the bits from `first` up to but not including `end`. Complexity: O(1) in one byte, else O(bytes)."""
    if first == end:
        return
    low, high, head, tail = _edges(first, end)
    if low == high:
        bits[low] &= ~(head & tail)
        return
    bits[low] &= ~head
    bits[low + 1 : high] = bytes(high - low - 1)
    bits[high] &= ~tail


def any_set(bits: bytes | bytearray, first: int, end: int) -> bool:
    """Return whether one of the bits from `first` up to but not including `end` is set. Complexity: O(bytes)."""
    if first == end:
        return False
    low, high, head, tail = _edges(first, end)
    if low == high:
        return bool(bits[low] & head & tail)
    inner = bits[low + 1 : high]
    # Comparing memory is many times as fast as any().
    return bool(bits[low] & head or bits[high] & tail) or inner != bytes(len(inner))


def turns(bits: bytes) -> Iterator[int]:
    """Yield, ascending, each bit that differs from the one before it: where a run begins, then where it ends.

    Before the first bit and after the last one all are clear, so there are as many beginnings as ends. Complexity:
    O(bytes / 64 + runs).
    """
    whole = int.from_bytes(bits, "little")
    changes = (whole ^ (whole << 1)).to_bytes(len(bits) + 1, "little")
    for at in range(0, len(changes), _STEP):
        word = int.from_bytes(changes[at : at + _STEP], "little")
        while word:
            lowest = word & -word
            yield at * 8 + lowest.bit_length() - 1
            word ^= lowest


def cut(bits: bytes, first: int, count: int) -> bytes:
    """Return `count` bits from bit `first` on as a bitmap of their own, whose surplus bits are 0. O(bytes)."""
    length = -(-count // 8)
    if not first & 7 and not count & 7:
        return bits[first >> 3 : (first >> 3) + length]
    whole = (int.from_bytes(bits, "little") >> first) & ((1 << count) - 1)
    return whole.to_bytes(length, "little")


def widened(bits: bytes, factor: int, limit: int) -> bytes:
    """Return a bitmap with each bit `factor` times (a power of two), and nothing from bit `limit` on.

    It may be shorter than `limit`, as `bits` is. It needs no more than a few bytes above those of the result, since
    the surplus goes before each step. Complexity: O(bytes of the result).
    """
    while factor > 1:
        step = min(factor, 8)
        bits = bits[: -(-limit // (factor * 8))]
        wide = bytearray(len(bits) * step)
        for part, table in enumerate(_WIDER[step]):
            wide[part::step] = bits.translate(table)
        bits = bytes(wide)
        factor //= step
    return cut(bits, 0, limit) if len(bits) * 8 > limit else bits


def _tables(factor: int) -> list[bytes]:
    """Return, for each of the `factor` bytes that a byte with each bit `factor` times has, what it is by byte."""
    run = (1 << factor) - 1
    wide = [sum(run << bit * factor for bit in range(8) if byte >> bit & 1) for byte in range(256)]
    return [bytes(value >> part * 8 & 0xFF for value in wide) for part in range(factor)]


_WIDER = {factor: _tables(factor) for factor in (2, 4, 8)}

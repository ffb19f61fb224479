"""Address ranges and sizes: half-open ranges, alignment, and sizes as people write them.

Lowest layer but for `errors`. Addresses and sizes are plain ints in bytes; a space holds at most
2^64 bytes, so `end` may be 2^64 itself.
"""

from __future__ import annotations

import re

from attrs import frozen

from accel.errors import AddressError

ADDRESS_SPACE_SIZE = 1 << 64
PAGE_SIZE = 4096

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(r"(0x[0-9a-f]+(?:_[0-9a-f]+)*|[0-9]+(?:_[0-9]+)*)\s*(?:([KMGT])(?:iB|B)?|B)?", re.I | re.A)
#: No size of a space needs more; longer numbers cost time, and CPython refuses very long ones.
_LONGEST = 64


@frozen(order=True)
class AddressRange:
    """The addresses from `start` up to but not including `end`.

    >>> AddressRange(0x1000, 0x3000).intersection(AddressRange(0x2000, 0x9000))
    AddressRange(0x2000, 0x3000)

    Raises:
        AddressError: `start` is negative, `end` lies before `start`, or `end` is above 2^64.
    """

    start: int
    end: int

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= ADDRESS_SPACE_SIZE:
            raise AddressError(
                f"[{self.start:#x}, {self.end:#x}) is no address range: 0 <= start <= end <= 2^64 must hold"
            )

    @classmethod
    def sized(cls, start: int, size: int) -> AddressRange:
        """Return the range of `size` bytes from `start`."""
        return cls(start, start + size)

    @property
    def size(self) -> int:
        """Bytes in the range."""
        return self.end - self.start

    def __repr__(self) -> str:
        return f"AddressRange({self.start:#x}, {self.end:#x})"

    def __str__(self) -> str:
        return f"[{self.start:#x}, {self.end:#x})"

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end

    def covers(self, other: AddressRange) -> bool:
        """Return whether every address of `other` lies in this range; an empty one has none."""
        return (self.start <= other.start and other.end <= self.end) or other.start == other.end

    def overlaps(self, other: AddressRange) -> bool:
        """Return whether some address lies in both."""
        return max(self.start, other.start) < min(self.end, other.end)

    def intersection(self, other: AddressRange) -> AddressRange | None:
        """Return the addresses in both, or None where there are none."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return AddressRange(start, end) if start < end else None


def align_down(value: int, alignment: int) -> int:
    """Return the greatest multiple of `alignment` that is not above `value`."""
    return value - value % alignment


def align_up(value: int, alignment: int) -> int:
    """Return the least multiple of `alignment` that is not below `value`."""
    return -(-value // alignment) * alignment


def parse_size(text: int | str) -> int:
    """Return the bytes that a size such as ``64M``, ``0x1000`` or ``4096`` means.

    The units K, M, G and T are powers of 1024; an int is returned as it is.

    >>> parse_size("64M")
    67108864

    Raises:
        AddressError: `text` is no size, or it is negative.
    """
    if isinstance(text, int):
        if text < 0:
            raise AddressError(f"size {text} is negative")
        return text
    if not isinstance(text, str):
        raise AddressError(f"{text!r} is no size; write a whole number of bytes or text with a unit, such as '64M'")
    found = _SIZE.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if found is None:
        shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
        raise AddressError(f"'{shown}' is no size; write bytes or a unit, such as 4096, 0x1000, 64M or 2G")
    return int(found[1], 16 if found[1][:2].lower() == "0x" else 10) << _UNITS[(found[2] or "").upper()]


def format_size(size: int) -> str:
    """Return `size` with the largest unit that divides it.

    >>> format_size(67108864), format_size(4097)
    ('64M', '4097')
    """
    for unit in ("T", "G", "M", "K"):
        if size and size % (1 << _UNITS[unit]) == 0:
            return f"{size >> _UNITS[unit]}{unit}"
    return str(size)

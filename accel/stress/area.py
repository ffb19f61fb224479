"""What lies where in the memory of a stress run: the touched area, which is always RAM, and a tail that comes and goes.

Pure values; the lowest module of this package. Offsets count from the start of the changing RAM.

=============  =====================================================
data           words that only the host writes, each a `pattern`
code           functions, which the guest calls
tables         page tables, which the guest walks
written        words that the guest writes; all before is only read
tail           nobody touches it; holes, moves and growth happen here
=============  =====================================================
"""

from __future__ import annotations

from attrs import frozen

from accel.address import PAGE_SIZE, AddressRange

#: Where the changing RAM shows.
BASE = 0x1000_0000

_MASK = (1 << 64) - 1
_FACTOR = 0x9E37_79B9_7F4A_7C15


@frozen
class Cells:
    """Equal cells, one after the other.

    Attributes:
        offset: Where the first one begins.
        count: How many there are.
        size: Bytes of each.
    """

    offset: int
    count: int
    size: int

    def addresses(self) -> range:
        """Return where each of them begins in the guest's memory."""
        start = BASE + self.offset
        return range(start, start + self.count * self.size, self.size)


DATA = Cells(0, 64, 1 << 10)
CODE = Cells(16 * PAGE_SIZE, 64, 1 << 10)
TABLES = 32 * PAGE_SIZE
WRITTEN = Cells(40 * PAGE_SIZE, 48, 2 << 10)

#: End of what the guest only reads, and so may be read-only.
READ_END = WRITTEN.offset
#: End of what the guest touches.
TOUCHED = 64 * PAGE_SIZE
#: Where in the tail a hole may be, and the piece that moves.
HOLES = AddressRange(TOUCHED, 80 * PAGE_SIZE)
MOVING = AddressRange(80 * PAGE_SIZE, 96 * PAGE_SIZE)
#: Least and largest size of the changing RAM.
LEAST, MOST = MOVING.end, 128 * PAGE_SIZE


def pattern(address: int) -> int:
    """Return the 8 bytes that the host puts at `address`; the guests know the same formula.

    >>> hex(pattern(0x1000))
    '0x3bcdcbfa53e0a800'
    """
    return (address * _FACTOR & _MASK) >> 1


def tail_bytes() -> bytes:
    """Return what the host puts into the tail."""
    return b"".join(pattern(BASE + at).to_bytes(8, "little") for at in range(TOUCHED, MOST, 8))

"""Finding room in guest RAM: first fit, lowest address first, around what is taken.

Stands beside the architectures, above `address`; knows nothing about what is placed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from accel.address import AddressRange, align_up


def merge_ranges(ranges: Iterable[AddressRange]) -> tuple[AddressRange, ...]:
    """Return the same addresses as ascending ranges that neither overlap nor touch; O(n log n).

    >>> merge_ranges([AddressRange(4, 8), AddressRange(0, 4), AddressRange(9, 9)])
    (AddressRange(0x0, 0x8),)
    """
    merged: list[AddressRange] = []
    for item in sorted(ranges):
        if not item.size:
            continue
        if merged and item.start <= merged[-1].end:
            merged[-1] = AddressRange(merged[-1].start, max(merged[-1].end, item.end))
        else:
            merged.append(item)
    return tuple(merged)


def subtract_ranges(ranges: Iterable[AddressRange], taken: Iterable[AddressRange]) -> tuple[AddressRange, ...]:
    """Return the addresses of `ranges` that are not in `taken`, ascending; O(n log n)."""
    holes = merge_ranges(taken)
    left: list[AddressRange] = []
    index = 0
    for item in merge_ranges(ranges):
        start = item.start
        while index < len(holes) and holes[index].end <= start:
            index += 1
        look = index
        while look < len(holes) and holes[look].start < item.end:
            if start < holes[look].start:
                left.append(AddressRange(start, holes[look].start))
            start = holes[look].end
            look += 1
        if start < item.end:
            left.append(AddressRange(start, item.end))
    return tuple(left)


def show_ranges(ranges: Sequence[AddressRange]) -> str:
    """Return ranges for a message, no more than four of them."""
    shown = ", ".join(str(item) for item in ranges[:4])
    if len(ranges) > 4:
        shown += f" and {len(ranges) - 4} more"
    return shown or "nowhere"


class Placer:
    """Hands out free ranges; owned by one thread.

    Args:
        ram: Where there is memory.
        taken: What must stay clear.
        window: Everything is placed inside it.
    """

    def __init__(self, ram: Iterable[AddressRange], taken: Sequence[AddressRange], window: AddressRange) -> None:
        outside = (AddressRange(0, window.start), AddressRange(window.end, 1 << 64))
        self._free = list(subtract_ranges(ram, (*taken, *outside)))

    def place(self, size: int, alignment: int) -> AddressRange | None:
        """Take the lowest free `size` bytes at a multiple of `alignment`; None where nothing fits."""
        for index, gap in enumerate(self._free):
            start = align_up(gap.start, alignment)
            if start + size <= gap.end:
                found = AddressRange.sized(start, size)
                self._free[index : index + 1] = subtract_ranges((gap,), (found,))
                return found
        return None

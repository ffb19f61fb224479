"""Checks that every loader and every machine makes of an image: its entry, and whether it fits into RAM.

Above `image`; used by the loaders, and by whoever puts an image into memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from accel.address import AddressRange, align_up, format_size
from accel.arch.placement import merge_ranges, show_ranges
from accel.arch.x86 import HIGH_RAM_START, LOW_RAM_END, MAX_RAM
from accel.errors import ImageError
from accel.loaders.image import Image, Segment

_MIB = 1 << 20


def check_entry(name: str, segments: Sequence[Segment], entry: int) -> None:
    """Make sure that `entry` lies in one of the segments.

    Raises:
        ImageError: It does not.
    """
    if not any(entry in segment.range for segment in segments):
        where = show_ranges(merge_ranges(segment.range for segment in segments))
        raise ImageError(name, f"entry {entry:#x} is not in the image, which takes {where}; set --entry inside it")


def check_fits(image: Image, ram: Sequence[AddressRange]) -> None:
    """Make sure that every segment of `image` lies in RAM; O((segments + ranges) log).

    Args:
        image: What is to be loaded. Its read-only pieces need no RAM and are not looked at.
        ram: Where there is RAM.

    Raises:
        ImageError: A segment does not, or not wholly; it is named, with the RAM and what would help.
    """
    ranges = merge_ranges(ram)
    for number, segment in enumerate(image.segments):
        if not segment.size or any(item.covers(segment.range) for item in ranges):
            continue
        raise ImageError(
            image.name,
            f"segment {number} at {segment.range} is not in RAM, which is {show_ranges(ranges)}; "
            f"{_advice(segment.range)}",
        )


def _advice(wanted: AddressRange) -> str:
    """Return the memory size that puts RAM under `wanted`, or why none does."""
    if wanted.end <= LOW_RAM_END:
        needed = wanted.end
    elif wanted.start >= HIGH_RAM_START:
        needed = wanted.end - (HIGH_RAM_START - LOW_RAM_END)
    else:
        return f"{AddressRange(LOW_RAM_END, HIGH_RAM_START)} is left to devices: load the image elsewhere"
    if needed > MAX_RAM:
        return "no --memory reaches so far: load the image lower"
    return f"use --memory {format_size(align_up(needed, _MIB))} or more, or load the image lower"

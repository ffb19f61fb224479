"""How a picture looks: colours, sizes, and the words for addresses and sizes.

The colours are lighter tones of Okabe and Ito's palette, which people with any colour vision can tell apart; each kind
of region is written out as well, so that nothing depends on them.
"""

from __future__ import annotations

from collections.abc import Sequence

from accel.address import ADDRESS_SPACE_SIZE
from accel.cli.memory_map.names import shortened, shown
from accel.cli.memory_map.scene import columns, text_width

FONT = 11.0
SMALL = 10.0
#: Height of one line of text with its air.
LINE = 15.0
#: From the top of a line to the base line of its text.
BASELINE = 11.5
#: Between the border of a box and its text.
INSET = 4.0

TEXT = "#111111"
MUTED = "#4f4f4f"
EDGE = "#4d4d4d"
FAINT_EDGE = "#a0a0a0"
FAINT = "#d9d9d9"
PAPER = "#ffffff"
CONTAINER_FILL = "#f4f4f4"

KIND_FILLS = {"ram": "#a9d6f5", "rom": "#f5c25b", "mmio": "#8fd3b6", "romd": "#e3b0cf"}
#: Of what a plugin or a later version may bring.
OTHER_FILL = "#f3ec8c"

#: Names in one tip.
_TIP_NAMES = 40

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def fill_of(kind: str) -> str:
    """Return the colour of a kind of region."""
    return CONTAINER_FILL if kind == "container" else KIND_FILLS.get(kind, OTHER_FILL)


def address_text(address: int) -> str:
    """Return an address as it is written in workload files.

    >>> address_text(0xfee0_0000), address_text(1 << 64)
    ('0xfee0_0000', '2^64')
    """
    return "2^64" if address == ADDRESS_SPACE_SIZE else f"{address:#_x}"


def size_text(size: int) -> str:
    """Return a size in the largest unit that leaves at least one of it; ``~`` says that it is rounded.

    >>> size_text(4096), size_text(0x3fff_f000)
    ('4 KiB', '~1023.9 MiB')
    """
    unit = min((size.bit_length() - 1) // 10, len(_UNITS) - 1)
    whole, rest = divmod(size, 1 << 10 * unit)
    if not rest:
        return f"{whole} {_UNITS[unit]}"
    # Cut, so that 1023.99 does not become 1024.
    return f"~{whole}.{rest * 10 >> 10 * unit} {_UNITS[unit]}"


def fitted(name: str, width: float, size: float = FONT) -> str:
    """Return a name cut to what fits into `width`."""
    return shortened(shown(name), columns(width, size))


def first_and_last(names: Sequence[str], width: float) -> str:
    """Return the first and the last of some names, in small type and cut to what fits into `width`."""
    if not names:
        return ""
    half = (width - text_width(" … ", SMALL)) / 2
    return f"{fitted(names[0], half, SMALL)} … {fitted(names[-1], half, SMALL)}"


def names_text(names: Sequence[str]) -> str:
    """Return some names for a tip."""
    more = len(names) - _TIP_NAMES
    return ", ".join(map(shown, names[:_TIP_NAMES])) + (f"\nand {more:,} more" if more > 0 else "")


def range_text(start: int, end: int) -> str:
    """Return a range with its last address and its size."""
    return f"{start:#_x} to {end - 1:#_x} ({size_text(end - start)})"

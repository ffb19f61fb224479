"""Names from workload files and plugins, made fit to be shown: no control characters, no endless lines."""

from __future__ import annotations

import unicodedata

from accel.cli.app import printable

#: Columns that a name takes in text at most; pictures shorten further.
_IN_TEXT = 100
#: Columns that a name takes in JSON at most, where it may stand thousands of times.
_IN_DATA = 256

_ELLIPSIS = "…"


def shown(name: str) -> str:
    """Return `name` as a piece of one line that steers no terminal."""
    # Shortened before as well, so that a very long name costs no time.
    return shortened(printable(shortened(name, _IN_TEXT).replace("\n", "\\n")), _IN_TEXT)


def in_data(name: str) -> str:
    """Return `name` as it stands in JSON: itself, unless it is very long."""
    return shortened(name, _IN_DATA)


def cells(text: str) -> int:
    """Return how many columns of a fixed-width font `text` takes at most; a combining character counts as one."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def shortened(text: str, width: int) -> str:
    """Return `text` in at most `width` columns; what is left out is in its middle, since names differ at their ends.

    >>> shortened("virtio-mmio-17", 9)
    'virt…o-17'
    """
    if len(text) <= width and cells(text) <= width:
        return text
    if width < 1:
        return ""
    tail = _prefix(text[-width:][::-1], (width - 1) // 2)[::-1]
    return _prefix(text[:width], width - 1 - cells(tail)) + _ELLIPSIS + tail


def _prefix(text: str, width: int) -> str:
    taken = 0
    for index, one in enumerate(text):
        taken += cells(one)
        if taken > width:
            return text[:index]
    return text

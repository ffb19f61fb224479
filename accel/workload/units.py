"""Durations as people write them: ``5ms``, ``1.5s``; whole microseconds inside.

Layer: below the schema, beside `accel.address` which does the same for sizes.
"""

from __future__ import annotations

import re

from accel.errors import UsageError

_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000, "min": 60_000_000}
# The digits are bounded so that no text makes a number that takes long to compute with.
_DURATION = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,6}))?\s*(us|ms|s|min)")


def parse_duration(text: str) -> int:
    """Return the microseconds that a duration such as ``5ms``, ``1.5s`` or ``2min`` means.

    >>> parse_duration("1.5ms")
    1500

    Raises:
        UsageError: `text` is no duration, not above zero, or no whole number of microseconds.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise UsageError("is no duration; write a number with us, ms, s or min, such as 5ms or 1.5s")
    millionths = int(found[1] + (found[2] or "").ljust(6, "0")) * _UNITS[found[3]]
    if millionths % 1_000_000:
        raise UsageError("is finer than a microsecond; use whole microseconds, such as 5us")
    if not millionths:
        raise UsageError("must be above zero, such as 5ms")
    return millionths // 1_000_000


def format_duration(microseconds: int) -> str:
    """Return a duration with the largest unit that divides it.

    >>> format_duration(5000), format_duration(1500)
    ('5ms', '1500us')
    """
    for unit in ("min", "s", "ms"):
        if microseconds % _UNITS[unit] == 0:
            return f"{microseconds // _UNITS[unit]}{unit}"
    return f"{microseconds}us"

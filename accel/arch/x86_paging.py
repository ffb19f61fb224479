"""Page tables for 64-bit guests: memory mapped to itself by 2 MiB pages.

Pure values; stands above `address`. 1 GiB pages would make smaller tables, but not every CPU has them.
Upstream: Intel SDM volume 3, 4.5 (4-level paging).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from accel.address import PAGE_SIZE

_GIB = 1 << 30
_LARGE_PAGE = 2 << 20
_ENTRIES = 512
_TABLE = struct.Struct(f"<{_ENTRIES}Q")
#: Present, writable, accessed. Accessed and dirty are set beforehand so that page walks write nothing.
_TABLE_FLAGS = 0x23
#: The same, dirty, and a 2 MiB page.
_PAGE_FLAGS = 0xE3


def tables_size(mapped: int) -> int:
    """Return the bytes that the tables for [0, `mapped`) take; `mapped` is a multiple of 1 GiB."""
    directories = mapped // _GIB
    return (1 + -(-directories // _ENTRIES) + directories) * PAGE_SIZE


def identity_tables(base: int, mapped: int) -> bytes:
    """Return 4-level page tables, to lie at `base`, that map [0, `mapped`) to itself, writable.

    The top table comes first. `base` is a multiple of 4,096, `mapped` one of 1 GiB and at most 2^47.
    O(mapped): 4 KiB for each GiB.
    """
    directories = mapped // _GIB
    pointers = -(-directories // _ENTRIES)
    first_pointer = base + PAGE_SIZE
    first_directory = first_pointer + pointers * PAGE_SIZE
    return b"".join(
        (
            *_tables(first_pointer | _TABLE_FLAGS, PAGE_SIZE, pointers),
            *_tables(first_directory | _TABLE_FLAGS, PAGE_SIZE, directories),
            *_tables(_PAGE_FLAGS, _LARGE_PAGE, directories * _ENTRIES),
        )
    )


def _tables(first: int, step: int, count: int) -> Iterator[bytes]:
    """Yield tables whose entries are `first`, `first + step`, …; `count` in all, then not-present ones."""
    for done in range(0, count, _ENTRIES):
        used = min(_ENTRIES, count - done)
        entries = range(first + done * step, first + (done + used) * step, step)
        yield _TABLE.pack(*entries, *(0,) * (_ENTRIES - used))

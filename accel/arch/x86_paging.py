"""Page tables for 64-bit guests: memory mapped to itself by 2 MiB pages, or any of it anywhere by 4 KiB pages.

Pure values; stands above `address`. 1 GiB pages would make smaller tables, but not every CPU has them.
Upstream: Intel SDM volume 3, 4.5 (4-level paging).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from accel.address import PAGE_SIZE
from accel.errors import AddressError

_GIB = 1 << 30
_LARGE_PAGE = 2 << 20
_ENTRIES = 512
_TABLE = struct.Struct(f"<{_ENTRIES}Q")
#: Present, writable, accessed. Accessed and dirty are set beforehand so that page walks write nothing.
_TABLE_FLAGS = 0x23
#: The same, dirty, and a 2 MiB page.
_PAGE_FLAGS = 0xE3
#: The same, and a page of 4 KiB.
_SMALL_PAGE_FLAGS = 0x63
#: Where the lower half of virtual addresses ends, and the upper half begins.
_LOWER_END, _UPPER_START, _VIRTUAL_END = 1 << 47, (1 << 64) - (1 << 47), 1 << 64
#: No CPU has more physical address bits.
_PHYSICAL_END = 1 << 52


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


def page_tables(base: int, mappings: Iterable[tuple[int, int, int]]) -> bytes:
    """Return 4-level page tables, to lie at `base`, for `mappings`: `(virtual, physical, size)` each, writable.

    The top table comes first. All numbers are multiples of 4,096. How long the tables become depends on how far apart
    the mappings lie: 4 KiB for each 2 MiB of virtual addresses with something in it, and a few more. With mappings
    added at the end, no entry that was present changes. O(pages).

    >>> tables = page_tables(0x1000, [(0x40_0000, 0x10_0000, 0x2000), (0x7FFF_FFFF_0000, 0x20_0000, 0x1_0000)])
    >>> len(tables) // 4096
    7

    Raises:
        AddressError: A number is no multiple of 4,096 or out of reach, or an address is mapped twice.
    """
    _check_page("the tables' base", base, _PHYSICAL_END)
    tables = [[0] * _ENTRIES]
    for virtual, physical, size in mappings:
        _check_mapping(virtual, physical, size)
        for at in range(0, size, PAGE_SIZE):
            table, address = tables[0], virtual + at
            for shift in (39, 30, 21):
                index = address >> shift & _ENTRIES - 1
                if not table[index]:
                    table[index] = base + len(tables) * PAGE_SIZE | _TABLE_FLAGS
                    tables.append([0] * _ENTRIES)
                table = tables[(table[index] - base) // PAGE_SIZE]
            index = address >> 12 & _ENTRIES - 1
            if table[index]:
                raise AddressError(f"virtual address {address:#x} is mapped twice; map each page once")
            table[index] = physical + at | _SMALL_PAGE_FLAGS
    return b"".join(_TABLE.pack(*table) for table in tables)


def _check_mapping(virtual: int, physical: int, size: int) -> None:
    _check_page("size", size, _PHYSICAL_END)
    _check_page("physical address", physical, _PHYSICAL_END - size)
    _check_page("virtual address", virtual, _VIRTUAL_END - size)
    if virtual < _UPPER_START and virtual + size > _LOWER_END:
        raise AddressError(
            f"virtual addresses {virtual:#x} to {virtual + size:#x}: nothing can lie between "
            f"{_LOWER_END:#x} and {_UPPER_START:#x}"
        )


def _check_page(what: str, number: int, last: int) -> None:
    if not 0 <= number <= last or number % PAGE_SIZE:
        raise AddressError(f"{what} {number:#x} is no multiple of {PAGE_SIZE:#x} from 0 to {last:#x}")


def _tables(first: int, step: int, count: int) -> Iterator[bytes]:
    """Yield tables whose entries are `first`, `first + step`, …; `count` in all, then not-present ones."""
    for done in range(0, count, _ENTRIES):
        used = min(_ENTRIES, count - done)
        entries = range(first + done * step, first + (done + used) * step, step)
        yield _TABLE.pack(*entries, *(0,) * (_ENTRIES - used))

"""Dirty logs: which pages of a RAM block were written, kept apart for each client that asks.

Layer: below `ram_block` and `region`; knows offsets in a block only, no addresses of the guest and no accelerator.
Source: QEMU's dirty memory clients and the bitmap of KVM_GET_DIRTY_LOG (KVM api.rst), the rules only.

**Pages.** A page is dirty or clean as a whole. A range that is not made of whole pages stands for all pages that it
touches, also where it is cleared or collected; an empty one touches none. The last page of a block may be short.

**Memory.** One bit per page and client, and only while that client logs: 2 MiB for 64 GiB of pages of 4 KiB. A log
that nobody uses holds a few hundred bytes, whatever the size of its block.

**Representation.** A bytearray in the layout of `accel.memory.bitmap`, which is that of the accelerators. One page is
one byte operation, filling and clearing are slice assignments, and merging goes through big integers: 1M pages take
half a millisecond. One big integer per client would merge as fast, but copy the whole bitmap for each single page; a
loop over words takes five times as long where many pages are dirty; sets of pages take hundreds of times the memory.

**What a writer has to do.** Store first, mark afterwards. Marked first, a page could be collected between the two, and
the store would be in no later log. Whoever looks at `DirtyLog.mask` to skip the call looks after the store as well.
A store that is complete before `start` returns may be missing from the log.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from attrs import frozen

from accel.address import PAGE_SIZE, AddressRange
from accel.errors import AddressError, StateError, UsageError
from accel.locks import DIRTY_LOCK, Lock
from accel.memory.bitmap import any_set, clear_bits, cut, set_bits, turns, widened


class DirtyClient(enum.IntFlag):
    """Who wants to know of written pages; flags, so that one mask holds several."""

    #: A display, which draws again what has changed.
    VGA = 1
    #: A translator of guest code, which drops what it made of changed code.
    CODE = 2
    #: A migration or snapshot, which sends again what has changed.
    MIGRATION = 4


#: Plain ints, because `&` of two enum members takes longer than marking a page.
_CLIENTS = tuple(int(client) for client in DirtyClient)
_ALL = sum(_CLIENTS)


@frozen
class DirtySnapshot:
    """The dirty pages of a part of a block at one moment, for one client.

    Attributes:
        offset: Where in the block it begins, in bytes; the start of a page.
        size: Bytes that it is about: whole pages, unless the block's end cuts the last one.
        page_size: Bytes per page.
        bitmap: Bit n, counted from the lowest bit of the first byte, is page n from `offset` on; no bit is set past
            the last page.
    """

    offset: int
    size: int
    page_size: int
    bitmap: bytes

    @property
    def page_count(self) -> int:
        """How many pages are dirty. Complexity: O(size of the bitmap), at the speed of C."""
        return int.from_bytes(self.bitmap, "little").bit_count()

    def is_dirty(self, offset: int, size: int = 1) -> bool:
        """Return whether a page that the `size` bytes from `offset`, in the block, on touch is dirty.

        Complexity: O(pages in the range / 8), at the speed of C.

        Raises:
            AddressError: The range is not within the snapshot, which knows nothing of other pages.
        """
        if not self.offset <= offset <= offset + size <= self.offset + self.size:
            raise AddressError(
                f"[{offset:#x}, {offset + size:#x}) is not within the snapshot of "
                f"[{self.offset:#x}, {self.offset + self.size:#x})"
            )
        return any_set(self.bitmap, *_touched(offset - self.offset, size, self.page_size.bit_length() - 1))

    def ranges(self) -> Iterator[AddressRange]:
        """Yield, ascending, the dirty bytes as offsets in the block; no two ranges touch.

        Ranges begin and end with pages, or end with `offset` + `size`. Complexity: O(size of the bitmap + ranges).
        """
        last = self.offset + self.size
        found = turns(self.bitmap)
        for start, end in zip(found, found, strict=True):
            first = self.offset + start * self.page_size
            yield AddressRange(first, min(self.offset + end * self.page_size, last))


class DirtyLog:
    """The dirty pages of one RAM block, for each client that logs.

    All methods may be called from any thread, with any lock held or inside a gate; each is one step to all others,
    under a leaf lock (`accel.locks.DIRTY_LOCK`).

    Args:
        size: Bytes of the block, at its greatest.
        page_size: Bytes per page, a power of two.

    Attributes:
        size: As given.
        page_size: As given.
        mask: The clients that log, as a plain int; anyone may read it without the lock, and pass over `mark` where it
            is 0. Written under the lock.

    Raises:
        AddressError: The size is not positive, or the page size is no power of two.
    """

    __slots__ = ("_bitmaps", "_counts", "_lock", "_page_count", "_shift", "mask", "page_size", "size")

    def __init__(self, size: int, page_size: int = PAGE_SIZE) -> None:
        if size <= 0 or page_size <= 0 or page_size & (page_size - 1):
            raise AddressError(
                f"a dirty log of {size:#x} bytes in pages of {page_size:#x}: the size must be positive and the page "
                "size a power of two"
            )
        self.size = size
        self.page_size = page_size
        self.mask = 0
        self._shift = page_size.bit_length() - 1
        self._page_count = -(-size // page_size)
        self._lock = Lock(DIRTY_LOCK)
        # Both guarded by _lock. A client is in _bitmaps while its count is above 0.
        self._counts = dict.fromkeys(_CLIENTS, 0)
        self._bitmaps: dict[int, bytearray] = {}

    def __repr__(self) -> str:
        return f"<DirtyLog {self.size:#x} bytes in pages of {self.page_size:#x}, {DirtyClient(self.mask)!r}>"

    def start(self, clients: int) -> None:
        """Log for each of `clients` from now on; as many times as it is started, it has to be stopped.

        A client that logs already keeps its bits; the pages of a new one are clean. Complexity: O(pages / 8) for a
        new client.

        Raises:
            UsageError: `clients` has bits that are no `DirtyClient`.
            AddressError: There is no memory for the bitmap; nothing is started.
        """
        wanted = each_client(clients)
        with self._lock:
            try:
                new = {one: bytearray(-(-self._page_count // 8)) for one in wanted if not self._counts[one]}
            except (MemoryError, OverflowError) as error:
                raise AddressError(
                    f"no memory for a dirty log of {self.size:#x} bytes in pages of {self.page_size:#x}; "
                    "reserve less for the block"
                ) from error
            self._bitmaps |= new
            for one in wanted:
                self._counts[one] += 1
            self.mask = sum(self._bitmaps)

    def stop(self, clients: int) -> None:
        """Take back one `start` of each of `clients`; who has none left does not log any more and loses its bits.

        Raises:
            UsageError: `clients` has bits that are no `DirtyClient`.
            StateError: One of them does not log; nothing is stopped.
        """
        wanted = each_client(clients)
        with self._lock:
            for one in wanted:
                self._bitmap(one)
            for one in wanted:
                self._counts[one] -= 1
                if not self._counts[one]:
                    del self._bitmaps[one]
            self.mask = sum(self._bitmaps)

    def mark(self, offset: int, size: int, clients: int = _ALL) -> None:
        """Make the pages that the `size` bytes from `offset` on touch dirty, for each of `clients` that logs.

        Call it after the bytes are stored; see the module's text. Complexity: O(1) for one page, O(pages / 8) at the
        speed of C for more.

        Raises:
            AddressError: The range is not within the block; nothing is marked.
        """
        first, end = self._pages(offset, size)
        wanted = int(clients) & self.mask
        if not wanted:
            return
        with self._lock:
            for client, bits in self._bitmaps.items():
                if client & wanted:
                    if end - first == 1:
                        bits[first >> 3] |= 1 << (first & 7)
                    else:
                        set_bits(bits, first, end)

    def merge(self, offset: int, bitmap: bytes | bytearray | memoryview, page_size: int | None = None) -> None:
        """Make dirty what an accelerator's bitmap says, for every client that logs.

        Complexity: O(size of the bitmap), at the speed of C: 1M pages take half a millisecond per client.

        Args:
            offset: Where in the block the bitmap's first page begins; a multiple of the log's page size.
            bitmap: As KVM_GET_DIRTY_LOG gives it: bit n, counted from the lowest bit of the first byte, is page n
                from `offset` on. Bits past the end of the block mean nothing, and it may have any length.
            page_size: Bytes per bit: the log's page size, as where it is None, or that times a power of two.

        Raises:
            AddressError: `offset` lies outside the block or inside a page, or the page size does not fit.
        """
        unit = self.page_size if page_size is None else page_size
        if unit < self.page_size or unit & (unit - 1):
            raise AddressError(
                f"a bitmap with pages of {unit:#x} cannot be merged into a dirty log with pages of "
                f"{self.page_size:#x}; they must be equal or that times a power of two"
            )
        if offset % self.page_size or not 0 <= offset <= self.size:
            raise AddressError(
                f"a bitmap from {offset:#x} on cannot be merged: it must begin with a page of {self.page_size:#x} in "
                f"a block of {self.size:#x}"
            )
        first = offset >> self._shift
        fitting = widened(bytes(bitmap), unit >> self._shift, self._page_count - first)
        new = int.from_bytes(fitting, "little") << (first & 7)
        if not new:
            return
        at = slice(first >> 3, (first >> 3) + -(-new.bit_length() // 8))
        with self._lock:
            for bits in self._bitmaps.values():
                bits[at] = (int.from_bytes(bits[at], "little") | new).to_bytes(at.stop - at.start, "little")

    def is_dirty(self, client: int, offset: int, size: int = 1) -> bool:
        """Return whether a page that the `size` bytes from `offset` on touch is dirty for `client`.

        Complexity: O(pages in the range / 8), at the speed of C.

        Raises:
            AddressError: The range is not within the block.
            StateError: The client does not log.
            UsageError: `client` is not one client.
        """
        first, end = self._pages(offset, size)
        with self._lock:
            return any_set(self._bitmap(client), first, end)

    def collect(self, client: int, offset: int, size: int) -> DirtySnapshot:
        """Return which pages that the range touches are dirty for `client`, and make them clean, in one step.

        The snapshot is about whole pages: it may begin before `offset` and end after `offset` + `size`. A page that
        is marked meanwhile is in the snapshot or in the next one. Complexity: O(pages in the range / 8), at the speed
        of C.

        Raises:
            AddressError: The range is not within the block; nothing is cleared.
            StateError: The client does not log.
            UsageError: `client` is not one client.
        """
        first, end = self._pages(offset, size)
        with self._lock:
            bits = self._bitmap(client)
            copy = bytes(bits[first >> 3 : -(-end // 8)])
            clear_bits(bits, first, end)
        start = first << self._shift
        covered = min(end << self._shift, self.size) - start
        return DirtySnapshot(start, covered, self.page_size, cut(copy, first & 7, end - first))

    def clear(self, client: int, offset: int, size: int) -> None:
        """Make the pages that the range touches clean for `client`.

        Complexity: O(pages in the range / 8), at the speed of C.

        Raises:
            AddressError: The range is not within the block; nothing is cleared.
            StateError: The client does not log.
            UsageError: `client` is not one client.
        """
        first, end = self._pages(offset, size)
        with self._lock:
            clear_bits(self._bitmap(client), first, end)

    def _pages(self, offset: int, size: int) -> tuple[int, int]:
        """Return the first page that the range touches and the first after it."""
        if not 0 <= offset <= offset + size <= self.size:
            raise AddressError(
                f"[{offset:#x}, {offset + size:#x}) is not within the dirty log of a block of {self.size:#x}"
            )
        return _touched(offset, size, self._shift)

    def _bitmap(self, client: int) -> bytearray:
        """Return the bits of a client that must log; the caller holds the lock."""
        one = int(client)
        bits = self._bitmaps.get(one)
        if bits is not None:
            return bits
        if one not in _CLIENTS:
            names = ", ".join(known.name or "" for known in DirtyClient)
            raise UsageError(f"{one:#x} is not one dirty-log client; name one of {names}")
        raise StateError(f"dirty-log client {DirtyClient(one).name} does not log this block; start it first")


def each_client(clients: int) -> list[int]:
    """Return each client of a mask. Raises UsageError where it has bits that are none."""
    mask = int(clients)
    if mask & ~_ALL:
        raise UsageError(f"{mask:#x} has bits that are no dirty-log client; the clients are {_ALL:#x} in all")
    return [one for one in _CLIENTS if one & mask]


def _touched(offset: int, size: int, shift: int) -> tuple[int, int]:
    """Return the first page of 2^shift bytes that the range touches and the first after it."""
    first = offset >> shift
    return first, ((offset + size - 1) >> shift) + 1 if size else first

"""What an access to a device region becomes: which accesses a guest may make, and the calls that carry them out.

Layer: below the region tree; knows no region, lock or address space. The names are those of QEMU's memory API
(docs/devel/memory.rst, the rules only): `valid` is what the guest may do, `implemented` what the callbacks take.

**An access is bytes at offsets.** It is 1 to 8 bytes of one region, and byte `i` of its value, counted from the least
significant, belongs to `offset + i`: the bus is little-endian. What a callback gives or gets is the number that the
bytes it is called for make in the device's own byte order. So a big-endian device sees a store of 0x11223344 as
0x44332211, or, if it takes 2 bytes at a time, as 0x4433 and then 0x2211.

**Which are accepted.** A size of 1, 2, 4 or 8 must lie in ``valid.min`` to ``valid.max``, and the offset be a multiple
of it unless ``valid.unaligned``. Other sizes are what is left of an access at the end of a section, or a host's: each
of their natural pieces (`natural_pieces`) must be accepted. `load` and `store` do not ask again: the caller does, and
gives a guest all ones or drops its write where the answer is no.

**Which calls are made.** An access that `implemented` allows as it is, is one call. Else

- one of 2, 4 or 8 bytes that is not narrower than ``implemented.min`` is cut into pieces of ``implemented.max`` where
  ``implemented.unaligned`` holds, whatever its offset;
- all others are made of aligned calls. Each unit of ``implemented.min`` bytes that the access covers in part is one
  call of its own; what lies between is cut into the largest aligned pieces up to ``implemented.max``. No byte that was
  not asked for is touched outside of such a unit.

Calls go in ascending order and never overlap. A load reads a unit that it covers in part and takes its own bytes. A
store reads the unit, replaces its own bytes and writes it back, before it goes on to the next; without `read` the
other bytes are written as zero. A callback with a least size of more than one byte may thus be called for a unit that
reaches beyond a region whose size is no multiple of it: it gets the whole unit, with the offset and size that it asked
for, and what it gives for the bytes beyond is not used but for being written back.

**Missing callbacks and odd results.** Without `read` a load gives all ones; without `write` a store does nothing, and
reads nothing either. Of a result only the bits that were asked for count, so -1 is all ones; what is no integer is
Python's own TypeError. An exception from a callback is not caught: calls that were made before it stay made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from attrs import field, frozen

from accel.errors import UsageError

#: What a processor does in one access.
_NATURAL = (1, 2, 4, 8)
#: The greatest number of each size in bytes.
_ONES = tuple((1 << 8 * size) - 1 for size in range(9))


def natural_pieces(offset: int, size: int, largest: int = 8) -> Iterator[tuple[int, int]]:
    """Yield (offset, size) of the fewest aligned pieces that make up the bytes, ascending.

    `size` may be any number of bytes; each piece is a power of two of at most `largest`, which is one itself.

    >>> list(natural_pieces(3, 6))
    [(3, 1), (4, 4), (8, 1)]
    """
    end = offset + size
    while offset < end:
        piece = min(largest, offset & -offset or largest, 1 << (end - offset).bit_length() - 1)
        yield offset, piece
        offset += piece


@frozen
class AccessSizes:
    """Sizes of accesses, and whether they may stand anywhere.

    Whoever names sizes has aligned registers in mind, so `unaligned` must be asked for; `ANY_ACCESS` has it.

    Attributes:
        min: Least size in bytes: 1, 2, 4 or 8.
        max: Greatest size in bytes: 1, 2, 4 or 8, not below `min`.
        unaligned: Whether the offset may be other than a multiple of the size.

    Raises:
        UsageError: A size is another, or `min` is above `max`.
    """

    min: int = 1
    max: int = 8
    unaligned: bool = field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        for name, size in (("min", self.min), ("max", self.max)):
            if not isinstance(size, int) or size not in _NATURAL:
                raise UsageError(f"access sizes: {name} = {size!r}: must be 1, 2, 4 or 8")
        if self.min > self.max:
            raise UsageError(f"access sizes: min = {self.min} is above max = {self.max}")

    def allow(self, offset: int, size: int) -> bool:
        """Return whether one access of exactly these bytes is among them."""
        return size in _NATURAL and self.min <= size <= self.max and (self.unaligned or offset % size == 0)


#: Sizes of 1 to 8 bytes at any offset.
ANY_ACCESS = AccessSizes(unaligned=True)


@frozen
class MmioOps:
    """The callbacks of an MMIO or port region and what they take; offsets are relative to the region.

    Callbacks run under the lock that the caller holds; nothing here takes one. An example: a device of 4-byte
    registers, of which the guest may read and write any part.

    >>> registers = {0: 0x1122_3344, 4: 0}
    >>> ops = MmioOps(
    ...     read=lambda offset, size: registers[offset],
    ...     write=lambda offset, value, size: registers.update({offset: value}),
    ...     implemented=AccessSizes(4, 4),
    ... )
    >>> hex(ops.load(1, 2))
    '0x2233'
    >>> ops.store(3, 0x55AA, 2)
    >>> [hex(value) for value in registers.values()]
    ['0xaa223344', '0x55']

    Attributes:
        read: `(offset, size) -> value`; without it reads give all ones.
        write: `(offset, value, size)`; without it writes vanish.
        write_run: `(offset, data)`, the same as a guest's write of one byte for each byte of `data`, in order. It is
            used where `accepts(offset, 1)`, and gets its bytes as they are, whatever `implemented` says.
        valid: What the guest may do.
        implemented: What `read` and `write` are called with.
        endian: The device's byte order, ``little`` or ``big``.

    Raises:
        UsageError: A field is of the wrong type, or `endian` another word.
    """

    read: Callable[[int, int], int] | None = None
    write: Callable[[int, int, int], None] | None = None
    write_run: Callable[[int, bytes], None] | None = None
    valid: AccessSizes = ANY_ACCESS
    implemented: AccessSizes = ANY_ACCESS
    endian: Literal["little", "big"] = "little"

    def __attrs_post_init__(self) -> None:
        for name in ("read", "write", "write_run"):
            callback = getattr(self, name)
            if callback is not None and not callable(callback):
                raise UsageError(f"MMIO operations: {name} = {callback!r}: must be a function or None")
        for name in ("valid", "implemented"):
            sizes = getattr(self, name)
            if not isinstance(sizes, AccessSizes):
                raise UsageError(f"MMIO operations: {name} = {sizes!r}: must be AccessSizes, such as AccessSizes(1, 4)")
        if self.endian not in ("little", "big"):
            raise UsageError(f"MMIO operations: endian = {self.endian!r}: must be 'little' or 'big'")

    def accepts(self, offset: int, size: int) -> bool:
        """Return whether `valid` lets the guest access these bytes; a size other than 1 to 8 is never accepted."""
        if size in _NATURAL:
            return self.valid.allow(offset, size)
        return 0 < size < 8 and all(self.valid.allow(*piece) for piece in natural_pieces(offset, size))

    def is_direct(self, offset: int, size: int) -> bool:
        """Return whether the access is accepted and is one call with the same offset, size and value.

        The answer never changes. Whoever makes the call in place of `load` and `store` sees to missing callbacks and
        to surplus bits of the result.
        """
        return (
            self.accepts(offset, size)
            and self.implemented.allow(offset, size)
            and (size == 1 or self.endian == "little")
        )

    def load(self, offset: int, size: int) -> int:
        """Return the 1 to 8 bytes from `offset` on as a little-endian number.

        The access must lie within the region and be accepted.
        """
        read = self.read
        if read is None:
            return _ONES[size]
        value = 0
        for at, length in self._calls(offset, size):
            piece = self._swapped(read(at, length) & _ONES[length], length)
            value |= piece << 8 * (at - offset) if at >= offset else piece >> 8 * (offset - at)
        return value & _ONES[size]

    def store(self, offset: int, value: int, size: int) -> None:
        """Write the low `size` bytes, 1 to 8, of `value` from `offset` on, least significant first.

        The access must lie within the region and be accepted.
        """
        write = self.write
        if write is None:
            return
        end = offset + size
        for at, length in self._calls(offset, size):
            if at >= offset and at + length <= end:
                piece = value >> 8 * (at - offset) & _ONES[length]
            else:
                first, last = max(at, offset), min(at + length, end)
                mine = _ONES[last - first] << 8 * (first - at)
                others = 0 if self.read is None else self._swapped(self.read(at, length) & _ONES[length], length)
                piece = others & ~mine | value >> 8 * (first - offset) << 8 * (first - at) & mine
            write(at, self._swapped(piece, length), length)

    def _swapped(self, value: int, size: int) -> int:
        """Return `value` from the bus's byte order in the device's, or the other way round."""
        if self.endian == "little":
            return value
        return int.from_bytes(value.to_bytes(size, "little"), "big")

    def _calls(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, size) of the calls that carry out an access."""
        end = offset + size
        least, largest, unaligned = self.implemented.min, self.implemented.max, self.implemented.unaligned
        if unaligned and size in _NATURAL and size >= least:
            step = min(size, largest)
            for at in range(offset, end, step):
                yield at, step
            return
        while offset < end:
            unit = offset - offset % least
            if unit < offset or unit + least > end:
                yield unit, least
                offset = unit + least
            else:
                whole = (end - offset) // least * least
                yield from natural_pieces(offset, whole, largest)
                offset += whole

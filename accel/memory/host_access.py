"""Access to an address space from the host: for loaders, devices and debuggers.

Addresses that nothing serves are an error, and so are sizes that a device refuses; then nothing has been read or
written. Each access uses the view that it finds when it begins (`accel.memory.parts`). Layer: below `address_space`.

**What the host may write.** A loader or debugger puts bytes wherever there is memory: into ROM, and past a ROM device's
callbacks. A device that acts for its guest, such as one that does DMA, says `as_guest`: then memory that the guest
cannot write is refused, and a ROM device gets the write. A read-only alias in the device's own space thus keeps it out.
`ram_view` gives read-only memoryviews of what the guest cannot write, since they are handed on to code that knows
nothing of this; a loader that wants to write ROM without a copy asks the region itself (`translate`, then
`MemoryRegion.view`).

**Devices** get the access as it is if it is of 1, 2, 4 or 8 bytes and they accept it (`MmioOps.valid`). All else is cut
into the widest aligned accesses that they take, in ascending order, each under the device's lock or the big lock; so it
is not for those who hold the lock of a device themselves. A write that is for an ioeventfd rings it, as a guest's does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from accel.errors import AddressError, ClosedError, UsageError
from accel.locks import Lock
from accel.memory.flat_view import FlatView, MemoryRegionSection
from accel.memory.parts import (
    Part,
    by_one_view,
    load_device,
    memory_at,
    poke_part,
    read_part,
    refused_piece,
    room_at,
    store_device,
    write_part,
)
from accel.memory.region import MemoryRegion

ByteOrder = Literal["little", "big"]

_MakePart = Callable[[MemoryRegionSection, int, int], Part]


class HostAccess:
    """What a host can do with an address space; users have an `AddressSpace`.

    Attributes:
        name: Of the space.
        view: The map in force.
        big_lock: Held around callbacks of devices that declare no lock of their own.
        closed: Whether it shows nothing any more.
    """

    name: str
    view: FlatView
    big_lock: Lock
    closed: bool

    def translate(self, address: int) -> tuple[MemoryRegion, int]:
        """Return the region that shows at `address`, and the offset in it. O(log n).

        Raises:
            AddressError: Nothing is mapped there.
        """
        try:
            found = self.view.locate(address)
        except TypeError as error:
            raise _not_numbers(address) from error
        if found is None:
            self._check_open()
            _check_numbers(address)
            raise AddressError(f"nothing is mapped at {address:#x} of '{self.name}'")
        return found

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes from `address` on, across sections; of memory, in one copy.

        Raises:
            AddressError: Nothing serves one of the addresses, or a device refuses; none has been read.
        """
        span = memory_at(self.view, address, size)
        if span is not None:
            return bytes(span)
        parts = by_one_view(self, lambda view: self._parts(view, address, size, read_part))
        self._check(parts, is_write=False)
        return self._gather(parts)

    def read_into(self, address: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer`, anything with writable bytes in a row, with the bytes from `address` on; as `read`.

        Raises:
            UsageError: The buffer cannot be written, or is not in one piece.
        """
        into = _as_bytes(buffer)
        if into.readonly:
            raise UsageError("the buffer to read into is read-only; give a bytearray")
        span = memory_at(self.view, address, len(into))
        if span is not None:
            into[:] = span
            return
        parts = by_one_view(self, lambda view: self._parts(view, address, len(into), read_part))
        self._check(parts, is_write=False)
        for part in parts:
            at = part.address - address
            into[at : at + part.size] = load_device(part, self.big_lock) if part.span is None else part.span

    def write(self, address: int, data: bytes | bytearray | memoryview, *, as_guest: bool = False) -> None:
        """Write `data` from `address` on, across sections; to memory, in one copy.

        Args:
            address: Where it begins.
            data: Anything with bytes in a row.
            as_guest: Whether to write what the guest may write, instead of all memory; see the module's text.

        Raises:
            AddressError: Nothing serves one of the addresses, a device refuses, or memory cannot be written; nothing
                has been written.
        """
        source = data if isinstance(data, (bytes, bytearray)) else _as_bytes(data)
        room = room_at(self.view, address, len(source), as_guest)
        if room is not None:
            room.put(source)
            return
        make = write_part if as_guest else poke_part
        parts = by_one_view(self, lambda view: self._parts(view, address, len(source), make))
        self._check(parts, is_write=True, as_guest=as_guest)
        self._scatter(parts, memoryview(source))

    def copy(
        self, target: int, source: int, size: int, *, into: HostAccess | None = None, as_guest: bool = False
    ) -> None:
        """Copy `size` bytes from `source` to `target`, across sections; they may overlap.

        Args:
            target: Where they go.
            source: Where they come from, in this space.
            size: How many.
            into: The space that `target` is in, if it is another. Each has a view of its own.
            as_guest: As for `write`.

        Raises:
            AddressError: As `read` and `write` do; nothing has been read or written.
        """
        view = self.view
        memory = memory_at(view, source, size)
        room = room_at(view if into is None else into.view, target, size, as_guest)
        if memory is not None and room is not None:
            room.put(memory)
            return
        make = write_part if as_guest else poke_part

        def plan(view: FlatView) -> tuple[list[Part], list[Part]]:
            sources = self._parts(view, source, size, read_part)
            if into is None or into is self:
                return sources, self._parts(view, target, size, make)
            return sources, by_one_view(into, lambda view: into._parts(view, target, size, make))

        sources, targets = by_one_view(self, plan)
        space = self if into is None else into
        self._check(sources, is_write=False)
        space._check(targets, is_write=True, as_guest=as_guest)
        space._scatter(targets, memoryview(self._gather(sources)))

    def ram_view(self, address: int, size: int) -> memoryview:
        """Return the memory itself that shows from `address` on, without a copy.

        The bytes stay there for as long as the memoryview does, whatever becomes of the map; it is read-only where
        the guest cannot write. Whoever writes through it says so with `mark_dirty`, where dirty pages are logged.

        Raises:
            AddressError: Nothing serves one of the addresses, it is no memory, or not one piece of host memory.
        """

        def look(view: FlatView) -> memoryview:
            windows = self._windows(view, address, size)
            if not windows:
                raise AddressError(f"a view of no bytes at {address:#x} of '{self.name}'; ask for 1 or more")
            first = windows[0][0]
            at = first.offset - first.range.start
            for section, start, _ in windows:
                what = f"'{section.region.name}' at {start:#x} of '{self.name}'"
                if not section.is_ram:
                    raise AddressError(f"{what} is no memory; read it")
                if section.region is not first.region or section.offset - section.range.start != at:
                    raise AddressError(
                        f"{what} is not the same piece of host memory as what lies before it; take a view of each"
                    )
            assert first.region.block is not None
            span = first.region.block.span(at + address, size)
            return span.toreadonly() if any(section.maps_readonly for section, _, _ in windows) else span

        return by_one_view(self, look)

    def mark_dirty(self, address: int, size: int) -> None:
        """Note that the host wrote to memory through a `ram_view`, for the clients that log it.

        It is about what shows there now. Where the map may have changed since the view was taken, `translate` first,
        and mark the region (`MemoryRegion.mark_dirty`).

        Raises:
            AddressError: Nothing serves one of the addresses.
        """
        for section, start, length in self._windows(self.view, address, size):
            section.region.mark_dirty(section.offset + start - section.range.start, length)

    def load(self, address: int, size: int, order: ByteOrder = "little") -> int:
        """Return the number of `size` bytes, 1, 2, 4 or 8, at `address`. Raises AddressError as `read` does."""
        _check_order(size, order)
        span = memory_at(self.view, address, size)
        return int.from_bytes(self.read(address, size) if span is None else span, order)

    def store(
        self, address: int, value: int, size: int, order: ByteOrder = "little", *, as_guest: bool = False
    ) -> None:
        """Write a number of `size` bytes, 1, 2, 4 or 8, at `address`.

        Raises:
            AddressError: As `write` does, or `value` is negative or does not fit.
        """
        _check_order(size, order)
        try:
            data = value.to_bytes(size, order)
        except OverflowError as error:
            raise AddressError(f"value {value:#x} does not fit into {size} bytes at {address:#x}") from error
        except AttributeError as error:
            raise UsageError(f"value {value!r} is no whole number") from error
        self.write(address, data, as_guest=as_guest)

    # inside

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(f"address space '{self.name}' is closed")

    def _windows(self, view: FlatView, address: int, size: int) -> list[tuple[MemoryRegionSection, int, int]]:
        self._check_open()
        _check_numbers(address, size)
        return view.windows(address, size, self.name)

    def _parts(self, view: FlatView, address: int, size: int, make: _MakePart) -> list[Part]:
        return [make(section, at, length) for section, at, length in self._windows(view, address, size)]

    def _check(self, parts: Sequence[Part], *, is_write: bool, as_guest: bool = False) -> None:
        """Refuse the access before any of it happens."""
        for part in parts:
            section = part.section
            if part.span is None:
                self._check_device(part, is_write)
            elif is_write and (part.span.readonly or (as_guest and section.readonly)):
                why = "a read-only file; write to a copy of it" if part.span.readonly else "read-only for the guest"
                raise AddressError(f"'{section.region.name}' at {part.address:#x} of '{self.name}' is {why}")

    def _check_device(self, part: Part, is_write: bool) -> None:
        refused = refused_piece(part, is_write=is_write)
        if refused is not None:
            region, (offset, size) = part.section.region, refused
            assert region.ops is not None
            raise AddressError(
                f"{size} bytes at {part.address + offset - part.offset:#x} of '{self.name}' are refused by "
                f"'{region.name}', which takes accesses of {region.ops.valid.min} to {region.ops.valid.max} bytes"
            )

    def _gather(self, parts: Sequence[Part]) -> bytes:
        return b"".join(load_device(part, self.big_lock) if part.span is None else part.span for part in parts)

    def _scatter(self, parts: Sequence[Part], data: memoryview) -> None:
        done = 0
        for part in parts:
            mine = data[done : done + part.size]
            done += part.size
            if part.span is None:
                store_device(part, mine, self.big_lock)
            else:
                part.put(mine)


def _check_order(size: int, order: str) -> None:
    if size not in (1, 2, 4, 8) or order not in ("little", "big"):
        raise UsageError(
            f"a number of {size!r} bytes, {order!r}: the size must be 1, 2, 4 or 8, the order 'little' or 'big'"
        )


def _as_bytes(data: bytes | bytearray | memoryview) -> memoryview:
    """Return a view of the bytes of anything that has some, in a row."""
    try:
        view = memoryview(data)
        return view if view.format == "B" and view.ndim == 1 and view.contiguous else view.cast("B")
    except TypeError as error:
        raise UsageError(f"{type(data).__name__} has no bytes in one piece; give bytes or a bytearray") from error


def _check_numbers(*values: object) -> None:
    if not all(isinstance(value, int) for value in values):
        raise _not_numbers(*values)


def _not_numbers(*values: object) -> UsageError:
    shown = ", ".join(map(repr, values))
    return UsageError(f"address and size must be whole numbers, not {shown}")

"""Access to an address space from the host: for loaders, devices and debuggers.

It may write ROM, and refuses addresses that nothing serves. Each access uses the view that it finds when it begins,
so it sees the map before a concurrent change or the one after, never half of it. Layer: below `address_space`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from accel.address import AddressRange
from accel.errors import AddressError
from accel.locks import Lock
from accel.memory.flat_view import FlatView, MemoryRegionSection
from accel.memory.mmio import natural_pieces
from accel.memory.region import MemoryRegion

ByteOrder = Literal["little", "big"]
_Windows = Sequence[tuple[MemoryRegionSection, AddressRange]]


class HostAccess:
    """What a host can do with an address space; users have an `AddressSpace`.

    Attributes:
        name: Of the space.
        view: The map in force.
        big_lock: Held around callbacks of devices that declare no lock of their own.
    """

    name: str
    view: FlatView
    big_lock: Lock

    def translate(self, address: int) -> tuple[MemoryRegion, int]:
        """Return the region that shows at `address`, and the offset in it. O(log n).

        Raises:
            AddressError: Nothing is mapped there.
        """
        section = self.view.find(address)
        if section is None:
            raise AddressError(f"nothing is mapped at {address:#x} of '{self.name}'")
        return section.region, section.offset + address - section.range.start

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes from `address` on, across sections.

        Devices are read in the widest aligned accesses that they take, each under the device's lock.

        Raises:
            AddressError: Nothing serves one of the addresses; no device has been read.
        """
        windows = self.view.windows(address, size, self.name)
        if len(windows) == 1 and windows[0][0].is_ram:
            return bytes(windows[0][0].span(address, size))
        return self._gather(windows)

    def read_into(self, address: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` with the bytes from `address` on; as `read`, without the copy."""
        with memoryview(buffer) as into:
            for section, window in self.view.windows(address, into.nbytes, self.name):
                source = section.span(window.start, window.size) if section.is_ram else self._load_all(section, window)
                into[window.start - address : window.end - address] = source

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` from `address` on, across sections, into ROM too.

        A ROM device is written as memory, in both of its modes. Other devices get the widest aligned accesses that
        they take.

        Raises:
            AddressError: Nothing serves one of the addresses; nothing has been written.
        """
        with memoryview(data) as source:
            for section, window in self.view.windows(address, source.nbytes, self.name):
                self._write_part(section, window, source[window.start - address : window.end - address])

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy `size` bytes from `source` to `target`, across sections, as if by way of a buffer.

        Raises:
            AddressError: Nothing serves one of the addresses; nothing has been written.
        """
        view = self.view
        into = view.windows(target, size, self.name)
        sources = view.windows(source, size, self.name)
        data = memoryview(self._gather(sources))
        for section, window in into:
            self._write_part(section, window, data[window.start - target : window.end - target])

    def ram_view(self, address: int, size: int) -> memoryview:
        """Return the memory itself that shows from `address` on, without a copy.

        The bytes stay there for as long as the memoryview does, whatever becomes of the map; it is read-only where
        the guest cannot write. Whoever writes through it says so with `mark_dirty`, where dirty pages are logged.

        Raises:
            AddressError: Nothing serves one of the addresses, it is no memory, or not one piece of host memory.
        """
        windows = self.view.windows(address, size, self.name)
        if not windows:
            raise AddressError(f"a view of no bytes at {address:#x} of '{self.name}'; ask for 1 or more")
        first = windows[0][0]
        for section, window in windows:
            if not section.is_ram:
                raise AddressError(
                    f"'{section.region.name}' at {window.start:#x} of '{self.name}' is no memory; read it"
                )
            if section.region is not first.region or section.offset - section.range.start != (
                first.offset - first.range.start
            ):
                raise AddressError(
                    f"'{section.region.name}' at {window.start:#x} of '{self.name}' is not the same piece of host "
                    "memory as what lies before it; take a view of each"
                )
        assert first.region.block is not None
        at = first.offset + address - first.range.start
        view = first.region.block.view[at : at + size]
        return view.toreadonly() if any(section.maps_readonly for section, _ in windows) else view

    def mark_dirty(self, address: int, size: int) -> None:
        """Note that the host wrote to memory through a `ram_view`, for the clients that log it."""
        for section, window in self.view.windows(address, size, self.name):
            section.region.mark_dirty(section.offset + window.start - section.range.start, window.size)

    def load(self, address: int, size: int, order: ByteOrder = "little") -> int:
        """Return the number of `size` bytes (1 to 8) at `address`. Raises AddressError as `read` does."""
        section = self.view.find(address)
        if section is not None and section.is_ram and address + size <= section.range.end and size > 0:
            return int.from_bytes(section.span(address, size), order)
        return int.from_bytes(self.read(address, size), order)

    def store(self, address: int, value: int, size: int, order: ByteOrder = "little") -> None:
        """Write a number of `size` bytes (1 to 8) at `address`.

        Raises:
            AddressError: As `write` does, or `value` is negative or does not fit.
        """
        try:
            data = value.to_bytes(size, order)
        except OverflowError as error:
            raise AddressError(f"value {value:#x} does not fit into {size} bytes at {address:#x}") from error
        self.write(address, data)

    # inside

    def _gather(self, windows: _Windows) -> bytes:
        return b"".join(
            section.span(window.start, window.size) if section.is_ram else self._load_all(section, window)
            for section, window in windows
        )

    def _write_part(self, section: MemoryRegionSection, window: AddressRange, part: memoryview) -> None:
        if section.region.block is not None:
            section.store(window.start, part)
            return
        ops = section.ops(is_write=True)
        if ops is None:
            return
        shift = section.offset - section.range.start
        for at, size in natural_pieces(window.start + shift, window.size, ops.valid.max):
            if not ops.accepts(at, size):
                raise self._refused(section, at - shift, size)
            index = at - shift - window.start
            with section.region.lock or self.big_lock:
                ops.store(at, int.from_bytes(part[index : index + size], "little"), size)

    def _load_all(self, section: MemoryRegionSection, window: AddressRange) -> bytes:
        ops = section.ops(is_write=False)
        if ops is None:
            return b"\xff" * window.size
        shift = section.offset - section.range.start
        parts = []
        for at, size in natural_pieces(window.start + shift, window.size, ops.valid.max):
            if not ops.accepts(at, size):
                raise self._refused(section, at - shift, size)
            with section.region.lock or self.big_lock:
                parts.append(ops.load(at, size).to_bytes(size, "little"))
        return b"".join(parts)

    def _refused(self, section: MemoryRegionSection, address: int, size: int) -> AddressError:
        ops = section.region.ops
        rule = "" if ops is None else f", which takes accesses of {ops.valid.min} to {ops.valid.max} bytes"
        return AddressError(
            f"{size} bytes at {address:#x} of '{self.name}' are refused by '{section.region.name}'{rule}"
        )

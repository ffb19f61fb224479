"""The parts of an access to an address space: one for each section that it touches, and what each needs to be served.

Layer: below `host_access` and `guest_access`, which say what an access means; above `flat_view`.

**One view.** The parts of an access come from one view, and memory is taken hold of (`Part.span`) before anything is
read or written. So the access is one of the map before a concurrent change or of the map after it, and whoever removes
a region and releases its memory meanwhile takes nothing away from it. If the release came first, the view has been
replaced, since nobody lets go of memory that a published view shows; the access then begins again with the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from attrs import define

from accel.errors import ClosedError
from accel.locks import Lock
from accel.memory.flat_view import FlatView, MemoryRegionSection
from accel.memory.mmio import MmioOps, natural_pieces

T = TypeVar("T")


class Viewed(Protocol):
    """Something with a view that is replaced when the map changes: an address space."""

    @property
    def view(self) -> FlatView:
        """The map in force."""


@define(eq=False)
class Part:
    """The bytes of an access that one section serves.

    Attributes:
        section: The section.
        address: Where they begin, in the space.
        size: How many they are.
        span: Their memory; None where callbacks serve them.
    """

    section: MemoryRegionSection
    address: int
    size: int
    span: memoryview | None

    @property
    def offset(self) -> int:
        """Where they begin in the section's region."""
        return self.section.offset + self.address - self.section.range.start

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Write its memory, and note that for the clients that log it."""
        assert self.span is not None
        self.span[:] = data
        self.section.region.mark_dirty(self.offset, self.size)


def read_part(section: MemoryRegionSection, address: int, size: int) -> Part:
    """Return the part for a read: memory where the section is read like memory."""
    return Part(section, address, size, section.span(address, size) if section.is_ram else None)


def write_part(section: MemoryRegionSection, address: int, size: int) -> Part:
    """Return the part for a write as a guest makes it: memory, which may be read-only, where no callback is for it."""
    span = section.span(address, size) if section.ops(is_write=True) is None else None
    return Part(section, address, size, span)


def poke_part(section: MemoryRegionSection, address: int, size: int) -> Part:
    """Return the part for a write to whatever memory there is, in a ROM device too."""
    span = section.span(address, size) if section.region.block is not None else None
    return Part(section, address, size, span)


def by_one_view(space: Viewed, make: Callable[[FlatView], T]) -> T:
    """Return what `make` gives for the view in force, or for a later one where memory of that is released already.

    Raises:
        ClosedError: Memory that the view in force shows is released: the VM is closed.
    """
    while True:
        view = space.view
        try:
            return make(view)
        except ClosedError:
            if space.view is view:
                raise


# The usual case is memory in one section. What these two cannot make sense of is left to the general way, which says
# what is wrong with it, or goes by the view in force where memory was released meanwhile.


def memory_at(view: FlatView, address: int, size: int) -> memoryview | None:
    """Return the memory for a read where it is in one section, or None."""
    try:
        section = view.find(address)
        if section is not None and 0 < size <= section.range.end - address and section.is_ram:
            return section.span(address, size)
    except (TypeError, ClosedError):
        pass
    return None


def room_at(view: FlatView, address: int, size: int, as_guest: bool) -> Part | None:
    """Return the part for a write where it is memory without callbacks in one section, or None."""
    try:
        section = view.find(address)
        if section is not None and 0 < size <= section.range.end - address and section.region.ops is None:
            span = section.span(address, size)
            if not (span.readonly or (as_guest and section.readonly)):
                return Part(section, address, size, span)
    except (TypeError, ClosedError):
        pass
    return None


def device_pieces(ops: MmioOps, offset: int, size: int) -> Iterable[tuple[int, int]]:
    """Return (offset, size) of the accesses by which a device is asked for `size` bytes, which may be many, ascending.

    What it accepts as it is stays one access; all else is cut into the widest aligned ones that it takes.
    """
    if size in (1, 2, 4, 8) and ops.accepts(offset, size):
        return ((offset, size),)
    return natural_pieces(offset, size, ops.valid.max)


def refused_piece(part: Part, *, is_write: bool) -> tuple[int, int] | None:
    """Return offset in the region and size of the first piece that a device refuses, or None."""
    ops = _ops(part, is_write=is_write)
    for at, size in device_pieces(ops, part.offset, part.size):
        if not ops.accepts(at, size):
            return at, size
    return None


def load_device(part: Part, big_lock: Lock) -> bytes:
    """Return what a device gives, piece by piece, each under its own lock or the big lock."""
    ops, lock = _ops(part, is_write=False), part.section.region.lock or big_lock
    pieces = []
    for at, size in device_pieces(ops, part.offset, part.size):
        with lock:
            pieces.append(ops.load(at, size).to_bytes(size, "little"))
    return b"".join(pieces)


def store_device(part: Part, data: memoryview, big_lock: Lock) -> None:
    """Give a device `data`, or ring its ioeventfds, piece by piece, each under its own lock or the big lock."""
    ops, lock, offset = _ops(part, is_write=True), part.section.region.lock or big_lock, part.offset
    for at, size in device_pieces(ops, offset, part.size):
        value = int.from_bytes(data[at - offset : at - offset + size], "little")
        if not ring(part.section, at, value, size):
            with lock:
                ops.store(at, value, size)


def ring(section: MemoryRegionSection, offset: int, value: int, size: int) -> bool:
    """Ring the first ioeventfd that a write at an offset of the region is for; return whether there is one."""
    for eventfd in section.eventfds:
        if eventfd.rings(offset, value, size):
            eventfd.ring()
            return True
    return False


def _ops(part: Part, *, is_write: bool) -> MmioOps:
    ops = part.section.ops(is_write=is_write)
    assert ops is not None
    return ops

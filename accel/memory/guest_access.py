"""What a guest's access does that came out of an accelerator: by the view in force, to memory or to callbacks.

An access is 1 to 8 bytes, little-endian, and uses one view. What it comes to is the same on every path: here, in the
handlers that `accel.port_dispatch` and `accel.mmio_dispatch` build, for each item of a string instruction, and for each
write that was queued.

- Memory is read and written; writes to read-only memory vanish.
- A write that is for an ioeventfd rings it and reaches no callback, whatever `MmioOps.valid` says.
- An access that a device refuses (`MmioOps.valid`) reads all ones or vanishes. So does one that nobody serves. Either
  way `AddressSpace.unassigned` counts it, once.
- **Across a border** each section gets the run of bytes that is its own, in ascending order, as an access by itself:
  one call and not one for each byte, since a register that is read twice may answer twice. So a device judges its own
  run by its `valid` rules. A run that is refused, or that nobody serves, reads all ones or vanishes while the others
  take place, and the access counts once, however many of its runs are missing. A part of a write rings no ioeventfd:
  those are for whole writes, as in accelerators that ring them by themselves.

Layer: above `address_space`; the dispatch of vCPU threads stands on it.
"""

from __future__ import annotations

from accel.errors import ClosedError
from accel.memory.address_space import AddressSpace
from accel.memory.flat_view import FlatView, MemoryRegionSection
from accel.memory.mmio import MmioOps
from accel.memory.parts import Part, by_one_view, read_part, ring, write_part


def load(space: AddressSpace, address: int, size: int) -> int:
    """Return what a guest reads: `size` bytes (1 to 8), little-endian."""
    view = space.view
    section = view.find(address)
    if section is None or address + size > section.range.end:
        return _load_across(space, address, size)
    ops = section.ops(is_write=False)
    if ops is not None:
        offset = section.offset + address - section.range.start
        if ops.accepts(offset, size):
            return _load(space, section, ops, offset, size)
        space.count_unassigned()
        return (1 << 8 * size) - 1
    try:
        return int.from_bytes(section.span(address, size), "little")
    except ClosedError:
        if space.view is view:
            raise
        # The region was removed and released since.
        return load(space, address, size)


def store(space: AddressSpace, address: int, value: int, size: int) -> None:
    """Do what a guest's write of `size` bytes (1 to 8), little-endian, does."""
    view = space.view
    section = view.find(address)
    if section is None or address + size > section.range.end:
        _store_across(space, address, value, size)
        return
    ops = section.ops(is_write=True)
    if ops is not None:
        offset = section.offset + address - section.range.start
        if ring(section, offset, value, size):
            return
        if ops.accepts(offset, size):
            _store(space, section, ops, offset, value, size)
        else:
            space.count_unassigned()
        return
    if section.readonly:
        return
    try:
        section.store(address, value.to_bytes(size, "little"))
    except ClosedError:
        if space.view is view:
            raise
        store(space, address, value, size)


def store_run(space: AddressSpace, address: int, size: int, data: bytes) -> None:
    """Do what guest writes of each `size` bytes of `data`, in order and all to `address`, do.

    A device that takes runs of bytes (`MmioOps.write_run`) gets them in one call.
    """
    section = space.view.find(address)
    ops = None if section is None else section.ops(is_write=True)
    if size == 1 and section is not None and ops is not None and ops.write_run is not None:
        offset = section.offset + address - section.range.start
        bell = any(one.offset == offset and one.size in (0, 1) for one in section.eventfds)
        if ops.accepts(offset, 1) and not bell:
            with section.region.lock or space.big_lock:
                ops.write_run(offset, data)
            return
    for at in range(0, len(data), size):
        store(space, address, int.from_bytes(data[at : at + size], "little"), size)


def _load_across(space: AddressSpace, address: int, size: int) -> int:
    value, shift, missing = 0, 0, False
    for part, length in by_one_view(space, lambda view: _runs(view, address, size, is_write=False)):
        got: int | None = None
        if part is not None and part.span is not None:
            got = int.from_bytes(part.span, "little")
        elif part is not None:
            ops = part.section.ops(is_write=False)
            if ops is not None and ops.accepts(part.offset, length):
                got = _load(space, part.section, ops, part.offset, length)
        missing |= got is None
        value |= ((1 << 8 * length) - 1 if got is None else got) << shift
        shift += 8 * length
    if missing:
        space.count_unassigned()
    return value


def _store_across(space: AddressSpace, address: int, value: int, size: int) -> None:
    missing = False
    for part, length in by_one_view(space, lambda view: _runs(view, address, size, is_write=True)):
        mine = value & (1 << 8 * length) - 1
        value >>= 8 * length
        if part is None:
            missing = True
        elif part.span is not None:
            if not part.section.readonly:
                part.put(mine.to_bytes(length, "little"))
        else:
            ops = part.section.ops(is_write=True)
            if ops is not None and ops.accepts(part.offset, length):
                _store(space, part.section, ops, part.offset, mine, length)
            else:
                missing = True
    if missing:
        space.count_unassigned()


def _runs(view: FlatView, address: int, size: int, *, is_write: bool) -> list[tuple[Part | None, int]]:
    """Return `(part, or None where nothing is mapped, bytes)` for each run of an access, ascending."""
    make = write_part if is_write else read_part
    runs: list[tuple[Part | None, int]] = []
    at, end = address, address + size
    for index in range(view.index(address), len(view)):
        section = view[index]
        if section.range.start >= end:
            break
        if at < section.range.start:
            runs.append((None, section.range.start - at))
            at = section.range.start
        length = min(end, section.range.end) - at
        runs.append((make(section, at, length), length))
        at += length
    if at < end:
        runs.append((None, end - at))
    return runs


def _load(space: AddressSpace, section: MemoryRegionSection, ops: MmioOps, offset: int, size: int) -> int:
    with section.region.lock or space.big_lock:
        return ops.load(offset, size)


def _store(space: AddressSpace, section: MemoryRegionSection, ops: MmioOps, offset: int, value: int, size: int) -> None:
    with section.region.lock or space.big_lock:
        ops.store(offset, value, size)

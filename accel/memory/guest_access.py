"""What a guest's access does that came out of an accelerator: by the view in force, to memory or to callbacks.

An access that nobody serves has a clear result: reads give all ones, writes vanish, and `AddressSpace.unassigned`
counts it. The same holds for one that a device refuses (`MmioOps.valid`). Writes to ROM vanish uncounted. Layer:
above `address_space`; the dispatch of vCPU threads stands on it.
"""

from __future__ import annotations

from accel.memory.address_space import AddressSpace
from accel.memory.flat_view import FlatView, MemoryRegionSection


def load(space: AddressSpace, address: int, size: int) -> int:
    """Return what a guest reads: `size` bytes (1 to 8), little-endian.

    Bytes on both sides of a section's end belong to different owners, and each is asked for its own.
    """
    section = space.view.find(address)
    if section is not None and address + size <= section.range.end:
        return _load(space, section, address, size)
    value, shift, missing = 0, 0, False
    for part, at, length in _parts(space.view, address, size):
        missing |= part is None
        got = (1 << 8 * length) - 1 if part is None else _load(space, part, at, length)
        value |= got << shift
        shift += 8 * length
    if missing:
        space.count_unassigned()
    return value


def store(space: AddressSpace, address: int, value: int, size: int) -> None:
    """Do what a guest's write of `size` bytes (1 to 8), little-endian, does; see `load`."""
    section = space.view.find(address)
    if section is not None and address + size <= section.range.end:
        _store(space, section, address, value, size)
        return
    missing = False
    for part, at, length in _parts(space.view, address, size):
        missing |= part is None
        if part is not None:
            _store(space, part, at, value & (1 << 8 * length) - 1, length)
        value >>= 8 * length
    if missing:
        space.count_unassigned()


def store_run(space: AddressSpace, address: int, size: int, data: bytes) -> None:
    """Do what guest writes of each `size` bytes of `data`, in order and all to `address`, do."""
    section = space.view.find(address)
    ops = None if section is None else section.ops(is_write=True)
    if size == 1 and section is not None and ops is not None and ops.write_run is not None:
        offset = section.offset + address - section.range.start
        if ops.accepts(offset, 1) and not section.eventfds:
            with section.region.lock or space.big_lock:
                ops.write_run(offset, data)
            return
    for at in range(0, len(data), size):
        store(space, address, int.from_bytes(data[at : at + size], "little"), size)


def _parts(view: FlatView, address: int, size: int) -> list[tuple[MemoryRegionSection | None, int, int]]:
    """Return `(section or None, address, size)` for each run of bytes of one owner, ascending."""
    parts: list[tuple[MemoryRegionSection | None, int, int]] = []
    for at in range(address, address + size):
        section = view.find(at)
        if parts and parts[-1][0] is section:
            parts[-1] = (section, parts[-1][1], parts[-1][2] + 1)
        else:
            parts.append((section, at, 1))
    return parts


def _load(space: AddressSpace, section: MemoryRegionSection, address: int, size: int) -> int:
    """Load what lies inside `section`."""
    ops = section.ops(is_write=False)
    if ops is None:
        return int.from_bytes(section.span(address, size), "little")
    offset = section.offset + address - section.range.start
    if not ops.accepts(offset, size):
        space.count_unassigned()
        return (1 << 8 * size) - 1
    with section.region.lock or space.big_lock:
        return ops.load(offset, size)


def _store(space: AddressSpace, section: MemoryRegionSection, address: int, value: int, size: int) -> None:
    """Store what lies inside `section`."""
    ops = section.ops(is_write=True)
    if ops is None:
        if not section.readonly:
            section.store(address, value.to_bytes(size, "little"))
        return
    offset = section.offset + address - section.range.start
    for eventfd in section.eventfds:
        if eventfd.rings(offset, value, size):
            eventfd.ring()
            return
    if not ops.accepts(offset, size):
        space.count_unassigned()
        return
    with section.region.lock or space.big_lock:
        ops.store(offset, value, size)

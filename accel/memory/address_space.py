"""Address spaces: a root region, the view of it that is in force, and access through that view.

`view` is an immutable value that a transaction replaces as a whole; a reader uses whichever it finds and never
sees half of a change. Host access (`read`, `write`) is for loaders and devices: it may write ROM and refuses
addresses that nothing serves. Guest access (`load`, `store`) is what an exit dispatches to: unassigned reads give
all ones, unassigned writes and writes to ROM vanish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from accel.address import AddressRange
from accel.errors import AddressError, StateError
from accel.interrupts import interrupts_held_back
from accel.memory.flat_view import EMPTY_VIEW, FlatView, MemoryRegionSection
from accel.memory.listener import MemoryListener
from accel.memory.region import MemoryRegion
from accel.memory.served import ServedHistory

if TYPE_CHECKING:
    from accel.memory.transaction import Transactions


class AddressSpace:
    """One space of a VM: its memory or its ports.

    Attributes:
        name: ``memory`` or ``io``.
        root: The container that spans it.
        view: The map in force; replaced under the big lock, read without.
        listeners: In order of priority; replaced under the big lock.
        history: Generations of the map, for the space that accelerators map RAM of.
        unassigned: Guest accesses that nothing served. Guarded by the big lock.
    """

    def __init__(self, name: str, transactions: Transactions, size: int, history: ServedHistory | None = None) -> None:
        self.name = name
        self.root = MemoryRegion.container(name, size)
        self.root.claim(transactions)
        self.view: FlatView = EMPTY_VIEW
        self.listeners: tuple[MemoryListener, ...] = ()
        self.history = history
        self.unassigned = 0
        self._transactions = transactions
        transactions.add_space(self)

    # the tree

    def add(self, region: MemoryRegion, at: int, priority: int = 0) -> None:
        """Add `region` to the root; see `MemoryRegion.add`."""
        self.root.add(region, at, priority)

    def remove(self, region: MemoryRegion) -> None:
        """Remove `region` from the root; see `MemoryRegion.remove`."""
        self.root.remove(region)

    def __str__(self) -> str:
        lines = [f"address-space: {self.name}"]
        pending = [(self.root, 0, 1)]
        while pending:
            region, base, depth = pending.pop()
            last = base + region.size - 1
            extra = f" of {region.target.name} @{region.target_offset:#x}" if region.target else ""
            state = "" if region.enabled else " [disabled]"
            lines.append(
                f"{'  ' * depth}{base:016x}-{last:016x} (prio {region.priority}, {region.kind.value}): "
                f"{region.name}{extra}{state}"
            )
            pending.extend(
                (child, base + child.offset, depth + 1)
                for child in sorted(region.children, key=lambda child: -child.offset)
            )
        return "\n".join(lines)

    # listeners

    def add_listener(self, listener: MemoryListener) -> None:
        """Register `listener` and replay the view to it as adds, in a transaction of its own.

        Raises:
            StateError: It is registered already, or a transaction is open.
        """
        with self._transactions.exclusive(), interrupts_held_back():
            if listener in self.listeners:
                raise StateError(f"listener '{listener.name}' is registered with '{self.name}' already")
            self._transactions.replay(self, listener, EMPTY_VIEW, self.view)
            self.listeners = tuple(sorted((*self.listeners, listener), key=lambda one: one.priority))

    def remove_listener(self, listener: MemoryListener) -> None:
        """Tell `listener` that everything goes, and forget it. Raises StateError if it is not registered."""
        with self._transactions.exclusive(), interrupts_held_back():
            if listener not in self.listeners:
                raise StateError(f"listener '{listener.name}' is not registered with '{self.name}'")
            self._transactions.replay(self, listener, self.view, EMPTY_VIEW)
            self.listeners = tuple(one for one in self.listeners if one is not listener)

    # access from the host

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes from `address` on, across sections; MMIO is read byte by byte.

        Raises:
            AddressError: Nothing serves one of the addresses.
        """
        view = self.view
        parts = []
        for section, window in self._sections(view, address, size):
            if section.is_ram:
                parts.append(bytes(section.span(window.start, window.size)))
            else:
                parts.append(bytes(self._mmio_load(section, at, 1) for at in range(window.start, window.end)))
        return b"".join(parts)

    def write(self, address: int, data: bytes | memoryview) -> None:
        """Write `data` from `address` on, across sections, into ROM too; MMIO is written byte by byte.

        Raises:
            AddressError: Nothing serves one of the addresses; nothing has been written.
        """
        for section, window in self._sections(self.view, address, len(data)):
            part = data[window.start - address : window.end - address]
            if section.is_ram:
                section.span(window.start, window.size)[:] = part
            else:
                for at, byte in zip(range(window.start, window.end), part, strict=True):
                    self._mmio_store(section, at, byte, 1)

    def _sections(self, view: FlatView, address: int, size: int) -> list[tuple[MemoryRegionSection, AddressRange]]:
        wanted = AddressRange.sized(address, size)
        found = []
        at = address
        for section in view.overlapping(wanted):
            window = section.range.intersection(wanted)
            if window is None or window.start != at:
                break
            found.append((section, window))
            at = window.end
        if at != wanted.end:
            raise AddressError(f"nothing is mapped at {at:#x} of '{self.name}', in {wanted}")
        return found

    # access from the guest

    def load(self, address: int, size: int) -> int:
        """Return what a guest reads: `size` bytes (1 to 8), little-endian.

        Bytes on both sides of a section's end belong to different owners, and each is asked for its own.
        """
        view = self.view
        section = view.find(address)
        if section is not None and address + size <= section.range.end:
            return self._load(section, address, size)
        value, missing = 0, False
        for index in range(size):
            section = view.find(address + index)
            missing |= section is None
            value |= (0xFF if section is None else self._load(section, address + index, 1)) << 8 * index
        if missing:
            self._count_unassigned()
        return value

    def store(self, address: int, value: int, size: int) -> None:
        """Do what a guest's write of `size` bytes (1 to 8), little-endian, does; see `load`."""
        view = self.view
        section = view.find(address)
        if section is not None and address + size <= section.range.end:
            self._store(section, address, value, size)
            return
        missing = False
        for index in range(size):
            section = view.find(address + index)
            missing |= section is None
            if section is not None:
                self._store(section, address + index, value >> 8 * index & 0xFF, 1)
        if missing:
            self._count_unassigned()

    def store_run(self, address: int, size: int, data: bytes) -> None:
        """Do what guest writes of each `size` bytes of `data`, in order and all to `address`, do."""
        section = self.view.find(address)
        run = section.region.ops.write_run if section is not None and section.region.ops is not None else None
        if size == 1 and section is not None and run is not None:
            with section.region.lock or self._transactions.big_lock:
                run(section.offset + address - section.range.start, data)
            return
        for at in range(0, len(data), size):
            self.store(address, int.from_bytes(data[at : at + size], "little"), size)

    def _count_unassigned(self) -> None:
        with self._transactions.big_lock:
            self.unassigned += 1

    def _load(self, section: MemoryRegionSection, address: int, size: int) -> int:
        """Load what lies inside `section`."""
        if section.is_ram:
            return int.from_bytes(section.span(address, size), "little")
        return self._mmio_load(section, address, size)

    def _store(self, section: MemoryRegionSection, address: int, value: int, size: int) -> None:
        """Store what lies inside `section`."""
        if not section.is_ram:
            self._mmio_store(section, address, value, size)
        elif not section.readonly:
            section.span(address, size)[:] = value.to_bytes(size, "little")

    def _mmio_load(self, section: MemoryRegionSection, address: int, size: int) -> int:
        ops = section.region.ops
        ones = (1 << 8 * size) - 1
        if ops is None or ops.read is None:
            return ones
        with section.region.lock or self._transactions.big_lock:
            return ops.read(section.offset + address - section.range.start, size) & ones

    def _mmio_store(self, section: MemoryRegionSection, address: int, value: int, size: int) -> None:
        ops = section.region.ops
        if ops is not None and ops.write is not None:
            with section.region.lock or self._transactions.big_lock:
                ops.write(section.offset + address - section.range.start, value, size)

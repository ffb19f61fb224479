"""The memory region tree: what stands where, before it is flattened into a view.

A region is RAM, ROM, MMIO served by callbacks, an alias of a part of another region, or a container. Regions
nest at offsets; where siblings overlap the higher priority wins, ties go to the latest added, and holes of a
container or alias show what lies under it. Source: QEMU's memory API (docs/devel/memory.rst), the rules only.

Edits of a tree that belongs to a VM are journalled in the VM's transaction, or are a transaction of their
own. A region belongs to one VM for good, from the commit on that added it; before, one thread at a time may touch
it. The attributes are read-only for users: the methods change them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from attrs import frozen

from accel.address import ADDRESS_SPACE_SIZE, format_size, parse_size
from accel.errors import AddressError, RegionError
from accel.locks import Lock
from accel.memory.ram_block import RamBlock

_CLEAR_CHUNK = 1 << 16


class RegionKind(enum.Enum):
    """What a region is made of."""

    CONTAINER = "container"
    RAM = "ram"
    ROM = "rom"
    MMIO = "mmio"
    ALIAS = "alias"


@frozen
class MmioOps:
    """The callbacks of an MMIO or port region; offsets are relative to the region.

    Attributes:
        read: `(offset, size) -> value`; without it reads give all ones.
        write: `(offset, value, size)`; without it writes vanish.
        write_run: `(offset, data)`, the same as a write of one byte for each byte of `data`, in order.
    """

    read: Callable[[int, int], int] | None = None
    write: Callable[[int, int, int], None] | None = None
    write_run: Callable[[int, bytes], None] | None = None


class RegionOwner(Protocol):
    """The VM a region belongs to, as far as the tree is concerned (see `accel.memory.transaction`)."""

    def transaction(self) -> AbstractContextManager[object]:
        """Return the context of an edit."""

    def journal(self, undo: Callable[[], None]) -> None:
        """Note how to take back the edit that is being made."""


class MemoryRegion:
    """One region; made by the class methods `container`, `ram`, `rom`, `mmio` and `alias`.

    Attributes:
        name: For people; need not be unique.
        kind: What it is made of.
        size: Bytes, up to 2^64.
        offset: Where it stands in its `parent`.
        priority: Signed; compared with its siblings only.
        enabled: Whether it shows.
        readonly: Whether guest writes are kept out, here and below.
        unmergeable: Whether its flat ranges stay apart from equal neighbours.
        parent: The region it was added to, or None.
        children: By priority, highest first; among equals the latest added first.
        block: Host memory of RAM and ROM.
        ops: Callbacks of MMIO.
        target: What an alias shows, from `target_offset` on.
        coalesced: Whether writes may be queued by the accelerator and arrive a few milliseconds later.
        lock: Taken around its handlers in place of the big lock, if the device has its own.
    """

    def __init__(
        self,
        name: str,
        kind: RegionKind,
        size: int | str,
        *,
        block: RamBlock | None = None,
        ops: MmioOps | None = None,
        target: MemoryRegion | None = None,
        target_offset: int = 0,
        readonly: bool = False,
        unmergeable: bool = False,
        coalesced: bool = False,
        lock: Lock | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.size = parse_size(size)
        if not 0 < self.size <= ADDRESS_SPACE_SIZE:
            raise RegionError(name, f"size {self.size:#x} is not in 1 to 2^64")
        self.block = block
        self.ops = ops
        self.target = target
        self.target_offset = target_offset
        self.readonly = readonly
        self.unmergeable = unmergeable
        self.coalesced = coalesced
        self.lock = lock
        self.offset = 0
        self.priority = 0
        self.enabled = True
        self.parent: MemoryRegion | None = None
        self.children: tuple[MemoryRegion, ...] = ()
        self._owner: RegionOwner | None = None

    # making regions

    @classmethod
    def container(cls, name: str, size: int | str = ADDRESS_SPACE_SIZE) -> MemoryRegion:
        """Make a region that only holds others."""
        return cls(name, RegionKind.CONTAINER, size)

    @classmethod
    def ram(
        cls, name: str, size: int | str, max_size: int | str | None = None, *, shared: bool = False
    ) -> MemoryRegion:
        """Make RAM, zeroed; `resize` works up to `max_size`. `shared` backs it with a memfd.

        Raises:
            AddressError: The host cannot reserve that much.
        """
        limit = None if max_size is None else parse_size(max_size)
        block = RamBlock(name, parse_size(size), limit, shared=shared)
        return cls(name, RegionKind.RAM, size, block=block)

    @classmethod
    def rom(cls, name: str, contents: bytes | memoryview, size: int | str | None = None) -> MemoryRegion:
        """Make memory that the guest reads and cannot write; its writes vanish."""
        length = len(contents) if size is None else parse_size(size)
        if len(contents) > length:
            raise RegionError(name, f"{len(contents):#x} bytes do not fit into size {length:#x}")
        block = RamBlock(name, length)
        block.view[: len(contents)] = contents
        return cls(name, RegionKind.ROM, length, block=block, readonly=True)

    @classmethod
    def mmio(
        cls,
        name: str,
        size: int | str,
        *,
        read: Callable[[int, int], int] | None = None,
        write: Callable[[int, int, int], None] | None = None,
        write_run: Callable[[int, bytes], None] | None = None,
        coalesced: bool = False,
        lock: Lock | None = None,
    ) -> MemoryRegion:
        """Make a region served by callbacks, for the memory or the port space; see `MmioOps`."""
        ops = MmioOps(read, write, write_run)
        return cls(name, RegionKind.MMIO, size, ops=ops, coalesced=coalesced, lock=lock)

    @classmethod
    def alias(
        cls,
        name: str,
        target: MemoryRegion,
        offset: int = 0,
        size: int | str | None = None,
        *,
        readonly: bool = False,
        unmergeable: bool = False,
    ) -> MemoryRegion:
        """Make a window on `target` from `offset` on; without a `size`, to its end."""
        length = target.size - offset if size is None else parse_size(size)
        if offset < 0:
            raise RegionError(name, f"offset {offset:#x} in '{target.name}' is negative")
        return cls(
            name,
            RegionKind.ALIAS,
            length,
            target=target,
            target_offset=offset,
            readonly=readonly,
            unmergeable=unmergeable,
        )

    # editing the tree

    def add(self, child: MemoryRegion, at: int, priority: int = 0) -> None:
        """Put `child` at offset `at` of this region.

        Raises:
            RegionError: `child` has a parent already, belongs to another VM, contains this region, or would
                reach beyond 2^64; or this region is an alias.
        """
        # A region without a VM that gets a VM's region for a child becomes that VM's too, with all around it.
        owner = self._owner or child._owner
        with self._editing(owner):
            if self.target is not None:
                raise RegionError(self.name, f"is an alias and shows nothing of its own; add to '{self.target.name}'")
            self._check_place(child, at, self)
            if child.parent is not None:
                raise RegionError(child.name, f"is in '{child.parent.name}' already; remove it there first")
            if any(region is self for region in child.reachable()):
                raise RegionError(child.name, f"contains '{self.name}' and cannot be added to it")
            if owner is not None:
                self._claim_with(child, owner)
            later = [other for other in self.children if other.priority > priority]
            child._set(offset=at, priority=priority, parent=self)
            self._set(children=(*later, child, *self.children[len(later) :]))

    def remove(self, child: MemoryRegion) -> None:
        """Take `child` out. Raises RegionError if it is not in here."""
        with self._editing(self._owner):
            if child.parent is not self:
                raise RegionError(child.name, f"is not in '{self.name}'")
            child._set(parent=None)
            self._set(children=tuple(other for other in self.children if other is not child))

    def move(self, at: int) -> None:
        """Stand at another offset of the parent."""
        with self._editing(self._owner):
            if self.parent is None:
                raise RegionError(self.name, "is in no region, so it cannot move")
            self._check_place(self, at, self.parent)
            self._set(offset=at)

    def resize(self, size: int | str) -> None:
        """Change the size; RAM keeps its contents and its host address.

        Raises:
            RegionError: Not in 1 to 2^64, or above the `max_size` of RAM.
        """
        length = parse_size(size)
        with self._editing(self._owner):
            at = 0 if self.parent is None else self.offset
            if not 0 < length <= ADDRESS_SPACE_SIZE - at:
                raise RegionError(self.name, f"size {length:#x} at {at:#x} is not in 1 to 2^64")
            if self.block is not None and length > self.block.max_size:
                raise RegionError(
                    self.name,
                    f"size {format_size(length)} is above its max_size {format_size(self.block.max_size)}; "
                    "create it with a larger max_size",
                )
            self._set(size=length)
            if self.block is not None:
                self._set_block_size(length)

    def set_enabled(self, enabled: bool) -> None:
        """Show the region, or hide it with all that is in it."""
        with self._editing(self._owner):
            self._set(enabled=enabled)

    def set_readonly(self, readonly: bool) -> None:
        """Keep guest writes out, or let them in. Raises RegionError for ROM."""
        if self.kind is RegionKind.ROM and not readonly:
            raise RegionError(self.name, "is ROM; writable memory is RAM")
        with self._editing(self._owner):
            self._set(readonly=readonly)

    # access from the host

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes of RAM or ROM. Raises AddressError outside of the region."""
        return bytes(self._span(offset, size))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Set bytes of RAM or ROM. Raises AddressError outside of the region."""
        self._span(offset, len(data))[:] = data

    def clear(self, offset: int, size: int) -> None:
        """Set bytes of RAM or ROM to zero. Raises AddressError outside of the region."""
        span = self._span(offset, size)
        for at in range(0, size, _CLEAR_CHUNK):
            part = span[at : at + _CLEAR_CHUNK]
            zeros = bytes(len(part))
            # Only what is not zero yet, so that untouched pages stay untouched; compared in C, as it may be gigabytes.
            if bytes(part) != zeros:
                part[:] = zeros

    def release(self) -> None:
        """Let go of the host memory of RAM or ROM that no VM maps any more; memoryviews of it stay valid."""
        if self.block is not None:
            self.block.close()

    def _span(self, offset: int, size: int) -> memoryview:
        if self.block is None:
            raise RegionError(self.name, f"is {self.kind.value}, which has no bytes of its own")
        if not 0 <= offset <= offset + size <= self.size:
            raise AddressError(f"[{offset:#x}, {offset + size:#x}) is not inside '{self.name}' of size {self.size:#x}")
        return self.block.view[offset : offset + size]

    # walking and ownership

    def reachable(self) -> Iterator[MemoryRegion]:
        """Yield this region and all that its children and alias targets lead to, each once."""
        seen: set[int] = set()
        pending = [self]
        while pending:
            region = pending.pop()
            if id(region) not in seen:
                seen.add(id(region))
                yield region
                pending.extend(region.children)
                if region.target is not None:
                    pending.append(region.target)

    def claim(self, owner: RegionOwner) -> list[MemoryRegion]:
        """Make this region and all it leads to the property of `owner`; return those that were nobody's.

        Raises:
            RegionError: One of them belongs to another VM; nothing has changed.
        """
        claimed = [region for region in self.reachable() if region._owner is not owner]
        for region in claimed:
            if region._owner is not None:
                raise RegionError(region.name, "belongs to another VM; make a region of its own for each VM")
        for region in claimed:
            region._owner = owner
        return claimed

    def __repr__(self) -> str:
        return f"<MemoryRegion {self.kind.value} '{self.name}' {format_size(self.size)}>"

    def _check_place(self, child: MemoryRegion, at: int, parent: MemoryRegion) -> None:
        if not 0 <= at <= ADDRESS_SPACE_SIZE - child.size:
            raise RegionError(child.name, f"of size {child.size:#x} at {at:#x} of '{parent.name}' does not end by 2^64")

    @staticmethod
    def _editing(owner: RegionOwner | None) -> AbstractContextManager[object]:
        return nullcontext() if owner is None else owner.transaction()

    def _claim_with(self, child: MemoryRegion, owner: RegionOwner) -> None:
        """Make what this region belongs to, and `child` with what it leads to, the property of `owner`."""
        top = self
        while top.parent is not None:
            top = top.parent
        claimed = child.claim(owner) + top.claim(owner)

        def disown() -> None:
            for region in claimed:
                region._owner = None

        if claimed:
            owner.journal(disown)

    def _set(self, **changes: object) -> None:
        """Assign attributes, with the journal entry that takes it back."""
        old = {name: getattr(self, name) for name in changes}

        def assign(values: dict[str, object]) -> None:
            for name, value in values.items():
                setattr(self, name, value)

        if self._owner is not None:
            self._owner.journal(lambda: assign(old))
        assign(changes)

    def _set_block_size(self, size: int) -> None:
        block = self.block
        assert block is not None
        old = block.size
        if self._owner is not None:
            self._owner.journal(lambda: setattr(block, "size", old))
        block.size = size

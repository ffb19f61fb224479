"""Memory regions: what stands where in a space, before it is flattened into a view.

A region is RAM, ROM, a ROM device, MMIO served by callbacks, an alias of a part of another region, or a container;
`region_tree` has the rules of place, `region_contents` the access to
memory. Source: QEMU's memory API (docs/devel/memory.rst), the rules only.

Edits of a tree that belongs to a VM are journalled in the VM's transaction, or are a transaction of their own. A
region belongs to one VM for good, from the commit on that added it; before, one thread at a time may touch it. The
attributes are read-only for users: the methods change them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from accel.address import AddressRange, format_size, parse_size
from accel.errors import RegionError
from accel.locks import Lock
from accel.memory.backing import Backing
from accel.memory.ioeventfd import IoEventFd
from accel.memory.mmio import MmioOps
from accel.memory.ram_block import RamBlock
from accel.memory.region_contents import RegionContents


class RegionKind(enum.Enum):
    """What a region is made of."""

    CONTAINER = "container"
    RAM = "ram"
    ROM = "rom"
    ROM_DEVICE = "romd"
    MMIO = "mmio"
    ALIAS = "alias"


class MemoryRegion(RegionContents):
    """One region; made by `container`, `ram`, `rom`, `rom_device`, `mmio` and `alias`.

    Attributes:
        kind: What it is made of.
        readonly: Whether guest writes are kept out of memory, here and below.
        nonvolatile: Whether its memory outlives power-off, here and below; for listeners to know.
        unmergeable: Whether its flat ranges stay apart from equal neighbours, here and below.
        romd: Whether a ROM device is read like memory; where not, its reads reach the callbacks as well.
        ops: Callbacks of MMIO and ROM devices.
        coalesced: Offsets whose writes may be queued by the accelerator and arrive a few milliseconds later.
        eventfds: Writes that ring a file descriptor, in order.
        lock: Taken around its handlers in place of the big lock, if the device has its own.
    """

    __slots__ = (
        "coalesced",
        "eventfds",
        "kind",
        "lock",
        "nonvolatile",
        "ops",
        "readonly",
        "romd",
        "unmergeable",
    )

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
        nonvolatile: bool = False,
        unmergeable: bool = False,
        coalesced: bool = False,
        lock: Lock | None = None,
    ) -> None:
        super().__init__(name, size, block, target, target_offset)
        self.kind = kind
        self.ops = ops
        self.readonly = readonly
        self.nonvolatile = nonvolatile
        self.unmergeable = unmergeable
        self.romd = kind is RegionKind.ROM_DEVICE
        self.coalesced: tuple[AddressRange, ...] = (AddressRange(0, self.size),) if coalesced else ()
        self.eventfds: tuple[IoEventFd, ...] = ()
        self.lock = lock

    # making regions

    @classmethod
    def container(cls, name: str, size: int | str = 1 << 64) -> MemoryRegion:
        """Make a region that only holds others."""
        return cls(name, RegionKind.CONTAINER, size)

    @classmethod
    def ram(
        cls,
        name: str,
        size: int | str,
        max_size: int | str | None = None,
        *,
        backing: Backing | None = None,
        nonvolatile: bool = False,
    ) -> MemoryRegion:
        """Make RAM; `resize` works up to `max_size`, for which address space is reserved at once.

        `backing` says what host memory it is, zeroed anonymous memory where it is None; see `Backing`. What the host
        cannot write, such as a read-only file, the guest cannot write either.

        Raises:
            AddressError: The host cannot do that, with the reason.
        """
        limit = None if max_size is None else parse_size(max_size)
        block = RamBlock(name, parse_size(size), limit, backing=backing or Backing.anonymous())
        return cls(name, RegionKind.RAM, size, block=block, readonly=block.backing.readonly, nonvolatile=nonvolatile)

    @classmethod
    def rom(cls, name: str, contents: bytes | memoryview, size: int | str | None = None) -> MemoryRegion:
        """Make memory that the guest reads and cannot write; its writes vanish."""
        block = _filled_block(name, contents, size)
        return cls(name, RegionKind.ROM, block.size, block=block, readonly=True)

    @classmethod
    def rom_device(
        cls,
        name: str,
        contents: bytes | memoryview,
        size: int | str | None = None,
        *,
        ops: MmioOps | None = None,
        lock: Lock | None = None,
    ) -> MemoryRegion:
        """Make a ROM device, such as flash: the guest reads memory, and its writes reach the callbacks.

        With `set_romd(False)` its reads reach them too, until it is set again.
        """
        block = _filled_block(name, contents, size)
        return cls(name, RegionKind.ROM_DEVICE, block.size, block=block, ops=ops or MmioOps(), lock=lock)

    @classmethod
    def mmio(
        cls,
        name: str,
        size: int | str,
        *,
        read: Callable[[int, int], int] | None = None,
        write: Callable[[int, int, int], None] | None = None,
        write_run: Callable[[int, bytes], None] | None = None,
        ops: MmioOps | None = None,
        coalesced: bool = False,
        lock: Lock | None = None,
    ) -> MemoryRegion:
        """Make a region served by callbacks, for the memory or the port space.

        The callbacks, or `ops` with rules about sizes and byte order: see `MmioOps`. `coalesced` covers all of it.

        Raises:
            RegionError: Both are given.
        """
        if ops is None:
            ops = MmioOps(read, write, write_run)
        elif read or write or write_run:
            raise RegionError(name, "has its callbacks in ops; give them there only")
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
        nonvolatile: bool = False,
        unmergeable: bool = False,
    ) -> MemoryRegion:
        """Make a window on `target` from `offset` on; without a `size`, to its end.

        What lies beyond the target's end shows nothing, so the target may grow into it.
        """
        length = target.size - offset if size is None else parse_size(size)
        return cls(
            name,
            RegionKind.ALIAS,
            length,
            target=target,
            target_offset=offset,
            readonly=readonly,
            nonvolatile=nonvolatile,
            unmergeable=unmergeable,
        )

    # edits

    def resize(self, size: int | str) -> None:
        """Change the size; RAM keeps its contents and its host address.

        Raises:
            RegionError: Not in 1 to 2^64, or above the `max_size` of memory.
        """
        length = parse_size(size)
        with self._editing(self._owner):
            block = self.block
            if block is not None and length > block.max_size:
                raise RegionError(
                    self.name,
                    f"size {format_size(length)} is above its max_size {format_size(block.max_size)}; "
                    "create it with a larger max_size",
                )
            self._resize(length)
            if block is not None:
                if self._owner is not None:
                    old = block.size
                    self._owner.journal(lambda: setattr(block, "size", old))
                block.size = length

    def set_readonly(self, readonly: bool) -> None:
        """Keep guest writes out of memory, or let them in. Raises RegionError where nobody can write."""
        if self.kind is RegionKind.ROM and not readonly:
            raise RegionError(self.name, "is ROM; writable memory is RAM")
        if self.block is not None and self.block.backing.readonly and not readonly:
            raise RegionError(self.name, "has a read-only file for its memory; use one that can be written")
        self._edit(readonly=readonly)

    def set_nonvolatile(self, nonvolatile: bool) -> None:
        """Say whether its memory outlives power-off."""
        self._edit(nonvolatile=nonvolatile)

    def set_romd(self, romd: bool) -> None:
        """Let a ROM device be read like memory, or let its reads reach the callbacks. Raises RegionError for others."""
        if self.kind is not RegionKind.ROM_DEVICE:
            raise RegionError(self.name, f"is {self.kind.value}; only a ROM device has this mode")
        self._edit(romd=romd)

    def add_coalescing(self, offset: int, size: int) -> None:
        """Let writes to a part of it be queued, where the accelerator can do that.

        Raises:
            RegionError: It is no MMIO, the part is empty, or it overlaps one that was added before.
            AddressError: The part is not inside.
        """
        self._check_inside(offset, size)
        if not size:
            raise RegionError(self.name, f"a part of no bytes at {offset:#x} cannot be queued; give its size")
        if self.kind is not RegionKind.MMIO:
            raise RegionError(self.name, f"is {self.kind.value}; only writes to MMIO can be queued")
        window = AddressRange.sized(offset, size)
        with self._editing(self._owner):
            for other in self.coalesced:
                if other.overlaps(window):
                    raise RegionError(self.name, f"queues writes to {other} already, which {window} overlaps")
            self._edit(coalesced=tuple(sorted((*self.coalesced, window))))

    def clear_coalescing(self) -> None:
        """Queue no writes to it any more."""
        self._edit(coalesced=())

    def add_eventfd(self, offset: int, fd: int, size: int = 0, match: int | None = None) -> None:
        """Let a guest write at `offset` ring `fd` instead of reaching the callbacks; see `IoEventFd`.

        Accelerators that can do it never leave the guest for it; with others the core rings.

        Raises:
            RegionError: It is no MMIO, or has one that the same write could ring.
            AddressError: The place is not inside.
            UsageError: See `IoEventFd`; or `fd` is no open eventfd.
        """
        eventfd = IoEventFd(offset, size, match, fd)
        self._check_inside(offset, size or 1)
        if self.kind is not RegionKind.MMIO:
            raise RegionError(self.name, f"is {self.kind.value}; only writes to MMIO can ring")
        eventfd.check_fd()
        with self._editing(self._owner):
            if any(other.collides(eventfd) for other in self.eventfds):
                raise RegionError(self.name, f"has an ioeventfd for this write at {offset:#x} already")
            self._edit(eventfds=tuple(sorted((*self.eventfds, eventfd), key=lambda one: one.key)))

    def remove_eventfd(self, offset: int, fd: int, size: int = 0, match: int | None = None) -> None:
        """Take back what `add_eventfd` with the same arguments did. Raises RegionError if there is none."""
        eventfd = IoEventFd(offset, size, match, fd)
        with self._editing(self._owner):
            if eventfd not in self.eventfds:
                raise RegionError(self.name, f"has no such ioeventfd at {offset:#x}")
            self._edit(eventfds=tuple(one for one in self.eventfds if one != eventfd))

    def _edit(self, **values: object) -> None:
        """Change what all of it is like."""
        with self._editing(self._owner):
            self._change(**values)
            self._damage()

    def __repr__(self) -> str:
        return f"<MemoryRegion {self.kind.value} '{self.name}' {format_size(self.size)}>"


def _filled_block(name: str, contents: bytes | memoryview, size: int | str | None) -> RamBlock:
    length = len(contents) if size is None else parse_size(size)
    if len(contents) > length:
        raise RegionError(name, f"{len(contents):#x} bytes do not fit into size {length:#x}")
    block = RamBlock(name, length)
    block.view[: len(contents)] = contents
    return block

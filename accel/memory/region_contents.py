"""The host memory behind a region: access to it, and the log of the pages that were written.

Layer: between `region_tree`, which knows where a region stands, and `region`, which knows what it is made of.
Source of the dirty-log clients: QEMU's memory API (docs/devel/memory.rst), the rules only.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Self

from accel.errors import AddressError, RegionError, StateError
from accel.interrupts import interrupts_held_back
from accel.memory.dirty import DirtyClient, DirtyLog, each_client
from accel.memory.ram_block import RamBlock
from accel.memory.region_tree import RegionNode

_CLEAR_CHUNK = 1 << 16


class RegionContents(RegionNode):
    """A region's memory; users make a `MemoryRegion`.

    Attributes:
        block: Host memory of RAM, ROM and ROM devices; None for all others.
        dirty: Which pages were written, once a client asked; see `accel.memory.dirty`.
        log_mask: The `DirtyClient`s that log this region by `start_log`.
    """

    __slots__ = ("_log_counts", "block", "dirty", "log_mask")

    def __init__(
        self, name: str, size: int | str, block: RamBlock | None, target: Self | None, target_offset: int
    ) -> None:
        super().__init__(name, size, target=target, target_offset=target_offset)
        self.block = block
        self.dirty: DirtyLog | None = None
        self.log_mask = 0
        # By client.
        self._log_counts: dict[int, int] = {}

    # access

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes of its memory. Raises AddressError outside of the region."""
        return bytes(self.view(offset, size))

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Set bytes of its memory, ROM too.

        Raises:
            AddressError: Outside of the region, or the host cannot write this memory.
        """
        span = self.view(offset, len(data))
        if span.readonly:
            raise AddressError(f"the memory of '{self.name}' is a read-only file; write to a copy of it")
        span[:] = data
        self.mark_dirty(offset, len(data))

    def view(self, offset: int = 0, size: int | None = None) -> memoryview:
        """Return its memory itself, writable; the bytes stay there for as long as the memoryview does.

        Whoever writes through it says so with `mark_dirty`, where dirty pages are logged.

        Raises:
            AddressError: Outside of the region.
            RegionError: It has no memory of its own.
            UserFaultError: The memory has a user-fault handler (`accel.UserFaults`), and a page did not come.
        """
        length = self.size - offset if size is None else size
        block = self.host_memory()
        self._check_inside(offset, length)
        return block.span(offset, length)

    def clear(self, offset: int, size: int) -> None:
        """Set bytes of its memory to zero. Raises AddressError outside of the region."""
        span = self.view(offset, size)
        for at in range(0, size, _CLEAR_CHUNK):
            part = span[at : at + _CLEAR_CHUNK]
            zeros = bytes(len(part))
            # Only what is not zero yet, so that untouched pages stay untouched; compared in C, as it may be gigabytes.
            if bytes(part) != zeros:
                part[:] = zeros
                self.mark_dirty(offset + at, len(part))

    def release(self) -> None:
        """Let go of the host memory; memoryviews of it stay valid. May be called twice.

        Raises:
            StateError: A VM maps it; remove it there, or close the VM.
        """
        if self.block is not None:
            self.block.close()

    # the dirty log

    def start_log(self, client: DirtyClient) -> None:
        """Note from now on, for `client`, which pages are written; counted. Several clients count each by itself.

        Raises:
            RegionError: It has no memory of its own.
            UsageError: `client` is none.
        """
        with self._editing(self._owner), interrupts_held_back():
            log = self.dirty_log()
            log.start(client)
            if self._owner is not None:
                self._owner.journal(lambda: log.stop(client))
            self._count_log(client, 1)

    def stop_log(self, client: DirtyClient) -> None:
        """Take back one `start_log`; after the last, the client's bits are gone once the change is in force.

        Raises:
            StateError: The client, or one of several, does not log this region; nothing has changed.
            UsageError: `client` is none.
        """
        with self._editing(self._owner):
            idle = [one for one in each_client(client) if not self._log_counts.get(one)]
            if idle or self.dirty is None:
                name = DirtyClient(sum(idle) or client).name
                raise StateError(f"{name} does not log '{self.name}', so it cannot stop")
            self._count_log(client, -1)
            log = self.dirty
            if self._owner is None:
                log.stop(client)
            else:
                # Bits that are gone do not come back, and the transaction may yet be taken back.
                self._owner.defer(lambda: log.stop(client))

    def mark_dirty(self, offset: int, size: int) -> None:
        """Note that the host wrote to its memory, for the clients that log it."""
        if self.dirty is not None and self.dirty.mask and size:
            self.dirty.mark(offset, size)

    def dirty_log(self) -> DirtyLog:
        """Return the log of its memory, making it where there is none. Raises RegionError without memory."""
        if self.dirty is None:
            self.dirty = DirtyLog(self.host_memory().max_size)
        return self.dirty

    # for those who deal with the host memory itself

    def host_memory(self) -> RamBlock:
        """Return the block behind it. Raises RegionError where there is none."""
        if self.block is None:
            raise RegionError(self.name, "has no bytes of its own; only RAM, ROM and ROM devices have")
        return self.block

    def held_still(self) -> AbstractContextManager[object]:
        """Return a context in which no change of the VM that it is in is under way: a transaction without edits."""
        return self._editing(self._owner)

    # inside

    def _count_log(self, clients: int, step: int) -> None:
        counts = dict(self._log_counts)
        for one in each_client(clients):
            counts[one] = counts.get(one, 0) + step
        mask = sum(one for one, times in counts.items() if times)
        self._change(_log_counts=counts, log_mask=mask)
        self._damage()

    def _check_inside(self, offset: int, size: int) -> None:
        if not 0 <= offset <= offset + size <= self.size:
            raise AddressError(f"[{offset:#x}, {offset + size:#x}) is not inside '{self.name}' of size {self.size:#x}")

"""Host memory behind RAM regions: reserved to its greatest size, at an address that never moves.

A block lives as long as anyone points at it: a region, a view, a slot inside an accelerator, a memoryview. The
mapping goes when the last of them does, never before, so nothing that the guest can reach ever dangles.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

from accel.address import PAGE_SIZE, align_up, format_size
from accel.errors import AddressError, ClosedError

#: asm-generic/mman.h; the mmap module names it only in newer Pythons.
_MAP_NORESERVE = 0x4000


def check_host_memory(size: int, what: str) -> None:
    """Refuse more RAM than the host has.

    Args:
        size: Bytes wanted in all.
        what: How the message begins, with its verb, such as ``memory 64G is``.

    Raises:
        AddressError: It is more.
    """
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > host:
        raise AddressError(f"{what} more than this host has ({host / (1 << 30):.1f}G); use less")


class RamBlock:
    """`max_size` bytes of reserved host memory, `size` of them in use.

    Untouched pages cost nothing. `size` may change at any time between 0 and `max_size`; the contents stay.

    Args:
        name: For messages, and the name of the memfd.
        size: Bytes in use.
        max_size: Bytes reserved; `size` where it is None.
        shared: Back it with a memfd that other processes can map, instead of anonymous memory.

    Attributes:
        address: Host-virtual address of the first byte, page aligned.
        fd: The memfd of a shared block, or -1.

    Raises:
        AddressError: The size is not positive, or the host cannot reserve that much.
    """

    def __init__(self, name: str, size: int, max_size: int | None = None, *, shared: bool = False) -> None:
        limit = size if max_size is None else max_size
        if not 0 < size <= limit:
            raise AddressError(
                f"RAM '{name}' of size {size:#x} with max_size {limit:#x}: 0 < size <= max_size must hold"
            )
        self.name = name
        self.size = size
        self.max_size = limit
        self.fd = -1
        length = align_up(limit, PAGE_SIZE)
        try:
            if shared:
                # The kernel takes 249 bytes without a NUL; names are for people and may be anything.
                self.fd = os.memfd_create(name.replace("\0", " ")[:60], os.MFD_CLOEXEC)
                os.ftruncate(self.fd, length)
                self._map = mmap.mmap(self.fd, length, flags=mmap.MAP_SHARED)
            else:
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
                self._map = mmap.mmap(-1, length, flags=flags)
        except (OSError, OverflowError) as error:
            self._close_fd()
            raise AddressError(
                f"RAM '{name}': this host cannot reserve {format_size(length)} of address space ({error}); "
                "ask for less memory"
            ) from error
        # The export pins the mapping at its address for as long as this object lives.
        self._export: Any = (ctypes.c_char * length).from_buffer(self._map)
        self.address = ctypes.addressof(self._export)

    def __repr__(self) -> str:
        return f"<RamBlock {self.name} {format_size(self.size)} of {format_size(self.max_size)}>"

    def __del__(self) -> None:
        self._close_fd()

    def close(self) -> None:
        """Unmap it, as soon as no memoryview is left; may be called twice. No VM may map it any more."""
        self._close_fd()
        self._export = None
        try:
            self._map.close()
        except BufferError:
            # A memoryview is still about; the mapping goes with the last one.
            pass

    def _close_fd(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def view(self) -> memoryview:
        """All reserved bytes, writable; the mapping lives as long as the memoryview.

        Raises:
            ClosedError: It is unmapped.
        """
        try:
            return memoryview(self._map)
        except ValueError as error:
            raise ClosedError(f"the host memory of '{self.name}' is released") from error

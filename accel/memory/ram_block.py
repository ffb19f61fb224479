"""Host memory behind RAM regions: reserved to its greatest size, at an address that never moves.

A block is unmapped when the last of those that point at it is gone, never before, so that nothing the guest or a
reader can reach ever dangles:

- memoryviews hold the mapping itself: it stays while one is left, even if the block is closed and dropped;
- an accelerator maps the bare host address, which Python does not see. So whoever puts a block under a guest
  counts it with `retain` and `release`, and `close` refuses while that count is above zero.

Huge pages are taken out of the host's pool for all of `max_size` when the block is made, and prefaulting asks what
the host has left first: what is missing is an error at once and not a SIGBUS, or the kernel's OOM killer, later.

Layer: below `region`, above `backing`, which says what the memory is made of. Sources: mmap(2), madvise(2),
mincore(2).
"""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import sys
import threading
import weakref
from typing import Protocol

from accel.address import align_up, format_size
from accel.errors import AddressError, ClosedError, StateError, UsageError
from accel.memory.backing import ADVICE, Backing, fit, open_backing
from accel.memory.host_memory import (
    address_of,
    available_memory,
    huge_page_problem,
    prefault,
    resident_bytes,
)

#: asm-generic/mman-common.h; Python's mmap module names them only in newer Pythons, or not at all.
_MAP_NORESERVE = 0x4000
_MAP_HUGETLB = 0x40000

_ANONYMOUS = Backing.anonymous()


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


class UserFaultHandler(Protocol):
    """Who puts pages there when they are first touched (see `accel.memory.user_fault`)."""

    def ensure(self, offset: int, size: int) -> None:
        """Return once no page of that part is missing. Raises UserFaultError."""


class RamBlock:
    """`max_size` bytes of reserved host memory, `size` of them in use.

    Untouched pages cost nothing, but for huge ones. `size` may change at any time between 0 and `max_size`; the
    contents stay.

    Args:
        name: For messages, and the name of a memfd.
        size: Bytes in use.
        max_size: Bytes reserved; `size` where it is None.
        backing: What the memory is made of.

    Attributes:
        address: Host-virtual address of the first byte, aligned to `page_size`.
        fd: The memfd or file, or -1. It is the block's own: to keep it longer, duplicate it.
        page_size: The pages that it is made of: the host's, or explicit huge pages.
        pins: How often `retain` was called more than `release`.
        user_faults: Who puts pages there when they are first touched, or None; see `serve`.

    Raises:
        AddressError: A size or the name is malformed, or the host lacks what is asked for. No fd and no mapping
            is left.
    """

    def __init__(
        self,
        name: str,
        size: int,
        max_size: int | None = None,
        *,
        backing: Backing = _ANONYMOUS,
    ) -> None:
        self.fd = -1
        self.pins = 0
        self.user_faults: UserFaultHandler | None = None
        # Makes one step of what must not meet an unmapping half way: a pin, a handler, a discard, and `close` itself.
        self._life = threading.Lock()
        self._map: mmap.mmap | None = None
        self._last: weakref.ref[mmap.mmap] | None = None
        limit = size if max_size is None else max_size
        if not 0 < size <= limit:
            raise AddressError(
                f"RAM '{name}' of size {size:#x} with max_size {limit:#x}: 0 < size <= max_size must hold"
            )
        if "\0" in name:
            raise AddressError(f"RAM {name!r}: its name holds a NUL, which no name on the host can; leave it out")
        self.name = name
        self.size = size
        self.max_size = limit
        self.backing = backing
        try:
            self.fd, self.page_size = open_backing(backing, name)
            if backing.prefault:
                self._check_prefault()
            mapping = self._mapped()
            # While it is exported nothing can close or move the mapping, so `address` stays good until `close`.
            self._export = memoryview(mapping)[:limit]
            self._own_references = self._references()
            self._map = mapping
            self._last = weakref.ref(mapping)
            self.address = address_of(mapping)
            self._advise(mapping)
            if backing.prefault:
                self._prefault(mapping)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<RamBlock {self.name} {format_size(self.size)} of {format_size(self.max_size)}>"

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            os.close(self.fd)

    # making the mapping

    def _mapped(self) -> mmap.mmap:
        backing, size = self.backing, self.max_size
        whole = align_up(size, self.page_size)
        if self.fd >= 0:
            fit(backing, self.fd, size if self._ends_anywhere() else whole, self.name)
        flags = mmap.MAP_SHARED if backing.shared else mmap.MAP_PRIVATE
        if backing.kind == "anonymous":
            flags |= mmap.MAP_ANONYMOUS
        if self.page_size == mmap.PAGESIZE:
            # An ordinary mapping may end inside its last page; the kernel maps all of it.
            whole = size
            flags |= _MAP_NORESERVE
        elif self.fd < 0:
            flags |= _MAP_HUGETLB | (self.page_size.bit_length() - 1) << os.MFD_HUGE_SHIFT
        protection = mmap.PROT_READ if backing.readonly else mmap.PROT_READ | mmap.PROT_WRITE
        # mmap() takes a C int, which 16G pages make negative.
        signed = ctypes.c_int(flags).value
        try:
            return mmap.mmap(self.fd, whole, flags=signed, prot=protection, offset=backing.offset)
        except (OSError, OverflowError, ValueError) as error:
            raise AddressError(f"RAM '{self.name}': {self._map_problem(error, whole)} ({error})") from error

    def _map_problem(self, error: Exception, length: int) -> str:
        problem = "" if self.page_size == mmap.PAGESIZE else huge_page_problem(self.page_size, length)
        if problem:
            return problem
        if isinstance(error, OverflowError) or getattr(error, "errno", 0) == errno.ENOMEM:
            return f"this host cannot reserve {format_size(length)}; ask for less memory"
        return "it cannot be mapped; use another backing"

    def _ends_anywhere(self) -> bool:
        """Whether the file need not reach to the end of the last page."""
        return self.backing.kind == "file" and self.page_size == mmap.PAGESIZE

    def _advise(self, mapping: mmap.mmap) -> None:
        for name in sorted(self.backing.advice):
            try:
                mapping.madvise(ADVICE[name])
            except OSError as error:
                raise AddressError(
                    f"RAM '{self.name}': this host's kernel does not take the advice '{name}' ({error}); leave it out"
                ) from error

    def _check_prefault(self) -> None:
        """Refuse to touch more than the host has; huge pages are refused by the mapping itself."""
        if self.page_size != mmap.PAGESIZE:
            return
        needed = self.size
        if self.fd >= 0 and (self.backing.shared or self.backing.readonly):
            # What the file has already is in memory, or can go back to its disk.
            needed -= os.fstat(self.fd).st_blocks * 512
        available = available_memory()
        if needed > available:
            raise AddressError(
                f"RAM '{self.name}': prefault would take {format_size(needed)}, and {available >> 20}M are available "
                "to this process; make it smaller, or leave prefault out"
            )

    def _prefault(self, mapping: mmap.mmap) -> None:
        backing = self.backing
        file = (self.fd, backing.offset) if backing.writes_file else None
        try:
            prefault(mapping, self.size, self.page_size, not backing.readonly, file)
        except OSError as error:
            raise AddressError(
                f"RAM '{self.name}': prefault got no memory for all of {format_size(self.size)} ({error}); "
                "make it smaller, make room in memory or on the file system, or leave prefault out"
            ) from error

    # use

    @property
    def view(self) -> memoryview:
        """All `max_size` bytes, writable but for a read-only file; the mapping lives as long as the memoryview.

        Raises:
            ClosedError: It is closed.
            UserFaultError: It has a user-fault handler, and a page did not come.
        """
        return self.span(0, self.max_size)

    def span(self, offset: int, size: int) -> memoryview:
        """Return a part of `view`, which the caller has checked to be inside. Raises as `view` does."""
        try:
            span = self._export[offset : offset + size]
        except ValueError as error:
            raise self._closed() from error
        # Only now: a handler that comes before this line counts the span and is refused, one before that is asked.
        handler = self.user_faults
        if handler is not None:
            try:
                handler.ensure(offset, size)
            except BaseException:
                # Who keeps the exception keeps this frame, and with it what counts as somebody's memoryview.
                del span
                raise
        return span

    def exports(self) -> int:
        """Return how many memoryviews there are of it or of parts of it, but for its own."""
        return self._references() - self._own_references

    def _references(self) -> int:
        # All memoryviews of one mapping, however they were cut, refer to one object, which CPython does not name.
        shared = gc.get_referents(self._export)
        return sys.getrefcount(shared[0])

    def discard(self, offset: int, size: int) -> None:
        """Give whole pages back to the host; they read as zero afterwards, in all processes that share them.

        A guest or reader may be at them at the same time: what it writes meanwhile stays or goes. Dirty logs do not
        see it. Huge pages go back to the host's pool and are no longer set aside for this block.

        Args:
            offset: The first byte, a multiple of `page_size`.
            size: Bytes, a multiple of `page_size`; up to `max_size`, whatever the `size` of the block is.

        Raises:
            AddressError: Not of whole pages, or not inside the block.
            UsageError: The block is a read-only or private file, or its file system cannot do it.
            StateError: It has a user-fault handler.
            ClosedError: It is closed.
        """
        if offset % self.page_size or size % self.page_size:
            raise AddressError(
                f"RAM '{self.name}': offset {offset:#x}, size {size:#x} are not of whole pages of "
                f"{format_size(self.page_size)}; align both"
            )
        if not 0 <= offset < offset + size <= self.max_size:
            raise AddressError(
                f"RAM '{self.name}': [{offset:#x}, {offset + size:#x}) is empty or not inside {self.max_size:#x} bytes"
            )
        backing = self.backing
        if backing.kind == "file" and not backing.writes_file:
            problem = "is read-only" if backing.readonly else "is private, so the file's own bytes would show again"
            raise UsageError(f"RAM '{self.name}': its file '{backing.path}' {problem}; write zeros instead")
        with self._life:
            mapping = self._check_free()
            try:
                mapping.madvise(mmap.MADV_REMOVE if backing.shared else mmap.MADV_DONTNEED, offset, size)
            except OSError as error:
                raise UsageError(
                    f"RAM '{self.name}': this host cannot give back parts of it ({error}); write zeros instead"
                ) from error

    def resident_bytes(self) -> int:
        """Return how many bytes have a page in host memory now; a page of zeros that was only read counts, too.

        Costs about a millisecond for each 1G that is there, a quarter of it for each that is only reserved.

        Raises:
            ClosedError: It is closed.
        """
        try:
            # Keeps the mapping, without asking for its pages.
            with self._export[:] as view:
                return resident_bytes(self.address, len(view))
        except ValueError as error:
            raise self._closed() from error

    # lifetime

    def retain(self) -> None:
        """Count one more place where an accelerator maps the block's address.

        Raises:
            ClosedError: It is closed.
        """
        with self._life:
            if self._map is None:
                raise self._closed()
            self.pins += 1

    def release(self) -> None:
        """Take back one `retain`.

        Raises:
            StateError: There is none to take back.
        """
        with self._life:
            if self.pins == 0:
                raise StateError(f"RAM '{self.name}' is released more often than it was retained")
            self.pins -= 1

    def serve(self, handler: UserFaultHandler) -> None:
        """Have `handler` asked before anybody gets a memoryview, and the block stay open, until it is None again.

        Raises:
            ClosedError: It is closed.
            StateError: It has one.
        """
        with self._life:
            self._check_free()
            self.user_faults = handler

    def close(self) -> None:
        """Unmap it, as soon as no memoryview is left; may be called twice.

        Raises:
            StateError: An accelerator maps it, or it has a user-fault handler; nothing has changed.
        """
        with self._life:
            self._check_unserved()
            if self.pins:
                raise StateError(
                    f"RAM '{self.name}' is mapped {self.pins} times; take its regions out of the VM's map, or close "
                    "the VM"
                )
            # From here on nobody can retain it any more.
            was_open, self._map = self._map is not None, None
            if was_open:
                self._export.release()
            fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
        last = None if self._last is None else self._last()
        if last is not None:
            try:
                last.close()
            except BufferError:
                # A memoryview is still about; the mapping goes with the last one.
                pass

    def _check_free(self) -> mmap.mmap:
        """Return the mapping of a block that is open and has no handler; needs `_life`."""
        if self._map is None:
            raise self._closed()
        self._check_unserved()
        return self._map

    def _check_unserved(self) -> None:
        if self.user_faults is not None:
            raise StateError(f"RAM '{self.name}': a user-fault handler serves its pages; close that first")

    def _closed(self) -> ClosedError:
        return ClosedError(f"the host memory of '{self.name}' is released")

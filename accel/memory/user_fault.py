"""Guest memory whose pages come when they are first touched: a function of the user's says what each holds.

For lazy restore of a snapshot and for migration after the switch. The kernel's userfaultfd stops whoever touches a page
that is not there, and tells a thread here, the *resolver*, which calls `resolve(offset)`, puts the bytes there and lets
the toucher go on. Layer: above `region`, below `pins`, which asks for `handled_blocks`; the system calls are in
`userfaultfd`. Source: the kernel's admin-guide/mm/userfaultfd.rst.

What a transaction does about it
--------------------------------
A vCPU that waits for such a page cannot be kicked out of the kernel everywhere, and a change of the accelerator's map
waits inside the kernel for that vCPU: nobody could name it, or give up. So while a view shows memory with a handler,
each commit that changes anything in an accelerator holds the vCPUs first, whatever was chosen for `plan` and `hold`. A
vCPU that does not come out is then an `InhibitTimeoutError`, before the first step. That is why registering takes the
big lock of the VM: no commit that decided without it is under way. Closing needs no lock, since from then on nobody
waits for a page.

The resolver takes no lock of the project, so that it makes progress whoever holds which. `resolve` must not, either:
whoever holds it may be waiting for the page.

What the host does about it
---------------------------
A Python thread that touches a missing page through a memoryview would wait in the kernel *with the interpreter's lock*.
The resolver is a Python thread: it could never run, and the process would stand still for good. (vCPU threads are no
problem, as they give up that lock when they enter the guest.) So no memoryview of a missing page exists:

- each access from the host asks for a span of the block (`RamBlock.span`), which asks `UserFaults.ensure` first; that
  has the resolver put the pages there that are missing, and waits without the interpreter's lock;
- a memoryview that somebody has when memory gets its handler may show missing pages, so registering is refused then;
- `RamBlock.view` and those that build on it ask for all pages that they show, which may be many;
- `RamBlock.discard` would make pages missing again, so it is refused.

What remains is for users to know: another process that maps the same memfd must not punch holes into it.

If `resolve` raises, nothing false is shown to anyone: a vCPU goes on waiting, a host access gets `UserFaultError`, and
`retry` asks again. On closing, pages that did not come are zeros.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from accel.address import AddressRange, align_down, align_up, format_size, parse_size
from accel.errors import AddressError, StateError, UsageError, UserFaultError
from accel.memory.page_resolver import PageResolver, Resolve
from accel.memory.ram_block import RamBlock
from accel.memory.region import MemoryRegion
from accel.memory.userfaultfd import missing_pages

#: Most pages that a host access asks for at once.
_BATCH = 256


class _Handled:
    """Which blocks have a handler, in the whole process: a set that is replaced under its lock, read without."""

    lock = threading.Lock()
    blocks: frozenset[RamBlock] = frozenset()


def handled_blocks() -> frozenset[RamBlock]:
    """Return the blocks that have a handler. O(1)."""
    return _Handled.blocks


class UserFaults:
    """Serves the pages of a region's memory that are not there yet, until it is closed.

    Pages that are there when it is made, such as those of a loaded image, stay as they are. There may be one for each
    region. Takes the big lock of the VM that the region is in, if any.

    Args:
        region: RAM, ROM or a ROM device, on anonymous memory or a memfd.
        resolve: Called on a thread of its own, one call at a time and with no lock held, with the offset in the region
            of a missing page. Returns the bytes of that page, or of a run of pages that begins with it, of which only
            those are used that are missing; or None for a page of zeros. It must neither wait for a lock that somebody
            holds who may touch the memory, such as those of the VM, nor access missing pages of the same region.
        offset: Where the part begins that it serves, a multiple of the page size.
        size: How long that part is, a multiple of the page size; to the end of what the region can grow to where it
            is None.
        timeout: Longest time in seconds that a host access waits without a page coming, and that `close` waits for
            `resolve` to return.

    Raises:
        CapabilityError: This host has no userfaultfd, or not for this user, or not for this kind of memory.
        BackendError: The kernel refuses, such as for want of descriptors.
        AddressError: `offset` or `size` does not fit.
        UsageError: The memory is a file.
        StateError: It has a handler already, or somebody has a memoryview of it, or a listener is told of a change.
        RegionError: The region has no memory of its own.
        ClosedError: The memory or the VM is closed.
    """

    def __init__(
        self,
        region: MemoryRegion,
        resolve: Resolve,
        *,
        offset: int = 0,
        size: int | str | None = None,
        timeout: float = 10.0,
    ) -> None:
        self.region = region
        self._block = block = region.host_memory()
        self._part = _part(block, offset, size)
        self._resolver = PageResolver(region.name, block.address, self._part, block.page_size, resolve, timeout)
        try:
            with region.held_still():
                self._register()
        except BaseException:
            self._resolver.shut()
            raise

    def __repr__(self) -> str:
        return f"<UserFaults {self.region.name} {self._part}>"

    def _register(self) -> None:
        """Needs the big lock of the VM, if there is one."""
        block, name = self._block, self.region.name
        if block.user_faults is not None:
            raise StateError(f"the memory of '{name}' has a user-fault handler already; close that one first")
        # Marked first: whoever takes a memoryview from now on asks `ensure`, whoever has one is counted.
        _mark(block, self)
        try:
            if block.exports():
                raise StateError(
                    f"somebody has a memoryview of the memory of '{name}', who would hang this process at a missing "
                    "page; drop what view and ram_view gave first, with del"
                )
            self._resolver.start()
        except BaseException:
            _unmark(block, self)
            raise

    # use

    @property
    def failed(self) -> dict[int, UserFaultError]:
        """Offsets of pages that a guest waits for and that `resolve` raised for, with the error; its cause is that."""
        return self._resolver.failed

    def retry(self) -> None:
        """Ask again for the pages in `failed`; returns at once."""
        self._resolver.retry()

    def ensure(self, offset: int, size: int) -> None:
        """Return once no page of a part of the region is missing; any thread, and with any lock.

        Costs a system call where they all are there.

        Raises:
            UserFaultError: `resolve` raised, or no page came in time, or it is `resolve` that asks.
        """
        page_size, base = self._block.page_size, self._block.address
        start = max(align_down(offset, page_size), self._part.start)
        end = min(align_up(offset + size, page_size), self._part.end)
        if start >= end or self._resolver.ended:
            return
        missing = missing_pages(base + start, end - start, page_size)
        for at in range(0, len(missing), _BATCH):
            self._resolver.ask([address - base for address in missing[at : at + _BATCH]])

    def close(self) -> None:
        """Serve no more pages: those that did not come are zeros, and whoever waits goes on; may be called twice.

        Needs no lock of the VM, so a transaction that waits for a vCPU goes on, too.

        Raises:
            StateError: Called by `resolve`; or `resolve` did not return in time. Everybody goes on then all the same,
                and close may be called again to wait for it.
            BackendError: The kernel refused; nothing has changed.
        """
        self._resolver.stop()
        _unmark(self._block, self)
        self._resolver.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _part(block: RamBlock, offset: int, size: int | str | None) -> AddressRange:
    """Return a part of a block, as offsets. Raises AddressError, UsageError."""
    if block.backing.kind == "file":
        raise UsageError(f"RAM '{block.name}': user faults are for anonymous memory or a memfd, and this is a file")
    page, limit = block.page_size, align_up(block.max_size, block.page_size)
    length = limit - offset if size is None else parse_size(size)
    if offset % page or length % page or not 0 <= offset < offset + length <= limit:
        raise AddressError(
            f"RAM '{block.name}': offset {offset:#x}, size {length:#x} are not whole pages of {format_size(page)} "
            f"inside {limit:#x} bytes; align both"
        )
    return AddressRange.sized(offset, length)


def _mark(block: RamBlock, handler: UserFaults) -> None:
    with _Handled.lock:
        block.serve(handler)
        _Handled.blocks |= {block}


def _unmark(block: RamBlock, handler: UserFaults) -> None:
    with _Handled.lock:
        if block.user_faults is handler:
            block.user_faults = None
            _Handled.blocks -= {block}

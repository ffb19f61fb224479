"""From a port access to its handler: built once for each shape of access, then one dict look-up per exit.

Layer: below `vcpu_thread`, beside `mmio_dispatch`, which does the same for memory. A handler is a closure without
arguments that moves the data between the vCPU and the device, under the device's own lock or the big lock.
`PortDispatch` belongs to one vCPU thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accel.backend_checks import ContractError
from accel.exits import unpack_io
from accel.locks import Lock
from accel.memory import guest_access
from accel.memory.address_space import AddressSpace
from accel.memory.flat_view import FlatView, MemoryRegionSection

Handler = Callable[[], None]

#: Handlers kept at most: a guest can think of more shapes of access than there is memory for.
MAX_HANDLERS = 4096
#: The formats of items, by their bytes.
_FORMATS = {1: "B", 2: "H", 4: "I"}


class PortDispatch:
    """One vCPU's handlers by word 0 of the exit record; forgotten when the port space gets a new view.

    Args:
        io: The port space.
        data: The vCPU's port data.
        big_lock: Held around handlers of devices that declare no lock of their own.

    Attributes:
        handlers: What was built for `view`; look here first.
        view: The view they were built for; compare with ``io.view`` before each look-up.
    """

    __slots__ = ("_big_lock", "_data", "_io", "handlers", "view")

    def __init__(self, io: AddressSpace, data: memoryview, big_lock: Lock) -> None:
        self._io = io
        self._data = data
        self._big_lock = big_lock
        self.handlers: dict[int, Handler] = {}
        self.view: FlatView = io.view

    def build(self, word: int) -> Handler:
        """Make, note and return the handler for `word` in the current view.

        Raises ContractError if no vCPU can have such an access.
        """
        if self.view is not self._io.view or len(self.handlers) >= MAX_HANDLERS:
            # The view may have changed since whoever calls this compared it.
            self.clear()
        is_out, size, port, count = unpack_io(word)
        if size not in _FORMATS or size * count > len(self._data):
            raise ContractError(
                f"the exit record has {count} items of {size} bytes for port {port:#x}; they are 1, 2 or 4 bytes, and "
                f"io_data has {len(self._data)}"
            )
        section = self.view.find(port)
        handler: Handler | None = None
        if count == 1 and section is not None and port + size <= section.range.end:
            # A view of the item as one number: `item[0]` converts in C.
            raw: Any = self._data[:size]
            item = raw.cast(_FORMATS[size])
            handler = device_handler(section, port, size, is_write=is_out, item=item, big_lock=self._big_lock)
        if handler is None:
            handler = self._general(is_out, size, port, count)
        self.handlers[word] = handler
        return handler

    def clear(self) -> None:
        """Forget all handlers, and go by the view in force from now on."""
        self.handlers.clear()
        self.view = self._io.view

    def _general(self, is_out: bool, size: int, port: int, count: int) -> Handler:
        """Return the handler for string instructions, unassigned ports and accesses across regions."""
        io, data = self._io, self._data

        def handler() -> None:
            for at in range(0, size * count, size):
                if is_out:
                    guest_access.store(io, port, int.from_bytes(data[at : at + size], "little"), size)
                else:
                    data[at : at + size] = guest_access.load(io, port, size).to_bytes(size, "little")

        return handler


def device_handler(
    section: MemoryRegionSection, address: int, size: int, *, is_write: bool, item: Any, big_lock: Lock
) -> Handler | None:
    """Return the handler for one item to or from one device region; the usual case, so it does no look-up.

    None where no device serves such an access, or a write rings an ioeventfd: then the address space tells what to do.

    Args:
        section: Shows the device's region at all of the access.
        address: Of the access, in the section's space.
        size: Its bytes.
        is_write: Whether the guest writes.
        item: Its first element is the item: what is written, in `size` bytes, or where what is read goes.
        big_lock: Held where the region has no lock of its own.
    """
    ops = section.ops(is_write=is_write)
    lock = section.region.lock or big_lock
    offset = section.offset + address - section.range.start
    if ops is None or not ops.accepts(offset, size):
        return None
    if is_write:
        if any(one.offset == offset and one.size in (0, size) for one in section.eventfds):
            return None
        write = ops.write if ops.is_direct(offset, size) or ops.write is None else ops.store
        return _writer(write, item, offset, size, lock)
    read = ops.read if ops.is_direct(offset, size) or ops.read is None else ops.load
    return _reader(read, item, offset, size, lock)


def _writer(write: Callable[[int, int, int], None] | None, item: Any, offset: int, size: int, lock: Lock) -> Handler:
    if write is None:
        return lambda: None
    acquire, release = lock.acquire, lock.release

    def handler() -> None:
        acquire()
        try:
            write(offset, item[0], size)
        finally:
            release()

    return handler


def _reader(read: Callable[[int, int], int] | None, item: Any, offset: int, size: int, lock: Lock) -> Handler:
    ones = (1 << 8 * size) - 1
    acquire, release = lock.acquire, lock.release

    def handler() -> None:
        acquire()
        try:
            item[0] = ones if read is None else read(offset, size) & ones
        finally:
            release()

    return handler

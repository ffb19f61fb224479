"""From a port access to its handler: built once for each shape of access, then one dict look-up per exit.

Layer: below `vcpu_thread`. A handler is a closure without arguments that moves the data between the vCPU's
port data and the device, under the device's own lock or the big lock. `PortDispatch` belongs to one vCPU thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accel.exits import unpack_io
from accel.locks import Lock
from accel.memory.address_space import AddressSpace
from accel.memory.flat_view import FlatView, MemoryRegionSection

Handler = Callable[[], None]


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
        """Make, note and return the handler for `word` in the current view."""
        self.view = self._io.view
        is_out, size, port, count = unpack_io(word)
        section = self.view.find(port)
        if count == 1 and section is not None and section.region.ops is not None and port + size <= section.range.end:
            handler = self._direct(section, is_out, size, port)
        else:
            handler = self._general(is_out, size, port, count)
        self.handlers[word] = handler
        return handler

    def clear(self) -> None:
        """Forget all handlers, since the view changed."""
        self.handlers.clear()
        self.view = self._io.view

    def _direct(self, section: MemoryRegionSection, is_out: bool, size: int, port: int) -> Handler:
        """Return the handler for one item to or from one region; the usual case, so it does no look-up."""
        ops = section.region.ops
        assert ops is not None
        lock = section.region.lock or self._big_lock
        offset = section.offset + port - section.range.start
        # A view of the item as one number: `item[0]` converts in C.
        raw: Any = self._data[:size]
        item = raw.cast({1: "B", 2: "H", 4: "I"}[size])
        if is_out:
            return _out(ops.write, item, offset, size, lock)
        return _in(ops.read, item, offset, size, lock)

    def _general(self, is_out: bool, size: int, port: int, count: int) -> Handler:
        """Return the handler for string instructions, unassigned ports and accesses across regions."""
        io, data = self._io, self._data

        def handler() -> None:
            for at in range(0, size * count, size):
                if is_out:
                    io.store(port, int.from_bytes(data[at : at + size], "little"), size)
                else:
                    data[at : at + size] = io.load(port, size).to_bytes(size, "little")

        return handler


def _out(write: Callable[[int, int, int], None] | None, item: Any, offset: int, size: int, lock: Lock) -> Handler:
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


def _in(read: Callable[[int, int], int] | None, item: Any, offset: int, size: int, lock: Lock) -> Handler:
    ones = (1 << 8 * size) - 1
    acquire, release = lock.acquire, lock.release

    def handler() -> None:
        acquire()
        try:
            item[0] = ones if read is None else read(offset, size) & ones
        finally:
            release()

    return handler

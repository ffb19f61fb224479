"""From a memory access that came out to the device it is for, built once for each shape of access.

Layer: below `vcpu_thread`, beside `port_dispatch`. Only what lies within one device region has a handler; RAM that
was not served for a moment, ROM, unassigned addresses and accesses across regions go through the address space.
`MmioDispatch` belongs to one vCPU thread.
"""

from __future__ import annotations

from typing import Any

from accel.locks import Lock
from accel.memory.address_space import AddressSpace
from accel.memory.flat_view import FlatView
from accel.port_dispatch import MAX_HANDLERS, Handler, device_handler

_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}


class MmioDispatch:
    """One vCPU's handlers for device memory; forgotten when the memory gets a new view.

    Args:
        memory: The memory space.
        record: The vCPU's exit record (see `accel.exits`).
        big_lock: Held around handlers of devices that declare no lock of their own.
    """

    __slots__ = ("_big_lock", "_handlers", "_memory", "_record", "_view")

    def __init__(self, memory: AddressSpace, record: memoryview, big_lock: Lock) -> None:
        self._memory = memory
        self._record = record
        self._big_lock = big_lock
        self._handlers: dict[tuple[int, int], Handler] = {}
        self._view: FlatView = memory.view

    def find(self, address: int, shape: int) -> Handler | None:
        """Return the handler of the device that the view in force shows there; None if it shows none.

        Args:
            address: Word 0 of the exit record.
            shape: Word 2 of the exit record.
        """
        if self._view is not self._memory.view:
            self.clear()
        return self._handlers.get((address, shape)) or self._build(address, shape)

    def clear(self) -> None:
        """Forget all handlers."""
        self._handlers.clear()
        self._view = self._memory.view

    def _build(self, address: int, shape: int) -> Handler | None:
        size, is_write = shape & 0xFFFF_FFFF, bool(shape >> 32)
        section = self._view.find(address)
        if section is None or address + size > section.range.end or size not in _FORMATS:
            return None
        if len(self._handlers) >= MAX_HANDLERS:
            self._handlers.clear()
        # What is written is the low bytes of word 1; what is read fills the word.
        word: Any = self._record[1:2].cast("B")
        item = word[:size].cast(_FORMATS[size]) if is_write else word.cast("Q")
        handler = device_handler(section, address, size, is_write=is_write, item=item, big_lock=self._big_lock)
        if handler is not None:
            self._handlers[address, shape] = handler
        return handler

"""A table of slots for accelerators that know memory by address: what `SlotListener` asks, and what vCPUs look up.

An accelerator whose slots have numbers keeps a table of its own. Layer: beside `slot_listener`, whose `SlotTable` this
is; above `slot_plan`, whose slots it holds.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

from sortedcontainers import SortedDict

from accel.address import AddressRange
from accel.errors import AddressError, MemorySlotError
from accel.locks import SLOTS_LOCK, Lock
from accel.memory.slot_plan import Slot


class SlotsByAddress:
    """Slots by guest-physical address.

    An accelerator that has to tell somebody of a change derives a class of its own and does so in `map` and `unmap`,
    and in `relog` and `collect` if it logs written pages. One that interprets guests needs none of that: its vCPUs call
    `access`.

    Args:
        max_slots: How many there can be.

    Attributes:
        lock: The slots lock; the core holds it around a whole change.
        guard: Held while the table changes, which is while vCPUs run where no guest can see half of a change. Who looks
            slots up on another thread holds it until it is done with what it found. Under it, no other lock but that
            of a dirty log is taken.
    """

    def __init__(self, max_slots: int = 1 << 16) -> None:
        self.max_slots = max_slots
        self.lock = Lock(SLOTS_LOCK)
        self.guard = threading.Lock()
        self._slots: SortedDict[int, Slot] = SortedDict()

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot]:
        """Yield all slots, ascending."""
        return iter(self._slots.values())

    def within(self, window: AddressRange) -> Iterator[Slot]:
        """Yield, ascending, the slots that begin in `window`. O(log n + slots found)."""
        for gpa in self._slots.irange(window.start, window.end, inclusive=(True, False)):
            yield self._slots[gpa]

    def find(self, address: int) -> Slot | None:
        """Return the slot that maps the byte at `address`, or None; needs `guard` while vCPUs run. O(log n)."""
        index = self._slots.bisect_right(address) - 1
        if index < 0:
            return None
        slot: Slot = self._slots.peekitem(index)[1]
        return slot if address < slot.gpa + slot.size else None

    def access(self, address: int, size: int, value: int | None = None, *, add: bool = False) -> int | None:
        """Return the `size` bytes at `address`, little-endian, and write `value` there if there is one.

        For vCPUs that are code of the host, on any thread. It is one step to all others, and to changes of the table;
        a page that it writes is marked in the slot's log.

        Args:
            address: Guest-physical; no slot may end between it and the last byte, as none does inside a page.
            size: Bytes.
            value: Not negative; what does not fit is cut off.
            add: Add `value` to what is there instead.

        Returns:
            What was there before; None, with nothing done, where no slot is, or a read-only one for a write.

        Raises:
            AddressError: A slot ends between; nothing is done. Cut an access where a page ends.
        """
        with self.guard:
            slot = self.find(address)
            if slot is None or (slot.readonly and value is not None):
                return None
            if address + size > slot.gpa + slot.size:
                raise AddressError(
                    f"{size} bytes at {address:#x} go beyond the slot that ends at {slot.gpa + slot.size:#x}; make an "
                    "access of each page"
                )
            offset = slot.offset + address - slot.gpa
            data = slot.block.span(offset, size)
            old = int.from_bytes(data, "little")
            if value is not None:
                new = (old + value if add else value) & (1 << 8 * size) - 1
                data[:] = new.to_bytes(size, "little")
                if slot.log is not None:
                    # After the bytes, or a log that is taken in between would have the page for the last time.
                    slot.log.mark(offset, size)
            return old

    # what the listener calls

    def create(self, slot: Slot) -> None:
        """Map `slot`. Raises what `map` does, and has done nothing then."""
        self.map(slot)
        with self.guard:
            self._slots[slot.gpa] = slot

    def delete(self, slot: Slot) -> None:
        """Unmap `slot`. Raises what `unmap` does, and has done nothing then."""
        self.unmap(slot)
        with self.guard:
            del self._slots[slot.gpa]

    def toggle(self, old: Slot, new: Slot) -> None:
        """Let `old` be `new`, which differs in its log. Raises what `relog` does, and has done nothing then."""
        self.relog(old, new)
        with self.guard:
            self._slots[old.gpa] = new

    def collect(self, slot: Slot) -> None:
        """Merge written pages into `slot.log`; here nothing, for accelerators that mark them there at each write."""

    def full(self, slot: Slot, excess: int) -> MemorySlotError:
        """Return the error for a change that needs `excess` slots more than `max_slots`; `slot` is its last one."""
        return MemorySlotError(
            "mapping a slot",
            errno.ENOSPC,
            slot=self.max_slots + excess - 1,
            gpa=slot.gpa,
            hva=slot.hva,
            size=slot.size,
            flags=0,
            advice=f"there can be {self.max_slots}",
        )

    # what an accelerator may add

    def map(self, slot: Slot) -> None:
        """Tell whoever has to know that `slot` comes. Raises MemorySlotError, and must have changed nothing then."""

    def unmap(self, slot: Slot) -> None:
        """Tell whoever has to know that `slot` goes. Raises MemorySlotError, and must have changed nothing then."""

    def relog(self, old: Slot, new: Slot) -> None:
        """Tell whoever has to know that `old` has another log. Raises MemorySlotError."""

"""The mock's memory slots: an immutable table that each slot call replaces, and the wait for vCPUs to see it.

A vCPU works with one table at a time and looks for a new one between two operations, so between a delete and
an add it meets the gap, as on KVM. A slot call returns when every vCPU that is inside `run` has worked with the
new table for a few operations: as on KVM, where the call waits for readers of the old slots and flushes the
TLBs, nothing uses a deleted mapping once its delete has returned.

Rules are those of KVM_SET_USER_MEMORY_REGION (KVM api.rst): numbers below a limit, whole pages, no overlap
(EEXIST); a slot is deleted before its number is used again (EINVAL).

Locks, both private to this module and taken last: `_call` makes slot calls one after the other; `_changed`
guards the table's replacement and who is inside. A slot call waits for vCPUs with neither any lock that a
running vCPU takes nor the GIL, and a vCPU reaches its next operation without waiting for anybody, so the wait
ends.
"""

from __future__ import annotations

import errno
import threading
import time
from bisect import bisect_right
from typing import TYPE_CHECKING

from attrs import define, evolve, field, frozen

from accel.address import ADDRESS_SPACE_SIZE, PAGE_SIZE, AddressRange
from accel.errors import MemorySlotError
from accel.memory.slot_plan import Slot

if TYPE_CHECKING:
    from accel_mock.vcpu import MockVcpu

#: How long a thread stays off the GIL to let the others go on, which otherwise takes a whole switch interval:
#: a vCPU that works with a new table, and a slot call that did not wait for any.
_HANDOVER_SECONDS = 20e-6

#: A byte of guest memory: the slot's bytes, and the index in them.
Place = tuple[memoryview, int]


@frozen
class MemSlot:
    """A slot under its number, with the bytes it maps; holding it keeps them mapped."""

    number: int
    slot: Slot
    bytes: memoryview = field(repr=False, eq=False)


@define(eq=False)
class SlotTable:
    """All slots at one moment. Immutable but for the two memos, which only grow and die with the table.

    Attributes:
        slots: In order of addresses.
        readable: Address → place, for addresses that were looked up for reading.
        writable: The same for writing.
    """

    slots: tuple[MemSlot, ...] = ()
    readable: dict[int, Place] = field(factory=dict, init=False)
    writable: dict[int, Place] = field(factory=dict, init=False)
    _starts: list[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._starts = [one.slot.gpa for one in self.slots]

    def place_to_read(self, address: int) -> Place | None:
        """Return where the byte at `address` lies, and all bytes up to the page's end; None in a hole. O(log n)."""
        return self._place(address, self.readable, writing=False)

    def place_to_write(self, address: int) -> Place | None:
        """Return the same for writing; None in a hole and in a read-only slot. O(log n)."""
        return self._place(address, self.writable, writing=True)

    def overlapping(self, window: AddressRange) -> tuple[MemSlot, ...]:
        """Return the slots with an address in `window`, ascending."""
        first = max(0, bisect_right(self._starts, window.start) - 1)
        last = bisect_right(self._starts, window.end - 1)
        return tuple(one for one in self.slots[first:last] if one.slot.range.overlaps(window))

    def _place(self, address: int, memo: dict[int, Place], *, writing: bool) -> Place | None:
        found = memo.get(address)
        if found is None:
            index = bisect_right(self._starts, address) - 1
            if index < 0:
                return None
            one = self.slots[index]
            offset = address - one.slot.gpa
            if offset >= one.slot.size or (writing and one.slot.readonly):
                return None
            found = memo[address] = (one.bytes, offset)
        return found


class MemSlots:
    """The slots of one VM, and the vCPUs that use them.

    Args:
        slot_count: Numbers go from 0 up to but not including this.
        latency: Seconds that each slot call takes beyond its work, while vCPUs run on.

    Attributes:
        table: The table in force; immutable, replaced under `_changed`, read without.
    """

    def __init__(self, slot_count: int, latency: float = 0.0) -> None:
        self.slot_count = slot_count
        self.table = SlotTable()
        self._latency = latency
        self._call = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        # The vCPUs inside `run`, each with the table that it is known to use, and whether a slot call waits
        # for some. Guarded by _changed.
        self._inside: dict[MockVcpu, SlotTable] = {}
        self._awaited = False

    # slot calls

    def create(self, number: int, slot: Slot) -> None:
        """Map `slot` under `number`.

        Raises:
            MemorySlotError: EEXIST where it overlaps another; EINVAL for a number that is in use or too high, or
                for a range that is empty, not of whole pages, or not inside its block.
        """
        with self._call:
            self._check(number, slot)
            offset = slot.hva - slot.block.address
            mapped = MemSlot(number, slot, slot.block.view[offset : offset + slot.size])
            slots = sorted((*self.table.slots, mapped), key=lambda one: one.slot.gpa)
            self._replace(SlotTable(tuple(slots)))

    def delete(self, number: int, slot: Slot) -> None:
        """Unmap what `number` maps; `slot` is for the message.

        Raises:
            MemorySlotError: EINVAL where it maps nothing.
        """
        with self._call:
            left = tuple(one for one in self.table.slots if one.number != number)
            if len(left) == len(self.table.slots):
                raise slot_error(errno.EINVAL, number, evolve(slot, size=0))
            self._replace(SlotTable(left))

    def clear(self) -> None:
        """Let go of all slots and the memory behind them."""
        with self._call:
            self._replace(SlotTable())

    def _check(self, number: int, slot: Slot) -> None:
        in_block = 0 <= slot.hva - slot.block.address <= slot.block.max_size - slot.size
        aligned = not (slot.gpa % PAGE_SIZE or slot.size % PAGE_SIZE or slot.hva % PAGE_SIZE)
        fits = slot.size > 0 and slot.gpa + slot.size <= ADDRESS_SPACE_SIZE
        taken = any(one.number == number for one in self.table.slots)
        if taken or not (0 <= number < self.slot_count and aligned and fits and in_block):
            raise slot_error(errno.EINVAL, number, slot)
        if self.table.overlapping(slot.range):
            raise slot_error(errno.EEXIST, number, slot)

    def _replace(self, table: SlotTable) -> None:
        with self._changed:
            self.table = table
            self._awaited = bool(self._inside)
            waited = self._awaited
            for vcpu in self._inside:
                vcpu.attention = True
            self._changed.wait_for(lambda: all(used is table for used in self._inside.values()))
            self._awaited = False
        if self._latency or not waited:
            # A system call gives up the GIL too: without it, a thread that makes one slot call after the
            # other would keep the vCPUs that are outside from coming in.
            time.sleep(self._latency or _HANDOVER_SECONDS)

    # vCPUs

    def enter(self, vcpu: MockVcpu) -> None:
        """Let `vcpu` work with the table in force; on its thread, at the beginning of `run`."""
        with self._changed:
            vcpu.table = self._inside[vcpu] = self.table

    def leave(self, vcpu: MockVcpu) -> None:
        """Note that `vcpu` uses no table; on its thread, at the end of `run`."""
        with self._changed:
            del self._inside[vcpu]
            vcpu.table = NO_SLOTS
            if self._awaited:
                self._changed.notify()

    def acknowledge(self, vcpu: MockVcpu) -> None:
        """Note that `vcpu` works with the table that it has; on its thread, between two operations."""
        with self._changed:
            self._inside[vcpu] = vcpu.table
            awaited = self._awaited
            if awaited:
                self._changed.notify()
        if awaited:
            time.sleep(_HANDOVER_SECONDS)


#: What a vCPU has while it is outside of `run`.
NO_SLOTS = SlotTable()


def slot_error(number: int, index: int, slot: Slot) -> MemorySlotError:
    """Return the error of a slot call: errno `number` for slot `index`."""
    return MemorySlotError(
        "mock slot call",
        number,
        slot=index,
        gpa=slot.gpa,
        hva=slot.hva,
        size=slot.size,
        flags=int(slot.readonly),
    )

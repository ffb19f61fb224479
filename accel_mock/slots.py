"""The mock's memory slots: an immutable table that each slot call replaces, and the wait for vCPUs to see it.

A vCPU works with one table at a time and looks for a new one between two operations, so between a delete and
an add it meets the gap, as on KVM. A slot call returns when every vCPU that is inside `run` has worked with the
new table for a few operations: as on KVM, where the call waits for readers of the old slots and flushes the
TLBs, nothing uses a deleted mapping once its delete has returned.

Rules are those of KVM_SET_USER_MEMORY_REGION (KVM api.rst): numbers below a limit, whole pages, no overlap
(EEXIST); a slot is deleted before its number is used again (EINVAL), and whether it logs is all that changes in place.

A slot that logs has a `PageLog`. A write and its note are one step to whoever takes the log, so no written page is
missing from both this log and the next. But taking the log and then deleting the slot are two steps: what a vCPU
writes between them is lost, as on KVM, unless it is held.

Locks, all taken last: `_call` makes slot calls one after the other; `_changed` guards the table's replacement and who
is inside; the VM's bus makes each write of a vCPU, with its note, one step. A slot call waits for vCPUs with neither
any lock that a running vCPU takes nor the GIL, and a vCPU reaches its next operation without waiting for anybody, so
the wait ends.
"""

from __future__ import annotations

import errno
import threading
import time
from bisect import bisect_right
from typing import TYPE_CHECKING

from attrs import define, evolve, field, frozen

from accel.address import ADDRESS_SPACE_SIZE, PAGE_SIZE, AddressRange
from accel.errors import BackendError, MemorySlotError
from accel.memory.slot_plan import Slot
from accel_mock.page_log import PageLog

if TYPE_CHECKING:
    from accel_mock.vcpu import MockVcpu

#: How long a thread stays off the GIL to let the others go on, which otherwise takes a whole switch interval:
#: a vCPU that works with a new table, and a slot call that did not wait for any.
_HANDOVER_SECONDS = 20e-6

#: As KVM numbers them, for messages.
_LOG_DIRTY_PAGES = 1
_READONLY = 2

#: A byte of guest memory: the slot's bytes, the index in them, and where a write to it is noted.
Place = tuple[memoryview, int, PageLog | None]


@frozen
class MemSlot:
    """A slot under its number, with the bytes it maps; holding it keeps them mapped.

    Attributes:
        number: Its number.
        slot: What it maps, and whether it logs.
        bytes: The bytes.
        log: The pages that were written, if it logs.
    """

    number: int
    slot: Slot
    bytes: memoryview = field(repr=False, eq=False)
    log: PageLog | None = field(repr=False, eq=False)


@define(eq=False)
class SlotMap:
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
            found = memo[address] = (one.bytes, offset, one.log)
        return found


class MemSlots:
    """The slots of one VM, and the vCPUs that use them.

    Args:
        slot_count: Numbers go from 0 up to but not including this.
        bus: Held by vCPUs around each write and its note.
        latency: Seconds that each slot call takes beyond its work, while vCPUs run on.

    Attributes:
        slot_count: As given.
        bus: As given.
        table: The table in force; immutable, replaced under `_changed`, read without.
    """

    def __init__(self, slot_count: int, bus: threading.Lock, latency: float = 0.0) -> None:
        self.slot_count = slot_count
        self.bus = bus
        self.table = SlotMap()
        self._latency = latency
        self._call = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        # The vCPUs inside `run`, each with the table that it is known to use, and whether a slot call waits
        # for some. Guarded by _changed.
        self._inside: dict[MockVcpu, SlotMap] = {}
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
            slots = sorted((*self.table.slots, _mapped(number, slot)), key=lambda one: one.slot.gpa)
            self._replace(SlotMap(tuple(slots)))

    def toggle(self, number: int, slot: Slot) -> None:
        """Let what `number` maps log, from no page on, or log no more, whichever `slot` says; vCPUs run on.

        Raises:
            MemorySlotError: EINVAL where it maps something else.
        """
        with self._call:
            old = self._find(number)
            if old is None or old.slot.with_log(slot.log) != slot:
                raise slot_error(errno.EINVAL, number, slot)
            self._replace(SlotMap(tuple(_mapped(number, slot) if one is old else one for one in self.table.slots)))

    def delete(self, number: int, slot: Slot) -> None:
        """Unmap what `number` maps; `slot` is for the message.

        Raises:
            MemorySlotError: EINVAL where it maps nothing.
        """
        with self._call:
            old = self._find(number)
            if old is None:
                raise slot_error(errno.EINVAL, number, evolve(slot, size=0))
            self._replace(SlotMap(tuple(one for one in self.table.slots if one is not old)))

    def take_dirty(self, number: int, slot: Slot) -> bytearray:
        """Return the bitmap of pages of what `number` maps that were written since the last time.

        It is `PageLog.take`'s; `slot` is for the message.

        Raises:
            BackendError: ENOENT where it does not log.
        """
        with self._call:
            found = self._find(number)
            if found is None or found.log is None:
                raise BackendError("mock dirty-log call", errno.ENOENT, f"slot {number}, {slot}")
            with self.bus:
                taken = found.log.take()
            self._give_way()
            return taken

    def clear(self) -> None:
        """Let go of all slots and the memory behind them."""
        with self._call:
            self._replace(SlotMap())

    def _find(self, number: int) -> MemSlot | None:
        return next((one for one in self.table.slots if one.number == number), None)

    def _check(self, number: int, slot: Slot) -> None:
        in_block = 0 <= slot.hva - slot.block.address <= slot.block.max_size - slot.size
        aligned = not (slot.gpa % PAGE_SIZE or slot.size % PAGE_SIZE or slot.hva % PAGE_SIZE)
        fits = slot.size > 0 and slot.gpa + slot.size <= ADDRESS_SPACE_SIZE
        if self._find(number) is not None or not (0 <= number < self.slot_count and aligned and fits and in_block):
            raise slot_error(errno.EINVAL, number, slot)
        if self.table.overlapping(slot.range):
            raise slot_error(errno.EEXIST, number, slot)

    def _replace(self, table: SlotMap) -> None:
        with self._changed:
            self.table = table
            self._awaited = bool(self._inside)
            waited = self._awaited
            for vcpu in self._inside:
                vcpu.attention = True
            self._changed.wait_for(lambda: all(used is table for used in self._inside.values()))
            self._awaited = False
        if self._latency or not waited:
            self._give_way()

    def _give_way(self) -> None:
        # A system call gives up the GIL too: without it, a thread that makes one slot call after the other would keep
        # the vCPUs that are outside from coming in.
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
NO_SLOTS = SlotMap()


def _mapped(number: int, slot: Slot) -> MemSlot:
    offset = slot.hva - slot.block.address
    log = None if slot.log is None else PageLog(slot.size)
    return MemSlot(number, slot, slot.block.view[offset : offset + slot.size], log)


def slot_error(number: int, index: int, slot: Slot) -> MemorySlotError:
    """Return the error of a slot call: errno `number` for slot `index`."""
    return MemorySlotError(
        "mock slot call",
        number,
        slot=index,
        gpa=slot.gpa,
        hva=slot.hva,
        size=slot.size,
        flags=(_READONLY if slot.readonly else 0) | (_LOG_DIRTY_PAGES if slot.log is not None else 0),
    )

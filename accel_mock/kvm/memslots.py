"""KVM's memslots: sets under SRCU, of which one is in force, and the calls that put another in its place.

Source: KVM_SET_USER_MEMORY_REGION in KVM api.rst, and the kernel's locking page. Rules: numbers below a limit, whole
pages, no overlap (EEXIST); a slot is deleted before its number is used again (EINVAL); it may move, and its log may
begin and end.

The order of a deletion is KVM's. The slot is first replaced by an invalid one: who wants to use it tries again. When
every reader of the old set has gone, what the shadow page table has of it is zapped and TLBs are flushed; and then the
set without it is put in force, so that the guest sees a hole: an MMIO exit. A slot that moves is invalid meanwhile and
then elsewhere; a new one, and one whose log begins or ends, is put in force at once.

Locks: a call holds slots_lock over all of this; slots_arch_lock while the sets are exchanged, and not while readers are
waited for. No open pair of an MMU notifier outlives a set (`accel_mock.kvm.notifier`).

Taking a log and then deleting the slot are two calls: what a vCPU writes between them is lost, as on KVM.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Sequence

from attrs import evolve, frozen

from accel.address import PAGE_SIZE
from accel.errors import BackendError
from accel.locks import Lock
from accel.memory.slot_plan import Slot
from accel.read_locks import SrcuDomain
from accel_mock.faults import Faults
from accel_mock.kvm.dirty_ring import DirtyRing
from accel_mock.kvm.lock_classes import SLOTS, SLOTS_ARCH, SRCU
from accel_mock.kvm.mmu import ShadowMmu
from accel_mock.kvm.notifier import MmuNotifiers
from accel_mock.kvm.page_log import PageLog
from accel_mock.kvm.running import HANDOVER_SECONDS, Running
from accel_mock.kvm.slot_map import MemSlot, SlotMap
from accel_mock.kvm.slot_rules import check_slot, differ_in_log, page_bitmap, slot_error


@frozen
class Region:
    """One change of a list: `slot` is mapped under `number`, or nothing is any more."""

    number: int
    slot: Slot | None


class MemSlots:
    """The slots of one VM.

    Args:
        slot_count: Numbers go from 0 up to but not including this.
        running: The vCPUs that use them.
        latency: Seconds that each slot call takes beyond its work, while vCPUs run on.
        faults: Which calls fail.

    Attributes:
        slot_count: As given.
        table: The set in force; immutable, replaced under slots_arch_lock, read inside `srcu` or under slots_lock.
        srcu: Held for reading by who uses the set.
        mmu: The shadow page table.
        notifiers: Of the host's memory.
        rings: The dirty rings of the vCPUs, if the VM has such. Guarded by the big lock.
    """

    def __init__(self, slot_count: int, running: Running, latency: float = 0.0, faults: Faults | None = None) -> None:
        self.slot_count = slot_count
        self.table = SlotMap()
        self.srcu = SrcuDomain(SRCU)
        self.mmu = ShadowMmu(self, running)
        self.notifiers = MmuNotifiers(self.mmu.unmap_host)
        self.rings: list[DirtyRing] = []
        self._running = running
        self._latency = latency
        self._faults = Faults() if faults is None else faults
        self._slots_lock = Lock(SLOTS)
        self._slots_arch_lock = Lock(SLOTS_ARCH)

    def create(self, number: int, slot: Slot) -> None:
        """Map `slot` under `number`.

        Raises:
            MemorySlotError: EEXIST where it overlaps another; EINVAL for a number that is in use or too high, or
                for a range that is empty, not of whole pages, or not inside its block.
        """
        with self._slots_lock:
            self._fail("create", number, slot)
            check_slot(self.table, self.slot_count, number, slot)
            self._install(self.table.with_slot(_mapped(number, slot)))
            self._done()

    def toggle(self, number: int, slot: Slot) -> None:
        """Let what `number` maps log, from no page on, or log no more, whichever `slot` says; vCPUs run on.

        Raises:
            MemorySlotError: EINVAL where it maps something else.
        """
        with self._slots_lock:
            self._fail("toggle", number, slot)
            old = self._find(number)
            if old is None or not differ_in_log(old, slot):
                raise slot_error(errno.EINVAL, number, slot)
            new = _mapped(number, slot)
            self._install(self.table.replaced(old, new))
            self._begin_logs([new])
            self._done()

    def delete(self, number: int, slot: Slot) -> None:
        """Unmap what `number` maps; `slot` is for the message.

        Raises:
            MemorySlotError: EINVAL where it maps nothing.
        """
        with self._slots_lock:
            self._fail("delete", number, evolve(slot, size=0))
            old = self._find(number)
            if old is None:
                raise slot_error(errno.EINVAL, number, evolve(slot, size=0))
            self._install(self._invalidate(old))
            self._done()

    def move(self, number: int, slot: Slot) -> None:
        """Map what `number` maps elsewhere in the guest; same bytes, same flags.

        Raises:
            MemorySlotError: EINVAL where it maps nothing or something else; EEXIST where another slot is.
        """
        with self._slots_lock:
            self._fail("move", number, slot)
            old = self._find(number)
            if old is None or evolve(old.slot, gpa=slot.gpa, log=slot.log) != slot:
                raise slot_error(errno.EINVAL, number, slot)
            check_slot(self.table.without(old), self.slot_count, number, slot)
            # A slot that logs before and after keeps its log as it is.
            self._install(self._invalidate(old).with_slot(_mapped(number, slot, old.log)))
            self._done()

    def apply_list(self, changes: Sequence[Region]) -> None:
        """Make several changes as one: no reader sees a part of them. As proposed in KVM_SET_USER_MEMORY_REGION_LIST.

        Each change builds on those before it: a number may be deleted and then used again. A slot that is there and
        comes with or without a log, as it is otherwise, is toggled. All that goes is invalid together, so that whoever
        wants it waits until all that comes is there.

        Raises:
            MemorySlotError: As for each of them; nothing has changed.
            BackendError: A number that is to be deleted maps nothing; nothing has changed.
        """
        with self._slots_lock:
            error = self._faults.errno_of("list")
            if error:
                raise BackendError("mock slot list", error, f"{len(changes)} changes")
            before = after = self.table
            for change in changes:
                after = self._changed(after, change)
            gone: list[MemSlot] = []
            relogged: list[MemSlot] = []
            for number in dict.fromkeys(change.number for change in changes):
                old, new = before.numbered(number), after.numbered(number)
                if old is not None and new is not None and differ_in_log(old, new.slot):
                    relogged.append(new)
                elif old is not None:
                    gone.append(old)
            if gone:
                self._invalidate(*gone)
            self._install(after)
            self._begin_logs(relogged)
            self._done()

    def take_dirty(self, number: int, slot: Slot) -> bytearray:
        """Return the bitmap of pages of what `number` maps that were written since the last time.

        It is `PageLog.take`'s; `slot` is for the message.

        Raises:
            BackendError: ENOENT where it does not log.
        """
        with self._slots_lock:
            found = self._find(number)
            error = self._faults.errno_of("take-dirty") or (errno.ENOENT if found is None or found.log is None else 0)
            if error or found is None or found.log is None:
                raise BackendError("mock dirty-log call", error, f"slot {number}, {slot}")
            taken = found.log.take()
            if any(taken):
                # What is written before the flush is in pages that were handed out; afterwards it is noted again.
                self.mmu.write_protect(found, taken)
                self._running.flush()
            self._give_way()
            return taken

    def reset_rings(self) -> None:
        """Have the entries of `rings` that were taken free again, and the next write to each of their pages noted.

        What was written to such a page before is in the page now: who reads it later misses nothing.

        Raises:
            BackendError: The call failed; the entries are as they were.
        """
        with self._slots_lock:
            error = self._faults.errno_of("reset-rings")
            if error:
                raise BackendError("mock dirty-ring call", error, f"{len(self.rings)} rings")
            written: dict[int, set[int]] = {}
            for number, page in (entry for ring in self.rings for entry in ring.reset()):
                written.setdefault(number, set()).add(page)
            for number, pages in written.items():
                found = self._find(number)
                if found is not None and found.log is not None:
                    self.mmu.write_protect(found, page_bitmap(pages, found.slot.size // PAGE_SIZE))
            if written:
                self._running.flush()
            self._give_way()

    def clear(self) -> None:
        """Let go of all slots and the memory behind them."""
        with self._slots_lock:
            self._install(SlotMap())
            self.mmu.zap_all()
            self._running.flush()

    def _fail(self, call: str, number: int, slot: Slot) -> None:
        """Raise the error that the call is to end with, if it is."""
        error = self._faults.errno_of(call)
        if error:
            raise slot_error(error, number, slot)

    def _changed(self, table: SlotMap, change: Region) -> SlotMap:
        """Return the set after one more change of a list."""
        number, slot = change.number, change.slot
        old = table.numbered(number)
        if slot is not None:
            if old is not None and differ_in_log(old, slot):
                return table.replaced(old, _mapped(number, slot))
            check_slot(table, self.slot_count, number, slot)
            return table.with_slot(_mapped(number, slot))
        if old is None:
            raise BackendError("mock slot list", errno.EINVAL, f"slot {number} maps nothing")
        return table.without(old)

    def _invalidate(self, *slots: MemSlot) -> SlotMap:
        """Put invalid slots in the place of `slots`, and let nobody have a translation; return the set without them."""
        table = without = self.table
        for old in slots:
            invalid = evolve(old, invalid=True)
            table = table.replaced(old, invalid)
            without = without.without(old)
        self._install(table)
        for old in slots:
            self.mmu.zap(old)
        self._running.flush()
        return without

    def _begin_logs(self, slots: Iterable[MemSlot]) -> None:
        """Have the first write to each page of those that log be a fault from here on, and noted."""
        begun = [one for one in slots if one.log is not None]
        for one in begun:
            self.mmu.write_protect(one)
        if begun:
            self._running.flush()

    def _install(self, table: SlotMap) -> None:
        """Put a set in force and wait until nobody reads the one before."""
        with self._slots_arch_lock, self.notifiers.none_active():
            self.table = table
        self.srcu.synchronize()

    def _done(self) -> None:
        """End a call: not before vCPUs have worked with the new set, and no sooner than the call is to take."""
        waited = self._running.any
        self._running.let_work()
        if self._latency or not waited:
            self._give_way()

    def _give_way(self) -> None:
        # A system call gives up the GIL too: without it, a thread that makes one slot call after the other would keep
        # the vCPUs that are outside from coming in.
        time.sleep(self._latency or HANDOVER_SECONDS)

    def _find(self, number: int) -> MemSlot | None:
        return self.table.numbered(number)


def _mapped(number: int, slot: Slot, log: PageLog | None = None) -> MemSlot:
    """Return the slot for a table; it goes on with `log`, if it logs and there is one."""
    offset = slot.hva - slot.block.address
    log = None if slot.log is None else log or PageLog(slot.size)
    return MemSlot(number, slot, slot.block.view[offset : offset + slot.size], log)

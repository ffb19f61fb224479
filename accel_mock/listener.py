"""The memory listener that turns a change of the memory map into the mock's slot calls, and brings in written pages.

The core's `SlotListener` notes, plans and carries out; here stand the numbers that the mock's calls want, and that
coalesced parts of the memory change in the same transaction, before the slots.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from accel.address import PAGE_SIZE, AddressRange
from accel.errors import MemorySlotError
from accel.locks import SLOTS_LOCK, Lock
from accel.memory.dirty_rings import merge_entries
from accel.memory.slot_listener import SlotListener, SlotRules
from accel.memory.slot_plan import Policy, Slot, SlotNumbers, SlotPlan
from accel_mock.coalesced import MockCoalescedRing, MockIoListener
from accel_mock.doorbells import MockDoorbells
from accel_mock.kvm.memslots import MemSlots, Region
from accel_mock.kvm.slot_rules import slot_error


class MockSlots:
    """The slots of a VM by address: a `SlotTable`. Guarded by the big lock, changes by `lock` too.

    Args:
        memslots: The same by number, with the calls that change them.

    Attributes:
        lock: Held while a change is applied.
        max_slots: Greatest number of slots.
    """

    def __init__(self, memslots: MemSlots) -> None:
        self.lock = Lock(SLOTS_LOCK)
        self.max_slots = memslots.slot_count
        self._memslots = memslots
        self._numbers = SlotNumbers()
        # Guest-physical address of a slot → its number.
        self._number_at: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._memslots.table)

    def __iter__(self) -> Iterator[Slot]:
        """Yield all slots, ascending."""
        return (one.slot for one in self._memslots.table)

    def within(self, window: AddressRange) -> Iterator[Slot]:
        """Yield, ascending, the slots in `window`, whose ends no slot spans."""
        return (one.slot for one in self._memslots.table.overlapping(window))

    def create(self, slot: Slot) -> None:
        """Map `slot` under the lowest free number. Raises MemorySlotError."""
        number = self._numbers.take()
        try:
            self._memslots.create(number, slot)
        except BaseException:
            self._numbers.give_back(number)
            raise
        self._number_at[slot.gpa] = number

    def delete(self, slot: Slot) -> None:
        """Unmap `slot`; its dirty log goes too. Raises MemorySlotError."""
        number = self._number_at[slot.gpa]
        self._memslots.delete(number, slot)
        del self._number_at[slot.gpa]
        self._numbers.give_back(number)

    def toggle(self, old: Slot, new: Slot) -> None:
        """Let `old` be `new`, which differs in its log only; vCPUs run on. Raises MemorySlotError."""
        self._memslots.toggle(self._number_at[old.gpa], new)

    def change(self, plan: SlotPlan) -> None:
        """Carry out a whole plan as one list. Raises MemorySlotError or BackendError, and has done nothing then."""
        gone = [self._number_at[slot.gpa] for slot in plan.deletes]
        # Deletes come first in the list, so their numbers may be used again in it.
        come = gone[: len(plan.creates)]
        taken = [self._numbers.take() for _ in plan.creates[len(come) :]]
        come += taken
        try:
            self._memslots.apply_list(
                [
                    *(Region(self._number_at[old.gpa], new) for old, new in plan.toggles),
                    *(Region(number, None) for number in gone),
                    *(Region(number, slot) for number, slot in zip(come, plan.creates, strict=True)),
                ]
            )
        except BaseException:
            for number in taken:
                self._numbers.give_back(number)
            raise
        for slot in plan.deletes:
            del self._number_at[slot.gpa]
        self._number_at |= {slot.gpa: number for number, slot in zip(come, plan.creates, strict=True)}
        for number in gone[len(plan.creates) :]:
            self._numbers.give_back(number)

    def collect(self, slot: Slot) -> None:
        """Merge the pages that the guest wrote since the last time into the slot's log, which it must have."""
        assert slot.log is not None
        if self._memslots.rings:
            self.empty_rings()
            return
        slot.log.merge(slot.offset, self._memslots.take_dirty(self._number_at[slot.gpa], slot), PAGE_SIZE)

    def empty_rings(self) -> None:
        """Merge what is in the dirty rings into the logs of all slots. Raises BackendError; nothing is lost."""
        merge_entries((entry for ring in self._memslots.rings for entry in ring.take()), self._slot_numbered)
        self._memslots.reset_rings()

    def _slot_numbered(self, number: int) -> Slot | None:
        found = self._memslots.table.numbered(number)
        return None if found is None else found.slot

    def full(self, slot: Slot, excess: int) -> MemorySlotError:
        """Return the error for a change that needs `excess` slots more than there can be, `slot` being its last."""
        return slot_error(errno.ENOSPC, self.max_slots + excess - 1, slot)


class MockMemoryListener(SlotListener, MockIoListener):
    """Maps RAM and ROM into one VM. State is guarded by the big lock.

    Args:
        memslots: The VM's slots.
        ring: The VM's ring of coalesced writes.
        doorbells: The VM's.
        policy: ``least`` or ``replace``; see `accel.memory.slot_plan`.
        at_once: Whether all slots of a change are changed by one call.
        dirty_rings: Whether vCPUs note written pages in rings of their own.

    Attributes:
        slots: The table.
    """

    slots: MockSlots

    name = "mock-memory"

    def __init__(
        self,
        memslots: MemSlots,
        ring: MockCoalescedRing,
        doorbells: MockDoorbells,
        policy: Policy,
        *,
        at_once: bool = False,
        dirty_rings: bool = False,
    ) -> None:
        MockIoListener.__init__(self, ring, doorbells, is_port=False)
        slots = MockSlots(memslots)
        change = slots.change if at_once else None
        SlotListener.__init__(self, slots, SlotRules(owner="the mock", dirty_rings=dirty_rings), policy, at_once=change)

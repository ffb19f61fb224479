"""The memory listener that turns a change of the memory map into the mock's slot calls.

Sections are noted while the transaction tells them, planned by the core's `plan_slots` in `prepare`, and carried
out by `SlotUpdate` under the slots lock, held where a deleted range is added back.
"""

from __future__ import annotations

import errno

from accel.address import PAGE_SIZE
from accel.errors import MemorySlotError
from accel.locks import SLOTS_LOCK, Lock
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.listener import PRIORITY_ACCEL, MemoryListener, Update
from accel.memory.slot_plan import Policy, Slot, SlotNumbers, SlotUpdate, plan_slots, section_slots
from accel_mock.slots import MemSlots, slot_error


class MockMemoryListener(MemoryListener):
    """Maps RAM and ROM into one VM. All state is guarded by the big lock, the slot numbers by `slots_lock` too.

    Args:
        memslots: The VM's slots.
        policy: ``least`` or ``replace``; see `accel.memory.slot_plan`.
    """

    name = "mock-memory"
    priority = PRIORITY_ACCEL

    def __init__(self, memslots: MemSlots, policy: Policy) -> None:
        self._memslots = memslots
        self._policy = policy
        self._slots_lock = Lock(SLOTS_LOCK)
        self._deletes: list[MemoryRegionSection] = []
        self._adds: list[MemoryRegionSection] = []
        self._numbers = SlotNumbers()
        # Guest-physical address of a slot → its number.
        self._number_at: dict[int, int] = {}

    def begin(self) -> None:
        """Start with empty lists."""
        self._deletes, self._adds = [], []

    def region_del(self, section: MemoryRegionSection) -> None:
        """Note a section that goes."""
        if section.is_ram:
            self._deletes.append(section)

    def region_add(self, section: MemoryRegionSection) -> None:
        """Note a section that comes."""
        if section.is_ram:
            self._adds.append(section)

    def commit(self) -> None:
        """Let go of the sections."""
        self.begin()

    def abort(self) -> None:
        """Let go of the sections."""
        self.begin()

    def prepare(self) -> Update | None:
        """Plan the slots.

        Raises:
            MemorySlotError: There would be more slots than the VM can have.
        """
        table = self._memslots.table
        # Told upward by address, and the planner wants both lists ascending.
        present = [one.slot for gone in self._deletes for one in table.overlapping(gone.range)]
        wanted = [slot for section in self._adds for slot in section_slots(section, PAGE_SIZE)]
        plan = plan_slots(present, wanted, self._policy)
        if not plan.deletes and not plan.creates:
            return None
        total = len(table.slots) - len(plan.deletes) + len(plan.creates)
        if total > self._memslots.slot_count:
            raise slot_error(errno.ENOSPC, total - 1, plan.creates[-1])
        return SlotUpdate(plan, self._create, self._delete, self._present, self._slots_lock)

    def _present(self) -> list[Slot]:
        return [one.slot for one in self._memslots.table.slots]

    def _create(self, slot: Slot) -> None:
        number = self._numbers.take()
        try:
            self._memslots.create(number, slot)
        except MemorySlotError:
            self._numbers.give_back(number)
            raise
        self._number_at[slot.gpa] = number

    def _delete(self, slot: Slot) -> None:
        number = self._number_at[slot.gpa]
        self._memslots.delete(number, slot)
        del self._number_at[slot.gpa]
        self._numbers.give_back(number)

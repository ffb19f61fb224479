"""The memory listener that turns a change of the memory map into the mock's slot calls, and brings in written pages.

Sections are noted while the transaction tells them, planned by the core's `SlotPlanner` in `prepare`, and carried
out by `SlotUpdate` under the slots lock, held where a deleted range is added back or a dirty log goes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from accel.address import PAGE_SIZE, AddressRange
from accel.errors import MemorySlotError
from accel.locks import SLOTS_LOCK, Lock
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.listener import Update, UpdateInTurn
from accel.memory.slot_merge import SlotPlanner
from accel.memory.slot_plan import Policy, Slot, SlotNumbers, SlotPlan
from accel.memory.slot_update import SlotUpdate
from accel_mock.coalesced import MockCoalescedRing, MockIoListener
from accel_mock.slots import MemSlots, slot_error


class MockMemoryListener(MockIoListener):
    """Maps RAM and ROM into one VM. All state is guarded by the big lock, the slot numbers by `slots_lock` too.

    Args:
        memslots: The VM's slots.
        ring: The VM's ring of coalesced writes.
        policy: ``least`` or ``replace``; see `accel.memory.slot_plan`.
    """

    name = "mock-memory"

    def __init__(self, memslots: MemSlots, ring: MockCoalescedRing, policy: Policy) -> None:
        super().__init__(ring, is_port=False)
        self._memslots = memslots
        self._planner = SlotPlanner(
            self._within,
            lambda: len(memslots.table.slots),
            policy=policy,
            page_size=PAGE_SIZE,
            slot_count=memslots.slot_count,
        )
        self._slots_lock = Lock(SLOTS_LOCK)
        self._deletes: list[MemoryRegionSection] = []
        self._adds: list[MemoryRegionSection] = []
        # Sections that stay with another log mask.
        self._logs: list[MemoryRegionSection] = []
        self._numbers = SlotNumbers()
        # Guest-physical address of a slot → its number.
        self._number_at: dict[int, int] = {}

    # what the transaction tells

    def begin(self) -> None:
        """Start with empty lists."""
        super().begin()
        self._deletes, self._adds, self._logs = [], [], []

    def region_del(self, section: MemoryRegionSection) -> None:
        """Note a section that goes."""
        if section.is_ram:
            self._deletes.append(section)

    def region_add(self, section: MemoryRegionSection) -> None:
        """Note a section that comes."""
        if section.is_ram:
            self._adds.append(section)

    def log_start(self, section: MemoryRegionSection, old: int, new: int) -> None:
        """Note a section that stays, whether or not it logs already."""
        self._logs.append(section)

    def log_stop(self, section: MemoryRegionSection, old: int, new: int) -> None:
        """Note a section that stays, whether or not it logs on."""
        self._logs.append(section)

    def commit(self) -> None:
        """Note where the slots of a section are more than one, and let go of the sections."""
        self._planner.settle()
        self.begin()

    @property
    def figures(self) -> dict[str, float]:
        """``slots``, ``fragments`` and ``slot_calls``; see `SlotPlanner.figures`."""
        return self._planner.figures

    def abort(self) -> None:
        """Let go of the sections."""
        self.begin()

    def prepare(self) -> Update | None:
        """Plan the slots.

        Raises:
            MemorySlotError: There would be more slots than the VM can have, even with all fragments merged.
        """
        zones, plan = super().prepare(), self._plan()
        if not plan:
            return zones
        slots = SlotUpdate(
            plan,
            self._create,
            self._delete,
            self._present,
            self._slots_lock,
            toggle=self._toggle,
            collect=self._collect,
        )
        return slots if zones is None else UpdateInTurn(zones, slots)

    # dirty pages

    def log_sync(self, section: MemoryRegionSection) -> None:
        """Merge the pages of `section` that the guest wrote into its log; vCPUs may run.

        There is nothing to clear when the log is collected: the slot handed its notes out.
        """
        for one in self._memslots.table.overlapping(section.range):
            if one.slot.log is not None:
                self._collect(one.slot)

    # inside

    def _plan(self) -> SlotPlan:
        # Told upward by address, and the planner wants both lists ascending.
        plan = self._planner.plan(self._deletes, self._adds, self._logs)
        excess = self._planner.excess(plan)
        if excess > 0:
            raise slot_error(errno.ENOSPC, self._memslots.slot_count + excess - 1, plan.creates[-1])
        return plan

    def _within(self, window: AddressRange) -> Iterable[Slot]:
        return (one.slot for one in self._memslots.table.overlapping(window))

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

    def _toggle(self, old: Slot, new: Slot) -> None:
        self._memslots.toggle(self._number_at[old.gpa], new)

    def _collect(self, slot: Slot) -> None:
        assert slot.log is not None
        slot.log.merge(slot.offset, self._memslots.take_dirty(self._number_at[slot.gpa], slot), PAGE_SIZE)

"""The memory listener that turns a change of the memory map into memslot updates, and brings in written pages.

Deletes and adds are noted in two address-ordered lists while the transaction tells them, planned against the
slot table in `prepare`, and carried out by `SlotUpdate` under the slots lock, held where a deleted range is added
back or a dirty log goes. Source: QEMU commit f39b7d2b96; KVM_SET_USER_MEMORY_REGION in KVM api.rst.
"""

from __future__ import annotations

import errno

from sortedcontainers import SortedKeyList

from accel.backend import Capability
from accel.errors import CapabilityError
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.listener import PRIORITY_ACCEL, Update, UpdateInTurn
from accel.memory.slot_merge import SlotPlanner
from accel.memory.slot_plan import Policy, SlotPlan
from accel.memory.slot_update import SlotUpdate
from accel_kvm.io_listener import KvmIoListener
from accel_kvm.slots import MAX_SLOT_SIZE, KvmSlots, slot_error


class KvmMemoryListener(KvmIoListener):
    """Maps RAM and ROM into one VM, and registers what KVM answers by itself. State is guarded by the big lock.

    Args:
        vm_fd: The VM.
        policy: ``least`` or ``replace``; see `accel.memory.slot_plan`.
        page_size: Granule of a mapping, bytes.
        slot_count: Greatest number of slots (KVM_CAP_NR_MEMSLOTS). Fragments are merged rather than exceed it.
        capabilities: What the VM offers.
        any_size: As for `KvmIoListener`.

    Attributes:
        slots: The table; its changes are guarded by its own lock as well.
    """

    name = "kvm-memory"
    priority = PRIORITY_ACCEL

    def __init__(
        self,
        vm_fd: int,
        *,
        policy: Policy,
        page_size: int,
        slot_count: int,
        capabilities: frozenset[Capability],
        any_size: bool,
    ) -> None:
        super().__init__(vm_fd, is_port=False, capabilities=capabilities, any_size=any_size)
        self.slots = KvmSlots(vm_fd, page_size)
        self._planner = SlotPlanner(
            self.slots.within,
            self.slots.__len__,
            policy=policy,
            page_size=page_size,
            slot_count=slot_count,
            max_slot_size=MAX_SLOT_SIZE,
        )
        self._deletes = SortedKeyList(key=_start)
        self._adds = SortedKeyList(key=_start)
        # Sections that stay with another log mask.
        self._logs: list[MemoryRegionSection] = []

    # what the transaction tells

    def begin(self) -> None:
        """Start with empty lists."""
        super().begin()
        self._deletes.clear()
        self._adds.clear()
        self._logs.clear()

    def region_del(self, section: MemoryRegionSection) -> None:
        """Note a section that goes. O(log n)."""
        if section.is_ram:
            self._deletes.add(section)

    def region_add(self, section: MemoryRegionSection) -> None:
        """Note a section that comes. O(log n)."""
        if section.is_ram:
            self._adds.add(section)

    def log_start(self, section: MemoryRegionSection, old: int, new: int) -> None:
        """Note a section that stays, whether or not it logs already."""
        self._logs.append(section)

    def log_stop(self, section: MemoryRegionSection, old: int, new: int) -> None:
        """Note a section that stays, whether or not it logs on."""
        self._logs.append(section)

    def prepare(self) -> Update | None:
        """Plan the slots.

        Raises:
            CapabilityError: Read-only memory or a dirty log is wanted and the VM has none.
            MemorySlotError: There would be more slots than the VM can have, even with all fragments merged.
        """
        io, plan = super().prepare(), self._plan()
        if not plan:
            return io
        slots = self.slots
        update = SlotUpdate(
            plan,
            slots.create,
            slots.delete,
            lambda: slots,
            slots.lock,
            toggle=slots.toggle,
            collect=slots.collect,
        )
        return update if io is None else UpdateInTurn(io, update)

    def commit(self) -> None:
        """Note where the slots of a section are more than one, and let go of what was noted."""
        self._planner.settle()
        super().commit()

    @property
    def figures(self) -> dict[str, float]:
        """``slots``, ``fragments`` and ``slot_calls``; see `SlotPlanner.figures`. O(1)."""
        return self._planner.figures

    # dirty pages

    def log_sync(self, section: MemoryRegionSection) -> None:
        """Merge the pages of `section` that the guest wrote into its log.

        No gate is passed and no inhibit waits for this call: it is made under the big lock, which whoever inhibits
        holds, so there is no other thread's inhibit in force. It is no read of the table by a change under way for
        the same reason. vCPUs may run; the kernel hands each bit out once, so a page that is written meanwhile is in
        this log or in the next.
        """
        for slot in self.slots.within(section.range):
            if slot.log is not None:
                self.slots.collect(slot)

    def log_global_start(self) -> None:
        """Agree, if the VM has a dirty log; the sections' masks follow in a transaction. Raises CapabilityError."""
        if Capability.DIRTY_LOG not in self._capabilities:
            raise CapabilityError("this KVM keeps no log of written pages, so all memory cannot be logged")

    # inside

    def _plan(self) -> SlotPlan:
        plan = self._planner.plan(self._deletes, self._adds, self._logs)
        self._check(plan)
        return plan

    def _check(self, plan: SlotPlan) -> None:
        """Refuse what this VM cannot have."""
        for slot in (*plan.creates, *(new for _, new in plan.toggles)):
            if slot.readonly and Capability.READONLY_MEMORY not in self._capabilities:
                raise CapabilityError(
                    f"this KVM has no read-only slots, which ROM at {slot.gpa:#x} needs; use RAM there"
                )
            if slot.log is not None and Capability.DIRTY_LOG not in self._capabilities:
                raise CapabilityError(
                    f"this KVM keeps no log of written pages, which RAM at {slot.gpa:#x} needs; do not log it"
                )
        excess = self._planner.excess(plan)
        if plan.creates and excess > 0:
            last, count = plan.creates[-1], self._planner.slot_count
            advice = (
                f"the VM has {count} slots and the map needs {excess} more than that, merged where it can be; "
                "map less, or larger regions"
            )
            raise slot_error(errno.ENOSPC, count + excess - 1, last, last.size, advice)


def _start(section: MemoryRegionSection) -> int:
    return section.range.start

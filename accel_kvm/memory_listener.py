"""The memory listener that turns a change of the memory map into memslot updates.

Deletes and adds are noted in two address-ordered lists while the transaction tells them, planned against the
slot table in `prepare`, and carried out by `SlotUpdate` under the slots lock, held where a deleted range is added
back. Source: QEMU commit f39b7d2b96; KVM_SET_USER_MEMORY_REGION in KVM api.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from attrs import define
from sortedcontainers import SortedDict, SortedKeyList

from accel.address import AddressRange
from accel.errors import BackendError, CapabilityError, MemorySlotError
from accel.locks import SLOTS_LOCK, Lock
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.listener import PRIORITY_ACCEL, MemoryListener, Update
from accel.memory.slot_plan import Policy, Slot, SlotNumbers, SlotUpdate, plan_slots, section_slots
from accel_kvm import abi
from accel_kvm.ioctl import ioctl

#: Most bytes of one slot: KVM counts its pages in 31 bits.
MAX_SLOT_SIZE = ((1 << 31) - 1) * 4096


@define(eq=False)
class _Entry:
    """A slot that the kernel has, with its number."""

    number: int
    slot: Slot


class KvmMemoryListener(MemoryListener):
    """Maps RAM and ROM into one VM. All state is guarded by the big lock, the table by `slots_lock` too.

    Args:
        vm_fd: The VM.
        policy: ``least`` or ``replace``; see `accel.memory.slot_plan`.
        page_size: Granule of a mapping, bytes.
        slot_count: Greatest number of slots (KVM_CAP_NR_MEMSLOTS).
        readonly_memory: Whether the VM offers read-only slots (KVM_CAP_READONLY_MEM).
    """

    name = "kvm-memory"
    priority = PRIORITY_ACCEL

    def __init__(self, vm_fd: int, *, policy: Policy, page_size: int, slot_count: int, readonly_memory: bool) -> None:
        self._vm_fd = vm_fd
        self._policy = policy
        self._page_size = page_size
        self._slot_count = slot_count
        self._readonly_memory = readonly_memory
        self._slots_lock = Lock(SLOTS_LOCK)
        self._deletes = SortedKeyList(key=_start)
        self._adds = SortedKeyList(key=_start)
        # Guest-physical address → _Entry. O(log n) to find by address.
        self._table = SortedDict()
        self._numbers = SlotNumbers()

    # what the transaction tells

    def begin(self) -> None:
        """Start with empty lists."""
        self._deletes.clear()
        self._adds.clear()

    def region_del(self, section: MemoryRegionSection) -> None:
        """Note a section that goes. O(log n)."""
        if section.is_ram:
            self._deletes.add(section)

    def region_add(self, section: MemoryRegionSection) -> None:
        """Note a section that comes. O(log n)."""
        if section.is_ram:
            self._adds.add(section)

    def commit(self) -> None:
        """Let go of the sections."""
        self.begin()

    def abort(self) -> None:
        """Let go of the sections."""
        self.begin()

    def prepare(self) -> Update | None:
        """Plan the slots.

        Raises:
            CapabilityError: Read-only memory is wanted and the VM has none.
            MemorySlotError: There would be more slots than the VM can have.
        """
        present = [slot for section in self._deletes for slot in self._within(section.range)]
        wanted = [slot for section in self._adds for slot in section_slots(section, self._page_size, MAX_SLOT_SIZE)]
        plan = plan_slots(present, wanted, self._policy)
        if not plan.deletes and not plan.creates:
            return None
        for slot in plan.creates:
            if slot.readonly and not self._readonly_memory:
                raise CapabilityError(
                    f"this KVM has no read-only slots, which ROM at {slot.gpa:#x} needs; use RAM there"
                )
        count = len(self._table) - len(plan.deletes) + len(plan.creates)
        if count > self._slot_count:
            raise _slot_error(errno.ENOSPC, count - 1, plan.creates[-1], plan.creates[-1].size)
        return SlotUpdate(plan, self._create, self._delete, self._present, self._slots_lock)

    # slots

    def _within(self, window: AddressRange) -> Iterable[Slot]:
        for gpa in self._table.irange(window.start, window.end, inclusive=(True, False)):
            yield self._table[gpa].slot

    def _present(self) -> list[Slot]:
        return [entry.slot for entry in self._table.values()]

    def _create(self, slot: Slot) -> None:
        number = self._numbers.take()
        try:
            self._set(number, slot, slot.size)
        except MemorySlotError:
            self._numbers.give_back(number)
            raise
        self._table[slot.gpa] = _Entry(number, slot)

    def _delete(self, slot: Slot) -> None:
        entry = self._table[slot.gpa]
        self._set(entry.number, slot, 0)
        del self._table[slot.gpa]
        self._numbers.give_back(entry.number)

    def _set(self, number: int, slot: Slot, size: int) -> None:
        region = abi.KvmUserspaceMemoryRegion(number, _flags(slot), slot.gpa, size, slot.hva)
        try:
            ioctl(self._vm_fd, abi.KVM_SET_USER_MEMORY_REGION, region, "KVM_SET_USER_MEMORY_REGION")
        except BackendError as error:
            raise _slot_error(error.errno or errno.EIO, number, slot, size) from error


def _start(section: MemoryRegionSection) -> int:
    return section.range.start


def _flags(slot: Slot) -> int:
    return abi.KVM_MEM_READONLY if slot.readonly else 0


def _slot_error(number: int, index: int, slot: Slot, size: int) -> MemorySlotError:
    return MemorySlotError(
        "KVM_SET_USER_MEMORY_REGION",
        number,
        slot=index,
        gpa=slot.gpa,
        hva=slot.hva,
        size=size,
        flags=_flags(slot),
    )

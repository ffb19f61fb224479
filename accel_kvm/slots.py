"""The memory slots of a VM: a table by address, and the calls that change it.

Source: KVM_SET_USER_MEMORY_REGION in KVM api.rst. A slot cannot be resized, moved over others or made read-only in
place; whether it logs dirty pages is the one thing that a call changes while the slot stays.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from attrs import define
from sortedcontainers import SortedDict

from accel.address import AddressRange
from accel.errors import BackendError, MemorySlotError
from accel.locks import SLOTS_LOCK, Lock
from accel.memory.dirty_rings import merge_entries
from accel.memory.slot_plan import Slot, SlotNumbers
from accel_kvm import abi
from accel_kvm.dirty_log import take_dirty
from accel_kvm.dirty_ring import DirtyRingLost, KvmDirtyRings
from accel_kvm.ioctl import ioctl

#: The fields of KvmUserspaceMemoryRegion: packing them takes a third of the time that ctypes takes to fill it.
_REGION = struct.Struct("=IIQQQ")

#: Most bytes of one slot: KVM counts its pages in 31 bits.
MAX_SLOT_SIZE = ((1 << 31) - 1) * 4096

# Where KVM may have slots of its own: the local APIC's page, and what VMX without "unrestricted guest" needs (`vm.py`).
_OWN_WINDOWS = (AddressRange(0xFEE0_0000, 0xFEE0_1000), AddressRange(0xFEFF_C000, 0xFF00_0000))
#: What EEXIST is about then.
OWN_PAGES = (
    "memory may lie where this KVM keeps pages of its own: at 0xfee00000 with interrupt controllers, and on some "
    "processors from 0xfeffc000 to 0xfeffffff; leave a gap there"
)


@define(eq=False)
class _Entry:
    """A slot that the kernel has, with its number."""

    number: int
    slot: Slot


class KvmSlots:
    """The slots that the kernel has: a `SlotTable`. Guarded by the big lock, changes by `lock` too.

    Args:
        vm_fd: The VM.
        page_size: Granule of a mapping, bytes; a page of the dirty logs.
        max_slots: Greatest number of slots (KVM_CAP_NR_MEMSLOTS).
        rings: The dirty rings, if written pages are noted there.

    Attributes:
        lock: Held while a change is applied.
        max_slots: As given.
    """

    def __init__(self, vm_fd: int, page_size: int, max_slots: int, rings: KvmDirtyRings | None = None) -> None:
        self.lock = Lock(SLOTS_LOCK)
        self.max_slots = max_slots
        self._vm_fd = vm_fd
        self._page_size = page_size
        self._rings = rings
        # Guest-physical address → _Entry. O(log n) to find by address.
        self._table = SortedDict()
        # The same by number, for the entries of dirty rings.
        self._numbered: dict[int, _Entry] = {}
        self._numbers = SlotNumbers()
        # One for all calls, which the lock keeps apart.
        self._region = abi.KvmUserspaceMemoryRegion()

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Slot]:
        """Yield all slots, ascending."""
        for entry in self._table.values():
            yield entry.slot

    def within(self, window: AddressRange) -> Iterator[Slot]:
        """Yield, ascending, the slots that begin in `window`. O(log n + slots found)."""
        for gpa in self._table.irange(window.start, window.end, inclusive=(True, False)):
            yield self._table[gpa].slot

    def create(self, slot: Slot) -> None:
        """Map `slot` under the lowest free number. Raises MemorySlotError."""
        number = self._numbers.take()
        try:
            self._set(number, slot, slot.size)
        except BaseException:
            self._numbers.give_back(number)
            raise
        self._table[slot.gpa] = self._numbered[number] = _Entry(number, slot)

    def delete(self, slot: Slot) -> None:
        """Unmap `slot`; its dirty log goes too. Raises MemorySlotError."""
        entry = self._table[slot.gpa]
        self._set(entry.number, slot, 0)
        del self._table[slot.gpa], self._numbered[entry.number]
        self._numbers.give_back(entry.number)

    def toggle(self, old: Slot, new: Slot) -> None:
        """Let `old` be `new`, which differs in its log only: one call, under which guests run on.

        Raises:
            MemorySlotError: ENOMEM for want of a bitmap, as a rule; nothing has changed.
        """
        entry = self._table[old.gpa]
        self._set(entry.number, new, new.size)
        entry.slot = new

    def collect(self, slot: Slot) -> None:
        """Merge the pages that the guest wrote since the last time into the slot's log, which it must have.

        Raises:
            BackendError: The kernel did not tell; it has the bits still.
        """
        assert slot.log is not None
        if self._rings is not None:
            self.empty_rings()
            return
        number = self._table[slot.gpa].number
        try:
            bitmap = take_dirty(self._vm_fd, number, slot.size // self._page_size)
        except BackendError as error:
            raise BackendError("KVM_GET_DIRTY_LOG", error.errno or errno.EIO, f"slot {number}, {slot}") from error
        slot.log.merge(slot.offset, bitmap, self._page_size)

    def empty_rings(self) -> None:
        """Merge what is in the dirty rings, if there are any, into the logs of all slots.

        Raises:
            BackendError: A call failed, or a ring lost entries; nothing that was written is missing from the logs.
        """
        if self._rings is not None:
            merge_entries(self._rings.take(), self._slot_numbered, self._page_size)
            self._rings.reset()
            try:
                self._rings.check()
            except DirtyRingLost:
                for slot in self:
                    if slot.log is not None:
                        slot.log.mark(slot.offset, slot.size)
                raise

    def _slot_numbered(self, number: int) -> Slot | None:
        entry = self._numbered.get(number)
        return None if entry is None else entry.slot

    def full(self, slot: Slot, excess: int) -> MemorySlotError:
        """Return the error for a change that needs `excess` slots more than there can be, `slot` being its last."""
        advice = (
            f"the VM has {self.max_slots} slots and the map needs {excess} more than that, merged where it can be; "
            "map less, or larger regions"
        )
        return slot_error(errno.ENOSPC, self.max_slots + excess - 1, slot, slot.size, advice)

    def _set(self, number: int, slot: Slot, size: int) -> None:
        _REGION.pack_into(self._region, 0, number, _flags(slot), slot.gpa, size, slot.hva)
        try:
            ioctl(self._vm_fd, abi.KVM_SET_USER_MEMORY_REGION, self._region, "KVM_SET_USER_MEMORY_REGION")
        except BackendError as error:
            window = AddressRange.sized(slot.gpa, slot.size)
            is_own = error.errno == errno.EEXIST and any(window.overlaps(own) for own in _OWN_WINDOWS)
            advice = OWN_PAGES if is_own else ""
            raise slot_error(error.errno or errno.EIO, number, slot, size, advice) from error


def _flags(slot: Slot) -> int:
    logged = abi.KVM_MEM_LOG_DIRTY_PAGES if slot.log is not None else 0
    return logged | (abi.KVM_MEM_READONLY if slot.readonly else 0)


def slot_error(number: int, index: int, slot: Slot, size: int, advice: str = "") -> MemorySlotError:
    """Return the error of a slot call: errno `number` for slot `index`, made `size` bytes large."""
    return MemorySlotError(
        "KVM_SET_USER_MEMORY_REGION",
        number,
        slot=index,
        gpa=slot.gpa,
        hva=slot.hva,
        size=size,
        flags=_flags(slot),
        advice=advice,
    )

"""The memory side: what is mapped, and the listener that keeps it so by hv_vm_map, hv_vm_unmap and hv_vm_protect.

Layer: above `api`. The core's `SlotListener` notes, plans and carries out; its slots are mappings here. Source: Apple's
documentation "Memory management" (Hypervisor).

- *Pages of 16 KiB.* Where another region covers a part of such a page, the page is not mapped: accesses there come out
  and are served from the view. A region that ends inside a page of its own accord, or whose memory lies at another
  place in its pages than the guest would see it, is refused: there is nothing that could map it right, and a guest that
  runs code there would only crash.
- *Read-only* is a flag of the mapping. A slot that stays and becomes read-only or writable is protected in place, which
  takes no address away.
- *Dirty logs* are not offered. They can be made of hv_vm_protect and the exits of guests that write to what is
  protected, so they need vCPUs that run.
- *How many mappings* there can be is not documented, so there is no limit but the address space.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from sortedcontainers import SortedDict

from accel.address import AddressRange, format_size
from accel.errors import MemorySlotError, RegionError
from accel.locks import SLOTS_LOCK, Lock
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.slot_listener import SlotListener, SlotRules
from accel.memory.slot_plan import Policy, Slot
from accel_hvf_stub.api import HvfApi, HvMemory, HvReturn
from accel_hvf_stub.errors import slot_error
from accel_hvf_stub.limits import IPA_BITS, IPA_END, PAGE_SIZE


class HvfSlots:
    """The mappings of a VM: a `SlotTable`. Guarded by the big lock, changes by `lock` too.

    Args:
        api: What maps.
        sources: Where to note what is at each host address that is mapped, a region's block and the offset in it, for
            people, who cannot read host addresses. It grows until it is emptied.

    Attributes:
        lock: Held while a change is applied.
        max_slots: As many as there are pages.
    """

    max_slots = IPA_END // PAGE_SIZE

    def __init__(self, api: HvfApi, sources: dict[int, str] | None = None) -> None:
        self.lock = Lock(SLOTS_LOCK)
        self._api = api
        self._sources = sources
        # Guest-physical address → Slot. O(log n) to find by address.
        self._table = SortedDict()

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Slot]:
        """Yield all, ascending."""
        return iter(self._table.values())

    def within(self, window: AddressRange) -> Iterator[Slot]:
        """Yield, ascending, those that begin in `window`. O(log n + found)."""
        for gpa in self._table.irange(window.start, window.end, inclusive=(True, False)):
            yield self._table[gpa]

    def create(self, slot: Slot) -> None:
        """Map `slot` (hv_vm_map). Raises MemorySlotError."""
        flags = _flags(slot)
        if self._sources is not None:
            self._sources[slot.hva] = f"{slot.block.name}+{slot.offset:#x}"
        self._check(self._api.hv_vm_map(slot.hva, slot.gpa, slot.size, flags), "hv_vm_map", slot, flags)
        self._table[slot.gpa] = slot

    def delete(self, slot: Slot) -> None:
        """Unmap `slot` (hv_vm_unmap). Raises MemorySlotError."""
        self._check(self._api.hv_vm_unmap(slot.gpa, slot.size), "hv_vm_unmap", slot, 0)
        del self._table[slot.gpa]

    def toggle(self, old: Slot, new: Slot) -> None:
        """Let `old` be `new`, which differs in what the guest may do (hv_vm_protect). Raises MemorySlotError."""
        flags = _flags(new)
        self._check(self._api.hv_vm_protect(new.gpa, new.size, flags), "hv_vm_protect", new, flags)
        self._table[new.gpa] = new

    def collect(self, slot: Slot) -> None:
        """Do nothing: no slot logs here."""

    def full(self, slot: Slot, excess: int) -> MemorySlotError:
        """Return the error for `excess` mappings more than there are pages."""
        index = self.max_slots + excess - 1
        return slot_error(HvReturn.HV_NO_RESOURCES, "hv_vm_map", index, slot, _flags(slot))

    def _check(self, code: int, function: str, slot: Slot, flags: int) -> None:
        if code != HvReturn.HV_SUCCESS:
            # It has no number; its place among the others tells which one it is.
            raise slot_error(code, function, self._table.bisect_left(slot.gpa), slot, flags)


def _flags(slot: Slot) -> int:
    return HvMemory.READ | HvMemory.EXEC | (HvMemory(0) if slot.readonly else HvMemory.WRITE)


class HvfMemoryListener(SlotListener):
    """Maps RAM and ROM into the VM. State is guarded by the big lock.

    Args:
        api: What maps.
        policy: ``least`` or ``replace``; see `accel.memory.slot_plan`.
        sources: As for `HvfSlots`.
    """

    name = "hvf-memory"

    def __init__(self, api: HvfApi, policy: Policy, sources: dict[int, str] | None = None) -> None:
        rules = SlotRules(
            owner="Hypervisor.framework",
            page_size=PAGE_SIZE,
            host_page_size=min(mmap.PAGESIZE, PAGE_SIZE),
            protects=True,
            dirty_log=False,
        )
        super().__init__(HvfSlots(api, sources), rules, policy)

    def region_add(self, section: MemoryRegionSection) -> None:
        """Note a section that comes. Raises RegionError if it cannot be mapped in pages of 16 KiB."""
        if section.is_ram:
            _check_pages(section)
        super().region_add(section)


def _check_pages(section: MemoryRegionSection) -> None:
    """Refuse a section that lies wrong in its pages, other than where something else covers a part of one."""
    region, window, offset = section.region, section.range, section.offset
    granule = format_size(PAGE_SIZE)
    if (window.start - offset) % PAGE_SIZE:
        raise RegionError(
            region.name,
            f"shows its offset {offset:#x} at address {window.start:#x}, and Hypervisor.framework maps memory in pages "
            f"of {granule}, in which both must lie alike; let them differ by a multiple of {granule}",
        )
    if offset + window.size == region.size and window.end % PAGE_SIZE:
        raise RegionError(
            region.name,
            f"at {window} ends inside a page, and Hypervisor.framework maps memory in pages of {granule}; "
            f"give it a size that is a multiple of {granule}",
        )
    if window.end > IPA_END:
        raise RegionError(
            region.name,
            f"at {window} ends above {format_size(IPA_END)}, where the {IPA_BITS} address bits of a VM of "
            "Hypervisor.framework end; place it lower",
        )

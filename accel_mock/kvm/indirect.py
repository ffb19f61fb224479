"""An indirect shadow page: entries that follow a page table of the guest, not the guest's own memory one to one.

Layer: above `mmu`. Without paging hardware for guests (EPT, NPT) KVM shadows the guest's page tables. An entry goes
from a guest-virtual page to the host's page behind the guest page that the guest's table names, and so may be for
another guest page a moment later. KVM sees each write to a table that it shadows, and zaps the entry.

The guests that the mock runs have no page tables; this is for exploring what the fast path of page faults may do to
such an entry. Its vCPUs are out of the guest while they are in here, so no flush waits for them, and they have no TLB.

Source: the kernel's locking page, "Exception", fast page fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from accel_mock.kvm.atomic import atomically
from accel_mock.kvm.mmu import ShadowMmu
from accel_mock.kvm.spte import Spte

if TYPE_CHECKING:
    from accel_mock.kvm.memslots import MemSlots
    from accel_mock.kvm.slot_map import MemSlot

_PAGE_SHIFT = 12


class IndirectPage:
    """A guest's page table and the shadow page for it.

    Args:
        memslots: What the guest has.
        gptes: What the guest has written: the guest page of each virtual page.

    Attributes:
        gptes: As given; changed by `write_gpte`.
    """

    def __init__(self, memslots: MemSlots, gptes: Mapping[int, int]) -> None:
        self.gptes = dict(gptes)
        self._memslots = memslots
        self._mmu: ShadowMmu = memslots.mmu
        self._entries = {virtual: Spte(gfn, 0) for virtual, gfn in gptes.items()}

    # the guest

    def write_gpte(self, virtual: int, gfn: int) -> None:
        """Have a virtual page be another guest page; as KVM makes that write for the guest."""
        with self._mmu.lock:
            self.gptes[virtual] = gfn
            self._mmu.drop(self._entries[virtual])

    def access(self, virtual: int, *, write: bool) -> int | None:
        """Return the guest page that an access uses; None after a page fault, for it to be tried again."""
        found = self._walk(virtual, write=write)
        if found is None:
            self.fault(virtual, write=write)
        return found

    @atomically
    def _walk(self, virtual: int, *, write: bool) -> int | None:
        """Be walked by a processor for an access, which is the same step."""
        spte = self._entries[virtual]
        gfn = spte.gfn
        return gfn if spte.walk(write=write) else None

    def stale(self) -> list[int]:
        """Return the virtual pages whose entry is for another guest page than the table says; while all rest."""
        return [one for one, spte in self._entries.items() if spte.word and spte.gfn != self.gptes[one]]

    # KVM

    def fault(self, virtual: int, *, write: bool) -> None:
        """Handle a page fault; nothing comes of it where no memory is, or where something changes meanwhile."""
        # The guest's table is walked once, and what it said may be old by the time it is used.
        gfn = self.gptes[virtual]
        with self._memslots.srcu.read():
            slot = self._memslots.table.find(gfn << _PAGE_SHIFT)
            if slot is not None and not slot.invalid and not (write and slot.slot.readonly):
                self._fix(slot, gfn, virtual, write=write)

    def _fix(self, slot: MemSlot, gfn: int, virtual: int, *, write: bool) -> None:
        mmu, spte = self._mmu, self._entries[virtual]
        address = (slot.slot.hva - slot.slot.gpa >> _PAGE_SHIFT) + gfn

        def written() -> None:
            mmu.mark_dirty(slot, gfn)

        if mmu.fast.fix_indirect(spte, mmu.host, address, write=write, written=written):
            return
        sequence = self._memslots.notifiers.sequence
        host_page = mmu.host.fault_in(address, write=write)
        with mmu.lock:
            if self._memslots.notifiers.retry(sequence, address << _PAGE_SHIFT) or self.gptes[virtual] != gfn:
                return
            mmu.drop(spte)
            spte.gfn, spte.address = gfn, address
            spte.word = mmu.new_word(slot, gfn, host_page, write=write)
            mmu.rmap.add(spte)
            if write:
                written()

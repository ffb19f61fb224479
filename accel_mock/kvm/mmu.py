"""The shadow MMU: how an access of the guest finds its byte: TLB, entry of the shadow page table, memslot, host page.

A vCPU's TLB is its own (`accel_mock.vcpu`). What is not in it is a page fault here. An entry that is there and allows
the access is walked; one that is only write-protected may be made writable without the MMU lock, by compare-and-
exchange (the fast path); otherwise the memslot is looked up, the host's page, and an entry is made under the lock.

Each shadow page holds the entries of 2 MiB of guest memory. It has the generation in which it was made, so that all of
them can be made obsolete by one number (`accel_mock.kvm.zap`). The reverse map finds entries by the host's page.

Sources: the kernel's locking page ("Exception"), and "KVM: x86/mmu: Reintroduce fast invalidate/zap for flushing
memslot".
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from accel.address import PAGE_SIZE
from accel.locks import Lock
from accel_mock.kvm.lock_classes import MMU
from accel_mock.kvm.running import Running
from accel_mock.kvm.spte import HOST_WRITABLE, MMU_WRITABLE, PRESENT, WRITABLE, Spte, pfn_of, spte_word
from accel_mock.kvm.zap import FastInvalidate, ShadowPage, ZapStrategy

if TYPE_CHECKING:
    from accel_mock.kvm.memslots import MemSlots
    from accel_mock.kvm.slot_map import MemSlot

_PAGE_SHIFT = 12
#: Entries of a shadow page, and their number as a shift.
_ENTRIES = 512
_ENTRIES_SHIFT = 9
_FAST = HOST_WRITABLE | MMU_WRITABLE


class Fault(enum.Enum):
    """What comes of a page fault that found no byte."""

    MMIO = "mmio"
    """No memory is there for such an access: the vCPU exits."""
    RETRY = "retry"
    """Something changed meanwhile, or is about to: the vCPU tries again."""


#: A byte of guest memory: the slot's bytes, and the index in them.
Place = tuple[memoryview, int]


class ShadowMmu:
    """The shadow page table of one VM, for all of its vCPUs: guest-physical addresses to host pages.

    Args:
        memslots: What is mapped.
        running: The vCPUs, whose TLBs are flushed.
        strategy: How entries of a memslot that goes are zapped.

    Attributes:
        lock: The MMU lock.
        pages: The shadow pages by the guest page of their first entry, shifted. Changed under `lock`.
        generation: That of shadow pages made now; older ones are obsolete.
        waiting: Who wants the lock, so that a long holder can give way.
    """

    def __init__(self, memslots: MemSlots, running: Running, strategy: ZapStrategy | None = None) -> None:
        self.lock = Lock(MMU)
        self.pages: dict[int, ShadowPage] = {}
        self.generation = 0
        self.waiting = 0
        self.strategy = FastInvalidate() if strategy is None else strategy
        self._memslots = memslots
        self._running = running

    # page faults, on vCPU threads

    def fault(self, address: int, *, write: bool) -> Place | Fault:
        """Return where the byte at `address` lies, good up to the end of its page, or what to do instead."""
        gfn = address >> _PAGE_SHIFT
        memslots = self._memslots
        with memslots.srcu.read():
            slot = memslots.table.find(address)
            if slot is None or (write and slot.slot.readonly):
                return Fault.MMIO
            if slot.invalid:
                return Fault.RETRY
            spte = self._entry(gfn)
            if spte is None or not spte.walk(write=write):
                if spte is None or not (write and self._fast(spte, slot, gfn)):
                    if not self._make(slot, gfn, write=write):
                        return Fault.RETRY
                elif not spte.walk(write=True):
                    return Fault.RETRY
            return slot.bytes, address - slot.slot.gpa

    def _entry(self, gfn: int) -> Spte | None:
        page = self.pages.get(gfn >> _ENTRIES_SHIFT)
        if page is None or page.generation != self.generation:
            return None
        return page.entries.get(gfn)

    def _fast(self, spte: Spte, slot: MemSlot, gfn: int) -> bool:
        """Make an entry writable that is write-protected only for the log; return whether that was all."""
        old = spte.word
        if not old & PRESENT or old & _FAST != _FAST:
            return False
        if old & WRITABLE:
            return True
        if not spte.compare_exchange(old, old | WRITABLE):
            return False
        # The shadow page maps guest pages directly, so this entry is of this guest page whatever happened meanwhile.
        self._mark_dirty(slot, gfn)
        return True

    def _make(self, slot: MemSlot, gfn: int, *, write: bool) -> bool:
        """Make the entry of a guest page; return False if the host's page is on its way out."""
        hva = slot.slot.hva + (gfn << _PAGE_SHIFT) - slot.slot.gpa
        sequence = self._memslots.notifiers.sequence
        bits = PRESENT | HOST_WRITABLE
        if not slot.slot.readonly:
            bits |= MMU_WRITABLE
            if write or slot.log is None:
                bits |= WRITABLE
        self.waiting += 1
        with self.lock:
            self.waiting -= 1
            if self._memslots.notifiers.retry(sequence, hva):
                return False
            page = self.pages.get(gfn >> _ENTRIES_SHIFT)
            if page is None or page.generation != self.generation:
                page = self.pages[gfn >> _ENTRIES_SHIFT] = ShadowPage(self.generation)
            page.entries[gfn] = Spte(spte_word(hva >> _PAGE_SHIFT, bits))
            if write:
                self._mark_dirty(slot, gfn)
        return True

    def _mark_dirty(self, slot: MemSlot, gfn: int) -> None:
        if slot.log is not None:
            slot.log.note((gfn << _PAGE_SHIFT) - slot.slot.gpa)

    # changes, on the threads of slot calls

    def zap(self, slot: MemSlot) -> None:
        """Let no entry lead to `slot`, which is invalid already, so that none is made anew; TLBs are the caller's."""
        self.strategy.zap(self, slot)

    def zap_all(self) -> None:
        """Let no entry lead anywhere."""
        with self.lock:
            self.pages.clear()

    def write_protect(self, slot: MemSlot, dirty: bytearray | None = None) -> None:
        """Let the next write to each page of `slot` be a fault, or to those in a bitmap; TLBs are the caller's."""
        first = slot.slot.gpa >> _PAGE_SHIFT
        with self.lock:
            for page in self.pages.values():
                for gfn, spte in page.entries.items():
                    index = gfn - first
                    if 0 <= index < slot.slot.size // PAGE_SIZE and (
                        dirty is None or dirty[index >> 3] >> (index & 7) & 1
                    ):
                        while not spte.compare_exchange(word := spte.word, word & ~WRITABLE):
                            pass

    def unmap_host(self, start: int, end: int) -> None:
        """Zap the entries of host addresses [start, end) and flush TLBs; for notifiers."""
        first, last = start >> _PAGE_SHIFT, -(-end // PAGE_SIZE)
        with self.lock:
            for page in self.pages.values():
                for gfn in [gfn for gfn, spte in page.entries.items() if first <= pfn_of(spte.word) < last]:
                    page.entries.pop(gfn).exchange(0)
        self._running.flush()

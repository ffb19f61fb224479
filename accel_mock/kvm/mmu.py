"""The shadow MMU: how an access of the guest finds its byte: TLB, entry of the shadow page table, memslot, host page.

A vCPU's TLB is its own (`accel_mock.vcpu`). What is not in it, the processor walks the shadow page table for, and looks
at nothing else: an entry that is there and allows the access is used, whatever became of the memslot. Otherwise there
is a page fault. The memslot is looked up; an entry that only lacks a bit is repaired without the MMU lock
(`accel_mock.kvm.fast_fault`); or else the host's page is looked up and an entry is made under the lock. Then the vCPU
goes back to the guest and walks again. Meanwhile it was outside, where no flush of TLBs waits for it: what a fault has
found may be gone by then.

Each shadow page holds the entries of 2 MiB of guest memory. It has the generation in which it was made, so that all of
them can be made obsolete by one number (`accel_mock.kvm.zap`). The reverse map finds entries by the guest page
(`accel_mock.kvm.rmap`). These pages are direct: what an entry is for never changes; `accel_mock.kvm.indirect` has
others.

An entry may change at any time, by processors and by the fast path, so it is zapped by one exchange, and what was in it
then is reported to the host. Where an update takes W away, its caller flushes TLBs, which may have it still.

Sources: the kernel's locking page ("Exception"), and "KVM: x86/mmu: Reintroduce fast invalidate/zap for flushing
memslot".
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from accel.address import PAGE_SIZE
from accel.locks import Lock
from accel_mock.kvm.atomic import atomically
from accel_mock.kvm.dirty_ring import DirtyRing
from accel_mock.kvm.fast_fault import FastPath
from accel_mock.kvm.host_pages import HostPages
from accel_mock.kvm.lock_classes import MMU
from accel_mock.kvm.rmap import ReverseMap
from accel_mock.kvm.running import Running
from accel_mock.kvm.spte import (
    ACCESSED,
    DIRTY,
    HOST_WRITABLE,
    MMU_WRITABLE,
    NO_AD,
    PRESENT,
    WRITABLE,
    Place,
    Spte,
    pfn_of,
    spte_word,
    tracked,
    was_accessed,
    was_written,
)
from accel_mock.kvm.zap import FastInvalidate, ShadowPage, ZapStrategy

if TYPE_CHECKING:
    from accel_mock.kvm.memslots import MemSlots
    from accel_mock.kvm.slot_map import MemSlot

_PAGE_SHIFT = 12
_BOTH = HOST_WRITABLE | MMU_WRITABLE
#: Entries of a shadow page are 512: this is their number as a shift.
_ENTRIES_SHIFT = 9


class Fault(enum.Enum):
    """What comes of a page fault."""

    MMIO = "mmio"
    """KVM's emulator makes the access: no memory is there for it, or KVM has to see each write."""
    RETRY = "retry"
    """Something changed meanwhile, or is about to: the vCPU tries again."""
    FIXED = "fixed"
    """The entry allowed the access when it was looked at or made; by the time the vCPU walks, it may not any more."""


class ShadowMmu:
    """The shadow page table of one VM, for all of its vCPUs: guest-physical addresses to host pages.

    Args:
        memslots: What is mapped.
        running: The vCPUs, whose TLBs are flushed.
        strategy: How entries of a memslot that goes are zapped.
        fast: The fast path.
        no_ad: Whether processors set neither Accessed nor Dirty, so that accesses are watched for by faults.

    Attributes:
        lock: The MMU lock.
        pages: The shadow pages, by generation and the guest page of their first entry, shifted. Changed under `lock`.
        rmap: The reverse map.
        generation: That of shadow pages made now; older ones are obsolete.
        waiting: Who wants the lock, so that a long holder can give way.
        strategy: As given; replaced only while nothing runs.
        fast: As given; the same.
        host: The host's pages.
        no_ad: As given; replaced only while nothing runs.
        watched: Guest pages of which KVM has to see each write, since they are page tables that it shadows.
    """

    def __init__(
        self,
        memslots: MemSlots,
        running: Running,
        strategy: ZapStrategy | None = None,
        fast: FastPath | None = None,
        *,
        no_ad: bool = False,
    ) -> None:
        self.lock = Lock(MMU)
        self.pages: dict[tuple[int, int], ShadowPage] = {}
        self.rmap = ReverseMap()
        self.generation = 0
        self.waiting = 0
        self.strategy = FastInvalidate() if strategy is None else strategy
        self.fast = FastPath() if fast is None else fast
        self.host = HostPages()
        self.watched: set[int] = set()
        self.no_ad = no_ad
        self._memslots = memslots
        self._running = running

    # on vCPU threads

    def walk(self, address: int, *, write: bool) -> Place | None:
        """Return where the byte at `address` lies, good up to the end of its page; None is a page fault.

        As a processor does: it looks at no memslot, and sets Accessed and Dirty.
        """
        spte = self.entry(address >> _PAGE_SHIFT)
        if spte is None or not spte.walk(write=write) or spte.page is None:
            return None
        data, offset = spte.page
        return data, offset + address % PAGE_SIZE

    def fault(self, address: int, *, write: bool, ring: DirtyRing | None = None) -> Fault:
        """Handle a page fault of an access to `address`; return what the vCPU does next.

        A page that is written is noted in `ring`, the vCPU's, if there is one.
        """
        gfn = address >> _PAGE_SHIFT
        memslots = self._memslots
        with memslots.srcu.read():
            slot = memslots.table.find(address)
            if slot is None or (write and (slot.slot.readonly or gfn in self.watched)):
                return Fault.MMIO
            if slot.invalid:
                return Fault.RETRY
            spte = self.entry(gfn)
            if spte is not None and self._fix(spte, slot, ring, write=write):
                return Fault.FIXED
            return self._make(slot, gfn, ring, write=write)

    def entry(self, gfn: int) -> Spte | None:
        """Return the entry of a guest page, if there is one that is not obsolete."""
        page = self.pages.get((self.generation, gfn >> _ENTRIES_SHIFT))
        return None if page is None else page.entries.get(gfn)

    def _fix(self, spte: Spte, slot: MemSlot, ring: DirtyRing | None, *, write: bool) -> bool:
        return self.fast.fix(spte, write=write, written=lambda: self.mark_dirty(slot, spte.gfn, ring))

    def _make(self, slot: MemSlot, gfn: int, ring: DirtyRing | None, *, write: bool) -> Fault:
        """Make the entry of a guest page, unless the host's page is on its way out, or KVM watches now."""
        hva = slot.slot.hva + (gfn << _PAGE_SHIFT) - slot.slot.gpa
        sequence = self._memslots.notifiers.sequence
        host_page = self.host.fault_in(hva >> _PAGE_SHIFT, write=write)
        self._want(1)
        with self.lock:
            self._want(-1)
            word = self.new_word(slot, gfn, host_page, write=write)
            if self._memslots.notifiers.retry(sequence, hva) or (write and not word & WRITABLE):
                return Fault.RETRY
            key = self.generation, gfn >> _ENTRIES_SHIFT
            page = self.pages.get(key)
            if page is None:
                page = self.pages[key] = ShadowPage(self.generation)
            before = page.entries.get(gfn)
            if before is not None:
                self.drop(before)
            page.entries[gfn] = made = Spte(gfn, hva >> _PAGE_SHIFT, word, (slot.bytes, hva - slot.slot.hva))
            self.rmap.add(made)
            if write:
                self.mark_dirty(slot, gfn, ring)
        return Fault.FIXED

    @atomically
    def _want(self, by: int) -> None:
        self.waiting += by

    def new_word(self, slot: MemSlot, gfn: int, host_page: tuple[int, bool], *, write: bool) -> int:
        """Return an entry for a guest page, after an access, as the slot, the host and the log allow it.

        `host_page` is what `HostPages.fault_in` said. Under the MMU lock.
        """
        pfn, host_writable = host_page
        bits = PRESENT | (NO_AD if self.no_ad else ACCESSED | (DIRTY if write else 0))
        if not slot.slot.readonly:
            bits |= HOST_WRITABLE if host_writable else 0
            bits |= MMU_WRITABLE if gfn not in self.watched else 0
        if bits & _BOTH == _BOTH and (write or slot.log is None):
            bits |= WRITABLE
        return spte_word(pfn, bits)

    def mark_dirty(self, slot: MemSlot, gfn: int, ring: DirtyRing | None = None) -> None:
        """Note a guest page as written, if its slot logs: in the ring of the vCPU that writes, or in the slot's log."""
        if slot.log is None:
            return
        offset = (gfn << _PAGE_SHIFT) - slot.slot.gpa
        if ring is None:
            slot.log.note(offset)
        else:
            ring.push(slot.number, offset >> _PAGE_SHIFT)

    # changes; each takes the MMU lock or is for who has it

    def zap(self, slot: MemSlot) -> None:
        """Let no entry lead to `slot`, which is invalid already, so that none is made anew; TLBs are the caller's."""
        self.strategy.zap(self, slot)

    def zap_all(self) -> None:
        """Let no entry lead anywhere."""
        with self.lock:
            for key in list(self.pages):
                self.drop_page(key)

    def drop_page(self, key: tuple[int, int]) -> int:
        """Zap a shadow page, one of the keys of `pages`; return how many entries it had; under the MMU lock."""
        page = self.pages.pop(key)
        for spte in page.entries.values():
            self.drop(spte)
        return len(page.entries)

    def drop(self, spte: Spte) -> None:
        """Zap one entry and tell the host what became of its page; under the MMU lock."""
        self.rmap.remove(spte)
        self.report(self.clear(spte))

    def drop_slot(self, slot: MemSlot) -> int:
        """Zap the entries of a slot, and let go of its bytes; return how many they were; under the MMU lock."""
        first, last = slot.slot.gpa >> _PAGE_SHIFT, slot.slot.range.end >> _PAGE_SHIFT
        zapped = 0
        pages = range(first >> _ENTRIES_SHIFT, (last - 1 >> _ENTRIES_SHIFT) + 1)
        for key in [key for key in self.pages if key[1] in pages]:
            entries = self.pages[key].entries
            for gfn in [gfn for gfn in entries if first <= gfn < last]:
                spte = entries.pop(gfn)
                zapped += spte.word != 0
                self.drop(spte)
            if not entries:
                del self.pages[key]
        return zapped

    def clear(self, spte: Spte) -> int:
        """Zap an entry; return what it was. Another processor may set its bits, or the fast path, up to that moment."""
        return spte.exchange(0)

    def report(self, word: int) -> None:
        """Tell the host how the page of an entry was used, which holds that no more."""
        accessed, dirty = was_accessed(word), was_written(word)
        if accessed or dirty:
            self.host.report(pfn_of(word), accessed=accessed, dirty=dirty)

    def write_protect(self, slot: MemSlot, dirty: bytearray | None = None) -> None:
        """Let the next write to each page of `slot` be a fault, or to those in a bitmap; TLBs are the caller's."""
        first = slot.slot.gpa >> _PAGE_SHIFT
        with self.lock:
            for spte in self.entries_of(slot):
                index = spte.gfn - first
                if dirty is None or dirty[index >> 3] >> (index & 7) & 1:
                    self.take_write(spte)

    def take_write(self, spte: Spte, bits: int = WRITABLE) -> None:
        """Take W from an entry, or more; under the MMU lock."""
        while not spte.compare_exchange(word := spte.word, word & ~bits):
            pass

    def watch(self, gfn: int) -> None:
        """Have KVM see each write to a guest page from now on, since it is a page table that KVM shadows."""
        with self.lock:
            self.watched.add(gfn)
            for spte in self.rmap.of_guest(gfn, gfn + 1):
                self.take_write(spte, WRITABLE | MMU_WRITABLE)
        self._running.flush()

    def entries_of(self, slot: MemSlot) -> list[Spte]:
        """Return the entries of a slot's guest pages; under the MMU lock."""
        return self.rmap.of_guest(slot.slot.gpa >> _PAGE_SHIFT, slot.slot.range.end >> _PAGE_SHIFT)

    def unmap_host(self, start: int, end: int) -> None:
        """Zap the entries of host addresses [start, end) and flush TLBs; for notifiers."""
        with self.lock:
            for spte in self.rmap.of_host(start >> _PAGE_SHIFT, -(-end // PAGE_SIZE)):
                self.drop(spte)
        self._running.flush()

    def age_host(self, start: int, end: int) -> bool:
        """Return whether the guest used host addresses [start, end) since this was asked; flush TLBs; for notifiers."""
        with self.lock:
            aged = [self.age(spte) for spte in self.rmap.of_host(start >> _PAGE_SHIFT, -(-end // PAGE_SIZE))]
        self._running.flush()
        return any(aged)

    def age(self, spte: Spte) -> bool:
        """Return whether an entry's page was used, and watch for the next time; under the MMU lock."""
        while was_accessed(word := spte.word):
            if spte.compare_exchange(word, tracked(word) if word & NO_AD else word & ~ACCESSED):
                if word & NO_AD and was_written(word):
                    # W goes with the rest, and was all that told of a write.
                    self.host.report(pfn_of(word), accessed=False, dirty=True)
                return True
        return False

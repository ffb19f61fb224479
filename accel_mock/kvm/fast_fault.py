"""The fast path of a page fault: an entry that only lacks W, or R and X, is repaired without the MMU lock.

Source: the kernel's locking page, "Exception", fast page fault. Two cases: an entry that is watched for accesses gets
R and X back; for a write, one that is write-protected gets W, provided that the host maps the page writable
(`HOST_WRITABLE`) and KVM does not watch the page for itself (`MMU_WRITABLE`). Who gives W notes the page as written.

The entry is changed by compare-and-exchange, so whatever anybody did to it in between is noticed. But the word being
the same does not say that it means the same guest page: an indirect shadow page's entry may have been zapped, and made
again for another guest page that has the same host page by now (ABA), and then the wrong page is noted as written.
Hence `FastPath` is for direct shadow pages, whose entries are of one guest page for good. `PinnedPath` is the cure that
the source gives: while the host page is pinned it belongs to no other guest page.
"""

from __future__ import annotations

from collections.abc import Callable

from accel_mock.kvm.host_pages import HostPages
from accel_mock.kvm.spte import (
    HOST_WRITABLE,
    MMU_WRITABLE,
    PRESENT,
    WRITABLE,
    Spte,
    is_tracked,
    pfn_of,
    restored,
)


class FastPath:
    """The fast path as it is. Scenarios replace parts of it by mistakes.

    Attributes:
        for_indirect: Whether it is tried for entries of indirect shadow pages.
        needs: The bits without which no entry is made writable.
    """

    for_indirect = False
    needs = HOST_WRITABLE | MMU_WRITABLE

    def fix(self, spte: Spte, *, write: bool, written: Callable[[], None], page: int | None = None) -> bool:
        """Repair an entry; return whether the access is allowed now. No lock is needed.

        Args:
            spte: The entry.
            write: What the access is.
            written: Notes the guest page as written; called if the entry was made writable.
            page: The only host page that it may lead to, if that matters.
        """
        old = spte.word
        new = self.repaired(old, write=write)
        if not new & PRESENT or (write and not new & WRITABLE) or (page is not None and pfn_of(old) != page):
            return False
        if new == old:
            return True
        if not self.put(spte, old, new):
            return False
        if new & ~old & WRITABLE:
            written()
        return True

    def repaired(self, old: int, *, write: bool) -> int:
        """Return what an entry should be after an access, as far as this path may go."""
        new = restored(old) if is_tracked(old) else old
        if write and new & PRESENT and new & self.needs == self.needs:
            new |= WRITABLE
        return new

    def put(self, spte: Spte, old: int, new: int) -> bool:
        """Write `new` if the entry is still `old`; return whether it was."""
        return spte.compare_exchange(old, new)

    def fix_indirect(
        self, spte: Spte, host: HostPages, address: int, *, write: bool, written: Callable[[], None]
    ) -> bool:
        """Do the same for an entry of an indirect shadow page, if that may be; `address` is the host's, in pages."""
        return self.for_indirect and self.fix(spte, write=write, written=written)


class PinnedPath(FastPath):
    """The fast path for indirect shadow pages too, which pins the host page of the guest page meanwhile."""

    for_indirect = True

    def fix_indirect(
        self, spte: Spte, host: HostPages, address: int, *, write: bool, written: Callable[[], None]
    ) -> bool:
        """See `FastPath.fix_indirect`."""
        page = host.pin(address)
        if page is None:
            return False
        try:
            return self.fix(spte, write=write, written=written, page=page)
        finally:
            host.unpin(page)

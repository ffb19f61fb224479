"""Dirty rings: written pages as entries of a ring for each vCPU, instead of a bitmap for each slot.

Owns what is the same for every accelerator that has them: whose log an entry belongs to. Layer: above `slot_plan`,
below `slot_listener`; knows no accelerator. Source: KVM_CAP_DIRTY_LOG_RING in KVM api.rst.

**The order that loses nothing.** Entries are taken out of the rings and merged into the logs of their slots; then the
accelerator is told that they were taken (it notes the next write to those pages anew); and only then does anybody read
the pages. A page that is read before that may be written afterwards with nobody noting it.

**Who is out.** A processor may keep noted pages to itself until its vCPU leaves the guest, so all are out while rings
are emptied for a log: `MemoryListener.log_sync_needs_hold`. Rings that are emptied because one is full need not be
complete, so nobody is held then.

**When it is full.** A vCPU whose ring has nearly no place left comes out with ``ExitKind.DIRTY_RING_FULL``, again and
again until they were emptied (`VmBackend.empty_dirty_rings`). The place that is left is for the pages which one
instruction writes, and for those that the processor still keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from accel.address import PAGE_SIZE
from accel.memory.slot_plan import Slot


def merge_entries(
    entries: Iterable[tuple[int, int]], find: Callable[[int], Slot | None], page_size: int = PAGE_SIZE
) -> None:
    """Mark the pages that ring entries name in the logs of their slots. O(n log n).

    An entry whose slot is gone, logs no more or is not that long any more means nothing: what was written to a slot
    that logs is collected before it goes.

    Args:
        entries: Slot number, and the page in that slot; in any order, and as often as it was written.
        find: Returns the slot that has a number now.
        page_size: Bytes per page.
    """
    pages: dict[int, set[int]] = {}
    for number, page in entries:
        pages.setdefault(number, set()).add(page)
    for number, written in pages.items():
        slot = find(number)
        if slot is not None and slot.log is not None:
            count = slot.size // page_size
            for first, end in _turns(sorted(page for page in written if page < count)):
                slot.log.mark(slot.offset + first * page_size, (end - first) * page_size)


def _turns(pages: list[int]) -> Iterable[tuple[int, int]]:
    """Yield the pages, ascending and each once, as ranges that do not touch."""
    first = 0
    for index in range(1, len(pages) + 1):
        if index == len(pages) or pages[index] != pages[index - 1] + 1:
            yield pages[first], pages[index - 1] + 1
            first = index

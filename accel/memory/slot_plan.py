"""Planning for accelerators that map RAM in slots: pure functions from sections and slots to steps.

Whole pages only: a section is trimmed inward to the page size, and split at multiples of the largest slot size, so
that growth at either end leaves the borders of the other slots where they are. The part of a section that cannot
be mapped (less than a page, or host memory that is not page aligned against the guest) gets no slot; accesses
there exit and are served from the view.

Two policies. ``replace`` deletes the slots of each section that goes and creates those of each that comes, as
QEMU does. ``least`` leaves a slot alone whose mapping stays right and creates only what is missing, so that
growth is one more slot. A change needs a hold if a deleted range is added back.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Literal

from attrs import field, frozen

from accel.address import ADDRESS_SPACE_SIZE, AddressRange, align_down, align_up
from accel.errors import AccelError, MapLostError
from accel.locks import Lock
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.listener import Update
from accel.memory.ram_block import RamBlock

Policy = Literal["least", "replace"]


@frozen
class Slot:
    """A mapping of host memory into the guest.

    Attributes:
        gpa: Guest-physical address, page aligned.
        size: Bytes, a multiple of the page size.
        hva: Host-virtual address, page aligned.
        readonly: Whether guest writes exit instead of reaching the memory.
        block: The host memory, kept mapped for as long as the slot exists.
    """

    gpa: int
    size: int
    hva: int
    readonly: bool
    block: RamBlock = field(eq=False, repr=False)

    @property
    def range(self) -> AddressRange:
        """The guest-physical addresses it maps."""
        return AddressRange.sized(self.gpa, self.size)

    def part(self, window: AddressRange) -> Slot:
        """Return the slot for the part inside `window`, which it covers."""
        hva = self.hva + window.start - self.gpa
        return Slot(window.start, window.size, hva, self.readonly, self.block)

    def agrees(self, other: Slot) -> bool:
        """Return whether both map the addresses that they share alike."""
        same_place = self.hva - self.gpa == other.hva - other.gpa
        return same_place and self.readonly == other.readonly and self.block is other.block

    def __str__(self) -> str:
        mode = "r-" if self.readonly else "rw"
        return f"GPA {self.gpa:#x} size {self.size:#x} HVA {self.hva:#x} {mode}"


def section_slots(section: MemoryRegionSection, page_size: int, max_slot_size: int = ADDRESS_SPACE_SIZE) -> list[Slot]:
    """Return the slots that map `section`, ascending; none if it is no RAM or holds no mappable page."""
    if not section.is_ram:
        return []
    start, end = align_up(section.range.start, page_size), align_down(section.range.end, page_size)
    hva = section.host_address + start - section.range.start
    if start >= end or hva % page_size:
        return []
    block = section.region.block
    assert block is not None
    limit = align_down(max_slot_size, page_size)
    borders = [start, *range(align_down(start, limit) + limit, end, limit), end]
    return [Slot(gpa, stop - gpa, hva + gpa - start, section.maps_readonly, block) for gpa, stop in pairwise(borders)]


def overlaps(deletes: Sequence[Slot], adds: Sequence[Slot]) -> bool:
    """Return whether a deleted address is added back; both in ascending order. O(n)."""
    i = j = 0
    while i < len(deletes) and j < len(adds):
        if deletes[i].range.overlaps(adds[j].range):
            return True
        if deletes[i].gpa < adds[j].gpa:
            i += 1
        else:
            j += 1
    return False


@frozen
class SlotPlan:
    """Slots to delete and then slots to create, each ascending."""

    deletes: tuple[Slot, ...]
    creates: tuple[Slot, ...]

    @property
    def needs_hold(self) -> bool:
        """Whether a deleted range is added back."""
        return overlaps(self.deletes, self.creates)


def plan_slots(present: Iterable[Slot], wanted: Sequence[Slot], policy: Policy) -> SlotPlan:
    """Return the steps from the slots `present` to those `wanted`.

    Args:
        present: The slots of all sections that go, ascending.
        wanted: The slots of all sections that come, ascending.
        policy: See the module's text.
    """
    if policy == "replace":
        return SlotPlan(tuple(present), tuple(wanted))
    deletes: list[Slot] = []
    kept: list[Slot] = []
    index = 0
    for slot in present:
        while index < len(wanted) and wanted[index].range.end <= slot.gpa:
            index += 1
        fits = index < len(wanted) and wanted[index].range.covers(slot.range) and wanted[index].agrees(slot)
        (kept if fits else deletes).append(slot)
    return SlotPlan(tuple(deletes), tuple(_missing(wanted, kept)))


def _missing(wanted: Sequence[Slot], kept: Sequence[Slot]) -> Iterable[Slot]:
    """Yield the parts of `wanted` that no slot of `kept` maps; each kept slot lies in one wanted slot."""
    index = 0
    for slot in wanted:
        at = slot.gpa
        while index < len(kept) and kept[index].gpa < slot.range.end:
            if at < kept[index].gpa:
                yield slot.part(AddressRange(at, kept[index].gpa))
            at = kept[index].range.end
            index += 1
        if at < slot.range.end:
            yield slot.part(AddressRange(at, slot.range.end))


class SlotUpdate(Update):
    """Carries out a `SlotPlan`: all deletes, then all creates, undone in reverse.

    Args:
        plan: What to do.
        create: Creates a slot in the accelerator; raises MemorySlotError.
        delete: Deletes it; raises MemorySlotError.
        present: Describes the slots that are there, for a lost map.
        lock: The listener's slots lock.
    """

    def __init__(
        self,
        plan: SlotPlan,
        create: Callable[[Slot], None],
        delete: Callable[[Slot], None],
        present: Callable[[], Iterable[Slot]],
        lock: Lock,
    ) -> None:
        self.needs_hold = plan.needs_hold
        self.lock = lock
        self._plan = plan
        self._create = create
        self._delete = delete
        self._present = present
        self._done: list[tuple[Callable[[Slot], None], Slot]] = []

    def apply(self) -> None:
        """Delete, then create; stops at the first step that fails."""
        for slot in self._plan.deletes:
            self._delete(slot)
            self._done.append((self._create, slot))
        for slot in self._plan.creates:
            self._create(slot)
            self._done.append((self._delete, slot))

    def undo(self) -> None:
        """Take back the steps that were made. Raises MapLostError if one cannot be."""
        while self._done:
            inverse, slot = self._done.pop()
            try:
                inverse(slot)
            except AccelError as error:
                problem = f"a failed memory change could not be undone ({error})"
                raise MapLostError(problem, map(str, self._present())) from error


class SlotNumbers:
    """The numbers by which an accelerator knows its slots: the lowest free one is given out first. O(log n)."""

    def __init__(self) -> None:
        # Numbers that were used and are free again; from `_fresh` on, all are free.
        self._free: list[int] = []
        self._fresh = 0

    def take(self) -> int:
        """Return a number that no slot has."""
        if self._free:
            return heapq.heappop(self._free)
        self._fresh += 1
        return self._fresh - 1

    def give_back(self, number: int) -> None:
        """Note that no slot has `number` any more."""
        heapq.heappush(self._free, number)

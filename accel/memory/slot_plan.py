"""Planning for accelerators that map RAM in slots: pure functions from sections and slots to steps.

Whole pages only: a section is trimmed inward to the page size, and split at multiples of the largest slot size, so
that growth at either end leaves the borders of the other slots where they are. The part of a section that cannot
be mapped (less than a page, or host memory that is not page aligned against the guest) gets no slot; accesses
there exit and are served from the view.

Two policies. ``replace`` deletes the slots of each section that goes and creates those of each that comes, as
QEMU does. ``least`` leaves a slot alone whose mapping stays right and creates only what is missing, so that
growth is one more slot. Under both, a slot that stays and only begins or ends to log dirty pages is toggled in place;
so is, under ``least``, one that only becomes read-only or writable, if the accelerator can do that (`protects`).

In which order
--------------
Where some created slot overlaps a deleted one, all deletes come before all creates: slots must not overlap. The same
where there are not enough free slots for both at once. Otherwise creates come first. What they bring lies where nothing
was, and if the change fails, deleting it again takes from the guest only what it never had for good.

What needs a hold
-----------------
A guest that runs must not miss an address that is mapped before and after. If the change fails, "after" is the map
before: whatever was deleted comes back. So a delete needs a hold unless it is the last thing of the whole change that
can fail. Then either it fails, and has deleted nothing, or it succeeds, and nothing brings its slot back. It follows:

- deletes, then creates: hold. A deleted range that is added back would be missing in between, and any other would be
  until a create that fails is undone;
- two deletes or more: hold, since the second may fail. Large or grown RAM that goes is such a case;
- creates, then one delete: none for the plan itself (`needs_hold`), but one if another update of the same commit comes
  after (`needs_hold_unless_last`), which `commit` knows and the plan does not;
- creates alone: none. Growth is one of these.

A hold is needed, too, for a log that goes, with its slot or from a slot that stays. Its bits are collected before, and
a guest that ran on could write a page between the two. For the end of a log this matters if the change fails later: the
client then logs on and wants those pages. The beginning of a log needs none: nobody is owed what is written before. A
toggle takes no address away, so that of a log may fail and be undone in a guest's sight. Toggles come before deletes.

A slot that becomes read-only or writable is as a delete in this: undone, it would have been read-only, or writable, for
a while to a guest that is owed neither. So it needs a hold unless it is the only step, or none follows.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

from attrs import evolve, field, frozen

from accel.address import ADDRESS_SPACE_SIZE, AddressRange, align_down, align_up
from accel.memory.dirty import DirtyLog
from accel.memory.flat_view import MemoryRegionSection
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
        log: What the accelerator's notes of written pages are for; None where it makes none.
    """

    gpa: int
    size: int
    hva: int
    readonly: bool
    block: RamBlock = field(eq=False, repr=False)
    log: DirtyLog | None = field(default=None, repr=False)

    @property
    def range(self) -> AddressRange:
        """The guest-physical addresses it maps."""
        return AddressRange.sized(self.gpa, self.size)

    @property
    def offset(self) -> int:
        """Where in its block it begins."""
        return self.hva - self.block.address

    def part(self, window: AddressRange) -> Slot:
        """Return the slot for the part inside `window`, which it covers."""
        hva = self.hva + window.start - self.gpa
        return Slot(window.start, window.size, hva, self.readonly, self.block, self.log)

    def with_log(self, log: DirtyLog | None) -> Slot:
        """Return the slot that maps the same and logs for `log`."""
        return evolve(self, log=log)

    def agrees(self, other: Slot, *, protects: bool = False) -> bool:
        """Return whether both map the addresses that they share alike, and not for different logs.

        With `protects`, they may differ in whether that is read-only.
        """
        same_place = self.hva - self.gpa == other.hva - other.gpa
        same_log = self.log is other.log or self.log is None or other.log is None
        same_access = protects or self.readonly == other.readonly
        return same_place and same_log and same_access and self.block is other.block

    def __str__(self) -> str:
        mode = "r-" if self.readonly else "rw"
        mode += "" if self.log is None else " logged"
        return f"GPA {self.gpa:#x} size {self.size:#x} HVA {self.hva:#x} {mode}"


#: A slot as it is, and as it is to be with another `log`, or `readonly` or not.
Toggle = tuple[Slot, Slot]


def section_slots(
    section: MemoryRegionSection,
    page_size: int,
    max_slot_size: int = ADDRESS_SPACE_SIZE,
    host_page_size: int | None = None,
) -> list[Slot]:
    """Return the slots that map `section`, ascending; none if it is no RAM or holds no mappable page.

    Args:
        page_size: Granule of guest-physical addresses and sizes, bytes.
        max_slot_size: Most bytes of one slot.
        host_page_size: Granule of host addresses; `page_size` where it is None.
    """
    if not section.is_ram:
        return []
    start, end = align_up(section.range.start, page_size), align_down(section.range.end, page_size)
    hva = section.host_address + start - section.range.start
    if start >= end or hva % (host_page_size or page_size):
        return []
    block = section.region.block
    assert block is not None
    limit = align_down(max_slot_size, page_size)
    borders = [start, *range(align_down(start, limit) + limit, end, limit), end]
    readonly, log = section.maps_readonly, _log_of(section)
    return [Slot(gpa, stop - gpa, hva + gpa - start, readonly, block, log) for gpa, stop in pairwise(borders)]


def section_toggles(present: Iterable[Slot], section: MemoryRegionSection) -> list[Toggle]:
    """Return what to toggle for `section`, which stays with another log mask.

    Args:
        present: The slots that it has, ascending.
        section: With its new mask.
    """
    log = _log_of(section)
    return [(slot, slot.with_log(log)) for slot in present if slot.log is not log]


def _log_of(section: MemoryRegionSection) -> DirtyLog | None:
    """Return what its slots log for; nothing where no guest write reaches the memory."""
    return section.region.dirty_log() if section.log_mask and not section.maps_readonly else None


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
    """Slots to toggle, and then slots to delete and to create, each ascending; true if there is one.

    Attributes:
        deletes: Slots to delete.
        creates: Slots to create.
        toggles: Slots to toggle.
        creates_first: Whether slots are created before any is deleted. Nothing of the two overlaps then, and there
            are slots for both at once.
    """

    deletes: tuple[Slot, ...]
    creates: tuple[Slot, ...]
    toggles: tuple[Toggle, ...] = ()
    creates_first: bool = False

    def __bool__(self) -> bool:
        return bool(self.toggles or self.deletes or self.creates)

    @property
    def needs_hold(self) -> bool:
        """Whether what a guest sees may have to come back though nothing follows the plan, or a log goes."""
        last_is_delete = self.creates_first or not self.creates
        steps = len(self.toggles) + len(self.deletes) + len(self.creates)
        taken_back = len(self.deletes) > (1 if last_is_delete else 0) or (self.changes_access and steps > 1)
        return self.ends_log or taken_back

    @property
    def needs_hold_unless_last(self) -> bool:
        """Whether what a guest sees has to come back if something fails that follows the plan."""
        return bool(self.deletes) or self.changes_access

    @property
    def changes_access(self) -> bool:
        """Whether a slot that stays becomes read-only or writable."""
        return any(old.readonly != new.readonly for old, new in self.toggles)

    @property
    def ends_log(self) -> bool:
        """Whether a log goes, with its slot or from a slot that stays."""
        return any(slot.log is not None for slot in self.deletes) or any(old.log is not None for old, _ in self.toggles)

    @property
    def inverse(self) -> SlotPlan:
        """The plan that takes this one back."""
        return SlotPlan(self.creates, self.deletes, tuple((new, old) for old, new in self.toggles))


def plan_slots(
    present: Iterable[Slot],
    wanted: Sequence[Slot],
    policy: Policy,
    toggles: Iterable[Toggle] = (),
    *,
    free: int = 0,
    protects: bool = False,
) -> SlotPlan:
    """Return the steps from the slots `present` to those `wanted`.

    Args:
        present: The slots of all sections that go, ascending.
        wanted: The slots of all sections that come, ascending.
        policy: See the module's text.
        toggles: Those of the sections that stay (`section_toggles`).
        free: How many slots more there can be than there are.
        protects: Whether a slot that stays can become read-only or writable.
    """
    if policy == "replace":
        return _in_order(tuple(present), tuple(wanted), tuple(toggles), free)
    deletes: list[Slot] = []
    kept: list[Slot] = []
    changed = list(toggles)
    index = 0
    for slot in present:
        while index < len(wanted) and wanted[index].range.end <= slot.gpa:
            index += 1
        whole = wanted[index] if index < len(wanted) and wanted[index].range.covers(slot.range) else None
        if whole is None or not whole.agrees(slot, protects=protects):
            deletes.append(slot)
            continue
        kept.append(slot)
        if slot.log is not whole.log or slot.readonly != whole.readonly:
            changed.append((slot, whole.part(slot.range)))
    return _in_order(tuple(deletes), tuple(_missing(wanted, kept)), tuple(changed), free)


def _in_order(deletes: tuple[Slot, ...], creates: tuple[Slot, ...], toggles: tuple[Toggle, ...], free: int) -> SlotPlan:
    """Return the plan of these steps, in the order that the module's text gives reasons for."""
    beside = bool(deletes) and 0 < len(creates) <= free and not overlaps(deletes, creates)
    return SlotPlan(deletes, creates, toggles, creates_first=beside)


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

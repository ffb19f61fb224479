"""Slot planning: whole pages, least change, order, holds where they are needed; and where each guest page is logged.

The oracle has no slots, only pages: what each page of a view is backed by, found one byte at a time. Pages are 4
bytes here, so that odd offsets and sizes come up often.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.address import AddressRange, align_down
from accel.memory.dirty import DirtyClient, DirtyLog
from accel.memory.flat_view import EMPTY_VIEW, FlatView, MemoryRegionSection
from accel.memory.ram_block import RamBlock
from accel.memory.region import MemoryRegion, RegionKind
from accel.memory.slot_plan import Slot, SlotPlan, overlaps, plan_slots, section_slots, section_toggles
from accel.memory.splice import diff

PAGE = 4
SPAN = 96
REGIONS = [
    MemoryRegion("one", RegionKind.RAM, SPAN, block=RamBlock("one", SPAN)),
    MemoryRegion("two", RegionKind.RAM, SPAN, block=RamBlock("two", SPAN)),
    MemoryRegion.mmio("device", SPAN),
]
for _region in REGIONS[:2]:
    _region.dirty = DirtyLog(SPAN, PAGE)

#: What a page maps: (host page, read-only, logged).
Pages = dict[int, tuple[int, bool, bool]]
VGA = int(DirtyClient.VGA)


@st.composite
def views(draw) -> FlatView:
    """Sections side by side with holes, of whatever region at whatever offset."""
    cuts = sorted(draw(st.sets(st.integers(0, SPAN), max_size=9)))
    logged = draw(st.sets(st.sampled_from(["one", "two"])))
    sections = []
    for start, end in pairwise(cuts):
        region = draw(st.sampled_from([*REGIONS, REGIONS[0], None]))
        if region is not None:
            # Often where it would be without offsets, so that views have mappings in common.
            offset = draw(st.sampled_from([start, start, start, draw(st.integers(0, SPAN))]))
            if offset + end - start <= SPAN:
                readonly = draw(st.sampled_from([False, False, False, True]))
                mask = VGA if region.name in logged else 0
                sections.append(MemoryRegionSection(AddressRange(start, end), region, offset, readonly, log_mask=mask))
    return FlatView(tuple(sections))


def _pages_of_view(view: FlatView) -> Pages:
    """Return the pages of which every byte is shown by one section of RAM, aligned as in the host."""
    found: Pages = {}
    for page in range(0, SPAN, PAGE):
        shown = [view.find(at) for at in range(page, page + PAGE)]
        section = shown[0]
        if section is None or section.region.block is None or any(one is not section for one in shown):
            continue
        host = section.region.block.address + section.offset + page - section.range.start
        if host % PAGE == 0:
            found[page] = (host, section.readonly, section.log_mask == VGA and not section.readonly)
    return found


def _pages_of_slots(slots) -> Pages:
    found: Pages = {}
    for slot in slots:
        for at in range(0, slot.size, PAGE):
            assert slot.gpa + at not in found, f"{slot} overlaps another"
            found[slot.gpa + at] = (slot.hva + at, slot.readonly, slot.log is not None)
    return found


def _wanted(view_part, limit: int) -> list[Slot]:
    return [slot for section in view_part for slot in section_slots(section, PAGE, limit)]


def _present(slots: list[Slot], removed) -> list[Slot]:
    return [slot for slot in slots if any(section.range.covers(slot.range) for section in removed)]


def _plan(slots: list[Slot], old: FlatView, new: FlatView, policy: str, limit: int, free: int) -> SlotPlan:
    """Plan as a listener does, from what a transaction tells it."""
    delta = diff(old.sections, new.sections)
    toggles = [one for _, section in delta.altered for one in section_toggles(_present(slots, [section]), section)]
    return plan_slots(_present(slots, delta.removed), _wanted(delta.added, limit), policy, toggles, free=free)


def _moments(slots: list[Slot], plan: SlotPlan) -> list[list[Slot]]:
    """Return the slots that there are at the beginning, and after each delete and create in the plan's order."""
    moments = [slots]
    for what in ("creates", "deletes") if plan.creates_first else ("deletes", "creates"):
        for slot in getattr(plan, what):
            left = moments[-1]
            moments.append([*left, slot] if what == "creates" else [one for one in left if one is not slot])
    return moments


def _after(slots: list[Slot], plan: SlotPlan) -> list[Slot]:
    assert all(slot in slots for slot in (*plan.deletes, *(old for old, _ in plan.toggles)))
    toggled = dict(plan.toggles)
    left = [toggled.get(slot, slot) for slot in slots if slot not in plan.deletes]
    return sorted([*left, *plan.creates], key=lambda slot: slot.gpa)


LIMITS = st.sampled_from([1 << 64, 8, 12, 20, 32])


@given(views(), LIMITS)
def test_section_slots_map_whole_aligned_pages_and_nothing_else(view: FlatView, limit: int) -> None:
    slots = _wanted(view, limit)
    assert _pages_of_slots(slots) == _pages_of_view(view)
    for slot in slots:
        assert 0 < slot.size <= limit
        assert slot.gpa % PAGE == slot.size % PAGE == slot.hva % PAGE == 0
        assert slot.block is view.find(slot.gpa).region.block
    assert slots == sorted(slots, key=lambda slot: slot.gpa)


@given(st.integers(0, 40), st.integers(1, 56), st.sampled_from([8, 12, 20]))
def test_section_slots_split_only_at_multiples_of_the_limit(start: int, size: int, limit: int) -> None:
    section = MemoryRegionSection(AddressRange.sized(start, size), REGIONS[0], start)
    for slot in section_slots(section, PAGE, limit):
        assert align_down(slot.gpa, limit) == align_down(slot.range.end - 1, limit)


def test_section_slots_limit_is_rounded_down_to_whole_pages() -> None:
    section = MemoryRegionSection(AddressRange(0, 24), REGIONS[0], 0)
    assert [(slot.gpa, slot.size) for slot in section_slots(section, PAGE, 11)] == [(0, 8), (8, 8), (16, 8)]


def test_section_slots_of_a_device_are_none() -> None:
    assert section_slots(MemoryRegionSection(AddressRange(0, 16), REGIONS[2], 0), PAGE) == []


@settings(max_examples=300)
@given(st.lists(views(), min_size=1, max_size=4), st.sampled_from(["least", "replace"]), LIMITS, st.integers(0, 6))
def test_slot_plan_ends_at_exactly_the_wanted_pages(steps, policy: str, limit: int, free: int) -> None:
    slots: list[Slot] = []
    old = EMPTY_VIEW
    for new in steps:
        plan = _plan(slots, old, new, policy, limit, free)
        before, after = _pages_of_slots(slots), _pages_of_view(new)

        # No create meets a slot that is still there, and there are never too many.
        seen = [_pages_of_slots(moment).keys() for moment in _moments(slots, plan)]
        assert all(slot.size <= limit for slot in plan.creates)
        slots_after = _after(slots, plan)
        assert _pages_of_slots(slots_after) == after
        if plan.creates_first:
            assert plan.deletes
            assert 0 < len(plan.creates) <= free

        gone, come = set(_pages_of_slots(plan.deletes)), set(_pages_of_slots(plan.creates))
        assert plan.creates_first == bool(gone and come and not gone & come and len(plan.creates) <= free)
        ends = {page for page, (*_, logged) in before.items() if logged and (page in gone or not after[page][2])}
        # Where a step fails, the map before is what there is after: nothing of it may have been missing until then.
        missed = any(before.keys() - pages for pages in seen[:-1])
        missed |= any((before.keys() & after.keys()) - pages for pages in seen)
        assert plan.needs_hold == bool(missed or ends)
        assert plan.needs_hold_unless_last == bool(gone)
        assert bool(plan) == (slots != slots_after)
        for one, other in plan.toggles:
            assert (one.log is None) != (other.log is None)
            assert one == other.with_log(one.log)
        assert [*plan.deletes] == sorted(plan.deletes, key=lambda slot: slot.gpa)
        assert [*plan.creates] == sorted(plan.creates, key=lambda slot: slot.gpa)
        if policy == "least":
            for slot in plan.deletes:
                assert not _still_right(slot, after, new), f"{slot} is right and goes"
        slots, old = slots_after, new


def _still_right(slot: Slot, after: Pages, view: FlatView) -> bool:
    """Return whether every page of `slot` is mapped the same way, by one section."""
    pages = _pages_of_slots([slot])
    sections = {id(view.find(page)) for page in pages}
    return len(sections) == 1 and all(after.get(page, ())[:2] == where[:2] for page, where in pages.items())


@given(views(), LIMITS)
def test_slot_plan_least_of_no_change_is_empty(view: FlatView, limit: int) -> None:
    slots = _wanted(view, limit)
    plan = plan_slots(slots, _wanted(view, limit), "least")
    assert plan == SlotPlan((), ())
    assert not plan
    assert not plan.needs_hold


@given(views(), LIMITS)
def test_slot_plan_replace_takes_everything_down_and_up(view: FlatView, limit: int) -> None:
    slots = _wanted(view, limit)
    plan = plan_slots(slots, _wanted(view, limit), "replace")
    assert [*plan.deletes] == [*plan.creates] == slots
    assert plan.needs_hold == bool(slots)


@pytest.mark.parametrize("limit", [1 << 64, 16])
@pytest.mark.parametrize(("start", "end"), [(8, 60), (0, 40), (0, 96)], ids=["at the end", "at the front", "both"])
def test_slot_plan_growth_deletes_nothing_and_needs_no_hold(start: int, end: int, limit: int) -> None:
    old = MemoryRegionSection(AddressRange(8, 40), REGIONS[0], 8)
    new = MemoryRegionSection(AddressRange(start, end), REGIONS[0], start)
    plan = plan_slots(section_slots(old, PAGE, limit), section_slots(new, PAGE, limit), "least")
    assert plan.deletes == ()
    assert set(_pages_of_slots(plan.creates)) == {*range(start, 8, PAGE), *range(40, end, PAGE)}
    assert not plan.needs_hold


def test_slot_plan_of_other_memory_or_mode_at_the_same_place_is_replaced() -> None:
    def slots(region: MemoryRegion, offset: int, readonly: bool) -> list[Slot]:
        return section_slots(MemoryRegionSection(AddressRange(8, 40), region, offset, readonly), PAGE)

    old = slots(REGIONS[0], 8, False)
    for new in (slots(REGIONS[1], 8, False), slots(REGIONS[0], 12, False), slots(REGIONS[0], 8, True)):
        plan = plan_slots(old, new, "least")
        assert [*plan.deletes] == old
        assert [*plan.creates] == new
        assert plan.needs_hold


def test_slot_plan_tells_blocks_apart_that_lie_side_by_side_in_the_host() -> None:
    """Equal addresses are not enough: the block is what keeps the memory mapped."""
    one, two = REGIONS[0].block, REGIONS[1].block
    plan = plan_slots([Slot(8, 8, 0x1000, False, one)], [Slot(8, 8, 0x1000, False, two)], "least")
    assert plan.deletes
    assert plan.creates


ONE, TWO, THREE = (
    section_slots(MemoryRegionSection(AddressRange(at, at + 8), REGIONS[0], at), PAGE) for at in (0, 8, 16)
)


@pytest.mark.parametrize("policy", ["least", "replace"])
@pytest.mark.parametrize(
    ("gone", "come", "free", "creates_first", "hold"),
    [
        (ONE, TWO, 1, True, False),
        (ONE, TWO, 0, False, True),
        (ONE, [*TWO, *THREE], 2, True, False),
        (ONE, [*TWO, *THREE], 1, False, True),
        ([*ONE, *TWO], THREE, 9, True, True),
        (ONE, [], 0, False, False),
        ([*ONE, *TWO], [], 9, False, True),
        ([], [*ONE, *TWO], 9, False, False),
    ],
    ids=[
        "moved",
        "moved without a free slot",
        "one for two",
        "one for two with room for one",
        "two for one",
        "one that goes",
        "two that go",
        "two that come",
    ],
)
def test_slot_plan_creates_beside_first_and_needs_a_hold_unless_it_ends_with_its_only_delete(
    policy, gone, come, free, creates_first, hold
) -> None:
    plan = plan_slots(gone, come, policy, free=free)
    assert plan == SlotPlan(tuple(gone), tuple(come), creates_first=creates_first)
    assert plan.needs_hold == hold
    assert plan.needs_hold_unless_last == bool(gone)


ranges = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=8)


@given(ranges, ranges)
def test_overlaps_agrees_with_sets_of_pages(one, other) -> None:
    def slots(steps) -> list[Slot]:
        at, found = 0, []
        for gap, size in steps:
            at += gap * PAGE
            found.append(Slot(at, size * PAGE, at, False, REGIONS[0].block))
            at += size * PAGE
        return found

    mine, theirs = slots(one), slots(other)
    assert overlaps(mine, theirs) == bool(set(_pages_of_slots(mine)) & set(_pages_of_slots(theirs)))


# dirty logs


def _logged(section_start: int, mask: int, readonly: bool = False) -> MemoryRegionSection:
    window = AddressRange(section_start, section_start + 40)
    return MemoryRegionSection(window, REGIONS[0], section_start, readonly, log_mask=mask)


def test_section_slots_log_for_their_region_where_the_guest_can_write() -> None:
    for mask in (int(DirtyClient.VGA), int(DirtyClient.MIGRATION), 7):
        assert {slot.log for slot in section_slots(_logged(8, mask), PAGE, 16)} == {REGIONS[0].dirty}
        assert {slot.log for slot in section_slots(_logged(8, mask, readonly=True), PAGE, 16)} == {None}
    assert {slot.log for slot in section_slots(_logged(8, 0), PAGE, 16)} == {None}


@pytest.mark.parametrize("policy", ["least", "replace"])
@pytest.mark.parametrize("limit", [1 << 64, 16])
def test_slot_plan_toggles_each_slot_of_a_section_that_stays_and_holds_for_the_end_only(policy, limit) -> None:
    off, on = (section_slots(_logged(8, mask), PAGE, limit) for mask in (0, VGA))
    assert len(off) == (1 if limit > SPAN else 3)
    begin = plan_slots([], [], policy, section_toggles(off, _logged(8, VGA)))
    assert begin == SlotPlan((), (), tuple(zip(off, on, strict=True)))
    assert not begin.needs_hold
    assert not begin.needs_hold_unless_last, "that a log begins is undone in anybody's sight"
    end = plan_slots([], [], policy, section_toggles(on, _logged(8, 0)))
    assert end == SlotPlan((), (), tuple(zip(on, off, strict=True)))
    assert end.needs_hold
    other_client = _logged(8, int(DirtyClient.MIGRATION))
    assert not plan_slots([], [], policy, section_toggles(on, other_client))


def test_slot_plan_keeps_a_slot_whose_section_is_another_and_toggles_it() -> None:
    off, on = (section_slots(_logged(8, mask), PAGE, 16) for mask in (0, VGA))
    assert plan_slots(off, on, "least") == SlotPlan((), (), tuple(zip(off, on, strict=True)))
    assert plan_slots(off, on, "replace") == SlotPlan(tuple(off), tuple(on))


def test_slot_plan_of_a_logged_slot_that_goes_for_good_needs_a_hold() -> None:
    off, on = (section_slots(_logged(8, mask), PAGE) for mask in (0, VGA))
    assert plan_slots(on, [], "least").needs_hold
    assert not plan_slots(off, [], "least").needs_hold
    assert not plan_slots([], on, "least").needs_hold


def test_slot_plan_never_keeps_a_slot_that_logs_for_something_else() -> None:
    slot = section_slots(_logged(8, VGA), PAGE)[0]
    other = slot.with_log(DirtyLog(SPAN, PAGE))
    plan = plan_slots([slot], [other], "least")
    assert (plan.deletes, plan.creates) == ((slot,), (other,))


def test_slot_part_keeps_the_log_and_knows_its_place_in_the_block() -> None:
    slot = section_slots(_logged(8, VGA), PAGE)[0]
    part = slot.part(AddressRange(16, 24))
    assert (part.log, part.offset, part.hva) == (slot.log, 16, slot.hva + 8)


def test_slot_prints_its_addresses_in_hex() -> None:
    assert str(Slot(0x1000, 0x2000, 0x7F000, True, REGIONS[0].block)) == "GPA 0x1000 size 0x2000 HVA 0x7f000 r-"
    slot = Slot(0x1000, 0x2000, 0x7F000, False, REGIONS[0].block)
    assert str(slot).endswith(" rw")
    assert str(slot.with_log(REGIONS[0].dirty)).endswith(" rw logged")

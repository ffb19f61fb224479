"""Slot planning: whole pages, least change, holds where they are needed, and updates that can be taken back.

The oracle has no slots, only pages: what each page of a view is backed by, found one byte at a time. Pages are 4
bytes here, so that odd offsets and sizes come up often.
"""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.address import AddressRange, align_down
from accel.errors import MapLostError, MemorySlotError
from accel.memory.flat_view import EMPTY_VIEW, FlatView, MemoryRegionSection
from accel.memory.splice import diff
from accel.memory.ram_block import RamBlock
from accel.memory.region import MemoryRegion, RegionKind
from accel.memory.slot_plan import Slot, SlotPlan, SlotUpdate, overlaps, plan_slots, section_slots

PAGE = 4
SPAN = 96
REGIONS = [
    MemoryRegion("one", RegionKind.RAM, SPAN, block=RamBlock("one", SPAN)),
    MemoryRegion("two", RegionKind.RAM, SPAN, block=RamBlock("two", SPAN)),
    MemoryRegion.mmio("device", SPAN),
]

#: What a page maps: (host page, read-only).
Pages = dict[int, tuple[int, bool]]


@st.composite
def views(draw) -> FlatView:
    """Sections side by side with holes, of whatever region at whatever offset."""
    cuts = sorted(draw(st.sets(st.integers(0, SPAN), max_size=9)))
    sections = []
    for start, end in pairwise(cuts):
        region = draw(st.sampled_from([*REGIONS, REGIONS[0], None]))
        if region is not None:
            # Often where it would be without offsets, so that views have mappings in common.
            offset = draw(st.sampled_from([start, start, start, draw(st.integers(0, SPAN))]))
            if offset + end - start <= SPAN:
                readonly = draw(st.sampled_from([False, False, False, True]))
                sections.append(MemoryRegionSection(AddressRange(start, end), region, offset, readonly))
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
            found[page] = (host, section.readonly)
    return found


def _pages_of_slots(slots) -> Pages:
    found: Pages = {}
    for slot in slots:
        for at in range(0, slot.size, PAGE):
            assert slot.gpa + at not in found, f"{slot} overlaps another"
            found[slot.gpa + at] = (slot.hva + at, slot.readonly)
    return found


def _wanted(view_part, limit: int) -> list[Slot]:
    return [slot for section in view_part for slot in section_slots(section, PAGE, limit)]


def _present(slots: list[Slot], removed) -> list[Slot]:
    return [slot for slot in slots if any(section.range.covers(slot.range) for section in removed)]


def _after(slots: list[Slot], plan: SlotPlan) -> list[Slot]:
    assert all(slot in slots for slot in plan.deletes)
    return sorted([slot for slot in slots if slot not in plan.deletes] + [*plan.creates], key=lambda slot: slot.gpa)


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
@given(st.lists(views(), min_size=1, max_size=4), st.sampled_from(["least", "replace"]), LIMITS)
def test_slot_plan_ends_at_exactly_the_wanted_pages(steps: list[FlatView], policy: str, limit: int) -> None:
    slots: list[Slot] = []
    old = EMPTY_VIEW
    for new in steps:
        delta = diff(old.sections, new.sections)
        present = _present(slots, delta.removed)
        plan = plan_slots(present, _wanted(delta.added, limit), policy)
        after = _pages_of_view(new)

        # Deletes first, and no create meets a slot that is still there.
        left = [slot for slot in slots if slot not in plan.deletes]
        for slot in plan.creates:
            assert slot.size <= limit
            left.append(slot)
            _pages_of_slots(left)
        slots_after = _after(slots, plan)
        assert _pages_of_slots(slots_after) == after

        gone, come = set(_pages_of_slots(plan.deletes)), set(_pages_of_slots(plan.creates))
        assert plan.needs_hold == bool(gone & come)
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
    return len(sections) == 1 and all(after.get(page) == where for page, where in pages.items())


@given(views(), LIMITS)
def test_slot_plan_least_of_no_change_is_empty(view: FlatView, limit: int) -> None:
    slots = _wanted(view, limit)
    plan = plan_slots(slots, _wanted(view, limit), "least")
    assert plan == SlotPlan((), ())
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


def test_slot_prints_its_addresses_in_hex() -> None:
    assert str(Slot(0x1000, 0x2000, 0x7F000, True, REGIONS[0].block)) == "GPA 0x1000 size 0x2000 HVA 0x7f000 r-"
    assert str(Slot(0x1000, 0x2000, 0x7F000, False, REGIONS[0].block)).endswith(" rw")


# updates


@pytest.fixture
def update_at_six_pages(slot_table):
    """A table, and an update of it with three deletes and three creates."""
    table = slot_table()
    block = REGIONS[0].block

    def slot(page: int, hva: int) -> Slot:
        return Slot(page * 4096, 4096, hva * 4096, False, block)

    old = [slot(page, page) for page in (1, 3, 5)]
    new = [slot(page, page + 100) for page in (3, 5, 7)]
    for one in old:
        table.slots[one.gpa] = one
    plan = SlotPlan(tuple(old), tuple(new))
    update = SlotUpdate(plan, table._create, table._delete, table.slots.values, table.lock)
    return table, update, old, new


def test_slot_update_makes_all_deletes_and_then_all_creates(update_at_six_pages) -> None:
    table, update, old, new = update_at_six_pages
    assert update.needs_hold
    assert update.lock is table.lock
    update.apply()
    assert table.calls == [("delete", slot) for slot in old] + [("create", slot) for slot in new]
    assert [*table.slots.values()] == new


@pytest.mark.parametrize("step", range(6))
def test_slot_update_that_fails_at_a_step_is_undone_in_reverse(update_at_six_pages, step: int) -> None:
    table, update, old, _ = update_at_six_pages
    table.fail_at = {step}
    with pytest.raises(MemorySlotError):
        update.apply()
    made = table.calls[:step]
    update.undo()
    assert sorted(table.slots.items()) == [(slot.gpa, slot) for slot in old]
    inverse = {"delete": "create", "create": "delete"}
    assert table.calls[step + 1 :] == [(inverse[kind], slot) for kind, slot in reversed(made)]


def test_slot_update_that_was_applied_whole_can_be_undone(update_at_six_pages) -> None:
    table, update, old, _ = update_at_six_pages
    update.apply()
    update.undo()
    assert sorted(table.slots) == [slot.gpa for slot in old]
    assert all(table.slots[slot.gpa] == slot for slot in old)
    calls = len(table.calls)
    update.undo()
    assert len(table.calls) == calls, "there is nothing left to undo"


@pytest.mark.parametrize("step", range(1, 6))
def test_slot_update_that_cannot_be_undone_says_what_is_present(update_at_six_pages, step: int) -> None:
    table, update, _, _ = update_at_six_pages
    table.fail_at = {step, step + 1}
    with pytest.raises(MemorySlotError):
        update.apply()
    with pytest.raises(MapLostError, match="could not be undone") as caught:
        update.undo()
    assert caught.value.slots == tuple(map(str, table.slots.values()))
    assert isinstance(caught.value.__cause__, MemorySlotError)
    assert caught.value.__cause__.errno == errno.ENOMEM


def test_slot_update_without_steps_does_nothing(slot_table) -> None:
    table = slot_table()
    update = SlotUpdate(SlotPlan((), ()), table._create, table._delete, lambda: (), table.lock)
    assert not update.needs_hold
    update.apply()
    update.undo()
    assert table.calls == []

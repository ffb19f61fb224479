"""Slots that become read-only or writable where they stand, for accelerators that can do that; and host granules."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from accel.address import AddressRange
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.ram_block import RamBlock
from accel.memory.region import MemoryRegion, RegionKind
from accel.memory.slot_plan import Slot, SlotPlan, plan_slots, section_slots

PAGE = 4
REGION = MemoryRegion("ram", RegionKind.RAM, 96, block=RamBlock("ram", 96))
OTHER = RamBlock("other", 96)


def slot(start: int, size: int, *, readonly: bool = False) -> Slot:
    assert REGION.block is not None
    return Slot(start, size, REGION.block.address + start, readonly, REGION.block)


ONE, TWO = slot(0, 8), slot(8, 8)
ROM_ONE, ROM_TWO = slot(0, 8, readonly=True), slot(8, 8, readonly=True)


def test_slot_plan_protects_a_slot_that_only_becomes_readonly_or_writable() -> None:
    for old, new in ((ONE, ROM_ONE), (ROM_ONE, ONE)):
        assert plan_slots([old], [new], "least", protects=True) == SlotPlan((), (), ((old, new),))


def test_slot_plan_replaces_it_where_it_cannot_be_protected_or_is_not_to_be() -> None:
    replaced = SlotPlan((ONE,), (ROM_ONE,))
    assert plan_slots([ONE], [ROM_ONE], "least") == replaced
    assert plan_slots([ONE], [ROM_ONE], "replace", protects=True) == replaced


def test_slot_plan_replaces_a_slot_of_other_memory_whatever_can_be_protected() -> None:
    moved = evolve(ROM_ONE, hva=ROM_ONE.hva + 4)
    for new in (moved, evolve(ROM_ONE, block=OTHER)):
        assert plan_slots([ONE], [new], "least", protects=True) == SlotPlan((ONE,), (new,))


def test_slot_plan_protects_what_stays_of_a_section_that_grows() -> None:
    plan = plan_slots([ONE], [slot(0, 16, readonly=True)], "least", protects=True, free=9)
    assert plan == SlotPlan((), (ROM_TWO,), ((ONE, ROM_ONE),))


@pytest.mark.parametrize(
    ("present", "wanted", "hold"),
    [
        ([ONE], [ROM_ONE], False),
        ([ONE, TWO], [ROM_ONE, ROM_TWO], True),
        ([ONE], [ROM_ONE, TWO], True),
        ([ONE, TWO], [ROM_ONE], True),
    ],
    ids=["alone", "two", "before a create", "before a delete"],
)
def test_slot_plan_that_changes_access_needs_a_hold_unless_it_is_the_only_step(
    present: list[Slot], wanted: list[Slot], hold: bool
) -> None:
    """Undone after a step that fails, it would have shown the guest what it is not owed."""
    plan = plan_slots(present, wanted, "least", protects=True, free=9)
    assert plan.changes_access
    assert plan.needs_hold == hold
    assert plan.needs_hold_unless_last


def test_slot_plan_without_such_a_toggle_changes_no_access() -> None:
    assert not plan_slots([ONE], [TWO], "least", protects=True).changes_access


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()), max_size=6))
def test_slot_plan_inverse_of_protecting_leads_back(pieces: list[tuple[bool, bool, bool, bool]]) -> None:
    """By what each slot is after the steps, one dict entry for each."""
    present, wanted = [], []
    for number, (before, after, was_rom, is_rom) in enumerate(pieces):
        if before:
            present.append(slot(number * 8, 8, readonly=was_rom))
        if after:
            wanted.append(slot(number * 8, 8, readonly=is_rom))
    plan = plan_slots(present, wanted, "least", protects=True, free=9)
    assert not set(plan.deletes) & {old for old, _ in plan.toggles}
    there = set(present)
    for step, goal in ((plan, wanted), (plan.inverse, present)):
        there -= {*step.deletes, *(old for old, _ in step.toggles)}
        there |= {*step.creates, *(new for _, new in step.toggles)}
        assert there == set(goal)


def test_section_slots_host_addresses_have_a_granule_of_their_own() -> None:
    section = MemoryRegionSection(AddressRange(8, 40), REGION, 10)
    assert section_slots(section, PAGE) == []
    assert [(one.gpa, one.size, one.offset) for one in section_slots(section, PAGE, host_page_size=2)] == [(8, 32, 10)]

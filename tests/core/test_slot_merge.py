"""Merging when slots run short: the map stays exactly right, as few slots are changed as can be, and none in vain.

The oracles have no runs and no stretches: which page maps what, and every way there is to join neighbours. Pages are 4
bytes.
"""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from accel.address import AddressRange
from accel.memory.dirty import DirtyClient, DirtyLog
from accel.memory.flat_view import EMPTY_VIEW, FlatView, MemoryRegionSection
from accel.memory.ram_block import RamBlock
from accel.memory.region import MemoryRegion, RegionKind
from accel.memory.slot_merge import SlotPlanner, merge
from accel.memory.slot_plan import Slot, SlotPlan, section_slots
from accel.memory.splice import diff

PAGE = 4
SPAN = 64
VGA = int(DirtyClient.VGA)
REGIONS = [MemoryRegion(name, RegionKind.RAM, SPAN, block=RamBlock(name, SPAN)) for name in ("one", "two")]
for _region in REGIONS:
    _region.dirty = DirtyLog(SPAN, PAGE)


class Table:
    """Slots by address, and the planner that is asked for each change."""

    def __init__(self, slot_count: int, policy: str = "least", max_slot_size: int = 1 << 64) -> None:
        self.slots: dict[int, Slot] = {}
        self.view = EMPTY_VIEW
        self.limit = max_slot_size
        self.planner = SlotPlanner(
            self.within,
            self.slots.__len__,
            policy=policy,
            page_size=PAGE,
            slot_count=slot_count,
            max_slot_size=max_slot_size,
        )

    def within(self, window: AddressRange) -> list[Slot]:
        return [slot for gpa, slot in sorted(self.slots.items()) if window.start <= gpa < window.end]

    def plan(self, new: FlatView) -> SlotPlan:
        delta = diff(self.view.sections, new.sections)
        return self.planner.plan(delta.removed, delta.added, [section for _, section in delta.altered])

    def become(self, new: FlatView) -> SlotPlan:
        """Change to `new`, which must fit."""
        plan = self.plan(new)
        for old, now in plan.toggles:
            assert self.slots[old.gpa] == old
            self.slots[old.gpa] = now
        for slot in plan.deletes:
            assert self.slots.pop(slot.gpa) == slot
        for slot in plan.creates:
            assert not any(slot.range.overlaps(other.range) for other in self.slots.values())
            assert slot.size <= self.limit
            self.slots[slot.gpa] = slot
        self.planner.settle()
        self.view = new
        return plan

    def pages(self) -> dict[int, tuple[int, bool, bool]]:
        return {
            slot.gpa + at: (slot.hva + at, slot.readonly, slot.log is not None)
            for slot in self.slots.values()
            for at in range(0, slot.size, PAGE)
        }


def _pages(view: FlatView) -> dict[int, tuple[int, bool, bool]]:
    found = {}
    for section in view.sections:
        assert section.region.block is not None
        for at in section.range.start, *range(section.range.start + PAGE, section.range.end, PAGE):
            logged = section.log_mask == VGA and not section.readonly
            host = section.region.block.address + section.offset + at - section.range.start
            found[at] = (host, section.readonly, logged)
    return found


def _needed(view: FlatView, limit: int) -> int:
    """Return how many slots `view` takes when each section is as few as can be."""
    return sum(len(section_slots(section, PAGE, limit)) for section in view.sections)


@st.composite
def views(draw) -> FlatView:
    """Whole pages in few sections, most of them in their usual place, so that steps grow and shrink them."""
    cuts = sorted(page * PAGE for page in draw(st.sets(st.integers(0, SPAN // PAGE), max_size=6)))
    logged = draw(st.sets(st.sampled_from(["one", "two"])))
    sections = []
    for start, end in pairwise(cuts):
        region = draw(st.sampled_from([REGIONS[0], REGIONS[0], REGIONS[1], None]))
        if region is not None:
            mask = VGA if region.name in logged else 0
            readonly = draw(st.sampled_from([False, False, False, True]))
            sections.append(MemoryRegionSection(AddressRange(start, end), region, start, readonly, log_mask=mask))
    return FlatView(tuple(sections))


def _ram(start: int, end: int) -> MemoryRegionSection:
    return MemoryRegionSection(AddressRange(start * PAGE, end * PAGE), REGIONS[0], start * PAGE)


def _view(*pages: tuple[int, int]) -> FlatView:
    return FlatView(tuple(_ram(*one) for one in pages))


@settings(max_examples=400)
@given(
    st.lists(views(), min_size=1, max_size=8),
    st.integers(1, 7),
    st.sampled_from(["least", "replace"]),
    st.sampled_from([1 << 64, 5 * PAGE]),
)
@example([_view((4, 5)), _view((3, 5)), _view((2, 5)), _view((2, 6)), _view((2, 6), (9, 10))], 3, "least", 1 << 64)
def test_planner_maps_all_pages_and_refuses_only_what_cannot_fit(steps, slot_count, policy, limit) -> None:
    table = Table(slot_count, policy, limit)
    for new in steps:
        before = table.planner.fragments
        fits = _needed(new, limit) <= slot_count
        if not fits:
            assert table.planner.excess(table.plan(new)) > 0
            assert table.planner.fragments == before
            continue
        plan = table.become(new)
        assert table.pages() == _pages(new)
        assert len(table.slots) <= slot_count
        assert table.planner.fragments == len(table.slots) - _needed(new, limit)
        assert [*plan.deletes] == sorted(plan.deletes, key=lambda slot: slot.gpa)
        assert [*plan.creates] == sorted(plan.creates, key=lambda slot: slot.gpa)
        event(f"fragments: {table.planner.fragments}")


def test_planner_merges_nothing_of_a_section_that_goes() -> None:
    """Although its run is the longest."""
    table = Table(5)
    for view in (_view((0, 1), (8, 9)), _view((0, 2), (8, 9)), _view((0, 3), (8, 10))):
        table.become(view)
    assert table.planner.figures == {"slots": 5, "fragments": 3, "slot_calls": 5}
    new = _view((4, 5), (6, 7), (8, 10), (11, 12), (13, 14))
    table.become(new)
    assert table.pages() == _pages(new)
    assert table.planner.figures == {"slots": 5, "fragments": 0, "slot_calls": 5 + 5 + 5}


def test_planner_leaves_fragments_alone_while_there_are_slots_enough() -> None:
    table = Table(5)
    for end in range(1, 6):
        plan = table.become(_view((0, end)))
        assert (len(plan.deletes), len(plan.creates), plan.needs_hold) == (0, 1, False)
    assert table.planner.fragments == 4


def test_planner_merges_no_more_than_one_change_needs_and_holds_for_it() -> None:
    table = Table(3)
    for end in (1, 2, 3):
        table.become(_view((0, end)))
    plan = table.become(_view((0, 4)))
    assert [slot.gpa for slot in plan.deletes] == [2 * PAGE]
    assert [(slot.gpa, slot.size) for slot in plan.creates] == [(2 * PAGE, 2 * PAGE)]
    assert plan.needs_hold


def test_planner_merges_another_section_where_the_new_one_cannot() -> None:
    table = Table(3)
    for end in (1, 2, 3):
        table.become(_view((0, end)))
    plan = table.become(_view((0, 3), (8, 9)))
    assert [slot.gpa for slot in plan.deletes] == [0, PAGE]
    assert [(slot.gpa, slot.size) for slot in plan.creates] == [(0, 2 * PAGE), (8 * PAGE, PAGE)]
    assert table.planner.fragments == 1


def test_planner_never_merges_across_sections() -> None:
    """Side by side in guest and host, but each must be able to go by itself."""
    sections = [MemoryRegionSection(AddressRange(at, at + PAGE), REGIONS[0], at, unmergeable=True) for at in (0, PAGE)]
    table = Table(2)
    table.become(FlatView(tuple(sections)))
    new = FlatView((*sections, _ram(8, 9)))
    assert table.planner.excess(table.plan(new)) == 1
    assert table.planner.fragments == 0


def test_planner_merges_slots_that_the_same_change_toggles_into_one_that_logs() -> None:
    table = Table(2)
    table.become(_view((0, 1)))
    table.become(_view((0, 2)))
    logged = MemoryRegionSection(AddressRange(0, 2 * PAGE), REGIONS[0], 0, log_mask=VGA)
    plan = table.become(FlatView((logged, _ram(8, 9))))
    assert plan.toggles == ()
    assert [(slot.gpa, slot.size, slot.log) for slot in plan.creates] == [
        (0, 2 * PAGE, REGIONS[0].dirty),
        (8 * PAGE, PAGE, None),
    ]


def test_planner_forgets_the_fragments_of_a_plan_that_did_not_come_into_force() -> None:
    table = Table(5)
    table.become(_view((0, 1)))
    table.plan(_view((0, 2)))
    table.become(_view((0, 1), (8, 9)))
    assert table.planner.fragments == 0


# the fewest changes


def _runs_of(kinds: list[list[bool]]) -> list[list[Slot]]:
    """Return runs of slots of a page each; every second run begins far from the last."""
    block = REGIONS[0].block
    return [
        [Slot(((number << 8) + index) * PAGE, PAGE, (index + 1) * PAGE, False, block) for index in range(len(kind))]
        for number, kind in enumerate(kinds)
    ]


def _ways(kind: list[bool]) -> dict[int, int]:
    """Return what the cheapest way costs to save a number of slots in a run, for each number, trying all."""
    best: dict[int, int] = {}
    for joins in product([False, True], repeat=len(kind) - 1):
        groups = [[kind[0]]]
        for created, joined in zip(kind[1:], joins, strict=True):
            if joined:
                groups[-1].append(created)
            else:
                groups.append([created])
        many = [group for group in groups if len(group) > 1]
        cost = sum(1 + group.count(False) - group.count(True) for group in many)
        saved = sum(len(group) - 1 for group in many)
        best[saved] = min(cost, best.get(saved, cost))
    return best


def _cheapest(kinds: list[list[bool]], need: int) -> int | None:
    total = {0: 0}
    for kind in kinds:
        together: dict[int, int] = {}
        for (saved, cost), (more, price) in product(total.items(), _ways(kind).items()):
            together[saved + more] = min(cost + price, together.get(saved + more, cost + price))
        total = together
    return min((cost for saved, cost in total.items() if saved >= need), default=None)


def _plannable(kind: list[bool]) -> bool:
    """Return whether no two neighbours are created: the planner makes those one slot."""
    return not any(left and right for left, right in pairwise(kind))


runs = st.lists(st.lists(st.booleans(), min_size=2, max_size=8).filter(_plannable), max_size=3)


@settings(max_examples=600)
@given(runs, st.lists(st.integers(2, 6), max_size=3), st.integers(1, 14))
def test_merge_makes_the_fewest_changes_of_all_ways(kinds, others, need) -> None:
    standing = [[False] * length for length in sorted(others, reverse=True)]
    slots = _runs_of([*kinds, *standing])
    coming, rest = slots[: len(kinds)], slots[len(kinds) :]
    creates = [
        slot for run, kind in zip(coming, kinds, strict=True) for slot, new in zip(run, kind, strict=True) if new
    ]
    plan = SlotPlan((), tuple(creates))
    merged = merge(plan, coming, rest, need)
    cheapest = _cheapest([*kinds, *standing], need)
    if cheapest is None:
        assert merged is plan
        return
    assert len(plan.creates) - len(merged.creates) + len(merged.deletes) >= need
    assert len(merged.creates) + len(merged.deletes) - len(plan.creates) == cheapest
    gone = {slot.gpa for slot in merged.deletes}
    left = [slot for run in slots for slot in run if slot.gpa not in gone and slot not in creates]
    mapped = sorted(slot.gpa + at for slot in (*left, *merged.creates) for at in range(0, slot.size, PAGE))
    assert mapped == sorted(slot.gpa for run in slots for slot in run)


def test_merge_looks_at_no_more_standing_runs_than_it_needs() -> None:
    runs = _runs_of([[False] * 4, [False] * 3, [False] * 2])
    looked: list[int] = []

    def standing():
        for run in runs:
            looked.append(len(run))
            yield run

    merge(SlotPlan((), ()), [], standing(), 2)
    assert looked == [4]


@pytest.mark.parametrize(("need", "sizes"), [(1, [2]), (3, [4]), (4, [4, 2]), (6, [4, 3, 2])])
def test_merge_of_existing_slots_takes_the_longest_runs_and_cuts_the_last(need, sizes) -> None:
    runs = _runs_of([[False] * 4, [False] * 3, [False] * 2])
    plan = merge(SlotPlan((), ()), [], runs, need)
    assert [slot.size // PAGE for slot in plan.creates] == sizes

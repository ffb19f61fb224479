"""Rendering, lookup and diff of flat views, against an oracle that asks one address at a time.

The oracle works on the plan a tree is built from, not on the tree: who shows at an address is the first answer of
the siblings in order of priority, the latest added first among equals, and holes fall through.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.address import ADDRESS_SPACE_SIZE, AddressRange
from accel.memory.flat_view import EMPTY_VIEW, FlatView
from accel.memory.render import render
from accel.memory.splice import diff
from accel.memory.region import MemoryRegion, RegionKind

SPAN = 48


@define(eq=False)
class Plan:
    """A region to be made, and what it takes to ask it for one address."""

    kind: RegionKind
    size: int
    readonly: bool
    unmergeable: bool
    enabled: bool
    children: list[tuple[int, int, Plan]]  # (offset, priority, child), in the order they are added
    target: Plan | None = None
    target_offset: int = 0
    region: MemoryRegion = field(init=False)

    def build(self) -> MemoryRegion:
        if self.kind is RegionKind.ALIAS:
            target = self.target.region if hasattr(self.target, "region") else self.target.build()
            region = MemoryRegion.alias("alias", target, self.target_offset, self.size, readonly=self.readonly)
        elif self.kind is RegionKind.RAM:
            region = MemoryRegion.ram("ram", self.size)
        elif self.kind is RegionKind.ROM:
            region = MemoryRegion.rom("rom", b"", self.size)
        elif self.kind is RegionKind.MMIO:
            region = MemoryRegion.mmio("mmio", self.size)
        else:
            region = MemoryRegion.container("container", self.size)
        if self.readonly:
            region.set_readonly(True)
        region.set_enabled(self.enabled)
        region.unmergeable = self.unmergeable
        for offset, priority, child in self.children:
            region.add(child.build(), offset, priority)
        self.region = region
        return region

    def ask(self, at: int, path: tuple[object, ...] = ()) -> tuple | None:
        """Return (region, offset, readonly, unmergeable, path) of what shows at `at`, or None for a hole."""
        if not self.enabled or not 0 <= at < self.size:
            return None
        path = (*path, id(self))
        answer = None
        if self.kind is RegionKind.ALIAS:
            answer = self.target.ask(at + self.target_offset, path)
        else:
            latest_first = list(enumerate(self.children))[::-1]
            for number, (offset, _, child) in sorted(latest_first, key=lambda one: -one[1][1]):
                answer = child.ask(at - offset, (*path, number))
                if answer is not None:
                    break
            else:
                if self.kind is not RegionKind.CONTAINER:
                    answer = (self.region, at, False, False, path)
        if answer is None:
            return None
        region, offset, readonly, unmergeable, where = answer
        readonly |= self.readonly or self.kind is RegionKind.ROM
        return region, offset, readonly, unmergeable or self.unmergeable, where


def _leaf(kind: RegionKind) -> st.SearchStrategy[Plan]:
    return st.builds(
        Plan,
        st.just(kind),
        st.integers(1, 20),
        st.booleans(),
        st.sampled_from([False] * 4 + [True]),
        ENABLED,
        st.just([]),
    )


ENABLED = st.sampled_from([True] * 5 + [False])
LEAVES = st.one_of(_leaf(RegionKind.RAM), _leaf(RegionKind.ROM), _leaf(RegionKind.MMIO))


def _parents(inner: st.SearchStrategy[Plan]) -> st.SearchStrategy[Plan]:
    children = st.lists(st.tuples(st.integers(0, 24), st.integers(-2, 2), inner), max_size=4)
    kinds = st.sampled_from([RegionKind.CONTAINER] * 3 + [RegionKind.RAM, RegionKind.MMIO])
    flags = st.sampled_from([False] * 3 + [True])
    return st.builds(Plan, kinds, st.integers(1, SPAN), flags, flags, ENABLED, children)


PLANS = st.recursive(LEAVES, _parents, max_leaves=8)


@st.composite
def trees(draw: Callable) -> Plan:
    """A root over `SPAN` addresses with children, some of them aliases of parts of others."""
    root = draw(st.lists(st.tuples(st.integers(0, SPAN - 1), st.integers(-2, 2), PLANS), min_size=1, max_size=5))
    pool: list[Plan] = []
    pending = [child for _, _, child in root]
    while pending:
        one = pending.pop()
        pool.append(one)
        pending.extend(child for _, _, child in one.children)
    for _ in range(draw(st.integers(0, 3))):
        target = draw(st.sampled_from(pool))
        alias = Plan(
            RegionKind.ALIAS,
            draw(st.integers(1, 24)),
            draw(st.booleans()),
            draw(st.sampled_from([False, False, True])),
            draw(ENABLED),
            [],
            target,
            draw(st.integers(0, 24)),
        )
        pool.append(alias)
        root.append((draw(st.integers(0, SPAN - 1)), draw(st.integers(-2, 2)), alias))
    return Plan(RegionKind.CONTAINER, SPAN, False, False, True, root)


def _answers(plan: Plan) -> list[tuple | None]:
    return [plan.ask(at) for at in range(SPAN)]


def _continue_each_other(one: tuple | None, other: tuple | None) -> bool:
    """Return whether two answers for neighbouring addresses belong into one section."""
    if one is None or other is None:
        return False
    same = one[0] is other[0] and one[1] + 1 == other[1] and one[2] == other[2]
    # What must stay apart still is one piece with itself.
    return same and (not (one[3] or other[3]) or (one[4] == other[4] and one[3] and other[3]))


def _expected(answers: list[tuple | None]) -> list[tuple]:
    """Return (start, end, region, offset, readonly, unmergeable) of the sections that `answers` mean."""
    found: list[list] = []
    for at, answer in enumerate(answers):
        if answer is None:
            continue
        if at and found and found[-1][1] == at and _continue_each_other(answers[at - 1], answer):
            found[-1][1] = at + 1
        else:
            found.append([at, at + 1, *answer[:4]])
    return [tuple(one) for one in found]


def _sections(view: FlatView) -> list[tuple]:
    return [(one.range.start, one.range.end, one.region, one.offset, one.readonly, one.unmergeable) for one in view]


@settings(max_examples=250)
@given(trees())
def test_flat_view_render_shows_what_each_address_answers(plan: Plan) -> None:
    view = render(plan.build())
    assert _sections(view) == _expected(_answers(plan))


@settings(max_examples=100)
@given(trees(), st.integers(0, SPAN), st.integers(0, SPAN))
def test_flat_view_render_of_a_window_is_what_the_whole_shows_there(plan: Plan, one: int, other: int) -> None:
    window = AddressRange(min(one, other), max(one, other))
    inside = render(plan.build(), window)
    answers = [answer if at in window else None for at, answer in enumerate(_answers(plan))]
    assert _sections(inside) == _expected(answers)


@settings(max_examples=100)
@given(trees(), st.integers(0, SPAN), st.integers(0, SPAN))
def test_flat_view_looks_up_addresses_and_windows(plan: Plan, one: int, other: int) -> None:
    view = render(plan.build())
    for at, answer in enumerate(_answers(plan)):
        section = view.find(at)
        if answer is None:
            assert section is None
        else:
            assert section.region is answer[0]
            assert section.offset + at - section.range.start == answer[1]
            assert at in section.range
    assert view.find(SPAN) is None
    assert view.find(ADDRESS_SPACE_SIZE - 1) is None
    window = AddressRange(min(one, other), max(one, other))
    found = list(view.overlapping(window))
    assert found == [section for section in view if set(range(*_ends(section.range))) & set(range(*_ends(window)))]


def _ends(range_: AddressRange) -> tuple[int, int]:
    return range_.start, range_.end


@settings(max_examples=150)
@given(st.data())
def test_flat_view_diff_takes_the_old_view_to_the_new(data: st.DataObject) -> None:
    """Of one tree before and after edits, so that most of it stays."""
    plan = data.draw(trees())
    root = plan.build()
    old = render(root)
    for region in data.draw(st.lists(st.sampled_from(list(root.reachable())), max_size=4)):
        what = data.draw(st.sampled_from(["enabled", "readonly", "unmergeable"]))
        setattr(region, what, not getattr(region, what))
    new = render(root)
    delta = diff(old.sections, new.sections)
    for one in (delta.removed, delta.added, delta.kept):
        assert all(a.range.end <= b.range.start for a, b in pairwise(one)), "ascending and apart"
    assert [*delta.removed] == [section for section in old if section not in new.sections]
    assert [*delta.added] == [section for section in new if section not in old.sections]
    assert [*delta.kept] == [section for section in new if section in old.sections]
    after = (set(old.sections) - set(delta.removed)) | set(delta.added)
    assert after == set(new.sections)


def test_flat_view_diff_of_a_view_with_itself_keeps_all() -> None:
    view = render(_two_rams())
    delta = diff(view.sections, view.sections)
    assert (delta.removed, delta.added) == ((), ())
    assert delta.kept == view.sections
    assert diff(EMPTY_VIEW.sections, view.sections).added == diff(view.sections, EMPTY_VIEW.sections).removed == view.sections


def _two_rams() -> MemoryRegion:
    root = MemoryRegion.container("root")
    for at in (0, 0x3000):
        root.add(MemoryRegion.ram("ram", 0x1000), at)
    return root


def test_flat_view_of_two_aliases_side_by_side_is_one_section() -> None:
    """What it looks like to the guest counts, not how it came about."""
    root, target = MemoryRegion.container("root"), MemoryRegion.ram("ram", 0x2000)
    root.add(MemoryRegion.alias("low", target, 0, 0x1000), 0x10000)
    root.add(MemoryRegion.alias("high", target, 0x1000), 0x11000)
    assert _sections(render(root)) == [(0x10000, 0x12000, target, 0, False, False)]
    root.children[0].set_readonly(True)
    assert len(render(root)) == 2


@pytest.mark.parametrize("apart", ["low", "high", "both", "target"])
def test_flat_view_of_what_must_stay_apart_is_two_sections(apart: str) -> None:
    root, target = MemoryRegion.container("root"), MemoryRegion.ram("ram", 0x2000)
    target.unmergeable = apart == "target"
    low = MemoryRegion.alias("low", target, 0, 0x1000, unmergeable=apart in ("low", "both"))
    high = MemoryRegion.alias("high", target, 0x1000, unmergeable=apart in ("high", "both"))
    root.add(low, 0x10000)
    root.add(high, 0x11000)
    assert [(one.range.start, one.unmergeable) for one in render(root)] == [
        (0x10000, apart != "high"),
        (0x11000, apart != "low"),
    ]


def test_flat_view_of_parts_with_a_gap_between_them_is_two_sections() -> None:
    root, target = MemoryRegion.container("root"), MemoryRegion.ram("ram", 0x2000)
    root.add(MemoryRegion.alias("low", target, 0, 0x1000), 0x10000)
    root.add(MemoryRegion.alias("high", target, 0x1000), 0x20000)
    assert [(one.range.start, one.offset) for one in render(root)] == [(0x10000, 0), (0x20000, 0x1000)]


def test_flat_view_of_a_documented_example() -> None:
    """Regions A to E of the memory API's documentation, in numbers."""
    a = MemoryRegion.container("A", 0x8000)
    b = MemoryRegion.container("B", 0x4000)
    c = MemoryRegion.mmio("C", 0x6000)
    d = MemoryRegion.mmio("D", 0x1000)
    e = MemoryRegion.mmio("E", 0x1000)
    a.add(c, 0, priority=1)
    a.add(b, 0x2000, priority=2)
    b.add(d, 0)
    b.add(e, 0x2000)
    assert [(one.region.name, one.range.start, one.offset) for one in render(a)] == [
        ("C", 0x0000, 0x0000),
        ("D", 0x2000, 0x0000),
        ("C", 0x3000, 0x3000),
        ("E", 0x4000, 0x0000),
        ("C", 0x5000, 0x5000),
    ]


def test_flat_view_reaches_from_the_first_to_the_last_address() -> None:
    root = MemoryRegion.container("root")
    root.add(MemoryRegion.mmio("all", ADDRESS_SPACE_SIZE), 0)
    view = render(root)
    assert view.find(0) is view.find(ADDRESS_SPACE_SIZE - 1) is view.sections[0]
    assert view.find(ADDRESS_SPACE_SIZE) is None


def test_flat_view_alias_that_reaches_beyond_its_target_shows_a_hole() -> None:
    root, target = MemoryRegion.container("root"), MemoryRegion.mmio("m", 0x100)
    root.add(MemoryRegion.mmio("under", 0x1000), 0, priority=-1)
    root.add(MemoryRegion.alias("a", target, 0x80, 0x200), 0)
    assert [(one.region.name, *_ends(one.range)) for one in render(root)] == [("m", 0, 0x80), ("under", 0x80, 0x1000)]


def test_flat_view_prints_its_sections() -> None:
    root = MemoryRegion.container("root")
    assert str(EMPTY_VIEW) == "(empty)"
    root.add(MemoryRegion.ram("ram", 0x1000), 0)
    root.add(MemoryRegion.rom("bios", b"", 0x1000), 0x2000)
    root.add(MemoryRegion.mmio("uart", 8), 0x4000)
    assert str(render(root)).splitlines() == [
        "0000000000000000-0000000000000fff ram: ram @0x0",
        "0000000000002000-0000000000002fff rom: bios @0x0",
        "0000000000004000-0000000000004007 mmio: uart @0x0",
    ]


def test_flat_view_section_span_outlives_what_becomes_of_the_region() -> None:
    ram = MemoryRegion.ram("ram", 0x2000)
    ram.write(0x1FFF, b"x")
    root = MemoryRegion.container("root")
    root.add(MemoryRegion.alias("a", ram, 0x800), 0x8000)
    (section,) = render(root)
    ram.resize(0x1000)
    assert bytes(section.span(0x8000 + 0x17FF, 1)) == b"x"
    section.span(0x8000, 2)[:] = b"yz"
    assert ram.read(0x800, 2) == b"yz"
    assert section.host_address == ram.block.address + 0x800


@pytest.mark.parametrize("address", [0, 0x1FFF])
def test_flat_view_is_a_value(address: int) -> None:
    root = _two_rams()
    one, other = render(root), render(root)
    assert one == other
    assert hash(one) == hash(other)
    root.children[0].set_enabled(False)
    assert render(root) != one
    assert one.find(address % 0x1000) is one.sections[0]

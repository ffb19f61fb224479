"""Splicing and differences: against painting everything anew, over pictures that are nothing but lists of cells."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.address import AddressRange
from accel.memory.flat_view import EMPTY_VIEW, FlatView, MemoryRegionSection
from accel.memory.ioeventfd import IoEventFd
from accel.memory.region import MemoryRegion
from accel.memory.render import render
from accel.memory.splice import ViewDiff, diff, merged, splice

SPAN = 40
REGIONS = [MemoryRegion.mmio(name, 4 * SPAN) for name in "xyz"]

#: What shows at an address: region, offset minus address, read-only, and for what must stay apart its place.
Cell = tuple[int, int, bool, str | None]
Picture = list[Cell | None]

RUNS = st.tuples(
    st.integers(0, SPAN - 1),
    st.integers(1, 16),
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([SPAN, SPAN, SPAN, SPAN + 3]),
        st.sampled_from([False, False, True]),
        st.sampled_from([None, None, None, "a", "b"]),
    )
    | st.none(),
)


def draw_runs(picture: Picture, runs: Sequence[tuple[int, int, Cell | None]]) -> Picture:
    """Paint runs over a picture, as edits would."""
    picture = list(picture)
    for start, length, cell in runs:
        picture[start : start + length] = [cell] * (min(SPAN, start + length) - start)
    return picture


def sections(picture: Picture, start: int = 0, end: int = SPAN) -> list[MemoryRegionSection]:
    """Return the sections of a picture inside a window, not joined where they must stay apart."""
    found = []
    for cell, group in groupby(range(start, end), key=lambda at: picture[at]):
        if cell is not None:
            addresses = list(group)
            number, shift, readonly, apart = cell
            window = AddressRange(addresses[0], addresses[-1] + 1)
            section = MemoryRegionSection(window, REGIONS[number], addresses[0] + shift, readonly)
            found.append(evolve(section, unmergeable=apart is not None))
    return list(merged(found))


def damage_between(old: Picture, new: Picture) -> list[tuple[int, int]]:
    """Return each changed address as a window of its own, or in runs."""
    changed = [at for at in range(SPAN) if old[at] != new[at]]
    runs: list[tuple[int, int]] = []
    for at in changed:
        if runs and runs[-1][1] == at and at % 3:
            runs[-1] = (runs[-1][0], at + 1)
        else:
            runs.append((at, at + 1))
    return runs


@settings(max_examples=600)
@given(
    st.lists(RUNS, max_size=8),
    st.lists(RUNS, max_size=4),
    st.lists(st.tuples(st.integers(0, SPAN), st.integers(0, SPAN)), max_size=4),
    st.randoms(use_true_random=False),
)
def test_splice_is_what_painting_everything_gives(before, edits, extra, chance) -> None:
    old = draw_runs([None] * SPAN, before)
    new = draw_runs(old, edits)
    damage = [*damage_between(old, new), *((min(one), max(one)) for one in extra)]
    chance.shuffle(damage)
    view = FlatView(sections(old))
    spliced, delta = splice(view, damage, lambda start, end: sections(new, start, end))
    whole = sections(new)
    assert list(spliced) == whole
    assert [spliced.index(section.range.start) for section in whole] == list(range(len(whole)))
    assert delta.removed == tuple(section for section in view if section not in whole)
    assert delta.added == tuple(section for section in whole if section not in view.sections)
    assert delta.altered == ()
    if not delta:
        assert spliced is view


@settings(max_examples=100)
@given(st.lists(RUNS, max_size=8), st.integers(0, SPAN), st.integers(0, SPAN))
def test_splice_of_what_stayed_keeps_the_view_itself(before, one: int, other: int) -> None:
    picture = draw_runs([None] * SPAN, before)
    view = FlatView(sections(picture))
    window = (min(one, other), max(one, other))
    spliced, delta = splice(view, [window], lambda start, end: sections(picture, start, end))
    assert spliced is view
    assert not delta


def test_splice_paints_no_more_than_the_windows_and_keeps_all_else() -> None:
    picture = draw_runs([None] * SPAN, [(at, 2, (0, SPAN + at, False, None)) for at in range(0, SPAN, 4)])
    view = FlatView(sections(picture))
    painted = []

    def paint(start: int, end: int) -> list[MemoryRegionSection]:
        painted.append((start, end))
        return []

    spliced, delta = splice(view, [(20, 22), (9, 9), (4, 6), (5, 6)], paint)
    assert painted == [(4, 6), (20, 22)]
    assert [section.range.start for section in delta.removed] == [4, 20]
    assert len(spliced) == len(view) - 2
    assert all(any(one is other for other in view) for one in spliced), "what stays is the same object"


def test_splice_widens_a_window_to_what_must_stay_apart() -> None:
    """A half of it could not be joined with the other half again."""
    apart: Cell = (0, SPAN, False, "a")
    picture = draw_runs([None] * SPAN, [(4, 12, apart)])
    cut = draw_runs(picture, [(8, 2, None)])
    whole = FlatView(sections(picture))
    holed, _ = splice(whole, [(8, 10)], lambda start, end: sections(cut, start, end))
    assert [(one.range.start, one.range.end) for one in holed] == [(4, 8), (10, 16)]
    back, delta = splice(holed, [(8, 10)], lambda start, end: sections(picture, start, end))
    assert back == whole
    assert (len(delta.removed), len(delta.added)) == (2, 1)


# differences


@pytest.mark.parametrize(
    ("changes", "altered"),
    [
        ({"log_mask": 4}, True),
        ({"coalesced": (AddressRange(0, 8),)}, True),
        ({"eventfds": (IoEventFd(0, 4, None, 3),)}, True),
        ({"readonly": True}, False),
        ({"romd": True}, False),
        ({"nonvolatile": True}, False),
        ({"unmergeable": True}, False),
        ({"offset": 8}, False),
        ({"region": REGIONS[1]}, False),
        ({"range": AddressRange(0x10, 0x18)}, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_diff_tells_what_stays_from_what_is_another_mapping(changes: dict, altered: bool) -> None:
    old = MemoryRegionSection(AddressRange(0x10, 0x20), REGIONS[0], 0)
    new = evolve(old, **changes)
    delta = diff([old], [new])
    assert delta == (ViewDiff(altered=((old, new),)) if altered else ViewDiff((old,), (new,)))
    assert delta
    spliced, same = splice(FlatView([old]), [(0, SPAN)], lambda start, end: [new])
    assert same == delta
    assert spliced.sections[0] is new


@settings(max_examples=200)
@given(st.lists(RUNS, max_size=8), st.lists(RUNS, max_size=4))
def test_diff_takes_the_old_view_to_the_new(before, edits) -> None:
    picture = draw_runs([None] * SPAN, before)
    old, new = sections(picture), sections(draw_runs(picture, edits))
    delta = diff(old, new)
    for one in (delta.removed, delta.added):
        assert all(a.range.end <= b.range.start for a, b in pairwise(one)), "ascending and apart"
    assert [*delta.removed] == [section for section in old if section not in new]
    assert [*delta.added] == [section for section in new if section not in old]
    assert (set(old) - set(delta.removed)) | set(delta.added) == set(new)


def test_diff_of_a_view_with_itself_is_none() -> None:
    view = sections(draw_runs([None] * SPAN, [(3, 4, (0, SPAN, False, None)), (20, 4, (1, SPAN, True, "a"))]))
    assert not diff(view, view)
    assert diff((), view) == ViewDiff(added=tuple(view))
    assert diff(view, ()) == ViewDiff(removed=tuple(view))
    assert splice(EMPTY_VIEW, [(0, SPAN)], lambda start, end: view)[1] == diff((), view)


# joining


def halves(**changes: object) -> list[MemoryRegionSection]:
    """Return two sections that continue each other but for `changes` of the second."""
    first = MemoryRegionSection(AddressRange(0x10, 0x20), REGIONS[0], 0)
    return [first, evolve(first, range=AddressRange(0x20, 0x30), offset=0x10, **changes)]


def test_merged_joins_neighbours_that_continue_each_other() -> None:
    first, second = halves()
    third = evolve(second, range=AddressRange(0x30, 0x38), offset=0x20)
    assert [(one.range, one.offset) for one in merged([first, second, third])] == [(AddressRange(0x10, 0x38), 0)]
    assert list(merged([])) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"log_mask": 1},
        {"readonly": True},
        {"romd": True},
        {"nonvolatile": True},
        {"unmergeable": True},
        {"offset": 0x18},
        {"region": REGIONS[1]},
        {"range": AddressRange(0x21, 0x31)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_merged_keeps_neighbours_that_differ_apart(changes: dict) -> None:
    first, second = halves()
    pair = [first, evolve(second, **changes)]
    assert list(merged(pair)) == pair
    if "unmergeable" in changes:
        both = [evolve(one, unmergeable=True) for one in pair]
        assert list(merged(both)) == both
        assert list(merged([both[0], second])) == [both[0], second]


def test_merged_of_two_aliases_side_by_side_is_one_section(stage) -> None:
    """What it looks like to the guest counts, not how it came about."""
    target = MemoryRegion.ram("ram", 0x2000)
    low, high = MemoryRegion.alias("low", target, 0, 0x1000), MemoryRegion.alias("high", target, 0x1000)
    stage.memory.add(low, 0x10000)
    stage.memory.add(high, 0x11000)
    assert [(one.range.start, one.range.end) for one in stage.memory.view] == [(0x10000, 0x12000)]
    low.set_readonly(True)
    assert len(stage.memory.view) == 2
    high.set_readonly(True)
    assert len(stage.memory.view) == 1
    assert stage.memory.view == render(stage.memory.root)


@pytest.mark.parametrize("apart", ["low", "high", "both", "target"])
def test_merged_of_what_must_stay_apart_is_two_sections(stage, apart: str) -> None:
    target = MemoryRegion.ram("ram", 0x2000)
    target.unmergeable = apart == "target"
    low = MemoryRegion.alias("low", target, 0, 0x1000, unmergeable=apart in ("low", "both"))
    high = MemoryRegion.alias("high", target, 0x1000, unmergeable=apart in ("high", "both"))
    wanted = [(0x10000, apart != "high"), (0x11000, apart != "low")]
    stage.memory.add(low, 0x10000)
    stage.memory.add(high, 0x11000)
    assert [(one.range.start, one.unmergeable) for one in stage.memory.view] == wanted
    assert stage.memory.view == render(stage.memory.root)

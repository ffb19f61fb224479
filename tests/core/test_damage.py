"""Damage: the windows that an edit notes, in every space under whose root the region shows, and their limits."""

from __future__ import annotations

import pytest

from accel.address import ADDRESS_SPACE_SIZE
from accel.memory import damage as limits
from accel.memory.address_space import AddressSpace
from accel.memory.damage import Damage
from accel.memory.region import MemoryRegion
from accel.memory.render import render

TOP = ADDRESS_SPACE_SIZE


def container(name: str, size: int = 0x10000) -> MemoryRegion:
    return MemoryRegion.container(name, size)


def mmio(name: str, size: int = 0x100) -> MemoryRegion:
    return MemoryRegion.mmio(name, size)


def noted(region: MemoryRegion, start: int, end: int, *roots: MemoryRegion) -> list[list[tuple[int, int]]]:
    """Return the windows under each of `roots` after one note, sorted."""
    damage = Damage(roots)
    damage.note(region, start, end)
    return [sorted(damage.windows(root)) for root in roots]


def test_damage_of_a_root_is_the_window_itself() -> None:
    root = container("root")
    assert noted(root, 0x10, 0x20, root) == [[(0x10, 0x20)]]


def test_damage_goes_up_through_parents_shifted_and_clipped() -> None:
    root, box, leaf = container("root"), container("box", 0x80), mmio("leaf")
    root.add(box, 0x1000)
    box.add(leaf, 0x40)
    assert noted(leaf, 0, 0x20, root) == [[(0x1040, 0x1060)]]
    assert noted(leaf, 0x30, 0x100, root) == [[(0x1070, 0x1080)]]
    assert noted(leaf, 0x40, 0x100, root) == [[]], "beyond the box"


def test_damage_stops_at_what_is_hidden() -> None:
    root, box, leaf = container("root"), container("box"), mmio("leaf")
    root.add(box, 0)
    box.add(leaf, 0)
    box.set_enabled(False)
    assert noted(leaf, 0, 0x10, root) == [[]]
    box.set_enabled(True)
    root.set_enabled(False)
    assert noted(leaf, 0, 0x10, root) == [[]]


def test_damage_goes_through_aliases_to_every_place(stage) -> None:
    target, box = mmio("target", 0x1000), container("box")
    box.add(target, 0x2000)
    stage.memory.add(MemoryRegion.alias("shifted", target, 0x800, 0x400), 0x10000)
    stage.memory.add(MemoryRegion.alias("of-box", box, 0x2100, 0x100), 0x20000)
    outer = MemoryRegion.alias("outer", MemoryRegion.alias("inner", target, 0x100, 0x800), 0x200)
    stage.memory.add(outer, 0x30000)
    gone = MemoryRegion.alias("gone", target)
    stage.memory.add(gone, 0x40000)
    stage.memory.remove(gone)
    root = stage.memory.root
    assert noted(target, 0x100, 0x200, root) == [[(0x20000, 0x20100)]]
    assert noted(target, 0x800, 0x900, root) == [[(0x10000, 0x10100), (0x30500, 0x30600)]]
    assert noted(target, 0, 0x100, root) == [[]]
    assert noted(target, 0, 0x1000, root) == [[(0x10000, 0x10400), (0x20000, 0x20100), (0x30000, 0x30600)]]


def test_damage_is_told_apart_by_root_and_goes_on_beyond_an_inner_one(stage) -> None:
    inner, leaf = container("inner"), mmio("leaf")
    inner.add(leaf, 0x100)
    stage.memory.add(inner, 0x8000)
    stage.io.add(MemoryRegion.alias("window", stage.memory.root, 0x8000, 0x1000), 0x200)
    roots = (inner, stage.memory.root, stage.io.root)
    assert noted(leaf, 0, 0x10, *roots) == [[(0x100, 0x110)], [(0x8100, 0x8110)], [(0x300, 0x310)]]


def test_damage_of_what_shows_nowhere_is_none() -> None:
    root, leaf = container("root"), mmio("leaf")
    damage = Damage([root])
    damage.note(leaf, 0, 0x100)
    assert damage.windows(root) == []
    damage.note(root, 0, 1)
    damage.clear()
    assert damage.windows(root) == []


def test_damage_visits_a_place_once_however_many_ways_lead_there(stage) -> None:
    """30 levels of two aliases each are 2^30 ways, which all lead to the same window."""
    target = mmio("leaf")
    top = target
    for level in range(30):
        box = container(f"box{level}", 0x100)
        box.add(MemoryRegion.alias("one", top), 0)
        box.add(MemoryRegion.alias("other", top), 0)
        top = box
    stage.memory.add(top, 0)
    assert noted(target, 0x10, 0x20, stage.memory.root) == [[(0x10, 0x20)]]


def test_damage_of_too_many_places_is_everything_everywhere(stage) -> None:
    target = mmio("leaf", 1)
    with stage.transaction():
        for number in range(limits.MAX_PLACES):
            stage.io.add(MemoryRegion.alias("a", target), number)
    ((memory, io),) = [noted(target, 0, 1, stage.memory.root, stage.io.root)]
    assert memory == io == [(0, TOP)]
    target.set_enabled(False)
    assert len(stage.io.view) == 0


def test_damage_of_too_many_windows_is_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_WINDOWS", 3)
    root = container("root")
    damage = Damage([root])
    for at in range(3):
        damage.note(root, at * 0x10, at * 0x10 + 1)
    assert damage.windows(root) == [(0, 1), (0x10, 0x11), (0x20, 0x21)]
    damage.note(root, 0x50, 0x51)
    assert (0, TOP) in damage.windows(root)


@pytest.mark.parametrize("limit", ["MAX_PLACES", "MAX_WINDOWS"])
def test_damage_of_everything_reaches_to_where_a_root_ended_before(stage, monkeypatch, limit: str) -> None:
    """A root that shrinks in the same transaction showed more than it does when the limit is reached."""
    monkeypatch.setattr(limits, limit, 1)
    root = container("root")
    space = AddressSpace("small", stage.transactions, root)
    low, high = mmio("low"), mmio("high")
    with stage.transaction():
        root.add(low, 0)
        root.add(high, 0xF000)
    assert len(space.view) == 2
    with stage.transaction():
        root.resize(0x8000)
        low.move(0x1000)
        low.move(0x2000)
    assert [one.region.name for one in space.view] == ["low"]
    with stage.transaction():
        low.move(0x3000)
        low.move(0x4000)
        root.resize(0x10000)
    assert space.view == render(root)
    assert [one.range.start for one in space.view] == [0x4000, 0xF000]


@pytest.mark.parametrize(
    ("edit", "windows"),
    [
        (lambda leaf: leaf.move(0x300), [(0x1000, 0x1100), (0x1300, 0x1400)]),
        (lambda leaf: leaf.resize(0x180), [(0x1100, 0x1180)]),
        (lambda leaf: leaf.resize(0x80), [(0x1080, 0x1100)]),
        (lambda leaf: leaf.set_priority(3), [(0x1000, 0x1100)]),
        (lambda leaf: leaf.set_enabled(False), [(0x1000, 0x1100)]),
        (lambda leaf: leaf.set_readonly(True), [(0x1000, 0x1100)]),
        (lambda leaf: leaf.parent.remove(leaf), [(0x1000, 0x1100)]),
        (lambda leaf: leaf.add(mmio("child", 0x10), 0x20), [(0x1020, 0x1030)]),
        (lambda leaf: leaf.parent.set_enabled(False), [(0x1000, 0x2000)]),
    ],
    ids=["move", "grow", "shrink", "priority", "enabled", "readonly", "remove", "add", "parent"],
)
def test_damage_of_each_edit_is_as_small_as_can_be(stage, edit, windows: list) -> None:
    box, leaf = container("box", 0x1000), mmio("leaf")
    box.add(leaf, 0)
    stage.memory.add(box, 0x1000)
    with stage.transaction():
        edit(leaf)
        assert sorted(set(stage.transactions._damage.windows(stage.memory.root))) == windows

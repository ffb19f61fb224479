"""Rendering: trees against an oracle that asks one address at a time, worked examples, and what bounds the cost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_plans import SPAN, Plan, answers, expected, shown, trees

from accel.address import ADDRESS_SPACE_SIZE, AddressRange
from accel.errors import RegionError
from accel.memory import render as rendering
from accel.memory.dirty import DirtyClient
from accel.memory.flat_view import FlatView
from accel.memory.region import MemoryRegion
from accel.memory.region_tree import RegionNode
from accel.memory.render import MAX_DEPTH, render

TOP = ADDRESS_SPACE_SIZE
Build = Callable[..., MemoryRegion]


def places(view: FlatView) -> list[tuple[str, int, int, int]]:
    """Return (name, start, last, offset) of each section."""
    return [(one.region.name, one.range.start, one.range.end - 1, one.offset) for one in view]


@settings(max_examples=250)
@given(trees())
def test_render_shows_what_each_address_answers(plan: Plan) -> None:
    view = render(plan.build())
    assert shown(view) == expected(answers(plan))
    assert all(section.romd == section.region.romd for section in view)


@settings(max_examples=100)
@given(trees(), st.integers(0, SPAN), st.integers(0, SPAN))
def test_render_of_a_window_is_what_the_whole_shows_there(plan: Plan, one: int, other: int) -> None:
    window = AddressRange(min(one, other), max(one, other))
    inside = render(plan.build(), window)
    assert shown(inside) == expected([answer if at in window else None for at, answer in enumerate(answers(plan))])


# worked examples

A_TO_E = [
    ("C", 0x0000, 0x1FFF, 0x0000),
    ("D", 0x2000, 0x2FFF, 0x0000),
    ("C", 0x3000, 0x3FFF, 0x3000),
    ("E", 0x4000, 0x4FFF, 0x0000),
    ("C", 0x5000, 0x5FFF, 0x5000),
]
A_TO_E_WITH_B = [
    ("C", 0x0000, 0x1FFF, 0x0000),
    ("D", 0x2000, 0x2FFF, 0x0000),
    ("B", 0x3000, 0x3FFF, 0x1000),
    ("E", 0x4000, 0x4FFF, 0x0000),
    ("B", 0x5000, 0x5FFF, 0x3000),
]


def a_to_e(make_b: Build) -> dict[str, MemoryRegion]:
    """Make the regions of the example in QEMU's docs/devel/memory.rst, which stand nowhere yet."""
    sizes = {"C": 0x6000, "D": 0x1000, "E": 0x1000}
    made = {name: MemoryRegion.mmio(name, size) for name, size in sizes.items()}
    return {"A": MemoryRegion.container("A", 0x8000), "B": make_b("B", 0x4000), **made}


def a_to_e_edits(stage, made: dict[str, MemoryRegion]) -> list[Callable[[], None]]:
    return [
        lambda: stage.memory.add(made["A"], 0),
        lambda: made["A"].add(made["B"], 0x2000, priority=2),
        lambda: made["A"].add(made["C"], 0, priority=1),
        lambda: made["B"].add(made["D"], 0),
        lambda: made["B"].add(made["E"], 0x2000),
    ]


@pytest.mark.parametrize(
    ("make_b", "wanted"),
    [(MemoryRegion.container, A_TO_E), (MemoryRegion.mmio, A_TO_E_WITH_B)],
    ids=["container", "with-mmio-of-its-own"],
)
def test_render_worked_example_a_to_e_in_every_order_of_edits(make_stage, make_b: Build, wanted: list) -> None:
    for order in permutations(range(5)):
        for at_once in (True, False):
            stage = make_stage()
            edits = a_to_e_edits(stage, a_to_e(make_b))
            if at_once:
                with stage.transaction():
                    for number in order:
                        edits[number]()
            else:
                for number in order:
                    edits[number]()
            assert places(stage.memory.view) == wanted, f"order {order}, at once: {at_once}"
            assert stage.memory.view == render(stage.memory.root)
            assert stage.memory.view.find(0x6000) is None


def test_render_worked_example_a_to_e_reached_by_detours(stage) -> None:
    """Each edit puts right what the first five put wrong."""
    made = a_to_e(MemoryRegion.container)
    with stage.transaction():
        stage.memory.add(made["A"], 0)
        made["A"].add(made["B"], 0x1000, priority=0)
        made["A"].add(made["C"], 0x800, priority=1)
        made["B"].add(made["D"], 0x2000)
        made["B"].add(made["E"], 0x2000)
    made["E"].set_enabled(False)
    made["D"].move(0)
    made["C"].move(0)
    made["B"].move(0x2000)
    assert places(stage.memory.view) == [("C", 0, 0x5FFF, 0)], "C is above B still"
    made["B"].set_priority(2)
    assert places(stage.memory.view) == [*A_TO_E[:2], ("C", 0x3000, 0x5FFF, 0x3000)]
    made["E"].set_enabled(True)
    assert places(stage.memory.view) == A_TO_E
    made["C"].set_priority(3)
    made["C"].resize(0x3000)
    assert places(stage.memory.view) == [("C", 0, 0x2FFF, 0), ("E", 0x4000, 0x4FFF, 0)]
    stage.check()


def test_render_worked_example_of_a_pc(stage) -> None:
    """The simplified PC of the same document: RAM in two aliases, a hole for PCI, and the VGA window over RAM."""
    ram = MemoryRegion.mmio("ram", 1 << 32)  # What it is made of is of no account here.
    pci = MemoryRegion.container("pci", 1 << 32)
    vram = MemoryRegion.mmio("vram", 0x100_0000)
    area = MemoryRegion.container("vga-area", 0x20000)
    area.add(MemoryRegion.alias("bank0", vram, 0x10000, 0x8000), 0)
    area.add(MemoryRegion.alias("bank1", vram, 0x20000, 0x8000), 0x8000)
    pci.add(area, 0xA0000)
    pci.add(vram, 0xE100_0000)
    pci.add(MemoryRegion.mmio("vga-mmio", 0x10000), 0xE200_0000)
    window = MemoryRegion.alias("vga-window", pci, 0xA0000, 0x20000)
    with stage.transaction():
        stage.memory.add(MemoryRegion.alias("lomem", ram, 0, 0xE000_0000), 0)
        stage.memory.add(MemoryRegion.alias("himem", ram, 0xE000_0000), 1 << 32)
        stage.memory.add(window, 0xA0000, priority=1)
        stage.memory.add(MemoryRegion.alias("pci-hole", pci, 0xE000_0000), 0xE000_0000)
    above = [
        ("vram", 0xE100_0000, 0xE1FF_FFFF, 0),
        ("vga-mmio", 0xE200_0000, 0xE200_FFFF, 0),
        ("ram", 1 << 32, 0x1_1FFF_FFFF, 0xE000_0000),
    ]
    assert places(stage.memory.view) == [
        ("ram", 0, 0x9FFFF, 0),
        ("vram", 0xA0000, 0xA7FFF, 0x10000),
        ("vram", 0xA8000, 0xAFFFF, 0x20000),
        ("ram", 0xB0000, 0xDFFF_FFFF, 0xB0000),
        *above,
    ]
    stage.memory.remove(window)
    assert places(stage.memory.view) == [("ram", 0, 0xDFFF_FFFF, 0), *above]
    vram.move(0x9000_0000)
    assert places(stage.memory.view) == [("ram", 0, 0xDFFF_FFFF, 0), *above[1:]], "a BAR outside of the hole is hidden"


# single rules


def test_render_of_a_tie_shows_the_latest_added_and_a_move_keeps_the_rank() -> None:
    root = MemoryRegion.container("root", 0x100)
    for name in "abc":
        root.add(MemoryRegion.mmio(name, 0x10), 0)
    assert places(render(root)) == [("c", 0, 0xF, 0)]
    root.children[-1].move(8)
    assert places(render(root)) == [("c", 0, 0xF, 0), ("a", 0x10, 0x17, 8)]
    a = root.children[-1]
    root.remove(a)
    root.add(a, 8)
    assert places(render(root)) == [("c", 0, 7, 0), ("a", 8, 0x17, 0)]


def test_render_of_a_negative_priority_lies_below_its_siblings_only() -> None:
    root, box = MemoryRegion.container("root", 0x100), MemoryRegion.container("box", 0x40)
    root.add(MemoryRegion.mmio("floor", 0x100), 0, priority=-5)
    root.add(box, 0x20)
    box.add(MemoryRegion.mmio("deep", 0x10), 0, priority=-100)
    assert places(render(root)) == [("floor", 0, 0x1F, 0), ("deep", 0x20, 0x2F, 0), ("floor", 0x30, 0xFF, 0x30)]


def test_render_alias_that_reaches_beyond_its_target_shows_a_hole() -> None:
    root, target = MemoryRegion.container("root"), MemoryRegion.mmio("m", 0x100)
    root.add(MemoryRegion.mmio("under", 0x1000), 0, priority=-1)
    root.add(MemoryRegion.alias("a", target, 0x80, 0x200), 0)
    assert places(render(root)) == [("m", 0, 0x7F, 0x80), ("under", 0x80, 0xFFF, 0x80)]
    target.resize(0x1000)
    assert places(render(root)) == [("m", 0, 0x1FF, 0x80), ("under", 0x200, 0xFFF, 0x200)]


def test_render_alias_of_what_stands_elsewhere_ignores_where_that_is() -> None:
    root, target = MemoryRegion.container("root", 0x1000), MemoryRegion.mmio("m", 0x100)
    root.add(target, 0x800, priority=7)
    root.add(MemoryRegion.alias("a", target), 0x100)
    assert places(render(root)) == [("m", 0x100, 0x1FF, 0), ("m", 0x800, 0x8FF, 0)]


def test_render_alias_of_a_hidden_region_shows_nothing() -> None:
    root, target = MemoryRegion.container("root", 0x1000), MemoryRegion.mmio("m", 0x100)
    target.set_enabled(False)
    root.add(MemoryRegion.alias("a", target), 0)
    assert len(render(root)) == 0


def test_render_of_a_region_with_children_shows_it_in_their_holes() -> None:
    root, ram = MemoryRegion.container("root", 0x4000), MemoryRegion.ram("ram", 0x3000)
    root.add(ram, 0)
    ram.add(MemoryRegion.mmio("door", 0x10), 0x1000, priority=-9)
    ram.add(MemoryRegion.mmio("over the end", 0x1000), 0x2800)
    assert places(render(root)) == [
        ("ram", 0, 0xFFF, 0),
        ("door", 0x1000, 0x100F, 0),
        ("ram", 0x1010, 0x27FF, 0x1010),
        ("over the end", 0x2800, 0x2FFF, 0),
    ]


def test_render_of_a_rom_device_follows_its_mode(stage) -> None:
    flash = MemoryRegion.rom_device("flash", b"\x90" * 16, 0x2000)
    stage.memory.add(flash, 0x1000)
    (section,) = stage.memory.view
    assert (section.romd, section.is_ram, section.readonly, section.maps_readonly) == (True, True, False, True)
    assert section.ops(is_write=False) is None
    assert section.ops(is_write=True) is flash.ops
    flash.set_romd(False)
    (device,) = stage.memory.view
    assert (device.romd, device.is_ram) == (False, False)
    assert device.ops(is_write=False) is device.ops(is_write=True) is flash.ops
    assert device != section
    flash.set_romd(True)
    assert stage.memory.view.sections == (section,)
    stage.check()


def test_render_ors_readonly_and_nonvolatile_downward(stage) -> None:
    ram, box = MemoryRegion.ram("ram", 0x2000, nonvolatile=True), MemoryRegion.container("box", 0x4000)
    other = MemoryRegion.ram("other", 0x2000)
    box.add(ram, 0)
    box.add(other, 0x2000)
    stage.memory.add(box, 0)
    stage.memory.add(MemoryRegion.alias("shadow", box, readonly=True), 0x10000)

    def flags() -> list[tuple[bool, bool]]:
        return [(one.readonly, one.nonvolatile) for one in stage.memory.view]

    assert flags() == [(False, True), (False, False), (True, True), (True, False)]
    box.set_nonvolatile(True)
    assert flags() == [(False, True), (False, True), (True, True), (True, True)]
    box.set_readonly(True)
    box.set_nonvolatile(False)
    ram.set_nonvolatile(False)
    assert flags() == [(True, False)] * 4
    stage.check()


def test_render_logs_memory_only() -> None:
    root = MemoryRegion.container("root", 0x10000)
    ram = MemoryRegion.ram("ram", 0x1000)
    ram.start_log(DirtyClient.VGA)
    root.add(ram, 0)
    root.add(MemoryRegion.rom("rom", b"", 0x1000), 0x1000)
    root.add(MemoryRegion.mmio("mmio", 0x1000), 0x2000)
    assert [one.log_mask for one in render(root)] == [DirtyClient.VGA, 0, 0]
    masks = [one.log_mask for one in render(root, None, int(DirtyClient.MIGRATION))]
    assert masks == [DirtyClient.VGA | DirtyClient.MIGRATION, DirtyClient.MIGRATION, 0]


def test_render_reaches_from_the_first_to_the_last_address() -> None:
    root = MemoryRegion.container("root")
    root.add(MemoryRegion.mmio("all", TOP), 0, priority=-1)
    root.add(MemoryRegion.mmio("last", 1), TOP - 1)
    inner = MemoryRegion.container("inner", TOP)
    inner.add(MemoryRegion.mmio("high", 0x1000), TOP - 0x1000)
    root.add(MemoryRegion.alias("shifted", inner, TOP - 0x1000, 0x1000), 0x1000)
    root.add(MemoryRegion.alias("far", inner, 1, TOP), 0)
    assert places(render(root)) == [
        ("all", 0, 0xFFF, 0),
        ("high", 0x1000, 0x1FFF, 0),
        ("all", 0x2000, TOP - 0x1002, 0x2000),
        ("high", TOP - 0x1001, TOP - 2, 0),
        ("last", TOP - 1, TOP - 1, 0),
    ]


def test_render_of_many_children_in_any_order_of_adding(stage) -> None:
    count = 3000
    regions = [MemoryRegion.mmio(f"m{number}", 0x10) for number in range(count)]
    with stage.transaction():
        stage.memory.add(MemoryRegion.mmio("floor", count * 0x20), 0, priority=-1)
        for step in range(count):
            number = step * 1723 % count
            stage.memory.add(regions[number], number * 0x20)
    assert len(stage.memory.view) == 2 * count
    assert [one.region for one in stage.memory.view.sections[::2]] == regions
    view = stage.memory.view
    regions[1234].move(1234 * 0x20 + 8)
    assert stage.memory.view == render(stage.memory.root)
    stayed = {id(one) for one in view} & {id(one) for one in stage.memory.view}
    assert len(stayed) == 2 * count - 3, "all but it and its neighbours are the same objects"


# bounds


def nest(depth: int, leaf: MemoryRegion) -> MemoryRegion:
    """Put `leaf` that many levels below what is returned, through containers and aliases in turn."""
    top = leaf
    for level in range(depth):
        if level % 2:
            top = MemoryRegion.alias(f"alias{level}", top)
        else:
            box = MemoryRegion.container(f"box{level}", top.size)
            box.add(top, 0)
            top = box
    return top


def test_render_of_a_tree_as_deep_as_can_be_works_and_one_deeper_is_refused(stage) -> None:
    leaf = MemoryRegion.mmio("leaf", 0x100)
    top = nest(MAX_DEPTH - 1, leaf)  # The root is one level more.
    stage.memory.add(top, 0)
    assert places(stage.memory.view) == [("leaf", 0, 0xFF, 0)]
    view = stage.memory.view
    with pytest.raises(RegionError, match=f"'below': lies more than {MAX_DEPTH} levels deep; nest fewer regions"):
        leaf.add(MemoryRegion.mmio("below", 0x10), 0)
    assert stage.memory.view is view
    assert leaf.children == ()
    stage.memory.remove(top)
    assert len(stage.memory.view) == 0
    stage.check()


def test_render_of_a_tree_far_too_deep_is_refused_and_the_map_before_stays(stage) -> None:
    stage.memory.add(MemoryRegion.mmio("before", 0x10), 0x1000)
    view = stage.memory.view
    top = box = MemoryRegion.container("top", 0x100)
    for level in range(20_000):
        inner = MemoryRegion.container(f"box{level}", 0x100)
        box.add(inner, 0)
        box = inner
    with pytest.raises(RegionError, match="levels deep"):
        stage.memory.add(top, 0)
    assert stage.memory.view is view
    assert len(stage.memory.root.children) == 1
    stage.check()


def doubled(times: int, *, side_by_side: bool) -> MemoryRegion:
    """Return a container that shows another twice, which shows another twice, and so on: 2^times places."""
    top = MemoryRegion.mmio("leaf", 1) if side_by_side else MemoryRegion.container("empty", 0x1000)
    for level in range(times):
        size = top.size * 2 if side_by_side else top.size
        box = MemoryRegion.container(f"box{level}", size)
        box.add(MemoryRegion.alias("first", top), 0)
        box.add(MemoryRegion.alias("second", top), size - top.size)
        top = box
    return top


@pytest.mark.parametrize("side_by_side", [True, False], ids=["leaves", "holes"])
def test_render_of_aliases_that_unfold_without_end_is_refused_and_the_map_before_stays(
    stage, side_by_side: bool
) -> None:
    stage.memory.add(MemoryRegion.mmio("before", 0x10), 1 << 50)
    view = stage.memory.view
    with pytest.raises(RegionError, match=f"unfolds into more than {rendering.MAX_PLACEMENTS} places; let fewer"):
        stage.memory.add(doubled(45, side_by_side=side_by_side), 0)
    assert stage.memory.view is view
    assert len(stage.memory.root.children) == 1
    stage.memory.add(MemoryRegion.mmio("after", 0x10), 0)
    assert [one.region.name for one in stage.memory.view] == ["after", "before"]
    stage.check()


def test_render_counts_places_and_not_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 leaves, 15 pairs of aliases below each other, a container over each pair, and the leaf's 16 places."""
    root = doubled(4, side_by_side=True)
    wanted = 1 + 2 * sum(2**level for level in range(1, 5))
    monkeypatch.setattr(rendering, "MAX_PLACEMENTS", wanted)
    assert len(render(root)) == 16
    monkeypatch.setattr(rendering, "MAX_PLACEMENTS", wanted - 1)
    with pytest.raises(RegionError, match="unfolds"):
        render(root)


def test_render_of_a_loop_that_slipped_in_is_refused_too() -> None:
    """No edit makes one (see test_region), and if one did, rendering would still end."""
    box = MemoryRegion.container("box", 0x1000)
    alias = MemoryRegion.alias("alias", box)
    box.add(MemoryRegion.mmio("m", 0x10), 0)
    outer = MemoryRegion.container("outer", 0x1000)
    outer.add(alias, 0)
    alias.target = outer
    with pytest.raises(RegionError, match="levels deep"):
        render(outer)


def test_render_of_many_windows_costs_no_more_than_everything(stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Holes that reach everywhere are looked at again for each window, so that windows alone would bound nothing."""
    empty = MemoryRegion.container("empty")
    small = [MemoryRegion.mmio(f"m{number}", 0x10) for number in range(60)]
    with stage.transaction():
        for number, one in enumerate(small):
            stage.memory.add(one, number * 0x100)
        for number in range(100):
            stage.memory.add(MemoryRegion.alias(f"hole{number}", empty), 0, priority=1)
    monkeypatch.setattr(rendering, "MAX_PLACEMENTS", 1000)
    looked = []
    monkeypatch.setattr(
        MemoryRegion, "children_in", lambda one, *window: looked.append(one) or RegionNode.children_in(one, *window)
    )
    with stage.transaction():
        for one in small:
            one.move(one.offset + 8)
    assert [one.range.start for one in stage.memory.view] == [number * 0x100 + 8 for number in range(60)]
    assert looked.count(stage.memory.root) > 2, "windows were tried"
    assert len(looked) < 2 * 1000
    stage.memory.add(MemoryRegion.mmio("one more", 0x10), 0x50000)
    monkeypatch.setattr(rendering, "MAX_PLACEMENTS", 100)
    view = stage.memory.view
    with pytest.raises(RegionError, match="unfolds into more than 100 places"), stage.transaction():
        for one in small:
            one.move(one.offset + 8)
    assert stage.memory.view is view
    monkeypatch.undo()
    stage.check()

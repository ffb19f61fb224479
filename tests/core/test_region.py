"""MemoryRegion: what an edit refuses, that a refused or failed edit changes nothing, ownership, host access."""

from __future__ import annotations

import ctypes
import os
import struct
from types import SimpleNamespace

import pytest
from memory_tree import every_region

from accel.address import ADDRESS_SPACE_SIZE, PAGE_SIZE, AddressRange
from accel.errors import AddressError, ClosedError, LockError, RegionError, StateError, UsageError
from accel.memory.address_space import AddressSpace
from accel.memory.dirty import DirtyClient
from accel.memory.flat_view import FlatView
from accel.memory.ram_block import RamBlock
from accel.memory.region import MemoryRegion, RegionKind
from accel.memory.render import render

TOP = ADDRESS_SPACE_SIZE
#: Any eventfd; nothing here rings it.
EVENTFD = os.eventfd(0)


def container(name: str = "c", size: int = 0x1000) -> MemoryRegion:
    return MemoryRegion.container(name, size)


def ram(name: str = "r", size: int | str = PAGE_SIZE, max_size: int | str | None = None) -> MemoryRegion:
    return MemoryRegion.ram(name, size, max_size)


def mmio(name: str = "m", size: int = 0x100) -> MemoryRegion:
    return MemoryRegion.mmio(name, size)


def snapshot(*regions: MemoryRegion) -> list[object]:
    """Return everything that an edit may change."""
    names = (
        *("size", "offset", "priority", "serial", "enabled", "readonly", "nonvolatile", "romd", "parent", "children"),
        *("target_offset", "log_mask", "coalesced", "eventfds"),
    )
    return [
        (*(getattr(one, name) for name in names), one.block.size if one.block else None)
        for root in regions
        for one in every_region(root)
    ]


# making


@pytest.mark.parametrize("size", [0, TOP + 1])
def test_region_of_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(RegionError, match=f"memory region 'c': size {size:#x} is not in 1 to 2\\^64"):
        container(size=size)


def test_region_takes_sizes_as_people_write_them() -> None:
    assert ram(size="64K", max_size="1M").size == 64 << 10
    assert container(size=TOP).size == TOP


def test_region_ram_is_zeroed_and_reserved_to_its_greatest_size() -> None:
    region = ram(size="4K", max_size="1M")
    assert region.read(0, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert region.block.max_size == 1 << 20
    assert region.block.address % PAGE_SIZE == 0


@pytest.mark.parametrize(("size", "max_size"), [(0, None), (2, 1), (0, 4096)])
def test_region_ram_of_impossible_sizes_is_refused(size: int, max_size: int | None) -> None:
    with pytest.raises(AddressError, match=r"0 < size <= max_size must hold"):
        ram(size=size, max_size=max_size)


@pytest.mark.parametrize("size", ["8388608T", TOP, 1 << 62])
def test_region_ram_beyond_what_the_host_can_reserve_is_refused(size: int | str) -> None:
    with pytest.raises(AddressError, match="cannot reserve"):
        ram(size=size)


def test_region_rom_holds_its_contents_and_is_read_only() -> None:
    region = MemoryRegion.rom("bios", b"abc", size=8)
    assert region.read(0, 8) == b"abc" + bytes(5)
    assert region.readonly
    with pytest.raises(RegionError, match="is ROM"):
        region.set_readonly(False)
    region.set_readonly(True)


def test_region_rom_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RegionError, match="0x4 bytes do not fit into size 0x3"):
        MemoryRegion.rom("bios", b"abcd", size=3)


def test_region_alias_reaches_to_the_end_of_its_target_by_default() -> None:
    target = container(size=0x1000)
    assert MemoryRegion.alias("a", target, 0x400).size == 0xC00
    assert MemoryRegion.alias("a", target, 0x400, 0x10).size == 0x10


@pytest.mark.parametrize("offset", [0x1000, 0x2000])
def test_region_alias_that_begins_at_or_behind_the_end_is_refused(offset: int) -> None:
    with pytest.raises((RegionError, AddressError)):
        MemoryRegion.alias("a", container(size=0x1000), offset)


def test_region_alias_with_a_negative_offset_is_refused() -> None:
    with pytest.raises(RegionError, match="negative"):
        MemoryRegion.alias("a", container(), -1, 0x10)


# adding and removing


def test_region_children_are_ordered_by_priority_then_latest_first() -> None:
    root = container()
    added = {}
    for name, priority in [("low", -1), ("a", 0), ("b", 0), ("high", 5), ("c", 0), ("high2", 5)]:
        added[name] = mmio(name)
        root.add(added[name], 0, priority)
    assert [child.name for child in root.children] == ["high2", "high", "c", "b", "a", "low"]
    assert added["high"].parent is root
    assert added["low"].priority == -1


def test_region_add_of_what_has_a_parent_is_refused() -> None:
    root, other, child = container("root"), container("other"), mmio()
    root.add(child, 0x10)
    before = snapshot(root, other)
    for target in (root, other):
        with pytest.raises(RegionError, match="is in 'root' already; remove it there first"):
            target.add(child, 0)
    assert snapshot(root, other) == before


@pytest.mark.parametrize("at", [-1, TOP - 0xFF, TOP])
def test_region_add_beyond_the_address_space_is_refused(at: int) -> None:
    with pytest.raises(RegionError, match=r"does not end by 2\^64"):
        container("root", TOP).add(mmio(size=0x100), at)


@pytest.mark.parametrize("at", [4096.0, "4096", None])
def test_region_place_that_is_no_whole_number_is_refused(at: object) -> None:
    box, child = MemoryRegion.container("box", 1 << 32), ram()
    with pytest.raises(UsageError, match="of 'r' in 'box' is no whole number"):
        box.add(child, at)
    box.add(child, 0)
    with pytest.raises(UsageError, match="of 'r' in 'box' is no whole number"):
        child.move(at)
    with pytest.raises(UsageError, match="of what 'window' shows is no whole number"):
        MemoryRegion.alias("window", box, at, 4096)
    assert (child.parent, child.offset) == (box, 0)


def test_region_add_up_to_the_last_address_works() -> None:
    root = container("root", TOP)
    root.add(mmio(size=0x100), TOP - 0x100)
    assert root.children[0].offset == TOP - 0x100


def test_region_add_of_itself_or_an_ancestor_is_refused() -> None:
    outer, inner = container("outer"), container("inner")
    outer.add(inner, 0)
    for child in (outer, inner):
        with pytest.raises(RegionError):
            inner.add(child, 0)
    assert inner.children == ()


def test_region_add_of_an_alias_that_leads_back_is_refused() -> None:
    outer, inner = container("outer"), container("inner")
    outer.add(inner, 0)
    with pytest.raises(RegionError, match="contains 'inner'"):
        inner.add(MemoryRegion.alias("a", outer), 0)
    with pytest.raises(RegionError, match="contains 'inner'"):
        inner.add(MemoryRegion.alias("a", inner), 0)
    with pytest.raises(RegionError, match="contains 'inner'"):
        inner.add(MemoryRegion.alias("b", MemoryRegion.alias("a", outer)), 0)


def test_region_add_that_closes_a_ring_later_is_refused() -> None:
    one, two = container("one"), container("two")
    two.add(MemoryRegion.alias("to-one", one), 0)
    with pytest.raises(RegionError, match="contains 'one'"):
        one.add(two, 0)


@pytest.mark.parametrize("belongs", ["nobody", "vm", "vm-target", "vm-parent"])
@pytest.mark.parametrize("depth", [1, 2, 3, 10, 300])
def test_region_add_that_closes_a_ring_of_any_length_is_refused(stage, depth: int, belongs: str) -> None:
    """Through containers and aliases in turn, whichever part of the ring belongs to the VM already."""
    bottom = top = container("bottom")
    for level in range(depth):
        box = container(f"box{level}")
        box.add(MemoryRegion.alias(f"alias{level}", top) if level % 3 else top, 0)
        if belongs == "vm-target" and level == depth // 2:
            stage.memory.add(box, 0)
            stage.memory.remove(box)
        top = box
    if belongs == "vm":
        top.set_enabled(False)  # It may be too deep to be rendered.
        stage.memory.add(top, 0)
        stage.memory.remove(top)
    if belongs == "vm-parent":
        stage.memory.add(MemoryRegion.alias("window", bottom), 0)
    before, view = snapshot(top, bottom, stage.memory.root), stage.memory.view
    with pytest.raises(RegionError, match=r"contains 'bottom', itself or through an alias|is in .* already"):
        bottom.add(top, 0)
    with pytest.raises(RegionError, match="contains 'bottom', itself or through an alias"):
        bottom.add(MemoryRegion.alias("back", top), 0)
    assert snapshot(top, bottom, stage.memory.root) == before
    assert stage.memory.view is view
    inner = container("inner")
    bottom.add(inner, 0)
    with pytest.raises(RegionError, match="contains 'inner'"):
        inner.add(MemoryRegion.alias("deeper back", MemoryRegion.alias("back", top)), 0)
    inner.add(mmio(), 0)


def test_region_add_to_an_alias_is_refused() -> None:
    """It would never show: an alias shows its target and nothing else."""
    target = container("target")
    with pytest.raises(RegionError, match=r"is an alias .* add to 'target'"):
        MemoryRegion.alias("a", target).add(mmio(), 0)


def test_region_remove_makes_it_addable_elsewhere() -> None:
    one, two, child = container("one"), container("two"), mmio()
    one.add(child, 0x10, priority=3)
    one.remove(child)
    assert one.children == ()
    assert child.parent is None
    two.add(child, 0x20)
    assert (child.offset, child.priority) == (0x20, 0)


def test_region_remove_of_what_is_not_there_is_refused() -> None:
    with pytest.raises(RegionError, match="is not in 'c'"):
        container().remove(mmio())


def test_region_move_and_resize_keep_within_the_address_space() -> None:
    root, child = container("root", TOP), mmio(size=0x100)
    with pytest.raises(RegionError, match="is in no region"):
        child.move(0)
    child.resize(TOP)
    child.resize(0x100)
    root.add(child, 0)
    child.move(TOP - 0x100)
    with pytest.raises(RegionError, match=r"2\^64"):
        child.move(TOP - 0xFF)
    with pytest.raises(RegionError, match=r"2\^64"):
        child.resize(0x101)
    with pytest.raises(RegionError, match=r"2\^64"):
        child.resize(0)
    assert (child.offset, child.size) == (TOP - 0x100, 0x100)
    root.remove(child)
    child.resize(0x200)


def test_region_resize_of_ram_keeps_contents_and_address() -> None:
    region = ram(size=8, max_size=16)
    region.write(0, b"12345678")
    address = region.block.address
    region.resize(4)
    assert region.block.size == 4
    region.resize(16)
    assert region.read(0, 16) == b"12345678" + bytes(8)
    assert region.block.address == address


def test_region_resize_above_max_size_is_refused() -> None:
    region = ram(size="4K", max_size="8K")
    with pytest.raises(RegionError, match="size 12K is above its max_size 8K; create it with a larger max_size"):
        region.resize("12K")
    assert region.size == region.block.size == 4096


# ownership


def test_region_belongs_to_one_vm(make_stage) -> None:
    one, two, region = make_stage(), make_stage(), ram()
    one.memory.add(region, 0)
    one.memory.remove(region)
    with pytest.raises(RegionError, match="belongs to another VM"):
        two.memory.add(region, 0)
    assert two.memory.root.children == ()
    one.memory.add(region, 0x5000)


def test_region_alias_into_another_vm_is_refused(make_stage) -> None:
    one, two, region = make_stage(), make_stage(), ram()
    one.memory.add(region, 0)
    fresh = mmio("fresh")
    nest = container("nest")
    nest.add(fresh, 0)
    nest.add(MemoryRegion.alias("a", region), 0x100)
    with pytest.raises(RegionError, match="'r': belongs to another VM"):
        two.memory.add(nest, 0)
    # Nothing of the refused tree became the second VM's.
    nest.remove(fresh)
    one.memory.add(fresh, 0x9000)


def test_region_of_a_failed_transaction_is_nobodys_again(make_stage) -> None:
    one, two, region = make_stage(), make_stage(), ram()
    with pytest.raises(ZeroDivisionError), one.transaction():
        one.memory.add(region, 0)
        raise ZeroDivisionError
    two.memory.add(region, 0)
    two.check()
    assert one.memory.root.children == ()


def test_region_of_a_vm_claims_a_container_that_it_is_put_into(make_stage) -> None:
    """Else the container's edits were in no journal, and a rollback left it holding a region without a parent."""
    stage, other = make_stage(), make_stage()
    region, box, crate = ram(), container("box", 0x10000), container("crate", 0x10000)
    crate.add(box, 0)
    stage.memory.add(region, 0)
    with pytest.raises(ZeroDivisionError), stage.transaction():
        stage.memory.remove(region)
        box.add(region, 0x1000)
        stage.memory.add(crate, 0)
        raise ZeroDivisionError
    assert box.children == ()
    assert region.parent is stage.memory.root
    with stage.transaction():
        stage.memory.remove(region)
        box.add(region, 0x1000)
    with pytest.raises(RegionError, match="belongs to another VM"):
        other.memory.add(crate, 0)
    with pytest.raises(ZeroDivisionError), stage.transaction():
        crate.remove(box)
        raise ZeroDivisionError
    assert crate.children == (box,)
    stage.memory.add(crate, 0)
    assert stage.memory.view.find(0x1000).region is region
    stage.check()


def test_region_alias_claims_what_its_target_stands_in(make_stage) -> None:
    """Else the target was taken out of a container of nobody's, and no journal put it back."""
    stage, other = make_stage(), make_stage()
    region, box, crate, beside = ram(), container("box", 0x10000), container("crate", 0x10000), mmio("beside")
    crate.add(box, 0)
    crate.add(beside, 0x8000)
    box.add(region, 0x1000)
    stage.memory.add(MemoryRegion.alias("window", region), 0)
    before, view = snapshot(crate, stage.memory.root), stage.memory.view
    with pytest.raises(ZeroDivisionError), stage.transaction():
        region.move(0x2000)
        box.remove(region)
        stage.memory.add(region, 0x5000)
        crate.set_enabled(False)
        beside.resize(0x80)
        raise ZeroDivisionError
    assert snapshot(crate, stage.memory.root) == before
    assert stage.memory.view is view
    with pytest.raises(RegionError, match="'beside': belongs to another VM"):
        other.memory.add(MemoryRegion.alias("window", beside), 0)
    crate.remove(beside)
    with pytest.raises(RegionError, match="belongs to another VM"):
        other.memory.add(beside, 0)


def test_region_with_what_it_claimed_is_nobodys_again_after_a_failed_transaction(make_stage) -> None:
    one, two = make_stage(), make_stage()
    region, box, beside = ram(), container("box", 0x10000), mmio("beside")
    box.add(region, 0)
    box.add(beside, 0x8000)
    alias = MemoryRegion.alias("window", region)
    with pytest.raises(ZeroDivisionError), one.transaction():
        one.memory.add(alias, 0)
        assert region.aliases() == [alias]
        raise ZeroDivisionError
    assert region.aliases() == []
    two.memory.add(box, 0)
    region.set_readonly(True)
    assert one.memory.view.sections == ()


def test_region_of_a_space_that_could_not_be_made_is_nobodys_again(make_stage) -> None:
    one, two, root, top = make_stage(), make_stage(), container("root", 1), mmio("leaf", 1)
    for _ in range(300):
        box = container("box", 1)
        box.add(top, 0)
        top = box
    root.add(top, 0)
    with pytest.raises(RegionError, match="levels deep"):
        AddressSpace("deep", one.transactions, root)
    assert one.transactions.spaces == (one.memory, one.io)
    root.remove(top)
    AddressSpace("shallow", two.transactions, root)


def test_region_edit_that_is_not_journalled_changes_nothing(make_stage) -> None:
    """The journal refuses outside of a transaction; the attribute must not have changed before."""
    stage, region = make_stage(), ram(max_size="8K")
    stage.memory.add(region, 0)
    before = snapshot(stage.memory.root)
    with pytest.raises(LockError, match="outside of a transaction"):
        region._change(offset=0x1000)
    assert snapshot(stage.memory.root) == before


EDITS = {
    "add": lambda m: m.root.add(mmio("new"), 0x100),
    "remove": lambda m: m.root.remove(m.ram),
    "move": lambda m: m.ram.move(0x4000),
    "resize": lambda m: m.ram.resize(0x400),
    "enable": lambda m: m.ram.set_enabled(False),
    "readonly": lambda m: m.ram.set_readonly(True),
    "nonvolatile": lambda m: m.ram.set_nonvolatile(True),
    "priority": lambda m: m.ram.set_priority(3),
    "start-log": lambda m: m.ram.start_log(DirtyClient.VGA),
    "stop-log": lambda m: m.ram.stop_log(DirtyClient.CODE),
    "target-offset": lambda m: m.window.set_target_offset(0x80),
    "romd": lambda m: m.flash.set_romd(False),
    "add-coalescing": lambda m: m.port.add_coalescing(0x20, 8),
    "clear-coalescing": lambda m: m.port.clear_coalescing(),
    "add-eventfd": lambda m: m.port.add_eventfd(0x20, EVENTFD, 4),
    "remove-eventfd": lambda m: m.port.remove_eventfd(0x10, EVENTFD, 4),
    "root": lambda m: m.root.resize(0x9800),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_region_edit_in_a_failed_transaction_is_taken_back(stage, edit) -> None:
    root, port = stage.memory.root, mmio("port")
    made = SimpleNamespace(
        root=root,
        ram=ram(size="4K", max_size="8K"),
        port=port,
        flash=MemoryRegion.rom_device("flash", b"", 0x1000),
        window=MemoryRegion.alias("window", port, 0, 0x80),
    )
    made.ram.start_log(DirtyClient.CODE)
    port.add_coalescing(0x30, 0x10)
    port.add_eventfd(0x10, EVENTFD, 4)
    with stage.transaction():
        root.add(made.ram, 0x1000)
        root.add(mmio("over its end", 0x800), 0x1800, priority=1)
        root.add(port, 0x8000)
        root.add(made.flash, 0x9000)
        root.add(made.window, 0xA000)
    before, view, told = snapshot(root), stage.memory.view, whole(stage.memory.view)
    with pytest.raises(ZeroDivisionError), stage.transaction():
        edit(made)
        assert snapshot(root) != before
        raise ZeroDivisionError
    assert snapshot(root) == before
    assert stage.memory.view is view
    with stage.transaction():
        with pytest.raises(ZeroDivisionError), stage.transaction():
            edit(made)
            raise ZeroDivisionError
        made.flash.set_readonly(False)
    assert snapshot(root) == before
    assert stage.memory.view is view
    edit(made)
    assert whole(stage.memory.view) != told
    assert whole(stage.memory.view) == whole(render(root))
    stage.check()


def whole(view: FlatView) -> list[tuple]:
    """Return the sections with what is outside of their identity."""
    return [(one, one.log_mask, one.coalesced, one.eventfds) for one in view]


# what a region is like


def test_region_priority_is_a_number_and_belongs_to_a_place() -> None:
    root, one, other = container(), mmio("one"), mmio("other")
    with pytest.raises(RegionError, match="is in no region, so it cannot change its priority"):
        one.set_priority(1)
    root.add(one, 0)
    root.add(other, 0, priority=1)
    with pytest.raises(UsageError, match="priority 'high' of 'one' is no whole number"):
        one.set_priority("high")
    with pytest.raises(UsageError, match=r"priority 1\.5 of 'new' is no whole number"):
        root.add(mmio("new"), 0, 1.5)
    one.set_priority(2)
    assert [child.name for child in root.children] == ["one", "other"]
    one.set_priority(1)
    assert [child.name for child in root.children] == ["other", "one"], "as if it had been added with it"
    assert len(root.children) == 2


def test_region_rank_among_equals_stays_whatever_is_edited(stage) -> None:
    regions = [mmio(f"m{number}") for number in range(3)]
    for one in regions:
        stage.memory.add(one, 0)
    first = regions[0]
    first.move(0x80)
    first.resize(0x200)
    first.set_enabled(False)
    first.set_enabled(True)
    first.set_priority(-1)
    first.set_priority(0)
    assert [one.name for one in stage.memory.root.children] == ["m2", "m1", "m0"]
    stage.memory.remove(first)
    stage.memory.add(first, 0)
    assert [one.name for one in stage.memory.root.children] == ["m0", "m2", "m1"]
    assert [(one.region.name, one.range.size) for one in stage.memory.view] == [("m0", 0x200)]


def test_region_target_offset_moves_what_an_alias_shows(stage) -> None:
    target, alias = mmio("target", 0x1000), None
    alias = MemoryRegion.alias("alias", target, 0, 0x100)
    stage.memory.add(alias, 0x5000)
    alias.set_target_offset(0xF80)
    assert [(one.range.size, one.offset) for one in stage.memory.view] == [(0x80, 0xF80)]
    alias.set_target_offset(0x1000)
    assert stage.memory.view.sections == ()
    for offset in (-1, TOP):
        with pytest.raises(RegionError, match=r"in 'target' is negative or not below 2\^64"):
            alias.set_target_offset(offset)
    with pytest.raises(RegionError, match="'target': is no alias"):
        target.set_target_offset(0)
    assert alias.target_offset == 0x1000
    alias.set_target_offset(TOP - 1)
    assert stage.memory.view.sections == ()


def test_region_romd_is_for_rom_devices(stage) -> None:
    flash = MemoryRegion.rom_device("flash", b"abc", 0x1000)
    assert (flash.romd, flash.readonly, flash.read(0, 3)) == (True, False, b"abc")
    for one in (container(), ram(), MemoryRegion.rom("rom", b"x"), mmio(), MemoryRegion.alias("alias", ram())):
        assert not one.romd
        with pytest.raises(RegionError, match=f"is {one.kind.value}; only a ROM device has this mode"):
            one.set_romd(True)
    flash.set_romd(False)
    assert (flash.romd, flash.read(0, 3)) == (False, b"abc")
    with pytest.raises(RegionError, match="0x3 bytes do not fit into size 0x2"):
        MemoryRegion.rom_device("flash", b"abc", 2)


def test_region_coalescing_takes_parts_that_do_not_overlap(stage) -> None:
    port = mmio("port", 0x40)
    stage.io.add(port, 0x100)
    port.add_coalescing(0x20, 0x10)
    port.add_coalescing(0, 8)
    port.add_coalescing(0x18, 8)
    wanted = (AddressRange(0, 8), AddressRange(0x18, 0x20), AddressRange(0x20, 0x30))
    assert port.coalesced == stage.io.view.sections[0].coalesced == wanted
    for offset, size in [(0x20, 0x10), (0x1F, 2), (0x2F, 1), (0, 0x40)]:
        with pytest.raises(RegionError, match=r"queues writes to .* already, which"):
            port.add_coalescing(offset, size)
    for offset, size in [(0x3F, 2), (-1, 4), (0x40, 1), (0x41, 0), (8, -1)]:
        with pytest.raises(AddressError, match="is not inside 'port' of size 0x40"):
            port.add_coalescing(offset, size)
    with pytest.raises(RegionError, match="part of no bytes at 0x8 cannot be queued"):
        port.add_coalescing(8, 0)
    assert port.coalesced == wanted
    port.clear_coalescing()
    port.clear_coalescing()
    assert port.coalesced == stage.io.view.sections[0].coalesced == ()
    port.add_coalescing(0, 0x40)
    assert MemoryRegion.mmio("all", 0x40, coalesced=True).coalesced == port.coalesced


def test_region_eventfds_are_kept_in_order_and_one_for_each_write(stage) -> None:
    port = mmio("port", 0x40)
    stage.io.add(port, 0x100)
    for offset, size, match in [(0x3C, 4, None), (0, 4, 7), (0, 4, 1), (0, 2, None), (0x3F, 0, None)]:
        port.add_eventfd(offset, EVENTFD, size, match)
    wanted = [(0, 2, None), (0, 4, 1), (0, 4, 7), (0x3C, 4, None), (0x3F, 0, None)]
    assert [(one.offset, one.size, one.match) for one in port.eventfds] == wanted
    assert stage.io.view.sections[0].eventfds == port.eventfds
    for offset, size, match in wanted:
        with pytest.raises(RegionError, match=f"has an ioeventfd for this write at {offset:#x} already"):
            port.add_eventfd(offset, EVENTFD, size, match)
    for offset, size in [(0x3D, 4), (0x40, 0), (-1, 4)]:
        with pytest.raises(AddressError, match="is not inside 'port'"):
            port.add_eventfd(offset, EVENTFD, size)
    for offset, size, match in [(0, 4, None), (0, 4, 2), (4, 4, 1), (0, 2, 1)]:
        with pytest.raises(RegionError, match=f"has no such ioeventfd at {offset:#x}"):
            port.remove_eventfd(offset, EVENTFD, size, match)
    assert len(port.eventfds) == 5
    for offset, size, match in wanted:
        port.remove_eventfd(offset, EVENTFD, size, match)
    assert port.eventfds == stage.io.view.sections[0].eventfds == ()


@pytest.mark.parametrize("make", [container, ram, lambda: MemoryRegion.alias("alias", mmio(size=0x1000))])
def test_region_that_is_no_mmio_neither_queues_nor_rings(make) -> None:
    region = make()
    with pytest.raises(RegionError, match=f"is {region.kind.value}; only writes to MMIO can be queued"):
        region.add_coalescing(0, 8)
    with pytest.raises(RegionError, match=f"is {region.kind.value}; only writes to MMIO can ring"):
        region.add_eventfd(0, EVENTFD)


def test_region_log_counts_each_client_by_itself(stage) -> None:
    vga, code = DirtyClient.VGA, DirtyClient.CODE
    region = ram()
    region.start_log(vga)
    stage.memory.add(region, 0)

    def mask() -> int:
        (section,) = stage.memory.view
        assert section.log_mask == region.log_mask
        return section.log_mask

    assert mask() == vga
    region.start_log(vga)
    region.start_log(code)
    assert mask() == vga | code
    region.stop_log(vga)
    assert mask() == vga | code
    region.stop_log(vga)
    assert mask() == code
    for one in (region, ram("other")):
        with pytest.raises(StateError, match=f"VGA does not log '{one.name}', so it cannot stop"):
            one.stop_log(vga)
    with stage.transaction():
        region.stop_log(code)
        region.start_log(code)
    assert mask() == code
    region.stop_log(code)
    assert mask() == 0


def test_region_log_of_several_clients_counts_each_by_itself(stage) -> None:
    vga, code, migration = DirtyClient
    region = ram()
    stage.memory.add(region, 0)
    region.start_log(vga | code)
    region.start_log(vga)
    assert region.log_mask == region.dirty.mask == vga | code
    with pytest.raises(StateError, match="MIGRATION does not log 'r', so it cannot stop"):
        region.stop_log(vga | migration)
    region.stop_log(code)
    assert region.log_mask == region.dirty.mask == vga
    with pytest.raises(StateError, match="CODE does not log 'r', so it cannot stop"):
        region.stop_log(vga | code)
    region.stop_log(vga)
    region.stop_log(vga)
    assert region.log_mask == region.dirty.mask == 0
    for use in (region.start_log, region.stop_log):
        with pytest.raises(UsageError, match="0x8 has bits that are no dirty-log client"):
            use(8)
    stage.check()


def test_region_of_all_addresses_stands_at_0_only(stage) -> None:
    everything = mmio("all", TOP)
    for at in (1, TOP - 1):
        with pytest.raises(RegionError, match=r"does not end by 2\^64"):
            stage.memory.add(everything, at)
    stage.memory.add(everything, 0, priority=-1)
    with pytest.raises(RegionError, match=r"does not end by 2\^64"):
        everything.move(1)
    stage.memory.add(mmio("last", 0x10), TOP - 0x10)
    assert [(one.region.name, one.range.end) for one in stage.memory.view] == [("all", TOP - 0x10), ("last", TOP)]
    everything.resize(TOP - 1)
    everything.move(1)
    assert stage.memory.view.find(0) is None
    assert stage.memory.view.sections[0].range.start == 1


# access from the host


def test_region_read_and_write_outside_are_refused() -> None:
    region = ram(size=16, max_size=64)
    region.write(12, b"wxyz")
    assert region.read(12, 4) == b"wxyz"
    for offset, size in [(13, 4), (-1, 2), (16, 1), (17, 0), (0, -1), (0, 17)]:
        with pytest.raises(AddressError, match="is not inside 'r' of size 0x10"):
            region.read(offset, size)
    with pytest.raises(AddressError):
        region.write(13, b"wxyz")
    assert region.read(0, 16) == bytes(12) + b"wxyz"
    assert region.read(16, 0) == b""


@pytest.mark.parametrize("make", [container, mmio], ids=["container", "mmio"])
def test_region_without_bytes_refuses_host_access(make) -> None:
    for access in (lambda one: one.read(0, 1), lambda one: one.view(), lambda one: one.start_log(DirtyClient.VGA)):
        with pytest.raises(RegionError, match="has no bytes of its own"):
            access(make())


def written_pages(region: MemoryRegion) -> list[int]:
    """Return the numbers of the pages that have memory of their own: bit 56 of proc_pid_pagemap(5)."""
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(region.block.address // PAGE_SIZE * 8)
        entries = struct.unpack(f"{region.size // PAGE_SIZE}Q", pagemap.read(region.size // PAGE_SIZE * 8))
    return [number for number, entry in enumerate(entries) if entry >> 56 & 1]


def test_region_clear_leaves_untouched_pages_untouched() -> None:
    region = ram(size="4M")
    region.write(0x100000, b"x")
    written = written_pages(region)
    assert 0x100 in written
    region.clear(0, 4 << 20)
    assert region.read(0x100000, 1) == b"\0"
    # What is cleared around it is one chunk.
    assert len(written_pages(region)) <= len(written) + 16


def test_region_release_refuses_use_but_keeps_memoryviews() -> None:
    region = ram()
    region.write(0, b"kept")
    view = region.block.view
    region.release()
    region.release()
    assert bytes(view[:4]) == b"kept"
    view.release()
    region.release()
    with pytest.raises(ClosedError, match="host memory of 'r' is released"):
        region.read(0, 1)


# blocks


def test_ram_block_address_is_where_its_view_is() -> None:
    block = RamBlock("b", 4096)
    block.view[7] = 99
    assert ctypes.c_uint8.from_address(block.address + 7).value == 99


def test_region_kinds_are_what_the_makers_say() -> None:
    flash = MemoryRegion.rom_device("f", b"x")
    made = [container(), ram(), MemoryRegion.rom("o", b"x"), flash, mmio(), MemoryRegion.alias("a", container())]
    assert [one.kind for one in made] == list(RegionKind)
    assert repr(ram(size="8K")) == "<MemoryRegion ram 'r' 8K>"

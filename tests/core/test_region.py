"""MemoryRegion: what an edit refuses, that a refused or failed edit changes nothing, ownership, host access."""

from __future__ import annotations

import gc
import os

import pytest

from accel.address import ADDRESS_SPACE_SIZE, PAGE_SIZE
from accel.errors import AddressError, ClosedError, LockError, RegionError
from accel.memory.ram_block import RamBlock
from accel.memory.region import MemoryRegion, RegionKind

TOP = ADDRESS_SPACE_SIZE


def container(name: str = "c", size: int = 0x1000) -> MemoryRegion:
    return MemoryRegion.container(name, size)


def ram(name: str = "r", size: int | str = PAGE_SIZE, max_size: int | str | None = None) -> MemoryRegion:
    return MemoryRegion.ram(name, size, max_size)


def mmio(name: str = "m", size: int = 0x100) -> MemoryRegion:
    return MemoryRegion.mmio(name, size)


def snapshot(*regions: MemoryRegion) -> list[object]:
    """Return everything that an edit may change."""
    names = ("size", "offset", "priority", "enabled", "readonly", "parent", "children")
    return [
        (*(getattr(one, name) for name in names), one.block.size if one.block else None)
        for root in regions
        for one in root.reachable()
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


def test_region_edit_that_is_not_journalled_changes_nothing(make_stage) -> None:
    """The journal refuses outside of a transaction; the attribute must not have changed before."""
    stage, region = make_stage(), ram(max_size="8K")
    stage.memory.add(region, 0)
    before = snapshot(stage.memory.root)
    with pytest.raises(LockError, match="outside of a transaction"):
        region._set(offset=0x1000)
    with pytest.raises(LockError, match="outside of a transaction"):
        region._set_block_size(0x2000)
    assert snapshot(stage.memory.root) == before


@pytest.mark.parametrize(
    "edit",
    [
        lambda root, one: root.add(mmio("new"), 0x100),
        lambda root, one: root.remove(one),
        lambda root, one: one.move(0x4000),
        lambda root, one: one.resize(0x800),
        lambda root, one: one.set_enabled(False),
        lambda root, one: one.set_readonly(True),
    ],
    ids=["add", "remove", "move", "resize", "enable", "readonly"],
)
def test_region_edit_in_a_failed_transaction_is_taken_back(stage, edit) -> None:
    region = ram(size="4K", max_size="8K")
    stage.memory.add(region, 0x1000)
    before, view = snapshot(stage.memory.root), stage.memory.view
    with pytest.raises(ZeroDivisionError), stage.transaction():
        edit(stage.memory.root, region)
        assert snapshot(stage.memory.root) != before
        raise ZeroDivisionError
    assert snapshot(stage.memory.root) == before
    assert stage.memory.view is view
    edit(stage.memory.root, region)
    assert stage.memory.view != view
    stage.check()


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
    with pytest.raises(RegionError, match="which has no bytes of its own"):
        make().read(0, 1)


def test_region_clear_leaves_untouched_pages_untouched() -> None:
    region = ram(size="4M")
    region.write(0x100000, b"x")
    region.clear(0, 4 << 20)
    assert region.read(0x100000, 1) == b"\0"
    with open("/proc/self/smaps") as smaps:
        text = smaps.read()
    at = f"{region.block.address:x}"
    resident = next(
        int(line.split()[1])
        for block in text.split("VmFlags")
        if f"\n{at}-" in block or block.startswith(f"{at}-")
        for line in block.splitlines()
        if line.startswith("Private_Dirty:")
    )
    assert resident <= 64


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


def test_ram_block_shared_is_a_memfd_that_goes_with_it() -> None:
    block = RamBlock("shared\0name" * 40, 8192, shared=True)
    fd = block.fd
    assert os.fstat(fd).st_size == 8192
    block.view[:4] = b"here"
    assert os.pread(fd, 4, 0) == b"here"
    del block
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(fd)


def test_ram_block_address_is_where_its_view_is() -> None:
    import ctypes

    block = RamBlock("b", 4096)
    block.view[7] = 99
    assert ctypes.c_uint8.from_address(block.address + 7).value == 99


def test_region_kinds_are_what_the_makers_say() -> None:
    made = [container(), ram(), MemoryRegion.rom("o", b"x"), mmio(), MemoryRegion.alias("a", container())]
    assert [one.kind for one in made] == list(RegionKind)
    assert repr(ram(size="8K")) == "<MemoryRegion ram 'r' 8K>"

"""The map behind accelctl mtree: who claims an address and why, what is numbered, and the machine that never runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.cli.memory_map import claims as claims_module
from accel.cli.memory_map.claims import claims_below, listed_overlaps, stacked, why
from accel.cli.memory_map.data import map_data
from accel.cli.memory_map.names import cells, shortened, shown
from accel.cli.memory_map.snapshot import take_snapshot
from accel.cli.memory_map.stage import staged
from accel.cli.memory_map.text import flat_lines, overlap_lines, tree_lines
from accel.devices.base import Device
from accel.errors import RegionError, StateError, UsageError
from accel.machine import Machine
from accel.memory.region import MemoryRegion, RegionKind
from accel.memory.render import render
from accel.plugins import plugin_manager
from accel.program import GuestProgram
from accel.workload.schema import Address, Byte, ImageSpec, RegionSpec, Size, Workload

# claims, against an oracle that asks for each address by itself

SPACE = 40


@st.composite
def trees(draw: st.DrawFn) -> MemoryRegion:
    """A space of 40 bytes with regions, containers and aliases at random."""
    root = MemoryRegion.container("root", SPACE)
    holders = [root]
    targets: list[MemoryRegion] = []
    for number in range(draw(st.integers(5, 12))):
        size = draw(st.integers(4, 24))
        kind = draw(st.sampled_from(["mmio", "container", "alias"]))
        if kind == "alias" and targets:
            target = draw(st.sampled_from(targets))
            offset = draw(st.integers(0, target.size // 2))
            region = MemoryRegion.alias(f"alias{number}", target, offset, size, readonly=draw(st.booleans()))
        elif kind == "container":
            region = MemoryRegion.container(f"box{number}", size)
        else:
            region = MemoryRegion.mmio(f"mmio{number}", size)
        region.set_enabled(draw(st.integers(0, 9)) > 0)
        holder = draw(st.sampled_from(holders))
        # A region that would contain itself is refused, and stays outside.
        with suppress(RegionError):
            holder.add(region, draw(st.integers(0, SPACE // 2)), draw(st.integers(-1, 1)))
        if region.target is None:
            targets.append(region)
            holders.append(region)
    return root


def front_to_back(region: MemoryRegion, address: int) -> Iterator[tuple[MemoryRegion, int]]:
    """Yield who claims `address` of `region`, with the offset, as the rules say it for a single address."""
    if not (region.enabled and 0 <= address < region.size):
        return
    if region.target is not None:
        yield from front_to_back(region.target, region.target_offset + address)
        return
    for child in region.children:
        yield from front_to_back(child, address - child.offset)
    if region.kind is not RegionKind.CONTAINER:
        yield region, address


@given(trees())
@settings(max_examples=300, deadline=None)
def test_claims_of_random_trees_are_those_of_each_address(root: MemoryRegion) -> None:
    stacks = stacked(claims_below(root))
    for address in range(SPACE):
        here = [stack for stack in stacks if stack.start <= address < stack.end]
        found = [(claim.region, claim.offset + address - claim.start) for stack in here for claim in stack.claims]
        assert found == list(front_to_back(root, address))
        assert len(here) <= 1
        assert all(stack.count == len(stack.claims) for stack in here)


@given(trees())
@settings(max_examples=100, deadline=None)
def test_claims_in_front_are_the_flat_view(root: MemoryRegion) -> None:
    view = render(root)
    for stack in stacked(claims_below(root)):
        front = stack.claims[0]
        for address in (stack.start, stack.end - 1):
            section = view.find(address)
            assert section is not None
            assert section.region is front.region
            assert section.offset - section.range.start == front.offset - front.start
            assert section.readonly == front.readonly


@given(trees())
@settings(max_examples=100, deadline=None)
def test_why_names_a_rule_that_holds(root: MemoryRegion) -> None:
    for stack in stacked(claims_below(root)):
        winner, *hidden = stack.claims
        for claim in hidden:
            rule, text = why(winner, claim)
            above = {id(step) for step in winner.step.way()}
            common = next(step for step in claim.step.way() if id(step) in above)
            if rule == "child":
                assert common is claim.step
                continue
            front = next(step for step in winner.step.way() if step.above is common).region
            behind = next(step for step in claim.step.way() if step.above is common).region
            assert front.name in text
            assert behind.name in text
            if rule == "priority":
                assert front.priority > behind.priority
            else:
                assert front.priority == behind.priority
                assert common.region.children.index(front) < common.region.children.index(behind)


def overlap(*regions: tuple[MemoryRegion, int, int]) -> tuple[str, str]:
    """Return why the first wins over the second of two regions, added at address and priority."""
    root = MemoryRegion.container("root", 0x1000)
    for region, at, priority in regions:
        root.add(region, at, priority)
    (stack,) = [stack for stack in stacked(claims_below(root)) if stack.count == 2]
    winner, hidden = stack.claims
    return why(winner, hidden)


def test_why_later_one_wins_a_tie() -> None:
    rule, text = overlap((MemoryRegion.mmio("old", 16), 0, 3), (MemoryRegion.mmio("new", 16), 8, 3))
    assert rule == "later"
    assert text == "'new' was added to 'root' later than 'old', with the same priority"


def test_why_priority_is_that_of_the_containers_that_part() -> None:
    bus = MemoryRegion.container("bus", 64)
    bus.add(MemoryRegion.mmio("bar", 16), 0, priority=100)
    rule, text = overlap((bus, 0, -1), (MemoryRegion.mmio("low", 16), 8, 0))
    assert rule == "priority"
    assert text == "'low' has priority 0 in 'root', 'bus' has -1"


def test_why_child_stands_inside_what_it_hides() -> None:
    chip = MemoryRegion.mmio("chip", 64)
    chip.add(MemoryRegion.mmio("registers", 16), 8, priority=-5)
    assert overlap((chip, 0, 0)) == ("child", "'registers' stands inside 'chip'")


def test_claims_behind_the_kept_ones_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "KEPT", 3)
    root = MemoryRegion.container("root", 64)
    for number in range(7):
        root.add(MemoryRegion.mmio(f"m{number}", 64), 0)
    (stack,) = stacked(claims_below(root))
    assert [claim.region.name for claim in stack.claims] == ["m6", "m5", "m4"]
    assert stack.count == 7


def test_claims_of_aliases_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "MOST_STEPS", 50)
    below = MemoryRegion.mmio("leaf", 8)
    for number in range(6):
        box = MemoryRegion.container(f"box{number}", 8)
        for twice in range(2):
            box.add(MemoryRegion.alias(f"alias{number}.{twice}", below), 0)
        below = box
    with pytest.raises(UsageError, match="the aliases in 'box5' show more than 50 regions"):
        claims_below(below)


# snapshots


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine with 1 MiB of RAM and nothing else."""
    with Machine.create("mock", memory="1M") as made:
        yield made


class Card(Device):
    """A device with registers and memory in both spaces."""

    name = "card0"

    def __init__(self) -> None:
        self.memory = MemoryRegion.ram("vram", "8K")
        self.box = MemoryRegion.container("card", "64K")
        self.box.add(MemoryRegion.mmio("registers", "4K", read=self.read), 0)
        self.box.add(self.memory, 0x8000)
        self.memory.add(MemoryRegion.mmio("cursor", 256), 0)

    def memory_regions(self) -> list[tuple[int, MemoryRegion]]:
        return [(0xFE00_0000, self.box)]

    def io_regions(self) -> list[tuple[int, MemoryRegion]]:
        return [(0x3C0, MemoryRegion.mmio("index", 2, write=self.write)), (0x3D0, MemoryRegion.mmio("other", 2))]

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, value: int, size: int) -> None:
        pass


def test_snapshot_owner_is_the_device_with_the_callbacks_or_the_region(machine: Machine) -> None:
    machine.attach(Card())
    memory, io = take_snapshot(machine, "m").spaces
    owners = {row.name: row.owner for space in (memory, io) for row in space.tree}
    assert {name for name, owner in owners.items() if owner == "card0"} == {
        "card",
        "registers",
        "vram",
        "cursor",
        "index",
    }
    assert owners["other"] is None
    assert {row.owner for row in memory.flat if row.name == "vram"} == {"card0"}


def test_snapshot_space_of_a_device_is_shown_too(machine: Machine) -> None:
    bus = MemoryRegion.container("bus", "1M")
    bus.add(MemoryRegion.alias("dma", machine.ram, 0x1000, 0x2000), 0x8000)
    machine.vm.create_address_space("card0-dma", bus)
    memory_map = take_snapshot(machine, "m")
    assert [space.name for space in memory_map.spaces] == ["memory", "io", "card0-dma"]
    assert [(row.start, row.end, row.name, row.offset) for row in memory_map.spaces[2].flat] == [
        (0x8000, 0xA000, "ram", 0x1000)
    ]
    assert memory_map.detached == ()


def test_snapshot_spaces_that_share_a_root_have_the_same_numbers(machine: Machine) -> None:
    machine.memory.root.add(MemoryRegion.container("bus", 16), 0)
    machine.vm.create_address_space("cpu0", machine.memory.root)
    machine.vm.create_address_space("dma", MemoryRegion.container("dma", 16))
    memory, ports, cpu, dma = take_snapshot(machine, "m").spaces
    assert [row.id for row in memory.tree] == [row.id for row in cpu.tree]
    assert memory.flat == cpu.flat
    numbers = [row.id for row in (*memory.tree, *ports.tree, *dma.tree)]
    assert len(set(numbers)) == len(numbers)


def test_snapshot_of_one_space_prints_what_aliases_show_of_the_others(machine: Machine) -> None:
    machine.memory.add(MemoryRegion.alias("ports", machine.io.root), 0xFE00_0000)
    memory_map = take_snapshot(machine, "m", "memory")
    assert [space.name for space in memory_map.spaces] == ["memory"]
    assert [tree[0].name for tree in memory_map.detached] == ["io"]


def test_snapshot_detached_trees_are_found_through_each_other_and_printed_once(machine: Machine) -> None:
    deep = MemoryRegion.ram("deep", "4K")
    holder = MemoryRegion.container("holder", "64K")
    holder.add(deep, 0x1000)
    middle = MemoryRegion.container("middle", "64K")
    middle.add(MemoryRegion.alias("to-deep", deep), 0)
    for at in (0x1000_0000, 0x2000_0000):
        machine.memory.add(MemoryRegion.alias(f"to-middle-{at:x}", middle), at)
    memory_map = take_snapshot(machine, "m")
    assert [tree[0].name for tree in memory_map.detached] == ["middle", "holder"]
    lines = list(tree_lines(memory_map, owners=False))
    assert "memory-region: holder" in lines
    assert "    0000000000001000-0000000000001fff (prio 0, ram): deep" in lines


def test_snapshot_kinds_are_what_answers(machine: Machine) -> None:
    flash = MemoryRegion.rom_device("flash", b"", "4K")
    trapped = MemoryRegion.rom_device("trapped", b"", "4K")
    trapped.set_romd(False)
    regions = [
        flash,
        trapped,
        MemoryRegion.alias("locked", machine.ram, 0, "4K", readonly=True),
        MemoryRegion.ram("nvram", "4K", nonvolatile=True),
    ]
    for number, region in enumerate(regions):
        machine.memory.add(region, 0x1000_0000 + number * 0x1000)
    memory_map = take_snapshot(machine, "m", "memory")
    served = {row.name: row.served for row in memory_map.spaces[0].tree}
    assert [served[region.name] for region in regions] == ["romd", "mmio", "rom", "ram"]
    assert [row.kind for row in memory_map.spaces[0].flat[1:]] == ["romd", "mmio", "rom", "ram"]
    assert "(prio 0, nv-ram): nvram" in "\n".join(tree_lines(memory_map, owners=False))


def test_snapshot_of_an_empty_space_says_so(machine: Machine) -> None:
    machine.vm.create_address_space("bus", MemoryRegion.container("nothing", 16))
    memory_map = take_snapshot(machine, "m", "bus")
    assert list(flat_lines(memory_map))[:4] == [
        "FlatView #0",
        ' AS "bus", root: nothing',
        " Root memory region: nothing",
        "  nothing shows",
    ]
    assert list(overlap_lines(memory_map)) == ["overlaps: bus", "  none", ""]


def test_snapshot_unknown_space_is_refused(machine: Machine) -> None:
    with pytest.raises(UsageError, match="no address space 'oi'; known are: io, memory"):
        take_snapshot(machine, "m", "oi")


def test_overlaps_beyond_the_listed_ones_are_counted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "_MOST_LISTED", 4)
    for number in range(5):
        machine.memory.add(MemoryRegion.mmio(f"m{number}", 256), 0x1000 * number, priority=1)
    memory_map = take_snapshot(machine, "m", "memory")
    listed, left_out = listed_overlaps(memory_map.spaces[0].stacks)
    assert [stack.start for stack in listed] == [0, 0x1000]
    assert left_out == 3
    assert "  and 3 more ranges" in list(overlap_lines(memory_map))
    assert map_data(memory_map)["spaces"][0]["overlaps_left_out"] == 3


# the machine that never runs


def workload(**fields: object) -> Workload:
    """Return a workload that runs an empty program."""
    return Workload(image=ImageSpec(program=GuestProgram([])), **fields)  # type: ignore[arg-type]


def test_staged_machine_neither_runs_nor_stays_registered() -> None:
    with staged(workload(), "w") as machine:
        assert "map-only" in plugin_manager().accelerators()
        with pytest.raises(StateError, match="runs nothing"):
            machine.vm.vcpus[0].run()
    assert "map-only" not in plugin_manager().accelerators()


def test_staged_machine_is_gone_after_an_error() -> None:
    bad = RegionSpec("r", at=Address((1 << 64) - 0x1000), size=Size(0x2000))
    with pytest.raises(UsageError, match="does not end by 2"), staged(workload(regions=(bad,)), "w"):
        pass
    assert "map-only" not in plugin_manager().accelerators()


def test_staged_regions_are_not_filled() -> None:
    filled = RegionSpec("r", at=Address(0x1000_0000), size=Size(0x1000), fill=Byte(7))
    with staged(workload(regions=(filled,)), "w") as machine:
        assert machine.memory.read(0x1000_0000, 4) == bytes(4)


# names


@given(st.text(max_size=300), st.integers(0, 120))
def test_shortened_fits_and_keeps_both_ends(text: str, width: int) -> None:
    found = shortened(text, width)
    assert cells(found) <= width
    if found != text and width:
        # The text may have such a character itself.
        cuts = [index for index, one in enumerate(found) if one == "…"]
        assert any(text.startswith(found[:cut]) and text.endswith(found[cut + 1 :]) for cut in cuts)


@given(st.text(max_size=300))
def test_shown_is_one_line_that_steers_nothing(text: str) -> None:
    assert shown(text).isprintable()
    assert cells(shown(text)) <= 100


def test_shown_keeps_an_ordinary_name_as_it_is() -> None:
    assert shown("virtio-net@3 (Büro)") == "virtio-net@3 (Büro)"

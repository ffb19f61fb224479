"""Random edits of the region tree: never an illegal call, and in the end what the flat view shows; and failing calls.

The oracle has no sections and no plans. It asks the view byte range by byte range: a page of 16 KiB is mapped if one
section of memory shows all of it, at the host address and with the access that the section says.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.backend import VmConfig
from accel.errors import MapLostError, MemorySlotError, RegionError
from accel.memory.region import MemoryRegion
from accel.vm import Vm
from accel_hvf_stub.plugin import HvfAccelerator

PAGE = 16 << 10
SPAN = 24
KINDS = ("ram", "rom", "mmio", "alias")

#: Page of the guest → host address and whether it can be written.
Pages = dict[int, tuple[int, bool]]


@frozen
class Edit:
    """One edit: what, of which region, where to, and what else it needs."""

    what: str
    which: int
    at: int
    size: int
    flag: bool


edits = st.builds(
    Edit,
    st.sampled_from(["add", "add", "remove", "move", "resize", "readonly", "enabled", "priority"]),
    st.integers(0, 7),
    st.integers(0, SPAN),
    st.integers(1, 8),
    st.booleans(),
)
transactions = st.lists(st.lists(edits, min_size=1, max_size=4), min_size=1, max_size=8)


class World:
    """A VM with regions that are added, changed and removed by `Edit`."""

    def __init__(self, recorder: object, plan: str) -> None:
        self.vm = Vm(HvfAccelerator(lambda: recorder), VmConfig({"plan": plan}))  # type: ignore[arg-type]
        blocks = [MemoryRegion.ram(f"block{number}", 8 * PAGE) for number in range(2)]
        self.regions: list[MemoryRegion] = []
        for number in range(8):
            kind = KINDS[number % len(KINDS)]
            if kind == "ram":
                made = MemoryRegion.ram(f"ram{number}", 2 * PAGE, max_size=8 * PAGE)
            elif kind == "rom":
                made = MemoryRegion.rom(f"rom{number}", b"", size=3 * PAGE)
            elif kind == "mmio":
                made = MemoryRegion.mmio(f"mmio{number}", 2 * PAGE)
            else:
                made = MemoryRegion.alias(f"alias{number}", blocks[number // 4], PAGE, 4 * PAGE)
            self.regions.append(made)

    def make(self, edit: Edit) -> None:
        region, memory = self.regions[edit.which], self.vm.memory
        at = edit.at * PAGE
        if edit.which % len(KINDS) == KINDS.index("mmio"):
            # A device may begin and end inside a page, and takes the page from whoever has the rest.
            at += 4096 * (edit.size % 4)
        shown = region.parent is not None
        match edit.what:
            case "add" if not shown:
                memory.add(region, at, edit.size % 3)
            case "remove" if shown:
                memory.remove(region)
            case "move" if shown:
                memory.remove(region)
                memory.add(region, at, edit.size % 3)
            case "resize" if edit.which % 4 == 0:
                region.resize(edit.size * PAGE)
            case "readonly" if edit.which % 4 in (0, 3):
                region.set_readonly(edit.flag)
            case "enabled":
                region.set_enabled(edit.flag)
            case "priority" if shown:
                region.set_priority(edit.size % 3)

    def wanted(self) -> Pages:
        """Return what must be mapped, asked of the view address by address."""
        found: Pages = {}
        view = self.vm.memory.view
        for page in range(SPAN + 16):
            shown = [view.find(page * PAGE + at) for at in range(0, PAGE, 4096)]
            first = shown[0]
            if first is None or not first.is_ram or any(one is not first for one in shown):
                continue
            block = first.region.block
            assert block is not None
            host = block.address + first.offset + page * PAGE - first.range.start
            found[page] = (host, not first.maps_readonly)
        return found


def mapped(recorder) -> Pages:
    """Return what the recorder has, page by page."""
    found: Pages = {}
    for one in recorder.mappings:
        assert one.flags & 5 == 5
        for at in range(0, one.size, PAGE):
            page = (one.ipa + at) // PAGE
            assert page not in found
            found[page] = (one.addr + at, bool(one.flags & 2))
    return found


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_hvf_random_edits_make_legal_calls_and_map_what_the_view_shows(plan: str, recorder_type: Callable) -> None:
    @settings(deadline=None, max_examples=120)
    @given(transactions)
    def check(script: list[list[Edit]]) -> None:
        recorder = recorder_type()
        world = World(recorder, plan)
        with world.vm:
            for group in script:
                with world.vm.transaction():
                    for edit in group:
                        world.make(edit)
                assert recorder.illegal == []
                assert mapped(recorder) == world.wanted()
        assert recorder.illegal == []

    check()


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_hvf_call_that_fails_at_any_step_leaves_the_map_as_it_was(plan: str, recorder_type: Callable) -> None:
    @settings(deadline=None, max_examples=120)
    @given(transactions, st.lists(edits, min_size=1, max_size=5), st.integers(0, 12))
    def check(script: list[list[Edit]], last: list[Edit], step: int) -> None:
        recorder = recorder_type()
        world = World(recorder, plan)
        with world.vm:
            for group in script:
                with world.vm.transaction():
                    for edit in group:
                        world.make(edit)
            before, view = mapped(recorder), world.vm.memory.view
            recorder.fail_at, recorder.made = step, 0
            try:
                with world.vm.transaction():
                    for edit in last:
                        world.make(edit)
            except MemorySlotError as error:
                assert error.operation in ("hv_vm_map", "hv_vm_unmap", "hv_vm_protect")
                assert "HV_NO_RESOURCES" in str(error)
                assert world.vm.memory.view is view
                assert mapped(recorder) == before
            else:
                assert recorder.made <= step
                assert mapped(recorder) == world.wanted()
            recorder.fail_at = None
            # What it could not do then it can do now.
            with world.vm.transaction():
                for edit in last:
                    world.make(edit)
            assert mapped(recorder) == world.wanted()
        assert recorder.illegal == []

    check()


@pytest.mark.parametrize("step", range(4))
def test_hvf_each_step_of_a_change_that_fails_is_undone_by_the_opposite_calls(step: int, rig) -> None:
    """A split: one unmap, three maps. Each that was made is taken back, newest first."""
    rig.vm.memory.add(MemoryRegion.ram("ram", 8 * PAGE), at=0)
    rig.calls()
    rig.recorder.fail_at, rig.recorder.made = step, 0
    with pytest.raises(MemorySlotError, match="HV_NO_RESOURCES") as raised:
        rig.vm.memory.add(MemoryRegion.rom("over", b"", size=PAGE), at=2 * PAGE, priority=1)
    assert (raised.value.errno, raised.value.operation) == (12, "hv_vm_map" if step else "hv_vm_unmap")
    forward = [
        ("hv_vm_unmap", 0, 8 * PAGE),
        ("hv_vm_map", 0, 2 * PAGE, 7),
        ("hv_vm_map", 2 * PAGE, PAGE, 5),
        ("hv_vm_map", 3 * PAGE, 5 * PAGE, 7),
    ][:step]
    back = [("hv_vm_unmap", *call[1:3]) if call[0] == "hv_vm_map" else ("hv_vm_map", *call[1:], 7) for call in forward]
    assert rig.calls() == [*forward, *reversed(back)]
    assert [(one.ipa, one.size) for one in rig.recorder.mappings] == [(0, 8 * PAGE)]


def test_hvf_protect_that_fails_after_another_is_taken_back(rig) -> None:
    regions = [MemoryRegion.ram(name, PAGE) for name in ("one", "two")]
    for at, region in enumerate(regions):
        rig.vm.memory.add(region, at=at * 2 * PAGE)
    rig.calls()
    rig.recorder.fail_at, rig.recorder.made = 1, 0
    with pytest.raises(MemorySlotError, match="hv_vm_protect failed"), rig.vm.transaction():
        for region in regions:
            region.set_readonly(True)
    assert rig.calls() == [("hv_vm_protect", 0, PAGE, 5), ("hv_vm_protect", 0, PAGE, 7)]
    assert not any(region.readonly for region in regions)


def test_hvf_call_that_fails_while_it_is_taken_back_loses_the_map(rig) -> None:
    rig.vm.memory.add(MemoryRegion.ram("ram", 8 * PAGE), at=0)
    rig.recorder._fails = iter([False, True, True]).__next__
    with pytest.raises(MapLostError, match="could not be undone"):
        rig.vm.memory.add(MemoryRegion.rom("over", b"", size=PAGE), at=2 * PAGE, priority=1)
    del rig.recorder._fails
    vcpu = rig.vm.create_vcpu(0)
    with pytest.raises(MapLostError):
        vcpu.run()


def test_hvf_change_that_is_refused_by_a_rule_makes_no_call_and_the_next_one_works(rig) -> None:
    rig.vm.memory.add(MemoryRegion.ram("ram", 8 * PAGE), at=0)
    rig.calls()
    with pytest.raises(RegionError), rig.vm.transaction():
        rig.vm.memory.add(MemoryRegion.rom("fits", b"", size=PAGE), at=2 * PAGE, priority=1)
        rig.vm.memory.add(MemoryRegion.rom("odd", b"", size=4096), at=4 * PAGE, priority=1)
    assert rig.calls() == []
    rig.vm.memory.add(MemoryRegion.rom("fits", b"", size=PAGE), at=2 * PAGE, priority=1)
    assert len(rig.calls()) == 4

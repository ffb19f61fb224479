"""From each kind of change to the calls that macOS gets, in their order."""

from __future__ import annotations

import pytest

from accel.errors import CapabilityError, RegionError
from accel.memory.dirty import DirtyClient
from accel.memory.region import MemoryRegion

PAGE = 16 << 10
RWX, R_X = 7, 5


def ram(size: int = 4 * PAGE, name: str = "ram", **more: object) -> MemoryRegion:
    return MemoryRegion.ram(name, size, **more)


def held(rig) -> int:
    """Return how many commits held the vCPUs."""
    transactions = rig.vm.transactions
    return transactions.commits - transactions.unheld


def test_hvf_ram_that_comes_is_mapped_with_all_access_and_unmapped_when_it_goes(rig) -> None:
    region = ram()
    rig.vm.memory.add(region, at=8 * PAGE)
    assert rig.recorder.mappings[0].addr == region.block.address
    assert rig.calls() == [("hv_vm_map", 8 * PAGE, 4 * PAGE, RWX)]
    rig.vm.memory.remove(region)
    assert rig.calls() == [("hv_vm_unmap", 8 * PAGE, 4 * PAGE)]
    assert held(rig) == 0


def test_hvf_rom_is_mapped_without_write(rig) -> None:
    rig.vm.memory.add(MemoryRegion.rom("rom", b"", size=PAGE), at=0)
    assert rig.calls() == [("hv_vm_map", 0, PAGE, R_X)]


def test_hvf_ram_that_becomes_readonly_and_writable_is_protected_in_place(rig) -> None:
    region = ram()
    rig.vm.memory.add(region, at=0)
    rig.calls()
    region.set_readonly(True)
    assert rig.calls() == [("hv_vm_protect", 0, 4 * PAGE, R_X)]
    region.set_readonly(False)
    assert rig.calls() == [("hv_vm_protect", 0, 4 * PAGE, RWX)]
    assert held(rig) == 0


def test_hvf_two_that_change_access_at_once_are_held(rig) -> None:
    regions = [ram(name="one"), ram(name="two")]
    for at, region in enumerate(regions):
        rig.vm.memory.add(region, at=at * 8 * PAGE)
    rig.calls()
    with rig.vm.transaction():
        for region in regions:
            region.set_readonly(True)
    assert rig.calls() == [("hv_vm_protect", 0, 4 * PAGE, R_X), ("hv_vm_protect", 8 * PAGE, 4 * PAGE, R_X)]
    assert held(rig) == 1


def test_hvf_plan_replace_unmaps_and_maps_where_access_changes(open_rig) -> None:
    rig = open_rig(plan="replace")
    region = ram()
    rig.vm.memory.add(region, at=0)
    rig.calls()
    region.set_readonly(True)
    assert rig.calls() == [("hv_vm_unmap", 0, 4 * PAGE), ("hv_vm_map", 0, 4 * PAGE, R_X)]
    assert held(rig) == 1


def test_hvf_ram_that_grows_gets_one_mapping_more_and_one_that_shrinks_loses_what_it_had(rig) -> None:
    region = ram(max_size=16 * PAGE)
    rig.vm.memory.add(region, at=0)
    region.resize(6 * PAGE)
    assert rig.calls() == [("hv_vm_map", 0, 4 * PAGE, RWX), ("hv_vm_map", 4 * PAGE, 2 * PAGE, RWX)]
    region.resize(4 * PAGE)
    assert rig.calls() == [("hv_vm_unmap", 4 * PAGE, 2 * PAGE)]
    region.resize(2 * PAGE)
    assert rig.calls() == [("hv_vm_unmap", 0, 4 * PAGE), ("hv_vm_map", 0, 2 * PAGE, RWX)]


def test_hvf_ram_that_moves_beside_is_mapped_there_first_and_over_itself_unmapped_first(rig) -> None:
    region = ram()
    rig.vm.memory.add(region, at=0)
    rig.calls()
    with rig.vm.transaction():
        rig.vm.memory.remove(region)
        rig.vm.memory.add(region, at=8 * PAGE)
    assert rig.calls() == [("hv_vm_map", 8 * PAGE, 4 * PAGE, RWX), ("hv_vm_unmap", 0, 4 * PAGE)]
    assert held(rig) == 0
    with rig.vm.transaction():
        rig.vm.memory.remove(region)
        rig.vm.memory.add(region, at=9 * PAGE)
    assert rig.calls() == [("hv_vm_unmap", 8 * PAGE, 4 * PAGE), ("hv_vm_map", 9 * PAGE, 4 * PAGE, RWX)]
    assert held(rig) == 1


def test_hvf_region_over_ram_splits_it_and_gives_it_back(rig) -> None:
    below, over = ram(8 * PAGE), MemoryRegion.rom("over", b"", size=2 * PAGE)
    rig.vm.memory.add(below, at=0)
    rig.calls()
    rig.vm.memory.add(over, at=2 * PAGE, priority=1)
    assert rig.calls() == [
        ("hv_vm_unmap", 0, 8 * PAGE),
        ("hv_vm_map", 0, 2 * PAGE, RWX),
        ("hv_vm_map", 2 * PAGE, 2 * PAGE, R_X),
        ("hv_vm_map", 4 * PAGE, 4 * PAGE, RWX),
    ]
    rig.vm.memory.remove(over)
    assert rig.calls()[:2] == [("hv_vm_unmap", 2 * PAGE, 2 * PAGE), ("hv_vm_map", 2 * PAGE, 2 * PAGE, RWX)]
    assert sum(one.size for one in rig.recorder.mappings) == 8 * PAGE


def test_hvf_device_over_a_part_of_a_page_leaves_that_page_unmapped(rig) -> None:
    """Accesses to the rest of the page come out, and are served from the view."""
    rig.vm.memory.add(ram(8 * PAGE), at=0)
    rig.calls()
    rig.vm.memory.add(MemoryRegion.mmio("uart", 4096), at=3 * PAGE + 4096, priority=1)
    assert rig.calls() == [
        ("hv_vm_unmap", 0, 8 * PAGE),
        ("hv_vm_map", 0, 3 * PAGE, RWX),
        ("hv_vm_map", 4 * PAGE, 4 * PAGE, RWX),
    ]


def test_hvf_alias_is_mapped_at_the_place_in_its_target(rig) -> None:
    target = ram(8 * PAGE)
    rig.vm.memory.add(MemoryRegion.alias("window", target, 2 * PAGE, 3 * PAGE), at=32 * PAGE)
    (mapping,) = rig.recorder.mappings
    assert (mapping.ipa, mapping.size, mapping.addr) == (32 * PAGE, 3 * PAGE, target.block.address + 2 * PAGE)


def test_hvf_device_gets_no_call(rig) -> None:
    rig.vm.memory.add(MemoryRegion.mmio("uart", 100), at=5)
    assert rig.calls() == []


def refused(rig, edit) -> RegionError:
    """Make an edit that must be refused before any call, and return the error."""
    rig.calls()
    before = rig.recorder.mappings
    with pytest.raises(RegionError) as raised:
        edit()
    assert rig.calls() == []
    assert rig.recorder.mappings == before
    return raised.value


def test_hvf_ram_of_a_size_that_is_no_multiple_of_16k_is_refused_by_name(rig) -> None:
    error = refused(rig, lambda: rig.vm.memory.add(ram(PAGE + 4096, "odd"), at=PAGE))
    assert error.region == "odd"
    for part in ("'odd'", "[0x4000, 0x9000)", "16K", "size that is a multiple of 16K", "'hvf-memory', region_add"):
        assert part in str(error)


def test_hvf_ram_at_an_address_that_is_no_multiple_of_16k_is_refused_by_name(rig) -> None:
    error = refused(rig, lambda: rig.vm.memory.add(ram(name="odd"), at=0x5000))
    for part in ("'odd'", "offset 0x0 at address 0x5000", "16K"):
        assert part in str(error)


def test_hvf_alias_at_an_odd_place_of_its_target_is_refused_by_the_targets_name(rig) -> None:
    window = MemoryRegion.alias("window", ram(name="target"), 4096, PAGE)
    error = refused(rig, lambda: rig.vm.memory.add(window, at=0))
    for part in ("'target'", "offset 0x1000 at address 0x0", "16K"):
        assert part in str(error)
    shifted = MemoryRegion.alias("shifted", ram(name="target"), 4096, PAGE)
    rig.vm.memory.add(shifted, at=8 * PAGE + 4096)
    assert rig.calls() == []


def test_hvf_ram_that_is_resized_to_an_odd_size_is_refused_and_stays(rig) -> None:
    region = ram(max_size=8 * PAGE)
    rig.vm.memory.add(region, at=0)
    refused(rig, lambda: region.resize(4 * PAGE + 4096))
    assert region.size == 4 * PAGE


def test_hvf_ram_above_the_address_bits_of_a_vm_is_refused_by_name(rig) -> None:
    rig.vm.memory.add(ram(PAGE, "last"), at=(1 << 36) - PAGE)
    error = refused(rig, lambda: rig.vm.memory.add(ram(PAGE, "high"), at=1 << 36))
    for part in ("'high'", "64G", "36 address bits"):
        assert part in str(error)


def test_hvf_dirty_log_is_refused_since_none_is_claimed(rig) -> None:
    region = ram()
    rig.vm.memory.add(region, at=0)
    rig.calls()
    with pytest.raises(CapabilityError, match=r"Hypervisor\.framework keeps no log"):
        region.start_log(DirtyClient.VGA)
    assert rig.calls() == []


def test_hvf_figures_count_mappings_and_calls(rig) -> None:
    region = ram(max_size=8 * PAGE)
    rig.vm.memory.add(region, at=0)
    region.resize(8 * PAGE)
    assert rig.vm.backend.memory_figures() == {"slots": 2, "fragments": 1, "slot_calls": 2}

"""Read-only memory on real KVM: reads go through, writes exit and change nothing."""

from __future__ import annotations

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.errors import CapabilityError
from accel_kvm import vm
from accel_kvm.system import extensions

pytestmark = pytest.mark.kvm

BASE = 0x20_0000  # no RAM here unless a test adds some


def test_rom_is_read_without_exits_and_a_write_exits_and_changes_nothing(boot) -> None:
    guest = boot("f4")
    guest.vm.memory.add(accel.MemoryRegion.rom("rom", b"\x5a" * PAGE_SIZE), at=BASE)
    assert guest.load(BASE) == 0x5A
    assert not guest.store(BASE, 0x11)
    assert guest.load(BASE) == 0x5A
    guest.vm.memory.write(BASE, b"\x77")  # as a loader does
    assert guest.load(BASE) == 0x77


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_ram_made_readonly_and_writable_again_keeps_its_contents(boot, plan, filled) -> None:
    guest = boot("f4", plan=plan)
    region = filled("ram", 0x11)
    guest.vm.memory.add(region, at=BASE)
    for value in (0x22, 0x33):
        region.set_readonly(True)
        assert not guest.store(BASE, value)
        region.set_readonly(False)
        assert guest.store(BASE, value)
        assert guest.load(BASE) == value
    assert guest.vm.blocker.stats.inhibits == 4


def test_ram_made_readonly_and_writable_again_under_a_guest_that_reads_it_never_exits(boot, filled) -> None:
    guest = boot("a100002000 ff0500900000 ebf3")  # 1: mov BASE, %eax; incl 0x9000; jmp 1b
    region = filled("ram", 0x11)
    guest.vm.memory.add(region, at=BASE)
    with guest.running() as exits:
        toggles = 0
        while toggles < 100 or guest.word(0x9000) == 0:
            region.set_readonly(toggles % 2 == 0)
            toggles += 1
    assert set(exits) == {accel.Interrupted()}


def test_readonly_alias_keeps_writes_out_of_ram_that_is_writable_elsewhere(boot, filled) -> None:
    guest = boot("f4")
    region = filled("ram", 0x11)
    with guest.vm.transaction():
        guest.vm.memory.add(region, at=BASE)
        guest.vm.memory.add(accel.MemoryRegion.alias("window", region, readonly=True), at=2 * BASE)
    assert not guest.store(2 * BASE, 0x22)
    assert guest.store(BASE, 0x33)
    assert guest.load(2 * BASE) == 0x33


def test_rom_without_readonly_slots_is_refused_and_leaves_the_map(boot, monkeypatch) -> None:
    monkeypatch.setattr(vm, "extensions", lambda fd: extensions(fd) - {accel.Capability.READONLY_MEMORY})
    guest = boot("f4")
    rom = accel.MemoryRegion.rom("rom", b"\x5a" * PAGE_SIZE)
    with pytest.raises(CapabilityError, match=f"no read-only slots, which ROM at {BASE:#x} needs"):
        guest.vm.memory.add(rom, at=BASE)
    assert guest.load(BASE) is None

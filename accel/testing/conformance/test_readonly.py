"""Read-only memory: reads are served, writes come out and leave no trace; refused where it is not claimed."""

from __future__ import annotations

import pytest

from accel.backend import Capability
from accel.errors import CapabilityError
from accel.exits import Halt, MmioWrite
from accel.machine import Machine
from accel.memory.region import MemoryRegion
from accel.program import RETURN_BYTE, Add, Fetch, Load, Store
from accel.testing.claims import Claims
from accel.testing.conformance.lane import Lanes
from accel.testing.conformance.look import BASE, look, pages, perform, tagged, write
from accel.testing.conformance.plans import every_plan, options_for
from accel.testing.conformance.verdict import Violation, due, expect, refused
from accel.testing.machines import MachineFactory

pytestmark = pytest.mark.accelerators(executes=("program", "x86"))
claimed = pytest.mark.accelerators(capabilities=[Capability.READONLY_MEMORY])

VALUE = 0x8877_6655_4433_2211


def rom(one: Machine, page: int) -> MemoryRegion:
    """Add ROM of two pages, whose bytes count up, and return it."""
    region = MemoryRegion.rom("rom", bytes(n % 251 for n in range(2 * page)))
    one.memory.add(region, at=BASE)
    return region


@claimed
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_readonly_memory_is_read_without_exits(machine: MachineFactory, lane: Lanes, claims: Claims, size: int) -> None:
    """The guest reads ROM like RAM, in every size, and does not come out for it."""
    one = machine()
    region = rom(one, claims.page_size)
    offsets = [0, 0x123, claims.page_size - size // 2, 2 * claims.page_size - size]
    loads = [Load(BASE + n, size, int.from_bytes(region.read(n, size), "little")) for n in offsets]
    played = perform(one, lane(one), loads)
    for found in played.exits:
        raise Violation(f"a load of {size} bytes from ROM came out: {found}")
    expect(not played.errors, f"{played.errors} of {len(loads)} loads of {size} bytes from ROM read something else")


@claimed
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_readonly_memory_lets_writes_out_and_keeps_its_contents(
    machine: MachineFactory, lane: Lanes, claims: Claims, size: int
) -> None:
    """A store to ROM comes out as an MMIO write, with its address, size and value, and changes nothing."""
    one = machine(Store(BASE + 0x40, VALUE & (1 << 8 * size) - 1, size))
    region = rom(one, claims.page_size)
    before, vcpu = region.read(0, 0x80), lane(one)
    found = vcpu.run()
    due(found, MmioWrite, "at a store to ROM", address=BASE + 0x40, size=size, value=VALUE & (1 << 8 * size) - 1)
    due(vcpu.run(), Halt, "after a store to ROM")
    expect(region.read(0, 0x80) == before, f"a store of {size} bytes to ROM changed its contents")


@claimed
def test_readonly_memory_lets_a_locked_add_out_as_a_write(machine: MachineFactory, lane: Lanes, claims: Claims) -> None:
    """A locked addition to ROM writes what is there plus its value, and that comes out and changes nothing."""
    one = machine()
    region = rom(one, claims.page_size)
    before = region.read(0, 0x80)
    exits = perform(one, lane(one), [Add(BASE + 0x40, 1, 4)]).exits
    old = int.from_bytes(before[0x40:0x44], "little")
    expect(exits, "a locked addition to ROM did not come out")
    due(exits[-1], MmioWrite, "at a locked addition to ROM", address=BASE + 0x40, size=4, value=old + 1)
    expect(region.read(0, 0x80) == before, "a locked addition to ROM changed its contents")


@claimed
def test_readonly_memory_can_be_executed(machine: MachineFactory, lane: Lanes, claims: Claims) -> None:
    """Code in ROM is executed."""
    one = machine()
    one.memory.add(MemoryRegion.rom("rom", bytes((RETURN_BYTE,)), claims.page_size), at=BASE)
    played = perform(one, lane(one), [Fetch(BASE), Fetch(BASE)])
    for found in played.exits:
        raise Violation(f"an instruction fetch from ROM came out: {found}")


@claimed
@every_plan
def test_readonly_memory_comes_and_goes(machine: MachineFactory, lane: Lanes, claims: Claims, way: str) -> None:
    """RAM that is made read-only lets writes out, and takes them when it is writable again; reads never come out."""
    one, page = machine(options=options_for(way, claims)), claims.page_size
    vcpu, ram = lane(one), tagged("ram", 3, 0x30, page)
    one.memory.add(ram, at=BASE)
    for turn in range(3):
        after = f"after RAM became writable for the {turn + 1}. time"
        look(one, vcpu, pages(BASE, [0x30, 0x31, 0x32, None], page), after)
        write(one, vcpu, {BASE + page + 64: turn + 1}, after)
        expect(ram.read(page + 64, 1) == bytes((turn + 1,)), f"{after} a store to it is not in its memory")
        ram.set_readonly(True)
        after = f"after RAM became read-only for the {turn + 1}. time"
        look(one, vcpu, pages(BASE, [0x30, 0x31, 0x32, None], page), after)
        exits = perform(one, vcpu, [Store(BASE + page + 64, 0x77, 4)]).exits
        expect(exits, f"{after} a store to it did not come out")
        due(exits[0], MmioWrite, f"{after} at a store", address=BASE + page + 64, size=4, value=0x77)
        expect(ram.read(page + 64, 1) == bytes((turn + 1,)), f"{after} a store changed its contents")
        ram.set_readonly(False)


@claimed
@every_plan
def test_readonly_memory_stays_so_in_pieces(machine: MachineFactory, lane: Lanes, claims: Claims, way: str) -> None:
    """ROM that is cut in two, that moves, or that shows through an alias is read-only in each of its places."""
    one, page = machine(options=options_for(way, claims)), claims.page_size
    vcpu, region, far = lane(one), MemoryRegion.rom("rom", b"", 4 * page), BASE + 64 * page
    device = MemoryRegion.mmio("device", page, read=lambda offset, size: 0)
    window = MemoryRegion.alias("window", region, 2 * page, 2 * page)

    def check(places: list[int], after: str) -> None:
        for at in places:
            exits = perform(one, vcpu, [Store(at + 8, 0x77, 1)]).exits
            expect(exits, f"{after} a store to ROM at {at + 8:#x} did not come out")
            due(exits[0], MmioWrite, f"{after} at a store to ROM", address=at + 8, size=1, value=0x77)
        expect(not any(region.read(0, 4 * page)), f"{after} a store to ROM changed its contents")

    one.memory.add(region, at=BASE)
    one.memory.add(device, at=BASE + page, priority=1)
    check([BASE, BASE + 2 * page, BASE + 3 * page], "after a device cut it in two")
    one.memory.remove(device)
    check([BASE + n * page for n in range(4)], "after it was whole again")
    one.memory.add(window, at=far)
    check([far, far + page], "through an alias")
    region.move(BASE + 8 * page)
    window.move(far + page)
    check([BASE + 8 * page, BASE + 11 * page, far + page, far + 2 * page], "after it moved")


@claimed
def test_readonly_memory_next_to_ram_takes_its_part_of_a_store(
    machine: MachineFactory, lane: Lanes, claims: Claims
) -> None:
    """Of a store that crosses from RAM into ROM, RAM takes its bytes, and only those for ROM come out."""
    one, page = machine(), claims.page_size
    ram, vcpu = MemoryRegion.ram("ram", page), lane(one)
    one.memory.add(ram, at=BASE - page)
    region = rom(one, page)
    before = region.read(0, 8)
    exits = perform(one, vcpu, [Store(BASE - 4, VALUE, 8)]).exits
    written = b"".join(one.value.to_bytes(one.size, "little") for one in exits if isinstance(one, MmioWrite))
    expect(
        written == VALUE.to_bytes(8, "little")[4:], f"of a store across the edge of ROM, {written.hex(' ')} came out"
    )
    found = ram.read(page - 4, 4)
    expect(found == VALUE.to_bytes(8, "little")[:4], f"of a store across the edge of ROM, RAM has {found.hex(' ')}")
    expect(region.read(0, 8) == before, "a store across the edge of ROM changed its contents")


def test_readonly_memory_is_refused_where_it_is_not_claimed(
    machine: MachineFactory, lane: Lanes, claims: Claims
) -> None:
    """An accelerator without read-only memory refuses ROM with a CapabilityError, and the map stays as it is."""
    if Capability.READONLY_MEMORY in claims.capabilities:
        pytest.skip(f"{claims.name} claims {Capability.READONLY_MEMORY}; this is about those that do not")
    one, page = machine(), claims.page_size
    vcpu = lane(one)
    one.memory.add(tagged("ram", 1, 0x30, page), at=BASE)
    with refused(CapabilityError, "adding ROM to an accelerator that does not claim read-only memory"):
        one.memory.add(MemoryRegion.rom("rom", b"rom", page), at=BASE + page)
    look(one, vcpu, pages(BASE, [0x30, None], page), "after ROM was refused")

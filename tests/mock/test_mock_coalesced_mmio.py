"""Queued writes to the mock's memory; what ports and memory share is in test_mock_coalesced.py."""

from __future__ import annotations

import pytest

from accel.exits import Halt, MmioRead, MmioWrite
from accel.machine import Machine
from accel.memory.region import MemoryRegion
from accel.program import Add, GuestProgram, Load, Loop, Out, Store
from accel_mock.coalesced import RING_SIZE

ADDRESS = 0x30_0000
PORT = 0x600


class Screen:
    """Memory whose writes may be queued, and what has arrived there."""

    def __init__(self, vm, at: int = ADDRESS, size: int = 0x2000) -> None:
        self.arrived: list[tuple[int, int, int]] = []
        self.region = MemoryRegion.mmio("screen", size, write=self._write, coalesced=True)
        vm.memory.add(self.region, at=at)

    def _write(self, offset: int, value: int, size: int) -> None:
        self.arrived.append((offset, size, value))


def test_mock_coalesced_memory_writes_arrive_in_order_with_place_and_size(boot) -> None:
    guest = boot()
    screen = Screen(guest.vm)
    writes = [(0, 1, 0x11), (0x1FF8, 8, 0x8877665544332211), (2, 2, 0x3322), (0x1FFF, 1, 0x44), (4, 4, 0)]
    assert guest.run(*(Store(ADDRESS + offset, value, size) for offset, size, value in writes)) == []
    assert screen.arrived == []
    guest.vm.drain()
    assert screen.arrived == writes
    assert guest.vm.coalesced_writes == 5


def test_mock_coalesced_ring_keeps_writes_to_memory_and_ports_apart_and_in_one_order(boot) -> None:
    guest = boot()
    arrived: list[tuple[str, int]] = []
    memory = MemoryRegion.mmio("m", 16, write=lambda _, value, size: arrived.append(("m", value)), coalesced=True)
    ports = MemoryRegion.mmio("p", 16, write=lambda _, value, size: arrived.append(("p", value)), coalesced=True)
    guest.vm.memory.add(memory, at=PORT)  # the same number for an address
    guest.vm.io.add(ports, at=PORT)
    assert guest.run(*(Store(PORT, n, 1) if n % 3 else Out(PORT, n) for n in range(10))) == []
    guest.vm.drain()
    assert arrived == [("m" if n % 3 else "p", n) for n in range(10)]
    guest.vm.io.remove(ports)
    assert len(guest.run(Store(PORT, 1, 1), Out(PORT, 1))) == 1


def test_mock_coalesced_memory_reads_and_writes_beside_the_zone_exit_at_once(boot) -> None:
    guest = boot()
    region = MemoryRegion.mmio("device", 0x1000)
    region.add_coalescing(0x10, 8)
    region.add_coalescing(0x20, 1)
    guest.vm.memory.add(region, at=ADDRESS)
    exits = guest.run(
        Load(ADDRESS + 0x10, 1),
        Store(ADDRESS + 0xF, 0x2211, 2),
        Store(ADDRESS + 0x16, 1, 4),
        Store(ADDRESS + 0x14, 2, 4),
        Store(ADDRESS + 0x20, 3, 1),
        Add(ADDRESS + 0x10, 2, 1),
    )
    assert [type(one) for one in exits] == [MmioRead, MmioWrite, MmioWrite, MmioRead]
    assert [one.address - ADDRESS for one in exits] == [0x10, 0xF, 0x16, 0x10]
    # Device reads give all ones, to which 2 is added.
    assert list(guest.vm.backend.ring.pop()) == [
        (ADDRESS + 0x14, 4, False, b"\2\0\0\0"),
        (ADDRESS + 0x20, 1, False, b"\3"),
        (ADDRESS + 0x10, 1, False, b"\1"),
    ]


def test_mock_coalesced_memory_write_across_pages_is_queued_part_by_part(boot) -> None:
    """As an accelerator does that looks at one page at a time; a part of RAM goes there."""
    guest = boot()
    screen = Screen(guest.vm)
    ram = MemoryRegion.ram("ram", 0x1000)
    guest.vm.memory.add(ram, at=ADDRESS - 0x1000)
    assert guest.run(Store(ADDRESS + 0xFFF, 0x44332211, 4), Store(ADDRESS - 1, 0x6655, 2)) == []
    guest.vm.drain()
    assert screen.arrived == [(0xFFF, 1, 0x11), (0x1000, 2, 0x3322), (0x1002, 1, 0x44), (0, 1, 0x66)]
    assert ram.read(0xFFF, 1) == b"\x55"


def test_mock_coalesced_memory_write_to_a_full_ring_exits(boot) -> None:
    guest = boot()
    Screen(guest.vm)
    guest.vcpu.load_program(GuestProgram((Loop((Store(ADDRESS, 7, 4),), RING_SIZE),)))
    assert guest.vcpu.run() == MmioWrite(ADDRESS, 4, 7)
    guest.vm.drain()
    assert guest.vcpu.run() == Halt()
    assert guest.vm.coalesced_writes == RING_SIZE - 1


@pytest.mark.parametrize("how", ["clear", "take out", "cover with RAM", "move"])
def test_mock_coalesced_memory_that_is_not_any_more_exits_or_is_what_lies_over_it(boot, how) -> None:
    guest = boot()
    screen = Screen(guest.vm, size=0x1000)
    over = MemoryRegion.ram("over", 0x1000)
    assert guest.run(Store(ADDRESS, 1, 1)) == []
    match how:
        case "clear":
            screen.region.clear_coalescing()
        case "take out":
            guest.vm.memory.remove(screen.region)
        case "move":
            screen.region.move(2 * ADDRESS)
        case _:
            guest.vm.memory.add(over, at=ADDRESS, priority=1)
    assert screen.arrived == [(0, 1, 1)], "what was queued arrives before the change"
    assert bool(guest.run(Store(ADDRESS, 2, 1))) == (how != "cover with RAM")
    assert bool(guest.run(Store(2 * ADDRESS, 3, 1))) == (how != "move")
    guest.vm.drain()
    assert screen.arrived[1:] == {"clear": [(0, 1, 2)], "move": [(0, 1, 3)]}.get(how, [])


def test_mock_coalesced_memory_of_a_machine_arrives_without_exits() -> None:
    with Machine.create("mock", memory="1M") as machine:
        screen = Screen(machine.vm)
        machine.load(GuestProgram((Loop((Store(ADDRESS + 4, 7, 4),), 1000),)))
        result = machine.run()
    assert screen.arrived == [(4, 4, 7)] * 1000
    # Those that met a full ring came out.
    assert result.exits.get("mmio", 0) < 100

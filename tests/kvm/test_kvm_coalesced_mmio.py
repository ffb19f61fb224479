"""Queued writes to memory on real KVM; what ports and memory share is in test_kvm_coalesced.py."""

from __future__ import annotations

from itertools import pairwise

import pytest

import accel
from accel import Halt, MmioRead, MmioWrite
from accel.address import AddressRange
from accel_kvm.coalesced import Zone, zones_in

pytestmark = pytest.mark.kvm

ADDRESS = 0x30_0000
PORT = 0x600


class Screen:
    """Memory whose writes may be queued, and what has arrived there."""

    def __init__(self, vm: accel.Vm, at: int = ADDRESS, size: int = 0x2000) -> None:
        self.arrived: list[tuple[int, int, int]] = []
        self.region = accel.MemoryRegion.mmio("screen", size, write=self._write, coalesced=True)
        vm.memory.add(self.region, at=at)

    def _write(self, offset: int, value: int, size: int) -> None:
        self.arrived.append((offset, size, value))


def store(address: int, value: int, size: int) -> str:
    """Return code that stores once."""
    opcode = {1: "a2", 2: "66a3", 4: "a3"}[size]
    return f"b8{value.to_bytes(4, 'little').hex()} {opcode}{address.to_bytes(4, 'little').hex()}"


def out(port: int, value: int) -> str:
    """Return code that writes a byte to a port."""
    return f"b0{value:02x} 66ba{port.to_bytes(2, 'little').hex()} ee"


def test_memory_writes_are_queued_and_arrive_in_order_with_place_and_size(boot) -> None:
    guest = boot("f4")
    screen = Screen(guest.vm)
    writes = [(0, 1, 0x11), (0x1FFC, 4, 0xDDCC_BBAA), (2, 2, 0x3322), (0x1FFF, 1, 0x44)]
    guest.restart("".join(store(ADDRESS + offset, value, size) for offset, size, value in writes) + "f4")
    assert guest.vcpu.run() == Halt()
    assert screen.arrived == []
    guest.vm.drain()
    assert screen.arrived == writes
    assert guest.vm.coalesced_writes == 4


def test_ring_keeps_writes_to_memory_and_ports_in_one_order(boot) -> None:
    guest = boot("f4")
    arrived: list[tuple[str, int]] = []
    memory = accel.MemoryRegion.mmio("m", 16, write=lambda _, value, size: arrived.append(("m", value)), coalesced=True)
    ports = accel.MemoryRegion.mmio("p", 16, write=lambda _, value, size: arrived.append(("p", value)), coalesced=True)
    guest.vm.memory.add(memory, at=PORT)  # the same number for an address, over RAM
    memory.set_priority(1)
    guest.vm.io.add(ports, at=PORT)
    guest.restart("".join(store(PORT, n, 1) if n % 3 else out(PORT, n) for n in range(10)) + "f4")
    assert guest.vcpu.run() == Halt()
    guest.vm.drain()
    assert arrived == [("m" if n % 3 else "p", n) for n in range(10)]


@pytest.mark.parametrize("is_port", [False, True])
def test_ring_of_bytes_to_one_place_is_popped_as_one_run(boot, is_port) -> None:
    guest = boot("f4")
    region = accel.MemoryRegion.mmio("console", 16, coalesced=True)
    (guest.vm.io if is_port else guest.vm.memory).add(region, at=PORT if is_port else ADDRESS)
    guest.restart("".join(out(PORT, n) if is_port else store(ADDRESS, n, 1) for n in range(5)) + "f4")
    assert guest.vcpu.run() == Halt()
    assert list(guest.vm.backend.ring.pop()) == [(PORT if is_port else ADDRESS, 1, is_port, bytes(range(5)))]


def test_memory_reads_and_writes_beside_the_zone_exit_at_once(boot) -> None:
    guest = boot("f4")
    region = accel.MemoryRegion.mmio("device", 0x1000)
    region.add_coalescing(0x10, 8)
    guest.vm.memory.add(region, at=ADDRESS)
    load = f"a0{(ADDRESS + 0x10).to_bytes(4, 'little').hex()}"
    guest.restart(
        load + store(ADDRESS + 0xF, 0x2211, 2) + store(ADDRESS + 0x16, 1, 4) + store(ADDRESS + 0x14, 2, 4) + "f4"
    )
    assert guest.vcpu.run() == MmioRead(ADDRESS + 0x10, 1, None)
    assert guest.vcpu.run() == MmioWrite(ADDRESS + 0xF, 2, 0x2211)
    assert guest.vcpu.run() == MmioWrite(ADDRESS + 0x16, 4, 1)
    assert guest.vcpu.run() == Halt()
    assert list(guest.vm.backend.ring.pop()) == [(ADDRESS + 0x14, 4, False, b"\2\0\0\0")]


@pytest.mark.parametrize("how", ["clear", "take out", "cover with RAM", "move"])
def test_memory_no_longer_coalesced_exits_or_is_what_lies_over_it(boot, filled, how) -> None:
    guest = boot("f4")
    screen = Screen(guest.vm, size=0x1000)
    guest.restart(store(ADDRESS, 1, 1) + "f4")
    assert guest.vcpu.run() == Halt()
    match how:
        case "clear":
            screen.region.clear_coalescing()
        case "take out":
            guest.vm.memory.remove(screen.region)
        case "move":
            screen.region.move(2 * ADDRESS)
        case _:
            guest.vm.memory.add(filled("over", 0), at=ADDRESS, priority=1)
    assert screen.arrived == [(0, 1, 1)], "what was queued arrives before the change"
    assert guest.store(ADDRESS, 2) == (how == "cover with RAM")
    assert guest.store(2 * ADDRESS, 3) == (how == "move")
    guest.vm.drain()
    assert screen.arrived[1:] == ([(0, 1, 3)] if how == "move" else [])


def test_zone_that_is_larger_than_kvm_takes_is_registered_in_pieces_and_taken_back_whole(boot) -> None:
    guest = boot("f4")
    start = 1 << 31
    region = accel.MemoryRegion.mmio("huge", (1 << 33) + 0x1000, coalesced=True)
    guest.vm.memory.add(region, at=start)
    assert guest.store(start + 5, 0x11)
    assert guest.store((1 << 32) - 1, 0x22)
    assert [address for address, *_ in guest.vm.backend.ring.pop()] == [start + 5, (1 << 32) - 1]
    guest.vm.memory.remove(region)
    assert not guest.store(start + 5, 0x11)
    assert not guest.store((1 << 32) - 1, 0x22)


def test_zones_in_cover_the_window_and_nothing_else() -> None:
    window = AddressRange(0x1000, (1 << 33) + 1)
    found = zones_in(window, False, "r")
    assert (found[0].window.start, found[-1].window.end) == (0x1000, window.end)
    assert all(one.window.end == other.window.start for one, other in pairwise(found))
    assert all(0 < zone.window.size < 1 << 31 for zone in found)
    assert zones_in(AddressRange(1, 9), True, "r") == [Zone(AddressRange(1, 9), True, "another name")]


def test_vm_without_the_capability_lets_each_write_exit(boot, faults) -> None:
    guest = boot("f4")
    guest.listener._capabilities -= {accel.Capability.COALESCED_MMIO}
    faults.reset()
    screen = Screen(guest.vm)
    assert not guest.store(ADDRESS, 1)
    guest.vm.memory.remove(screen.region)
    assert faults.calls == []

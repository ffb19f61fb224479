"""coalesced_io: what fits into the ring from each of its starts, and what is in it; then nothing is queued any more."""

from __future__ import annotations

import pytest

import accel
from accel.program import GuestProgram, Op, Out, Store

RING = 170  # entries that fill a page after its header; one of them stays free
AT, PORT = 0x3000_0000, 0x600

Entry = tuple[int, int, bool, bytes]


def writes(kind: str, count: int) -> tuple[list[Op], list[Entry]]:
    """Return guest writes of all sizes, to memory, to ports or to both, and the entries that they have to make."""
    ops: list[Op] = []
    entries: list[Entry] = []
    for number in range(count):
        is_port = kind == "ports" or (kind == "both" and number % 2 == 0)
        sizes = (1, 2, 4) if is_port else (1, 2, 4, 8)
        size = sizes[number % len(sizes)]
        place = (PORT if is_port else AT) + 8 * (number % 8)
        value = (0x0101_0101_0101_0101 * number + 0x1122_3344_5566_7788) & (1 << 8 * size) - 1
        ops.append(Out(place, value, size) if is_port else Store(place, value, size))
        entries.append((place, size, is_port, value.to_bytes(size, "little")))
    return ops, entries


def pop(vm: accel.Vm) -> list[Entry]:
    """Take the entries out of the ring; one for each write."""
    return [
        (address, size, is_port, data[at : at + size])
        for address, size, is_port, data in vm.backend.ring.pop()
        for at in range(0, len(data), size)
    ]


def shown(access: object) -> Entry:
    """Return an exit as the entry that it would have been."""
    if isinstance(access, accel.IoOut):
        return access.port, access.size, True, access.data
    assert isinstance(access, accel.MmioWrite), access
    return access.address, access.size, False, access.value.to_bytes(access.size, "little")


@pytest.mark.parametrize("kind", ["ports", "memory", "both"])
def test_ring_from_each_start_has_room_for_all_but_one_and_none_once_it_is_taken_back(machine, kind) -> None:
    ops, entries = writes(kind, RING)
    one = machine(GuestProgram(ops * (RING + 2)))
    memory = accel.MemoryRegion.mmio("device", 64, coalesced=True)
    ports = accel.MemoryRegion.mmio("ports", 64, coalesced=True)
    one.memory.add(memory, at=AT)
    one.io.add(ports, at=PORT)
    vm, vcpu = one.vm, one.vm.vcpus[0]
    assert vm.backend.capabilities >= {accel.Capability.COALESCED_PIO, accel.Capability.COALESCED_MMIO}
    ring = vm.backend.ring
    starts = set()
    for _ in range(RING):
        starts.add(ring.indices[0])
        access = vcpu.run()
        assert (ring.indices[1] + 1) % RING == ring.indices[0], "it is full"
        assert pop(vm) == entries[:-1]
        assert shown(access) == entries[-1]
        assert ring.indices[0] == ring.indices[1]
    assert starts == set(range(RING))
    with one.transaction():
        memory.clear_coalescing()
        ports.clear_coalescing()
    assert [shown(vcpu.run()) for _ in range(RING)] == entries
    assert ring.indices[0] == ring.indices[1]

"""Doorbells on the mock, which does not offer them: a write exits, and the core rings in its place."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from accel.backend import Capability
from accel.machine import Machine
from accel.memory.region import MemoryRegion
from accel.program import GuestProgram, Op, Out, Store

PORT, ADDRESS = 0x600, 0x30_0000


@pytest.fixture
def bell() -> Iterator[int]:
    """An eventfd."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("space", ["ports", "memory"])
@pytest.mark.parametrize("coalesced", [False, True])
def test_mock_doorbell_is_rung_by_the_core_for_its_writes_only(bell: int, space: str, coalesced: bool) -> None:
    others: list[tuple[int, int, int]] = []
    with Machine.create("mock", memory="1M") as machine:
        assert Capability.IOEVENTFD not in machine.vm.backend.capabilities
        device = MemoryRegion.mmio("device", 16, write=lambda *access: others.append(access), coalesced=coalesced)
        device.add_eventfd(4, bell, size=4, match=7)

        def write(offset: int, value: int, size: int) -> Op:
            return Out(PORT + offset, value, size) if space == "ports" else Store(ADDRESS + offset, value, size)

        if space == "ports":
            machine.io.add(device, at=PORT)
        else:
            machine.memory.add(device, at=ADDRESS)
        machine.load(GuestProgram((write(4, 7, 4), write(4, 8, 4), write(4, 7, 2), write(8, 7, 4), write(4, 7, 4))))
        result = machine.run()
    assert os.eventfd_read(bell) == 2
    assert others == [(4, 8, 4), (4, 7, 2), (8, 7, 4)]
    assert result.exits.get("io" if space == "ports" else "mmio", 0) == (0 if coalesced else 5)

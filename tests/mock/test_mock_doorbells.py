"""Doorbells on the mock: writes that match ring an eventfd and do not exit, all others exit, and nobody loses an fd."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator

import pytest

from accel.errors import BackendError
from accel.exits import IoOut, MmioWrite
from accel.machine import Machine
from accel.memory.ioeventfd import IoEventFd
from accel.memory.region import MemoryRegion
from accel.program import Add, GuestProgram, Op, Out, Store
from accel_mock.doorbells import DoorbellsUpdate, MockDoorbells

PORT, ADDRESS = 0x600, 0x30_0000


@pytest.fixture
def bell() -> Iterator[int]:
    """An eventfd."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def _rung(bell: int) -> int:
    """Return how often it was rung since the last time."""
    try:
        return os.eventfd_read(bell)
    except BlockingIOError:
        return 0


@pytest.mark.parametrize("space", ["ports", "memory"])
@pytest.mark.parametrize("coalesced", [False, True])
def test_mock_doorbell_rings_for_its_writes_only_and_those_do_not_exit(bell: int, space: str, coalesced: bool) -> None:
    others: list[tuple[int, int, int]] = []
    with Machine.create("mock", memory="1M") as machine:
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
    assert _rung(bell) == 2
    assert others == [(4, 8, 4), (4, 7, 2), (8, 7, 4)]
    assert result.exits.get("io" if space == "ports" else "mmio", 0) == (0 if coalesced else 3)
    assert result.coalesced_writes == (3 if coalesced else 0)


@pytest.mark.parametrize(
    ("size", "match", "rings"),
    [
        (0, None, [1, 2, 4, 8]),
        (2, None, [2]),
        (8, (1 << 64) - 1, [8]),
    ],
)
def test_mock_doorbell_rings_by_size_and_value(boot, bell: int, size: int, match: int | None, rings: list[int]) -> None:
    guest = boot()
    device = MemoryRegion.mmio("device", 16, write=lambda *access: None)
    device.add_eventfd(0, bell, size=size, match=match)
    guest.vm.memory.add(device, at=ADDRESS)
    for width in (1, 2, 4, 8):
        exits = guest.run(Store(ADDRESS, (1 << 8 * width) - 1, width))
        assert (_rung(bell), len(exits)) == ((1, 0) if width in rings else (0, 1))


def test_mock_doorbell_rings_for_the_write_of_a_read_modify_write(boot, bell: int) -> None:
    guest = boot()
    device = MemoryRegion.mmio("device", 16, read=lambda offset, size: 6, write=lambda *access: None)
    device.add_eventfd(0, bell, size=4, match=7)
    guest.vm.memory.add(device, at=ADDRESS)
    assert len(guest.run(Add(ADDRESS, 1, 4))) == 1, "the read"
    assert _rung(bell) == 1


def test_mock_doorbell_under_memory_is_memory(boot, bell: int) -> None:
    guest = boot()
    device = MemoryRegion.mmio("device", 0x1000, write=lambda *access: None)
    device.add_eventfd(0, bell)
    ram = MemoryRegion.ram("ram", 0x1000)
    guest.vm.memory.add(device, at=ADDRESS)
    guest.vm.memory.add(ram, at=ADDRESS, priority=1)
    assert guest.run(Store(ADDRESS, 5, 4)) == []
    assert (_rung(bell), ram.read(0, 1)) == (0, b"\5")
    guest.vm.memory.remove(ram)
    assert guest.run(Store(ADDRESS, 5, 4)) == []
    assert _rung(bell) == 1


def test_mock_doorbell_goes_with_its_region_and_comes_back_elsewhere(boot, bell: int) -> None:
    guest = boot()
    device = MemoryRegion.mmio("device", 16, write=lambda *access: None)
    guest.vm.io.add(device, at=PORT)
    assert [type(one) for one in guest.run(Out(PORT + 4, 1, 1))] == [IoOut]
    device.add_eventfd(4, bell)
    assert guest.run(Out(PORT + 4, 1, 1)) == []
    device.move(PORT + 0x100)
    assert [type(one) for one in guest.run(Out(PORT + 4, 1, 1))] == [IoOut]
    assert guest.run(Out(PORT + 0x104, 1, 1)) == []
    device.remove_eventfd(4, bell)
    assert [type(one) for one in guest.run(Out(PORT + 0x104, 1, 1))] == [IoOut]
    assert _rung(bell) == 2


def test_mock_doorbell_is_back_after_a_change_that_failed(boot, bell: int) -> None:
    guest = boot(faults=("create@1=ENOMEM",))
    device = MemoryRegion.mmio("device", 16, write=lambda *access: None)
    device.add_eventfd(0, bell)
    guest.vm.memory.add(device, at=ADDRESS)
    with pytest.raises(BackendError), guest.vm.transaction():
        device.move(ADDRESS + 0x1000)
        guest.vm.memory.add(MemoryRegion.ram("ram", 0x1000), at=0)
    for n in range(2):
        assert guest.run(Store(ADDRESS, 1, 4)) == []
        assert [type(one) for one in guest.run(Store(ADDRESS + 0x1000, 1, 4))] == [MmioWrite]
        assert _rung(bell) == 1
        # The next change begins from what is in force.
        guest.vm.memory.add(MemoryRegion.ram(f"ram{n}", 0x1000), at=0x1000 * n)


def test_mock_doorbell_full_eventfd_keeps_the_guest_from_nothing(boot, bell: int) -> None:
    guest = boot()
    device = MemoryRegion.mmio("device", 16, write=lambda *access: None)
    device.add_eventfd(0, bell)
    guest.vm.memory.add(device, at=ADDRESS)
    os.eventfd_write(bell, (1 << 64) - 2)
    assert guest.run(Store(ADDRESS, 1, 4)) == []
    assert _rung(bell) == (1 << 64) - 2


# file descriptors


def _open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_mock_doorbell_has_the_eventfd_for_itself_and_closes_its_own_in_the_end() -> None:
    """Its number may be another file's by then."""
    gc.collect()
    before = len(_open_fds())
    first, other = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    with Machine.create("mock", memory="1M") as machine:
        device = MemoryRegion.mmio("device", 16, write=lambda *access: None)
        device.add_eventfd(0, first, size=4)
        machine.memory.add(device, at=ADDRESS)
        kept = os.dup(first)
        os.dup2(other, first)
        machine.load(GuestProgram((Store(ADDRESS, 1, 4),)))
        machine.run()
        assert (_rung(kept), _rung(other)) == (1, 0)
        device.remove_eventfd(0, first, size=4)
        assert len(_open_fds()) == before + 3
        device.add_eventfd(0, other, size=4)
    for fd in (first, other, kept):
        os.close(fd)
    assert len(_open_fds()) == before


def test_mock_doorbell_whose_eventfd_is_closed_is_refused_and_the_others_stay() -> None:
    bells = MockDoorbells()
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    good = IoEventFd(0, 4, 1, bell)
    DoorbellsUpdate(bells, True, frozenset({good})).apply()
    gone = os.eventfd(0)
    os.close(gone)
    update = DoorbellsUpdate(bells, True, frozenset({good, IoEventFd(8, 4, 1, gone)}))
    with pytest.raises(BackendError, match=r"EBADF.*doorbell at 0x8, fd .*keep it open") as caught:
        update.apply()
    assert caught.value.errno == errno.EBADF
    update.undo()
    assert bells.registered[True] == {good}
    assert bells.ring(0, b"\1\0\0\0", is_port=True)
    assert not bells.ring(0, b"\1\0\0\0", is_port=False)
    os.close(bell)

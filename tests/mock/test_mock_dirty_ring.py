"""Dirty rings of the mock: what a failed call, a vCPU that nobody helps and a wrong size come to.

What all accelerators with rings promise is tested in `test_machine_dirty_rings.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.errors import BackendError, CapabilityError, OptionError
from accel.memory.dirty import DirtyClient
from accel.program import GuestProgram, Out, Store

BASE = 0x40_0000
VGA = DirtyClient.VGA
PORT = 0x80


@pytest.fixture
def machine() -> Iterator[Callable[..., tuple[accel.Machine, accel.MemoryRegion]]]:
    """Make machines with memory at `BASE` that logs: `machine(program, pages, cpus, dirty_ring_size=256)`."""
    made: list[accel.Machine] = []

    def make(
        program: GuestProgram, pages: int, cpus: int = 1, **options: object
    ) -> tuple[accel.Machine, accel.MemoryRegion]:
        one = accel.Machine.create("mock", memory="1M", cpus=cpus, options={"mock": options})
        made.append(one)
        region = accel.MemoryRegion.ram("logged", pages * PAGE_SIZE)
        region.start_log(VGA)
        one.memory.add(region, at=BASE)
        one.load(program)
        return one, region

    yield make
    for one in made:
        one.close()


def writes(pages: int) -> GuestProgram:
    return GuestProgram([Store(BASE + page * PAGE_SIZE, page, 8) for page in range(pages)])


def dirty(one: accel.Machine, region: accel.MemoryRegion) -> set[int]:
    ranges = one.vm.dirty_log.collect(region, VGA).ranges()
    return {page for window in ranges for page in range(window.start // PAGE_SIZE, window.end // PAGE_SIZE)}


def test_vcpu_whose_ring_nobody_empties_comes_out_again_and_again(machine) -> None:
    one, region = machine(writes(300), 300, dirty_ring_size=256)
    backend = one.vm.vcpus[0].backend
    full = accel.ExitKind.DIRTY_RING_FULL
    assert [backend.run() for _ in range(3)] == [full] * 3
    one.vm.backend.empty_dirty_rings()
    assert backend.run() == accel.ExitKind.HALT
    assert dirty(one, region) == set(range(300))


def test_writes_that_the_emulator_makes_are_in_the_ring(machine) -> None:
    """An access across a page goes through the slots, not through a translation."""
    one, region = machine(GuestProgram([Store(BASE + PAGE_SIZE - 4, 1, 8)]), 4, dirty_ring_size=256)
    one.run(timeout=60)
    assert dirty(one, region) == {0, 1}


def test_rings_that_cannot_be_reset_give_their_pages_again_later(machine) -> None:
    one, region = machine(writes(20), 100, dirty_ring_size=256, faults=["reset-rings@1=EIO"])
    one.run(timeout=60)
    with pytest.raises(BackendError, match="mock dirty-ring call failed: EIO"):
        dirty(one, region)
    assert dirty(one, region) == set(range(20))
    assert dirty(one, region) == set()


def test_vcpu_that_is_slow_to_come_out_stops_at_a_full_ring(machine) -> None:
    body = [Store(BASE + page * PAGE_SIZE, page, 8) for page in range(600)]
    one, region = machine(
        GuestProgram([Out(PORT, 0), *body]),
        600,
        dirty_ring_size=128,
        faults=["vcpu0@2=late:2000ops"],
    )
    one.port(PORT)(lambda access: one.vm.vcpus[0].kick())
    assert one.run(timeout=60).outcome == accel.Outcome.HALTED
    assert dirty(one, region) == set(range(600))


@pytest.mark.parametrize("size", [1, 64, 129, 1000])
def test_ring_of_a_size_that_cannot_be_is_refused(size) -> None:
    with pytest.raises(OptionError, match=rf"accelerator.mock.dirty_ring_size = {size}: must be a power of two"):
        accel.Machine.create("mock", memory="1M", options={"mock": {"dirty_ring_size": size}})


def test_vm_without_rings_has_none_to_empty() -> None:
    with accel.Machine.create("mock", memory="1M") as one:
        assert accel.Capability.DIRTY_RING in one.vm.backend.capabilities
        with pytest.raises(CapabilityError, match="no dirty rings"):
            one.vm.backend.empty_dirty_rings()

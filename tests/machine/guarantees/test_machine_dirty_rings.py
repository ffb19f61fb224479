"""Dirty rings that are full, and vCPUs that are closed with pages in theirs: no written page is missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.memory.dirty import DirtyClient
from accel.program import Op, Out, Store

BASE = 0x1000_0000
VGA = DirtyClient.VGA
PORT = 0x80
#: As few as a processor that logs by itself can do with.
SIZE = 1024
#: A vCPU is told that its ring is full when 64 entries are left, and leaves the guest next after fewer pages than that.
STRIDE = 50

Logged = Callable[[accel.Machine, int], accel.MemoryRegion]


def writes(pages: int) -> list[Op]:
    """Return operations that write to so many pages from `BASE` on, and leave the guest after each `STRIDE`."""
    stores = [Store(BASE + page * PAGE_SIZE, page, 8) for page in range(pages)]
    return [op for at in range(0, pages, STRIDE) for op in (*stores[at : at + STRIDE], Out(PORT, 0))]


@pytest.fixture
def logged() -> Logged:
    """Add memory at `BASE` that logs."""

    def add(one: accel.Machine, pages: int) -> accel.MemoryRegion:
        region = accel.MemoryRegion.ram("logged", pages * PAGE_SIZE)
        region.start_log(VGA)
        one.memory.add(region, at=BASE)
        return region

    return add


def dirty(one: accel.Machine, region: accel.MemoryRegion) -> set[int]:
    ranges = one.vm.dirty_log.collect(region, VGA).ranges()
    return {page for window in ranges for page in range(window.start // PAGE_SIZE, window.end // PAGE_SIZE)}


@pytest.mark.parametrize("cpus", [1, 2])
def test_run_goes_on_when_rings_are_full_and_misses_no_page(machine, logged: Logged, cpus) -> None:
    one = machine(*writes(2400), cpus=cpus, dirty_ring_size=SIZE)
    region = logged(one, 2401)
    result = one.run(timeout=60)
    assert result.outcome == accel.Outcome.HALTED
    # Two vCPUs may share the pages; the half of them is still more than a ring has.
    assert sum(vcpu.exits.get("dirty-ring-full", 0) for vcpu in result.vcpus) >= 1
    assert dirty(one, region) == set(range(2400))
    assert dirty(one, region) == set()


def test_vcpu_run_by_hand_says_that_its_ring_was_full_and_goes_on(machine, logged: Logged) -> None:
    one = machine(*writes(2400), dirty_ring_size=SIZE)
    region = logged(one, 2400)
    [vcpu] = one.vm.vcpus
    exits = []
    while not exits or exits[-1] != accel.Halt():
        exits.append(vcpu.run())
    assert accel.DirtyRingFull() in exits
    assert sum(isinstance(one, accel.IoOut) for one in exits) == 2400 // STRIDE
    assert dirty(one, region) == set(range(2400))


def test_vcpu_that_is_closed_leaves_what_it_noted(machine, logged: Logged) -> None:
    one = machine(*writes(40), dirty_ring_size=SIZE)
    region = logged(one, 100)
    one.run(timeout=60)
    one.vm.vcpus[0].close()
    assert dirty(one, region) == set(range(40))


def test_collecting_from_rings_holds_the_vcpus_and_from_bitmaps_nobody(machine, logged: Logged) -> None:
    for size, holds in ((SIZE, 1), (0, 0)):
        one = machine(*writes(1), dirty_ring_size=size)
        region = logged(one, 4)
        before = one.vm.blocker.stats.inhibits
        dirty(one, region)
        assert one.vm.blocker.stats.inhibits - before == holds

"""Four ways to zap: each forgets the slot that goes, and what that costs, with and without page faults meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from accel.address import PAGE_SIZE
from accel.machine import Machine
from accel.memory.ram_block import RamBlock
from accel.memory.region import MemoryRegion
from accel.memory.slot_plan import Slot
from accel.program import GuestProgram, Load, Loop
from accel_mock.kvm import zap
from accel_mock.kvm.memslots import MemSlots
from accel_mock.kvm.mmu import Fault
from accel_mock.kvm.running import Running
from accel_mock.kvm.zap import FastInvalidate, ZapAll, ZapSlot, ZapStrategy
from accel_mock.limits import ZAPS
from accel_mock.vm import MockVm

#: Guest memory of a shadow page.
SPAN = 0x20_0000
SLOTS, PAGES = 5, 3
STRATEGIES: dict[str, Callable[[], ZapStrategy]] = {
    "fast": FastInvalidate,
    "all": lambda: ZapAll(yields=False),
    "all-yield": lambda: ZapAll(yields=True),
    "slot": ZapSlot,
}


class Stage:
    """Slots in a shadow page each, with all entries made."""

    def __init__(self, strategy: ZapStrategy) -> None:
        self.block = RamBlock("block", PAGES * PAGE_SIZE)
        self.memslots = MemSlots(SLOTS, Running())
        self.mmu = self.memslots.mmu
        self.mmu.strategy = strategy
        for number in range(SLOTS):
            self.memslots.create(number, self.slot(number))
            for page in range(PAGES):
                self.touch(number, page)

    def slot(self, number: int) -> Slot:
        return Slot(number * SPAN, PAGES * PAGE_SIZE, self.block.address, False, self.block)

    def touch(self, number: int, page: int) -> None:
        assert self.mmu.fault(number * SPAN + page * PAGE_SIZE, write=False) is Fault.FIXED

    def entries(self) -> list[int]:
        """Return how many entries each slot has."""
        first = [number * SPAN // PAGE_SIZE for number in range(SLOTS)]
        return [sum(self.mmu.entry(gfn + page) is not None for page in range(PAGES)) for gfn in first]

    def delete(self, number: int = 2) -> None:
        self.memslots.delete(number, self.slot(number))


@pytest.mark.parametrize("name", STRATEGIES)
def test_zap_forgets_the_slot_that_goes_and_counts_what_it_did(name: str) -> None:
    strategy = STRATEGIES[name]()
    stage = Stage(strategy)
    words = [stage.mmu.entry(2 * SPAN // PAGE_SIZE + page) for page in range(PAGES)]
    stage.delete()
    own = name == "slot"
    assert stage.entries() == ([PAGES, PAGES, 0, PAGES, PAGES] if own else [0] * SLOTS)
    assert [one.word for one in words if one is not None] == [0] * PAGES
    assert len(stage.mmu.rmap) == sum(stage.entries())
    zapped = PAGES if own else PAGES * SLOTS
    cost = strategy.cost
    holds = 2 if name == "fast" else 1
    assert (cost.zaps, cost.entries, cost.holds, cost.longest, cost.restarts) == (1, zapped, holds, zapped, 0)
    for number in (0, 4):
        stage.touch(number, 1)
    stage.delete(0)
    assert stage.entries()[0] == stage.entries()[2] == 0
    assert cost.zaps == 2


@pytest.mark.parametrize(("name", "holds", "longest"), [("fast", 1 + SLOTS, PAGES), ("all-yield", SLOTS, PAGES)])
def test_zap_that_yields_gives_the_lock_up_after_each_page_while_somebody_waits(
    name: str, holds: int, longest: int
) -> None:
    strategy = STRATEGIES[name]()
    stage = Stage(strategy)
    stage.mmu.waiting = 1
    stage.delete()
    cost = strategy.cost
    assert (cost.entries, cost.holds, cost.longest, cost.restarts) == (PAGES * SLOTS, holds, longest, SLOTS - 1)


def test_zap_all_without_yielding_holds_the_lock_for_as_long_as_there_are_entries() -> None:
    strategy = ZapAll(yields=False)
    stage = Stage(strategy)
    stage.mmu.waiting = 1
    stage.delete()
    assert (strategy.cost.holds, strategy.cost.longest) == (1, PAGES * SLOTS)


def _delete_beside_faults(strategy: ZapStrategy, monkeypatch: pytest.MonkeyPatch, limit: int) -> int:
    """Delete a slot while vCPUs fault each page in again whenever the lock is given up; return how often it was.

    Vcpus end after `limit` times.
    """
    stage = Stage(strategy)
    times = 0

    def let_fault(seconds: float) -> None:
        nonlocal times
        times += 1
        if times <= limit:
            for number in (0, 1, 3, 4):
                stage.touch(number, 0)
        else:
            stage.mmu.waiting = 0

    monkeypatch.setattr(zap.time, "sleep", let_fault)
    stage.mmu.waiting = 1
    stage.delete()
    monkeypatch.undo()
    return strategy.cost.restarts


def test_zap_all_with_yielding_never_ends_beside_enough_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """The livelock that 002c5f73c5 reports: it ends when the faults do, however long that takes."""
    assert _delete_beside_faults(ZapAll(yields=True), monkeypatch, 500) > 500


def test_zap_fast_ends_beside_any_number_of_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages made meanwhile are of the new generation."""
    strategy = FastInvalidate()
    assert _delete_beside_faults(strategy, monkeypatch, 500) <= SLOTS, "once for each obsolete page"
    assert strategy.cost.entries == PAGES * SLOTS


def test_zap_slot_takes_no_longer_beside_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = ZapSlot()
    assert _delete_beside_faults(strategy, monkeypatch, 500) == 0
    assert (strategy.cost.holds, strategy.cost.longest) == (1, PAGES)


# the option


@pytest.mark.parametrize("name", ZAPS)
def test_zap_option_chooses_the_way_and_guests_see_the_same(name: str) -> None:
    at = 0x1000_0000
    with Machine.create("mock", memory="1M", options={"mock": {"zap": name, "plan": "replace"}}) as machine:
        backend = machine.vm.backend
        assert isinstance(backend, MockVm)
        strategy = backend._memslots.mmu.strategy
        assert type(strategy) is type(STRATEGIES[name]())
        assert vars(strategy).get("_yields", False) == (name == "all-yield")
        extra = MemoryRegion.ram("extra", "64K", "128K")
        machine.memory.add(extra, at)
        machine.load(GuestProgram((Loop((Load(at, expect=0), Load(0)), None),)))
        run = machine.start()
        for size in ("128K", "64K") * 10:
            extra.resize(size)
        machine.stop()
        result = run.wait(60)
    assert (result.spurious_faults, result.exits.get("mmio", 0)) == (0, 0)
    assert strategy.cost.zaps == 20

"""Which accesses that came out count as spurious faults: those to memory that was there all the time, and no others."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.program import Add, Load, Loop, Op, Out, Store

LOW, HIGH = 0x1000_0000, 0x2000_0000
PORT = 0x80
EDITS = 25


class Coming:
    """RAM, or ROM, at `LOW` that a running guest polls while it comes, goes or is replaced."""

    def __init__(self, machine, pace, *ops: Op, rom: bool = False, hold: str) -> None:
        self.machine = machine(Loop((*ops, Out(PORT, 0)), None), hold=hold, plan="replace")
        self.pace = pace(self.machine)
        contents = b"\x5a" * PAGE_SIZE
        self.region = (
            accel.MemoryRegion.rom("rom", contents) if rom else accel.MemoryRegion.ram("ram", "64K", max_size="128K")
        )

    def add(self) -> None:
        self.machine.memory.add(self.region, at=LOW)

    def remove(self) -> None:
        self.machine.memory.remove(self.region)

    def edit(self, *edits: Callable[[], None], until_fault: bool = False) -> accel.RunResult:
        """Make the edits in turn under the guest, which goes a round after each; return what it came to."""
        run = self.machine.start()
        turns = 0
        while turns < EDITS or (until_fault and turns < 20_000 and not sum(run.spurious_faults_so_far())):
            for edit in edits:
                edit()
                if not until_fault:
                    self.pace.wait()
            turns += 1
        self.machine.stop()
        return run.wait()


@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
@pytest.mark.parametrize("access", [Load(LOW), Store(LOW, 1), Add(LOW, 1, 4)], ids=["read", "write", "locked"])
def test_polling_where_memory_comes_and_goes_counts_no_spurious_fault(machine, pace, access, hold) -> None:
    stage = Coming(machine, pace, *[access] * 20, hold=hold)
    result = stage.edit(stage.add, stage.remove)
    assert result.exits["mmio"] > EDITS, "it came out where there was nothing"
    assert result.spurious_faults == 0


@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
def test_writing_to_rom_and_polling_what_is_absent_count_no_spurious_fault_beside_changes(machine, pace, hold) -> None:
    stage = Coming(machine, pace, *[Store(LOW, 1)] * 10, *[Load(HIGH)] * 10, rom=True, hold=hold)
    stage.add()
    near = accel.MemoryRegion.ram("near", PAGE_SIZE)
    result = stage.edit(
        lambda: stage.machine.memory.add(near, at=HIGH + PAGE_SIZE),
        lambda: stage.machine.memory.remove(near),
        # Deleted and added again: the writes were never served, however it is done.
        lambda: stage.region.set_nonvolatile(not stage.region.nonvolatile),
    )
    assert result.exits["mmio"] >= 20 * 3 * EDITS
    assert result.spurious_faults == 0


@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
def test_memory_that_becomes_read_only_and_back_counts_reads_that_came_out_and_no_writes(machine, pace, hold) -> None:
    """A write that comes out was not served by one of the two maps; a read was by both."""
    stage = Coming(machine, pace, *[Store(LOW, 1)] * 20, hold=hold)
    stage.add()
    result = stage.edit(lambda: stage.region.set_readonly(True), lambda: stage.region.set_readonly(False))
    assert result.exits["mmio"] > 0
    assert result.spurious_faults == 0
    stage = Coming(machine, pace, *[Load(LOW)] * 2_000, hold=hold)
    stage.add()
    result = stage.edit(lambda: stage.region.set_readonly(not stage.region.readonly), until_fault=hold == "unsafe")
    assert (result.spurious_faults > 0) == (hold == "unsafe")
    assert result.exits.get("mmio", 0) == result.spurious_faults


@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
def test_memory_that_stays_and_is_replaced_counts_each_access_that_came_out(machine, pace, hold) -> None:
    stage = Coming(machine, pace, *[Load(LOW), Store(LOW + 8, 1)] * 1_000, hold=hold)
    stage.add()
    result = stage.edit(
        lambda: stage.region.resize("128K" if stage.region.size == 64 << 10 else "64K"), until_fault=hold == "unsafe"
    )
    assert (result.spurious_faults > 0) == (hold == "unsafe")
    assert result.exits.get("mmio", 0) == result.spurious_faults
    assert set(result.vcpus[0].spurious) <= {LOW, LOW + 8}

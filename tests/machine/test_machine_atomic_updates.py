"""The bug that this project exists for, on real KVM: the same test held and unheld."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable

import pytest

import accel
from accel.program import ERRORS, GuestProgram, Load, Loop, Out, Store
from accel.result import Outcome

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(600)]  # a busy host is slow, and nothing here is judged by time

REGION = 0x1000_0000
STOP, ROUNDS_TO_RUN, ROUNDS = 0x8010, 0x8030, 0x8000


def words(machine: accel.Machine, address: int, count: int = 1) -> tuple[int, ...]:
    return struct.unpack(f"<{count}Q", machine.memory.read(address, 8 * count))


def race(
    bench, *, hold: str, updates: int, enough: Callable[[accel.Machine, accel.Run], bool], cpus: int = 2
) -> tuple[accel.RunResult, int]:
    """Replace the touched RAM at least `updates` times and until it is `enough`; return the result and updates made."""
    one = bench("touch.elf", cpus=cpus, options={"kvm": {"plan": "replace", "hold": hold}})
    machine = one.machine
    extra = accel.MemoryRegion.ram("extra", "1M", max_size="2M")
    machine.memory.add(extra, at=REGION)
    # Run until told to stop, with locked additions too: those tear where a read and a write come out apart.
    machine.memory.write(ROUNDS_TO_RUN, struct.pack("<QQ", 0, 1))
    run = machine.start()
    made = 0
    while not run.done and not (made >= updates and enough(machine, run)):
        extra.resize("2M" if made % 2 == 0 else "1M")
        made += 1
    machine.memory.write(STOP, struct.pack("<Q", 1))
    return run.wait(timeout=60), made


def test_race_held_1000_replacements_show_no_fault(bench):
    def was_inside(machine: accel.Machine, run: accel.Run) -> bool:
        # The guest was inside and had to be kicked out, or nothing would have been shown.
        return machine.vm.blocker.stats.kicks >= 100 and words(machine, ROUNDS)[0] > 0

    result, made = race(bench, hold="inhibit", updates=1000, enough=was_inside)
    assert made >= 1000
    assert result.memory["inhibits"] >= 1000
    assert (result.spurious_faults, result.exits.get("mmio", 0)) == (0, 0)
    assert result.exit_status == 1, "the guest found errors"


def test_race_unheld_1000_replacements_show_faults(bench):
    result, made = race(
        bench, hold="unsafe", updates=1000, enough=lambda machine, run: sum(run.spurious_faults_so_far()) > 0
    )
    assert made >= 1000
    assert result.memory["inhibits"] == 0
    assert result.spurious_faults > 0
    assert all(REGION <= address < REGION + 0x10_0000 for vcpu in result.vcpus for address in vcpu.spurious)


def test_race_unheld_with_least_change_deletes_nothing_that_stays(bench):
    machine = bench("touch.elf", options={"kvm": {"hold": "unsafe"}}).machine
    extra = accel.MemoryRegion.ram("extra", "1M", max_size="2M")
    machine.memory.add(extra, at=REGION)
    machine.memory.write(ROUNDS_TO_RUN, struct.pack("<Q", 0))
    run = machine.start()
    made = 0
    while not run.done and not (made >= 100 and words(machine, ROUNDS)[0] >= 10):
        extra.resize("2M" if made % 2 == 0 else "1M")
        made += 1
    machine.memory.write(STOP, struct.pack("<Q", 1))
    result = run.wait(timeout=60)
    assert (result.spurious_faults, result.exits.get("mmio", 0), result.exit_status) == (0, 0, 1)


def test_split_under_running_vcpus_held_keeps_every_word(bench):
    one = bench("touch.elf", cpus=4, options={"kvm": {"plan": "replace"}})
    machine = one.machine
    ram = accel.MemoryRegion.ram("extra", "1M")
    whole = accel.MemoryRegion.alias("whole", ram)
    low = accel.MemoryRegion.alias("low", ram, 0, "512K", unmergeable=True)
    high = accel.MemoryRegion.alias("high", ram, 512 << 10, "512K", unmergeable=True)
    machine.memory.add(whole, at=REGION)
    machine.memory.write(ROUNDS_TO_RUN, struct.pack("<Q", 0))
    run = machine.start()
    splits = 0
    while not run.done and not (splits >= 50 and words(machine, ROUNDS)[0] >= 10):
        with machine.transaction():
            machine.memory.remove(whole)
            machine.memory.add(low, at=REGION)
            machine.memory.add(high, at=REGION + (512 << 10))
        with machine.transaction():
            machine.memory.remove(low)
            machine.memory.remove(high)
            machine.memory.add(whole, at=REGION)
        splits += 1
    machine.memory.write(STOP, struct.pack("<Q", 1))
    result = run.wait(timeout=60)
    assert splits >= 50
    assert result.memory["inhibits"] >= 2 * splits - 1
    assert (result.exit_status, result.spurious_faults) == (1, 0)


def test_port_write_that_remaps_ram_beside_transactions_with_4_vcpus_neither_deadlocks_nor_faults(bench):
    program = GuestProgram(
        (
            Loop(
                (
                    Store(REGION, 0x5A, 1),
                    Load(REGION, 1, expect=0x5A),
                    Out(0x500, 1),
                    Load(REGION + 0x1000, 4, expect=0),
                ),
                200,
            ),
            Out(0x501, ERRORS),
        )
    )
    one = bench(cpus=4, options={"kvm": {"plan": "replace"}})
    machine = one.machine
    extra = accel.MemoryRegion.ram("extra", "64K", max_size="128K")
    other = accel.MemoryRegion.ram("other", "64K", max_size="128K")
    machine.memory.add(extra, at=REGION)
    machine.memory.add(other, at=REGION + 0x100_0000)
    errors: list[int] = []

    @machine.port(0x500)
    def remap(access):
        extra.resize("128K" if extra.size == 64 << 10 else "64K")

    @machine.port(0x501)
    def report(access):
        errors.append(access.value)

    machine.load(program)
    run = machine.start()
    commits = 0
    while not run.done:
        other.resize("128K" if other.size == 64 << 10 else "64K")
        commits += 1
    result = run.wait(timeout=120)
    assert result.outcome is Outcome.HALTED
    assert errors == [0, 0, 0, 0]
    assert commits > 0
    assert result.memory["commits"] >= 800 + commits
    assert (result.spurious_faults, result.exits.get("mmio", 0)) == (0, 0)


def test_polling_an_address_while_ram_is_hot_added_there_counts_no_spurious_fault(bench):
    one = bench(GuestProgram((Loop((Load(REGION, 4),), None),)), options={"kvm": {"hold": "unsafe"}})
    machine = one.machine
    extra = accel.MemoryRegion.ram("extra", "64K")
    polled = threading.Event()
    quiet = accel.MemoryRegion.mmio("absent", 0x1000, read=lambda offset, size: polled.set() or 0)
    machine.memory.add(quiet, at=REGION)
    run = machine.start()
    for _ in range(20):
        polled.clear()
        assert polled.wait(60)
        with machine.transaction():
            machine.memory.remove(quiet)
            machine.memory.add(extra, at=REGION)
        with machine.transaction():
            machine.memory.remove(extra)
            machine.memory.add(quiet, at=REGION)
    machine.stop()
    result = run.wait()
    assert result.exits["mmio"] >= 20
    assert result.spurious_faults == 0

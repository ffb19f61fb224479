"""The race on the mock: an unheld change shows vCPUs the gap, a held one never does."""

from __future__ import annotations

import threading
import time

import pytest

from accel.address import AddressRange
from accel.devices.port_handler import PortAccess
from accel.exits import ExitKind
from accel.machine import Machine
from accel.memory.ram_block import RamBlock
from accel.memory.region import MemoryRegion
from accel.memory.slot_plan import Slot
from accel.program import RETURN_BYTE, Add, Fetch, GuestProgram, Load, Loop, Op, Out
from accel.result import Outcome, RunResult
from accel.testing.programs import touch
from accel_mock.coalesced import MockCoalescedRing
from accel_mock.kvm.memslots import MemSlots
from accel_mock.kvm.running import Running
from accel_mock.vcpu import MockVcpu

AT = 0x1000_0000
WINDOW = AddressRange.sized(AT, 0x10000)
READY_PORT = 0x80


class Race:
    """A machine with RAM at `AT` that can be replaced; it begins when all vCPUs have said that they run."""

    def __init__(self, hold: str, cpus: int, *ops: Op) -> None:
        self.machine = Machine.create(
            "mock",
            memory="1M",
            cpus=cpus,
            options={"mock": {"hold": hold, "plan": "replace"}},
            executes="program",
        )
        assert self.machine.accelerator == "mock"
        self.extra = MemoryRegion.ram("extra", WINDOW.size, 2 * WINDOW.size)
        self.machine.memory.add(self.extra, AT)
        self.extra.write(0, bytes([RETURN_BYTE]))
        self._running = threading.Semaphore(0)
        self.machine.port(READY_PORT)(lambda access: self._running.release())
        self.machine.port(0xF4)(lambda access: self.machine.request_exit(access.data[0]))
        self.machine.load(GuestProgram((Out(READY_PORT, 1), *ops)))
        self.run = self.machine.start()
        for _ in range(cpus):
            assert self._running.acquire(timeout=60)

    def replace(self) -> None:
        self.extra.resize(WINDOW.size if self.extra.size > WINDOW.size else 2 * WINDOW.size)

    def result(self) -> RunResult:
        self.machine.stop()
        return self.run.wait(60)

    def __enter__(self) -> Race:
        return self

    def __exit__(self, *exception: object) -> None:
        self.machine.close()


ENDLESS = Loop(touch(WINDOW, 1).ops[:1], None)


def test_mock_race_unheld_replacement_shows_the_gap() -> None:
    with Race("unsafe", 2, ENDLESS) as race:
        for _ in range(50):
            race.replace()
        result = race.result()
    assert result.outcome is Outcome.STOPPED
    assert result.spurious_faults > 0
    assert result.memory["inhibits"] == 0


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_mock_race_held_replacement_never_shows_the_gap(cpus: int) -> None:
    with Race("inhibit", cpus, ENDLESS) as race:
        for _ in range(50):
            race.replace()
        result = race.result()
    assert result.outcome is Outcome.STOPPED
    assert result.spurious_faults == 0
    assert result.exits.get("mmio", 0) == 0
    assert result.memory["inhibits"] == 50


def test_mock_race_held_guest_reads_what_it_wrote_to_the_end() -> None:
    with Race("inhibit", 1, *touch(WINDOW, 10_000).ops) as race:
        while not race.run.done:
            race.replace()
        result = race.result()
    assert (result.outcome, result.exit_status) == (Outcome.EXITED, 0)
    assert result.spurious_faults == 0
    assert result.memory["inhibits"] > 0


def test_mock_race_held_counting_loses_nothing() -> None:
    with Race("inhibit", 2, Loop((Add(AT + 8, 1, 8),), 50_000)) as race:
        while not race.run.done:
            race.replace()
        result = race.result()
        count = int.from_bytes(race.extra.read(8, 8), "little")
    assert (result.outcome, count) == (Outcome.HALTED, 100_000)


def test_mock_race_unheld_fetch_crashes_and_counts_as_unserved() -> None:
    with Race("unsafe", 1, Loop((Fetch(AT),), None)) as race:
        # Not without end: whether a fault is spurious is judged against a limited number of past maps.
        for _ in range(1000):
            race.replace()
            if race.run.done:
                break
        result = race.result()
    assert result.outcome is Outcome.CRASHED
    assert result.unserved_faults == result.spurious_faults == 1
    assert result.vcpus[0].unserved == {AT: 1}


def test_mock_race_held_fetch_goes_on() -> None:
    with Race("inhibit", 1, Loop((Fetch(AT),), None)) as race:
        for _ in range(50):
            race.replace()
        result = race.result()
    assert (result.outcome, result.spurious_faults) == (Outcome.STOPPED, 0)


def test_mock_race_unplugged_memory_is_no_spurious_fault() -> None:
    passes = threading.Semaphore(0)
    with Race("inhibit", 1, Loop((Load(AT), Out(0x90, 1)), None)) as race:
        race.machine.port(0x90)(lambda access: passes.release())
        race.machine.memory.remove(race.extra)
        while passes.acquire(blocking=False):
            pass
        for _ in range(2):
            assert passes.acquire(timeout=60)
        result = race.result()
    assert result.exits["mmio"] > 0
    assert result.spurious_faults == 0


def test_mock_race_handlers_that_remap_memory_beside_other_transactions_do_not_deadlock() -> None:
    port = 0x90
    with Race("inhibit", 4, Loop((*ENDLESS.body, Out(port, 1)), None)) as race:
        remapped = 0
        enough = threading.Event()

        def remap(access: PortAccess) -> None:
            nonlocal remapped
            race.replace()
            remapped += 1
            if remapped == 40:
                enough.set()

        race.machine.port(port)(remap)
        for _ in range(40):
            race.replace()
        assert enough.wait(60)
        result = race.result()
    assert (result.outcome, result.spurious_faults) == (Outcome.STOPPED, 0)


def test_mock_race_slot_latency_leaves_vcpus_in_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one slot call takes its time, a vCPU exits again and again."""
    block = RamBlock("block", 0x1000)
    slot = Slot(0, 0x1000, block.address, False, block)
    running = Running()
    memslots = MemSlots(1, running, latency=0.5)
    vcpu = MockVcpu(memslots, running, threading.Lock(), MockCoalescedRing())
    vcpu.load_program(GuestProgram((Loop((Load(0),), None),)))
    exits: list[int] = []
    enough, slept = threading.Event(), []

    def main() -> None:
        while vcpu.run() == ExitKind.MMIO:
            exits.append(vcpu.record[0])
            if len(exits) >= 20_000:
                enough.set()

    def sleep(seconds: float) -> None:
        if threading.current_thread() is thread:
            return
        slept.append(seconds)
        assert enough.wait(60), "the vCPU waits for the slot call"

    thread = threading.Thread(target=main)
    memslots.create(0, slot)
    monkeypatch.setattr(time, "sleep", sleep)
    thread.start()
    memslots.delete(0, slot)
    vcpu.kick(0)
    thread.join(60)
    assert not thread.is_alive()
    assert slept == [0.5]
    assert set(exits) == {0}


@pytest.mark.parametrize("hold", ["kick-all", "region-list"])
@pytest.mark.parametrize("cpus", [1, 3])
def test_mock_race_replacement_that_the_accelerator_protects_never_shows_the_gap(hold: str, cpus: int) -> None:
    """Reads, writes, and loads across the border of two pages, which KVM's emulator makes."""
    crossing = Load(AT + 0x1FFC, 8)
    with Race(hold, cpus, Loop((*ENDLESS.body, crossing, Add(AT + 0x3000, 1, 8)), None)) as race:
        for _ in range(50):
            race.replace()
        result = race.result()
    assert (result.outcome, result.spurious_faults) == (Outcome.STOPPED, 0)
    assert result.exits.get("mmio", 0) == 0
    assert result.memory["inhibits"] == 0, "the blocker has nothing to do"


@pytest.mark.parametrize("hold", ["kick-all", "region-list"])
def test_mock_race_counting_under_a_hold_of_the_accelerator_loses_nothing(hold: str) -> None:
    with Race(hold, 2, Loop((Add(AT + 8, 1, 8),), 50_000)) as race:
        # Back to back until it is done: whoever was kept out works before all are kicked again.
        while not race.run.done:
            race.replace()
        result = race.run.wait(60)
        count = int.from_bytes(race.extra.read(8, 8), "little")
    assert (result.outcome, count) == (Outcome.HALTED, 100_000)

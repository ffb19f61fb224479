"""Kicks: they bring a vCPU out wherever it is, once, and lose nothing of what the guest does."""

from __future__ import annotations

import threading

import pytest

from accel.backend import Capability
from accel.exits import Halt, Interrupted, IoIn, IoOut, MmioRead
from accel.machine import Machine
from accel.program import ERRORS, Add, In, Load, Loop, Out
from accel.testing.claims import Claims
from accel.testing.conformance.lane import Lane, Lanes
from accel.testing.conformance.verdict import Violation, due, expect
from accel.testing.machines import MachineFactory

pytestmark = pytest.mark.accelerators(executes=("program", "x86"))

COUNTER = 0x30_0000
HOLE = 0x1000_0000
PORT = 0x80
#: Tells that it runs, and then stays in the guest and counts.
COUNTING = (Out(PORT, 1), Loop((Add(COUNTER, 1, 8),), None))


def count(one: Machine) -> int:
    """Return how far a guest has counted."""
    return int.from_bytes(one.memory.read(COUNTER, 8), "little")


def until_it_counts(one: Machine, patience: float, *held: Lane) -> None:
    """Wait until the guest has counted further; `held` are vCPUs that may have come out, and are sent in again."""
    before, waited = count(one), threading.Event()
    for _ in range(round(patience * 1000)):
        for vcpu in held:
            if vcpu.idle:
                due(vcpu.exit("after a hold"), Interrupted, f"after a hold, at vCPU {vcpu.vcpu.index},")
                vcpu.start()
        if count(one) != before:
            return
        waited.wait(0.001)
    raise Violation(f"a guest that counts stands still at {before}, for {patience:g} s")


def counting(one: Machine, vcpu: Lane, patience: float) -> None:
    """Bring a machine with the program `COUNTING` into the guest."""
    due(vcpu.run(), IoOut, "at the first operation")
    vcpu.start()
    until_it_counts(one, patience)


def test_kicks_inside_the_guest_bring_it_out(machine: MachineFactory, lane: Lanes, patience: float) -> None:
    """A kick makes the `run` in progress return INTERRUPTED."""
    one = machine(*COUNTING)
    vcpu = lane(one)
    counting(one, vcpu, patience)
    one.vm.vcpus[0].kick()
    due(vcpu.exit("after a kick inside the guest"), Interrupted, "after a kick inside the guest")


def test_kicks_outside_are_for_the_next_run(machine: MachineFactory, lane: Lanes) -> None:
    """A kick while nobody runs the vCPU makes the next `run` return INTERRUPTED, before the guest does anything."""
    one = machine(Out(PORT, 1), Out(PORT, 2))
    vcpu = lane(one)
    due(vcpu.run(), IoOut, "at the first operation", data=b"\1")
    one.vm.vcpus[0].kick()
    due(vcpu.run(), Interrupted, "after a kick outside of the guest")
    due(vcpu.run(), IoOut, "in the run after the one that was interrupted", data=b"\2")


def test_kicks_before_the_first_run_are_for_it(machine: MachineFactory, lane: Lanes) -> None:
    """A kick before a vCPU has ever run makes its first `run` return INTERRUPTED."""
    one = machine(Out(PORT, 1))
    one.vm.vcpus[0].kick()
    vcpu = lane(one)
    due(vcpu.run(), Interrupted, "after a kick before the first run")
    due(vcpu.run(), IoOut, "in the run after the one that was interrupted", data=b"\1")


def test_kicks_are_taken_back_by_the_run_that_they_interrupt(machine: MachineFactory, lane: Lanes) -> None:
    """A `run` that returns INTERRUPTED has taken back all kicks that were made before it: the next one goes on."""
    one = machine(*(Out(PORT, n) for n in range(20)))
    vcpu = lane(one)
    for number in range(20):
        for _ in range(1 + number % 3):
            one.vm.vcpus[0].kick()
        due(vcpu.run(), Interrupted, f"after {1 + number % 3} kicks outside of the guest")
        due(vcpu.run(), IoOut, "in the run after the one that was interrupted", data=bytes((number,)))
    due(vcpu.run(), Halt, "after the last operation")


def test_kicks_again_and_again_bring_it_out_each_time(machine: MachineFactory, lane: Lanes, patience: float) -> None:
    """Each kick brings the vCPU out once more, and the guest goes on where it was in between."""
    one = machine(*COUNTING)
    vcpu = lane(one)
    counting(one, vcpu, patience)
    for number in range(30):
        until_it_counts(one, patience)
        one.vm.vcpus[0].kick()
        due(vcpu.exit(f"after kick {number + 1} of 30"), Interrupted, f"after kick {number + 1} of 30")
        vcpu.start()
    one.vm.vcpus[0].kick()
    vcpu.exit("after the last kick")


def test_kicks_of_hundreds_are_all_heard(machine: MachineFactory, lane: Lanes) -> None:
    """No kick is lost, wherever it finds the vCPU: on its way in, in the guest, or outside."""
    one, rounds = machine(Loop((Add(COUNTER, 1, 8),), None)), 300
    vcpu = lane(one)
    for number in range(rounds):
        # It is on its way in by now, or in the guest; each third time it has not begun.
        if number % 3:
            vcpu.start()
        one.vm.vcpus[0].kick()
        if not number % 3:
            vcpu.start()
        due(vcpu.exit(f"after kick {number + 1} of {rounds}"), Interrupted, f"after kick {number + 1} of {rounds}")


def test_kicks_from_several_threads_lose_nothing(machine: MachineFactory, lane: Lanes, patience: float) -> None:
    """Kicks may come from any thread at any time: the guest neither skips nor repeats an operation."""
    rounds = 400
    one = machine(Loop((Add(COUNTER, 1, 8), Out(PORT, 7)), rounds))
    vcpu, written, interrupted, done = lane(one), 0, 0, threading.Event()
    kicked, changed = threading.Semaphore(0), threading.Condition()

    def kick() -> None:
        while not done.is_set():
            before = written
            one.vm.vcpus[0].kick()
            kicked.release()
            # The next one may come at any moment once the guest has gone on. Kicks that came by the clock alone would
            # keep a vCPU out for good that takes longer to enter than they do to come, as on a busy host.
            done.wait(0.0005)
            with changed:
                changed.wait_for(lambda: written != before or done.is_set())  # noqa: B023 - called here only

    threads = [threading.Thread(target=kick, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            expect(kicked.acquire(timeout=patience), f"`kick` did not return within {patience:g} s")
        while not isinstance(found := vcpu.run("a run under kicks"), Halt):
            if isinstance(found, Interrupted):
                interrupted += 1
                continue
            due(found, IoOut, "under kicks from three threads", port=PORT, data=b"\7")
            with changed:
                written += 1
                changed.notify_all()
            expect(written <= rounds, f"a guest that writes {rounds} times under kicks came out more often")
    finally:
        done.set()
        with changed:
            changed.notify_all()
        for thread in threads:
            thread.join(patience)
    expect(written == rounds, f"of {rounds} writes under kicks from three threads, {written} came out")
    expect(count(one) == rounds, f"of {rounds} additions under kicks from three threads, {count(one)} were made")
    expect(interrupted, "kicks from three threads never made `run` return INTERRUPTED")


@pytest.mark.parametrize("what", ["port", "memory"])
def test_kicks_amid_an_access_do_not_lose_its_reply(machine: MachineFactory, lane: Lanes, what: str) -> None:
    """A kick between a read exit and the next `run` leaves the access as it is: the guest reads the reply."""
    read = In(PORT, 4, expect=0x1234_5678) if what == "port" else Load(HOLE, 4, expect=0x1234_5678)
    one = machine(read, Out(PORT, ERRORS))
    vcpu = lane(one)
    found = vcpu.run()
    due(found, IoIn if what == "port" else MmioRead, "at the read")
    one.vm.vcpus[0].kick()
    assert isinstance(found, (IoIn, MmioRead))
    found.reply(0x1234_5678)
    due(vcpu.run(), Interrupted, "after a kick between an access and its reply")
    report = due(vcpu.run(), IoOut, "after the reply and a kick")
    expect(report.data == b"\0", f"a read of a {what} that was kicked before its reply did not give that reply")


@pytest.mark.accelerators(vcpus=2)
def test_kicks_reach_only_the_vcpu_that_they_are_for(machine: MachineFactory, lane: Lanes, patience: float) -> None:
    """A kick brings out one vCPU; the others run on."""
    one = machine(*COUNTING, cpus=2)
    first, second = lane(one, 0), lane(one, 1)
    counting(one, first, patience)
    due(second.run(), IoOut, "at the first operation of vCPU 1")
    one.vm.vcpus[1].kick()
    due(second.run(), Interrupted, "after a kick of vCPU 1")
    expect(not first.idle, "a kick of vCPU 1 brought vCPU 0 out")
    one.vm.vcpus[0].kick()
    due(first.exit("after a kick of vCPU 0"), Interrupted, "after a kick of vCPU 0")


@pytest.mark.accelerators(capabilities=[Capability.KICK_ALL_VCPUS])
def test_kicks_of_all_keep_the_guests_out(
    machine: MachineFactory, lane: Lanes, claims: Claims, patience: float
) -> None:
    """When `kick_all` returns no vCPU executes guest code, until `resume_all`; then all go on."""
    cpus = min(2, claims.max_vcpus)
    one = machine(*COUNTING, cpus=cpus)
    vm, lanes = one.vm, [lane(one, index) for index in range(cpus)]
    for vcpu in lanes:
        counting(one, vcpu, patience)
    for _ in range(5):
        with vm.big_lock:
            vm.backend.kick_all(patience)
            before, waited = count(one), threading.Event()
            for _ in range(10):
                waited.wait(0.001)
            after = count(one)
            vm.backend.resume_all()
        expect(after == before, f"the guests counted from {before} to {after} between `kick_all` and `resume_all`")
        until_it_counts(one, patience, *lanes)  # each may have returned, or wait inside
    for index, vcpu in enumerate(lanes):
        vm.vcpus[index].kick()
        due(vcpu.exit("after a kick"), Interrupted, "after a kick, after `resume_all`")


@pytest.mark.accelerators(capabilities=[Capability.KICK_ALL_VCPUS])
def test_kicks_free_a_vcpu_that_waits_for_resume_all(machine: MachineFactory, lane: Lanes, patience: float) -> None:
    """A `run` between `kick_all` and `resume_all` returns INTERRUPTED, or waits inside until it is kicked; the guest
    does nothing."""
    one = machine(Out(PORT, 1))
    vm, vcpu = one.vm, lane(one)
    with vm.big_lock:
        vm.backend.kick_all(patience)
        vcpu.start()
        vm.vcpus[0].kick()
        found = vcpu.exit("after a kick between `kick_all` and `resume_all`")
        vm.backend.resume_all()
    due(found, Interrupted, "after a kick between `kick_all` and `resume_all`")
    found = vcpu.run()
    if isinstance(found, Interrupted):
        # It had come out before the kick, which was then for the next run.
        found = vcpu.run()
    due(found, IoOut, "after `resume_all`", data=b"\1")

"""Threads: several vCPUs at once, one on several threads in turn, and creating and closing while others run."""

from __future__ import annotations

import threading

import pytest

from accel.errors import ClosedError
from accel.exits import Halt, Interrupted, IoIn, IoOut, MmioRead
from accel.program import ERRORS, Add, GuestProgram, In, Load, Loop, Out, Store
from accel.result import Outcome
from accel.testing.claims import Claims
from accel.testing.conformance.lane import Lane, Lanes
from accel.testing.conformance.look import BASE, finish, look, pages, tagged
from accel.testing.conformance.pace import Pace
from accel.testing.conformance.test_kicks import COUNTER, COUNTING, HOLE, PORT, counting, until_it_counts
from accel.testing.conformance.verdict import due, expect
from accel.testing.machines import MachineFactory

pytestmark = pytest.mark.accelerators(executes=("program", "x86"))


@pytest.mark.accelerators(vcpus=2)
def test_threads_run_vcpus_at_once(machine: MachineFactory, lane: Lanes, claims: Claims, patience: float) -> None:
    """While one vCPU is in the guest, others enter it too, up to `max_vcpus` of them."""
    cpus = min(4, claims.max_vcpus)
    one = machine(*COUNTING, cpus=cpus)
    lanes = [lane(one, index) for index in range(cpus)]
    for index, vcpu in enumerate(lanes):
        counting(one, vcpu, patience)
        for before in range(index):
            expect(not lanes[before].idle, f"vCPU {before} came out when vCPU {index} entered")
    for index, vcpu in enumerate(lanes):
        one.vm.vcpus[index].kick()
        due(vcpu.exit(f"after a kick of vCPU {index}"), Interrupted, f"after a kick of vCPU {index} of {cpus}")


@pytest.mark.accelerators(vcpus=2)
def test_threads_add_atomically(machine: MachineFactory, claims: Claims, patience: float) -> None:
    """Locked additions of several vCPUs to one word are all there in the end."""
    cpus, rounds = min(4, claims.max_vcpus), 1500
    one = machine(Loop((Add(COUNTER, 1, 8), Add(COUNTER + 8, 3, 4)), rounds), cpus=cpus)
    result = finish(one, patience)
    expect(result.outcome is Outcome.HALTED, f"a machine whose {cpus} guests halt has ended as {result.outcome}")
    for address, size, step in ((COUNTER, 8, 1), (COUNTER + 8, 4, 3)):
        found, wanted = int.from_bytes(one.memory.read(address, size), "little"), cpus * rounds * step
        expect(found == wanted, f"{cpus} vCPUs added {step} to one word {rounds} times each, and it is {found}")


@pytest.mark.accelerators(vcpus=2)
@pytest.mark.parametrize("what", ["port", "memory"])
def test_threads_get_the_replies_that_are_for_them(machine: MachineFactory, lane: Lanes, what: str) -> None:
    """Each vCPU has a record and port data of its own: what two read at once are two exits, with a reply for each."""
    read = In(PORT, 4, expect=0x1234_5678) if what == "port" else Load(HOLE, 4, expect=0x1234_5678)
    one = machine(read, Out(PORT, ERRORS), cpus=2)
    lanes, kind = [lane(one, index) for index in range(2)], IoIn if what == "port" else MmioRead
    exits = [due(vcpu.run(), kind, f"at the read of vCPU {index}") for index, vcpu in enumerate(lanes)]
    for found, reply in zip(exits, (0x1234_5678, 0xFFFF_FFFF), strict=True):
        assert isinstance(found, (IoIn, MmioRead))
        found.reply(reply)
    for index, vcpu in enumerate(lanes):
        report = due(vcpu.run(), IoOut, f"after the reply to vCPU {index}")
        assert isinstance(report, IoOut)
        expect(report.data == bytes((index,)), f"of two vCPUs that read at once, vCPU {index} did not get its reply")


def test_threads_may_take_turns_with_a_vcpu(machine: MachineFactory, patience: float) -> None:
    """A vCPU runs on any thread, one after the other, and a kick brings it out of the one that it is on."""
    one = machine(*COUNTING)
    for number in range(3):
        vcpu = Lane(one.vm.vcpus[0], patience)
        if number == 0:
            due(vcpu.run(), IoOut, "at the first operation")
        vcpu.start()
        until_it_counts(one, patience)
        one.vm.vcpus[0].kick()
        where = f"after a kick on thread {number + 1} of 3"
        due(vcpu.exit(where), Interrupted, where)
        vcpu.close()


def test_threads_make_calls_on_the_vcpus_thread(machine: MachineFactory, patience: float) -> None:
    """`Vcpu.call` brings a running vCPU out for a call on its own thread, and the guest goes on."""
    one = machine()
    pace = Pace(one, patience)
    pace.begin(Loop((Loop((Add(COUNTER, 1, 8),), 100), Out(pace.port, 0)), None))
    for _ in range(5):
        pace.wait()
        name = one.vm.vcpus[0].call(lambda: threading.current_thread().name)
        expect(name == "vcpu-0", f"a call on vCPU 0's thread was made on {name}")
    pace.wait()
    pace.end()


def test_threads_pause_and_resume(machine: MachineFactory, claims: Claims, patience: float) -> None:
    """A machine that is paused stands still, all vCPUs outside of the guest, and goes on when it is resumed."""
    one = machine(cpus=min(2, claims.max_vcpus))
    pace = Pace(one, patience)
    pace.begin(Loop((Loop((Add(COUNTER, 1, 8),), 50), Out(pace.port, 0)), None))
    for _ in range(5):
        pace.wait()
        one.pause()
        before, waited = one.memory.read(COUNTER, 8), threading.Event()
        for _ in range(5):
            waited.wait(0.001)
        expect(one.memory.read(COUNTER, 8) == before, "a guest went on while its machine was paused")
        one.resume()
    pace.wait()
    pace.end()


@pytest.mark.accelerators(vcpus=2)
def test_threads_create_a_vcpu_while_another_runs(machine: MachineFactory, lane: Lanes, patience: float) -> None:
    """A vCPU, another VM and memory can be created while a vCPU is in the guest, which goes on, at the
    latest when it is run again: an accelerator may hold vCPUs for any change."""
    one = machine(*COUNTING)
    vcpu = lane(one)
    counting(one, vcpu, patience)
    one.vm.create_vcpu(1)
    until_it_counts(one, patience, vcpu)
    with one.transaction():
        one.memory.add(tagged("ram", 1, 1, 4096 * 16), at=BASE)
    until_it_counts(one, patience, vcpu)
    other = machine(Out(PORT, 9))
    due(lane(other).run(), IoOut, "in a second machine, while the first runs,", data=b"\x09")
    other.close()
    until_it_counts(one, patience, vcpu)
    one.vm.vcpus[0].kick()
    due(vcpu.exit("after a kick"), Interrupted, "after a kick")


def test_threads_change_memory_between_the_runs_of_another(
    machine: MachineFactory, lane: Lanes, claims: Claims
) -> None:
    """Memory that another thread changes between two runs of a vCPU is changed for the second."""
    one, page = machine(), claims.page_size
    vcpu = lane(one)
    for turn in range(5):
        region = tagged(f"ram{turn}", 1, turn + 1, page)
        changing = threading.Thread(target=one.memory.add, args=(region, BASE), daemon=True)
        changing.start()
        changing.join()
        look(one, vcpu, pages(BASE, [turn + 1, None], page), "after another thread added a region")
        one.memory.remove(region)


@pytest.mark.parametrize("what", ["vCPU", "VM"])
def test_threads_may_close_what_another_runs(machine: MachineFactory, lane: Lanes, patience: float, what: str) -> None:
    """Closing a vCPU or a VM whose vCPU is in the guest brings it out first; its `run` returns, and the next is
    refused."""
    one = machine(*COUNTING)
    vcpu = lane(one)
    counting(one, vcpu, patience)
    closed = one.vm.vcpus[0] if what == "vCPU" else one.vm
    closed.close()
    due(vcpu.exit(f"when the {what} was closed"), Interrupted, f"when the {what} was closed")
    try:
        vcpu.run()
    except ClosedError:
        return
    expect(False, f"a vCPU ran although the {what} was closed")


def test_threads_of_several_machines_run_at_once(machine: MachineFactory, lane: Lanes, patience: float) -> None:
    """Guests of several machines run at once; one that stays in the guest holds up none of the others."""
    first = machine(*COUNTING)
    vcpu = lane(first)
    counting(first, vcpu, patience)
    for number in range(4):
        other = machine()
        other.load(GuestProgram([Store(COUNTER, number + 1), Out(PORT, number)]))
        due(lane(other).run(), IoOut, "in another machine", data=bytes((number,)))
        due(lane(other).run(), Halt, "at the end of a program in another machine")
    expect(not vcpu.idle, "a vCPU came out when guests of other machines ran")
    until_it_counts(first, patience)
    first.vm.vcpus[0].kick()
    due(vcpu.exit("after a kick"), Interrupted, "after a kick")

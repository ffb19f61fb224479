"""Extras: queued writes, doorbells, interrupt lines and runs that repeat, each where it is claimed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from accel.backend import Capability
from accel.exits import IoOut, MmioWrite
from accel.machine import Machine
from accel.memory.region import MemoryRegion
from accel.plugins import find_accelerator
from accel.program import Add, GuestProgram, Halt, Loop, Out, Store
from accel.testing.conformance.lane import Lanes, play
from accel.testing.conformance.look import BASE, finish
from accel.testing.conformance.verdict import expect, shown
from accel.testing.machines import MachineFactory

pytestmark = pytest.mark.accelerators(executes=("program", "x86"))

PORT = 0x600
#: More than a ring holds.
MANY = 700


class Sink:
    """A device that takes writes, which may be queued.

    Attributes:
        region: The device.
        taken: The writes, as offset, value and size.
    """

    def __init__(self, one: Machine, *, is_port: bool) -> None:
        self.taken: list[tuple[int, int, int]] = []
        self.region = MemoryRegion.mmio(
            "sink", 0x100, write=lambda offset, value, size: self.taken.append((offset, value, size)), coalesced=True
        )
        (one.io if is_port else one.memory).add(self.region, at=PORT if is_port else BASE)


PLACES = [
    pytest.param("ports", marks=pytest.mark.accelerators(capabilities=[Capability.COALESCED_PIO])),
    pytest.param("memory", marks=pytest.mark.accelerators(capabilities=[Capability.COALESCED_MMIO])),
]


@pytest.mark.parametrize("place", PLACES)
def test_extras_queued_writes_arrive_in_order_and_save_exits(
    machine: MachineFactory, patience: float, place: str
) -> None:
    """Writes to what may be queued arrive all, in order, with their sizes, and most of them without an exit."""
    is_port = place == "ports"
    writes = [(8 * (n % 20), n & 0xFF, (1, 2, 4)[n % 3]) for n in range(MANY)]
    ops = [Out(PORT + at, value, size) if is_port else Store(BASE + at, value, size) for at, value, size in writes]
    one = machine()
    sink = Sink(one, is_port=is_port)
    one.load(GuestProgram(ops))
    result = finish(one, patience)
    for number, (found, wanted) in enumerate(zip(sink.taken, writes, strict=False)):
        expect(found == wanted, f"of queued writes to {place}, number {number} arrived as {found}; due was {wanted}")
    expect(len(sink.taken) == MANY, f"of {MANY} queued writes to {place}, {len(sink.taken)} arrived")
    exits = result.exits.get("io" if is_port else "mmio", 0)
    expect(exits < MANY // 2, f"{MANY} writes to {place} that may be queued made {exits} exits")


@pytest.mark.parametrize("place", PLACES)
def test_extras_queued_writes_come_before_a_later_exit(machine: MachineFactory, patience: float, place: str) -> None:
    """A write that is queued reaches its device before an access behind it, which comes out, reaches its own."""
    is_port, order = place == "ports", []
    one = machine()
    sink = Sink(one, is_port=is_port)
    one.port(0x80)(lambda access: order.append((len(sink.taken), access.value)))
    write = Out(PORT, 1, 1) if is_port else Store(BASE, 1, 1)
    one.load(GuestProgram([op for n in range(20) for op in (write, Out(0x80, n))]))
    finish(one, patience)
    wanted = [(n + 1, n) for n in range(20)]
    expect(order == wanted, f"queued writes to {place} that were there at each exit: {order}; due was {wanted}")


@pytest.mark.parametrize("place", PLACES)
def test_extras_writes_that_are_queued_no_more_come_out(machine: MachineFactory, lane: Lanes, place: str) -> None:
    """What may not be queued any more, or has gone, comes out again with each write."""
    is_port = place == "ports"
    one = machine()
    sink = Sink(one, is_port=is_port)
    op = Out(PORT, 5, 1) if is_port else Store(BASE, 5, 1)
    vcpu = lane(one)
    for step in ("clear", "remove"):
        if step == "clear":
            sink.region.clear_coalescing()
        else:
            (one.io if is_port else one.memory).remove(sink.region)
        one.load(GuestProgram([op, op, Halt()]))
        exits = play(vcpu)
        one.vm.drain()
        right = len(exits) == 2 and all(isinstance(found, IoOut if is_port else MmioWrite) for found in exits)
        expect(right, f"after {step}, two writes to {place} came out as {[shown(found) for found in exits]}")


@pytest.fixture
def bell() -> Iterator[int]:
    """An eventfd, closed after the test."""
    descriptor = os.eventfd(0, os.EFD_NONBLOCK)
    yield descriptor
    os.close(descriptor)


def rung(descriptor: int) -> int:
    """Return how often an eventfd was rung since the last time."""
    try:
        return os.eventfd_read(descriptor)
    except BlockingIOError:
        return 0


@pytest.mark.accelerators(capabilities=[Capability.IOEVENTFD])
@pytest.mark.parametrize("place", ["ports", "memory"])
def test_extras_doorbells_ring_without_an_exit(machine: MachineFactory, lane: Lanes, bell: int, place: str) -> None:
    """A write that a doorbell waits for rings it and does not come out; another size or value, or none, comes out."""
    is_port, at = place == "ports", PORT if place == "ports" else BASE
    one = machine()
    region = MemoryRegion.mmio("device", 0x10)
    (one.io if is_port else one.memory).add(region, at=at)
    region.add_eventfd(4, bell, 4, match=7)
    vcpu = lane(one)

    def write(value: int, size: int) -> Out | Store:
        return Out(at + 4, value, size) if is_port else Store(at + 4, value, size)

    for value, size, rings in ((7, 4, True), (8, 4, False), (7, 2, False)):
        one.load(GuestProgram([write(value, size)]))
        exits, count = play(vcpu), rung(bell)
        what = f"a write of {value} in {size} bytes to {place}, where a doorbell waits for 7 in 4,"
        expect(
            (count, len(exits)) == ((1, 0) if rings else (0, 1)), f"{what} rang {count} times, with {len(exits)} exits"
        )
    region.remove_eventfd(4, bell, 4, match=7)
    one.load(GuestProgram([write(7, 4)]))
    expect(len(play(vcpu)) == 1 and not rung(bell), f"a doorbell at {place} that was removed still rings")


@pytest.mark.accelerators(capabilities=[Capability.IRQCHIP])
def test_extras_interrupt_lines_can_be_set(machine: MachineFactory) -> None:
    """With interrupt controllers in the VM, an interrupt line can be raised and lowered from any thread."""
    vm = machine(irqchip=True).vm
    for level in (True, False, True, False):
        vm.set_irq(4, level)


@pytest.mark.accelerators(capabilities=[Capability.IRQCHIP])
def test_extras_guest_runs_beside_interrupt_controllers(machine: MachineFactory, lane: Lanes) -> None:
    """A guest runs in a VM with interrupt controllers as in one without."""
    one = machine(irqchip=True)
    one.load(GuestProgram([Loop([Out(0x5F0, 3)], 3), Out(0x5F1, 4), Loop([], None)]))
    vcpu = lane(one)
    found = [vcpu.run() for _ in range(4)]
    expect(
        [getattr(exit, "port", None) for exit in found] == [0x5F0, 0x5F0, 0x5F0, 0x5F1],
        f"beside interrupt controllers, a guest came out with {[shown(one) for one in found]}",
    )


def test_extras_runs_repeat_where_vcpus_take_turns(accelerator_name: str) -> None:
    """An accelerator with `takes_turns` does the same in two simulations with one seed."""
    if not find_accelerator(accelerator_name).takes_turns:
        pytest.skip(f"{accelerator_name} does not take turns")
    pytest.importorskip("greenlet", reason="simulations need greenlet")
    from accel.testing.simulate import Simulation, simulate

    def live(simulation: Simulation) -> tuple[bytes, list[int]]:
        lib, seen = simulation.accel, []
        with lib.Machine.create(accelerator_name, memory="1M", cpus=2) as one:
            one.port(0x80)(lambda access: seen.append(access.value))
            extra = lib.MemoryRegion.ram("extra", "64K", max_size="128K")
            one.memory.add(extra, at=BASE)
            one.load(GuestProgram([Loop([Add(BASE, 1, 8), Store(BASE + 64, 1), Out(0x80, 1)], 40), Out(0x80, 2)]))
            run = one.start()
            for size in ("128K", "64K") * 3:
                extra.resize(size)
                simulation.time.sleep(5e-5)
            run.wait()
            return one.memory.read(BASE, 8), seen

    for seed in (1, 2):
        first, second = simulate(live, seed), simulate(live, seed)
        expect(first.value == second.value, f"two runs with seed {seed} gave {first.value}, and then {second.value}")
        expect(first.digest == second.digest, f"two runs with seed {seed} took other orders of steps")

"""Guests written in Python: they get what they read, exit and are kicked as programs; what they raise ends the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.errors import CapabilityError, ProgramError
from accel.exits import Halt, Interrupted, IoIn, IoOut, MmioRead, MmioWrite
from accel.memory.region import MemoryRegion
from accel.program import ERRORS, Add, Fetch, GuestProgram, In, Load, Loop, Out, Store
from accel.program import Halt as HaltOp
from accel.result import Outcome
from accel.testing.simulate import Simulation, simulate
from accel_mock.python_guest import PythonGuest

HOLE = 0x100_0000


@pytest.fixture
def machine() -> Iterator[accel.Machine]:
    with accel.Machine.create("mock", memory="1M") as made:
        yield made


def test_python_guest_gets_what_it_reads(machine: accel.Machine) -> None:
    got: list[int | None] = []

    def guest():
        got.append((yield Store(0x1000, 0x1122334455667788, 8)))
        for size in (1, 2, 4, 8):
            got.append((yield Load(0x1000, size)))
        got.append((yield Load(PAGE_SIZE * 2 - 2, 4)))  # on two pages
        got.append((yield Add(0x1000, 1, 1)))
        got.append((yield Load(0x1000, 1)))
        got.append((yield In(0x60, 2)))
        got.append((yield Load(HOLE, 4)))
        got.append((yield Out(0x80, 1)))

    @machine.port(0x60, 2)
    def port(access: Any) -> None:
        access.reply(0x1234)

    machine.memory.add(MemoryRegion.mmio("hole", 16, read=lambda offset, size: 0xABCD), at=HOLE)
    machine.memory.write(PAGE_SIZE * 2 - 2, b"\1\2\3\4")
    machine.load(PythonGuest(guest))
    result = machine.run(timeout=60)
    assert result.outcome is Outcome.HALTED
    assert got == [None, 0x88, 0x7788, 0x55667788, 0x1122334455667788, 0x04030201, None, 0x89, 0x1234, 0xABCD, None]


def test_python_guest_decides_by_what_it_reads(machine: accel.Machine) -> None:
    """What no `GuestProgram` can: follow a list through memory."""
    chain = [0x3000, 0x7000, 0x5000, 0x2000]
    for here, following in zip(chain, [*chain[1:], 0], strict=True):
        machine.memory.write(here, following.to_bytes(4, "little"))
    seen = []

    def guest():
        here = chain[0]
        while here:
            seen.append(here)
            here = yield Load(here)

    machine.load(PythonGuest(guest))
    machine.run(timeout=60)
    assert seen == chain


def test_python_guest_exits_as_a_program_does(vcpu: Any) -> None:
    def guest():
        yield Store(HOLE, 7, 2)
        assert (yield Load(HOLE, 1)) == 9
        assert (yield In(0x60)) == 5
        yield Load(0x1000, expect=1)
        yield In(0x60, expect=1)
        yield Out(0x80, ERRORS)
        yield HaltOp()
        pytest.fail("went on after a halt")

    vcpu.load_program(PythonGuest(guest))
    exits = []
    while not isinstance(one := vcpu.run(), Halt):
        exits.append(one)
        match one:
            case MmioRead():
                one.reply(9)
            case IoIn():
                one.reply(5)
    assert [type(one) for one in exits] == [MmioWrite, MmioRead, IoIn, IoIn, IoOut]
    assert exits[-1].data == b"\2", "two reads were not what was expected"
    assert vcpu.run() == Halt()


def test_python_guest_that_has_ended_stays_halted_and_begins_anew_when_loaded(vcpu: Any) -> None:
    begun = []

    def guest():
        begun.append(True)
        yield Store(0, 1)

    guest = PythonGuest(guest)
    for number in (1, 2):
        vcpu.load_program(guest)
        assert [vcpu.run(), vcpu.run()] == [Halt(), Halt()]
        assert len(begun) == number


def test_python_guest_is_kicked_between_operations(vcpu: Any) -> None:
    made = []

    def guest():
        while True:
            made.append((yield Load(0)))
            if len(made) == 10:
                vcpu.kick()

    vcpu.load_program(PythonGuest(guest))
    assert vcpu.run() == Interrupted()
    assert 10 <= len(made) <= 11


def test_python_guest_that_raises_ends_the_run_with_its_exception(machine: accel.Machine) -> None:
    def guest():
        value = yield Load(0x1000)
        assert value == 7, "memory is wrong"

    machine.load(PythonGuest(guest))
    with pytest.raises(AssertionError, match="memory is wrong"):
        machine.run(timeout=60)
    machine.load(GuestProgram([Load(0)]))
    assert machine.run(timeout=60).outcome is Outcome.HALTED


@pytest.mark.parametrize(
    ("op", "problem"),
    [
        (Loop([Load(0)], 2), "loops in Python"),
        (Load(-1), "address"),
        (Store(0, 1, 3), "size"),
        ("load", "op"),
        (None, "op"),
    ],
)
def test_python_guest_operation_that_cannot_be_is_refused(vcpu: Any, op: Any, problem: str) -> None:
    def guest():
        yield op

    vcpu.load_program(PythonGuest(guest))
    with pytest.raises(ProgramError, match=problem):
        vcpu.run()


def test_python_guest_with_more_operations_than_are_kept_goes_on(vcpu: Any) -> None:
    def guest():
        for number in range(5000):
            yield Store(0x1000, number)
            assert (yield Load(0x1000)) == number
        yield Fetch(0x1000)

    vcpu.load_program(PythonGuest(guest))
    assert type(vcpu.run()).__name__ == "Shutdown", "what is at 0x1000 is no return"


def test_python_guest_is_of_the_mock_only() -> None:
    guest = PythonGuest(lambda: iter(()))
    with pytest.raises(CapabilityError, match="runs on the mock only"):
        guest.to_data()
    assert guest == guest != PythonGuest(lambda: iter(()))
    assert "PythonGuest(" in repr(guest) == str(guest)


def test_python_guests_on_two_vcpus_play_by_themselves(machine: accel.Machine) -> None:
    with accel.Machine.create("mock", memory="1M", cpus=2) as two:

        def guest():
            for _ in range(200):
                yield Add(0x1000)

        two.load(PythonGuest(guest))
        two.run(timeout=60)
        assert two.memory.read(0x1000, 2) == (400).to_bytes(2, "little")


def test_python_guest_in_a_simulation_repeats() -> None:
    """Two guests that add without a lock lose sums, as many as the seed says."""

    def lost(simulation: Simulation) -> int:
        made = simulation.load("accel_mock.python_guest").PythonGuest

        def guest():
            for _ in range(100):
                value = yield Load(0x1000)
                yield Store(0x1000, value + 1)

        with simulation.accel.Machine.create("mock", memory="1M", cpus=2) as machine:
            machine.load(made(guest))
            machine.run()
            return 200 - int.from_bytes(machine.memory.read(0x1000, 4), "little")

    sums = [simulate(lost, seed).value for seed in range(6)]
    assert sums == [simulate(lost, seed).value for seed in range(6)]
    assert len(set(sums)) > 1
    assert max(sums) > 0

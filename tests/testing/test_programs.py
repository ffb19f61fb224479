"""The ready-made programs do what they say, on the mock and on real KVM."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from accel.address import AddressRange
from accel.errors import AddressError
from accel.machine import Machine
from accel.memory.region import MemoryRegion
from accel.program import GuestProgram
from accel.result import Outcome, RunResult
from accel.testing.programs import (
    CONSOLE_PORT,
    EXIT_PORT,
    MAX_PLACES,
    call,
    hello,
    poll,
    smp_count,
    touch,
)

AT = 0x20_0000
PAGE = 0x1000


class Guest:
    """A machine with a console and an exit port."""

    def __init__(self, accelerator: str, cpus: int) -> None:
        self.console = bytearray()
        self.machine = Machine.create(accelerator, memory="4M", cpus=cpus)
        self.machine.port(CONSOLE_PORT)(lambda access: self.console.extend(access.data))
        self.machine.port(EXIT_PORT)(lambda access: self.machine.request_exit(access.value))

    def run(self, program: GuestProgram, timeout: float = 60) -> RunResult:
        self.machine.load(program)
        return self.machine.run(timeout)

    def word(self, address: int) -> int:
        return int.from_bytes(self.machine.ram.read(address, 4), "little")


@pytest.fixture(params=["mock", pytest.param("kvm", marks=pytest.mark.kvm)])
def guest(request: pytest.FixtureRequest) -> Iterator[Callable[..., Guest]]:
    """Make guests on each accelerator in turn; they are closed in the end."""
    made: list[Guest] = []

    def make(cpus: int = 1) -> Guest:
        made.append(Guest(request.param, cpus))
        assert made[-1].machine.accelerator == request.param
        return made[-1]

    yield make
    for one in made:
        one.machine.close()


@pytest.mark.parametrize(
    ("program", "outcome", "status"),
    [
        (hello(message=b"hi\n"), Outcome.EXITED, 0),
        (hello(message=b"hi\n", end="halt"), Outcome.HALTED, None),
        (hello(message=b"hi\n", end="spin"), Outcome.TIMED_OUT, None),
    ],
    ids=["exit", "halt", "spin"],
)
def test_programs_hello_prints_and_ends(
    guest: Callable[..., Guest], program: GuestProgram, outcome: Outcome, status: int | None
) -> None:
    one = guest()
    one.machine.load(program)
    run = one.machine.start()
    while outcome is Outcome.TIMED_OUT and one.console != b"hi\n" and not run.done:
        time.sleep(0.001)
    result = run.wait(0.05 if outcome is Outcome.TIMED_OUT else 60)
    assert (result.outcome, result.exit_status) == (outcome, status)
    assert one.console == b"hi\n"


def test_programs_touch_writes_a_value_of_its_own_to_each_place(guest: Callable[..., Guest]) -> None:
    one = guest()
    result = one.run(touch(AddressRange(AT, AT + 4 * PAGE + 3), 3, pattern=0xFFFF_FFFE))
    assert (result.outcome, result.exit_status) == (Outcome.EXITED, 0)
    assert [one.word(AT + n * PAGE) for n in range(5)] == [0xFFFF_FFFE, 0xFFFF_FFFF, 0, 1, 0]


def test_programs_touch_reports_memory_that_is_not_its_own(guest: Callable[..., Guest]) -> None:
    """Two addresses that show the same page cannot hold two values."""
    one = guest()
    mirror = MemoryRegion.alias("mirror", one.machine.ram, AT, PAGE)
    one.machine.memory.add(mirror, AT + PAGE, priority=1)
    assert one.run(touch(AddressRange(AT, AT + 2 * PAGE), 5)).exit_status == 5


@pytest.mark.parametrize(("there", "errors"), [(7, 0), (8, 100)])
def test_programs_poll_counts_what_it_did_not_expect(guest: Callable[..., Guest], there: int, errors: int) -> None:
    one = guest()
    one.machine.ram.write(AT, bytes([there]))
    assert one.run(poll(AT, 7, rounds=100)).exit_status == errors


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_programs_smp_count_loses_nothing(guest: Callable[..., Guest], cpus: int) -> None:
    one = guest(cpus)
    assert one.run(smp_count(AT, 5000)).outcome is Outcome.HALTED
    assert one.word(AT) == 5000 * cpus


def test_programs_call_executes_what_it_wrote(guest: Callable[..., Guest]) -> None:
    result = guest().run(call(AT, 100))
    assert (result.outcome, result.exit_status) == (Outcome.EXITED, 0)


@pytest.mark.parametrize("window", [AddressRange(AT, AT + 3), AddressRange(0, 1 << 40)])
def test_programs_touch_of_nothing_or_too_much_is_refused(window: AddressRange) -> None:
    with pytest.raises(AddressError, match="use another stride"):
        touch(window, 1)


def test_programs_touch_takes_as_many_places_as_it_says() -> None:
    touch(AddressRange.sized(0, MAX_PLACES * PAGE), 1)

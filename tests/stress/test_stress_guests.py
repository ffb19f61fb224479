"""The stress guests find what is wrong: one thing is spoilt after they are loaded, and they or the host must tell."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from accel.errors import CapabilityError, UsageError
from accel.machine import Machine
from accel.memory.region import MemoryRegion
from accel.plugins import find_accelerator
from accel.result import Outcome
from accel.stress import program_guest
from accel.stress.area import BASE, CODE, DATA, TABLES, TOUCHED, WRITTEN
from accel.stress.changes import ChangingMap
from accel.stress.guests import MEMORY, StressGuest, make_guest
from accel.stress.judgement import TOUCHES, Judgement, Touch

ON_BOTH = pytest.mark.parametrize("accelerator", ["mock", pytest.param("kvm", marks=pytest.mark.kvm)])
Bench = Callable[..., tuple[Machine, ChangingMap, StressGuest]]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Make a loaded guest: `bench("kvm", "read", cpus=2)`."""
    made: list[Machine] = []

    def make(accelerator: str, touch: Touch, cpus: int = 1) -> tuple[Machine, ChangingMap, StressGuest]:
        machine = Machine.create(accelerator, memory=MEMORY, cpus=cpus)
        made.append(machine)
        memory = ChangingMap(machine)
        guest = make_guest(machine, memory, touch, find_accelerator(accelerator).executes)
        guest.load()
        return machine, memory, guest

    yield make
    for machine in made:
        machine.close()


def outcome(machine: Machine, guest: StressGuest) -> tuple[Outcome, Judgement]:
    """Run until the guest has made a pass, or has ended by itself."""
    run = machine.start()
    deadline = time.monotonic() + 60
    while not (guest.begun() or run.done) and time.monotonic() < deadline:
        time.sleep(0.001)
    if not run.done:
        guest.end()
    result = run.wait(60)
    return result.outcome, guest.judge(result)


def spoil(memory: ChangingMap, offset: int) -> None:
    word = struct.unpack("<Q", memory.ram.read(offset, 8))[0]
    memory.ram.write(offset, struct.pack("<Q", word ^ 0x0100))


PLACES = [
    *(pytest.param("kvm", touch, marks=pytest.mark.kvm) for touch in TOUCHES),
    *(("mock", touch) for touch in TOUCHES if touch != "walk"),
]


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize(("accelerator", "touch"), PLACES)
def test_guest_in_plain_memory_makes_passes_without_errors(
    bench: Bench, accelerator: str, touch: Touch, cpus: int
) -> None:
    machine, _, guest = bench(accelerator, touch, cpus)
    ended, found = outcome(machine, guest)
    assert ended is (Outcome.STOPPED if accelerator == "mock" else Outcome.EXITED)
    assert found.passes > 0
    assert (found.errors, found.host_errors, found.first_error) == (0, 0, "")


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("touch", "offset", "says"),
    [
        ("read", DATA.offset + DATA.size, f"read at {BASE + DATA.offset + DATA.size:#x}: expected "),
        ("write", WRITTEN.offset + 8, f"write at {BASE + WRITTEN.offset + 8:#x}: expected "),
        ("locked", WRITTEN.offset + WRITTEN.size, "a sum or a last word is wrong"),
        ("fetch", CODE.offset + 2, f"fetch at {BASE + CODE.offset:#x}: expected "),
        ("mixed", DATA.offset, f"read at {BASE + DATA.offset:#x}: expected "),
    ],
)
def test_guest_finds_a_spoilt_word(bench: Bench, touch: Touch, offset: int, says: str) -> None:
    machine, memory, guest = bench("kvm", touch)
    spoil(memory, offset)
    _, found = outcome(machine, guest)
    assert found.errors > 0
    assert found.first_error.startswith(says)
    # What only the host writes, it finds as well.
    assert (found.host_errors > 0) is (touch not in ("write", "locked"))


@pytest.mark.kvm
def test_guest_walks_the_page_tables_in_the_changing_ram(bench: Bench) -> None:
    machine, memory, guest = bench("kvm", "walk")
    # The second large page of the first directory leads to the third one's memory.
    entry = TABLES + 2 * 4096 + 8
    assert struct.unpack("<Q", memory.ram.read(entry, 8))[0] & ~0xFFF == 0x20_0000
    memory.ram.write(entry, struct.pack("<Q", 0x40_00E3))
    _, found = outcome(machine, guest)
    assert found.first_error.startswith("walk at 0x3f0000: expected ")


@pytest.mark.parametrize(("touch", "offset"), [("read", DATA.offset), ("write", WRITTEN.offset + 8)])
def test_program_reports_a_spoilt_word(bench: Bench, monkeypatch, touch: Touch, offset: int) -> None:
    reported = threading.Event()
    write = program_guest._Reports._write

    def note(device: program_guest._Reports, offset: int, value: int, size: int) -> None:
        write(device, offset, value, size)
        if value:
            reported.set()

    monkeypatch.setattr(program_guest._Reports, "_write", note)
    machine, memory, guest = bench("mock", touch)
    spoil(memory, offset)
    run = machine.start()
    assert reported.wait(60)
    guest.end()
    assert guest.judge(run.wait(60)).errors > 0


def test_program_whose_shared_word_was_spoilt_is_found_out(bench: Bench) -> None:
    machine, memory, guest = bench("mock", "locked")
    spoil(memory, WRITTEN.offset)
    assert outcome(machine, guest)[1].errors > 0


@ON_BOTH
def test_host_finds_words_of_the_tail_that_changed(bench: Bench, accelerator: str) -> None:
    machine, memory, guest = bench(accelerator, "read")
    spoil(memory, TOUCHED)
    spoil(memory, TOUCHED + 64)
    assert outcome(machine, guest)[1].host_errors == 2


@ON_BOTH
def test_host_finds_that_the_map_shows_other_bytes(bench: Bench, accelerator: str) -> None:
    machine, _, guest = bench(accelerator, "fetch")
    machine.memory.add(MemoryRegion.ram("wrong", 4096), WRITTEN.offset + BASE, priority=1)
    _, found = outcome(machine, guest)
    assert found.host_errors > 0


def test_walk_without_machine_code_is_refused(bench: Bench) -> None:
    with pytest.raises(CapabilityError, match="walk no page tables"):
        bench("mock", "walk")


def test_more_vcpus_than_the_guest_is_made_for_are_refused(bench: Bench) -> None:
    with pytest.raises(UsageError, match="up to 16"):
        bench("mock", "read", 17)

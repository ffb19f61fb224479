"""Every example guest, and random guest programs, on KVM and on Unicorn: the same, or different where this says so."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

import accel
from accel.errors import CapabilityError
from accel.program import ERRORS, GuestProgram, Op, Out, Store
from accel.result import Outcome
from accel.testing.random_programs import RAM, SPECIAL, operations, run_program

pytestmark = pytest.mark.kvm

GUESTS = Path(__file__).resolve().parents[2] / "guests"
_TIMEOUT_S = 60


@frozen
class Seen:
    """What a guest did.

    Attributes:
        exits: By kind; port accesses with those that KVM delivers through its ring. Interruptions are the host's.
        crash: Why it crashed, and RIP.
        text: What the accelerator says about that; each in its own words.
    """

    printed: str
    outcome: Outcome
    status: int | None
    unassigned: int
    exits: dict[str, int]
    crash: tuple[str, str] | None
    text: str = field(eq=False)


@frozen
class Case:
    """A guest and what it needs.

    Attributes:
        image: Its file.
        cpus: Number of vCPUs.
        feed: What the serial line receives.
        prepare: Makes changes to the machine.
        counts: Whether the numbers of exits are the guest's alone.
    """

    image: str
    cpus: int = 1
    feed: bytes = b""
    prepare: Callable[[accel.Machine], None] | None = field(default=None, repr=False)
    counts: bool = True

    def __str__(self) -> str:
        return f"{self.image}-{self.cpus}" + (f"-{self.prepare.__name__.strip('_')}" if self.prepare else "")


def _ram(machine: accel.Machine) -> None:
    machine.memory.add(accel.MemoryRegion.ram("extra", "1M"), at=0x1000_0000)


def _few_rounds(machine: accel.Machine) -> None:
    machine.memory.write(0x8030, (2).to_bytes(8, "little"))


def _few_writes(machine: accel.Machine) -> None:
    machine.memory.write(0x7C04, struct.pack("<I", 3000))


def _pass_of(kind: int) -> Callable[[accel.Machine], None]:
    """Let `stress.elf` make one pass of a kind on each vCPU: over words, and over functions that return them."""
    cells, functions = 0x40_0000, 0x50_0000

    def prepare(machine: accel.Machine) -> None:
        write = machine.memory.write
        for number in range(16):
            for base in (cells, functions):
                value = (base + 0x1000 * number) * 0x9E37_79B9_7F4A_7C15 % (1 << 64) >> 1
                code = b"\x48\xb8" + value.to_bytes(8, "little") + b"\xc3"  # mov rax, value; ret
                write(base + 0x1000 * number, value.to_bytes(8, "little") if base == cells else code)
        written = cells + 0x2_0000
        areas = (cells, 16, 0x1000, written, 16, 0x1000, functions, 16, 0x1000)
        write(0x8040, struct.pack("<9Q", *areas))
        if kind == 1:  # a word that a vCPU has not written yet is that of pass 0
            for number in range(16):
                for word in range(1, 3):
                    at = written + 0x1000 * number + 8 * word
                    write(at, (at & 0xFFFF_FFFF).to_bytes(8, "little"))
        for cpu in range(2):
            write(0x8088 + 64 * cpu, kind.to_bytes(8, "little"))
        write(0x8000, (1).to_bytes(8, "little"))

    prepare.__name__ = f"_kind{kind}"
    return prepare


def run(accelerator: str, case: Case, timeout: float = _TIMEOUT_S, **config: object) -> Seen:
    """Run a guest with the devices that the example guests talk to."""
    with accel.Machine.create(accelerator, memory="16M", cpus=case.cpus, **config) as machine:
        serial, console = accel.devices.Serial(0x3F8), accel.devices.DebugConsole(0xE9)
        for device in (serial, console, accel.devices.DebugExit()):
            machine.attach(device)
        machine.load(GUESTS / case.image)
        if case.prepare is not None:
            case.prepare(machine)
        serial.feed(case.feed)
        result = machine.run(timeout)
        printed = (serial.console.captured() + console.console.captured()).decode()
    assert result.accelerator == accelerator
    exits = {kind: count for kind, count in result.exits.items() if kind != "interrupted"}
    exits["io"] = exits.get("io", 0) + result.coalesced_writes
    found = re.search(r"RIP (0x[0-9a-f]+)", str(result.crash)) if result.crash else None
    crash = (result.crash.reason, found[1] if found else "") if result.crash else None
    return Seen(printed, result.outcome, result.exit_status, result.unassigned, exits, crash, str(result.crash))


ENDING = (
    Case("hello.bin"),
    Case("hello-console.bin"),
    Case("compute.elf"),
    Case("echo.elf", feed=b"over the line\n\x04"),
    Case("smp.elf"),
    Case("smp.elf", cpus=4, counts=False),
    Case("touch.elf", prepare=_ram),
    Case("touch.elf", cpus=4, prepare=_ram, counts=False),
    Case("touch.elf", prepare=_few_rounds),
    Case("wild.elf"),
    Case("exits.bin", prepare=_few_writes),
    Case("console-bench.bin", prepare=_few_writes),
    Case("console-halt.bin"),
    Case("halt.bin"),
    Case("halt.bin", cpus=3),
    *(Case("stress.elf", cpus=cpus, prepare=_pass_of(kind), counts=cpus == 1) for cpus in (1, 2) for kind in range(4)),
)


@pytest.mark.parametrize("case", ENDING, ids=str)
def test_guest_that_ends_prints_and_ends_the_same(case):
    kvm, unicorn = run("kvm", case), run("unicorn", case)
    if not case.counts:
        assert (kvm.printed, kvm.outcome, kvm.status) == (unicorn.printed, unicorn.outcome, unicorn.status)
    else:
        assert kvm == unicorn
    assert kvm.outcome in (Outcome.EXITED, Outcome.HALTED)


@pytest.mark.parametrize("image", ["console-spin.bin", "spin.bin", "flood.bin", "flood-serial.bin"])
def test_guest_that_goes_on_prints_the_same_until_it_is_stopped(image):
    kvm, unicorn = (run(name, Case(image), timeout=0.3) for name in ("kvm", "unicorn"))
    assert kvm.outcome is unicorn.outcome is Outcome.TIMED_OUT
    common = min(len(kvm.printed), len(unicorn.printed))
    assert kvm.printed[:common] == unicorn.printed[:common]
    assert bool(kvm.printed) == bool(unicorn.printed) == (image != "spin.bin")


@pytest.mark.parametrize(
    ("image", "on_kvm", "on_unicorn"),
    [
        ("triple-fault.elf", "shutdown: triple fault at", "triple fault (exception 6, error code 0x0) at"),
        ("garbage.elf", "shutdown: triple fault at", "triple fault (exception 6, error code 0x0) at"),
        ("wild-jump.elf", "KVM internal error, suberror 1", "instruction fetch where there is no memory at"),
    ],
)
def test_guest_that_crashes_does_so_for_the_same_reason_at_the_same_place(image, on_kvm, on_unicorn):
    kvm, unicorn = (run(name, Case(image)) for name in ("kvm", "unicorn"))
    assert kvm.outcome is Outcome.CRASHED
    assert kvm.crash is not None
    assert kvm == unicorn
    assert on_kvm in kvm.text
    assert on_unicorn in unicorn.text


def test_guest_that_needs_interrupts_is_for_kvm_alone():
    case = Case("irq-echo.bin", feed=b"hi\n\x04")
    kvm = run("kvm", case, irqchip=True)
    assert (kvm.printed, kvm.status) == ("hi\n", 1)
    with pytest.raises(CapabilityError, match="no interrupt controllers"):
        run("unicorn", case, irqchip=True)


def test_guest_that_starts_the_others_itself_finds_no_local_apic_on_unicorn():
    case = Case("sipi.elf", cpus=4)
    kvm = run("kvm", case, irqchip=True)
    assert (kvm.printed, kvm.status) == ("4 vCPUs started\n", 1)
    without = [run(name, case) for name in ("kvm", "unicorn")]
    assert [one.status for one in without] == [3, 3]  # it says so on both, where there is none
    with pytest.raises(CapabilityError, match="no interrupt controllers"):
        run("unicorn", case, irqchip=True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(operations(), min_size=1, max_size=10))
def test_program_does_on_unicorn_what_it_does_on_kvm(ops: list[Op]) -> None:
    program = GuestProgram([*ops, Out(0x80, ERRORS, 4)])
    kvm, unicorn = run_program("kvm", program), run_program("unicorn", program)
    if any(_leaves_ram(op) for op in program.walk()):
        # What of a store lies behind RAM comes out of Unicorn byte by byte.
        assert kvm.exits["mmio"] <= unicorn.exits["mmio"]
        kvm.exits["mmio"] = unicorn.exits["mmio"]
    assert kvm == unicorn


def _leaves_ram(op: Op) -> bool:
    end = RAM + 0x2000
    return isinstance(op, Store) and op.address < end < op.address + op.size


@pytest.mark.parametrize("ops", SPECIAL.values(), ids=SPECIAL)
def test_program_that_fetches_or_fails_does_the_same(ops: list[Op]) -> None:
    assert run_program("kvm", GuestProgram(ops)) == run_program("unicorn", GuestProgram(ops))

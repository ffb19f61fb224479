"""The accelerator by itself; beside it run the rules of accel's conformance suite (`testpaths` in pyproject.toml)."""

import accel
from accel.program import ERRORS, GuestProgram, Load, Out, Store
from accel.testing.programs import hello


def test_it_is_found_and_runs_a_program() -> None:
    written = bytearray()
    with accel.Machine.create("$name", memory="1M") as machine:
        machine.port(0xE9)(lambda access: written.extend(access.data))
        machine.load(hello(end="halt"))
        result = machine.run(timeout=10)
    assert (result.accelerator, result.outcome) == ("$name", accel.Outcome.HALTED)
    assert written == b"hello from the guest\n"


def test_a_guest_counts_what_it_did_not_expect() -> None:
    program = GuestProgram([Store(0x1000, 7), Load(0x1000, expect=7), Load(0x1000, expect=8), Out(0xF4, ERRORS)])
    errors = bytearray()
    with accel.Machine.create("$name", memory="1M") as machine:
        machine.port(0xF4)(lambda access: errors.extend(access.data))
        machine.load(program)
        machine.run(timeout=10)
    assert errors == b"\x01"

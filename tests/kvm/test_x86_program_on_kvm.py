"""One program, two accelerators: what KVM executes as machine code is what the mock interprets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.program import ERRORS, GuestProgram, Op, Out
from accel.testing.random_programs import SPECIAL, operations, run_program

pytestmark = pytest.mark.kvm


@settings(max_examples=60, deadline=None)
@given(st.lists(operations(), min_size=1, max_size=10))
def test_x86_program_does_on_kvm_what_the_mock_does(ops: list[Op]) -> None:
    program = GuestProgram([*ops, Out(0x80, ERRORS, 4)])
    assert run_program("kvm", program) == run_program("mock", program)


@pytest.mark.parametrize("ops", SPECIAL.values(), ids=SPECIAL)
def test_x86_program_that_fetches_or_fails_does_the_same(ops: list[Op]) -> None:
    assert run_program("kvm", GuestProgram(ops)) == run_program("mock", GuestProgram(ops))

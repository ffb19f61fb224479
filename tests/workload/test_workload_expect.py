"""Verdicts: what holds and what does not, one expectation at a time."""

from __future__ import annotations

import pytest

from accel.result import Outcome, RunResult, VcpuResult
from accel.workload.expect import judge
from accel.workload.report import Report
from accel.workload.schema import ExpectSpec, Texts

RESULT = RunResult(
    outcome=Outcome.EXITED,
    exit_status=3,
    crash=None,
    wall_time=0.5,
    accelerator="mock",
    host="",
    vcpus=(VcpuResult(0, {"io": 1}, {0x1000: 2}, {}),),
)

#: What is expected, and whether it holds of RESULT, 4 changes, and a console of b"a.c\n".
CASES = [
    (ExpectSpec(outcome=Outcome.EXITED), True),
    (ExpectSpec(outcome=Outcome.HALTED), False),
    (ExpectSpec(exit_status=3), True),
    (ExpectSpec(exit_status=0), False),
    (ExpectSpec(accelerator="mock"), True),
    (ExpectSpec(accelerator="kvm"), False),
    (ExpectSpec(spurious_faults=2), True),
    (ExpectSpec(spurious_faults=0), False),
    (ExpectSpec(min_spurious_faults=2), True),
    (ExpectSpec(min_spurious_faults=3), False),
    (ExpectSpec(min_changes=4), True),
    (ExpectSpec(min_changes=5), False),
    (ExpectSpec(console_contains=Texts(("a.c",))), True),
    (ExpectSpec(console_contains=Texts(("a", "x"))), False),
    # Text is text and no pattern.
    (ExpectSpec(console_contains=Texts(("a..",))), False),
    (ExpectSpec(console_exact="a.c\n"), True),
    (ExpectSpec(console_exact="a.c"), False),
]


@pytest.mark.parametrize(("expect", "holds"), CASES)
def test_judge_one_expectation(expect: ExpectSpec, holds: bool) -> None:
    verdicts = judge(expect, RESULT, b"a.c\n", truncated=False, changes=4)
    assert all(verdict.passed for verdict in verdicts) is holds
    assert len(verdicts) == max(1, len(expect.console_contains))


def test_judge_nothing_gives_no_verdict() -> None:
    assert judge(ExpectSpec(), RESULT, b"", truncated=False, changes=0) == ()


def test_judge_exact_console_with_a_part_left_out_fails() -> None:
    (verdict,) = judge(ExpectSpec(console_exact="a"), RESULT, b"a", truncated=True, changes=0)
    assert not verdict.passed
    assert "middle left out" in verdict.found


def test_judge_text_outside_of_ascii_is_compared_as_utf8() -> None:
    (verdict,) = judge(ExpectSpec(console_contains=Texts(("ü",))), RESULT, "für".encode(), truncated=False, changes=0)
    assert verdict.passed


def test_verdict_shows_the_end_of_a_long_console() -> None:
    console = b"x" * 500 + b"the end"
    (verdict,) = judge(ExpectSpec(console_contains=Texts(("no",))), RESULT, console, truncated=False, changes=0)
    assert str(verdict) == f"console_contains: expected 'no', found …{'x' * 53 + 'the end'!r}"


@pytest.mark.parametrize(
    ("outcome", "expected", "passed"),
    [
        (Outcome.EXITED, None, True),
        (Outcome.HALTED, None, True),
        (Outcome.CRASHED, None, False),
        (Outcome.TIMED_OUT, None, False),
        (Outcome.STOPPED, None, False),
        (Outcome.CRASHED, Outcome.CRASHED, True),
        (Outcome.TIMED_OUT, Outcome.CRASHED, False),
    ],
)
def test_report_passed_needs_a_good_or_expected_ending(
    outcome: Outcome, expected: Outcome | None, passed: bool
) -> None:
    result = RunResult(outcome, None, None, 0.0, "mock", "", ())
    report = Report("x", result, b"", 0, False, 0, (), expected)
    assert report.passed is passed

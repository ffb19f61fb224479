"""The exit codes of `accelctl`, in one place: what they are, and which one an error or a report gives.

``docs/reference/exit-codes.md`` describes them; a test keeps it in step.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from accel.errors import AccelError, CapabilityError, GuestCrashError, NoAcceleratorError, UsageError

if TYPE_CHECKING:
    from accel.workload.report import Report


class ExitCode(enum.IntEnum):
    """What `accelctl` exits with; a signal that ends it gives 128 plus its number."""

    SUCCESS = 0
    EXPECTATION_FAILED = 1
    USAGE = 2
    NO_ACCELERATOR = 3
    GUEST_CRASHED = 4
    HOST_FAILED = 5
    TIMED_OUT = 124
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141


MEANINGS = {
    ExitCode.SUCCESS: "success",
    ExitCode.EXPECTATION_FAILED: "an expectation failed: workload, demo, stress, scenario, conformance",
    ExitCode.USAGE: "usage error or bad input: flags, image, workload file",
    ExitCode.NO_ACCELERATOR: "no accelerator can run this here",
    ExitCode.GUEST_CRASHED: "the guest crashed",
    ExitCode.HOST_FAILED: "the host's side failed: a device, the accelerator, a lost memory map",
    ExitCode.TIMED_OUT: "timed out",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C, or Ctrl-A x on the serial line)",
    ExitCode.OUTPUT_CLOSED: "whoever read the output has closed it",
}

#: Statuses above this one do not fit into an exit code.
LAST_STATUS = 255


def error_code(error: BaseException) -> ExitCode:
    """Return what an error that ends a command exits with."""
    if output_closed(error):
        return ExitCode.OUTPUT_CLOSED
    match error:
        case KeyboardInterrupt():
            return ExitCode.INTERRUPTED
        case NoAcceleratorError() | CapabilityError():
            return ExitCode.NO_ACCELERATOR
        case UsageError():
            return ExitCode.USAGE
        case GuestCrashError():
            return ExitCode.GUEST_CRASHED
    return ExitCode.HOST_FAILED


def output_closed(error: BaseException | None) -> bool:
    """Return whether `error` is, or comes from, a write to a pipe whose reader has gone."""
    while error is not None:
        if isinstance(error, BrokenPipeError) and not isinstance(error, AccelError):
            return True
        error = error.__cause__
    return False


def report_code(report: Report, *, guest_status: bool = False) -> int:
    """Return what a run exits with; with `guest_status`, the guest's own status if nothing went wrong.

    An ending that the workload expects is no failure; any other crash, time-out or interruption comes before
    expectations that failed too. A guest's status above 255 gives 255.
    """
    from accel.result import Outcome

    outcome = report.result.outcome
    if outcome is not report.expected_outcome:
        if outcome is Outcome.CRASHED:
            return ExitCode.GUEST_CRASHED
        if outcome is Outcome.TIMED_OUT:
            return ExitCode.TIMED_OUT
        if outcome is Outcome.STOPPED:
            return ExitCode.INTERRUPTED
    if report.failures:
        return ExitCode.EXPECTATION_FAILED
    if guest_status and report.result.exit_status is not None:
        return min(report.result.exit_status, LAST_STATUS)
    return ExitCode.SUCCESS

"""What ``accelctl run`` does with a workload: the console's sink, the serial line, the report and the exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click

from accel.cli.exit_codes import error_code, report_code
from accel.cli.flags import Flags
from accel.workload.line_input import DescriptorChunks
from accel.workload.report import REPORT_FORMAT, Report
from accel.workload.schema import Workload
from accel.workload.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def run_and_report(workload: Workload, flags: Flags) -> int:
    """Run `workload`, print its report as `flags` say, and return the exit code."""
    name = str(flags.target or flags.firmware)
    with errors_as_json(flags.as_json), Session(workload, name, console=_sink(flags)) as session:
        report = _run(session, workload, flags)
    if flags.as_json:
        print_json(report.to_data())
    elif not (flags.quiet and report.passed):
        from accel.cli.report_text import print_report

        print_report(report)
    return report_code(report, guest_status=flags.guest_status)


def _run(session: Session, workload: Workload, flags: Flags) -> Report:
    if flags.reads_stdin:
        return _run_with_input(session, lambda chunks: chunks)
    has_input = workload.run.input is not None or workload.run.input_file is not None
    if has_input or flags.as_json or flags.seed is not None or session.line is None:
        return session.run()
    from accel.cli import terminal

    if not terminal.usable(0):
        return session.run()
    if not flags.quiet and sys.stderr.isatty():
        click.secho(terminal.HINT, dim=True, err=True)
    with terminal.RawTerminal(0):
        return _run_with_input(session, lambda chunks: terminal.Keys(chunks, session.machine.stop))


def _run_with_input(session: Session, filtered: Callable[[Iterable[bytes]], Iterable[bytes]]) -> Report:
    chunks = DescriptorChunks(0)
    with ExitStack() as stack:
        stack.callback(chunks.close)
        return session.run(chunks=filtered(chunks), wake=chunks.wake)


def _sink(flags: Flags) -> BinaryIO | None:
    """Return what takes the console's bytes as they are; nothing does if they go into JSON."""
    if flags.as_json or sys.stdout is None:
        return None
    sys.stdout.flush()
    if flags.seed is not None:
        return cast(BinaryIO, _Patient(sys.stdout.buffer))
    return getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)


class _Patient:
    """A sink that takes all it is given, however long that takes: when it takes how much is no part of the run."""

    def __init__(self, sink: BinaryIO) -> None:
        self.write = sink.write
        self.flush = sink.flush


@contextmanager
def errors_as_json(wanted: bool) -> Iterator[None]:
    """Print an error as the one JSON document, and let it go on up."""
    try:
        yield
    except Exception as error:
        if wanted:
            code = int(error_code(error))
            print_json(
                {
                    "format": REPORT_FORMAT,
                    "error": {"type": type(error).__name__, "message": str(error), "exit_code": code},
                }
            )
        raise


def print_json(data: dict[str, Any]) -> None:
    """Print the one document of ``--json``."""
    click.echo(json.dumps(data, indent=2))

"""A report for people, on stderr: how the run ended, on what, its exits by kind, and what memory changes cost.

Written without rich, whose import takes as long as running a small guest.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

import click

from accel.cli.app import printable
from accel.result import Outcome, RunResult
from accel.workload.report import Report


def print_report(report: Report) -> None:
    """Print `report` to stderr."""
    if report.console and not report.console.endswith(b"\n") and sys.stderr.isatty():
        click.echo(err=True)
    lines = list(report_lines(report))
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        click.echo(f"{click.style(label.ljust(width), dim=True)}  {text}", err=True)


def report_lines(report: Report) -> Iterator[tuple[str, str]]:
    """Yield the report as labels and lines, styled for a terminal."""
    result = report.result
    yield "guest", _ending(report)
    yield "ran on", _where(result)
    yield "exits", _counts(result.exits)
    if len(result.vcpus) > 1:
        for vcpu in result.vcpus:
            yield f"  vCPU {vcpu.index}", _counts(vcpu.exits)
    if result.coalesced_writes or result.unassigned:
        yield "accesses", f"{result.coalesced_writes:,} coalesced writes, {result.unassigned:,} to nothing"
    if report.changes or result.spurious_faults:
        yield "memory", _memory(report)
    if report.console_truncated:
        yield "console", f"{report.console_total:,} bytes; the report keeps their start and end"
    for verdict in report.verdicts:
        mark = click.style("ok", fg="green") if verdict.passed else click.style("FAILED", fg="red", bold=True)
        shown = f"{verdict.name}: {verdict.expected}" if verdict.passed else str(verdict)
        yield "expected", f"{mark} {printable(shown)}"


def _ending(report: Report) -> str:
    result = report.result
    texts = {
        Outcome.EXITED: f"exited with status {result.exit_status}",
        Outcome.HALTED: "halted",
        Outcome.CRASHED: f"crashed: {result.crash}",
        Outcome.STOPPED: "stopped",
        Outcome.TIMED_OUT: "timed out",
        Outcome.PRINTED: "printed what it was run until",
    }
    colour = "green" if report.passed else "red" if result.outcome is Outcome.CRASHED else "yellow"
    return click.style(printable(texts[result.outcome]), fg=colour) + f" after {result.wall_time:.3f} s"


def _where(result: RunResult) -> str:
    count = len(result.vcpus)
    host = f" ({result.host})" if result.host else ""
    return f"{result.accelerator}{host}, {count} vCPU{'s' if count > 1 else ''}"


def _counts(exits: Mapping[str, int]) -> str:
    ordered = sorted(exits.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {count:,}" for kind, count in ordered) or "none"


def _memory(report: Report) -> str:
    figures = report.result.memory
    inhibits, faults = int(figures["inhibits"]), report.result.spurious_faults
    held = f"{inhibits:,} held"
    if inhibits:
        each = (figures["hold_seconds"] + figures["wait_seconds"]) / inhibits
        held += f" for {each * 1e6:,.0f} µs each"
    verdict = click.style(f"{faults:,} spurious faults", fg="red" if faults else "green", bold=bool(faults))
    return f"{report.changes:,} changes while it ran ({int(figures['commits']):,} commits in all), {held}; {verdict}"

"""What ``accelctl conformance`` does and prints."""

from __future__ import annotations

import json
import os
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from accel.cli.exit_codes import ExitCode
from accel.errors import UsageError
from accel.testing.conformance.report import ConformanceReport
from accel.testing.conformance.session import Progress, groups, run


def show_groups(*, as_json: bool) -> int:
    """List the groups of tests."""
    known = groups()
    if as_json:
        click.echo(json.dumps({"format": 1, "groups": known}, indent=2))
        return ExitCode.SUCCESS
    from accel.cli.catalogue_text import plain_console, plain_table

    table = plain_table("group", "what is tested")
    for name, summary in known.items():
        table.add_row(name, summary.partition(": ")[2] or summary)
    plain_console().print(table)
    return ExitCode.SUCCESS


def check(
    name: str, chosen: Sequence[str], *, junit: Path | None, as_json: bool, patience: float, verbose: bool
) -> int:
    """Run the suite on an accelerator and say how it did.

    Raises:
        UsageError: There is no such accelerator or group, or the file cannot be written.
        NoAcceleratorError: The accelerator cannot be used here.
    """
    if junit is not None:
        _write(junit, "")  # not after all tests have run
    with _progress(name, quiet=as_json) as progress:
        report = run(name, chosen, patience=patience, progress=progress)
    if junit is not None:
        _write(junit, report.to_junit())
    if as_json:
        click.echo(json.dumps(report.to_data(), indent=2))
    else:
        _show(report, verbose=verbose)
    return ExitCode.SUCCESS if report.passed else ExitCode.EXPECTATION_FAILED


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--junit {path}: {os.strerror(error.errno or 0)}") from error


@contextmanager
def _progress(name: str, *, quiet: bool) -> Iterator[Progress | None]:
    """Say on a terminal how far the tests are."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, quiet=quiet)
    if not console.is_terminal:
        yield None
        return
    with console.status(Text(name)) as status:
        yield lambda done, total, group: status.update(Text(f"{name}: {done} of {total}, now {group}"))


def _show(report: ConformanceReport, *, verbose: bool) -> None:
    from accel.cli.catalogue_text import plain_console, plain_table

    table = plain_table("group", "passed", "failed", "skipped", "seconds")
    for group in report.groups:
        counts = [group.count(outcome) for outcome in ("passed", "failed", "skipped")]
        table.add_row(group.name, *(str(count or "") for count in counts), f"{group.seconds:.1f}")
    plain_console().print(table)
    failed, skipped = report.all("failed"), report.all("skipped")
    told: set[str] = set()
    for one in failed:
        if one.text in told and not verbose:
            continue
        told.add(one.text)
        click.echo(f"\nFAILED {one.group}: {one.name}")
        click.echo(_paragraph("it   ", one.text))
        click.echo(_paragraph("rule ", one.rule))
        if verbose:
            click.echo(textwrap.indent(one.detail.strip(), "  | "))
            continue
        alike = Counter(other.group for other in failed if other.text == one.text and other is not one)
        if alike:
            groups = ", ".join(f"{count} of {name}" for name, count in alike.items())
            click.echo(_paragraph("also ", f"{alike.total()} more in the same words: {groups}"))
    if skipped:
        click.echo("\nskipped:")
        for (name, reason), count in Counter((one.group, one.text) for one in skipped).items():
            click.echo(_paragraph(f"{name}: ", f"{reason} ({count})" if count > 1 else reason))
    total = sum(len(group.tests) for group in report.groups)
    verdict = (
        f"{report.accelerator} conforms: {len(report.all('passed'))} passed"
        if report.passed
        else f"{report.accelerator} does not conform: {len(failed)} of {total} failed"
    )
    click.echo(f"\n{verdict}, {len(skipped)} skipped, {report.seconds:.1f} s")


def _paragraph(label: str, text: str) -> str:
    from accel.cli.app import printable

    return textwrap.fill(printable(text), 100, initial_indent=f"  {label}", subsequent_indent="  " + " " * len(label))

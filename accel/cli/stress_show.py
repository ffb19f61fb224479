"""What ``accelctl stress`` runs and shows: a bar while it runs, a table at the end, or one JSON document."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import click
from attrs import evolve, frozen
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

import accel
from accel.cli.app import printable
from accel.cli.demo_show import Chosen, choose
from accel.cli.exit_codes import ExitCode
from accel.errors import CapabilityError, UsageError
from accel.stress.changes import CHANGES, Change
from accel.stress.figures import Combination, Figures, Hold, Plan
from accel.stress.judgement import TOUCHES
from accel.stress.runner import Live, StressSpec, run_stress
from accel.stress.workload import stress_workload, workload_combinations
from accel.workload.parse import parse_file
from accel.workload.schema import Workload

_WIDTH = 144
_SECONDS = 20.0
_SEED_BITS = 32

_TEXTS = ("touch", "plan", "hold")
_COLUMNS = (
    *(*_TEXTS, "vCPUs", "updates", "held", "unheld", "kicks", "calls", "frags", "p50 ms", "p99 ms", "max ms"),
    *("served", "unserved", "crashes", "errors", "passes", "host"),
)
#: What a narrow terminal can do without, first of all the first.
_DISPENSABLE = ("frags", "calls", "passes", "kicks", "unheld", "max ms", "plan", "p50 ms", "held", "p99 ms")


@frozen(kw_only=True)
class StressFlags:
    """The flags as click gives them; None means not given."""

    target: str | None
    touches: tuple[str, ...] | None
    changes: tuple[Change, ...] | None
    cpus: tuple[int, ...] | None
    seconds: float | None
    updates: int | None
    rate: float | None
    seed: int | None
    accel: str | None
    plan: str
    hold: str
    as_json: bool
    plot: str | None


@frozen
class Job:
    """What is to be run, and how."""

    spec: StressSpec
    combinations: tuple[Combination, ...]
    run: Callable[[Live], Iterator[Figures]]


def show_stress(flags: StressFlags) -> int:
    """Run it, show what came of it, and return the exit code; an interrupt ends it with what there is so far.

    Raises:
        UsageError: The flags contradict each other.
        NoAcceleratorError: No accelerator can be used.
        AccelError: The host's side failed.
    """
    _check(flags)
    chosen = choose(flags.accel, "stress")
    job = _job(flags, chosen)
    console = Console(highlight=False, quiet=flags.as_json)
    if not console.is_terminal:
        console.width = _WIDTH
    _introduce(console, chosen, job)
    rows, interrupted = _run(job)
    if flags.as_json:
        click.echo(json.dumps(_data(chosen, job, rows, interrupted=interrupted), indent=2))
    elif rows:
        console.print(_fitting_table(console, rows))
        _conclude(console, rows)
    if flags.plot is not None and rows:
        _plot(flags.plot, rows, chosen)
        console.print(Text(f"plot: {flags.plot}"))
    if interrupted:
        return ExitCode.INTERRUPTED
    return ExitCode.SUCCESS if passed(rows) else ExitCode.EXPECTATION_FAILED


def passed(rows: Sequence[Figures]) -> bool:
    """Return whether guests whose vCPUs were held saw nothing of the changes."""
    return all(row.clean for row in rows if row.combination.hold != "unsafe")


# what runs


def _check(flags: StressFlags) -> None:
    if flags.seconds is not None and flags.updates is not None:
        raise UsageError("--seconds and --updates both say when to end; give one of them")
    if flags.target is not None:
        if not flags.target.endswith(".toml"):
            raise UsageError(f"{flags.target}: a workload file's name ends in .toml; images run with accelctl run")
        for name, value in (("--touch", flags.touches), ("--change", flags.changes), ("--cpus", flags.cpus)):
            if value is not None:
                raise UsageError(f"{name} is for the built-in guests; a workload file says it itself")
    if flags.plot is not None:
        if importlib.util.find_spec("matplotlib") is None:
            raise UsageError("--plot needs matplotlib: pip install 'accel[plot]'; --json has the same figures")
        if not os.access(Path(flags.plot).parent, os.W_OK):
            raise UsageError(f"--plot {flags.plot}: its folder is not there or cannot be written")


def _job(flags: StressFlags, chosen: Chosen) -> Job:
    workload = None if flags.target is None else parse_file(flags.target)
    spec = StressSpec(
        accelerator=chosen.accelerator.name,
        touches=_touches(flags, chosen),
        cpus=flags.cpus or (2,),
        holds=_both(flags.hold, Hold),
        plans=_both(flags.plan, Plan),
        changes=flags.changes or CHANGES,
        updates=flags.updates,
        rate=flags.rate,
        seed=secrets.randbits(_SEED_BITS) if flags.seed is None else flags.seed,
    )
    name = os.path.basename(flags.target or "")
    combinations = spec.combinations() if workload is None else workload_combinations(name, workload, spec)
    if flags.updates is None:
        spec = evolve(spec, seconds=(flags.seconds or _SECONDS) / len(combinations))
    return Job(spec, combinations, _runner(name, workload, spec))


def _runner(name: str, workload: Workload | None, spec: StressSpec) -> Callable[[Live], Iterator[Figures]]:
    if workload is None:
        return lambda live: run_stress(spec, live)
    return lambda live: stress_workload(name, workload, spec, live)


def _touches(flags: StressFlags, chosen: Chosen) -> tuple[Any, ...]:
    """Return the kinds of touch; page walks are left out by default where no machine code runs."""
    if chosen.runs_code:
        return flags.touches or TOUCHES
    if flags.touches is None:
        return tuple(touch for touch in TOUCHES if touch != "walk")
    if "walk" in flags.touches:
        raise CapabilityError(
            f"{chosen.accelerator.name} executes guest programs, which walk no page tables; use --touch without walk"
        )
    return flags.touches


def _both(value: str, choices: Any) -> tuple[Any, ...]:
    return get_args(choices) if value == "both" else (value,)


def _run(job: Job) -> tuple[list[Figures], bool]:
    """Return what came of it, and whether an interrupt ended it."""
    rows: list[Figures] = []
    with _bar(job, rows) as live:
        try:
            for row in job.run(live):
                rows.append(row)
        except KeyboardInterrupt:
            return rows, True
    return rows, False


@contextmanager
def _bar(job: Job, rows: Sequence[Figures]) -> Iterator[Live]:
    """Show a bar with live figures on standard error, if that is a terminal."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda figures: None
        return
    columns = (BarColumn(30), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=len(job.combinations))

        def live(figures: Figures) -> None:
            done = figures.updates / job.spec.updates if job.spec.updates else figures.seconds / (job.spec.seconds or 1)
            progress.update(task, completed=len(rows) + min(done, 1.0), description=_live_text(figures))

        yield live


def _live_text(figures: Figures) -> str:
    return (
        f"{printable(str(figures.combination))}: {figures.updates:,} updates, "
        f"{figures.timeline.points[-1][2]:,} faults, {figures.guest_errors:,} errors"
    )


# what is shown


def _introduce(console: Console, chosen: Chosen, job: Job) -> None:
    host = f" ({chosen.host})" if chosen.host else ""
    console.print(Text(f"accel {accel.__version__} on {chosen.accelerator.name}{host}", style="bold"))
    if chosen.passed_over:
        console.print(Text(f"{' and '.join(chosen.passed_over)} cannot be used here", style="yellow"))
    spec, count = job.spec, len(job.combinations)
    each = f"{spec.updates:,} updates" if spec.seconds is None else f"{spec.seconds:.3g} s"
    pace = "back to back" if spec.rate is None else f"{spec.rate:g} a second"
    console.print(Text(f"{count} combination{'s' if count > 1 else ''}, {each} each, {pace}; seed {spec.seed}"))
    console.print()


def _fitting_table(console: Console, rows: Sequence[Figures]) -> Table:
    """Return the table, without what matters least where the terminal is narrow."""
    left_out = [] if any(row.host_errors for row in rows) else ["host"]
    unbounded = console.options.update(max_width=10 * _WIDTH)
    for name in (*_DISPENSABLE, ""):
        table = _table(rows, left_out)
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
        left_out.append(name)
    return table


def _table(rows: Sequence[Figures], left_out: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    for name in _COLUMNS:
        if name not in left_out:
            table.add_column(name, justify="left" if name in _TEXTS else "right", no_wrap=True)
    for row in rows:
        style = "" if row.clean else "yellow" if row.combination.hold == "unsafe" else "bold red"
        table.add_row(*(Text(text) for name, text in _cells(row) if name not in left_out), style=style)
    return table


def _cells(row: Figures) -> Iterator[tuple[str, str]]:
    """Yield the cells of a row with their columns."""
    one, each = row.combination, row.latencies
    times = (each.quantile(0.5), each.quantile(0.99), each.longest)
    before = (row.updates, row.inhibits, row.unheld, row.kicks, row.slot_calls, row.fragments)
    after = (row.served, row.unserved, row.crashes, row.guest_errors, row.guest_passes, row.host_errors)
    texts = (
        *(printable(one.touch), one.plan, one.hold, str(one.cpus)),
        *(f"{number:,}" for number in before),
        *map(milliseconds, times),
        *(f"{number:,}" for number in after),
    )
    yield from zip(_COLUMNS, texts, strict=True)


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds with two or three digits that count."""
    value = seconds * 1e3
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _conclude(console: Console, rows: Sequence[Figures]) -> None:
    console.print()
    for hold, meaning in (("unsafe", "vCPUs not held"), ("inhibit", "vCPUs held")):
        some = [row for row in rows if row.combination.hold == hold]
        if not some:
            continue
        updates, faults = sum(row.updates for row in some), sum(row.faults for row in some)
        errors = sum(row.guest_errors + row.host_errors for row in some)
        rate = f" ({faults / updates * 100:.2g} for 100 updates)" if faults and updates else ""
        style = "green" if not faults and not errors else "yellow" if hold == "unsafe" else "bold red"
        text = f"{meaning + ':':<16}{updates:>9,} updates, {faults:,} faults{rate}, {errors:,} errors"
        console.print(Text(text, style=style))
    for row in rows:
        if not row.complete:
            console.print(f"{printable(str(row.combination))}: interrupted", style="yellow", markup=False)
        if row.combination.hold != "unsafe" and row.first_error:
            console.print(Text(printable(f"{row.combination}: {row.first_error}"), style="red"))


def _data(chosen: Chosen, job: Job, rows: Sequence[Figures], *, interrupted: bool) -> dict[str, Any]:
    spec = job.spec
    return {
        "format": 1,
        "accelerator": chosen.accelerator.name,
        "host": chosen.host,
        "passed_over": chosen.passed_over,
        "seed": spec.seed,
        "rate": spec.rate,
        "changes": list(spec.changes),
        "passed": passed(rows) and not interrupted,
        "interrupted": interrupted,
        "rows": [row.to_data() for row in rows],
    }


def _plot(name: str, rows: Sequence[Figures], chosen: Chosen) -> None:
    from accel.cli.stress_plot import plot_bytes

    host = f" ({chosen.host})" if chosen.host else ""
    data = plot_bytes(rows, f"{chosen.accelerator.name}{host}", "svg" if name.lower().endswith(".svg") else "png")
    try:
        Path(name).write_bytes(data)
    except OSError as error:
        raise UsageError(f"--plot {name}: cannot be written: {os.strerror(error.errno or 0)}") from error

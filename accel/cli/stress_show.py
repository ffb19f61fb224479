"""What ``accelctl stress`` runs and shows: a bar while it runs, a table at the end, or one JSON document."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import click
from attrs import evolve, frozen
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

import accel
from accel.backend import HOLD_NEEDS
from accel.cli.app import printable
from accel.cli.demo_show import Chosen, choose
from accel.cli.exit_codes import ExitCode, error_code
from accel.cli.stress_table import WIDTH, conclude, fitting_table
from accel.errors import AccelError, CapabilityError, UsageError
from accel.plugins import open_accelerator
from accel.stress.changes import CHANGES, Change
from accel.stress.figures import Combination, Figures, Hold, Plan
from accel.stress.judgement import TOUCHES
from accel.stress.runner import Live, StressSpec, run_stress
from accel.stress.workload import stress_workload, workload_combinations
from accel.workload.parse import parse_file
from accel.workload.schema import Workload

_SECONDS = 20.0
_SEED_BITS = 32


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
    holds: tuple[Hold, ...]
    as_json: bool
    plot: str | None


@frozen
class Job:
    """What is to be run, and how."""

    spec: StressSpec
    combinations: tuple[Combination, ...]
    run: Callable[[Live], Iterator[Figures]]


def show_stress(flags: StressFlags) -> int:
    """Run it, show what came of it, and return the exit code; an interrupt or error ends it with what there is so far.

    Raises:
        UsageError: The flags contradict each other.
        NoAcceleratorError: No accelerator can be used.
        CapabilityError: The accelerator has no such touch or hold.
        AccelError: The host's side failed.
    """
    _check(flags)
    chosen = choose(flags.accel, "stress")
    _check_holds(flags.holds, chosen.accelerator.name)
    job = _job(flags, chosen)
    console = Console(highlight=False, quiet=flags.as_json)
    if not console.is_terminal:
        console.width = WIDTH
    _introduce(console, chosen, job)
    rows: list[Figures] = []
    ending = _run(job, rows)
    if flags.as_json:
        click.echo(json.dumps(_data(chosen, job, rows, ending), indent=2))
    elif rows:
        console.print(fitting_table(console, rows))
        conclude(console, rows, "failed" if isinstance(ending, AccelError) else "interrupted")
    if flags.plot is not None and rows:
        _plot(flags.plot, rows, chosen)
        console.print(Text(f"plot: {flags.plot}"))
    if isinstance(ending, AccelError):
        raise ending
    if ending is not None:
        return ExitCode.INTERRUPTED
    return ExitCode.SUCCESS if passed(rows) else ExitCode.EXPECTATION_FAILED


def passed(rows: Sequence[Figures]) -> bool:
    """Return whether guests that something keeps from seeing half of a change saw nothing of any."""
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


def _check_holds(holds: Sequence[Hold], accelerator: str) -> None:
    """Refuse at once what the accelerator cannot do, and not when it comes to that combination."""
    for hold in holds:
        if hold in HOLD_NEEDS:
            # Only the accelerator knows, and says best, what is missing.
            with open_accelerator(accelerator, options={accelerator: {"hold": hold}}) as opened:
                opened.create_vm()


def _job(flags: StressFlags, chosen: Chosen) -> Job:
    workload = None if flags.target is None else parse_file(flags.target)
    spec = StressSpec(
        accelerator=chosen.accelerator.name,
        touches=_touches(flags, chosen),
        cpus=flags.cpus or (2,),
        holds=flags.holds,
        plans=get_args(Plan) if flags.plan == "both" else (cast(Plan, flags.plan),),
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


def _run(job: Job, rows: list[Figures]) -> KeyboardInterrupt | AccelError | None:
    """Run it, add what comes of it to `rows`, and return what ended it early."""
    with _bar(job, rows) as live:
        try:
            for row in job.run(live):
                rows.append(row)
        except (KeyboardInterrupt, AccelError) as error:
            return error
    return None


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


def _data(
    chosen: Chosen, job: Job, rows: Sequence[Figures], ending: KeyboardInterrupt | AccelError | None
) -> dict[str, Any]:
    spec = job.spec
    return {
        "format": 1,
        "accelerator": chosen.accelerator.name,
        "host": chosen.host,
        "passed_over": chosen.passed_over,
        "seed": spec.seed,
        "rate": spec.rate,
        "changes": list(spec.changes),
        "passed": passed(rows) and ending is None,
        "interrupted": isinstance(ending, KeyboardInterrupt),
        "error": _error_data(ending) if isinstance(ending, AccelError) else None,
        "rows": [row.to_data() for row in rows],
    }


def _error_data(error: AccelError) -> dict[str, Any]:
    return {"type": type(error).__name__, "message": str(error), "exit_code": int(error_code(error))}


def _plot(name: str, rows: Sequence[Figures], chosen: Chosen) -> None:
    from accel.cli.stress_plot import plot_bytes

    host = f" ({chosen.host})" if chosen.host else ""
    data = plot_bytes(rows, f"{chosen.accelerator.name}{host}", "svg" if name.lower().endswith(".svg") else "png")
    try:
        Path(name).write_bytes(data)
    except OSError as error:
        raise UsageError(f"--plot {name}: cannot be written: {os.strerror(error.errno or 0)}") from error

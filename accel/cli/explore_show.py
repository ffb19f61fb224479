"""What ``accelctl explore`` does and prints."""

from __future__ import annotations

import difflib
import fnmatch
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from accel.cli.exit_codes import ExitCode
from accel.errors import UsageError
from accel.testing.explore.catalogue import all_scenarios
from accel.testing.explore.picture import columns
from accel.testing.explore.report import StepTable, step_table, summary
from accel.testing.explore.scenario import Scenario
from accel.testing.explore.schedule import schedule_text
from accel.testing.explore.search import Counts, Exploration, Explorer


def show_list(names: Sequence[str], *, as_json: bool) -> int:
    """List the scenarios, all or those that are named."""
    chosen = _chosen(names or ("*",))
    if as_json:
        listed = [
            {"name": one.name, "summary": one.summary, "bound": one.bound, "wrong": one.wrong or None} for one in chosen
        ]
        click.echo(json.dumps({"format": 1, "scenarios": listed}, indent=2))
        return ExitCode.SUCCESS
    from rich.text import Text

    from accel.cli.catalogue_text import plain_console, plain_table

    table = plain_table("scenario", "what happens, and what must hold")
    for one in chosen:
        table.add_row(one.name, one.summary)
    console = plain_console()
    console.print(table)
    console.print(Text("\nExplore with: accelctl explore SCENARIO...", style="dim"))
    return ExitCode.SUCCESS


def explore(
    names: Sequence[str],
    *,
    bound: int | None,
    most: int | None,
    seed: int | None,
    executions: int,
    replay: str | None,
    picture: bool,
    only: str | None,
    as_json: bool,
) -> int:
    """Explore scenarios one after the other, and say what was found.

    Raises:
        UsageError: A name fits nothing, options that do not go together, or a schedule that is none.
    """
    chosen = _chosen(names)
    if replay is not None:
        if len(chosen) != 1:
            raise UsageError(f"--replay repeats a schedule of one scenario; {len(chosen)} are named")
        return _replay(chosen[0], replay, only if picture else None, picture=picture, as_json=as_json)
    documents = []
    good = True
    for one in chosen:
        explorer = one.explorer()
        with _progress(one.name, explorer, quiet=as_json):
            if seed is None:
                explored = explorer.systematic(one.bound if bound is None else bound, most=most)
            else:
                explored = explorer.at_random(seed, executions)
        as_expected = _as_expected(one, explored)
        good = good and as_expected
        if as_json:
            documents.append(_document(one, explored, as_expected=as_expected))
            continue
        click.echo(f"{one.name}: {_verdict(one, explored)}\n  {summary(explored)}")
        if explored.found is not None and (len(chosen) == 1 or not as_expected):
            schedule = schedule_text(explored.found.schedule)
            table = step_table(one.explorer(), schedule)
            click.echo("\n" + _shown(table, picture=picture, only=only))
            click.echo(f"\nRepeat it with: accelctl explore {one.name} --replay '{schedule}'")
    if as_json:
        click.echo(json.dumps({"format": 1, "explored": documents}, indent=2))
    return ExitCode.SUCCESS if good else ExitCode.EXPECTATION_FAILED


@contextmanager
def _progress(name: str, explorer: Explorer, *, quiet: bool) -> Iterator[None]:
    """Say on a terminal how far the search is."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, quiet=quiet)
    if not console.is_terminal:
        yield
        return
    with console.status(Text(name)) as status:

        def watch(counts: Counts, preemptions: int) -> None:
            done = counts.schedules + counts.cut
            status.update(Text(f"{name}: {done:,} executions, now with {preemptions} preemptions"))

        explorer.watch = watch
        yield


def _chosen(names: Sequence[str]) -> list[Scenario]:
    known, problems = all_scenarios()
    for problem in problems:
        click.echo(f"accelctl: {problem}", err=True)
    chosen: dict[str, Scenario] = {}
    for name in names:
        found = fnmatch.filter(known, name)
        if not found:
            close = difflib.get_close_matches(name, known, 3)
            hint = f"; close to it: {', '.join(close)}" if close else ""
            raise UsageError(f"there is no scenario '{name}'{hint}; accelctl explore lists all")
        chosen.update((one, known[one]) for one in found)
    return list(chosen.values())


def _as_expected(scenario: Scenario, explored: Exploration) -> bool:
    found = "" if explored.found is None else explored.found.violation.kind
    return found == scenario.wrong


def _verdict(scenario: Scenario, explored: Exploration) -> str:
    if explored.found is None:
        return f"NOT FOUND, and there is a mistake ({scenario.wrong})" if scenario.wrong else "holds"
    if scenario.wrong:
        return "found, as it should be" if _as_expected(scenario, explored) else f"found, but no {scenario.wrong}"
    return "VIOLATED"


def _replay(scenario: Scenario, schedule: str, only: str | None, *, picture: bool, as_json: bool) -> int:
    table = step_table(scenario.explorer(), schedule)
    if as_json:
        rows = [{"task": table.tasks[row.task], "step": row.text, "place": row.place} for row in table.rows]
        document = {"format": 1, "scenario": scenario.name, "steps": rows, "outcome": table.outcome or None}
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo(_shown(table, picture=picture, only=only))
    if table.off:
        raise UsageError(f"the schedule is none of {scenario.name}: {table.off}")
    return ExitCode.SUCCESS if bool(table.outcome) == bool(scenario.wrong) else ExitCode.EXPECTATION_FAILED


def _shown(table: StepTable, *, picture: bool, only: str | None) -> str:
    if not picture:
        return str(table)
    return columns(table, tuple(name.strip() for name in only.split(",")) if only else ())


def _document(scenario: Scenario, explored: Exploration, *, as_expected: bool) -> dict[str, Any]:
    counts = explored.counts
    found = explored.found
    return {
        "scenario": scenario.name,
        "as_expected": as_expected,
        "bound": explored.bound,
        "exhaustive": explored.exhaustive,
        "unlimited": explored.unlimited,
        "schedules": counts.schedules,
        "cut_off": counts.cut,
        "orders": counts.states,
        "longest": counts.longest,
        "violation": None
        if found is None
        else {
            "kind": found.violation.kind,
            "text": str(found.violation),
            "preemptions": found.preemptions,
            "schedule": schedule_text(found.schedule),
        },
    }

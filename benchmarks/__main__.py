"""``python -m benchmarks``: run the benchmarks and print what they found."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from benchmarks import access, commits, console_byte, dirty, exit_round_trip, footprint, micro, model, split, startup
from benchmarks.bench import Bench, Comparison
from benchmarks.host import this_host
from benchmarks.processes import Baselines, BenchmarkError
from benchmarks.report import print_comparisons, print_goals, write_json

_BENCHMARKS = {
    module.NAME: module
    for module in (exit_round_trip, console_byte, startup, micro, commits, access, footprint, dirty, split, model)
}


@click.command(help="Measure this library beside C and other peers, in alternating rounds. Without NAMES, all.")
@click.argument("names", nargs=-1, type=click.Choice(list(_BENCHMARKS)), metavar="[NAMES]...")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(min=1), help="Samples of each side.")
@click.option(
    "--scale", default=1.0, show_default=True, type=click.FloatRange(min=0, min_open=True), help="Multiplies counts."
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all samples here.")
@click.option("--check", is_flag=True, help="Say of each goal whether it was met here.")
@click.option("--strict", is_flag=True, help="Like --check, and exit with 1 if one was not.")
def main(names: tuple[str, ...], rounds: int, scale: float, json_file: Path | None, check: bool, strict: bool) -> None:
    """Run the benchmarks named, or all."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    found: list[Comparison] = []
    try:
        with tempfile.TemporaryDirectory(prefix="accel-benchmarks-") as folder:
            bench = Bench(Baselines.find_compiler(Path(folder)), Path(folder), rounds, scale)
            host = this_host(bench.baselines.version)
            console.print(
                f"[bold]host[/]  {host}\n[bold]rounds[/]  {rounds}, in alternating turns; medians, least to most\n"
            )
            for name in dict.fromkeys(names or _BENCHMARKS):
                comparisons = _BENCHMARKS[name].measure(bench)
                print_comparisons(console, _BENCHMARKS[name].SUMMARY, comparisons)
                found.extend(comparisons)
            for reason in bench.skipped:
                console.print(f"[bold]skipped[/]  {reason}")
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    goals = [goal for one in found for goal in one.goals]
    if check or strict:
        print_goals(console, goals)
    if json_file is not None:
        write_json(json_file, host, bench, found)
    if strict and not all(goal.met for goal in goals):
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")

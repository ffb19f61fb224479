"""``accelctl run --seed``: the whole run in a simulation, which the same seed repeats to the byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from accel.cli.flags import Flags, build_workload
from accel.errors import UsageError

if TYPE_CHECKING:
    from accel.testing.simulate import Simulation


def run_with_seed(flags: Flags, seed: int) -> int:
    """Run what `flags` say in a simulation, print the report, and return the exit code.

    Raises:
        UsageError: greenlet is missing, or input comes from somewhere that does not repeat.
    """
    if flags.reads_stdin:
        raise UsageError("--seed repeats a run, and standard input is not the same twice; use --input FILE")
    try:
        from accel.testing.simulate import simulate
    except ModuleNotFoundError as error:
        raise UsageError(f"--seed needs the package {error.name}: pip install 'accel[testing]'") from error

    workload = build_workload(flags)

    def run(simulation: Simulation) -> int:
        return int(simulation.load("accel.cli.runner").run_and_report(workload, flags))

    done = simulate(run, seed, most_seconds=None)
    if not (flags.as_json or flags.quiet):
        click.secho(f"seed {seed}: {done.steps} steps in {done.seconds:.6f} s, interleaving {done.digest}", err=True)
    return done.value

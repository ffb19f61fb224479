"""``accelctl explore``: who goes next is decided, all ways are tried, and one that goes wrong is shown step by step."""

from __future__ import annotations

from typing import Any

import click


@click.command("explore", short_help="Try the orders in which a few threads can go.")
@click.argument("names", metavar="[SCENARIO]...", nargs=-1)
@click.option("--bound", type=click.IntRange(0, 10), help="Most preemptions.  [default: the scenario's own]")
@click.option("--most", type=click.IntRange(1), help="Give up after so many executions.")
@click.option("--random", "seed", type=int, metavar="SEED", help="Try schedules at random, beginning with this seed.")
@click.option(
    "--executions", type=click.IntRange(1), default=1000, show_default=True, help="How many schedules at random."
)
@click.option("--replay", metavar="SCHEDULE", help="Repeat one schedule of one scenario, and print its steps.")
@click.option("--picture", is_flag=True, help="Print steps side by side, a column for each thread.")
@click.option("--only", metavar="NAMES", help="With --picture: print only steps on data of these names.")
@click.option("--list", "as_list", is_flag=True, help="List the scenarios.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(names: tuple[str, ...], as_list: bool, as_json: bool, **options: Any) -> int:
    """Explore the interleavings of a few threads over this project's own code.

    A SCENARIO may hold wildcards, such as 'mock/*'. Without one, they are listed. Those with a mistake in them, -wrong
    in their names, succeed when it is found.
    """
    try:
        import greenlet  # noqa: F401
    except ImportError:
        from accel.errors import UsageError

        raise UsageError("explore needs greenlet; install it with: pip install 'accel[testing]'") from None
    from accel.cli.explore_show import explore, show_list

    if as_list or not names:
        return show_list(names, as_json=as_json)
    return explore(names, as_json=as_json, **options)

"""``accelctl stress``: guests touch memory in every way while its map changes, held and unheld."""

from __future__ import annotations

import math
from typing import Any

import click

# As in `accel.stress`, which is not imported before it is needed; a test compares them.
TOUCHES = ("read", "write", "locked", "fetch", "walk", "mixed")
CHANGES = ("split", "merge", "grow", "shrink", "hole", "move", "readonly")
HOLDS = ("inhibit", "unsafe", "kick-all", "region-list")
_BOTH = ("inhibit", "unsafe")
_MOST_CPUS = 16
_MOST_SECONDS = 86_400.0


def _names(known: tuple[str, ...]) -> Any:
    """Return a callback that takes names of these, separated by commas."""

    def parse(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
        for name in names:
            if name not in known:
                raise click.BadParameter(f"'{name}' is none of {', '.join(known)}")
        return names

    return parse


def _cpus(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    numbers = tuple(dict.fromkeys(text.strip() for text in value.split(",")))
    for text in numbers:
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _MOST_CPUS):
            raise click.BadParameter(f"'{text}' is no number of vCPUs from 1 to {_MOST_CPUS}")
    return tuple(map(int, numbers))


def _above_zero(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not (0 < value < math.inf):
        raise click.BadParameter(f"{value} is no number above zero")
    return value


def _holds(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    named = (hold for value in values for hold in (_BOTH if value == "both" else (value,)))
    return tuple(dict.fromkeys(named))


def _plot_file(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.lower().endswith((".png", ".svg")):
        raise click.BadParameter(f"'{value}' must end in .png or .svg")
    return value


@click.command("stress", short_help="Stress a memory map under running guests.")
@click.argument("target", metavar="[WORKLOAD.toml]", required=False)
@click.option(
    "--touch",
    "touches",
    metavar="KINDS",
    callback=_names(TOUCHES),
    help="How guests touch memory: " + ", ".join(TOUCHES) + ".  [default: all]",
)
@click.option(
    "--change",
    "changes",
    metavar="KINDS",
    callback=_names(CHANGES),
    help="How the map changes: " + ", ".join(CHANGES) + ".  [default: all]",
)
@click.option("--cpus", metavar="NUMBERS", callback=_cpus, help="vCPUs, such as 1,2,4,8.  [default: 2]")
@click.option(
    "--seconds", type=click.FloatRange(0.1, _MOST_SECONDS), help="How long to change memory, in all.  [default: 20]"
)
@click.option("--updates", type=click.IntRange(1), help="How many changes for each combination, instead.")
@click.option(
    "--rate", type=float, metavar="R", callback=_above_zero, help="Changes in a second.  [default: back to back]"
)
@click.option("--seed", type=click.IntRange(0), help="Of the order of changes.  [default: random, and printed]")
@click.option("--accel", metavar="NAMES", help="Accelerators to try, in order.  [default: all]")
@click.option(
    "--plan",
    type=click.Choice(["least", "replace", "both"]),
    default="replace",
    show_default=True,
    help="How changes are planned.",
)
@click.option(
    "--hold",
    "holds",
    type=click.Choice([*HOLDS, "both"]),
    multiple=True,
    default=["both"],
    callback=_holds,
    help="What keeps guests from seeing half of a change; both is inhibit and unsafe. Repeat it to compare others.  "
    "[default: both]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
@click.option(
    "--plot", metavar="FILE", callback=_plot_file, help="Draw faults and latencies, as .png or .svg; needs matplotlib."
)
def command(**flags: Any) -> int:
    """Touch memory in every way from guests while its map changes under them, and count what they see of it.

    Each combination of touch, vCPUs, plan and hold runs for its share of the time, with the same changes in the same
    order. With a workload file, its guest runs instead, and its [[change]] tables are made one after the other. Exits
    with 0 if those with held vCPUs saw no fault and no error.
    """
    from accel.cli.stress_show import StressFlags, show_stress

    return show_stress(StressFlags(**flags))

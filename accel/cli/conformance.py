"""``accelctl conformance``: whether an accelerator does what it claims, for whoever writes one."""

from __future__ import annotations

import math
from pathlib import Path

import click


def _above_zero(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not 0 < value < math.inf:
        raise click.BadParameter(f"{value} is no number above zero")
    return value


@click.command("conformance")
@click.argument("name", metavar="[ACCELERATOR]", required=False)
@click.option(
    "-k", "--group", "groups", metavar="NAMES", multiple=True, help="Only these groups of tests, such as kicks,memory."
)
@click.option("--junit", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Write JUnit XML.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=float,
    default=10.0,
    show_default=True,
    callback=_above_zero,
    help="Longest wait for anything that a guest or the accelerator is to do, in seconds.",
)
@click.option("-v", "--verbose", is_flag=True, help="Print where each failure was seen.")
@click.option("--list", "as_list", is_flag=True, help="List the groups of tests.")
def command(
    name: str | None,
    groups: tuple[str, ...],
    junit: Path | None,
    as_json: bool,
    timeout: float,
    verbose: bool,
    as_list: bool,
) -> int:
    """Test whether an accelerator does what it claims.

    What it does not claim is skipped, with the reason. Each failure says what the accelerator did and what the rule is.
    The tests run in a process of their own. Exits with 0 if nothing failed, with 1 if something did, and with 3 if the
    accelerator cannot be used here.
    """
    from importlib.util import find_spec

    from accel.errors import UsageError

    if find_spec("pytest") is None:
        raise UsageError("conformance needs pytest; install it with: pip install 'accel[testing]'")
    from accel.cli.conformance_show import check, show_groups

    if as_list:
        return show_groups(as_json=as_json)
    if name is None:
        raise UsageError("which accelerator? accelctl list accelerators has their names")
    if "," in name:
        raise UsageError(f"'{name}': one accelerator at a time")
    chosen = [one.strip() for text in groups for one in text.split(",") if one.strip()]
    return check(name, chosen, junit=junit, as_json=as_json, patience=timeout, verbose=verbose)

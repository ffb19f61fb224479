"""``accelctl demo``: a guest that computes, and then the race that this project exists for."""

from __future__ import annotations

import click


@click.command("demo", short_help="Show the race and its cure on a running guest.")
@click.option("--accel", metavar="NAMES", help="Accelerators to try, in order.  [default: all]")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 60),
    default=3.0,
    show_default=True,
    help="How long each side of the race runs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
def command(accel: str | None, seconds: float, as_json: bool) -> int:
    """Run a guest that computes, then show what happens when its memory changes while it runs.

    First unprotected, where the guest finds no memory for a moment, then protected. Exits with 0 only if there were
    faults without protection and none with it. Without KVM, a model of it inside this process runs instead.
    """
    from accel.cli.demo_show import run_demo

    return run_demo(accel, seconds, as_json=as_json)

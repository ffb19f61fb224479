"""``accelctl kvm-locks``: the kernel's table of KVM's locks, and the scenario that breaks each order of it.

Imported when commands of plugins are wanted; what it prints is imported when it runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

_HOW = "Each order has a scenario in which it is kept, without -wrong-broken: accelctl explore NAME runs either."


@click.command("kvm-locks", short_help="Print KVM's locks and what breaks their order.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """Print KVM's locks as the kernel documents them, their orders, and what breaks each.

    These are the locks of the kernel's KVM; accelctl locks has those of this project.
    """
    from accel_mock.kvm.lock_table import LOCKS, ORDERS

    if as_json:
        of_class = ("name", "type", "protects", "comment")
        locks = [
            {
                **{field: getattr(one.lock_class, field) for field in of_class},
                "arch": one.arch,
                "described": one.described,
            }
            for one in LOCKS
        ]
        orders = [
            {
                "outer": one.outer.name,
                "rule": one.rule.value,
                "inner": one.inner.name,
                "arch": one.arch,
                "kept_by": one.scenario,
                "broken_by": one.broken_by,
            }
            for one in ORDERS
        ]
        click.echo(json.dumps({"format": 1, "locks": locks, "orders": orders}, indent=2))
        return
    table = [(it.name, it.type, one.arch, it.protects, it.comment) for one in LOCKS for it in (one.lock_class,)]
    _print_tables(
        (("lock", "type", "arch", "protects", "comment"), table),
        (("order", "arch", "broken by"), [(one.name, one.arch, one.broken_by) for one in ORDERS]),
    )


def _print_tables(*tables: tuple[tuple[str, ...], Sequence[tuple[str, ...]]]) -> None:
    """Print tables, and how to run what they name; a pipe gets each row on one line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000
    for headers, rows in tables:
        table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
        for number, header in enumerate(headers):
            table.add_column(header, no_wrap=number == 0)
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
        console.print()
    console.print(Text(_HOW, style="dim"), soft_wrap=True)

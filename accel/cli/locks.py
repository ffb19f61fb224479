"""``accelctl locks``: the order in which locks are taken, and what each protects."""

from __future__ import annotations

import json

import click

_PLAIN = (
    "Locks without a class belong to one object each and are leaves, or say what is taken under them: "
    "docs/explanation/locking.md, Plain locks."
)


@click.command("locks", short_help="Print the order of the locks.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """Print the order of the locks, and for each its rank, type and what it protects.

    A thread may take a lock while it holds those before it, never those after it. ACCEL_LOCKDEP=1 has every command
    check that while it runs.
    """
    from accel.lock_classes import LOCK_CLASSES

    names = [one.name for one in LOCK_CLASSES]
    if as_json:
        fields = ("name", "rank", "type", "protects", "comment", "nests")
        listed = [{field: getattr(one, field) for field in fields} for one in LOCK_CLASSES]
        click.echo(json.dumps({"format": 1, "order": names, "locks": listed, "plain_locks": _PLAIN}, indent=2))
        return
    from rich.text import Text

    from accel.cli.catalogue_text import plain_console, plain_table

    console = plain_console()
    console.print(Text("order, outermost first: " + " → ".join(names)), soft_wrap=True)
    console.print()
    table = plain_table("lock", "rank", "type", "protects", "comment")
    for one in LOCK_CLASSES:
        table.add_row(one.name, str(one.rank), one.type, one.protects, one.comment)
    console.print(table)
    console.print()
    console.print(Text(_PLAIN, style="dim"), soft_wrap=True)

"""``accelctl list``: what is installed, whether it can be used here, and why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

_KINDS = ("accelerators", "devices", "loaders")


@click.command("list", short_help="List accelerators, devices and loaders.")
@click.argument("kind", type=click.Choice(_KINDS), required=False)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(kind: str | None, name: str | None, as_json: bool) -> None:
    """List accelerators, devices and loaders, or show one of them with its options.

    \b
    accelctl list                     all of them, and plugins that did not load
    accelctl list accelerators        whether each can be used here, and why not
    accelctl list devices serial      its options, as in a workload file
    """
    from accel.cli import catalogue
    from accel.errors import UsageError
    from accel.options import nearest

    entries: dict[str, Callable[[], list[catalogue.Entry]]] = {
        "accelerators": catalogue.accelerators,
        "devices": catalogue.devices,
        "loaders": catalogue.loaders,
    }
    wanted = _KINDS if kind is None else (kind,)
    found = {one: entries[one]() for one in wanted}
    if kind is not None and name is not None:
        chosen = [entry for entry in found[kind] if entry.name == name]
        if not chosen:
            advice = nearest(name, [entry.name for entry in found[kind]])
            raise UsageError(f"no {kind[:-1]} '{name}'; {advice}")
        found = {kind: chosen}
    broken = [] if name is not None else catalogue.broken_plugins()
    if as_json:
        data: dict[str, Any] = {one: [entry.to_data() for entry in listed] for one, listed in found.items()}
        click.echo(json.dumps({"format": 1, **data, "broken_plugins": broken}, indent=2))
        return
    from accel.cli.catalogue_text import print_catalogue, print_entry

    if name is not None:
        print_entry(next(iter(found.values()))[0])
    else:
        print_catalogue(found, broken)

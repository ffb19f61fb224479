"""The catalogue of ``accelctl list`` for people: tables on stdout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from accel.cli.app import printable
from accel.cli.catalogue import Entry, default_text, values_text

_PIPE_WIDTH = 1000


def print_catalogue(found: Mapping[str, Sequence[Entry]], broken: Sequence[Mapping[str, str]]) -> None:
    """Print a table for each kind, and the plugins that are not in use."""
    console = plain_console()
    for number, (kind, entries) in enumerate(found.items()):
        if number:
            console.print()
        console.print(_table(kind, entries))
        for entry in entries:
            if entry.available is False:
                console.print(Text(f"{entry.name}: {printable(entry.reason)}", style="yellow"))
    if broken:
        console.print()
        for one in broken:
            console.print(Text(f"not in use: {printable(one['reason'])}", style="red"))
    if len(found) > 1:
        console.print(Text("\nmore about one: accelctl list devices serial", style="dim"))


def print_plugins(plugins: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of plugins, and why each of those that are not in use is not."""
    console = plain_console()
    table = _plugin_table(plugins, "where", "hooks")
    if table.__rich_measure__(console, console.options).maximum > console.width:
        table = _plugin_table(plugins, "where and hooks")
    console.print(table)
    reasons = [one["reason"] for one in plugins if one["state"] == "broken"]
    if reasons:
        console.print()
    for reason in reasons:
        console.print(Text(printable(reason), style="red"))


def _plugin_table(plugins: Sequence[Mapping[str, Any]], *headers: str) -> Table:
    """Return the table with what is imported beside the hooks, or above them if there is one header for both."""
    table = plain_table("plugin", "state", "distribution", *headers)
    for one in plugins:
        style = {"in use": "green", "broken": "red"}.get(one["state"], "yellow")
        distribution = f"{one['distribution']} {one['version']}" if one["distribution"] else "-"
        where, hooks = printable(one["where"] or "-"), ", ".join(one["hooks"]) or "-"
        both = (where, hooks) if len(headers) > 1 else (f"{where}\n" + hooks.replace(", ", "\n"),)
        table.add_row(printable(one["name"]), Text(one["state"], style=style), printable(distribution), *both)
    return table


def print_entry(entry: Entry) -> None:
    """Print one entry with all that is known of it, and its options."""
    console = plain_console()
    console.print(Text(entry.name, style="bold") + Text(f"  {entry.summary}", style="not bold"))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column()
    if entry.available is not None:
        facts.add_row(
            "available", _availability(entry) + Text("" if entry.available else f": {printable(entry.reason)}")
        )
    facts.add_row("plugin", f"{entry.plugin} (from {entry.distribution})")
    for label, words in (("executes", entry.executes), ("capabilities", entry.capabilities)):
        if words:
            facts.add_row(label, printable(", ".join(words)))
    for label, text in entry.details.items():
        facts.add_row(printable(label), printable(text))
    console.print(facts)
    if not entry.options:
        return
    console.print()
    table = plain_table("option", "default", "values", "")
    for option in entry.options:
        table.add_row(option.name, default_text(option), values_text(option), printable(option.help))
    console.print(table)


def _table(kind: str, entries: Sequence[Entry]) -> Table:
    if kind != "accelerators":
        table = plain_table(kind, "plugin", "")
        for entry in entries:
            table.add_row(entry.name, f"{entry.plugin} ({entry.distribution})", entry.summary)
        return table
    table = plain_table(kind, "available", "plugin", "")
    for entry in entries:
        table.add_row(entry.name, _availability(entry), f"{entry.plugin} ({entry.distribution})", _about(entry))
    return table


def _about(entry: Entry) -> Text:
    about = Text(entry.summary)
    return about + Text("\n" + printable(", ".join(entry.capabilities)), style="dim") if entry.capabilities else about


def _availability(entry: Entry) -> Text:
    return Text("yes", style="green") if entry.available else Text("no", style="yellow")


def plain_table(*headers: str) -> Table:
    """Return an empty table without lines, whose first column does not wrap."""
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
    for number, header in enumerate(headers):
        table.add_column(header, no_wrap=number == 0, overflow="fold")
    return table


def plain_console() -> Console:
    """Return a console as wide as the terminal; a pipe gets every entry on one line."""
    # Words of plugins are no markup.
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console

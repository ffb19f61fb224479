"""The table of ``accelctl stress`` and what it comes to, for people.

Layer: the command line, below `accel.cli.stress_show`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from accel.cli.app import printable
from accel.stress.figures import Figures, Hold

#: Columns of text where the output is no terminal.
WIDTH = 144

_TEXTS = ("touch", "plan", "hold")
_COLUMNS = (
    *(*_TEXTS, "vCPUs", "updates", "held", "unheld", "kicks", "calls", "frags", "p50 ms", "p99 ms", "max ms"),
    *("served", "unserved", "crashes", "errors", "passes", "host"),
)
#: What the last lines call a hold, in their order.
_MEANINGS: dict[Hold, str] = {
    "unsafe": "vCPUs not held",
    "inhibit": "vCPUs held",
    "kick-all": "all kicked",
    "region-list": "all at once",
}
#: What a narrow terminal can do without, first of all the first.
_DISPENSABLE = ("frags", "calls", "passes", "kicks", "unheld", "max ms", "plan", "p50 ms", "held", "p99 ms")


def fitting_table(console: Console, rows: Sequence[Figures]) -> Table:
    """Return the table, without what matters least where the terminal is narrow."""
    left_out = [] if any(row.host_errors for row in rows) else ["host"]
    unbounded = console.options.update(max_width=10 * WIDTH)
    for name in (*_DISPENSABLE, ""):
        table = _table(rows, left_out)
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
        left_out.append(name)
    return table


def _table(rows: Sequence[Figures], left_out: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    for name in _COLUMNS:
        if name not in left_out:
            table.add_column(name, justify="left" if name in _TEXTS else "right", no_wrap=True)
    for row in rows:
        style = "" if row.clean else "yellow" if row.combination.hold == "unsafe" else "bold red"
        table.add_row(*(Text(text) for name, text in _cells(row) if name not in left_out), style=style)
    return table


def _cells(row: Figures) -> Iterator[tuple[str, str]]:
    """Yield the cells of a row with their columns."""
    one, each = row.combination, row.latencies
    times = (each.quantile(0.5), each.quantile(0.99), each.longest)
    before = (row.updates, row.inhibits, row.unheld, row.kicks, row.slot_calls, row.fragments)
    after = (row.served, row.unserved, row.crashes, row.guest_errors, row.guest_passes, row.host_errors)
    texts = (
        *(printable(one.touch), one.plan, one.hold, str(one.cpus)),
        *(f"{number:,}" for number in before),
        *map(milliseconds, times),
        *(f"{number:,}" for number in after),
    )
    yield from zip(_COLUMNS, texts, strict=True)


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds with two or three digits that count."""
    value = seconds * 1e3
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def conclude(console: Console, rows: Sequence[Figures], cut_short: str) -> None:
    """Print what the rows come to, and of each that did not run to its end, that it was `cut_short`, in one word."""
    console.print()
    for hold, meaning in _MEANINGS.items():
        some = [row for row in rows if row.combination.hold == hold]
        if not some:
            continue
        updates, faults = sum(row.updates for row in some), sum(row.faults for row in some)
        errors = sum(row.guest_errors + row.host_errors for row in some)
        rate = f" ({faults / updates * 100:.2g} for 100 updates)" if faults and updates else ""
        style = "green" if not faults and not errors else "yellow" if hold == "unsafe" else "bold red"
        text = f"{meaning + ':':<16}{updates:>9,} updates, {faults:,} faults{rate}, {errors:,} errors"
        console.print(Text(text, style=style))
    for row in rows:
        if not row.complete:
            console.print(f"{printable(str(row.combination))}: {cut_short}", style="yellow", markup=False)
        if row.combination.hold != "unsafe" and row.first_error:
            console.print(Text(printable(f"{row.combination}: {row.first_error}"), style="red"))

"""What was measured, as tables for people and as JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table

from benchmarks.bench import Bench, Comparison, Goal
from benchmarks.host import Host
from benchmarks.samples import Side

FORMAT = 1


def print_comparisons(console: Console, title: str, comparisons: Iterable[Comparison]) -> None:
    """Print a table: medians with their spread, the ratios of medians and of least costs, and memory."""
    table = Table(title=title, title_justify="left", header_style="bold", expand=False)
    table.add_column("what")
    for heading in ("accel", "peer", "ratio", "of the least", "peak RSS, MiB"):
        table.add_column(heading, justify="right")
    table.add_column("peer is")
    table.add_column("notes")
    for one in comparisons:
        least, most = one.ratio_spread
        table.add_row(
            one.name,
            _cost(one.side, one.unit),
            _cost(one.peer, one.unit),
            f"[bold]{_ratio(one.ratio)}[/]\n{_ratio(least)} to {_ratio(most)}",
            _ratio(one.quiet_ratio),
            f"{one.side.peak_kib / 1024:.1f}\n{one.peer.peak_kib / 1024:.1f}",
            one.peer.name,
            "\n".join(f"{name}: {text}" for name, text in one.notes.items()),
        )
    console.print(table)


def print_goals(console: Console, goals: Sequence[Goal]) -> None:
    """Print each goal and whether it was met here."""
    table = Table(title="goals", title_justify="left", header_style="bold")
    table.add_column("goal")
    for heading in ("at most", "here", ""):
        table.add_column(heading, justify="right")
    for goal in goals:
        verdict = "[green]met[/]" if goal.met else "[red]not met[/]"
        table.add_row(goal.text, f"{goal.limit:g}", f"{goal.value:.3f}", verdict)
    console.print(table)


def write_json(path: Path, host: Host, bench: Bench, comparisons: Iterable[Comparison]) -> None:
    """Write all samples with the host they were taken on."""
    data = {
        "format": FORMAT,
        "host": attrs.asdict(host),
        "rounds": bench.rounds,
        "scale": bench.scale,
        "skipped": bench.skipped,
        "comparisons": [one.to_data() for one in comparisons],
    }
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def _cost(side: Side, unit: str) -> str:
    return f"[bold]{side.median:.3f}[/] {unit}\n{min(side.values):.3f} to {max(side.values):.3f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"

"""The figures of stress as a picture: faults over time, and how long updates took, each by hold and plan.

Painted by matplotlib, which is in the extra ``plot``, with its defaults whatever the user's settings are.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Literal

from attrs import define, field

from accel.stress.figures import Figures, Latencies, lower

#: Tones of Okabe and Ito's palette, which people with any colour vision can tell apart, and a dash for each plan.
_COLOURS = {"inhibit": "#0072b2", "unsafe": "#d55e00", "kick-all": "#009e73", "region-list": "#cc79a7"}
_MEANINGS = {"inhibit": "held", "unsafe": "not held", "kick-all": "all kicked", "region-list": "all at once"}
_DASHES = {"replace": "solid", "least": (0, (4, 2))}
_BAND, _MUTED = "#f1f1f1", "#555555"
_SIZE, _DPI = (13.0, 5.6), 100
#: Buckets of a latency that share a step of the curve.
_STEP = 8


@define(eq=False)
class _Curve:
    """What rows of one hold and plan came to, one after the other; `at` is in seconds, or in updates."""

    hold: str
    plan: str
    by_updates: bool
    at: list[float] = field(factory=lambda: [0.0])
    faults: list[int] = field(factory=lambda: [0])
    latencies: Latencies = field(factory=Latencies)
    updates: int = 0
    #: Where each kind of touch begins and ends.
    bands: list[tuple[str, float, float]] = field(factory=list)

    def add(self, row: Figures) -> None:
        start, before = self.at[-1], self.faults[-1]
        for seconds, updates, faults in row.timeline.points:
            self.at.append(start + (updates if self.by_updates else seconds))
            self.faults.append(before + faults)
        self.updates += row.updates
        self.latencies.merge(row.latencies)
        touch, end = row.combination.touch, self.at[-1]
        if self.bands and self.bands[-1][0] == touch:
            start = self.bands.pop()[1]
        self.bands.append((touch, start, end))


def plot_bytes(rows: Sequence[Figures], where: str, kind: Literal["png", "svg"]) -> bytes:
    """Return the picture of these rows, at least one, as a file; `where` says what they ran on."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    curves = _curves(rows)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "accel", "font.size": 10}
        )
        figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white", layout="constrained")
        figure.suptitle(f"Memory updates under running guests, on {where}", fontsize=12)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_faults(left, curves)
        _draw_latencies(right, curves)
        handles = left.get_legend_handles_labels()[0]
        figure.legend(handles=handles, loc="outside lower center", frameon=False)
        file = io.BytesIO()
        if kind == "svg":
            canvas: Any = FigureCanvasSVG(figure)
            canvas.print_svg(file, metadata={"Date": None})
        else:
            canvas = FigureCanvasAgg(figure)
            canvas.print_png(file)
    return file.getvalue()


def _curves(rows: Sequence[Figures]) -> list[_Curve]:
    curves: dict[tuple[str, str], _Curve] = {}
    # Runs of as many updates differ in time, and those of equal time in updates.
    by_updates = len({row.updates for row in rows}) == 1
    for row in rows:
        one = row.combination
        curves.setdefault((one.hold, one.plan), _Curve(one.hold, one.plan, by_updates)).add(row)
    return [curve for _, curve in sorted(curves.items(), reverse=True)]


def _label(curve: _Curve) -> str:
    each = curve.latencies
    p50, p99, longest = (f"{value * 1e3:.3g}" for value in (each.quantile(0.5), each.quantile(0.99), each.longest))
    return (
        f"{_MEANINGS[curve.hold]} (hold={curve.hold}, plan={curve.plan}): "
        f"{curve.faults[-1]:,} faults in {curve.updates:,} updates; "
        f"p50 {p50}, p99 {p99}, longest {longest} ms"
    )


def _draw_faults(axes: Any, curves: list[_Curve]) -> None:
    axes.set_title("Faults so far", loc="left")
    longest = max(curves, key=lambda curve: curve.at[-1])
    axes.set_xlabel("updates" if longest.by_updates else "seconds of updates")
    for number, (touch, start, end) in enumerate(longest.bands):
        if number % 2 == 0:
            axes.axvspan(start, end, color=_BAND, linewidth=0)
        axes.text(
            (start + end) / 2, 0.985, touch, transform=axes.get_xaxis_transform(), ha="center", va="top", color=_MUTED
        )
    most = max(curve.faults[-1] for curve in curves)
    for curve in curves:
        style = {"color": _COLOURS[curve.hold], "linestyle": _DASHES[curve.plan]}
        axes.plot(curve.at, curve.faults, linewidth=2, label=_label(curve), clip_on=False, zorder=3, **style)
    axes.set_xlim(0, longest.at[-1] or 1)
    axes.set_ylim(0, max(most, 1) * 1.15)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(lambda value, position: f"{value:,.0f}")
    _tidy(axes)


def _draw_latencies(axes: Any, curves: list[_Curve]) -> None:
    axes.set_title("How long an update takes, with the median", loc="left")
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("part of the updates")
    axes.set_xscale("log")
    for curve in curves:
        edges, parts = _histogram(curve.latencies)
        if not parts:
            continue
        colour = _COLOURS[curve.hold]
        style = _DASHES[curve.plan]
        axes.stairs(parts, edges, color=colour, alpha=0.14, fill=True, linewidth=0)
        axes.stairs(parts, edges, color=colour, linestyle=style, linewidth=1.6)
        axes.axvline(curve.latencies.quantile(0.5) * 1e3, color=colour, linewidth=1, linestyle=style)
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, position: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.yaxis.set_major_formatter(lambda value, position: f"{value * 100:g} %")
    _tidy(axes)


def _histogram(latencies: Latencies) -> tuple[list[float], list[float]]:
    """Return the edges of steps in milliseconds, and the part of the updates in each."""
    if not latencies.buckets:
        return [], []
    first, last = min(latencies.buckets) // _STEP, max(latencies.buckets) // _STEP
    counts = [0] * (last - first + 1)
    for bucket, count in latencies.buckets.items():
        counts[bucket // _STEP - first] += count
    edges = [lower(step * _STEP) * 1e3 for step in range(first, last + 2)]
    return edges, [count / latencies.count for count in counts]


def _tidy(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color="#e2e2e2", linewidth=0.8)
    axes.set_axisbelow(True)

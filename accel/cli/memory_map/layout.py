"""From a memory map to a picture: how high rows are, how they are spread over strips, and the page around them.

Guest memory is sparse, so a scale would show two huge blocks and nothing else. A row for each range it is, in the order
of addresses; where there is room, larger ranges are a little higher. Many rows go into several strips side by side, as
many as bring the page closest to the shape of a sheet of paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from attrs import evolve

from accel.cli.memory_map.chart import Chart, Row, State, build_chart
from accel.cli.memory_map.fold import fold
from accel.cli.memory_map.scene import Box, Group, Label, Scene, text_width
from accel.cli.memory_map.snapshot import MemoryMap
from accel.cli.memory_map.strip import STRIP_OVERHEAD, Strip
from accel.cli.memory_map.style import (
    CONTAINER_FILL,
    EDGE,
    FAINT,
    FAINT_EDGE,
    FONT,
    KIND_FILLS,
    LINE,
    MUTED,
    OTHER_FILL,
    PAPER,
    SMALL,
    fitted,
)

_MARGIN = 24.0
_BETWEEN = 30.0
_BELOW = 24.0
_MOST_COLUMNS = 16
#: Room for what stands above the strips, about.
_ABOVE = 90.0
_LEAST_WIDTH = 760.0
#: Width by height of a sheet of paper that lies on its side.
_SHAPE = math.sqrt(2)

#: Up to so many rows, each has room for two lines, and larger ranges are higher.
_ROOMY, _MEDIUM = 40, 110
_THIN = 6.0
#: Of the gaps of a chart with many rows, how many are labelled.
_LABELLED_GAPS = 10

_NOTE = "Not to scale: one row for each range, low addresses at the top."


def draw_map(memory_map: MemoryMap) -> Scene:
    """Return the picture of a map."""
    charts = fold([build_chart(space, memory_map) for space in memory_map.spaces])
    count = sum(len(chart.rows) for chart in charts)
    columns = _packed([Strip.of(chart, _heights(chart, count), 0, len(chart.rows)) for chart in charts])
    width = max(_LEAST_WIDTH, _width(columns) + 2 * _MARGIN)
    # Larger on a larger page, which is looked at from further away.
    size = max(17.0, width // 90)
    title = fitted(f"Memory map of {memory_map.name}", width - 2 * _MARGIN, size)
    groups = [
        Group(
            (
                Label(_MARGIN, _MARGIN + 0.8 * size, title, size, bold=True),
                Label(_MARGIN, _MARGIN + 1.2 * size + 12, _NOTE, SMALL, colour=MUTED),
            )
        )
    ]
    legend, bottom = _legend(charts, _MARGIN + 1.2 * size + 22, width)
    top = math.ceil(bottom) + 14
    left = _MARGIN
    for column in columns:
        below = float(top)
        for strip in column:
            groups.extend(strip.draw(left, below))
            below += strip.height + _BELOW
        left += max(strip.width for strip in column) + _BETWEEN
    return Scene(title, width, top + _height_of(columns) + _MARGIN, (*groups, *legend))


def _heights(chart: Chart, count: int) -> list[float]:
    """Return the height of each row of `chart`, where there are `count` rows in the picture."""
    starting = {bar.first for bar in chart.bars}
    alike = {bar.first for bar in chart.bars if bar.fold is not None and bar.fold.alike}
    gaps = [row for row in chart.rows if row.flat is None and row.fold is None]
    named = {id(chart.rows[0])} | {id(row) for row in sorted(gaps, key=lambda row: -row.size)[:_LABELLED_GAPS]}
    return [
        _height(row, count, thin=index not in starting and id(row) not in named, double=index in alike)
        for index, row in enumerate(chart.rows)
    ]


def _height(row: Row, count: int, *, thin: bool, double: bool) -> float:
    if double or (row.fold is not None and row.fold.alike):
        return 2 * LINE + 2
    if row.fold is not None:
        return LINE
    if row.flat is None:
        return LINE + 9 if count <= _ROOMY else _THIN if thin else LINE
    magnitude = min(32, max(0, row.size.bit_length() - 8)) / 32
    if count <= _ROOMY:
        return 2 * LINE + 2 + round(34 * magnitude)
    return LINE + 3 + round(8 * magnitude) if count <= _MEDIUM else LINE


def _packed(whole: Sequence[Strip]) -> list[list[Strip]]:
    """Return the columns of strips that are largest when the page is brought to the size of a sheet of paper."""
    longest, total = max(strip.height for strip in whole), sum(strip.height for strip in whole)
    highest = max(max(strip.heights) for strip in whole)
    heights = {
        share / count + STRIP_OVERHEAD + highest for share in (longest, total) for count in range(1, _MOST_COLUMNS)
    }
    return min((_columns(whole, most) for most in sorted(heights)), key=_page_size)


def _columns(whole: Sequence[Strip], most: float) -> list[list[Strip]]:
    """Return the strips in columns of up to `most` in height."""
    columns: list[list[Strip]] = []
    for strip in whole:
        if columns and _height_of(columns[-1:]) + _BELOW + strip.height <= most:
            columns[-1].append(strip)
        else:
            columns.extend([part] for part in strip.split(most))
    return columns


def _page_size(columns: Sequence[Sequence[Strip]]) -> float:
    """Return the height of the smallest sheet of paper on its side that has room for the columns."""
    return max(_width(columns) / _SHAPE, _height_of(columns) + _ABOVE)


def _width(columns: Sequence[Sequence[Strip]]) -> float:
    widest = (max(strip.width for strip in column) for column in columns)
    return sum(widest) + _BETWEEN * (len(columns) - 1)


def _height_of(columns: Sequence[Sequence[Strip]]) -> float:
    return max(sum(strip.height for strip in column) + _BELOW * (len(column) - 1) for column in columns)


def _legend(charts: Sequence[Chart], top: float, width: float) -> tuple[list[Group], float]:
    """Return what the colours and borders mean, of those that are there, and where it ends."""
    groups = []
    x, y = _MARGIN, top
    for sample, text in _entries(charts):
        needed = 28 + text_width(text, FONT) + 22
        if x > _MARGIN and x + needed > width - _MARGIN:
            x, y = _MARGIN, y + LINE + 6
        groups.append(Group((evolve(sample, x=x, y=y), Label(x + 28, y + 11.5, text, FONT))))
        x += needed
    return groups, y + LINE


def _entries(charts: Sequence[Chart]) -> Iterator[tuple[Box, str]]:
    rows = [row for chart in charts for row in chart.rows]
    bars = [bar for chart in charts for bar in chart.bars]
    kinds = {row.flat.kind for row in rows if row.flat is not None}
    kinds.update(kind for row in rows if row.fold is not None for kind in row.fold.kinds)
    kinds.update(bar.region.served for bar in bars)
    for kind in KIND_FILLS:
        if kind in kinds:
            yield _sample(KIND_FILLS[kind]), kind
    for kind in sorted(kinds - KIND_FILLS.keys() - {"container"}):
        yield _sample(OTHER_FILL), kind
    if any(bar.region.kind == "container" for bar in bars):
        yield _sample(CONTAINER_FILL), "container"
    if any(bar.region.alias is not None for bar in bars):
        yield _sample(PAPER, dashed=True), "alias"
    if any(State.HIDDEN in bar.states for bar in bars if bar.region.kind != "container"):
        yield _sample(PAPER, hatched=True), "hidden by what is left of it"
    if any(State.DISABLED in bar.states for bar in bars):
        yield Box(0, 0, 20, LINE, PAPER, FAINT_EDGE, dashed=True), "disabled (off)"
    if any(row.flat is None and row.fold is None for row in rows):
        yield Box(0, 0, 20, LINE, PAPER, FAINT, dashed=True), "unassigned"


def _sample(fill: str, *, dashed: bool = False, hatched: bool = False) -> Box:
    return Box(0, 0, 20, LINE, fill, EDGE, dashed=dashed, hatched=hatched)

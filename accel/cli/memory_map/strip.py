"""One strip of a picture: some of a chart's rows, from the top to the bottom of a column of the page.

From left to right: the address at which each row starts, what the guest finds there, and in lanes the bars of the
regions behind that. Of two bars that have a row in common the one in front stands further left, so whatever hides a
part of a bar stands left of it. Every label stands in a row and a column of its own and is cut to what fits, so no two
can meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from attrs import frozen

from accel.cli.memory_map.bars import LEAST_BAR_WIDTH, bar_width, draw_bar
from accel.cli.memory_map.chart import Bar, Chart, Row
from accel.cli.memory_map.ranges import draw_range, range_width
from accel.cli.memory_map.scene import Box, Group, Label, Line, text_width
from accel.cli.memory_map.style import BASELINE, FAINT, FONT, INSET, LINE, MUTED, SMALL, address_text, fitted

#: Bars beside each other; those behind them are counted.
_MOST_LANES = 5
_GAP = 5.0
_BEHIND_WIDTH = 66.0
_HEAD = 42.0
#: Height of a strip without rows.
STRIP_OVERHEAD = _HEAD + LINE


@frozen
class _Placed:
    """A bar and the lane that it stands in."""

    bar: Bar
    lane: int


@frozen
class Strip:
    """The rows [first, end) of a chart.

    Attributes:
        heights: Of all rows of the chart.
        number: Which of the `count` strips of its chart this is, from 1 on.
        behind: For each row, how many bars have no lane.
    """

    chart: Chart
    heights: Sequence[float]
    first: int
    end: int
    number: int
    count: int
    address_width: float
    flat_width: float
    bars: tuple[_Placed, ...]
    lane_widths: tuple[float, ...]
    behind: tuple[int, ...]

    @classmethod
    def of(cls, chart: Chart, heights: Sequence[float], first: int, end: int, number: int = 1, count: int = 1) -> Strip:
        """Return a strip, its columns as wide as what stands in them needs."""
        rows = chart.rows[first:end]
        bars, behind = _placed(chart.bars, first, end)
        lanes = max((one.lane for one in bars), default=-1) + 1
        return cls(
            chart=chart,
            heights=heights,
            first=first,
            end=end,
            number=number,
            count=count,
            address_width=max(text_width(address_text(row.end), FONT) for row in rows) + 2 * INSET,
            flat_width=max(range_width(row) for row in rows),
            bars=tuple(bars),
            lane_widths=tuple(
                max((bar_width(one.bar) for one in bars if one.lane == lane), default=LEAST_BAR_WIDTH)
                for lane in range(lanes)
            ),
            behind=tuple(behind),
        )

    def split(self, most: float) -> list[Strip]:
        """Return strips that have its rows, each but the last about `most` high."""
        firsts = [self.first]
        used = STRIP_OVERHEAD
        for index in range(self.first, self.end):
            if used + self.heights[index] > most and index > firsts[-1]:
                firsts.append(index)
                used = STRIP_OVERHEAD
            used += self.heights[index]
        ends = [*firsts[1:], self.end]
        return [
            Strip.of(self.chart, self.heights, first, end, number, len(firsts))
            for number, (first, end) in enumerate(zip(firsts, ends, strict=True), 1)
        ]

    @property
    def width(self) -> float:
        """How much room it takes."""
        behind = _BEHIND_WIDTH if any(self.behind) else 0
        return self.address_width + self.flat_width + sum(_GAP + width for width in self.lane_widths) + behind

    @property
    def height(self) -> float:
        """How much room it takes."""
        return STRIP_OVERHEAD + sum(self.heights[self.first : self.end])

    @property
    def _rows(self) -> Sequence[Row]:
        return self.chart.rows[self.first : self.end]

    def draw(self, left: float, top: float) -> Iterator[Group]:
        """Yield the strip with its corner at (left, top)."""
        edges = [top + _HEAD]
        for height in self.heights[self.first : self.end]:
            edges.append(edges[-1] + height)
        flat_x = left + self.address_width
        yield self._heading(left, top)
        yield from self._addresses(left, edges)
        yield from self._ranges(flat_x, edges)
        xs = [flat_x + self.flat_width + _GAP]
        for width in self.lane_widths:
            xs.append(xs[-1] + width + _GAP)
        for one in self.bars:
            yield draw_bar(one.bar, self.chart, xs[one.lane], self.lane_widths[one.lane], self.first, edges)
        yield from self._behind(xs[-1], edges)

    def _heading(self, left: float, top: float) -> Group:
        part = f", part {self.number} of {self.count}" if self.count > 1 else ""
        title = fitted(self.chart.name, self.width - text_width(part, FONT + 2) - INSET, FONT + 2) + part
        shapes = [Label(left + INSET, top + 14, title, FONT + 2, bold=True)]
        regions = f"{self.chart.regions:,} region{'' if self.chart.regions == 1 else 's'}"
        rest = self.width - text_width(title, FONT + 2) - 4 * INSET
        if self.number == 1 and text_width(regions, SMALL) < rest:
            shapes.append(Label(left + self.width, top + 14, regions, SMALL, "end", MUTED))
        flat_x = left + self.address_width
        shapes.append(Label(flat_x - INSET, top + 34, "from", SMALL, "end", MUTED))
        shapes.append(Label(flat_x + INSET, top + 34, "what the guest finds", SMALL, colour=MUTED))
        lanes_x = flat_x + self.flat_width + _GAP + INSET
        for text in ("regions behind it, front to back", "regions behind it", "behind it"):
            if self.lane_widths and text_width(text, SMALL) <= left + self.width - lanes_x:
                shapes.append(Label(lanes_x, top + 34, text, SMALL, colour=MUTED))
                break
        return Group(tuple(shapes))

    def _addresses(self, left: float, edges: Sequence[float]) -> Iterator[Group]:
        """Yield the address at the top of each row that has room for it, and that at the end."""
        for index, row in enumerate(self._rows):
            if edges[index + 1] - edges[index] >= LINE:
                yield self._address(row.start, left, edges[index])
        yield self._address(self._rows[-1].end, left, edges[-1])

    def _address(self, address: int, left: float, y: float) -> Group:
        x = left + self.address_width - INSET
        return Group((Line(left, y, self.width, FAINT), Label(x, y + BASELINE, address_text(address), FONT, "end")))

    def _ranges(self, x: float, edges: Sequence[float]) -> Iterator[Group]:
        """Yield what shows; gaps first, so that their borders lie below the others'."""
        found = []
        index = 0
        for _, same in groupby(self._rows, lambda row: id(row.flat) if row.flat is not None else id(row)):
            rows = list(same)
            top, bottom = edges[index], edges[index + len(rows)]
            index += len(rows)
            found.append((rows[0], Box(x, top, self.flat_width, bottom - top)))
        found.sort(key=lambda one: one[0].flat is not None or one[0].fold is not None)
        return (draw_range(row, box) for row, box in found)

    def _behind(self, x: float, edges: Sequence[float]) -> Iterator[Group]:
        index = 0
        for count, same in groupby(self.behind):
            first, index = index, index + len(list(same))
            high = [one for one in range(first, index) if edges[one + 1] - edges[one] >= LINE]
            if count and high:
                label = Label(x, edges[high[0]] + BASELINE, f"+{count:,} more", SMALL, colour=MUTED)
                yield Group((label,), f"{count:,} more regions stand behind these")


def _placed(bars: Sequence[Bar], first: int, end: int) -> tuple[list[_Placed], list[int]]:
    """Return the bars with a row in [first, end) in the leftmost lanes they can have, and what found none."""
    placed = []
    behind = [0] * (end - first)
    # For each row, the first lane that is behind all that stands there so far.
    free = [0] * (end - first)
    for bar in bars:
        start, stop = max(bar.first, first) - first, min(bar.end, end) - first
        if start >= stop:
            continue
        lane = max(free[start:stop])
        if lane == _MOST_LANES:
            behind[start:stop] = [count + 1 for count in behind[start:stop]]
        else:
            free[start:stop] = [lane + 1] * (stop - start)
            placed.append(_Placed(bar, lane))
    return placed, behind

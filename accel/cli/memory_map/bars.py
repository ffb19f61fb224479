"""The bars of a strip: the regions behind what the guest finds, with what is hidden of them hatched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from accel.cli.memory_map.chart import Bar, Chart, State
from accel.cli.memory_map.names import shown
from accel.cli.memory_map.scene import Box, Group, Label, text_width
from accel.cli.memory_map.style import (
    BASELINE,
    EDGE,
    FAINT_EDGE,
    FONT,
    INSET,
    LINE,
    MUTED,
    PAPER,
    SMALL,
    TEXT,
    fill_of,
    first_and_last,
    fitted,
    names_text,
    range_text,
)

LEAST_BAR_WIDTH, _MOST_BAR_WIDTH = 36.0, 140.0
_OFF, _CONTINUED = " (off)", " (cont.)"
#: Hidden ranges in one tip.
_TIP_RANGES = 6


def bar_width(bar: Bar) -> float:
    """Return how wide the lane should be for `bar`."""
    note = _OFF if State.DISABLED in bar.states else _CONTINUED
    wanted = text_width(_name(bar) + note, FONT) + 2 * INSET
    return max(LEAST_BAR_WIDTH, min(_MOST_BAR_WIDTH, wanted))


def draw_bar(bar: Bar, chart: Chart, x: float, width: float, first_row: int, edges: Sequence[float]) -> Group:
    """Return the part of `bar` in a strip that begins with the chart's row `first_row`.

    Args:
        x: Where its lane begins.
        edges: Where the strip's rows begin, and where the last one ends.
    """
    first, end = max(bar.first, first_row), min(bar.end, first_row + len(edges) - 1)
    boxes = []
    index = first
    for state, same in groupby(bar.states[first - bar.first : end - bar.first]):
        top = edges[index - first_row]
        index += len(list(same))
        boxes.append(_part(bar, state, Box(x, top, width, edges[index - first_row] - top)))
    top, bottom = edges[first - first_row], edges[end - first_row]
    disabled = State.DISABLED in bar.states
    edge = FAINT_EDGE if disabled else EDGE
    dashed = disabled or bar.region.alias is not None or bar.fold is not None
    outline = Box(x, top, width, bottom - top, "", edge, dashed=dashed)
    labels = _labels(bar, x, width - 2 * INSET, range(first, end), first_row, edges)
    return Group((*boxes, outline, *labels), _tip(bar, chart))


def _name(bar: Bar) -> str:
    return f"… {len(bar.fold.names):,} more" if bar.fold is not None else shown(bar.region.name)


def _part(bar: Bar, state: State, box: Box) -> Box:
    if bar.region.kind == "container":
        return Box(box.x, box.y, box.width, box.height, fill_of("container"))
    fill = fill_of(bar.region.served) if state in (State.SHOWN, State.HIDDEN) else PAPER
    return Box(box.x, box.y, box.width, box.height, fill, hatched=state is State.HIDDEN)


def _labels(bar: Bar, x: float, width: float, rows: range, first_row: int, edges: Sequence[float]) -> Iterator[Label]:
    """Yield the name, in a row that shows if there is one, and below, if there is room, what it is."""
    high = [row for row in rows if edges[row - first_row + 1] - edges[row - first_row] >= LINE]
    if not high:
        return
    box = bar.region.kind == "container"
    row = high[0] if box else next((row for row in high if bar.states[row - bar.first] is State.SHOWN), high[0])
    state = bar.states[row - bar.first]
    last = row
    while last + 1 in rows and (box or bar.states[last + 1 - bar.first] is state):
        last += 1
    plate = fill_of(bar.region.served) if state is State.HIDDEN and not box else ""
    muted = state is State.DISABLED or bar.fold is not None
    note = _OFF if state is State.DISABLED else _CONTINUED if rows[0] > bar.first else ""
    name = fitted(_name(bar), width - text_width(note, FONT)) + note
    y = edges[row - first_row] + BASELINE
    yield Label(x + INSET, y, name, FONT, colour=MUTED if muted else TEXT, plate=plate)
    below = _below(bar, state, width)
    if below and edges[last - first_row + 1] - edges[row - first_row] >= 2 * LINE:
        yield Label(x + INSET, y + LINE - 1, below, SMALL, colour=MUTED, plate=plate)


def _below(bar: Bar, state: State, width: float) -> str:
    if bar.fold is not None:
        return first_and_last(bar.fold.names, width)
    region = bar.region
    if region.alias is not None:
        return fitted(f"→ {region.alias.name}", width, SMALL)
    text = region.kind if state is not State.HIDDEN else f"{region.kind}, hidden"
    return text if text_width(text, SMALL) <= width else ""


def _tip(bar: Bar, chart: Chart) -> str:
    region = bar.region
    if bar.fold is not None:
        return names_text(bar.fold.names)
    lines = [
        shown(region.name),
        range_text(region.start, region.end),
        f"{region.kind}, priority {region.priority}"
        + (", read-only" if region.readonly else "")
        + (", disabled" if State.DISABLED in bar.states else ""),
    ]
    if region.alias is not None:
        lines.append(f"shows {shown(region.alias.name)} from {region.alias.start:#_x} on")
    if region.owner is not None:
        lines.append(f"device {shown(region.owner)}")
    if region.kind != "container":
        hidden = list(_hidden(bar, chart))
        lines += [f"hidden at {one}" for one in hidden[:_TIP_RANGES]]
        if len(hidden) > _TIP_RANGES:
            lines.append(f"and at {len(hidden) - _TIP_RANGES:,} more ranges")
    return "\n".join(lines)


def _hidden(bar: Bar, chart: Chart) -> Iterator[str]:
    index = bar.first
    for state, same in groupby(bar.states):
        first, index = index, index + len(list(same))
        if state is State.HIDDEN:
            yield range_text(chart.rows[first].start, chart.rows[index - 1].end)

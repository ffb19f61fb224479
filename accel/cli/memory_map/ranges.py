"""The column of a strip that says what the guest finds: ranges of the flat view, gaps, and what is folded."""

from __future__ import annotations

from accel.cli.memory_map.chart import Row
from accel.cli.memory_map.names import shown
from accel.cli.memory_map.scene import Box, Group, Label, text_width
from accel.cli.memory_map.style import (
    BASELINE,
    EDGE,
    FAINT,
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
    size_text,
)

_LEAST_WIDTH, _MOST_WIDTH = 150.0, 260.0
_CONTINUED = " (cont.)"


def range_width(row: Row) -> float:
    """Return how wide the column should be for `row`."""
    name, right, below = _words(row)
    first = text_width(shown(name) + _CONTINUED, FONT) + text_width(right, SMALL) + 3 * INSET
    second = text_width(shown(below), SMALL) + 2 * INSET
    return max(_LEAST_WIDTH, min(_MOST_WIDTH, max(first, second)))


def draw_range(row: Row, box: Box) -> Group:
    """Return what shows from `row` on in `box`, which may span the rows below it too."""
    name, right, below = _words(row)
    continued = row.flat is not None and row.flat.start < row.start
    if row.flat is None and row.fold is None:
        outline = Box(box.x, box.y, box.width, box.height, "", FAINT, dashed=True)
    elif row.fold is not None:
        fill = fill_of(row.fold.kinds[0]) if len(row.fold.kinds) == 1 else PAPER
        outline = Box(box.x, box.y, box.width, box.height, fill, EDGE, dashed=True)
    else:
        assert row.flat is not None
        outline = Box(box.x, box.y, box.width, box.height, fill_of(row.flat.kind), EDGE)
    if box.height < LINE:
        return Group((outline,), _tip(row))
    note = _CONTINUED if continued else ""
    rest = box.width - text_width(right, SMALL) - text_width(note, FONT) - 3 * INSET
    y = box.y + BASELINE
    colour = MUTED if row.flat is None else TEXT
    labels = [
        Label(box.x + INSET, y, fitted(name, rest) + note, FONT, colour=colour),
        Label(box.x + box.width - INSET, y, right, SMALL, "end", MUTED),
    ]
    if below and box.height >= 2 * LINE:
        text = fitted(below, box.width - 2 * INSET, SMALL)
        labels.append(Label(box.x + INSET, y + LINE - 1, text, SMALL, colour=MUTED))
    return Group((outline, *labels), _tip(row))


def _words(row: Row) -> tuple[str, str, str]:
    """Return the name, what stands at the right, and what stands below if there is room."""
    if row.fold is not None:
        count, kinds = len(row.fold.names), "/".join(row.fold.kinds)
        below = first_and_last(row.fold.names, _MOST_WIDTH - 2 * INSET)
        return (f"… {count:,} more like these", kinds, below) if row.fold.alike else (f"{count:,}: {below}", kinds, "")
    if row.flat is None:
        return "unassigned", size_text(row.size), ""
    flat = row.flat
    offset = f"at {flat.offset:#_x}" if flat.offset else ""
    owner = "" if flat.owner in (None, flat.name) else f"of {flat.owner}"
    return flat.name, f"{flat.kind} {size_text(flat.end - flat.start)}", f"{offset} {owner}".strip()


def _tip(row: Row) -> str:
    if row.fold is not None:
        return f"{range_text(row.start, row.end)}\n{names_text(row.fold.names)}"
    if row.flat is None:
        return f"unassigned\n{range_text(row.start, row.end)}"
    flat = row.flat
    lines = [
        shown(flat.name),
        range_text(flat.start, flat.end),
        f"{flat.kind}, priority {flat.priority}{', read-only' if flat.readonly else ''}",
        f"shows it from {flat.offset:#_x} on",
    ]
    if flat.owner is not None:
        lines.append(f"device {shown(flat.owner)}")
    return "\n".join(lines)

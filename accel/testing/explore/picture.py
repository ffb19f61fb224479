"""Draws a schedule as the kernel's pages draw races: a column for each thread, time downward.

Layer: above `report`. Plain text, so that it can stand in a document; nobody has to draw what was explored.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection

from accel.testing.explore.report import Row, StepTable

#: Most characters of one column.
_WIDEST = 44


def columns(table: StepTable, only: Collection[str] = ()) -> str:
    """Return the steps of an execution side by side, what came of it below.

    Args:
        table: The steps.
        only: Words of which a step that is shown has at least one, such as ``MemSlots.table``; by default all are.
    """
    rows = [row for row in table.rows if not only or any(word in row.text for word in only)]
    shown = sorted({row.task for row in rows})
    widths = {task: min(_WIDEST, max([len(table.tasks[task]), *_lengths(rows, task)])) for task in shown}
    rule = "+" + "+".join("-" * (widths[task] + 2) for task in shown) + "+"
    lines = [rule, _line(widths, {task: table.tasks[task] for task in shown}), rule]
    before = None
    for row in rows:
        if before is not None and row.task != before:
            lines.append(_line(widths, {}))
        before = row.task
        lines += [_line(widths, {row.task: part}) for part in textwrap.wrap(row.text, widths[row.task])]
    lines.append(rule)
    return "\n".join([*lines, table.outcome or "nothing is violated"])


def _lengths(rows: list[Row], task: int) -> list[int]:
    return [len(row.text) for row in rows if row.task == task]


def _line(widths: dict[int, int], cells: dict[int, str]) -> str:
    return "|" + "|".join(f" {cells.get(task, ''):{width}} " for task, width in widths.items()) + "|"

"""Shows what an exploration found: the steps of the failing schedule, one row each, in the column of its task.

Layer: above `search`. Plain text; the command line adds nothing to it.
"""

from __future__ import annotations

import sys
from types import FrameType

from attrs import frozen

from accel.testing.explore.schedule import letter, parse_schedule
from accel.testing.explore.search import Exploration, Explorer
from accel.testing.explore.task import Task

_HERE = __name__.rpartition(".")[0]


@frozen
class Row:
    """One step.

    Attributes:
        task: Whose.
        text: What was done.
        place: Where in the source, as ``file:line function``.
    """

    task: int
    text: str
    place: str


@frozen
class StepTable:
    """The steps of one execution.

    Attributes:
        tasks: The names of the tasks.
        rows: The steps, in order.
        outcome: What came of it: the violation, or an empty text.
        off: Where the schedule did not fit the scenario, or an empty text.
    """

    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    outcome: str
    off: str

    def __str__(self) -> str:
        width = max((len(row.text) for row in self.rows), default=10)
        lines = [f"{letter(index)} = {name}" for index, name in enumerate(self.tasks)]
        before = -1
        for number, row in enumerate(self.rows, 1):
            mark = letter(row.task) if row.task != before else " "
            before = row.task
            lines.append(f"{number:4}  {mark}  {'  ' * row.task}{row.text:{width}}  {row.place}".rstrip())
        lines.append(f"      =>  {self.outcome or 'nothing is violated'}")
        if self.off:
            lines.append(f"the schedule does not fit this scenario: {self.off}")
        return "\n".join(lines)


def step_table(explorer: Explorer, schedule: str) -> StepTable:
    """Repeat a schedule and return its steps: synchronisation, and data that several tasks use.

    Raises:
        UsageError: The text is no schedule.
    """
    segments = parse_schedule(schedule)
    rows: list[tuple[str, Row]] = []

    def observe(task: Task, step: str, *, timed_out: bool) -> None:
        text = f"{step} (time is over)" if timed_out else step
        rows.append((data_name(task), Row(task.index, text, _place(sys._getframe(1)))))

    engine, off = explorer.replay(segments, observe)
    shown = tuple(row for name, row in rows if not name or name in engine.found)
    violation = engine.violation
    outcome = "" if violation is None else f"{violation.kind}: {violation}"
    return StepTable(tuple(task.name for task in engine.tasks), shown, outcome, off)


def data_name(task: Task) -> str:
    """Return the name of the data of a task's step, or an empty text for a synchronisation step."""
    return "" if isinstance(task.step, str) else task.step[0]


def _place(frame: FrameType | None) -> str:
    """Return where outside of the explorer a step is."""
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith(_HERE):
        frame = frame.f_back
    if frame is None:
        return ""
    code = frame.f_code
    return f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {code.co_name}"


def summary(explored: Exploration) -> str:
    """Return what was explored, in a line, and what was found, in more."""
    counts = explored.counts
    if explored.unlimited:
        how = "with any number of preemptions"
    else:
        how = "at random" if explored.bound is None else f"up to {explored.bound} preemptions"
    done = ", all of them" if explored.exhaustive else ""
    text = f"{counts.schedules} schedules {how}{done}; {counts.cut} more cut off at a known order"
    text += f", {counts.states} orders, up to {counts.longest} steps"
    if explored.found is None:
        return f"{text}: no violation"
    found = explored.found
    after = "1 preemption" if found.preemptions == 1 else f"{found.preemptions} preemptions"
    return f"{text}: {found.violation.kind} after {after}: {found.violation}"

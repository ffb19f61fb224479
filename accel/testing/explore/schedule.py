"""Schedules as text: which task goes on until where, so that an execution can be repeated.

``A@17 B. A!@23`` reads: A until before its 17th access; B until it waits or ends; A again, whose wait times out, until
before its 23rd access. Accesses are counted whether or not they were visible, so a schedule holds as long as the code
and the scenario are the same. Layer: above `engine`.
"""

from __future__ import annotations

import re

from attrs import frozen

from accel.errors import UsageError
from accel.testing.explore.scheduler import Scheduler
from accel.testing.explore.task import Choice

_PART = re.compile(r"([A-Z])(!?)(?:@(\d+)|\.)")


@frozen
class Segment:
    """One task goes on for a while.

    Attributes:
        task: Its index.
        timeout: Whether its wait times out first.
        until: The access before which it is stopped, or None to go on until it waits or ends.
    """

    task: int
    timeout: bool
    until: int | None

    def __str__(self) -> str:
        end = "." if self.until is None else f"@{self.until}"
        return f"{letter(self.task)}{'!' if self.timeout else ''}{end}"


def letter(index: int) -> str:
    """Return the letter of a task."""
    return chr(ord("A") + index)


def schedule_text(segments: list[Segment]) -> str:
    """Return a schedule's text."""
    return " ".join(map(str, segments))


def parse_schedule(text: str) -> list[Segment]:
    """Return the segments of a schedule.

    Raises:
        UsageError: The text is none; the message names the part.
    """
    segments = []
    for part in text.split():
        found = _PART.fullmatch(part)
        if found is None:
            raise UsageError(f"schedule: {part!r} is no part of one; parts read like A@17, B. or A!@23")
        task, timeout, until = found.groups()
        segments.append(Segment(ord(task) - ord("A"), bool(timeout), None if until is None else int(until)))
    if not segments:
        raise UsageError("schedule: it is empty")
    return segments


class Recorder:
    """Writes down the segments of an execution; a chooser calls it for each choice."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._task = -1
        self._timeout = False

    def note(self, engine: Scheduler, choice: Choice) -> None:
        """Note who goes on."""
        current = engine.current
        if choice.task is current and not choice.timeout:
            return
        if self._task >= 0:
            goes_on = current is not None and (current.ready is None or current.ready())
            self._segments.append(
                Segment(self._task, self._timeout, engine.tasks[self._task].count if goes_on else None)
            )
        self._task, self._timeout = choice.task.index, choice.timeout

    def segments(self) -> list[Segment]:
        """Return all segments; the last has no end. Where nothing was to be chosen, the first task goes on."""
        return [*self._segments, Segment(max(self._task, 0), self._timeout, None)]


class Replay:
    """A chooser that repeats a schedule; behind its end, each goes on for as long as it can.

    Attributes:
        off: Where the schedule asks for something that cannot be, or an empty text.
    """

    def __init__(self, segments: list[Segment]) -> None:
        self.prefix: list[tuple[int, bool]] = []
        self.expected: int | None = None
        self.left = len(segments)
        self.off = ""
        self._segments = segments
        self._at = -1

    def choose(self, engine: Scheduler, choices: list[Choice]) -> Choice | None:
        """Return what the schedule says."""
        first, current = choices[0], engine.current
        if self._at >= len(self._segments):
            return first
        if current is not None and first.task is current and not first.timeout and self._at >= 0:
            until = self._segments[self._at].until
            if until is None or current.count < until:
                return first
        self._at += 1
        if self._at >= len(self._segments):
            return first
        segment = self._segments[self._at]
        for choice in choices:
            if choice.task.index == segment.task and choice.timeout == segment.timeout:
                return choice
        self.off = self.off or f"part {self._at + 1}, {segment}: that task cannot go on there"
        return first

"""Folding a chart: where there are very many rows, runs of rows that are alike become one that counts them.

A run is a pattern of up to four rows that comes again and again, such as a small device region and the gap behind it.
Its first two and its last stay. Only if that is not enough, rows are put together whatever they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from attrs import evolve, frozen

from accel.cli.memory_map.chart import Bar, Chart, Fold, Row, State
from accel.cli.memory_map.names import in_data

#: With up to so many rows in all, nothing is folded.
MANY_ROWS = 120
#: More rows than about this are never drawn.
MOST_ROWS = 2500

_LONGEST_PATTERN = 4
_SHORTEST_RUN = 6
_HEAD, _TAIL = 2, 1
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|[0-9]+")


@frozen
class _Group:
    """The rows [start, end) that become one; `alike` if they repeat what is above them."""

    start: int
    end: int
    alike: bool = False

    @property
    def single(self) -> bool:
        """Whether it is one row, which stays as it is."""
        return self.end - self.start == 1


def fold(charts: Sequence[Chart]) -> list[Chart]:
    """Return the charts with no more than about `MOST_ROWS` rows in all."""
    folded = list(charts)
    if _count(folded) > MANY_ROWS:
        folded = [_regrouped(chart, list(_runs(chart))) for chart in folded]
    if _count(folded) > MOST_ROWS:
        size = -(-_count(folded) // MOST_ROWS)
        folded = [_regrouped(chart, list(_blocks(chart, size))) for chart in folded]
    return folded


def _count(charts: Sequence[Chart]) -> int:
    return sum(len(chart.rows) for chart in charts)


def _blocks(chart: Chart, size: int) -> Iterator[_Group]:
    for start in range(0, len(chart.rows), size):
        yield _Group(start, min(start + size, len(chart.rows)))


def _runs(chart: Chart) -> Iterator[_Group]:
    marks = _marks(chart)
    at = 0
    while at < len(marks):
        patterns = [(_run_length(marks, at, size), size) for size in range(1, _LONGEST_PATTERN + 1)]
        length, pattern = max(patterns, key=lambda one: one[0])
        repeats = length // pattern
        if repeats < _SHORTEST_RUN:
            yield _Group(at, at + 1)
            at += 1
            continue
        middle, tail = at + _HEAD * pattern, at + (repeats - _TAIL) * pattern
        yield from (_Group(index, index + 1) for index in range(at, middle))
        yield _Group(middle, tail, alike=True)
        at = tail + _TAIL * pattern
        yield from (_Group(index, index + 1) for index in range(tail, at))


def _run_length(marks: Sequence[object], at: int, pattern: int) -> int:
    """Return how many rows from `at` on repeat the first `pattern` of them."""
    end = at + pattern
    while end < len(marks) and marks[end] == marks[end - pattern]:
        end += 1
    return end - at if end <= len(marks) else 0


def _marks(chart: Chart) -> list[object]:
    """Return for each row what it has in common with rows that are like it: what shows, and what bars do there."""
    events: list[list[object]] = [[] for _ in chart.rows]
    for bar in chart.bars:
        what = bar.region.kind, _stem(bar.region.name), len(bar.states) if _short(bar) else 0
        before = None
        for index, state in enumerate(bar.states, bar.first):
            if state is not before:
                events[index].append((what, state, index == bar.first))
                before = state
        events[bar.end - 1].append((what, None, False))
    return [(_mark(row), tuple(found)) for row, found in zip(chart.rows, events, strict=True)]


def _mark(row: Row) -> object:
    flat = row.flat
    if flat is None:
        return row.size
    whole = (flat.start, flat.end) == (row.start, row.end)
    return row.size, flat.kind, _stem(flat.name) if whole else flat.start


def _stem(name: str) -> str:
    return _NUMBER.sub("#", in_data(name))


def _short(bar: Bar) -> bool:
    """Return whether a bar can be a part of a pattern."""
    return len(bar.states) <= _LONGEST_PATTERN


def _regrouped(chart: Chart, groups: Sequence[_Group]) -> Chart:
    places = [number for number, group in enumerate(groups) for _ in range(group.start, group.end)]
    inside: dict[int, list[Bar]] = {}
    bars = []
    for bar in chart.bars:
        numbers = list(range(places[bar.first], places[bar.end - 1] + 1))
        if len(numbers) == 1 and not groups[numbers[0]].single:
            inside.setdefault(numbers[0], []).append(bar)
            continue
        if _short(bar):
            # It stays out of a fold that it reaches into.
            numbers = [number for number in numbers if groups[number].single]
        if numbers:
            states = tuple(bar.states[max(groups[number].start - bar.first, 0)] for number in numbers)
            bars.append(evolve(bar, first=numbers[0], states=states))
    rows = [_row(chart, group, inside.get(number, [])) for number, group in enumerate(groups)]
    for number, (front, *others) in inside.items():
        if rows[number].fold is None:
            fold = Fold(_bar_names([front, *others]), (), groups[number].alike) if others else None
            bars.append(Bar(front.region, number, (State.EMPTY if others else front.states[0],), fold))
    bars.sort(key=lambda bar: bar.region.rank)
    return evolve(chart, rows=tuple(rows), bars=tuple(bars))


def _row(chart: Chart, group: _Group, bars: Sequence[Bar]) -> Row:
    """Return what stands for the rows of `group`, inside which there are `bars`."""
    rows = chart.rows[group.start : group.end]
    if group.single:
        return rows[0]
    start, end, flat = rows[0].start, rows[-1].end, rows[0].flat
    if flat is not None and all(row.flat is flat for row in rows):
        return Row(start, end, flat)
    names = tuple(name for row in rows for name in _names(row))
    if len(set(names)) == 1 and bars:
        # All show one region, through aliases whose names say more.
        names = _bar_names(bars)
    kinds = dict.fromkeys(kind for row in rows for kind in _kinds(row))
    return Row(start, end, None, Fold(names, tuple(kinds), group.alike))


def _bar_names(bars: Sequence[Bar]) -> tuple[str, ...]:
    return tuple(bar.region.name for bar in sorted(bars, key=lambda bar: bar.first))


def _names(row: Row) -> tuple[str, ...]:
    return row.fold.names if row.fold is not None else () if row.flat is None else (row.flat.name,)


def _kinds(row: Row) -> tuple[str, ...]:
    return row.fold.kinds if row.fold is not None else () if row.flat is None else (row.flat.kind,)

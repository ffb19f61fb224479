"""Splicing: the view that follows from the one before and the windows of it that were damaged, and the difference.

Only what was damaged is painted again. What is left of the old sections around it is joined with the new ones where
they continue each other, so that the outcome is the same as rendering everything anew. Layer: above `flat_view`;
whoever calls brings the painting (`accel.memory.render`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from attrs import frozen

from accel.memory.flat_view import FlatView, MemoryRegionSection


@frozen
class ViewDiff:
    """What a change of view means; each is ascending by address.

    Attributes:
        removed: Sections of the old view that the new one does not have.
        added: Sections of the new view that the old one did not have.
        altered: Sections that stay with another log mask, other queued ranges or other ioeventfds: (old, new).
    """

    removed: tuple[MemoryRegionSection, ...] = ()
    added: tuple[MemoryRegionSection, ...] = ()
    altered: tuple[tuple[MemoryRegionSection, MemoryRegionSection], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.altered)

    @property
    def has_io(self) -> bool:
        """Whether a section in it has queued ranges or ioeventfds."""
        sections = (*self.removed, *self.added, *chain.from_iterable(self.altered))
        return any(section.eventfds or section.coalesced for section in sections)


def diff(old: Sequence[MemoryRegionSection], new: Sequence[MemoryRegionSection]) -> ViewDiff:
    """Return which of the sections `old` are gone, which of `new` came, and which changed as they stayed. O(n)."""
    removed: list[MemoryRegionSection] = []
    added: list[MemoryRegionSection] = []
    altered: list[tuple[MemoryRegionSection, MemoryRegionSection]] = []
    at = 0
    for section in old:
        while at < len(new) and new[at].range.start < section.range.start:
            added.append(new[at])
            at += 1
        if at < len(new) and new[at] == section:
            if _is_altered(section, new[at]):
                altered.append((section, new[at]))
            at += 1
        else:
            removed.append(section)
    added.extend(new[at:])
    return ViewDiff(tuple(removed), tuple(added), tuple(altered))


def _is_altered(old: MemoryRegionSection, new: MemoryRegionSection) -> bool:
    return old.log_mask != new.log_mask or old.coalesced != new.coalesced or old.eventfds != new.eventfds


def merged(sections: Iterable[MemoryRegionSection]) -> Iterator[MemoryRegionSection]:
    """Join neighbours that continue each other; `sections` ascend."""
    last: MemoryRegionSection | None = None
    for section in sections:
        if last is not None and _continues(last, section):
            last = last.part(last.range.start, section.range.end)
            continue
        if last is not None:
            yield last
        last = section
    if last is not None:
        yield last


def _continues(last: MemoryRegionSection, section: MemoryRegionSection) -> bool:
    return (
        last.range.end == section.range.start
        and last.region is section.region
        and last.offset + last.range.size == section.offset
        and last.readonly == section.readonly
        and last.romd == section.romd
        and last.nonvolatile == section.nonvolatile
        and last.log_mask == section.log_mask
        and not last.unmergeable
        and not section.unmergeable
    )


def splice(
    view: FlatView,
    damage: Iterable[tuple[int, int]],
    paint: Callable[[int, int], Iterable[MemoryRegionSection]],
) -> tuple[FlatView, ViewDiff]:
    """Return the view that follows `view`, and the difference.

    Args:
        view: The view before the change.
        damage: Windows [start, end) of addresses that may show something else now; in any order.
        paint: Returns the sections inside a window, clipped to it, ascending.

    Complexity: O(size of the damage · log n), and one copy of n references.
    """
    parts: list[tuple[int, int, list[MemoryRegionSection]]] = []
    removed: list[MemoryRegionSection] = []
    added: list[MemoryRegionSection] = []
    altered: list[tuple[MemoryRegionSection, MemoryRegionSection]] = []
    for first, last, windows in _groups(view, _joined(_widened(view, start, end) for start, end in damage)):
        old = view[first:last]
        pieces = list(_outside(old, windows))
        for start, end in windows:
            pieces.extend(paint(start, end))
        pieces.sort(key=lambda section: section.range.start)
        new = list(merged(pieces))
        part = diff(old, new)
        if part:
            parts.append((first, last, new))
            removed += part.removed
            added += part.added
            altered += part.altered
    if not parts:
        return view, ViewDiff()
    return view.replaced(parts), ViewDiff(tuple(removed), tuple(added), tuple(altered))


def _widened(view: FlatView, start: int, end: int) -> tuple[int, int]:
    """Return the window with the unmergeable sections at its borders in it, as those cannot be joined again."""
    index = view.index(start - 1) if start else 0
    wide_start, wide_end = start, end
    while index < len(view) and (section := view[index]).range.start <= end:
        if section.unmergeable and section.range.end >= start:
            wide_start = min(wide_start, section.range.start)
            wide_end = max(wide_end, section.range.end)
        if section.range.end > end:
            break
        # Only the first and the last can reach over the borders.
        index = max(index + 1, view.index(end - 1))
    return wide_start, wide_end


def _joined(windows: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the windows ascending, those that meet as one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(windows):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        elif start < end:
            joined.append((start, end))
    return joined


def _groups(view: FlatView, windows: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Yield the runs of sections that touch windows, ascending and apart: `(first, last, windows)`."""
    group: list[tuple[int, int]] = []
    group_first = group_last = 0
    for start, end in windows:
        # A section that ends where the window begins, or begins where it ends, may be continued by what is painted.
        first = view.index(start - 1) if start else 0
        last = view.first_from(end + 1)
        if group and first >= group_last:
            yield group_first, group_last, group
            group = []
        if not group:
            group_first = first
        group.append((start, end))
        group_last = last
    if group:
        yield group_first, group_last, group


def _outside(
    sections: Iterable[MemoryRegionSection], windows: Sequence[tuple[int, int]]
) -> Iterator[MemoryRegionSection]:
    """Yield the parts of `sections` that no window covers; both ascend. O(sections + windows)."""
    passed = 0
    for section in sections:
        at, stop = section.range.start, section.range.end
        while passed < len(windows) and windows[passed][1] <= at:
            passed += 1
        for index in range(passed, len(windows)):
            start, end = windows[index]
            if start >= stop:
                break
            if at < start:
                yield section.part(at, start)
            at = end
        if at == section.range.start:
            yield section
        elif at < stop:
            yield section.part(at, stop)

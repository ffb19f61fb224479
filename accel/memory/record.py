"""Recording: what listeners hear of a change before anything happens, in the order that `listener` states.

Layer: below `commit`, whose first phase it is; above `splice`, whose differences it reads out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from accel.address import AddressRange
from accel.memory.flat_view import FlatView, MemoryRegionSection
from accel.memory.ioeventfd import IoEventFd
from accel.memory.listener import MemoryListener, call, falling, overrides
from accel.memory.splice import ViewDiff

if TYPE_CHECKING:
    from accel.memory.address_space import AddressSpace


@frozen
class SpaceChange:
    """One space's part in a commit.

    Attributes:
        space: The space.
        new: The view that it gets.
        delta: What that changes.
        listeners: Who is told, from low priority to high.
        publish: Whether the space gets the view, or the listeners only hear of it.
    """

    space: AddressSpace
    new: FlatView
    delta: ViewDiff
    listeners: tuple[MemoryListener, ...]
    publish: bool = True


def record(change: SpaceChange) -> None:
    """Tell the listeners of `change` what goes and what comes.

    Complexity: O(size of the change); with a listener that overrides ``region_nop``, O(size of the view).

    Raises:
        AccelError: A listener refused, by name and callback; the others have heard a part.
    """
    down, up = falling(change.listeners), change.listeners
    # Few sections have any, and looking for them in order takes longer than all else here.
    has_io = change.delta.has_io
    for section, item in _gone_io(change.delta) if has_io else ():
        _tell_io(down, "del", section, item)
    deleting = [listener for listener in down if overrides(listener, "region_del")]
    for section in change.delta.removed:
        for listener in deleting:
            call(listener, "region_del", listener.region_del, section)
    _record_sections(change)
    for section, item in _come_io(change.delta) if has_io else ():
        _tell_io(up, "add", section, item)


def _record_sections(change: SpaceChange) -> None:
    """Tell of what comes and what stays."""
    delta = change.delta
    adding = [listener for listener in change.listeners if overrides(listener, "region_add")]
    staying = [listener for listener in change.listeners if overrides(listener, "region_nop")]
    before = {id(new): old for old, new in delta.altered}
    added = set(map(id, delta.added))
    for section in change.new if staying else _ascending((*delta.added, *(new for _, new in delta.altered))):
        if id(section) in added:
            for listener in adding:
                call(listener, "region_add", listener.region_add, section)
            continue
        for listener in staying:
            call(listener, "region_nop", listener.region_nop, section)
        old = before.get(id(section))
        if old is not None:
            _record_log(change.listeners, section, old.log_mask, section.log_mask)


def _record_log(listeners: Sequence[MemoryListener], section: MemoryRegionSection, old: int, new: int) -> None:
    if new & ~old:
        for listener in listeners:
            call(listener, "log_start", listener.log_start, section, old, new)
    if old & ~new:
        for listener in falling(listeners):
            call(listener, "log_stop", listener.log_stop, section, old, new)


# queued ranges and ioeventfds

_IoItem = AddressRange | IoEventFd


def _tell_io(
    listeners: Sequence[MemoryListener], what: Literal["add", "del"], section: MemoryRegionSection, item: _IoItem
) -> None:
    step = f"{'eventfd' if isinstance(item, IoEventFd) else 'coalesced_io'}_{what}"
    for listener in listeners:
        if overrides(listener, step):
            callback: Callable[[MemoryRegionSection, Any], None] = getattr(listener, step)
            call(listener, step, callback, section, item)


def _gone_io(delta: ViewDiff) -> Iterator[tuple[MemoryRegionSection, _IoItem]]:
    """Yield the ioeventfds and queued ranges that go: section by section, ascending."""
    after = {id(old): new for old, new in delta.altered}
    for section in _with_io((*delta.removed, *(old for old, _ in delta.altered))):
        new = after.get(id(section))
        yield from _without(section, section.eventfds_at(), () if new is None else new.eventfds_at())
        yield from _without(section, section.coalesced_ranges(), () if new is None else new.coalesced_ranges())


def _come_io(delta: ViewDiff) -> Iterator[tuple[MemoryRegionSection, _IoItem]]:
    """Yield the queued ranges and ioeventfds that come, in the same order."""
    before = {id(new): old for old, new in delta.altered}
    for section in _with_io((*delta.added, *(new for _, new in delta.altered))):
        old = before.get(id(section))
        yield from _without(section, section.coalesced_ranges(), () if old is None else old.coalesced_ranges())
        yield from _without(section, section.eventfds_at(), () if old is None else old.eventfds_at())


def _with_io(sections: Iterable[MemoryRegionSection]) -> list[MemoryRegionSection]:
    return _ascending(section for section in sections if section.coalesced or section.eventfds)


def _without(
    section: MemoryRegionSection, here: Sequence[_IoItem], there: Iterable[_IoItem]
) -> Iterator[tuple[MemoryRegionSection, _IoItem]]:
    others = set(there)
    for item in here:
        if item not in others:
            yield section, item


def _ascending(sections: Iterable[MemoryRegionSection]) -> list[MemoryRegionSection]:
    return sorted(sections, key=lambda section: section.range.start)

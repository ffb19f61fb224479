"""One commit: its phases, from telling the listeners to publishing the views.

record → prepare → hold → apply → publish → resume → observe, as ``docs/explanation/architecture.md`` draws it. Up to
prepare nothing has changed, and whoever raises refuses the change. A step that fails in apply is undone with all
before it under the same hold. Layer: below `transaction`, which decides when there is something to commit, and takes
the tree back if this raises.

An interrupt (Ctrl-C) counts as a refusal until the first step is applied; from there to the last observer it waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from accel.address import AddressRange
from accel.blocker import AccelBlocker
from accel.errors import MapLostError
from accel.interrupts import interrupts_held_back
from accel.memory.flat_view import FlatView, MemoryRegionSection
from accel.memory.ioeventfd import IoEventFd
from accel.memory.listener import MemoryListener, Update, falling, name_listener, overrides, rising, tell
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


class Commit:
    """A commit that is under way; used once, under the big lock.

    Args:
        changes: What changes.
        blocker: Holds the vCPUs.

    Attributes:
        listeners: All who are told, each once, from low priority to high.
    """

    def __init__(self, changes: Sequence[SpaceChange], blocker: AccelBlocker) -> None:
        self.listeners = rising(one for change in changes for one in change.listeners)
        self._changes = changes
        self._blocker = blocker
        # What runs now, for the error of whoever raises.
        self._name = ""
        self._step = ""

    def run(
        self, *, hold: Literal["always", "asked", "never"], timeout: float, in_force: Callable[[bool], None]
    ) -> None:
        """Do it all.

        Args:
            hold: Whether to hold the vCPUs: always, if a listener asks for it, or never.
            timeout: Longest wait for them, in seconds.
            in_force: Called once nothing can be taken back any more, before the vCPUs go on; is given whether they
                were held.

        Raises:
            AccelError: Refused or failed; everything is as before.
            ListenerError: The same, where a listener raised something that is no AccelError.
            MapLostError: What failed could not be undone.
        """
        done = False
        try:
            with self._naming():
                self._record()
                updates = [(one, update) for one in self.listeners if (update := self._prepare(one)) is not None]
            with interrupts_held_back():
                self._apply_held(updates, hold, timeout, in_force)
                done = True
                for listener in self.listeners:
                    tell(listener, "commit", listener.commit)
        except BaseException:
            if not done:
                with interrupts_held_back():
                    for listener in falling(self.listeners):
                        tell(listener, "abort", listener.abort)
            raise

    # record and prepare: nothing has changed yet

    def _record(self) -> None:
        for listener in self.listeners:
            self._at(listener, "begin")
            listener.begin()
        for change in self._changes:
            self._record_deletions(change)
            self._record_additions(change)

    def _record_deletions(self, change: SpaceChange) -> None:
        down = falling(change.listeners)
        for section, item in _gone_io(change.delta):
            self._tell_io(down, "del", section, item)
        told = [listener for listener in down if overrides(listener, "region_del")]
        for section in change.delta.removed:
            for listener in told:
                self._at(listener, "region_del")
                listener.region_del(section)

    def _record_additions(self, change: SpaceChange) -> None:
        delta, up = change.delta, change.listeners
        adding = [listener for listener in up if overrides(listener, "region_add")]
        staying = [listener for listener in up if overrides(listener, "region_nop")]
        before = {id(new): old for old, new in delta.altered}
        added = set(map(id, delta.added))
        for section in change.new if staying else _ascending((*delta.added, *(new for _, new in delta.altered))):
            if id(section) in added:
                for listener in adding:
                    self._at(listener, "region_add")
                    listener.region_add(section)
                continue
            for listener in staying:
                self._at(listener, "region_nop")
                listener.region_nop(section)
            old = before.get(id(section))
            if old is not None and old.log_mask != section.log_mask:
                self._record_log(change, section, old.log_mask, section.log_mask)
        for section, item in _come_io(delta):
            self._tell_io(up, "add", section, item)

    def _tell_io(
        self,
        listeners: Sequence[MemoryListener],
        what: Literal["add", "del"],
        section: MemoryRegionSection,
        item: AddressRange | IoEventFd,
    ) -> None:
        kind = "eventfd" if isinstance(item, IoEventFd) else "coalesced_io"
        for listener in listeners:
            self._at(listener, f"{kind}_{what}")
            getattr(listener, self._step)(section, item)

    def _record_log(self, change: SpaceChange, section: MemoryRegionSection, old: int, new: int) -> None:
        if new & ~old:
            for listener in change.listeners:
                self._at(listener, "log_start")
                listener.log_start(section, old, new)
        if old & ~new:
            for listener in falling(change.listeners):
                self._at(listener, "log_stop")
                listener.log_stop(section, old, new)

    def _prepare(self, listener: MemoryListener) -> Update | None:
        self._at(listener, "prepare")
        return listener.prepare()

    # hold, apply, publish and resume

    def _apply_held(
        self,
        updates: Sequence[tuple[MemoryListener, Update]],
        hold: Literal["always", "asked", "never"],
        timeout: float,
        in_force: Callable[[bool], None],
    ) -> None:
        held = hold == "always" or (hold == "asked" and any(update.needs_hold for _, update in updates))
        with ExitStack() as stack:
            for lock in {id(update.lock): update.lock for _, update in updates if update.lock}.values():
                stack.enter_context(lock)
            if held:
                stack.enter_context(self._blocker.inhibit(timeout))
            with self._generations():
                with self._naming():
                    self._apply(updates)
                for change in self._changes:
                    if change.publish:
                        change.space.view = change.new
            in_force(held)

    @contextmanager
    def _generations(self) -> Iterator[None]:
        """Tell the histories of the map when the change begins and when it is over, taken back or not."""
        recorded = [
            (history, change.space.view, change.new)
            for change in self._changes
            if change.publish and (history := change.space.history) is not None
        ]
        for history, _, new in recorded:
            history.start(new)
        try:
            yield
        except BaseException:
            for history, old, _ in recorded:
                history.start(old)
            raise
        finally:
            for history, _, _ in recorded:
                history.complete(gate.entered for gate in self._blocker.gates)

    def _apply(self, updates: Sequence[tuple[MemoryListener, Update]]) -> None:
        begun: list[tuple[MemoryListener, Update]] = []
        try:
            for listener, update in updates:
                begun.append((listener, update))
                self._at(listener, "apply")
                update.apply()
        except BaseException:
            try:
                while begun:
                    listener, update = begun[-1]
                    update.undo()
                    begun.pop()
            except BaseException as error:
                lost = error if isinstance(error, MapLostError) else _map_lost(error)
                lost.listener, lost.step = begun[-1][0].name, "undo"
                self._blocker.poison(lost)
                raise lost from error
            raise

    # who did it

    def _at(self, listener: MemoryListener, step: str) -> None:
        self._name, self._step = listener.name, step

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Make the error of a listener say whose it is."""
        self._name = ""
        try:
            yield
        except MapLostError:
            raise
        except Exception as error:
            if not self._name:
                raise
            named = name_listener(error, self._name, self._step)
            if named is error:
                raise
            raise named from error


def _ascending(sections: Iterable[MemoryRegionSection]) -> list[MemoryRegionSection]:
    return sorted(sections, key=lambda section: section.range.start)


_IoItem = tuple[MemoryRegionSection, AddressRange | IoEventFd]


def _gone_io(delta: ViewDiff) -> Iterator[_IoItem]:
    """Yield the ioeventfds and queued ranges that go: section by section, ascending."""
    after = {id(old): new for old, new in delta.altered}
    for section in _ascending((*delta.removed, *(old for old, _ in delta.altered))):
        new = after.get(id(section))
        yield from _io_without(section, section.eventfds_at(), () if new is None else new.eventfds_at())
        yield from _io_without(section, section.coalesced_ranges(), () if new is None else new.coalesced_ranges())


def _come_io(delta: ViewDiff) -> Iterator[_IoItem]:
    """Yield the queued ranges and ioeventfds that come, in the same order."""
    before = {id(new): old for old, new in delta.altered}
    for section in _ascending((*delta.added, *(new for _, new in delta.altered))):
        old = before.get(id(section))
        yield from _io_without(section, section.coalesced_ranges(), () if old is None else old.coalesced_ranges())
        yield from _io_without(section, section.eventfds_at(), () if old is None else old.eventfds_at())


def _io_without(
    section: MemoryRegionSection, here: Sequence[AddressRange | IoEventFd], there: Sequence[AddressRange | IoEventFd]
) -> Iterator[_IoItem]:
    for item in here:
        if item not in there:
            yield section, item


def _map_lost(error: BaseException) -> MapLostError:
    return MapLostError(f"a failed memory change could not be undone ({error!r})")

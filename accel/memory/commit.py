"""One commit: its phases, from telling the listeners to publishing the views.

record → prepare → hold → apply → publish → resume → observe, as ``docs/explanation/architecture.md`` draws it. Up to
prepare nothing has changed, and whoever raises refuses the change. A step that fails in apply is undone with all
before it under the same hold. After the last update nothing can fail any more, so that one alone may do without a hold
what guests must not see undone (`Update.needs_hold_unless_last`).

Layer: below `transaction`, which decides when there is something to commit, and takes the tree back if this raises.

Whoever runs it holds interrupts back (`accel.interrupts`), so that no listener is torn out of a callback. A Ctrl-C
that came while they were told, or comes while the vCPUs are waited for, counts as a refusal; later ones wait until
the last observer has heard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Literal

from accel.blocker import AccelBlocker
from accel.errors import MapLostError
from accel.interrupts import deliver_interrupts
from accel.memory.flat_view import FlatView, MemoryRegionSection
from accel.memory.listener import MemoryListener, Update, blame, call, falling, tell_all
from accel.memory.record import SpaceChange, record
from accel.memory.served import ServedHistory

Hold = Literal["always", "changes", "asked", "never"]


class Commit:
    """A commit that is under way; used once, under the big lock.

    Args:
        changes: What changes, space by space.
        listeners: All who are told, each once, from low priority to high.
        blocker: Holds the vCPUs.
        hold_vcpus: Holds them instead, for the duration of a context: an accelerator's own way.

    Attributes:
        in_force: Whether the change was made; nothing takes it back then, whatever `run` raises.
        lost: Whether the accelerator's map is known to nobody any more, as an undo failed.
        held: Whether the vCPUs were held.
    """

    def __init__(
        self,
        changes: Sequence[SpaceChange],
        listeners: Sequence[MemoryListener],
        blocker: AccelBlocker,
        hold_vcpus: Callable[[float], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.in_force = False
        self.lost = False
        self.held = False
        self._changes = changes
        self._listeners = listeners
        self._blocker = blocker
        self._hold_vcpus = hold_vcpus or blocker.inhibit
        # Who heard, or may have heard, that it begins.
        self._begun: list[MemoryListener] = []

    @property
    def added(self) -> list[MemoryRegionSection]:
        """Sections that come into a published view."""
        return [section for change in self._published for section in change.delta.added]

    @property
    def removed(self) -> list[MemoryRegionSection]:
        """Sections that go out of one."""
        return [section for change in self._published for section in change.delta.removed]

    @property
    def _published(self) -> list[SpaceChange]:
        return [change for change in self._changes if change.publish]

    def run(self, hold: Hold, timeout: float) -> None:
        """Do it all.

        Args:
            hold: Whether to hold the vCPUs: always, if a listener changes anything, if one asks for it, or never.
            timeout: Longest wait for them, in seconds.

        Raises:
            AccelError: Refused or failed; everything is as before.
            ListenerError: The same, where a listener raised something that is no AccelError.
            MapLostError: What failed could not be undone.
        """
        try:
            updates = self._plan()
            deliver_interrupts()
            self._apply_held(updates, hold, timeout)
        finally:
            if self.in_force:
                tell_all(self._listeners, "commit")
            else:
                tell_all(falling(self._begun), "abort")

    # record and prepare: nothing has changed yet

    def _plan(self) -> list[tuple[MemoryListener, Update]]:
        for listener in self._listeners:
            self._begun.append(listener)
            call(listener, "begin", listener.begin)
        for change in self._changes:
            record(change)
        plans = [(one, call(one, "prepare", one.prepare)) for one in self._listeners]
        return [(listener, update) for listener, update in plans if update is not None]

    # hold, apply, publish and resume

    def _apply_held(self, updates: Sequence[tuple[MemoryListener, Update]], hold: Hold, timeout: float) -> None:
        self.held = hold == "always" or (hold == "changes" and any(not update.watches for _, update in updates))
        self.held |= hold == "asked" and _asks(updates)
        # Worked out before the hold, as all that can be: the guest stands still meanwhile.
        published = self._published
        recorded = [(history, change.new) for change in published if (history := change.space.history) is not None]
        with ExitStack() as stack:
            for lock in {id(update.lock): update.lock for _, update in updates if update.lock}.values():
                stack.enter_context(lock)
            if self.held:
                with self._hold_vcpus(timeout):
                    self._make(updates, published, recorded)
            else:
                self._make(updates, published, recorded)

    def _make(
        self,
        updates: Sequence[tuple[MemoryListener, Update]],
        published: Sequence[SpaceChange],
        recorded: Sequence[tuple[ServedHistory, FlatView]],
    ) -> None:
        """Apply and publish; tell the histories when the change begins, and when it is over or was taken back."""
        for history, new in recorded:
            history.start(new)
        try:
            self._apply(updates)
            for change in published:
                change.space.view = change.new
            self.in_force = True
        except BaseException:
            for history, _ in recorded:
                history.take_back()
            raise
        finally:
            for history, _ in recorded:
                history.complete([gate.entered for gate in self._blocker.gates])

    def _apply(self, updates: Sequence[tuple[MemoryListener, Update]]) -> None:
        begun: list[tuple[MemoryListener, Update]] = []
        try:
            for listener, update in updates:
                begun.append((listener, update))
                call(listener, "apply", update.apply)
        except BaseException as error:
            lost = _undo(begun)
            if lost is None:
                if not isinstance(error, MapLostError):
                    raise
                # It says itself that it does not know what it did.
                lost = error
            self.lost = True
            self._blocker.poison(lost)
            if lost is error:
                raise
            raise lost from lost.__cause__


def _asks(updates: Sequence[tuple[MemoryListener, Update]]) -> bool:
    """Return whether guests could see half of `updates` come or go; for all but the last others may fail later."""
    return any(update.needs_hold for _, update in updates) or any(
        update.needs_hold_unless_last for _, update in updates[:-1]
    )


def _undo(begun: Sequence[tuple[MemoryListener, Update]]) -> MapLostError | None:
    """Take back all that was begun, newest first; return why that is not known to have worked."""
    lost = None
    for listener, update in reversed(begun):
        # One that fails is no reason to leave what others did in place.
        try:
            update.undo()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the map is lost
            if lost is None:
                lost = error if isinstance(error, MapLostError) else _map_lost(error)
                blame(listener, "undo", lost)
    return lost


def _map_lost(error: BaseException) -> MapLostError:
    lost = MapLostError(f"a failed memory change could not be undone ({error!r})")
    lost.__cause__ = error
    return lost

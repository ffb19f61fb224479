"""Carrying out a `SlotPlan`: call by call, or as one list where the accelerator changes all its slots at once.

Either way no bit of a dirty log is lost, and what fails is taken back. Layer: above `slot_plan`, which decides what
is to be done; below the accelerators, which say how one slot is created, deleted and toggled.

As a list, nobody needs to be held for a range that is deleted and added back: a guest sees the slots before or those
after. A log that goes still needs a hold, since its bits are read by a call of their own before the list; and so does
whatever the list deletes, if another update of the commit may fail and bring it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from accel.errors import AccelError, MapLostError
from accel.locks import Lock
from accel.memory.listener import Update
from accel.memory.slot_plan import Slot, SlotPlan


class SlotUpdate(Update):
    """Carries out a `SlotPlan`, undone in reverse. No bit of a dirty log is lost on either way.

    Before a log goes, its bits are collected. What is taken back after a failure may have been written meanwhile, if
    nobody was held: there all pages of a created slot that logs count as dirty.

    Args:
        plan: What to do.
        create: Creates a slot in the accelerator; raises MemorySlotError.
        delete: Deletes it; raises MemorySlotError.
        present: Describes the slots that are there, for a lost map.
        lock: The listener's slots lock.
        toggle: Lets a slot (as it is) log or not log any more (as it is to be); raises MemorySlotError. None for an
            accelerator that marks each write in `Slot.log` by itself and need not be told.
        collect: Merges what the accelerator noted for a slot into `Slot.log`; raises BackendError. None as above.
        at_once: Does all of a plan in one step that guests see whole or not at all, or raises and has done nothing;
            `create`, `delete` and `toggle` are not called then. None for an accelerator without such a call.
    """

    def __init__(
        self,
        plan: SlotPlan,
        create: Callable[[Slot], None],
        delete: Callable[[Slot], None],
        present: Callable[[], Iterable[Slot]],
        lock: Lock,
        *,
        toggle: Callable[[Slot, Slot], None] | None = None,
        collect: Callable[[Slot], None] | None = None,
        at_once: Callable[[SlotPlan], None] | None = None,
    ) -> None:
        self.needs_hold = plan.needs_hold if at_once is None else plan.ends_log
        self.needs_hold_unless_last = plan.needs_hold_unless_last
        self.lock = lock
        self._plan = plan
        self._create = create
        self._delete = delete
        self._present = present
        self._toggle = toggle
        self._collect = collect
        self._at_once = at_once
        self._done: list[Callable[[], None]] = []

    def apply(self) -> None:
        """Toggle, then delete and create in the plan's order; stops at the first step that fails."""
        if self._at_once is not None:
            self._apply_at_once(self._at_once)
            return
        if self._toggle is not None:
            for old, new in self._plan.toggles:
                if new.log is None:
                    self._keep_bits(old)
                self._toggle(old, new)
                self._done.append(partial(self._toggle, new, old))
        if self._plan.creates_first:
            self._make_creates()
            self._make_deletes()
        else:
            self._make_deletes()
            self._make_creates()

    def undo(self) -> None:
        """Take back the steps that were made. Raises MapLostError if one cannot be."""
        while self._done:
            try:
                self._done.pop()()
            except AccelError as error:
                problem = f"a failed memory change could not be undone ({error})"
                raise MapLostError(problem, map(str, self._present())) from error

    def _make_deletes(self) -> None:
        for slot in self._plan.deletes:
            self._keep_bits(slot)
            self._delete(slot)
            self._done.append(partial(self._create, slot))

    def _make_creates(self) -> None:
        for slot in self._plan.creates:
            self._create(slot)
            self._done.append(partial(self._take_back, slot))

    def _keep_bits(self, slot: Slot) -> None:
        if slot.log is not None and self._collect is not None:
            self._collect(slot)

    def _take_back(self, slot: Slot) -> None:
        self._delete(slot)
        self._note_unseen(slot)

    def _note_unseen(self, slot: Slot) -> None:
        """Mark what may have been written to a slot that went before anybody read its log."""
        if slot.log is not None and not self.needs_hold:
            slot.log.mark(slot.offset, slot.size)

    def _apply_at_once(self, at_once: Callable[[SlotPlan], None]) -> None:
        for slot in (*self._plan.deletes, *(old for old, new in self._plan.toggles if new.log is None)):
            self._keep_bits(slot)
        at_once(self._plan)
        self._done.append(partial(self._take_back_at_once, at_once))

    def _take_back_at_once(self, at_once: Callable[[SlotPlan], None]) -> None:
        at_once(self._plan.inverse)
        for slot in self._plan.creates:
            self._note_unseen(slot)

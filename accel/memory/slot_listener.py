"""The memory listener of every accelerator that maps RAM in slots; a backend brings its table of slots.

`SlotListener` does what such accelerators have in common: it notes what goes and what comes, plans the steps from the
slots that there are to those that there should be, refuses what the accelerator cannot have, and hands the transaction
an update that is undone in reverse if a step fails. `SlotTable` is what is left to a backend: to find slots by
address, and to create, delete and toggle one and read its log.

A backend that answers other accesses by itself, such as queued writes and doorbells, does so in the same transaction:
it names a listener for those as a base class after this one. All callbacks here pass on to the next class::

    class MyListener(SlotListener, MyIoListener): ...

Its `prepare` then comes in by `SlotListener.prepare_io`. It has to forget what it noted in `begin`; `commit` and
`abort` call that one alone.

Layer: above `slot_update` and `slot_merge`, which carry out and plan; below the accelerators, which are not known here.
Source: QEMU commit f39b7d2b96, which keeps two ordered lists per transaction, for the idea of those only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from attrs import frozen
from sortedcontainers import SortedKeyList

from accel.address import ADDRESS_SPACE_SIZE, PAGE_SIZE, AddressRange
from accel.errors import CapabilityError, MemorySlotError
from accel.locks import Lock
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.listener import PRIORITY_ACCEL, MemoryListener, Update, UpdateInTurn
from accel.memory.slot_merge import SlotPlanner
from accel.memory.slot_plan import Policy, Slot, SlotPlan
from accel.memory.slot_update import SlotUpdate


class SlotTable(Protocol):
    """The slots that an accelerator has: `len` counts them, iterating yields all of them.

    All is called under the big lock, and what changes a slot under `lock` too; vCPUs may run, unless they are held.
    A call that raises must have changed nothing, and keep nothing for the slot that did not come: the update takes
    back only the calls that returned. Whatever it raises stops the change; a MemorySlotError says most.
    """

    @property
    def lock(self) -> Lock:
        """The slots lock, of class `accel.locks.SLOTS_LOCK`: held from before the hold to after the last call."""
        ...

    @property
    def max_slots(self) -> int:
        """How many there can be. Fragments are merged rather than exceed it."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Slot]: ...

    def within(self, window: AddressRange) -> Iterable[Slot]:
        """Return the slots that begin in `window`, ascending; no slot spans its end. O(log n + slots found)."""
        ...

    def create(self, slot: Slot) -> None:
        """Map `slot`. Raises MemorySlotError."""
        ...

    def delete(self, slot: Slot) -> None:
        """Unmap `slot`, which is there. Its log was collected. Raises MemorySlotError."""
        ...

    def toggle(self, old: Slot, new: Slot) -> None:
        """Let `old` be `new`, which differs in `log` only; guests run on. Raises MemorySlotError.

        It may differ in `readonly` too, if the rules say that slots can be protected.
        """
        ...

    def collect(self, slot: Slot) -> None:
        """Merge the pages written since the last time into `slot.log`, which is not None, and note them anew.

        Nothing to do where each write is marked there right away. Raises BackendError; nothing is lost then.
        """
        ...

    def full(self, slot: Slot, excess: int) -> MemorySlotError:
        """Return the error for a change that needs `excess` slots more than `max_slots`; `slot` is its last one."""
        ...


@frozen(kw_only=True)
class SlotRules:
    """What the slots of an accelerator can be.

    Attributes:
        owner: Who refuses, at the beginning of an error, such as "this accelerator".
        page_size: Granule of a mapping, bytes.
        max_slot_size: Most bytes of one slot.
        host_page_size: Granule of the host addresses behind a mapping; `page_size` where it is None.
        readonly: Whether writes to a slot can be made to exit.
        protects: Whether a slot can become read-only, or writable, while it stays; no address is missing meanwhile.
        dirty_log: Whether a slot can note the pages that the guest writes.
        dirty_rings: Whether they are noted in rings of the vCPUs; see `accel.memory.dirty_rings`. `SlotTable.collect`
            empties the rings then, and is called with the vCPUs out of the guest.
    """

    owner: str = "this accelerator"
    page_size: int = PAGE_SIZE
    max_slot_size: int = ADDRESS_SPACE_SIZE
    host_page_size: int | None = None
    readonly: bool = True
    protects: bool = False
    dirty_log: bool = True
    dirty_rings: bool = False


class SlotListener(MemoryListener):
    """Maps RAM and ROM by a table of slots. State is guarded by the big lock.

    Args:
        slots: The table.
        rules: What its slots can be.
        policy: ``least`` or ``replace``; see `accel.memory.slot_plan`.
        at_once: Carries out a whole plan in one step; see `SlotUpdate`. None for an accelerator without such a call.

    Attributes:
        slots: The table.
    """

    name = "slots"
    priority = PRIORITY_ACCEL

    def __init__(
        self,
        slots: SlotTable,
        rules: SlotRules,
        policy: Policy,
        *,
        at_once: Callable[[SlotPlan], None] | None = None,
    ) -> None:
        self.slots = slots
        self.log_sync_needs_hold = rules.dirty_rings
        self._rules = rules
        self._at_once = at_once
        self._planner = SlotPlanner(
            slots.within,
            slots.__len__,
            policy=policy,
            page_size=rules.page_size,
            slot_count=slots.max_slots,
            max_slot_size=rules.max_slot_size,
            host_page_size=rules.host_page_size,
            protects=rules.protects,
        )
        self._deletes = SortedKeyList(key=_start)
        self._adds = SortedKeyList(key=_start)
        # Sections that stay with another log mask.
        self._logs: list[MemoryRegionSection] = []

    # what the transaction tells

    def begin(self) -> None:
        """Start with empty lists."""
        super().begin()
        self._deletes.clear()
        self._adds.clear()
        self._logs.clear()

    def region_del(self, section: MemoryRegionSection) -> None:
        """Note a section that goes. O(log n)."""
        if section.is_ram:
            self._deletes.add(section)

    def region_add(self, section: MemoryRegionSection) -> None:
        """Note a section that comes. O(log n)."""
        if section.is_ram:
            self._adds.add(section)

    def log_start(self, section: MemoryRegionSection, old: int, new: int) -> None:
        """Note a section that stays, whether or not it logs already."""
        self._logs.append(section)

    def log_stop(self, section: MemoryRegionSection, old: int, new: int) -> None:
        """Note a section that stays, whether or not it logs on."""
        self._logs.append(section)

    def prepare(self) -> Update | None:
        """Plan the slots.

        Raises:
            CapabilityError: Read-only memory or a dirty log is wanted and the accelerator has none.
            MemorySlotError: There would be more slots than there can be, even with all fragments merged.
        """
        io, plan = self.prepare_io(), self._plan()
        if not plan:
            return io
        slots = self.slots
        update = SlotUpdate(
            plan,
            slots.create,
            slots.delete,
            lambda: slots,
            slots.lock,
            toggle=slots.toggle,
            collect=slots.collect,
            at_once=self._at_once,
        )
        return update if io is None else UpdateInTurn(io, update)

    def prepare_io(self) -> Update | None:
        """Return what else changes in the same transaction, before the slots; undone after them. It has no lock.

        Here it is what the next base class prepares, if there is one that does.
        """
        return super().prepare()

    def commit(self) -> None:
        """Note where the slots of a section are more than one, and let go of what was noted."""
        self._planner.settle()
        self.begin()

    def abort(self) -> None:
        """Let go of what was noted."""
        self.begin()

    @property
    def figures(self) -> dict[str, float]:
        """``slots``, ``fragments`` and ``slot_calls``; see `SlotPlanner.figures`. O(1) if the table's `len` is."""
        return self._planner.figures

    # dirty pages

    def log_sync(self, section: MemoryRegionSection) -> None:
        """Merge the pages of `section` that the guest wrote into its log.

        No gate is passed and no inhibit waits for this call: it is made under the big lock, which whoever inhibits
        holds, so there is no other thread's inhibit in force. It is no read of the table by a change under way for
        the same reason. vCPUs may run, unless there are dirty rings: each page that is written meanwhile is in this
        log or in the next.
        """
        for slot in self.slots.within(section.range):
            if slot.log is not None:
                self.slots.collect(slot)

    def log_global_start(self) -> None:
        """Agree, if slots can log; the sections' masks follow in a transaction. Raises CapabilityError."""
        if not self._rules.dirty_log:
            raise CapabilityError(f"{self._rules.owner} keeps no log of written pages, so all memory cannot be logged")

    # inside

    def _plan(self) -> SlotPlan:
        plan = self._planner.plan(self._deletes, self._adds, self._logs)
        rules = self._rules
        if not (rules.readonly and rules.dirty_log):
            for slot in (*plan.creates, *(new for _, new in plan.toggles)):
                self._check(slot)
        excess = self._planner.excess(plan)
        if plan.creates and excess > 0:
            raise self.slots.full(plan.creates[-1], excess)
        return plan

    def _check(self, slot: Slot) -> None:
        """Refuse what this accelerator cannot have."""
        rules = self._rules
        if slot.readonly and not rules.readonly:
            raise CapabilityError(
                f"{rules.owner} has no read-only slots, which ROM at {slot.gpa:#x} needs; use RAM there"
            )
        if slot.log is not None and not rules.dirty_log:
            raise CapabilityError(
                f"{rules.owner} keeps no log of written pages, which RAM at {slot.gpa:#x} needs; do not log it"
            )


def _start(section: MemoryRegionSection) -> int:
    return section.range.start

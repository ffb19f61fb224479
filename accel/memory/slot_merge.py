"""When slots run short: the fragments that growth left behind are merged, as part of the change that needs room.

Least change leaves alone what stays right, so a section that grows in steps ends up in several slots. Each is a
*fragment*; those that one slot could map are a *run*. Fragments cost nothing but slots, so they are left until a change
would need more slots than there are. Then its plan also replaces stretches of neighbours, inside runs, by one slot
each: they are deleted, the merged one is created, and the plan needs a hold. Nothing ever spans two sections, since
they come and go one by one.

Which stretches: those that cost the fewest deletes and creates. Let a stretch take in `c` slots that the plan creates
anyway and `e` that exist. It saves `c + e - 1` slots and costs `e` deletes and one create more, `c` creates less. So
over all stretches, cost = slots saved + 2 × stretches - 2 × created slots taken in, and it follows:

- To take in everything between two created slots saves a create on top; short gaps first. One gap more than needed
  may be cheaper than to stop before it.
- A stretch that begins at a created slot costs one call for each slot saved.
- A stretch of existing slots only costs two calls more, so the longest runs come first and the last is cut.

Source: QEMU has no such thing and stops when its slots are used up. Layer: above `slot_plan`; below the accelerators.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from attrs import define, evolve
from sortedcontainers import SortedDict, SortedList

from accel.address import ADDRESS_SPACE_SIZE, AddressRange
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.slot_plan import Policy, Slot, SlotPlan, plan_slots, section_slots, section_toggles

#: The slots of one run, ascending: those that exist as they are now, and those that a plan creates.
Run = Sequence[Slot]


class SlotPlanner:
    """Plans the changes of one slot table, and knows what in it is in fragments. Guarded by the big lock.

    Args:
        within: Returns the slots that begin in a window, ascending; O(log n + slots found).
        count: Returns how many slots there are.
        policy: ``least`` or ``replace``; see `accel.memory.slot_plan`.
        page_size: Granule of a mapping, bytes.
        slot_count: Greatest number of slots.
        max_slot_size: Most bytes of one slot.
        host_page_size: As for `section_slots`.
        protects: As for `plan_slots`.
    """

    def __init__(
        self,
        within: Callable[[AddressRange], Iterable[Slot]],
        count: Callable[[], int],
        *,
        policy: Policy,
        page_size: int,
        slot_count: int,
        max_slot_size: int = ADDRESS_SPACE_SIZE,
        host_page_size: int | None = None,
        protects: bool = False,
    ) -> None:
        self.slot_count = slot_count
        self._within = within
        self._count = count
        self._policy: Policy = policy
        self._page_size = page_size
        self._max_slot_size = max_slot_size
        self._host_page_size = host_page_size
        self._protects = protects
        self._runs = _Runs()
        # What `settle` looks at.
        self._gone: list[AddressRange] = []
        self._touched: list[AddressRange] = []
        self._steps = 0
        self._steps_made = 0

    @property
    def figures(self) -> dict[str, float]:
        """How many slots there are, how many of them merging would save, and the slot calls that were made so far."""
        return {"slots": self._count(), "fragments": self.fragments, "slot_calls": self._steps_made}

    @property
    def fragments(self) -> int:
        """How many slots there are beyond those that the same map needs when it is all merged. O(1)."""
        return self._runs.excess

    def plan(
        self,
        deletes: Iterable[MemoryRegionSection],
        adds: Iterable[MemoryRegionSection],
        logs: Iterable[MemoryRegionSection],
    ) -> SlotPlan:
        """Return the steps of a change; O(slots of the sections named), whatever else there is.

        Args:
            deletes: The sections that go, ascending.
            adds: Those that come, ascending.
            logs: Those that stay with another log mask.

        Returns:
            A plan after which there are at most `slot_count` slots, if that can be: `excess` tells.
        """
        within = self._within
        self._gone = [section.range for section in deletes]
        present = [slot for window in self._gone for slot in within(window)]
        granules = self._page_size, self._max_slot_size, self._host_page_size
        wanted = [slot for section in adds for slot in section_slots(section, *granules)]
        toggles = [toggle for section in logs for toggle in section_toggles(within(section.range), section)]
        free = self.slot_count - self._count()
        plan = plan_slots(present, wanted, self._policy, toggles, free=free, protects=self._protects)
        # Where nothing is kept, each wanted slot is created whole.
        runs = _runs(present, wanted, plan) if len(present) > len(plan.deletes) else []
        self._touched = [AddressRange(run[0].gpa, run[-1].range.end) for run in runs]
        need = self.excess(plan)
        if need > 0:
            plan = merge(plan, runs, self._standing_runs(), need)
        self._steps = len(plan.toggles) + len(plan.deletes) + len(plan.creates)
        return plan

    def excess(self, plan: SlotPlan) -> int:
        """Return by how many slots `plan` would go beyond `slot_count`; 0 or less if it fits."""
        return self._count() + len(plan.creates) - len(plan.deletes) - self.slot_count

    def settle(self) -> None:
        """Note that the last plan is in force; for a listener's `commit`."""
        for window in self._gone:
            self._runs.forget(window)
        for window in self._touched:
            self._runs.note(window, sum(1 for _ in self._within(window)))
        self._steps_made += self._steps
        self._gone, self._touched, self._steps = [], [], 0

    def _standing_runs(self) -> Iterator[Run]:
        """Yield the runs of sections that stay, those of most slots first."""
        gone = {start for window in self._gone for start in self._runs.starts(window)}
        for window in self._runs.longest_first():
            if window.start not in gone:
                self._touched.append(window)
                yield list(self._within(window))


class _Runs:
    """Runs of two slots and more, by place and by length.

    Attributes:
        excess: How many slots fewer there would be if each were one.
    """

    def __init__(self) -> None:
        self.excess = 0
        # Start → (window, number of slots); and (-number, start).
        self._by_start = SortedDict()
        self._by_length = SortedList()

    def starts(self, window: AddressRange) -> list[int]:
        """Return where in `window` runs begin."""
        return list(self._by_start.irange(window.start, window.end, inclusive=(True, False)))

    def longest_first(self) -> Iterator[AddressRange]:
        """Yield all; none may come or go meanwhile."""
        for _, start in self._by_length:
            yield self._by_start[start][0]

    def forget(self, window: AddressRange) -> None:
        """Forget the runs that begin in `window`."""
        for start in self.starts(window):
            _, slots = self._by_start.pop(start)
            self._by_length.remove((-slots, start))
            self.excess -= slots - 1

    def note(self, window: AddressRange, slots: int) -> None:
        """Note that `window` is a run of so many slots, or of one and no run any more."""
        self.forget(window)
        if slots > 1:
            self._by_start[window.start] = (window, slots)
            self._by_length.add((-slots, window.start))
            self.excess += slots - 1


def _runs(present: Sequence[Slot], wanted: Sequence[Slot], plan: SlotPlan) -> list[Run]:
    """Return the slots that are to map each slot of `wanted`, where they are two or more."""
    gone = {slot.gpa for slot in plan.deletes}
    kept = (slot for slot in present if slot.gpa not in gone)
    runs: list[list[Slot]] = []
    index = 0
    for slot in heapq.merge(kept, plan.creates, key=_gpa):
        while wanted[index].range.end <= slot.gpa:
            index += 1
        if slot.gpa == wanted[index].gpa:
            runs.append([])
        runs[-1].append(slot)
    return [run for run in runs if len(run) > 1]


@define(eq=False)
class _Stretch:
    """Slots [first, last) of a run, to become one."""

    run: Run
    first: int
    last: int


def merge(plan: SlotPlan, coming: Iterable[Run], standing: Iterable[Run], need: int) -> SlotPlan:
    """Return `plan` with fragments merged so that it takes `need` slots fewer, at the fewest deletes and creates.

    Args:
        plan: By `plan_slots`.
        coming: The runs of sections that come, after `plan`; no two neighbours in one are both created.
        standing: Those of sections that stay, the longest first; looked at only as far as they are needed.
        need: More than 0.

    Returns:
        `plan` itself if merging everything does not save so many.
    """
    created = {slot.gpa for slot in plan.creates}
    runs = list(coming)
    grown = [run for run in runs if any(slot.gpa in created for slot in run)]
    still = sorted((run for run in runs if all(slot.gpa not in created for slot in run)), key=len, reverse=True)
    stretches, need = _around_created(grown, created, need)
    if need > 0:
        for run in heapq.merge(still, standing, key=len, reverse=True):
            stretches.append(_Stretch(run, 0, min(len(run), need + 1)))
            need -= stretches[-1].last - 1
            if need <= 0:
                break
    return plan if need > 0 else _with_merged(plan, created, stretches)


def _around_created(runs: Iterable[Run], created: set[int], need: int) -> tuple[list[_Stretch], int]:
    """Choose the stretches with created slots; return them, and how many slots are still to be saved elsewhere."""
    chains = [_around_each(run, created) for run in runs]
    gaps = sorted(
        ((right.first - left.last, right) for chain in chains for left, right in pairwise(chain)),
        key=lambda gap: gap[0],
    )
    closed = 0
    for size, _ in gaps:
        # Slot by slot, `need` calls are left to be made; the gap takes `size - 1`.
        if size - 1 >= need:
            break
        need -= size + 1
        closed += 1
    joined = {id(right) for _, right in gaps[:closed]}
    result: list[_Stretch] = []
    for chain in chains:
        first_of_chain = len(result)
        for stretch in chain:
            if id(stretch) in joined:
                result[-1].last = stretch.last
            else:
                result.append(stretch)
        need = _widen(result[first_of_chain:], need)
    return result, need


def _around_each(run: Run, created: set[int]) -> list[_Stretch]:
    return [_Stretch(run, index, index + 1) for index, slot in enumerate(run) if slot.gpa in created]


def _widen(chain: Sequence[_Stretch], need: int) -> int:
    """Let the stretches of one run take in existing slots beside them; return how many are still to be saved."""
    at = 0
    for index, stretch in enumerate(chain):
        end = chain[index + 1].first if index + 1 < len(chain) else len(stretch.run)
        before = max(0, min(need, stretch.first - at))
        after = max(0, min(need - before, end - stretch.last))
        stretch.first -= before
        stretch.last += after
        need -= before + after
        at = stretch.last
    return need


def _with_merged(plan: SlotPlan, created: set[int], stretches: Iterable[_Stretch]) -> SlotPlan:
    toggled = {old.gpa: new for old, new in plan.toggles}
    deletes = list(plan.deletes)
    merged: list[Slot] = []
    absorbed: set[int] = set()
    for stretch in stretches:
        slots = stretch.run[stretch.first : stretch.last]
        if len(slots) > 1:
            absorbed.update(slot.gpa for slot in slots)
            deletes += [slot for slot in slots if slot.gpa not in created]
            first = toggled.get(slots[0].gpa, slots[0])
            merged.append(evolve(first, size=slots[-1].range.end - first.gpa))
    creates = [slot for slot in plan.creates if slot.gpa not in absorbed] + merged
    return SlotPlan(
        tuple(sorted(deletes, key=_gpa)),
        tuple(sorted(creates, key=_gpa)),
        tuple(toggle for toggle in plan.toggles if toggle[0].gpa not in absorbed),
    )


def _gpa(slot: Slot) -> int:
    return slot.gpa

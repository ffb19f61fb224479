"""What guests miss of a change that holds nobody: never what was mapped before, whichever step fails.

Random edits are made once for each of their slot calls, which fails, and in the end without a fault. At each call the
guests look at all tables, if nobody holds them. What they must find is worked out page by page from the maps before and
after, without a look at plans or orders.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.address import PAGE_SIZE, AddressRange
from accel.errors import AccelError, BackendError, MemorySlotError
from accel.memory.dirty import DirtyClient
from accel.memory.listener import PRIORITY_ACCEL, MemoryListener, Update, UpdateInTurn
from accel.memory.region import MemoryRegion
from accel.memory.slot_listener import SlotListener, SlotRules
from accel.memory.slot_plan import Slot

from .conftest import SlotTable, Stage

BASE = 0x10000
VGA = DirtyClient.VGA
SIMPLE, MERGING = ("simple",), ("merging",)

Pages = dict[int, tuple[int, bool]]


class Merging:
    """A table of few slots for the core's listener, on one of the stage's that hears of nothing itself."""

    def __init__(self, table: SlotTable, max_slots: int) -> None:
        self.table, self.lock, self.max_slots = table, table.lock, max_slots
        self.delete, self.toggle, self.collect = table._delete, table._toggle, table._collect

    def __len__(self) -> int:
        return len(self.table.slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(list(self.table.slots.values()))

    def within(self, window: AddressRange) -> list[Slot]:
        return [slot for gpa, slot in sorted(self.table.slots.items()) if window.start <= gpa < window.end]

    def create(self, slot: Slot) -> None:
        assert len(self) < self.max_slots
        self.table._create(slot)

    def full(self, slot: Slot, excess: int) -> MemorySlotError:
        return self.table._error(errno.ENOSPC, slot)


class Scene:
    """A stage whose listeners are told, and what their guests see.

    Attributes:
        moments: The maps that guests saw at the calls of a change while nobody held them, table by table.
        calls: How many slot calls were made.
        failing: The number of the call that fails, counted from 0.
    """

    def __init__(self, policy: str, listeners: tuple[str, ...], max_slots: int) -> None:
        self.stage = Stage(policy=policy)
        self.stage.memory.remove_listener(self.stage.slots)
        self.tables = [SlotTable(policy) for _ in listeners]
        for kind, table in zip(listeners, self.tables, strict=True):
            table.before_call = self._call
            merging = SlotListener(Merging(table, max_slots), SlotRules(), policy)
            self.stage.memory.add_listener(table if kind == "simple" else merging)
        self.reset()
        self.regions = [MemoryRegion.ram(f"ram{n}", PAGE_SIZE, 4 * PAGE_SIZE) for n in range(3)]
        with self.stage.transaction():
            for n, region in enumerate(self.regions):
                self.stage.memory.add(region, BASE + 3 * n * PAGE_SIZE, priority=n % 2)

    def reset(self, failing: int = -1) -> None:
        self.moments: list[list[Pages]] = []
        self.calls, self.failing = 0, failing

    def maps(self) -> list[Pages]:
        return [table.pages() for table in self.tables]

    def edit(self, edits: list[tuple[str, int, int]]) -> None:
        with self.stage.transaction():
            for what, which, value in edits:
                region = self.regions[which]
                match what:
                    case "move":
                        region.move(BASE + value * PAGE_SIZE)
                    case "resize":
                        region.resize((value % 4 + 1) * PAGE_SIZE)
                    case "hide" | "show":
                        region.set_enabled(what == "show")
                    case "log" | "forget":
                        if (region.log_mask == 0) == (what == "log"):
                            (region.start_log if what == "log" else region.stop_log)(VGA)
                    case _:
                        region.set_readonly(what == "readonly")

    def _call(self, number: int) -> None:
        if not self.stage.blocker.inhibited:
            self.moments.append(self.maps())
        self.calls += 1
        if self.calls - 1 == self.failing:
            raise BackendError("slot call", errno.ENOMEM)


def check_seen(moments: list[list[Pages]], before: list[Pages], after: list[Pages]) -> None:
    """Assert that no guest missed, or saw as something else, what it has in both maps."""
    for moment in moments:
        for seen, old, new in zip(moment, before, after, strict=True):
            for page in old.keys() & new.keys():
                assert seen.get(page) in (old[page], new[page]), f"{page:#x} is not what it was nor what it will be"


EDIT = st.tuples(
    st.sampled_from(["move", "move", "resize", "resize", "hide", "show", "readonly", "writable", "log", "forget"]),
    st.integers(0, 2),
    st.integers(0, 11),
)


@settings(max_examples=150)
@given(
    st.sampled_from(["least", "replace"]),
    st.sampled_from([SIMPLE, MERGING, SIMPLE + MERGING, MERGING + SIMPLE]),
    st.integers(3, 8),
    st.lists(st.lists(EDIT, min_size=1, max_size=4), min_size=1, max_size=5),
)
def test_slot_gaps_guests_that_nobody_holds_miss_nothing_whichever_call_fails(
    policy, listeners, max_slots, transactions
) -> None:
    scene = Scene(policy, listeners, max_slots)
    for edits in transactions:
        before, failing = scene.maps(), 0
        while True:
            scene.reset(failing)
            try:
                scene.edit(edits)
            except AccelError:
                assert scene.maps() == before
                check_seen(scene.moments, before, before)
                if scene.calls <= failing:
                    break  # refused: there would be too many slots
                failing += 1
            else:
                assert scene.calls <= failing
                check_seen(scene.moments, before, scene.maps())
                break


def moved(scene: Scene) -> None:
    scene.edit([("move", 0, 11)])


def removed(scene: Scene) -> None:
    scene.edit([("hide", 0, 0)])


def two_removed(scene: Scene) -> None:
    scene.edit([("hide", 0, 0), ("hide", 2, 0)])


def two_for_one(scene: Scene) -> None:
    with scene.stage.transaction():
        scene.edit([("hide", 0, 0), ("move", 2, 9)])


def grown(scene: Scene) -> None:
    scene.edit([("resize", 0, 1)])


@pytest.mark.parametrize(
    ("change", "listeners", "max_slots", "held"),
    [
        (moved, SIMPLE, 9, 0),
        (moved, MERGING, 4, 0),
        (moved, MERGING, 3, 1),
        (moved, SIMPLE + MERGING, 9, 1),
        (removed, MERGING, 3, 0),
        (removed, SIMPLE + MERGING, 9, 1),
        (two_removed, MERGING, 9, 1),
        (two_for_one, MERGING, 9, 1),
        (grown, MERGING, 9, 0),
        (grown, SIMPLE + MERGING, 9, 0),
    ],
)
def test_slot_gaps_hold_is_asked_for_where_a_delete_may_be_taken_back_and_nowhere_else(
    change, listeners, max_slots, held
) -> None:
    scene = Scene("least", listeners, max_slots)
    inhibits = scene.stage.blocker.stats.inhibits
    change(scene)
    assert scene.stage.blocker.stats.inhibits - inhibits == held


class Idle(Update):
    """Does nothing, and says of itself what it is told to."""

    def __init__(self, needs_hold: bool = False, unless_last: bool = False) -> None:
        self.needs_hold, self.needs_hold_unless_last = needs_hold, unless_last

    def apply(self) -> None:
        """Nothing."""

    def undo(self) -> None:
        """Nothing."""


YES, UNLESS_LAST, NO = (lambda: Idle(True)), (lambda: Idle(unless_last=True)), Idle


@pytest.mark.parametrize(
    ("updates", "held"),
    [
        ([NO, UNLESS_LAST], 0),
        ([UNLESS_LAST, NO], 1),
        ([UNLESS_LAST, UNLESS_LAST], 1),
        ([UNLESS_LAST, None], 0),
        ([YES, None], 1),
        ([NO, YES], 1),
        ([lambda: UpdateInTurn(Idle(), Idle(unless_last=True))], 0),
        ([lambda: UpdateInTurn(Idle(unless_last=True), Idle())], 1),
        ([lambda: UpdateInTurn(Idle(), Idle(unless_last=True)), NO], 1),
        ([lambda: UpdateInTurn(Idle(True), Idle())], 1),
        ([lambda: UpdateInTurn(Idle(), Idle(True))], 1),
    ],
)
def test_slot_gaps_only_the_last_update_of_a_commit_may_do_what_must_not_be_seen_undone(
    stage, updates: list[Callable[[], Update] | None], held: int
) -> None:
    stage.memory.remove_listener(stage.slots)
    for number, make in enumerate(updates):
        listener = MemoryListener()
        listener.priority = PRIORITY_ACCEL + number
        stage.memory.add_listener(listener)
        listener.prepare = make or (lambda: None)
    stage.memory.add(MemoryRegion.ram("ram", PAGE_SIZE), BASE)
    assert stage.blocker.stats.inhibits == held

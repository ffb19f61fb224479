"""`SlotListener` with the least that a backend writes: a table of slots that is a dict, and nothing else.

The stage has a listener of its own beside it (`conftest`), written apart, and asserts that it and the views agree;
`pages` are compared with it here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.address import PAGE_SIZE, AddressRange
from accel.errors import AccelError, CapabilityError, ListenerError, MapLostError, MemorySlotError
from accel.locks import SLOTS_LOCK, Lock
from accel.memory.dirty import DirtyClient
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.listener import MemoryListener, Update
from accel.memory.region import MemoryRegion
from accel.memory.slot_listener import SlotListener, SlotRules
from accel.memory.slot_plan import Slot

VGA = DirtyClient.VGA
BASE = 0x10000


class DictTable:
    """A backend's slots.

    Attributes:
        slots: By guest-physical address.
        noted: Offsets in the block of the pages that were written, by the slot's address.
    """

    def __init__(self, max_slots: int = 1000) -> None:
        self.lock = Lock(SLOTS_LOCK)
        self.max_slots = max_slots
        self.slots: dict[int, Slot] = {}
        self.noted: dict[int, set[int]] = {}

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots.values())

    def within(self, window: AddressRange) -> list[Slot]:
        return [slot for gpa, slot in sorted(self.slots.items()) if window.start <= gpa < window.end]

    def create(self, slot: Slot) -> None:
        if any(other.range.overlaps(slot.range) for other in self):
            raise self.error(errno.EEXIST, slot)
        self.slots[slot.gpa], self.noted[slot.gpa] = slot, set()

    def delete(self, slot: Slot) -> None:
        assert self.slots.pop(slot.gpa) == slot
        del self.noted[slot.gpa]

    def toggle(self, old: Slot, new: Slot) -> None:
        assert self.slots[old.gpa] == old
        self.slots[old.gpa], self.noted[old.gpa] = new, set()

    def collect(self, slot: Slot) -> None:
        assert slot.log is not None
        for page in self.noted[slot.gpa]:
            slot.log.mark(page, PAGE_SIZE)
        self.noted[slot.gpa].clear()

    def full(self, slot: Slot, excess: int) -> MemorySlotError:
        return self.error(errno.ENOSPC, slot, self.max_slots + excess - 1)

    def error(self, number: int, slot: Slot, index: int = 0) -> MemorySlotError:
        return MemorySlotError("toy", number, slot=index, gpa=slot.gpa, hva=slot.hva, size=slot.size, flags=0)


class WatchedTable(DictTable):
    """Writes its calls down, and lets some fail.

    Attributes:
        calls: (what, guest-physical address) of each, those that fail too.
        faults: What the calls with these numbers, counted from 0, raise.
        before_call: Called before each.
    """

    def __init__(self, max_slots: int = 1000) -> None:
        super().__init__(max_slots)
        self.before_call: Callable[[], object] = lambda: None
        self.reset()

    def reset(self, faults: dict[int, Exception] | None = None) -> None:
        self.calls: list[tuple[str, int]] = []
        self.faults = faults or {}

    def create(self, slot: Slot) -> None:
        self._call("create", slot)
        super().create(slot)

    def delete(self, slot: Slot) -> None:
        self._call("delete", slot)
        super().delete(slot)

    def toggle(self, old: Slot, new: Slot) -> None:
        self._call("toggle", old)
        super().toggle(old, new)

    def collect(self, slot: Slot) -> None:
        self._call("collect", slot)
        super().collect(slot)

    def _call(self, what: str, slot: Slot) -> None:
        self.calls.append((what, slot.gpa))
        self.before_call()
        error = self.faults.get(len(self.calls) - 1)
        if error is not None:
            raise error

    def guest_write(self, address: int) -> None:
        """Write a byte as a guest would."""
        (slot,) = (one for one in self if one.range.covers(AddressRange.sized(address, 1)))
        assert not slot.readonly
        if slot.log is not None:
            self.noted[slot.gpa].add((slot.offset + address - slot.gpa) // PAGE_SIZE * PAGE_SIZE)

    def mapping(self) -> dict[int, tuple[int, bool, bool]]:
        """Return each page of guests with its host address, whether it is read-only, and whether it logs."""
        return {
            slot.gpa + at: (slot.hva + at, slot.readonly, slot.log is not None)
            for slot in self
            for at in range(0, slot.size, PAGE_SIZE)
        }


def check(stage, table: WatchedTable) -> None:
    """Assert that the table maps what the stage's own listener maps, and that this is what the views show."""
    stage.check()
    assert not table.lock.held()
    logged = stage.slots.logged_pages()
    assert table.mapping() == {page: (*place, page in logged) for page, place in stage.slots.pages().items()}


@pytest.fixture
def attach(stage) -> Callable[..., WatchedTable]:
    """Give the stage's memory to a table: `attach("replace", max_slots=3, readonly=False)`."""

    def make(policy: str = "least", max_slots: int = 1000, **rules: object) -> WatchedTable:
        table = WatchedTable(max_slots)
        stage.memory.add_listener(SlotListener(table, SlotRules(owner="the toy", **rules), policy))
        return table

    return make


# applied, and taken back

#: What `Scene.change` asks of the table: a log ends, a slot goes for good, one is cut to its first page, one comes.
CALLS = [
    ("toggle", BASE),
    ("delete", BASE + 0x4000),
    ("collect", BASE + 0x8000),
    ("delete", BASE + 0x8000),
    ("create", BASE + 0x8000),
    ("create", BASE + 0xC000),
]


class Scene:
    """Three pieces of RAM, and a change that takes a step of each kind."""

    def __init__(self, stage, table: WatchedTable) -> None:
        self.stage, self.table = stage, table
        self.low, self.gone = MemoryRegion.ram("low", PAGE_SIZE), MemoryRegion.ram("gone", PAGE_SIZE)
        self.cut, self.new = MemoryRegion.ram("cut", 2 * PAGE_SIZE), MemoryRegion.ram("new", PAGE_SIZE)
        with stage.transaction():
            for place, region in ((0, self.low), (0x4000, self.gone), (0x8000, self.cut)):
                stage.memory.add(region, BASE + place)
            self.cut.start_log(VGA)
        check(stage, table)
        table.reset()

    def change(self) -> None:
        with self.stage.transaction():
            self.stage.memory.add(self.new, BASE + 0xC000)
            self.cut.resize(PAGE_SIZE)
            self.stage.memory.remove(self.gone)
            self.low.start_log(VGA)

    def dirty(self) -> list[int]:
        """Return the pages of `cut` that were written since the last time."""
        found = self.stage.dirty_log.collect(self.cut, VGA)
        return [page for window in found.ranges() for page in range(window.start // PAGE_SIZE, window.end // PAGE_SIZE)]


@pytest.fixture(params=["least", "replace"])
def scene(stage, attach, request) -> Scene:
    return Scene(stage, attach(request.param))


def test_slot_listener_makes_the_calls_of_a_change_in_order_under_lock_and_hold(scene) -> None:
    held = set()
    scene.table.before_call = lambda: held.add((scene.table.lock.held(), scene.stage.blocker.inhibited))
    scene.table.guest_write(BASE + 0x9000)
    scene.change()
    assert scene.table.calls == CALLS
    assert held == {(True, True)}
    check(scene.stage, scene.table)
    assert scene.cut.dirty.is_dirty(VGA, PAGE_SIZE), "what was written before the slot went is not lost"


@pytest.mark.parametrize("kind", [None, ValueError, MemoryError])
@pytest.mark.parametrize("failing", range(len(CALLS)))
def test_slot_listener_takes_a_failed_change_back_in_reverse(scene, failing, kind) -> None:
    table = scene.table
    before = dict(table.slots)
    table.guest_write(BASE + 0x9000)
    error = kind("broken") if kind else table.error(errno.EIO, table.slots[BASE])
    table.reset({failing: error})
    with pytest.raises(ListenerError if kind else MemorySlotError, match=r"broken|EIO") as caught:
        scene.change()
    assert (caught.value.listener, caught.value.step) == ("slots", "apply")
    inverse = {"delete": "create", "create": "delete", "toggle": "toggle"}
    made = [(inverse[what], gpa) for what, gpa in CALLS[:failing] if what != "collect"]
    assert table.calls == CALLS[: failing + 1] + made[::-1]
    assert table.slots == before
    check(scene.stage, table)
    assert scene.dirty() == [1]
    table.reset()
    scene.change()
    assert table.calls == CALLS
    check(scene.stage, table)


def test_slot_listener_that_cannot_take_a_change_back_loses_the_map_and_says_what_is_left(scene) -> None:
    table = scene.table
    table.reset({5: ValueError("broken"), 6: table.error(errno.EIO, table.slots[BASE])})
    with pytest.raises(MapLostError, match=r"could not be undone.*EIO") as caught:
        scene.change()
    assert caught.value.slots == tuple(map(str, table))
    assert sorted(table.slots) == [BASE, BASE + 0x8000]
    with pytest.raises(MapLostError):
        scene.stage.blocker.check()


def test_slot_listener_forgets_what_it_noted_of_a_change_that_somebody_refused(stage, attach) -> None:
    table = attach()
    refusing = MemoryListener()
    refusing.priority = 20
    stage.memory.add_listener(refusing)

    def refuse() -> Update | None:
        raise CapabilityError("not today")

    refusing.prepare = refuse
    with pytest.raises(CapabilityError, match="not today"):
        stage.memory.add(MemoryRegion.ram("ram", PAGE_SIZE), BASE)
    (listener,) = (one for one in stage.memory.listeners if isinstance(one, SlotListener))
    assert listener.prepare() is None
    assert table.calls == []
    del refusing.prepare
    stage.memory.add(MemoryRegion.ram("ram", PAGE_SIZE), BASE)
    assert listener.prepare() is None, "nor of one that was made"
    check(stage, table)


#: Moves, sizes, and the number of a call that fails, if there are so many.
EDIT = st.tuples(
    st.sampled_from(["move", "resize", "hide", "show", "readonly", "writable", "log", "forget"]),
    st.integers(0, 2),
    st.integers(0, 11),
)


@settings(max_examples=60)
@given(
    st.sampled_from(["least", "replace"]),
    st.lists(st.tuples(st.lists(EDIT, max_size=4), st.integers(0, 8)), max_size=6),
)
def test_slot_listener_table_is_the_view_after_any_edits_and_faults(make_stage, policy, transactions) -> None:
    stage, table = make_stage(policy=policy), WatchedTable()
    stage.memory.add_listener(SlotListener(table, SlotRules(), policy))
    regions = [MemoryRegion.ram(f"ram{n}", PAGE_SIZE, 4 * PAGE_SIZE) for n in range(3)]
    with stage.transaction():
        for n, region in enumerate(regions):
            stage.memory.add(region, BASE + 3 * n * PAGE_SIZE, priority=n % 2)
    check(stage, table)

    def make(edits: list[tuple[str, int, int]]) -> None:
        with stage.transaction():
            for what, which, value in edits:
                region = regions[which]
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

    for edits, failing in transactions:
        table.reset({failing: ValueError("broken")})
        before = table.mapping()
        try:
            make(edits)
        except AccelError:
            assert len(table.calls) > failing
            assert table.mapping() == before
        else:
            assert len(table.calls) <= failing
        check(stage, table)


# logs


def test_slot_listener_logs_from_a_toggle_on_and_holds_nobody_for_it(stage, attach) -> None:
    table = attach()
    ram, quiet = MemoryRegion.ram("ram", 2 * PAGE_SIZE), MemoryRegion.ram("quiet", PAGE_SIZE)
    stage.memory.add(ram, BASE)
    stage.memory.add(quiet, 2 * BASE)
    table.reset()
    ram.start_log(VGA)
    assert table.calls == [("toggle", BASE)]
    assert stage.blocker.stats.inhibits == 0
    stage.dirty_log.collect(ram, VGA)
    table.reset()
    table.guest_write(BASE + PAGE_SIZE)
    assert list(stage.dirty_log.collect(ram, VGA).ranges()) == [AddressRange(PAGE_SIZE, 2 * PAGE_SIZE)]
    assert table.calls == [("collect", BASE)]
    table.reset()
    ram.stop_log(VGA)
    assert table.calls == [("collect", BASE), ("toggle", BASE)]
    assert stage.blocker.stats.inhibits == 1
    check(stage, table)


def test_slot_listener_asks_slots_that_log_for_their_pages_and_no_others(attach, stage) -> None:
    table = attach()
    ram = MemoryRegion.ram("ram", PAGE_SIZE)
    stage.memory.add(ram, BASE)
    (section,) = stage.memory.view
    table.reset()
    (listener,) = (one for one in stage.memory.listeners if isinstance(one, SlotListener))
    listener.log_sync(section)
    assert table.calls == []


# as many as there are


def test_slot_listener_merges_fragments_when_slots_run_short(stage, attach) -> None:
    table = attach(max_slots=3)
    ram, other = MemoryRegion.ram("ram", PAGE_SIZE, 8 * PAGE_SIZE), MemoryRegion.ram("other", PAGE_SIZE)
    stage.memory.add(ram, BASE)
    (listener,) = (one for one in stage.memory.listeners if isinstance(one, SlotListener))
    for pages in (2, 3):
        ram.resize(pages * PAGE_SIZE)
    assert listener.figures == {"slots": 3, "fragments": 2, "slot_calls": 3}
    assert stage.blocker.stats.inhibits == 0
    stage.memory.add(other, 2 * BASE)
    assert listener.figures["slots"] == 3
    assert listener.figures["fragments"] == 1
    assert stage.blocker.stats.inhibits == 1
    check(stage, table)


@pytest.mark.parametrize("excess", [1, 3])
def test_slot_listener_refuses_more_slots_than_there_are_before_anything_changes(stage, attach, excess) -> None:
    table = attach(max_slots=2)
    stage.memory.add(MemoryRegion.ram("one", PAGE_SIZE), BASE)
    table.reset()

    def change() -> None:
        with stage.transaction():
            for number in range(excess + 1):
                stage.memory.add(MemoryRegion.ram(f"more {number}", PAGE_SIZE), (2 + number) * BASE)

    with pytest.raises(MemorySlotError) as caught:
        change()
    error = caught.value
    assert (error.errno, error.gpa, error.slot) == (errno.ENOSPC, (2 + excess) * BASE, 1 + excess)
    assert (error.listener, error.step) == ("slots", "prepare")
    assert table.calls == []
    check(stage, table)


# what slots can be


def test_slot_listener_without_read_only_slots_refuses_rom_and_says_who(stage, attach) -> None:
    table = attach(readonly=False)
    with pytest.raises(CapabilityError, match=f"^the toy has no read-only slots, which ROM at {BASE:#x} needs"):
        stage.memory.add(MemoryRegion.rom("rom", bytes(PAGE_SIZE)), BASE)
    assert table.calls == []
    ram = MemoryRegion.ram("ram", PAGE_SIZE)
    stage.memory.add(ram, BASE)
    ram.start_log(VGA)
    check(stage, table)


def test_slot_listener_without_a_dirty_log_refuses_to_log_and_says_who(stage, attach) -> None:
    table = attach(dirty_log=False)
    ram, logged = MemoryRegion.ram("ram", PAGE_SIZE), MemoryRegion.ram("logged", PAGE_SIZE)
    stage.memory.add(ram, BASE)
    logged.start_log(VGA)
    table.reset()
    with pytest.raises(CapabilityError, match=r"^the toy keeps no log of written pages, so all memory"):
        stage.dirty_log.start_global()
    for refused in (lambda: ram.start_log(VGA), lambda: stage.memory.add(logged, 2 * BASE)):
        with pytest.raises(CapabilityError, match=r"^the toy keeps no log of written pages, which RAM at 0x[12]0000"):
            refused()
    assert table.calls == []
    stage.memory.add(MemoryRegion.rom("rom", bytes(PAGE_SIZE)), 3 * BASE)
    check(stage, table)


def test_slot_listener_that_can_do_all_agrees_to_log_all(stage, attach) -> None:
    table = attach()
    stage.memory.add(MemoryRegion.ram("ram", PAGE_SIZE), BASE)
    stage.dirty_log.start_global()
    check(stage, table)
    assert [slot.log is not None for slot in table] == [True]


def test_slot_listener_keeps_to_the_granule_and_the_largest_size(stage, attach) -> None:
    table = attach(page_size=PAGE_SIZE // 4, max_slot_size=2 * PAGE_SIZE)
    stage.memory.add(MemoryRegion.ram("ram", 0x4700), BASE)
    assert [(slot.gpa - BASE, slot.size) for slot in table] == [
        (0, 2 * PAGE_SIZE),
        (2 * PAGE_SIZE, 2 * PAGE_SIZE),
        (4 * PAGE_SIZE, PAGE_SIZE // 4),
    ]


def test_slot_listener_notes_in_order_of_addresses_whatever_the_order_that_it_is_told() -> None:
    table = WatchedTable()
    listener = SlotListener(table, SlotRules(), "replace")
    block = MemoryRegion.ram("ram", 8 * PAGE_SIZE)
    sections = [
        MemoryRegionSection(AddressRange.sized(page * PAGE_SIZE, PAGE_SIZE), block, page * PAGE_SIZE)
        for page in range(8)
    ]

    def tell(gone: list[int], come: list[int]) -> None:
        listener.begin()
        table.reset()
        for page in gone:
            listener.region_del(sections[page])
        for page in come:
            listener.region_add(sections[page])
        update = listener.prepare()
        assert update is not None
        with table.lock:
            update.apply()
        listener.commit()

    tell([], [5, 1, 3])
    assert table.calls == [("create", page * PAGE_SIZE) for page in (1, 3, 5)]
    tell([3, 5, 1], [7, 2, 0])
    assert table.calls == [("create", page * PAGE_SIZE) for page in (0, 2, 7)] + [
        ("delete", page * PAGE_SIZE) for page in (1, 3, 5)
    ]


def test_slot_listener_with_a_list_call_makes_no_other(stage) -> None:
    table, lists = WatchedTable(), []

    def at_once(plan) -> None:
        lists.append(plan)
        for slot in plan.deletes:
            DictTable.delete(table, slot)
        for slot in plan.creates:
            DictTable.create(table, slot)

    stage.memory.add_listener(SlotListener(table, SlotRules(), "replace", at_once=at_once))
    ram = MemoryRegion.ram("ram", PAGE_SIZE, 2 * PAGE_SIZE)
    stage.memory.add(ram, BASE)
    ram.resize(2 * PAGE_SIZE)
    assert [(len(plan.deletes), len(plan.creates)) for plan in lists] == [(0, 1), (1, 1)]
    assert table.calls == []
    check(stage, table)


# what else changes in the same transaction


class Bells(MemoryListener, Update):
    """What an accelerator answers by itself: it notes queued ranges, and applies them as one."""

    def __init__(self, table: WatchedTable) -> None:
        self.table = table
        self.noted: list[AddressRange] = []
        self.in_force: list[AddressRange] = []

    def begin(self) -> None:
        self.noted = []

    def coalesced_io_add(self, section: MemoryRegionSection, window: AddressRange) -> None:
        self.noted.append(window)

    def prepare(self) -> Update | None:
        return self if self.noted else None

    def apply(self) -> None:
        self.table.calls.append(("bells", 0))
        self.in_force = list(self.noted)

    def undo(self) -> None:
        self.table.calls.append(("no bells", 0))
        self.in_force = []


class RingingListener(SlotListener, Bells):
    name = "ringing"

    def __init__(self, table: WatchedTable) -> None:
        Bells.__init__(self, table)
        SlotListener.__init__(self, table, SlotRules(), "least")


@pytest.fixture
def ringing(stage) -> RingingListener:
    listener = RingingListener(WatchedTable())
    stage.memory.add_listener(listener)
    return listener


def test_slot_listener_changes_what_its_other_base_answers_before_the_slots(stage, ringing) -> None:
    with stage.transaction():
        stage.memory.add(MemoryRegion.ram("ram", PAGE_SIZE), BASE)
        stage.memory.add(MemoryRegion.mmio("uart", 16, coalesced=True), 2 * BASE)
    assert ringing.table.calls == [("bells", 0), ("create", BASE)]
    assert ringing.in_force == [AddressRange.sized(2 * BASE, 16)]
    assert ringing.noted == []
    ringing.table.reset()
    stage.memory.add(MemoryRegion.mmio("more", 16, coalesced=True), 3 * BASE)
    assert ringing.table.calls == [("bells", 0)]
    ringing.table.reset()
    stage.memory.add(MemoryRegion.ram("ram", PAGE_SIZE), 4 * BASE)
    assert ringing.table.calls == [("create", 4 * BASE)]


def test_slot_listener_takes_back_what_its_other_base_answers_after_the_slots(stage, ringing) -> None:
    ringing.table.reset({2: ValueError("broken")})

    def change() -> None:
        with stage.transaction():
            stage.memory.add(MemoryRegion.ram("ram", PAGE_SIZE), BASE)
            stage.memory.add(MemoryRegion.ram("last", PAGE_SIZE), 2 * BASE)
            stage.memory.add(MemoryRegion.mmio("uart", 16, coalesced=True), 3 * BASE)

    with pytest.raises(ListenerError, match="broken"):
        change()
    assert ringing.table.calls == [
        ("bells", 0),
        ("create", BASE),
        ("create", 2 * BASE),
        ("delete", BASE),
        ("no bells", 0),
    ]
    assert (ringing.in_force, ringing.noted) == ([], [])
    check(stage, ringing.table)

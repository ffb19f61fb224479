"""Slot updates: steps in order, taken back in reverse, and no bit of a dirty log lost whatever fails.

The last part has a model of an accelerator with a guest that writes to every page it can reach at every moment at
which nobody holds it. Its pages are 4 bytes.
"""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.address import AddressRange
from accel.errors import AccelError, BackendError, MapLostError
from accel.locks import SLOTS_LOCK, Lock
from accel.memory.dirty import DirtyClient, DirtyLog
from accel.memory.flat_view import EMPTY_VIEW, FlatView, MemoryRegionSection
from accel.memory.ram_block import RamBlock
from accel.memory.region import MemoryRegion, RegionKind
from accel.memory.slot_plan import Slot, SlotPlan, plan_slots, section_slots, section_toggles
from accel.memory.slot_update import SlotUpdate
from accel.memory.splice import diff

PAGE = 4
SPAN = 64
VGA = DirtyClient.VGA
BLOCK = RamBlock("block", 1 << 20)
LOG = DirtyLog(1 << 20)


class Kernel:
    """What an accelerator does: slots, and for each that logs the pages that were written since somebody asked.

    Attributes:
        slots: By guest-physical address.
        noted: Offsets in the block of written pages, by the slot's guest-physical address.
        written: Every page that the guest ever wrote: (block, offset).
        calls: What was asked, such as ``("create", slot)``.
        fail_at: Numbers of the calls, counted from 0, that fail.
        before_call: What happens before each call.
    """

    def __init__(self) -> None:
        self.lock = Lock(SLOTS_LOCK)
        self.slots: dict[int, Slot] = {}
        self.noted: dict[int, set[int]] = {}
        self.written: set[tuple[RamBlock, int]] = set()
        self.calls: list[tuple[object, ...]] = []
        self.fail_at: set[int] = set()
        self.before_call = lambda: None

    def put(self, *slots: Slot) -> None:
        """Have `slots` from the start."""
        for slot in slots:
            self.slots[slot.gpa], self.noted[slot.gpa] = slot, set()

    def update(self, plan: SlotPlan, *, at_once: bool = False) -> SlotUpdate:
        return SlotUpdate(
            plan,
            self.create,
            self.delete,
            self.slots.values,
            self.lock,
            toggle=self.toggle,
            collect=self.collect,
            at_once=self.apply_list if at_once else None,
        )

    def apply_list(self, plan: SlotPlan) -> None:
        self._call("list", plan)
        for slot in (*plan.deletes, *(old for old, _ in plan.toggles)):
            assert self.slots[slot.gpa] == slot
            del self.slots[slot.gpa], self.noted[slot.gpa]
        for slot in (*plan.creates, *(new for _, new in plan.toggles)):
            assert not any(slot.range.overlaps(other.range) for other in self.slots.values())
            self.slots[slot.gpa], self.noted[slot.gpa] = slot, set()

    def guest_writes(self) -> None:
        """Let the guest write to every page that it can reach."""
        for slot in self.slots.values():
            if not slot.readonly:
                pages = range(slot.offset, slot.offset + slot.size, PAGE)
                self.written |= {(slot.block, page) for page in pages}
                if slot.log is not None:
                    self.noted[slot.gpa].update(pages)

    def create(self, slot: Slot) -> None:
        self._call("create", slot)
        assert not any(slot.range.overlaps(other.range) for other in self.slots.values())
        self.slots[slot.gpa], self.noted[slot.gpa] = slot, set()

    def delete(self, slot: Slot) -> None:
        self._call("delete", slot)
        assert self.slots[slot.gpa] == slot
        del self.slots[slot.gpa], self.noted[slot.gpa]

    def toggle(self, old: Slot, new: Slot) -> None:
        self._call("toggle", old, new)
        assert self.slots[old.gpa] == old
        self.slots[old.gpa], self.noted[old.gpa] = new, set()

    def collect(self, slot: Slot) -> None:
        self._call("collect", slot)
        assert self.slots[slot.gpa] == slot
        assert slot.log is not None
        bits = sum(1 << (page - slot.offset) // PAGE for page in self.noted[slot.gpa])
        slot.log.merge(slot.offset, bits.to_bytes(SPAN // PAGE // 8 + 1, "little"), slot.log.page_size)
        self.noted[slot.gpa] = set()

    def _call(self, *call: object) -> None:
        number = len(self.calls)
        self.calls.append(call)
        self.before_call()
        if number in self.fail_at:
            raise BackendError(str(call[0]), errno.ENOMEM)


def _slot(page: int, log: DirtyLog | None = None, host: int | None = None) -> Slot:
    host = page if host is None else host
    return Slot(page * 4096, 4096, BLOCK.address + host * 4096, False, BLOCK, log)


@pytest.fixture
def update_at_six_pages():
    """A kernel, and an update of it with three deletes and three creates."""
    kernel = Kernel()
    old = [_slot(page) for page in (1, 3, 5)]
    new = [_slot(page, host=page + 100) for page in (3, 5, 7)]
    kernel.put(*old)
    return kernel, kernel.update(SlotPlan(tuple(old), tuple(new))), old, new


def test_slot_update_makes_all_deletes_and_then_all_creates(update_at_six_pages) -> None:
    kernel, update, old, new = update_at_six_pages
    assert update.needs_hold
    assert update.lock is kernel.lock
    update.apply()
    assert kernel.calls == [("delete", slot) for slot in old] + [("create", slot) for slot in new]
    assert [*kernel.slots.values()] == new


def test_slot_update_of_slots_beside_those_that_go_makes_all_creates_and_then_all_deletes() -> None:
    kernel, old, new = Kernel(), [_slot(page) for page in (1, 3)], [_slot(page) for page in (2, 5)]
    kernel.put(*old)
    update = kernel.update(plan_slots(old, new, "replace", free=2))
    kernel.fail_at = {3}
    with pytest.raises(BackendError):
        update.apply()
    update.undo()
    steps = [("create", new[0]), ("create", new[1]), ("delete", old[0]), ("delete", old[1])]
    assert kernel.calls == [*steps, ("create", old[0]), ("delete", new[1]), ("delete", new[0])]
    assert sorted(kernel.slots) == [slot.gpa for slot in old]
    kernel.calls.clear()
    kernel.fail_at = set()
    update.apply()
    assert kernel.calls == steps


@pytest.mark.parametrize("step", range(6))
def test_slot_update_that_fails_at_a_step_is_undone_in_reverse(update_at_six_pages, step: int) -> None:
    kernel, update, old, _ = update_at_six_pages
    kernel.fail_at = {step}
    with pytest.raises(BackendError):
        update.apply()
    made = kernel.calls[:step]
    update.undo()
    assert sorted(kernel.slots.items()) == [(slot.gpa, slot) for slot in old]
    inverse = {"delete": "create", "create": "delete"}
    assert kernel.calls[step + 1 :] == [(inverse[kind], slot) for kind, slot in reversed(made)]


def test_slot_update_that_was_applied_whole_can_be_undone(update_at_six_pages) -> None:
    kernel, update, old, _ = update_at_six_pages
    update.apply()
    update.undo()
    assert sorted(kernel.slots) == [slot.gpa for slot in old]
    assert all(kernel.slots[slot.gpa] == slot for slot in old)
    calls = len(kernel.calls)
    update.undo()
    assert len(kernel.calls) == calls, "there is nothing left to undo"


@pytest.mark.parametrize("step", range(1, 6))
def test_slot_update_that_cannot_be_undone_says_what_is_present(update_at_six_pages, step: int) -> None:
    kernel, update, _, _ = update_at_six_pages
    kernel.fail_at = {step, step + 1}
    with pytest.raises(BackendError):
        update.apply()
    with pytest.raises(MapLostError, match="could not be undone") as caught:
        update.undo()
    assert caught.value.slots == tuple(map(str, kernel.slots.values()))
    assert isinstance(caught.value.__cause__, BackendError)
    assert caught.value.__cause__.errno == errno.ENOMEM


def test_slot_update_without_steps_does_nothing() -> None:
    kernel = Kernel()
    update = kernel.update(SlotPlan((), ()))
    assert not update.needs_hold
    update.apply()
    update.undo()
    assert kernel.calls == []


# logs


@pytest.fixture
def logging_update():
    """A kernel, a plan with a step of each kind, and the calls that it takes: (what, slots)."""
    kernel = Kernel()
    begins, ends, goes, logged = _slot(1), _slot(3, LOG), _slot(5), _slot(7, LOG)
    back = _slot(7, LOG, host=20)
    kernel.put(begins, ends, goes, logged)
    plan = SlotPlan((goes, logged), (back,), ((begins, begins.with_log(LOG)), (ends, ends.with_log(None))))
    calls = [
        ("toggle", begins, begins.with_log(LOG)),
        ("collect", ends),
        ("toggle", ends, ends.with_log(None)),
        ("delete", goes),
        ("collect", logged),
        ("delete", logged),
        ("create", back),
    ]
    return kernel, plan, calls


def test_slot_update_collects_each_log_right_before_it_goes(logging_update) -> None:
    kernel, plan, calls = logging_update
    kernel.update(plan).apply()
    assert kernel.calls == calls
    assert [slot.log for _, slot in sorted(kernel.slots.items())] == [LOG, None, LOG]


@pytest.mark.parametrize("step", range(8))
def test_slot_update_with_logs_that_fails_is_undone_in_reverse(logging_update, step: int) -> None:
    kernel, plan, calls = logging_update
    before = dict(kernel.slots)
    update = kernel.update(plan)
    if step < 7:
        kernel.fail_at = {step}
        with pytest.raises(BackendError):
            update.apply()
    else:
        update.apply()
    update.undo()
    assert kernel.slots == before
    inverse = {"delete": "create", "create": "delete", "toggle": "toggle"}
    made = [(inverse[what], *reversed(slots)) for what, *slots in calls[:step] if what != "collect"]
    assert kernel.calls[step + (step < 7) :] == made[::-1]


def test_slot_update_for_an_accelerator_that_marks_by_itself_makes_slot_calls_only(logging_update) -> None:
    kernel, plan, _ = logging_update
    update = SlotUpdate(plan, kernel.create, kernel.delete, kernel.slots.values, kernel.lock)
    update.apply()
    assert [what for what, *_ in kernel.calls] == ["delete", "delete", "create"]


def test_slot_update_log_that_cannot_be_begun_again_is_a_lost_map(logging_update) -> None:
    kernel, plan, _ = logging_update
    update = kernel.update(plan)
    update.apply()
    kernel.fail_at = {len(kernel.calls) + 3}
    with pytest.raises(MapLostError, match="could not be undone"):
        update.undo()


# any changes under a guest that writes all the time

REGIONS = [MemoryRegion(name, RegionKind.RAM, SPAN, block=RamBlock(name, SPAN)) for name in ("one", "two")]


@st.composite
def views(draw) -> tuple[FlatView, set[str]]:
    """Sections side by side with holes, and the names of the regions that are logged."""
    cuts = sorted(draw(st.sets(st.integers(0, SPAN), max_size=7)))
    logged = draw(st.sets(st.sampled_from(["one", "two"])))
    sections = []
    for start, end in pairwise(cuts):
        region = draw(st.sampled_from([*REGIONS, REGIONS[0], None]))
        if region is not None:
            offset = draw(st.sampled_from([start, start, start, draw(st.integers(0, SPAN))]))
            if offset + end - start <= SPAN:
                readonly = draw(st.sampled_from([False, False, False, True]))
                mask = int(VGA) if region.name in logged else 0
                sections.append(MemoryRegionSection(AddressRange(start, end), region, offset, readonly, log_mask=mask))
    return FlatView(sections), logged


def _plan(kernel: Kernel, old: FlatView, new: FlatView, policy: str, limit: int, free: int) -> SlotPlan:
    def within(section: MemoryRegionSection) -> list[Slot]:
        return [slot for _, slot in sorted(kernel.slots.items()) if section.range.covers(slot.range)]

    delta = diff(old.sections, new.sections)
    present = [slot for section in delta.removed for slot in within(section)]
    wanted = [slot for section in delta.added for slot in section_slots(section, PAGE, limit)]
    toggles = [one for _, section in delta.altered for one in section_toggles(within(section), section)]
    return plan_slots(present, wanted, policy, toggles, free=free)


def _mapping(slot: Slot) -> tuple[object, ...]:
    return slot.gpa, slot.size, slot.hva, slot.readonly


@pytest.fixture
def logged_list():
    """A kernel, and an update that changes its slots at once: one comes back logging, one stays and ends to log."""
    kernel = Kernel()
    old, ends, new = _slot(1), _slot(3, LOG), _slot(1, LOG)
    kernel.put(old, ends)
    return kernel, SlotPlan((old,), (new,), ((ends, ends.with_log(None)),))


def test_slot_update_at_once_collects_what_goes_and_makes_one_call_each_way(logged_list) -> None:
    kernel, plan = logged_list
    before = dict(kernel.slots)
    update = kernel.update(plan, at_once=True)
    assert update.needs_hold
    update.apply()
    assert [what for what, *_ in kernel.calls] == ["collect", "list"]
    assert sorted(kernel.slots) == sorted(before)
    assert kernel.slots != before
    update.undo()
    assert kernel.slots == before
    assert kernel.calls[2:] == [("list", plan.inverse)]
    update.undo()
    assert len(kernel.calls) == 3


def test_slot_update_at_once_that_cannot_be_taken_back_is_a_lost_map(logged_list) -> None:
    kernel, plan = logged_list
    update = kernel.update(plan, at_once=True)
    update.apply()
    kernel.fail_at = {2}
    with pytest.raises(MapLostError, match="could not be undone"):
        update.undo()


@pytest.mark.parametrize("at_once", [False, True])
def test_slot_update_that_is_undone_counts_what_was_written_meanwhile_to_slots_that_nobody_read(at_once) -> None:
    kernel, log = Kernel(), DirtyLog(1 << 20)
    log.start(VGA)
    log.clear(VGA, 0, 1 << 20)
    update = kernel.update(SlotPlan((), (_slot(2, log),)), at_once=at_once)
    assert not update.needs_hold
    update.apply()
    assert not log.is_dirty(VGA, 2 * 4096)
    update.undo()
    assert [log.is_dirty(VGA, page * 4096) for page in (1, 2, 3)] == [False, True, False]


STEP = st.tuples(
    views(),
    st.sampled_from(["least", "replace"]),
    st.sampled_from([1 << 64, 8, 20]),
    st.integers(-6, 12),
    st.booleans(),
    st.sampled_from([False, False, True]),
    st.integers(0, 4),
)


@settings(max_examples=500)
@given(st.lists(STEP, min_size=1, max_size=5))
def test_slot_update_loses_no_bit_and_invents_none(steps) -> None:
    kernel = Kernel()
    logs = {region.name: DirtyLog(SPAN, PAGE) for region in REGIONS}
    for region in REGIONS:
        region.dirty = logs[region.name]
    old, logged = EMPTY_VIEW, set()
    owed: dict[str, set[int]] = {name: set() for name in logs}
    before: set[tuple[object, ...]] = set()

    def guest_writes() -> None:
        """Let the guest write; whoever logged before this change is owed that.

        But not what goes through a mapping that this change makes and does not log: it ends that log as well.
        """
        kernel.guest_writes()
        for slot in kernel.slots.values():
            known = _mapping(slot) in before or slot.log is not None
            if slot.block.name in logged and known and not slot.readonly:
                owed[slot.block.name] |= set(range(slot.offset, slot.offset + slot.size, PAGE))

    for (new, now_logged), policy, limit, fail_at, at_once, fails_later, free in steps:
        before = set(map(_mapping, kernel.slots.values()))
        guest_writes()
        for name in now_logged - logged:
            logs[name].start(VGA)
        plan = _plan(kernel, old, new, policy, limit, free)
        update = kernel.update(plan, at_once=at_once)
        held = update.needs_hold or (fails_later and update.needs_hold_unless_last)
        kernel.before_call = (lambda: None) if held else guest_writes
        kernel.calls.clear()
        kernel.fail_at = {fail_at}
        try:
            update.apply()
            if fails_later:
                kernel.fail_at = set()
                raise BackendError("another listener", errno.EIO)
        except AccelError:
            update.undo()
            gone = now_logged - logged
            if held and not update.needs_hold:
                # It does not know that somebody else asked for the hold, and marks what it did not see.
                unseen = [slot for slot in plan.creates if slot.log is not None]
                kernel.written |= {
                    (slot.block, page) for slot in unseen for page in range(slot.offset, slot.offset + slot.size, PAGE)
                }
        else:
            gone = logged - now_logged
            old, logged = new, now_logged
        for name in gone:
            logs[name].stop(VGA)
            owed[name].clear()
        kernel.fail_at = set()
        kernel.before_call = lambda: None
        before = set(map(_mapping, kernel.slots.values()))
        guest_writes()
        for slot in list(kernel.slots.values()):
            assert (slot.log is not None) == (slot.block.name in logged and not slot.readonly)
            if slot.log is not None:
                kernel.collect(slot)
        for region in REGIONS:
            if region.name in logged:
                dirty = {page for page in range(0, SPAN, PAGE) if logs[region.name].is_dirty(VGA, page)}
                assert dirty >= owed[region.name], "a bit is lost"
                assert {(region.block, page) for page in dirty} <= kernel.written, "a bit is invented"
                logs[region.name].clear(VGA, 0, SPAN)
        owed, kernel.written = {name: set() for name in logs}, set()

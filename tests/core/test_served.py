"""Spurious faults: an exit counts only if every map from entry to exit served the address, pending ones included."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.address import PAGE_SIZE, AddressRange
from accel.errors import MemorySlotError
from accel.memory import served
from accel.memory.flat_view import EMPTY_VIEW, FlatView, MemoryRegionSection
from accel.memory.region import MemoryRegion
from accel.memory.render import render
from accel.memory.served import ServedHistory, serves

PAGE = 4
SPAN = 32
RAM = MemoryRegion.ram("ram", SPAN)
ROM = MemoryRegion.rom("rom", b"", SPAN)
DEVICE = MemoryRegion.mmio("device", SPAN)


@st.composite
def views(draw) -> FlatView:
    cuts = sorted(draw(st.sets(st.integers(0, SPAN), min_size=2, max_size=6)))
    sections = []
    for start, end in zip(cuts, cuts[1:], strict=False):  # noqa: RUF007 - strategies read better so
        region = draw(st.sampled_from([RAM, RAM, RAM, ROM, DEVICE, None]))
        if region is not None:
            sections.append(MemoryRegionSection(AddressRange(start, end), region, start, region is ROM))
    return FlatView(tuple(sections))


def _served_by_page(view: FlatView, address: int, size: int, is_write: bool) -> bool:
    """The same, a page of bytes at a time."""
    for byte in range(address, address + size):
        page = byte // PAGE * PAGE
        shown = {view.find(at) for at in range(page, page + PAGE)}
        section = shown.pop()
        if shown or section is None or section.region is DEVICE or (is_write and section.region is ROM):
            return False
    return True


accesses = st.tuples(st.integers(0, SPAN - 8), st.sampled_from([1, 2, 4]), st.booleans())


@given(views(), accesses)
def test_serves_agrees_with_asking_each_byte_of_each_page(view: FlatView, access) -> None:
    address, size, is_write = access
    assert serves(view, address, size, is_write=is_write, page_size=PAGE) == _served_by_page(
        view, address, size, is_write
    )


@pytest.mark.parametrize(("offset", "served"), [(0, True), (1, False), (PAGE - 1, False), (PAGE, True)])
def test_serves_not_what_lies_askew_to_the_hosts_pages(offset: int, served: bool) -> None:
    view = FlatView((MemoryRegionSection(AddressRange(0, 2 * PAGE), RAM, offset, False),))
    assert serves(view, 0, 4, is_write=False, page_size=PAGE) is served


@settings(max_examples=200)
@given(st.lists(st.tuples(views(), st.booleans()), min_size=1, max_size=8), st.data())
def test_served_judge_asks_every_generation_from_entry_to_exit(steps, data: st.DataObject) -> None:
    """Vcpus enter and come out between and in the middle of changes; one may stay inside all the time."""
    history = ServedHistory(PAGE)
    generations = [EMPTY_VIEW]
    entered = [0]
    for view, finished in steps:
        history.start(view)
        generations.append(view)
        if not finished and data.draw(st.booleans()):
            # A change that fails: what was in force before is all that there ever was.
            history.take_back()
            generations[-1] = generations[-2]
        assert history._section_count == sum(len(kept) for _, kept in history._views)
        _judge(history, generations, entered, data)
        history.complete(entered)
        _judge(history, generations, entered, data)
        if data.draw(st.booleans()):
            entered.append(history.completed)
        if len(entered) > 1 and data.draw(st.booleans()):
            entered.remove(data.draw(st.sampled_from(entered)))


def _judge(history: ServedHistory, generations: list[FlatView], entered: list[int], data: st.DataObject) -> None:
    assert history.started == len(generations) - 1
    address, size, is_write = data.draw(accesses)
    for entry in entered:
        expected = all(_served_by_page(view, address, size, is_write) for view in generations[entry:])
        assert history.is_spurious(entry, history.started, address, size, is_write=is_write) == expected


def test_served_page_shared_with_something_else_is_not_served() -> None:
    """An accelerator maps whole pages, so an access to the RAM part of such a page has to exit."""
    root = MemoryRegion.container("root")
    root.add(MemoryRegion.ram("ram", 2 * PAGE_SIZE), 0)
    root.add(MemoryRegion.mmio("device", 8), 0x10, priority=1)
    view = render(root)
    assert not serves(view, 0, 4, is_write=False, page_size=PAGE_SIZE)
    assert not serves(view, PAGE_SIZE - 1, 2, is_write=False, page_size=PAGE_SIZE)
    assert serves(view, PAGE_SIZE, 4, is_write=True, page_size=PAGE_SIZE)


# through transactions


class Guest:
    """What a vCPU's thread notes and asks, with the moments in the test's hands."""

    def __init__(self, stage) -> None:
        self._history = stage.history
        self.gate = stage.blocker.add_gate("vCPU 0", lambda thread: None)

    def enter(self) -> None:
        self.gate.entered = self._history.completed

    def spurious(self, address: int, is_write: bool = False) -> bool:
        """Come out now, at `address`."""
        return self._history.is_spurious(self.gate.entered, self._history.started, address, 1, is_write=is_write)


@pytest.fixture
def guest(stage) -> Guest:
    return Guest(stage)


def _ram(pages: int = 1, max_pages: int | None = None) -> MemoryRegion:
    return MemoryRegion.ram("ram", pages * PAGE_SIZE, None if max_pages is None else max_pages * PAGE_SIZE)


def test_served_address_that_stays_is_spurious_at_every_moment_of_a_change(stage, guest) -> None:
    stage.memory.add(_ram(4), 0)
    guest.enter()
    moments = []
    stage.slots.before_call = lambda number: moments.append(guest.spurious(0))
    with stage.transaction("map"):
        stage.memory.add(MemoryRegion.mmio("hole", PAGE_SIZE), PAGE_SIZE, priority=1)
    assert moments == [True, True, True]
    assert guest.spurious(0)
    assert guest.spurious(0, is_write=True)


def test_served_address_that_is_added_never_counts_for_who_entered_before(stage, guest) -> None:
    guest.enter()
    moments = []
    stage.slots.before_call = lambda number: moments.append(guest.spurious(0))
    stage.memory.add(_ram(), 0)
    assert moments == [False]
    assert not guest.spurious(0)
    guest.enter()
    assert guest.spurious(0), "who enters after has no reason to come out there"


def test_served_address_that_is_removed_never_counts(stage, guest) -> None:
    region = _ram()
    stage.memory.add(region, 0)
    guest.enter()
    moments = []
    stage.slots.before_call = lambda number: moments.append(guest.spurious(0))
    stage.memory.remove(region)
    assert moments == [False], "while the change is made it is not in force yet, and must not count all the same"
    assert not guest.spurious(0)
    guest.enter()
    assert not guest.spurious(0)


def test_served_address_that_was_gone_for_one_generation_does_not_count(stage, guest) -> None:
    region = _ram()
    stage.memory.add(region, 0)
    guest.enter()
    stage.memory.remove(region)
    stage.memory.add(region, 0)
    assert not guest.spurious(0)


def test_served_rom_counts_reads_and_not_writes(stage, guest) -> None:
    stage.memory.add(MemoryRegion.rom("bios", b"x" * PAGE_SIZE), 0)
    guest.enter()
    assert guest.spurious(0)
    assert not guest.spurious(0, is_write=True)


def test_served_page_that_becomes_read_only_counts_reads_and_not_writes(stage, guest) -> None:
    region = _ram()
    stage.memory.add(region, 0)
    guest.enter()
    region.set_readonly(True)
    assert guest.spurious(0)
    assert not guest.spurious(0, is_write=True)


def test_served_failed_change_leaves_the_map_before_in_force(stage, guest) -> None:
    """The address was served before, was to go, and came back by the undo: who missed it has met a gap."""
    region = _ram(4)
    stage.memory.add(region, 0)
    guest.enter()
    stage.slots.reset(fail_at={1})
    with pytest.raises(MemorySlotError):
        stage.memory.add(MemoryRegion.mmio("hole", PAGE_SIZE), 0, priority=1)
    assert guest.spurious(0), "the map that failed was in force for nobody"
    assert guest.spurious(PAGE_SIZE)
    assert stage.history.completed == stage.history.started
    guest.enter()
    assert guest.spurious(0)


def test_served_address_that_a_failed_change_was_to_bring_never_counts(stage, guest) -> None:
    guest.enter()
    stage.slots.reset(fail_at={1})

    def change() -> None:
        with stage.transaction():
            stage.memory.add(_ram(), 0)
            stage.memory.add(_ram(), 4 * PAGE_SIZE)

    with pytest.raises(MemorySlotError):
        change()
    assert [kind for kind, _ in stage.slots.calls] == ["create", "create", "delete"]
    assert not guest.spurious(0), "it was there for a moment, and nobody was promised that it would be"
    guest.enter()
    assert not guest.spurious(0)


def test_served_view_is_old_until_the_change_is_complete(stage, guest) -> None:
    seen = []
    stage.slots.before_call = lambda number: seen.append((stage.history.started, stage.history.completed))
    stage.memory.add(_ram(), 0)
    assert seen == [(1, 0)]
    assert (stage.history.started, stage.history.completed) == (1, 1)


def test_served_ports_and_refused_changes_make_no_generation(stage) -> None:
    stage.io.add(MemoryRegion.mmio("port", 8), 0)
    stage.slots.slot_count = 0
    with pytest.raises(MemorySlotError):
        stage.memory.add(_ram(), 0)
    assert stage.history.started == 0


def test_served_history_keeps_what_is_needed_and_no_more(stage, guest) -> None:
    region = _ram(1, 4)
    stage.memory.add(region, 0)
    guest.enter()
    for size in (2, 3, 4, 1) * 5:
        region.resize(size * PAGE_SIZE)
    assert len(stage.history._views) == 21, "one that is still inside needs them all"
    assert guest.spurious(0)
    guest.enter()
    region.resize(2 * PAGE_SIZE)
    assert len(stage.history._views) == 2


@pytest.mark.parametrize("limit", ["MAX_VIEWS", "MAX_SECTIONS"])
def test_served_history_is_bounded_and_gives_the_benefit_of_the_doubt(stage, guest, monkeypatch, limit: str) -> None:
    monkeypatch.setattr(served, limit, 5)
    region = _ram(1, 4)
    stage.memory.add(region, 0)
    guest.enter()
    assert guest.spurious(0)
    for size in (2, 3, 4, 1) * 5:
        region.resize(size * PAGE_SIZE)
        assert len(stage.history._views) <= 5
        assert stage.history._section_count == sum(len(view) for _, view in stage.history._views)
    assert not guest.spurious(0), "nobody knows any more"
    guest.enter()
    assert guest.spurious(0)

"""Transactions: savepoints, one commit, and that a commit which fails anywhere changes nothing."""

from __future__ import annotations

import errno
import gc
import logging
import threading
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accel
from accel.address import PAGE_SIZE
from accel.errors import (
    AccelError,
    ClosedError,
    InhibitTimeoutError,
    MapLostError,
    MemorySlotError,
    RegionError,
    StateError,
    UsageError,
)
from accel.memory.listener import MemoryListener, Update
from accel.memory.region import MemoryRegion


def ram(name: str = "ram", pages: int = 2, max_pages: int | None = None) -> MemoryRegion:
    return MemoryRegion.ram(name, pages * PAGE_SIZE, None if max_pages is None else max_pages * PAGE_SIZE)


def mmio(name: str = "m", size: int = 0x100) -> MemoryRegion:
    return MemoryRegion.mmio(name, size)


def names(space) -> list[tuple[int, str]]:
    return [(section.range.start, section.region.name) for section in space.view]


# savepoints


def test_transaction_publishes_at_its_end(stage) -> None:
    view = stage.memory.view
    with stage.transaction():
        stage.memory.add(ram(), 0)
        assert stage.memory.view is view
        assert stage.slots.slots == {}
        assert stage.transactions.active
    assert names(stage.memory) == [(0, "ram")]
    assert stage.transactions.commits == 1
    stage.check()


def test_transaction_that_raises_takes_everything_back(stage) -> None:
    view = stage.memory.view
    with pytest.raises(ZeroDivisionError), stage.transaction():
        stage.memory.add(ram(), 0)
        raise ZeroDivisionError
    assert stage.memory.view is view
    assert stage.memory.root.children == ()
    assert stage.transactions.commits == 0
    stage.check()


def test_transaction_inside_another_acts_with_the_outer_one(stage) -> None:
    with stage.transaction():
        with stage.transaction():
            stage.memory.add(ram("a"), 0)
        assert stage.slots.calls == []
        with stage.transaction():
            stage.memory.add(ram("b"), 0x10000)
    assert names(stage.memory) == [(0, "a"), (0x10000, "b")]
    assert stage.transactions.commits == 1


def test_transaction_savepoint_takes_back_its_own_edits_only(stage) -> None:
    with stage.transaction():
        stage.memory.add(ram("before"), 0)
        with pytest.raises(ZeroDivisionError), stage.transaction():
            stage.memory.add(ram("inner"), 0x10000)
            with stage.transaction():
                stage.memory.add(ram("innermost"), 0x20000)
            raise ZeroDivisionError
        stage.memory.add(ram("after"), 0x30000)
    assert names(stage.memory) == [(0, "before"), (0x30000, "after")]
    stage.check()


def test_transaction_refused_edit_is_no_end_of_the_transaction(stage) -> None:
    region = ram()
    with stage.transaction():
        stage.memory.add(region, 0)
        with pytest.raises(RegionError):
            stage.memory.add(region, 0x1000)
    assert names(stage.memory) == [(0, "ram")]


def test_transaction_without_edits_commits_nothing(stage) -> None:
    calls = []
    stage.before_commit = lambda: calls.append(1)
    with stage.transaction("map"):
        pass
    assert (stage.transactions.commits, calls, stage.blocker.stats.inhibits) == (0, [], 0)


def test_transaction_whose_edits_show_nothing_commits_nothing(stage) -> None:
    region = ram()
    stage.memory.add(region, 0)
    commits, view = stage.transactions.commits, stage.memory.view
    with stage.transaction():
        region.set_enabled(False)
        region.set_enabled(True)
    stage.memory.add(ram("hidden"), 0, priority=-1)
    assert stage.transactions.commits == commits
    assert stage.memory.view is view
    with pytest.raises(ZeroDivisionError), stage.transaction():
        raise ZeroDivisionError
    assert len(stage.memory.root.children) == 2, "what was committed is not taken back later"


@settings(max_examples=200)
@given(st.data())
def test_transaction_of_random_edits_keeps_tree_view_and_slots_together(make_stage, data: st.DataObject) -> None:
    """Random transactions, each nested at random and failing at random, with random faults in the slot calls."""
    stage = make_stage(policy=data.draw(st.sampled_from(["least", "replace"])))
    regions = [ram(f"r{index}", 3, 6) for index in range(3)] + [mmio("m0", 2 * PAGE_SIZE), mmio("m1", 0x800)]
    rom = MemoryRegion.rom("rom", b"x" * 2 * PAGE_SIZE)
    regions += [rom, MemoryRegion.alias("a", regions[0], PAGE_SIZE, 2 * PAGE_SIZE)]
    stage.memory.add(regions[0], 0)

    def edit() -> None:
        region = data.draw(st.sampled_from(regions))
        at = data.draw(st.integers(0, 8)) * PAGE_SIZE + data.draw(st.sampled_from([0, 0, 0, 0x800]))
        match data.draw(st.sampled_from(["place", "remove", "resize", "enable", "readonly"])):
            case "place" if region.parent is None:
                stage.memory.add(region, at, data.draw(st.integers(-1, 1)))
            case "place":
                region.move(at)
            case "remove" if region.parent is not None:
                stage.memory.remove(region)
            case "resize":
                if region is not rom:
                    region.resize(data.draw(st.integers(1, 12)) * 0x800)
            case "enable":
                region.set_enabled(data.draw(st.booleans()))
            case "readonly" if region is not rom:
                region.set_readonly(data.draw(st.booleans()))

    def nest(depth: int) -> None:
        for _ in range(data.draw(st.integers(0, 3))):
            if depth < 3 and data.draw(st.booleans()):
                try:
                    with stage.transaction():
                        nest(depth + 1)
                except ZeroDivisionError:
                    pass
            else:
                edit()
        if data.draw(st.sampled_from([False] * 3 + [True])):
            raise ZeroDivisionError

    for _ in range(data.draw(st.integers(1, 4))):
        tree, view, slots = str(stage.memory), stage.memory.view, dict(stage.slots.slots)
        stage.slots.reset(fail_at=data.draw(st.sets(st.integers(0, 4), max_size=1)))
        try:
            with stage.transaction():
                nest(0)
        except (ZeroDivisionError, MemorySlotError):
            assert str(stage.memory) == tree
            assert stage.memory.view is view
            assert stage.slots.slots == slots
        stage.check()


# holds


def test_transaction_holds_where_a_deleted_page_is_added_back(stage) -> None:
    region = ram(pages=4)
    stage.memory.add(region, 0)
    assert (stage.blocker.stats.inhibits, stage.transactions.unheld) == (0, 1)
    held = []
    stage.slots.before_call = lambda number: held.append(stage.blocker.inhibited)
    region.set_readonly(True)
    assert held == [True, True]
    assert (stage.blocker.stats.inhibits, stage.transactions.unheld, stage.transactions.commits) == (1, 1, 2)
    stage.check()


def test_transaction_does_not_hold_for_growth_or_devices(stage) -> None:
    region = ram(pages=2, max_pages=4)
    stage.memory.add(region, 0)
    region.resize(4 * PAGE_SIZE)
    stage.memory.add(mmio(), 0x10000)
    assert stage.blocker.stats.inhibits == 0
    assert stage.transactions.unheld == stage.transactions.commits == 3


def test_transaction_unsafe_holds_nobody_but_for_the_whole_map(make_stage) -> None:
    stage = make_stage(hold="unsafe")
    region = ram()
    stage.memory.add(region, 0)
    region.set_readonly(True)
    assert stage.blocker.stats.inhibits == 0
    with stage.transaction("map"):
        region.set_readonly(False)
    assert stage.blocker.stats.inhibits == 1


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("what", ["ram", "mmio"])
def test_transaction_of_the_whole_map_always_holds(stage, what: str, nested: bool) -> None:
    held = []

    class Watch(MemoryListener):
        def prepare(self) -> Update | None:
            return WatchUpdate()

    class WatchUpdate(Update):
        def apply(self) -> None:
            held.append((stage.blocker.inhibited, list(stage.memory.view)))

        def undo(self) -> None:
            raise AssertionError

    stage.memory.add_listener(Watch())
    held.clear()
    with stage.transaction("address" if nested else "map"), stage.transaction("map"):
        stage.memory.add(ram() if what == "ram" else mmio(), 0)
    assert held == [(True, [])], "held, and the old view in force while steps are applied"
    assert stage.transactions.unheld == 0
    held.clear()
    stage.memory.add(mmio("later"), 0x10000)
    assert held == [(False, held[0][1])], "the next transaction is an ordinary one"


def test_transaction_atomic_is_one_of_two_words(stage) -> None:
    with pytest.raises(UsageError, match="atomic = 'Map': must be 'address' or 'map'"), stage.transaction("Map"):
        pass
    stage.check()


def test_transaction_views_are_published_while_everybody_is_held(stage) -> None:
    published = []
    end = stage.blocker.inhibit_end

    def note_and_end() -> None:
        published.append(names(stage.memory))
        end()

    stage.blocker.inhibit_end = note_and_end
    with stage.transaction("map"):
        stage.memory.add(ram(), 0)
    assert published == [[(0, "ram")]]


def test_transaction_that_cannot_get_everybody_out_changes_nothing(make_stage, spawn) -> None:
    stage = make_stage(timeout=0.05)
    stage.memory.add(ram("old"), 0)
    tree, view, slots = str(stage.memory), stage.memory.view, dict(stage.slots.slots)
    inside, done = threading.Event(), threading.Event()

    def stuck() -> None:
        with stage.blocker.vm_call("set_irq"):
            inside.set()
            assert done.wait(60)

    worker = spawn(stuck)
    assert inside.wait(60)
    stage.slots.reset()
    with pytest.raises(InhibitTimeoutError, match="the VM in set_irq"), stage.transaction("map"):
        stage.memory.add(ram("new"), 0x10000)
    done.set()
    worker.join()
    assert (str(stage.memory), stage.memory.view, stage.slots.slots) == (tree, view, slots)
    assert stage.slots.calls == []
    assert stage.transactions.unheld == stage.transactions.commits == 1
    stage.check()


# failures


class Planned(MemoryListener):
    """A listener whose plan the test writes."""

    def __init__(self, name: str, log: list[str], priority: int = 0) -> None:
        self.name = name
        self.priority = priority
        self.log = log
        self.refuse: Exception | None = None
        self.fail_apply: BaseException | None = None
        self.fail_undo: BaseException | None = None
        self.fail_commit: BaseException | None = None

    def prepare(self) -> Update | None:
        if self.refuse is not None:
            raise self.refuse
        return PlannedUpdate(self)

    def commit(self) -> None:
        self.log.append(f"commit {self.name}")
        if self.fail_commit is not None:
            raise self.fail_commit

    def abort(self) -> None:
        self.log.append(f"abort {self.name}")


class PlannedUpdate(Update):
    def __init__(self, listener: Planned) -> None:
        self._listener = listener

    def apply(self) -> None:
        self._listener.log.append(f"apply {self._listener.name}")
        if self._listener.fail_apply is not None:
            raise self._listener.fail_apply

    def undo(self) -> None:
        self._listener.log.append(f"undo {self._listener.name}")
        if self._listener.fail_undo is not None:
            raise self._listener.fail_undo


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def planned(stage, log) -> list[Planned]:
    """Three listeners that apply something, in order of priority; the slot table is the last to apply."""
    listeners = [Planned(name, log, priority) for priority, name in enumerate("abc")]
    for one in listeners:
        stage.memory.add_listener(one)
    log.clear()
    return listeners


def test_transaction_refused_in_prepare_changes_nothing(stage, planned, log) -> None:
    refusal = MemorySlotError("SET", errno.ENOSPC, slot=9, gpa=0, hva=0, size=1, flags=0)
    planned[2].refuse = refusal
    with pytest.raises(MemorySlotError) as caught:
        stage.memory.add(ram(), 0)
    assert caught.value is refusal
    assert log == ["abort c", "abort b", "abort a"]
    assert stage.memory.root.children == ()
    assert stage.slots.calls == []
    stage.check()


def test_transaction_of_too_many_slots_is_refused_and_a_smaller_one_goes(stage) -> None:
    stage.slots.slot_count = 2
    with pytest.raises(MemorySlotError, match="ENOSPC"), stage.transaction():
        for at in range(3):
            stage.memory.add(ram(f"r{at}", 1), at * 0x10000)
    stage.check()
    stage.memory.add(ram("r", 1), 0)
    stage.check()


@pytest.mark.parametrize("failing", range(3))
def test_transaction_failing_in_apply_undoes_all_appliers_in_reverse(stage, planned, log, failing: int) -> None:
    planned[failing].fail_apply = AccelError("no")
    view = stage.memory.view
    with pytest.raises(AccelError, match="no"):
        stage.memory.add(ram(), 0)
    done = "abc"[: failing + 1]
    assert log[:-3] == [f"apply {name}" for name in done] + [f"undo {name}" for name in reversed(done)]
    assert log[-3:] == ["abort c", "abort b", "abort a"]
    assert stage.memory.view is view
    assert stage.memory.root.children == ()
    stage.check()
    planned[failing].fail_apply = None
    stage.memory.add(ram(), 0)
    stage.check()


@pytest.mark.parametrize("policy", ["least", "replace"])
def test_transaction_failing_at_each_slot_call_leaves_the_map_before(make_stage, policy: str, log) -> None:
    """A change of several deletes and creates, failing at each of its calls in turn, until none is left to fail."""
    stage = make_stage(policy=policy)
    first = Planned("first", log)
    stage.memory.add_listener(first)
    one, two = ram("one", 4), ram("two", 4)
    with stage.transaction():
        stage.memory.add(one, 0)
        stage.memory.add(two, 0x10000)
    view, slots, tree = stage.memory.view, dict(stage.slots.slots), str(stage.memory)
    for step in range(100):
        stage.slots.reset(fail_at={step})
        log.clear()
        try:
            with stage.transaction():
                stage.memory.add(mmio("hole", PAGE_SIZE), PAGE_SIZE, priority=1)
                two.set_readonly(True)
                two.move(0x20000)
                stage.memory.add(ram("three"), 0x10000)
        except MemorySlotError as error:
            assert error.errno == errno.ENOMEM
            assert log == ["apply first", "undo first", "abort first"]
            assert stage.memory.view is view
            assert stage.slots.slots == slots
            assert str(stage.memory) == tree
            stage.check()
        else:
            break
    assert step == len(stage.slots.calls) > 4
    assert stage.memory.view != view
    stage.check()


def test_transaction_that_cannot_be_undone_poisons_the_vm(stage, spawn) -> None:
    region = ram(pages=4)
    stage.memory.add(region, 0)
    gate = stage.blocker.add_gate("vCPU 0", lambda thread: None)
    view, tree = stage.memory.view, str(stage.memory)
    stage.slots.reset(fail_at={1, 2})
    with pytest.raises(MapLostError, match="could not be undone") as caught:
        region.set_readonly(True)
    assert caught.value.slots == ()
    assert isinstance(caught.value.__cause__, (MemorySlotError, MapLostError))
    assert stage.memory.view is view
    assert str(stage.memory) == tree

    def enter() -> None:
        gate.enter()

    for _ in range(3):
        with pytest.raises(MapLostError, match="could not be undone"):
            spawn(enter).join()
        assert not gate.busy
    stage.slots.reset()
    with pytest.raises(MapLostError):
        stage.memory.add(ram("more"), 0x10000)
    assert stage.slots.calls == [], "nothing is applied to a map that nobody knows"
    assert str(stage.memory) == tree
    with pytest.raises(MapLostError):
        stage.memory.remove_listener(stage.slots)
    assert not stage.big_lock.held()


@pytest.mark.parametrize("error", [AccelError("undo"), KeyError("undo"), MapLostError("undo", ["slot 1"])])
def test_transaction_poison_has_the_failed_undo_as_its_cause(stage, planned, log, error: Exception) -> None:
    planned[1].fail_apply = AccelError("apply")
    planned[1].fail_undo = error
    with pytest.raises(MapLostError, match="undo") as caught:
        stage.memory.add(ram(), 0)
    assert log[:3] == ["apply a", "apply b", "undo b"]
    assert caught.value is error or caught.value.__cause__ is error
    with pytest.raises(MapLostError):
        stage.blocker.check()


def test_transaction_commit_that_raises_is_logged_and_the_change_is_in_force(stage, planned, log, caplog) -> None:
    planned[0].fail_commit = ValueError("too late")
    with caplog.at_level(logging.ERROR):
        stage.memory.add(ram(), 0)
    assert log[-3:] == ["commit a", "commit b", "commit c"]
    assert "'a' failed in commit" in caplog.text
    assert "too late" in caplog.text
    assert names(stage.memory) == [(0, "ram")]
    stage.check()


def test_transaction_interrupted_after_publishing_takes_nothing_back(stage, planned, log) -> None:
    planned[0].fail_commit = SystemExit()
    region = ram()
    with pytest.raises(SystemExit):
        stage.memory.add(region, 0)
    assert not any("abort" in line for line in log)
    assert region.parent is stage.memory.root
    assert names(stage.memory) == [(0, "ram")]
    assert stage.transactions.commits == 1
    stage.check()


def test_transaction_that_ends_the_program_on_letting_go_is_in_force_for_all(stage, planned, log) -> None:
    end = stage.blocker.inhibit_end

    def end_and_exit() -> None:
        end()
        raise SystemExit

    stage.blocker.inhibit_end = end_and_exit
    with pytest.raises(SystemExit), stage.transaction("map"):
        stage.memory.add(ram(), 0)
    assert log[-3:] == ["commit a", "commit b", "commit c"]
    assert names(stage.memory) == [(0, "ram")]
    stage.check()


def test_transaction_journal_left_by_an_interrupt_is_taken_back_before_the_next(stage, monkeypatch) -> None:
    region = ram()
    with monkeypatch.context() as patched:
        patched.setattr(stage.transactions, "_mend", lambda: None)
        with pytest.raises(KeyboardInterrupt), stage.transaction():
            stage.memory.add(region, 0)
            raise KeyboardInterrupt
    stage.memory.add(mmio(), 0x10000)
    assert names(stage.memory) == [(0x10000, "m")]
    assert region.parent is None
    stage.check()


# who may do what when


@pytest.mark.parametrize(
    "callback", ["begin", "region_add", "region_del", "region_nop", "prepare", "coalesced_io_add", "coalesced_io_del"]
)
def test_transaction_listener_that_edits_is_refused(stage, callback: str) -> None:
    class Meddler(MemoryListener):
        armed = False

    def edit(self, section=None, window=None) -> None:
        if self.armed:
            stage.memory.add(mmio("meddled"), 0x50000)

    setattr(Meddler, callback, edit)
    queued, gone = MemoryRegion.mmio("queued", 8, coalesced=True), MemoryRegion.mmio("gone", 8, coalesced=True)
    stage.memory.add(gone, 0x9000)
    stage.memory.add(mmio("stays"), 0xA000)
    meddler = Meddler()
    stage.memory.add_listener(meddler)
    meddler.armed = True
    view = stage.memory.view
    with pytest.raises(StateError, match="cannot be edited by a listener"), stage.transaction():
        stage.memory.remove(gone)
        stage.memory.add(queued, 0)
    assert stage.memory.view is view
    meddler.armed = False
    stage.memory.add(queued, 0)
    stage.check()


@pytest.mark.parametrize("callback", ["commit", "abort"])
def test_transaction_listener_that_edits_at_the_end_is_refused_and_logged(stage, callback: str, caplog) -> None:
    class Meddler(MemoryListener):
        name = "meddler"

    setattr(Meddler, callback, lambda self: stage.memory.add(mmio("meddled"), 0x50000))
    stage.memory.add_listener(Meddler())
    caplog.clear()
    if callback == "abort":
        stage.slots.reset(fail_at={0})
        with pytest.raises(MemorySlotError):
            stage.memory.add(ram(), 0)
        assert names(stage.memory) == []
    else:
        stage.memory.add(ram(), 0)
        assert names(stage.memory) == [(0, "ram")]
    assert f"'meddler' failed in {callback}" in caplog.text
    assert "cannot be edited by a listener" in caplog.text
    stage.check()


def test_transaction_update_that_edits_is_refused(stage, planned) -> None:
    planned[0].prepare = lambda: EditingUpdate(stage)
    with pytest.raises(StateError, match="cannot be edited by a listener"):
        stage.memory.add(ram(), 0)
    stage.check()


class EditingUpdate(Update):
    def __init__(self, stage) -> None:
        self._stage = stage

    def apply(self) -> None:
        self._stage.memory.add(mmio(), 0x50000)

    def undo(self) -> None:
        pass


def test_transaction_takes_the_lock_of_each_update_around_hold_and_steps(stage, slot_table) -> None:
    """Several listeners with slots locks of their own are one rank; the transaction may hold them all."""
    other = slot_table()
    stage.memory.add_listener(other)
    seen = []
    for table in (stage.slots, other):
        table.before_call = lambda number: seen.append((stage.slots.lock.held(), other.lock.held()))
    with stage.transaction("map"):
        stage.memory.add(ram(), 0)
    assert seen == [(True, True), (True, True)]
    assert other.pages() == stage.slots.pages()
    assert not other.lock.held()
    stage.check()


def test_transaction_second_applier_failing_undoes_the_first_ones_slots(stage, slot_table) -> None:
    other = slot_table()
    region = ram(pages=4)
    stage.memory.add_listener(other)
    stage.memory.add(region, 0)
    before = stage.slots.pages()
    other.reset(fail_at={1})
    with pytest.raises(MemorySlotError):
        region.set_readonly(True)
    assert stage.slots.pages() == other.pages() == before
    stage.check()


def test_transaction_of_another_thread_waits_for_the_end(stage, spawn) -> None:
    started = threading.Event()

    def edit() -> list[tuple[int, str]]:
        started.set()
        stage.memory.add(ram("theirs"), 0x10000)
        return names(stage.memory)

    with stage.transaction():
        worker = spawn(edit)
        assert started.wait(60)
        stage.memory.add(ram("ours"), 0)
    assert worker.join() == [(0, "ours"), (0x10000, "theirs")]
    assert stage.transactions.commits == 2


def test_transaction_active_is_of_the_thread_that_is_in_it(stage, spawn) -> None:
    assert not stage.transactions.active
    with stage.big_lock:
        assert not stage.transactions.active
    with stage.transaction():
        assert stage.transactions.active
        assert spawn(lambda: stage.transactions.active).join() is False


def test_transaction_before_commit_comes_first_and_its_edits_belong_to_the_change(stage) -> None:
    seen = []

    def drain() -> None:
        seen.append((names(stage.memory), stage.slots.calls[:]))
        if len(seen) == 1:
            stage.memory.add(mmio("from-a-handler"), 0x50000)

    stage.before_commit = drain
    stage.memory.add(ram(), 0)
    assert seen == [([], [])]
    assert names(stage.memory) == [(0, "ram"), (0x50000, "from-a-handler")]
    assert stage.transactions.commits == 1


def test_transaction_before_commit_that_raises_takes_everything_back(stage) -> None:
    def drain() -> None:
        raise AccelError("a device failed")

    stage.before_commit = drain
    with pytest.raises(AccelError, match="a device failed"):
        stage.memory.add(ram(), 0)
    assert stage.memory.root.children == ()
    stage.check()


def test_transaction_after_close_is_refused(stage) -> None:
    stage.transactions.close()
    with pytest.raises(ClosedError, match="the VM is closed"):
        stage.memory.add(ram(), 0)
    assert stage.memory.root.children == ()


def test_transaction_changes_ports_and_memory_together(stage) -> None:
    stage.slots.reset(fail_at={0})
    with pytest.raises(MemorySlotError), stage.transaction():
        stage.io.add(mmio("port", 8), 0x3F8)
        stage.memory.add(ram(), 0)
    assert names(stage.io) == []
    stage.slots.reset()
    with stage.transaction():
        stage.io.add(mmio("port", 8), 0x3F8)
        stage.memory.add(ram(), 0)
    assert names(stage.io) == [(0x3F8, "port")]
    assert stage.transactions.commits == 1
    stage.check()


# other VMs, and the end


@pytest.mark.parametrize("what", ["transaction", "edit", "listener", "dirty log", "space"])
def test_transaction_inside_one_of_another_vm_is_refused(stage, make_stage, what: str) -> None:
    """A third thread may do it the other way round, and both would wait for ever."""
    other = make_stage()
    acts = {
        "transaction": lambda: other.transaction().__enter__(),
        "edit": lambda: other.memory.add(ram("theirs"), 0),
        "listener": lambda: other.memory.add_listener(MemoryListener()),
        "dirty log": other.dirty_log.sync,
        "space": other.memory.close,
    }
    message = "a transaction of another VM is open on this thread; end it first"
    with pytest.raises(StateError, match=message), stage.transaction():
        stage.memory.add(ram("ours"), 0)
        acts[what]()
    assert names(stage.memory) == names(other.memory) == []
    assert len(other.memory.listeners) == 1
    stage.check()
    other.check()
    with stage.transaction():
        stage.memory.add(ram("ours"), 0)
    with other.transaction():
        other.memory.add(ram("theirs"), 0)
    assert names(stage.memory) == [(0, "ours")]
    assert names(other.memory) == [(0, "theirs")]


def test_transaction_that_is_over_keeps_nothing_of_its_vm_alive(make_stage) -> None:
    stage = make_stage()
    region = ram()
    block = weakref.ref(region.block)
    stage.memory.add(region, 0)
    del stage, region
    gc.collect()
    assert block() is None


def test_transaction_of_another_vm_on_another_thread_goes_on(stage, make_stage, spawn) -> None:
    other = make_stage()
    with stage.transaction():
        stage.memory.add(ram("ours"), 0)
        spawn(lambda: other.memory.add(ram("theirs"), 0)).join()
        assert names(other.memory) == [(0, "theirs")]
    other.check()
    stage.check()


def test_transaction_listener_that_edits_another_vm_is_refused(stage, make_stage) -> None:
    other = make_stage()
    listener = MemoryListener()
    listener.region_add = lambda section: other.memory.add(mmio("meddled"), 0)
    stage.memory.add_listener(listener)
    with pytest.raises(StateError, match="a transaction of another VM is open"):
        stage.memory.add(ram(), 0)
    assert names(other.memory) == names(stage.memory) == []
    stage.check()
    other.check()


def test_transaction_rolled_back_leaves_nothing_for_a_later_unrelated_one(stage) -> None:
    """Neither damage nor journal: `Stage.check` looks for both, and renders everything anew."""
    region, box = ram("region"), MemoryRegion.container("box", 0x10000)
    box.add(mmio("inside"), 0)
    stage.memory.add(region, 0)
    with pytest.raises(ZeroDivisionError), stage.transaction():
        stage.memory.add(box, 0x10000)
        stage.memory.remove(region)
        region.resize(PAGE_SIZE)
        raise ZeroDivisionError
    stage.check()
    stage.memory.add(mmio("unrelated"), 0x80000)
    assert names(stage.memory) == [(0, "region"), (0x80000, "unrelated")]
    stage.check()


def test_transaction_work_put_off_that_raises_is_logged_and_the_rest_is_done(stage, caplog) -> None:
    done = []

    def fail() -> None:
        raise ValueError("too late")

    with stage.transaction():
        stage.memory.add(ram(), 0)
        stage.transactions.defer(fail)
        stage.transactions.defer(lambda: done.append(names(stage.memory)))
    assert done == [[(0, "ram")]]
    assert "too late" in caplog.text
    stage.check()


def test_transaction_work_put_off_cannot_edit(stage, caplog) -> None:
    with stage.transaction():
        stage.memory.add(ram(), 0)
        stage.transactions.defer(lambda: stage.memory.add(mmio("meddled"), 0x50000))
    assert "memory cannot be edited by a listener" in caplog.text
    assert names(stage.memory) == [(0, "ram")]
    stage.check()


def test_transaction_work_put_off_comes_after_the_vcpus_go_on_and_the_observers(stage, planned, log) -> None:
    with stage.transaction("map"):
        stage.memory.add(ram(), 0)
        stage.transactions.defer(lambda: log.append(f"held {stage.blocker.inhibited}"))
    assert log[-2:] == ["commit c", "held False"]


def test_transaction_of_a_poisoned_vm_pins_and_tells_nothing(stage, planned, log) -> None:
    stage.memory.add(ram(), 0)
    planned[0].fail_apply = planned[0].fail_undo = AccelError("no")
    with pytest.raises(MapLostError):
        stage.memory.add(ram("lost"), 0x10000)
    log.clear()
    late = ram("late")
    with pytest.raises(MapLostError, match="memory listener 'a', undo"):
        stage.memory.add(late, 0x20000)
    assert (late.block.pins, late.parent, log) == (0, None, [])


def test_vm_closed_by_a_listener_is_refused_and_goes_on() -> None:
    with accel.open_accelerator("mock") as mock, mock.create_vm() as vm:
        listener = MemoryListener()
        listener.region_add = lambda section: vm.close()
        vm.memory.add_listener(listener)
        with pytest.raises(StateError, match="cannot be edited by a listener while it is told of a change, nor the VM"):
            vm.memory.add(ram(), 0)
        assert not vm.closed
        vm.memory.remove_listener(listener)
        vm.memory.add(ram(), 0)
        assert len(vm.memory.view) == 1
        with pytest.raises(ClosedError, match="the VM was closed inside the transaction"), vm.transaction():
            vm.memory.add(ram("late"), 0x100000)
            vm.close()

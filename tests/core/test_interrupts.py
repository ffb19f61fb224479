"""Ctrl-C anywhere: a change of memory happens whole or not at all, and nothing stays held.

The sweeps bring an interrupt before each instruction in turn at which CPython looks for signals (a call, the start of
a function, a turn of a loop), inside whatever belongs to a commit or to a vCPU's entry. CPython itself then
decides where the handler runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import dis
import signal
import sys
import threading
import types
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
from memory_tree import every_region

from accel import blocker, gate, interrupts, vcpu
from accel.address import PAGE_SIZE
from accel.backend import VcpuBackend
from accel.errors import MemorySlotError
from accel.exits import ExitKind
from accel.interrupts import deliver_interrupts, interrupts_held_back
from accel.locks import Lock
from accel.memory import (
    address_space,
    commit,
    dirty_sync,
    journal,
    listener,
    pins,
    record,
    region,
    region_contents,
    region_tree,
    slot_plan,
    slot_update,
    transaction,
)
from accel.memory.address_space import AddressSpace
from accel.memory.dirty import DirtyClient
from accel.memory.region import MemoryRegion

#: At these CPython looks for signals.
_LOOKS = ("RESUME", "PRECALL", "CALL", "JUMP_BACKWARD")


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """The handler that an ordinary program has, and none of this module's left in the end."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


# holding back


def test_interrupt_held_back_arrives_at_the_end() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), interrupts_held_back():
        interrupt()
        steps.append("after")
        interrupt()
        steps.append("last")
    assert steps == ["after", "last"]


def test_interrupt_held_back_by_nested_blocks_arrives_at_the_end_of_the_outer() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), interrupts_held_back():
        with interrupts_held_back():
            interrupt()
        steps.append("between")
        with interrupts_held_back():
            pass
        steps.append("last")
    assert steps == ["between", "last"]


def test_interrupt_held_back_by_nested_blocks_can_be_delivered_inside() -> None:
    with interrupts_held_back(), interrupts_held_back():
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            deliver_interrupts()


def test_interrupt_without_one_nothing_is_raised_and_the_handler_is_back() -> None:
    with interrupts_held_back():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    deliver_interrupts()


def test_interrupt_held_back_goes_to_the_programs_own_handler_once() -> None:
    heard = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append((number, isinstance(frame, types.FrameType))))
    try:
        with interrupts_held_back():
            interrupt()
            interrupt()
            assert heard == []
        assert heard == [(signal.SIGINT, True)]
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_interrupt_that_is_ignored_or_fatal_is_left_so(handler: signal.Handlers) -> None:
    signal.signal(signal.SIGINT, handler)
    try:
        with interrupts_held_back():
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_interrupt_held_back_on_another_thread_is_nothing(spawn) -> None:
    def other() -> object:
        with interrupts_held_back():
            deliver_interrupts()
            return signal.getsignal(signal.SIGINT)

    assert spawn(other).join() is signal.default_int_handler


def test_interrupt_delivered_early_is_not_delivered_again() -> None:
    steps = []
    with interrupts_held_back():
        deliver_interrupts()
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            deliver_interrupts()
        steps.append("on")
    assert steps == ["on"]


def test_interrupt_during_an_error_comes_with_the_error_as_its_context() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, interrupts_held_back():
        interrupt()
        raise ZeroDivisionError
    assert isinstance(caught.value.__context__, ZeroDivisionError)


# sweeps


_looks_of: dict[int, tuple[types.CodeType, frozenset[int]]] = {}


def _looks(code: types.CodeType) -> frozenset[int]:
    """Return the instructions of `code` at which CPython looks for signals."""
    if id(code) not in _looks_of:
        places = frozenset(one.offset for one in dis.get_instructions(code) if one.opname.startswith(_LOOKS))
        _looks_of[id(code)] = code, places
    return _looks_of[id(code)][1]


def _interruption() -> defaultdict[None, None]:
    """Return a mapping whose first look-up simulates a SIGINT without looking for signals.

    That would run the handler inside the trace function. A look-up, unlike a call, is no place to look, and from
    there to the C function no Python code runs.
    """
    simulate = ctypes.pythonapi.PyErr_SetInterrupt
    simulate.restype = None
    return defaultdict(simulate)


def deliver_what_came_last() -> None:
    """Be a place where CPython looks for signals."""


def sweep(action: Callable[[], object], modules: tuple[types.ModuleType, ...], start: int) -> bool:
    """Run `action` with an interrupt at the `start`th place in `modules`; return False if it has fewer places."""
    files = {module.__file__ for module in modules}
    interruption = _interruption()
    seen = 0

    def trace(frame: types.FrameType, event: str, argument: object) -> object:
        nonlocal seen
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in _looks(frame.f_code):
            seen += 1
            if seen == start:
                sys.settrace(None)
                interruption[None]
                return None
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
        deliver_what_came_last()
    except (KeyboardInterrupt, MemorySlotError):
        pass
    finally:
        sys.settrace(before)
    return seen >= start


COMMIT = (
    transaction, journal, pins, commit, record, listener, blocker, interrupts, slot_plan, slot_update, region,
    region_contents, region_tree, address_space, contextlib,
)  # fmt: skip
EDIT = (transaction, journal, region, region_contents, region_tree, contextlib)


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """The locks as they are in use; those that check the order are written in Python."""
    monkeypatch.setenv("ACCEL_LOCKDEP", "0")


def _settled(stage) -> None:
    """Let what an interrupt left be taken back, and check that all agree and everybody goes on."""
    with stage.transaction():
        pass
    stage.check()
    for one in every_region(stage.memory.root):
        below = list(one._children or ())
        assert len(below) == len(one._children or ()) == len(set(map(id, below)))
        assert all(child.parent is one for child in below)
        assert all(child in below for child in one.children_in(0, one.size))
    assert stage.blocker._depth == stage.blocker._owner == 0
    gate = stage.blocker.add_gate("vCPU 0", lambda thread: None)
    gate.enter()
    gate.leave()
    stage.blocker.remove_gate(gate)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("fault", [None, 1], ids=["that succeeds", "that fails"])
def test_interrupt_anywhere_in_a_commit_leaves_all_or_nothing(make_stage, spawn, fault: int | None) -> None:
    stage = make_stage()
    ram, extra = MemoryRegion.ram("ram", 4 * PAGE_SIZE), MemoryRegion.ram("extra", PAGE_SIZE)
    stage.memory.add(ram, 0)
    stage.memory.add(extra, 0x100000)
    readonly = False
    seen = set()

    def change() -> None:
        with stage.transaction():
            ram.set_readonly(not readonly)
            extra.set_enabled(readonly)

    for place in range(1, 10_000):
        readonly = ram.readonly
        old = stage.memory.view
        stage.slots.reset({fault} if fault is not None else set())
        more = sweep(change, COMMIT, place)
        stage.slots.reset()
        _settled(stage)
        if stage.memory.view is not old:
            assert ram.readonly is not readonly
            assert (stage.memory.view.find(0x100000) is None) is not readonly
        seen.add(stage.memory.view is not old)
        assert spawn(lambda: _take(stage.big_lock)).join()
        if not more:
            break
    else:
        pytest.fail("the sweep has no end")
    assert place > 150
    assert seen == ({True, False} if fault is None else {False})


def _tree(stage, regions: list[MemoryRegion]) -> object:
    """Return all that an edit can change."""
    return [
        (
            one.name, one.parent and one.parent.name, one.offset if one.parent else 0, one.size, one.priority,
            one.enabled, one.target_offset, one.readonly, one.log_mask, one.dirty.mask if one.dirty else 0,
            one._owner is not None, sorted(alias.name for alias in one.aliases()), one.block and one.block.pins,
            one.block and one.block.size, [child.name for child in one.children],
        )
        for one in (stage.memory.root, *regions)
    ]  # fmt: skip


def _edits(stage) -> tuple[list[MemoryRegion], Callable[[], None], Callable[[], None]]:
    """Return regions of a stage, and two groups of edits of them."""
    moved, grown, gone, logged = (MemoryRegion.ram(name, PAGE_SIZE, 4 * PAGE_SIZE) for name in "abcd")
    inner = MemoryRegion.container("box", 0x10000)
    shown, late = MemoryRegion.alias("shown", moved), MemoryRegion.mmio("late", 0x100)
    for number, one in enumerate((moved, grown, gone, logged, shown)):
        stage.memory.add(one, number * 0x10000)
    logged.start_log(DirtyClient.VGA)
    inner.add(late, 0x100)
    fresh = MemoryRegion.alias("fresh", inner, 0, 0x1000)

    def first() -> None:
        stage.memory.add(fresh, 0x100000)
        stage.memory.remove(gone)
        grown.resize(2 * PAGE_SIZE)
        logged.stop_log(DirtyClient.VGA)
        moved.start_log(DirtyClient.CODE)

    def second() -> None:
        moved.move(0x80000)
        shown.set_priority(-1)
        shown.set_target_offset(0x10)
        grown.set_readonly(True)
        late.set_enabled(False)

    return [moved, grown, gone, logged, shown, inner, late, fresh], first, second


def _sweep_all(action: Callable[[int], bool], least: int) -> None:
    """Call `action` with each place in turn until it says that there are no more."""
    for place in range(1, 10_000):
        if not action(place):
            assert place > least
            return
    pytest.fail("the sweep has no end")


@pytest.mark.usefixtures("unchecked")
def test_interrupt_anywhere_in_edits_takes_all_of_them_back_or_none(make_stage) -> None:
    def outcome(place: int) -> tuple[object, object, bool, bool]:
        stage = make_stage()
        regions, first, second = _edits(stage)
        old, view = _tree(stage, regions), stage.memory.view

        def change() -> None:
            with stage.transaction():
                first()
                second()

        more = sweep(change, EDIT, place)
        _settled(stage)
        return old, _tree(stage, regions), stage.memory.view is view, more

    old, new, _, _ = outcome(1 << 30)
    seen = set()

    def at(place: int) -> bool:
        before, after, same, more = outcome(place)
        assert before == old
        assert after == (old if same else new)
        seen.add(same)
        return more

    _sweep_all(at, 600)
    assert seen == {True, False}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("fails", [False, True], ids=["that succeeds", "that fails"])
def test_interrupt_anywhere_in_a_savepoint_takes_back_that_savepoint(make_stage, fails: bool) -> None:
    """Also where the interrupt keeps it from doing so itself, and the outer transaction goes on."""

    def outcome(place: int, inside: bool) -> tuple[object, bool]:
        stage = make_stage()
        regions, first, second = _edits(stage)
        more = False

        def savepoint() -> None:
            with contextlib.suppress(ZeroDivisionError), stage.transaction():
                second()
                if fails:
                    raise ZeroDivisionError

        with stage.transaction():
            first()
            if inside:
                more = sweep(savepoint, EDIT, place)
            stage.memory.add(MemoryRegion.mmio("last", 0x100), 0x90000)
        _settled(stage)
        return _tree(stage, regions), more

    without, whole = outcome(0, False)[0], outcome(1 << 30, True)[0]
    assert (without == whole) is fails
    seen = []

    def at(place: int) -> bool:
        after, more = outcome(place, True)
        assert after in (without, whole)
        seen.append(after == whole)
        return more

    _sweep_all(at, 200)
    assert set(seen) == ({True} if fails else {True, False})


class Balance(listener.MemoryListener):
    """Counts starts and stops of the global log."""

    name = "balance"
    started = 0

    def log_global_start(self) -> None:
        self.started += 1

    def log_global_stop(self) -> None:
        self.started -= 1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("what", ["start", "stop", "collect"])
def test_interrupt_anywhere_in_a_dirty_log_call_loses_no_page_and_no_count(make_stage, what: str) -> None:
    def at(place: int) -> bool:
        stage = make_stage()
        balance, ram = Balance(), MemoryRegion.ram("ram", 2 * PAGE_SIZE)
        stage.memory.add_listener(balance)
        stage.memory.add(ram, 0)
        ram.start_log(DirtyClient.VGA)
        if what == "stop":
            stage.dirty_log.start_global()
        stage.slots.guest_write(0, 1)
        found = []
        action = {
            "start": stage.dirty_log.start_global,
            "stop": stage.dirty_log.stop_global,
            "collect": lambda: found.append(stage.dirty_log.collect(ram, DirtyClient.VGA)),
        }[what]
        more = sweep(action, (dirty_sync, listener, transaction, journal, interrupts, contextlib), place)
        _settled(stage)
        assert balance.started == stage.dirty_log.is_global == len(stage.dirty_log._logs)
        assert ram.dirty.mask == DirtyClient.VGA | (DirtyClient.MIGRATION if stage.dirty_log.is_global else 0)
        if not found and what != "collect":
            assert stage.dirty_log.collect(ram, DirtyClient.VGA).page_count == 1
        return more

    _sweep_all(at, 50)


@pytest.mark.usefixtures("unchecked")
def test_interrupt_anywhere_in_the_life_of_a_space_leaves_it_whole_or_not_there(make_stage) -> None:
    def at(place: int) -> bool:
        stage = make_stage()
        root, ram = MemoryRegion.container("bus", 1 << 20), MemoryRegion.ram("ram", PAGE_SIZE)
        root.add(ram, 0)
        balance = Balance()

        def live() -> None:
            bus = AddressSpace("bus", stage.transactions, root)
            bus.add_listener(balance)
            bus.remove_listener(balance)
            bus.add_listener(balance)
            bus.close()

        more = sweep(live, (address_space, transaction, journal, pins, interrupts, contextlib), place)
        _settled(stage)
        spaces = {one.name: one for one in stage.transactions.spaces}
        assert list(spaces) in (["memory", "io"], ["memory", "io", "bus"])
        assert (balance in stage.transactions.listeners) is ("bus" in spaces and balance in spaces["bus"].listeners)
        assert ram.block.pins == (len(spaces["bus"].view) if "bus" in spaces else 0)
        if "bus" in spaces:
            spaces["bus"].close()
        ram.release()
        return more

    _sweep_all(at, 100)


def _take(lock: Lock) -> bool:
    with lock:
        return True


class Backend(VcpuBackend):
    """A guest that halts at once."""

    record = memoryview(bytearray(24)).cast("Q")
    io_data = memoryview(bytearray(8))

    def run(self) -> int:
        return ExitKind.HALT

    def kick(self, thread_id: int) -> None:
        pass

    def close(self) -> None:
        pass


def _enters(stage) -> Callable[[], object]:
    """Return a run of a vCPU."""
    one = vcpu.Vcpu(types.SimpleNamespace(blocker=stage.blocker, big_lock=stage.big_lock), 0, Backend())
    return one.run


def _calls(stage) -> Callable[[], object]:
    """Return a call on the VM."""

    def call() -> None:
        with stage.blocker.vm_call("set_irq"):
            pass

    return call


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
@pytest.mark.parametrize("make", [_enters, _calls], ids=["vcpu", "vm"])
def test_interrupt_anywhere_in_an_entry_leaves_nobody_inside(make_stage, spawn, make, held: bool) -> None:
    stage = make_stage()
    action = make(stage)
    for place in range(1, 1000):
        if held:
            begun, over = threading.Event(), threading.Event()
            inhibitor = spawn(lambda begun=begun, over=over: _hold_until_waited_for(stage, begun, over))
            assert begun.wait(60)
        more = sweep(action, (vcpu, gate, blocker, contextlib), place)
        if held:
            over.set()
            inhibitor.join()
        assert not any(gate.busy for gate in stage.blocker.gates)
        assert stage.blocker._vm_calls == {}
        assert stage.blocker._waiting == 0
        with stage.big_lock, stage.blocker.inhibit(0):
            pass
        action()
        if not more:
            break
    assert 5 < place < 999


def _hold_until_waited_for(stage, begun: threading.Event, over: threading.Event) -> None:
    with stage.big_lock, stage.blocker.inhibit(60):
        begun.set()
        while not stage.blocker._waiting and not over.wait(0.0005):
            pass


@pytest.mark.usefixtures("unchecked")
def test_interrupt_while_waiting_for_quiet_gives_up_and_changes_nothing(make_stage, spawn) -> None:
    """Nobody may have to wait the whole time-out for a Ctrl-C."""
    stage = make_stage(timeout=1000)
    done, inside = threading.Event(), threading.Event()

    def stuck() -> None:
        with stage.blocker.vm_call("set_irq"):
            inside.set()
            assert done.wait(60)

    def press() -> None:
        while not stage.blocker.inhibited:
            done.wait(0.001)
        signal.raise_signal(signal.SIGINT)

    worker = spawn(stuck)
    assert inside.wait(60)
    presser = spawn(press)
    view = stage.memory.view
    with pytest.raises(KeyboardInterrupt), stage.transaction("map"):
        stage.memory.add(MemoryRegion.ram("ram", PAGE_SIZE), 0)
    presser.join()
    done.set()
    worker.join()
    assert stage.memory.view is view
    assert stage.slots.calls == []
    stage.check()


@pytest.mark.usefixtures("unchecked")
def test_interrupt_between_two_slot_calls_waits_for_the_end_of_the_change(stage) -> None:
    ram = MemoryRegion.ram("ram", PAGE_SIZE)
    stage.memory.add(ram, 0)
    stage.slots.reset()
    stage.slots.before_call = lambda number: interrupt()
    with pytest.raises(KeyboardInterrupt):
        ram.set_readonly(True)
    assert len(stage.slots.calls) == 2
    assert stage.memory.view.find(0).readonly
    assert ram.readonly
    stage.check()


@pytest.mark.usefixtures("unchecked")
def test_interrupt_during_an_undo_waits_for_its_end(stage) -> None:
    ram = MemoryRegion.ram("ram", PAGE_SIZE)
    stage.memory.add(ram, 0)
    stage.slots.reset(fail_at={1})
    stage.slots.before_call = lambda number: interrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        ram.set_readonly(True)
    assert isinstance(caught.value.__context__, MemorySlotError)
    assert not ram.readonly
    stage.check()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("callback", ["begin", "region_add", "prepare"])
def test_interrupt_while_listeners_are_told_refuses_the_change_once_all_have_heard(stage, callback: str) -> None:
    """No listener is torn out of a callback, and nothing is applied."""
    heard = []
    interrupting, last = listener.MemoryListener(), listener.MemoryListener()
    stage.memory.add_listener(interrupting)
    stage.memory.add_listener(last)

    def press(section=None) -> None:
        interrupt()
        heard.append("on")

    setattr(interrupting, callback, press)
    setattr(last, callback, lambda section=None: heard.append("last"))
    last.abort = lambda: heard.append("abort")
    with pytest.raises(KeyboardInterrupt):
        stage.memory.add(MemoryRegion.ram("ram", PAGE_SIZE), 0)
    assert heard == ["on", "last", "abort"]
    assert stage.slots.calls == []
    stage.check()


@pytest.mark.parametrize("register", [True, False], ids=["register", "remove"])
def test_interrupt_while_a_listener_is_replayed_leaves_it_in_or_out(stage, slot_table, register: bool) -> None:
    stage.memory.add(MemoryRegion.ram("ram", PAGE_SIZE), 0)
    late = slot_table()
    if not register:
        stage.memory.add_listener(late)
    late.reset()
    late.before_call = lambda number: interrupt()
    with pytest.raises(KeyboardInterrupt):
        (stage.memory.add_listener if register else stage.memory.remove_listener)(late)
    assert (late in stage.memory.listeners) is register
    assert late.pages() == (stage.slots.pages() if register else {})
    stage.check()

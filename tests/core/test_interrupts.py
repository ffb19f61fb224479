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

from accel import blocker, gate, interrupts, vcpu
from accel.address import PAGE_SIZE
from accel.backend import VcpuBackend
from accel.errors import MemorySlotError
from accel.exits import ExitKind
from accel.interrupts import deliver_interrupts, interrupts_held_back
from accel.locks import Lock
from accel.memory import address_space, region, slot_plan, transaction
from accel.memory.render import render
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


COMMIT = (transaction, blocker, interrupts, slot_plan, region, address_space, contextlib)


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """The locks as they are in use; those that check the order are written in Python."""
    monkeypatch.setenv("ACCEL_LOCKDEP", "0")


def _settled(stage) -> None:
    """Let what an interrupt left be taken back, and check that all agree and everybody goes on."""
    with stage.transaction():
        pass
    stage.check()
    assert render(stage.memory.root) == stage.memory.view
    assert len(stage.transactions._journal) == 0
    assert stage.history.started == stage.history.completed
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
            assert begun.wait(20)
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
    with stage.big_lock, stage.blocker.inhibit(20):
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
            assert done.wait(20)

    def press() -> None:
        while not stage.blocker.inhibited:
            done.wait(0.001)
        signal.raise_signal(signal.SIGINT)

    worker = spawn(stuck)
    assert inside.wait(20)
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

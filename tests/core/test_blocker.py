"""The accel-blocker: who waits, who passes, who is kicked, and that nobody is inside while everybody is held.

Real threads meet at events. What a thread has begun to wait for is seen in the blocker's own count; where an
interleaving matters, the test makes it happen by doing the other thread's step inside a callback.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from accel import gate as gate_module
from accel.blocker import AccelBlocker
from accel.errors import ClosedError, InhibitTimeoutError, LockError, MapLostError, StateError
from accel.locks import BIG_LOCK, SLOTS_LOCK, Lock

PATIENCE = 60

KINDS = {
    "gil": (True, False),
    "gil checked": (True, True),
    "locked": (False, False),
    "locked checked": (False, True),
}


def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; a test that gets stuck here fails."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.0005)


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch) -> str:
    """Each kind of gate in turn: with and without a GIL, with and without lock validation."""
    gil, checked = KINDS[request.param]
    monkeypatch.setattr(gate_module, "GIL_ENABLED", gil)
    monkeypatch.setenv("ACCEL_LOCKDEP", "1" if checked else "0")
    return request.param


@pytest.fixture
def big_lock(kind: str) -> Lock:
    return Lock(BIG_LOCK)


@pytest.fixture
def blocker(big_lock: Lock) -> AccelBlocker:
    return AccelBlocker(big_lock)


class Vcpu:
    """A vCPU whose call into the accelerator lasts until it is kicked."""

    def __init__(self, blocker: AccelBlocker, index: int = 0) -> None:
        self.gate = blocker.add_gate(f"vCPU {index}", self.kick)
        self.inside = threading.Event()
        self.kicked = threading.Event()
        self.kicks: list[int] = []

    def kick(self, thread_id: int) -> None:
        self.kicks.append(thread_id)
        self.kicked.set()

    def run(self) -> None:
        """Enter once and come out when kicked."""
        self.gate.thread_id = threading.get_native_id()
        self.gate.operation = "run"
        self.gate.enter()
        try:
            self.inside.set()
            assert self.kicked.wait(PATIENCE)
            self.kicked.clear()
        finally:
            self.inside.clear()
            self.gate.leave()


def test_blocker_gate_kind_is_the_one_asked_for(blocker: AccelBlocker, kind: str) -> None:
    gil, checked = KINDS[kind]
    gate = blocker.add_gate("vCPU 0", lambda thread: None)
    assert isinstance(gate, gate_module._LockedVcpuGate) is not gil
    assert isinstance(gate, gate_module._OrderChecks) is checked


# who is held


def test_blocker_inhibit_of_nobody_is_quiet_at_once(blocker: AccelBlocker, big_lock: Lock) -> None:
    gate = blocker.add_gate("vCPU 0", lambda thread: 1 / 0)
    with big_lock, blocker.inhibit(PATIENCE):
        assert blocker.inhibited
        assert big_lock.held()
    assert not blocker.inhibited
    assert (blocker.stats.inhibits, blocker.stats.kicks) == (1, 0)
    gate.enter()
    gate.leave()


def test_blocker_kicks_those_inside_and_nobody_else(blocker: AccelBlocker, big_lock: Lock, spawn) -> None:
    vcpus = [Vcpu(blocker, index) for index in range(4)]
    threads = [spawn(vcpu.run) for vcpu in vcpus[:2]]
    for vcpu in vcpus[:2]:
        assert vcpu.inside.wait(PATIENCE)
    with big_lock, blocker.inhibit(PATIENCE):
        assert not any(vcpu.inside.is_set() for vcpu in vcpus)
        assert [len(vcpu.kicks) for vcpu in vcpus] == [1, 1, 0, 0], "once each"
        assert [vcpu.kicks[0] for vcpu in vcpus[:2]] == [vcpu.gate.thread_id for vcpu in vcpus[:2]]
    assert blocker.stats.kicks == 2
    for thread in threads:
        thread.join()


def test_blocker_new_arrivals_wait_outside(blocker: AccelBlocker, big_lock: Lock, spawn) -> None:
    vcpu = Vcpu(blocker)
    with big_lock:
        blocker.inhibit_begin(PATIENCE)
        thread = spawn(vcpu.run)
        until(lambda: blocker._waiting == 1)
        assert not vcpu.gate.busy
        assert not vcpu.inside.is_set()
        blocker.inhibit_end()
    assert vcpu.inside.wait(PATIENCE)
    assert vcpu.gate.busy
    assert vcpu.kicks == [], "who is outside is not kicked"
    vcpu.kick(0)
    thread.join()


def test_blocker_arrivals_wait_at_a_door_that_the_end_opens(blocker: AccelBlocker, big_lock: Lock, spawn) -> None:
    """A closed one for each inhibit, not only for the first: nobody spins, and none is opened twice."""
    for _ in range(2):
        with big_lock, blocker.inhibit(PATIENCE):
            thread = spawn(lambda: _enter_and_leave(blocker))
            until(lambda: blocker._waiting == 1)
            assert [door.locked() for door in blocker._doors] == [True]
        thread.join()
        assert blocker._doors == []


def _enter_and_leave(blocker: AccelBlocker) -> None:
    gate = blocker.add_gate("passing", lambda thread: None)
    gate.enter()
    gate.leave()
    blocker.remove_gate(gate)


def test_blocker_owner_thread_passes(blocker: AccelBlocker, big_lock: Lock) -> None:
    gate = blocker.add_gate("vCPU 0", lambda thread: 1 / 0)
    with big_lock, blocker.inhibit(PATIENCE):
        gate.enter()
        assert gate.busy
        gate.leave()
        with blocker.vm_call("set_irq"):
            pass
    assert not gate.busy


def test_blocker_big_lock_alone_does_not_pass_anothers_gate_check(blocker: AccelBlocker, big_lock: Lock, spawn) -> None:
    """Only the thread that inhibits passes; the next owner is another thread."""
    gate = blocker.add_gate("vCPU 0", lambda thread: None)
    with big_lock, blocker.inhibit(PATIENCE):
        pass
    owner_done = threading.Event()

    def second_owner() -> None:
        with big_lock, blocker.inhibit(PATIENCE):
            until(lambda: blocker._waiting == 1)
        owner_done.set()

    with big_lock:
        thread = spawn(second_owner)
    until(lambda: blocker.inhibited)
    gate.enter()
    assert owner_done.wait(PATIENCE), "this thread owned an earlier inhibit, not this one"
    gate.leave()
    thread.join()


def test_blocker_nested_inhibits_end_with_the_outermost(blocker: AccelBlocker, big_lock: Lock, spawn) -> None:
    vcpu = Vcpu(blocker)
    with big_lock:
        with blocker.inhibit(PATIENCE):
            with blocker.inhibit(0):
                assert blocker.inhibited
            assert blocker.inhibited
            thread = spawn(vcpu.run)
            until(lambda: blocker._waiting == 1)
            assert not vcpu.inside.is_set()
        assert not blocker.inhibited
    assert vcpu.inside.wait(PATIENCE)
    assert blocker.stats.inhibits == 1
    vcpu.kick(0)
    thread.join()


def test_blocker_error_inside_the_block_lets_everybody_go_on(blocker: AccelBlocker, big_lock: Lock) -> None:
    with pytest.raises(ZeroDivisionError), big_lock, blocker.inhibit(PATIENCE):
        raise ZeroDivisionError
    assert not blocker.inhibited
    gate = blocker.add_gate("vCPU 0", lambda thread: None)
    gate.enter()
    gate.leave()


def test_blocker_needs_the_big_lock(blocker: AccelBlocker, big_lock: Lock, spawn) -> None:
    with pytest.raises(LockError, match="big_lock must be held"):
        blocker.inhibit_begin(PATIENCE)
    with pytest.raises(LockError, match="big_lock must be held"):
        blocker.inhibit_end()
    with pytest.raises(LockError, match="big_lock must be held"):
        blocker.poison(MapLostError("x"))
    assert not blocker.inhibited
    with big_lock, pytest.raises(StateError, match="inhibit_end without inhibit_begin"):
        blocker.inhibit_end()
    with big_lock, blocker.inhibit(PATIENCE):
        pass


def test_blocker_who_waited_passes_before_the_next_inhibit(
    blocker: AccelBlocker, big_lock: Lock, spawn, monkeypatch
) -> None:
    """An inhibitor that comes back at once would otherwise find nobody inside, for ever."""
    # However slow this host is: the bound is for speed, and here everyone is to pass.
    monkeypatch.setattr("accel.blocker._FAIRNESS_TIMEOUT", PATIENCE)
    vcpu = Vcpu(blocker)
    passed = []

    def run() -> None:
        for _ in range(20):
            vcpu.run()
            passed.append(1)

    with big_lock:
        blocker.inhibit_begin(PATIENCE)
        thread = spawn(run)
        for count in range(20):
            until(lambda: blocker._waiting == 1)
            assert len(passed) == count
            blocker.inhibit_end()
            blocker.inhibit_begin(PATIENCE)
            assert vcpu.kicks == [vcpu.gate.thread_id] * (count + 1), "it was inside, and came out for this"
        blocker.inhibit_end()
    thread.join()


def test_blocker_stats_have_the_sum_and_the_longest_of_each_time(
    blocker: AccelBlocker, big_lock: Lock, monkeypatch
) -> None:
    # Begin, quiet, end of each: it waits 2, 5 and 1 seconds, and holds 3, 1 and 4.
    times = [0, 2, 5, 10, 15, 16, 20, 21, 25]
    monkeypatch.setattr(blocker, "_wait_until_quiet", lambda started, timeout: None)
    monkeypatch.setattr("accel.blocker.time.perf_counter", lambda: times.pop(0))
    for _ in range(3):
        with big_lock, blocker.inhibit(PATIENCE):
            pass
    stats = blocker.stats
    assert (stats.inhibits, stats.kicks) == (3, 0)
    assert (stats.wait_seconds, stats.wait_seconds_max) == (8, 5)
    assert (stats.hold_seconds, stats.hold_seconds_max) == (8, 4)


# time-outs


def test_blocker_timeout_names_who_is_inside_and_everybody_goes_on(
    blocker: AccelBlocker, big_lock: Lock, spawn
) -> None:
    stuck, quick, late = (Vcpu(blocker, index) for index in range(3))
    stuck.gate.kick = stuck.kicks.append

    def kick_out(thread_id: int) -> None:
        # Out within the time-out, however late this host lets its thread run.
        quick.kick(thread_id)
        until(lambda: not quick.gate.busy)

    quick.gate.kick = kick_out
    threads = [spawn(vcpu.run) for vcpu in (stuck, quick)]
    assert stuck.inside.wait(PATIENCE)
    assert quick.inside.wait(PATIENCE)
    in_call, end_call = threading.Event(), threading.Event()

    def call() -> None:
        with blocker.vm_call("set_irq"):
            in_call.set()
            assert end_call.wait(PATIENCE)

    threads.append(spawn(call))
    assert in_call.wait(PATIENCE)
    with big_lock:
        with pytest.raises(InhibitTimeoutError) as caught:
            blocker.inhibit_begin(0.05)
        assert not blocker.inhibited
        assert sorted((name, operation) for name, operation, _ in caught.value.inside) == [
            ("the VM", "set_irq"), ("vCPU 0", "run"),
        ]  # fmt: skip
        assert all(seconds >= 0.05 for _, _, seconds in caught.value.inside)
        seconds = next(seconds for name, _, seconds in caught.value.inside if name == "vCPU 0")
        assert f"vCPU 0 in run for {seconds:.3f} s" in str(caught.value)
        threads.append(spawn(late.run))
        assert late.inside.wait(PATIENCE), "whoever comes now passes"
        end_call.set()
        stuck.kicked.set()
        until(lambda: not stuck.gate.busy and not blocker._vm_calls)
        with blocker.inhibit(PATIENCE):
            assert not late.inside.is_set()
    assert blocker.stats.inhibits == 1
    for thread in threads:
        thread.join()


def test_blocker_timeout_lets_those_go_on_who_came_meanwhile(blocker: AccelBlocker, big_lock: Lock, spawn) -> None:
    stuck, late = Vcpu(blocker, 0), Vcpu(blocker, 1)
    threads = []

    def kick(thread_id: int) -> None:
        # While the inhibitor waits, another one comes and has to wait outside.
        threads.append(spawn(late.run))
        until(lambda: blocker._waiting == 1)

    stuck.gate.kick = kick
    threads.append(spawn(stuck.run))
    assert stuck.inside.wait(PATIENCE)
    with big_lock, pytest.raises(InhibitTimeoutError, match="vCPU 0 in run"):
        blocker.inhibit_begin(0.05)
    assert late.inside.wait(PATIENCE)
    for vcpu in (stuck, late):
        vcpu.kicked.set()
    for thread in threads:
        thread.join()


def test_blocker_who_leaves_at_the_last_moment_is_no_timeout(
    blocker: AccelBlocker, big_lock: Lock, spawn, monkeypatch
) -> None:
    """When the wait has run out, the gates are looked at once more before anybody is blamed."""
    vcpu = Vcpu(blocker)
    vcpu.gate.kick = lambda thread: None
    thread = spawn(vcpu.run)
    assert vcpu.inside.wait(PATIENCE)
    wait, now, ahead = blocker.left.wait, time.perf_counter, [0.0]
    monkeypatch.setattr("accel.blocker.time.perf_counter", lambda: now() + ahead[0])

    def wait_in_vain(timeout: float) -> bool:
        vcpu.kicked.set()
        until(lambda: not vcpu.gate.busy)
        assert wait(PATIENCE)
        ahead[0] = 2 * PATIENCE
        return False

    blocker.left.wait = wait_in_vain
    with big_lock, blocker.inhibit(PATIENCE):
        assert not vcpu.gate.busy
    thread.join()


def test_blocker_zero_timeout_takes_a_quiet_vm_and_kicks_a_busy_one(
    blocker: AccelBlocker, big_lock: Lock, spawn
) -> None:
    vcpu = Vcpu(blocker)
    with big_lock:
        with blocker.inhibit(0):
            pass
        thread = spawn(vcpu.run)
        assert vcpu.inside.wait(PATIENCE)
        vcpu.gate.kick = vcpu.kicks.append
        with pytest.raises(InhibitTimeoutError):
            blocker.inhibit_begin(0)
        assert len(vcpu.kicks) == 1
    vcpu.kicked.set()
    thread.join()


def test_blocker_kick_that_raises_lets_everybody_go_on(blocker: AccelBlocker, big_lock: Lock, spawn) -> None:
    vcpu = Vcpu(blocker)
    thread = spawn(vcpu.run)
    assert vcpu.inside.wait(PATIENCE)
    vcpu.gate.kick = lambda thread_id: 1 / 0
    with big_lock:
        with pytest.raises(ZeroDivisionError):
            blocker.inhibit_begin(PATIENCE)
        assert not blocker.inhibited
        vcpu.gate.kick = vcpu.kick
        with blocker.inhibit(PATIENCE):
            assert not vcpu.inside.is_set()
    thread.join()


# no wake-up is lost


def test_blocker_gate_left_between_scan_and_wait_is_noticed(
    blocker: AccelBlocker, big_lock: Lock, spawn, monkeypatch
) -> None:
    monkeypatch.setattr("accel.blocker._INTERRUPT_PERIOD", PATIENCE)
    vcpu = Vcpu(blocker)
    thread = spawn(vcpu.run)
    assert vcpu.inside.wait(PATIENCE)

    def kick(thread_id: int) -> None:
        vcpu.kicked.set()
        until(lambda: not vcpu.gate.busy)

    vcpu.gate.kick = kick
    with big_lock, blocker.inhibit(PATIENCE):
        pass
    thread.join()
    assert blocker.stats.wait_seconds < PATIENCE / 2


def test_blocker_gate_that_steps_back_after_the_scan_is_noticed(
    blocker: AccelBlocker, big_lock: Lock, spawn, monkeypatch
) -> None:
    """It had marked itself when the inhibitor looked, and sees the inhibitor when it looks itself."""
    monkeypatch.setattr("accel.blocker._INTERRUPT_PERIOD", PATIENCE)
    threads = []

    def kick(thread_id: int) -> None:
        threads.append(spawn(lambda: blocker.wait_outside(gate)))
        until(lambda: blocker._waiting == 1 and not gate.busy)

    gate = blocker.add_gate("vCPU 0", kick)
    gate.busy = True
    with big_lock, blocker.inhibit(PATIENCE):
        assert not gate.busy
    threads[0].join()
    assert gate.busy
    assert blocker.stats.wait_seconds < PATIENCE / 2


def test_blocker_vm_call_that_ends_wakes_who_waits_for_it(
    blocker: AccelBlocker, big_lock: Lock, spawn, monkeypatch
) -> None:
    monkeypatch.setattr("accel.blocker._INTERRUPT_PERIOD", PATIENCE)
    inside, waiting = threading.Event(), threading.Event()
    wait = blocker.left.wait

    def tell_and_wait(timeout: float) -> bool:
        waiting.set()
        return wait(timeout)

    def call() -> None:
        with blocker.vm_call("set_irq"):
            inside.set()
            assert waiting.wait(PATIENCE)

    blocker.left.wait = tell_and_wait
    thread = spawn(call)
    assert inside.wait(PATIENCE)
    _inhibit_once(blocker, big_lock)
    thread.join()
    assert blocker.stats.wait_seconds < PATIENCE / 2


def test_blocker_event_is_reset_before_the_gates_are_looked_at(blocker: AccelBlocker, big_lock: Lock) -> None:
    steps = []

    class Gate:
        name, operation, thread_id = "vCPU 0", "run", 0

        @property
        def busy(self) -> bool:
            steps.append(("look", blocker.inhibited))
            return len(steps) < 4

        def kick(self, thread_id: int) -> None:
            steps.append(("kick", blocker.inhibited))
            blocker.left.set()

    blocker._gates = (Gate(),)
    clear = blocker.left.clear

    def reset() -> None:
        steps.append(("reset", blocker.inhibited))
        clear()

    blocker.left.clear = reset
    with big_lock, blocker.inhibit(PATIENCE):
        assert steps == [("reset", True), ("look", True), ("kick", True), ("reset", True), ("look", True)]


def test_blocker_gate_marks_before_it_looks_and_unmarks_before_it_tells(big_lock: Lock, kind: str) -> None:
    steps = []

    class Watched(AccelBlocker):
        @property
        def inhibited(self) -> bool:
            steps.append(gate.busy)
            return False

        @inhibited.setter
        def inhibited(self, value: bool) -> None:
            pass

    blocker = Watched(big_lock)
    gate = blocker.add_gate("vCPU 0", lambda thread: None)
    gate.enter()
    gate.leave()
    assert steps == [True, False]


def test_blocker_gate_leaving_wakes_the_inhibitor_only_while_it_holds(blocker: AccelBlocker, big_lock: Lock) -> None:
    gate = blocker.add_gate("vCPU 0", lambda thread: None)
    gate.enter()
    gate.leave()
    assert not blocker.left.wait(0)
    with big_lock, blocker.inhibit(PATIENCE):
        gate.enter()
        gate.leave()
        assert blocker.left.wait(0)


def test_blocker_last_of_several_to_leave_wakes_the_inhibitor(
    blocker: AccelBlocker, big_lock: Lock, spawn, monkeypatch, kind: str
) -> None:
    """Two leave, one after the other: without a GIL each tells, otherwise the last."""
    monkeypatch.setattr("accel.blocker._INTERRUPT_PERIOD", PATIENCE)
    first, last = Vcpu(blocker, 0), Vcpu(blocker, 1)
    threads = [spawn(vcpu.run) for vcpu in (first, last)]
    told = []
    wait = blocker.left.wait

    def leave_in_turn(timeout: float) -> bool:
        for vcpu in (first, last):
            vcpu.kicked.set()
            vcpu.thread.join()
            told.append(wait(0))
        return told[-1]

    for vcpu, thread in zip((first, last), threads, strict=True):
        assert vcpu.inside.wait(PATIENCE)
        vcpu.gate.kick = vcpu.kicks.append
        vcpu.thread = thread
    blocker.left.wait = leave_in_turn
    with big_lock, blocker.inhibit(PATIENCE):
        assert not first.gate.busy
        assert not last.gate.busy
    assert told == [not KINDS[kind][0], True]


def test_blocker_kicked_thread_waits_outside_until_the_hold_ends(
    blocker: AccelBlocker, big_lock: Lock, spawn, monkeypatch, kind: str
) -> None:
    """It would enter again at once, so with a GIL it does not begin on anything else before."""
    monkeypatch.setattr("accel.blocker._INTERRUPT_PERIOD", PATIENCE)
    inside, kicked, out = threading.Event(), threading.Event(), threading.Event()
    gate = blocker.add_gate("vCPU 0", lambda thread: kicked.set())

    def run() -> None:
        gate.enter()
        inside.set()
        assert kicked.wait(PATIENCE)
        gate.step_out()
        out.set()

    thread = spawn(run)
    assert inside.wait(PATIENCE)
    with big_lock, blocker.inhibit(PATIENCE):
        assert not gate.busy
        if KINDS[kind][0]:
            assert blocker._waiting == 1
            assert not out.is_set()
        else:
            assert out.wait(PATIENCE)
    thread.join()
    assert blocker._waiting == 0
    assert not gate.busy


@pytest.mark.parametrize("how", ["nobody holds", "own hold", "poisoned"])
def test_blocker_kicked_thread_goes_on_where_no_others_hold_will_end(
    blocker: AccelBlocker, big_lock: Lock, spawn, how: str
) -> None:
    gate = blocker.add_gate("vCPU 0", lambda thread: None)
    if how == "own hold":
        with big_lock, blocker.inhibit(PATIENCE):
            gate.enter()
            gate.step_out()
    else:
        gate.enter()
        if how == "poisoned":
            spawn(lambda: _poison(blocker, big_lock)).join()
        gate.step_out()
    assert not gate.busy
    assert blocker._doors == []
    assert blocker._waiting == 0


# gates come and go


def test_blocker_gate_added_while_inhibited_is_held(blocker: AccelBlocker, big_lock: Lock, spawn) -> None:
    with big_lock, blocker.inhibit(PATIENCE):
        vcpu = Vcpu(blocker)
        thread = spawn(vcpu.run)
        until(lambda: blocker._waiting == 1)
        assert not vcpu.inside.is_set()
    assert vcpu.inside.wait(PATIENCE)
    vcpu.kick(0)
    thread.join()
    assert blocker.gates == (vcpu.gate,)


def test_blocker_gate_removed_while_it_is_waited_for_is_waited_for_no_more(
    blocker: AccelBlocker, big_lock: Lock, spawn, monkeypatch
) -> None:
    monkeypatch.setattr("accel.blocker._INTERRUPT_PERIOD", PATIENCE)
    vcpu = Vcpu(blocker)
    thread = spawn(vcpu.run)
    assert vcpu.inside.wait(PATIENCE)
    remover = []
    vcpu.gate.kick = lambda thread_id: remover.append(spawn(lambda: blocker.remove_gate(vcpu.gate)))
    with big_lock, blocker.inhibit(PATIENCE):
        assert vcpu.inside.is_set()
    assert blocker.gates == ()
    assert blocker.stats.wait_seconds < PATIENCE / 2
    vcpu.kicked.set()
    thread.join()
    remover[0].join()


def test_blocker_leaving_a_gate_that_was_never_entered_is_harmless(blocker: AccelBlocker, big_lock: Lock) -> None:
    gate = blocker.add_gate("vCPU 0", lambda thread: None)
    gate.leave()
    with big_lock, blocker.inhibit(PATIENCE):
        gate.leave()
        assert blocker.inhibited
    assert not gate.busy


# VM calls


def test_blocker_waits_for_a_vm_call_and_holds_the_next(blocker: AccelBlocker, big_lock: Lock, spawn) -> None:
    inside, done, second = threading.Event(), threading.Event(), threading.Event()

    def call(entered: threading.Event, end: threading.Event | None) -> None:
        with blocker.vm_call("set_irq"):
            entered.set()
            assert end is None or end.wait(PATIENCE)

    first_thread = spawn(lambda: call(inside, done))
    assert inside.wait(PATIENCE)
    inhibited = threading.Event()

    def inhibit() -> None:
        with big_lock, blocker.inhibit(PATIENCE):
            inhibited.set()
            until(lambda: blocker._waiting == 1)
            assert not second.is_set()

    inhibitor = spawn(inhibit)
    until(lambda: blocker.inhibited)
    assert not inhibited.is_set()
    second_thread = spawn(lambda: call(second, None))
    until(lambda: blocker._waiting == 1)
    done.set()
    for thread in (first_thread, inhibitor, second_thread):
        thread.join()
    assert second.is_set()
    assert blocker._vm_calls == {}


def test_blocker_vm_call_inside_a_vm_call_passes_and_ends_with_the_outer(
    blocker: AccelBlocker, big_lock: Lock, spawn
) -> None:
    """The inner one must not wait for an inhibitor that waits for the outer one."""
    with blocker.vm_call("outer"):
        inhibitor = spawn(lambda: _inhibit_once(blocker, big_lock))
        until(lambda: blocker.inhibited)
        with blocker.vm_call("inner"):
            pass
        assert blocker._vm_calls == {threading.get_ident(): "outer"}
    inhibitor.join()


def _inhibit_once(blocker: AccelBlocker, big_lock: Lock) -> None:
    with big_lock, blocker.inhibit(PATIENCE):
        pass


def test_blocker_vm_call_that_raises_is_over(blocker: AccelBlocker, big_lock: Lock) -> None:
    with pytest.raises(ZeroDivisionError), blocker.vm_call("set_irq"):
        raise ZeroDivisionError
    _inhibit_once(blocker, big_lock)


def test_blocker_vm_call_under_the_big_lock_passes(blocker: AccelBlocker, big_lock: Lock) -> None:
    with big_lock, blocker.inhibit(PATIENCE), blocker.vm_call("set_irq"), blocker.inhibit(0):
        assert blocker._vm_calls == {}


# lock validation: a gate counts as held


def _refused_inside(kind: str, call: Callable[[], object], match: str) -> None:
    if "checked" in kind:
        with pytest.raises(LockError, match=match):
            call()
    else:
        call()


def test_blocker_lock_that_an_inhibitor_holds_is_refused_inside_a_gate(
    blocker: AccelBlocker, big_lock: Lock, kind: str
) -> None:
    gate, other = (blocker.add_gate(f"vCPU {index}", lambda thread: None) for index in range(2))

    def use(lock: Lock) -> None:
        with lock:
            pass

    def nest() -> None:
        other.enter()
        other.leave()

    def call() -> None:
        with blocker.vm_call("set_irq"):
            pass

    gate.enter()
    _refused_inside(kind, lambda: use(big_lock), "big_lock is taken while holding gate")
    _refused_inside(kind, lambda: use(Lock(SLOTS_LOCK)), "slots_lock is taken while holding gate")
    _refused_inside(kind, nest, "gate is taken while holding gate")
    _refused_inside(kind, call, "gate is taken while holding gate")
    gate.leave()
    assert not other.busy
    with blocker.vm_call("set_irq"):
        _refused_inside(kind, lambda: use(big_lock), "big_lock is taken while holding gate")
        _refused_inside(kind, nest, "gate is taken while holding gate")
    with big_lock:
        gate.enter()
        gate.leave()


# poison


def _poison(blocker: AccelBlocker, big_lock: Lock, problem: str = "an undo failed") -> None:
    with big_lock:
        blocker.poison(MapLostError(problem, ["slot 1"]))


def test_blocker_poisoned_lets_nobody_in_again(blocker: AccelBlocker, big_lock: Lock, spawn) -> None:
    gate = blocker.add_gate("vCPU 0", lambda thread: None)
    blocker.check()
    _poison(blocker, big_lock)
    for _ in range(2):
        with pytest.raises(MapLostError, match="an undo failed; slots present: slot 1"):
            gate.enter()
        assert not gate.busy
        with pytest.raises(MapLostError), blocker.vm_call("set_irq"):
            pass
        with pytest.raises(MapLostError):
            spawn(gate.enter).join()
        with pytest.raises(MapLostError):
            blocker.check()
        _inhibit_once(blocker, big_lock)
    late = blocker.add_gate("vCPU 1", lambda thread: None)
    with pytest.raises(MapLostError):
        late.enter()
    assert blocker._waiting == 0
    assert blocker.inhibited


def test_blocker_poison_raises_an_error_of_its_own_for_each(blocker: AccelBlocker, big_lock: Lock) -> None:
    """One shared exception would grow by a traceback each time and mix up threads."""
    first = MapLostError("an undo failed", ["slot 1"])
    with big_lock:
        blocker.poison(first)
    caught = []
    for _ in range(3):
        with pytest.raises(MapLostError) as info:
            blocker.check()
        caught.append(info.value)
    assert len(set(map(id, caught))) == 3
    assert len({str(one) for one in caught}) == 1
    assert {one.slots for one in caught} == {("slot 1",)}
    assert all(one.__cause__ is first for one in caught)


def test_blocker_poison_brings_out_who_is_inside(blocker: AccelBlocker, big_lock: Lock, spawn) -> None:
    vcpus = [Vcpu(blocker, index) for index in range(2)]
    outside = Vcpu(blocker, 2)
    threads = [spawn(vcpu.run) for vcpu in vcpus]
    for vcpu in vcpus:
        assert vcpu.inside.wait(PATIENCE)
    _poison(blocker, big_lock)
    for vcpu, thread in zip(vcpus, threads, strict=True):
        thread.join()
        assert len(vcpu.kicks) == 1
    assert outside.kicks == []


def test_blocker_poison_kicks_the_others_if_one_cannot_be(blocker: AccelBlocker, big_lock: Lock, spawn, caplog) -> None:
    vcpus = [Vcpu(blocker, index) for index in range(3)]
    threads = [spawn(vcpu.run) for vcpu in vcpus]
    for vcpu in vcpus:
        assert vcpu.inside.wait(PATIENCE)
    vcpus[0].gate.kick = lambda thread_id: 1 / 0
    _poison(blocker, big_lock)
    for thread in threads[1:]:
        thread.join()
    assert "vCPU 0 could not be kicked out of a VM that nobody may enter any more" in caplog.text
    vcpus[0].kicked.set()
    threads[0].join()


def test_blocker_poison_during_a_hold_wakes_those_who_wait_with_the_error(
    blocker: AccelBlocker, big_lock: Lock, spawn
) -> None:
    vcpu = Vcpu(blocker)
    own = blocker.add_gate("own", lambda thread: None)

    def call() -> None:
        with blocker.vm_call("set_irq"):
            pass

    with big_lock, blocker.inhibit(PATIENCE):
        threads = [spawn(vcpu.run), spawn(call)]
        until(lambda: blocker._waiting == 2)
        blocker.poison(MapLostError("gone"))
        for thread in threads:
            with pytest.raises(MapLostError, match="gone"):
                thread.join()
        with pytest.raises(MapLostError, match="gone"):
            own.enter()
        assert not own.busy
    assert blocker.inhibited
    assert not vcpu.gate.busy
    assert blocker._waiting == 0


def test_blocker_poison_with_many_threads_around_leaves_none_behind(
    blocker: AccelBlocker, big_lock: Lock, spawn
) -> None:
    """Threads that go in and out all the time: each ends with the error, wherever the poison finds it."""
    entries = [0] * 4

    def run(index: int) -> None:
        gate = blocker.add_gate(f"vCPU {index}", lambda thread: None)
        while True:
            if index % 2:
                gate.enter()
                gate.leave()
            else:
                with blocker.vm_call("call"):
                    pass
            entries[index] += 1

    threads = [spawn(lambda index=index: run(index)) for index in range(4)]
    until(lambda: all(entries))
    for _ in range(3):
        _inhibit_once(blocker, big_lock)
    _poison(blocker, big_lock)
    for thread in threads:
        with pytest.raises(MapLostError):
            thread.join()
    assert not any(gate.busy for gate in blocker.gates)
    assert blocker._vm_calls == {}
    assert blocker._waiting == 0


# closing


def test_blocker_closed_refuses_everybody_and_wakes_who_waits(blocker: AccelBlocker, big_lock: Lock, spawn) -> None:
    vcpu = Vcpu(blocker)
    with big_lock, blocker.inhibit(PATIENCE):
        thread = spawn(vcpu.run)
        until(lambda: blocker._waiting == 1)
        blocker.close()
        with pytest.raises(ClosedError, match="the VM is closed"):
            thread.join()
    with pytest.raises(ClosedError):
        vcpu.gate.enter()
    with pytest.raises(ClosedError), blocker.vm_call("set_irq"):
        pass
    assert not vcpu.gate.busy
    with pytest.raises(LockError):
        blocker.close()


# stress


def test_blocker_stress_nobody_is_inside_while_everybody_is_held(
    blocker: AccelBlocker, big_lock: Lock, spawn, monkeypatch
) -> None:
    """vCPUs, VM callers and inhibitors at random; the holder looks at what the others say of themselves."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    stop = threading.Event()
    inside = [False] * 8
    entries = [0] * 8
    holds = [0, 0]

    def vcpu(index: int) -> None:
        rng = random.Random(f"{seed} vcpu {index}")
        kicked = threading.Event()
        gate = blocker.add_gate(f"vCPU {index}", lambda thread: kicked.set())
        while not stop.is_set():
            gate.enter()
            inside[index] = True
            if rng.random() < 0.5:
                kicked.wait(rng.random() * 0.002)
                kicked.clear()
            entries[index] += 1
            inside[index] = False
            gate.leave()
        blocker.remove_gate(gate)

    def caller(index: int) -> None:
        rng = random.Random(f"{seed} caller {index}")
        while not stop.is_set():
            with blocker.vm_call("call"):
                inside[index] = True
                if rng.random() < 0.3:
                    stop.wait(rng.random() * 0.001)
                entries[index] += 1
                inside[index] = False

    def inhibitor(index: int) -> None:
        rng = random.Random(f"{seed} inhibitor {index}")
        while not stop.is_set():
            try:
                with big_lock, blocker.inhibit(rng.choice([PATIENCE, PATIENCE, 0.0005, 0])):
                    before = list(entries)
                    for _ in range(rng.randrange(3)):
                        stop.wait(0.0002)
                        assert not any(inside)
                    assert not any(inside)
                    assert entries == before
                    holds[index] += 1
            except InhibitTimeoutError as error:
                assert error.inside
            stop.wait(rng.random() * 0.002)

    threads = [spawn(lambda index=index: vcpu(index)) for index in range(6)]
    threads += [spawn(lambda index=index: caller(index)) for index in (6, 7)]
    threads += [spawn(lambda index=index: inhibitor(index)) for index in range(2)]
    end = time.monotonic() + 0.6
    until(lambda: time.monotonic() > end and min(entries) > 5 and min(holds) > 5)
    stop.set()
    for thread in threads:
        thread.join()
    assert blocker.stats.inhibits == sum(holds)
    assert not blocker.inhibited
    assert blocker._waiting == 0
    assert blocker.gates == ()

"""Waits for the vCPUs that run: what ends them, who is waited for, and what a vCPU outside does when it comes."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from accel_mock.kvm.running import Running

PATIENCE = 60


class Vcpu:
    """A vCPU whose thread is the test's.

    Attributes:
        drops: How often its TLB was dropped.
        noticed: Set when it is to look for requests.
        woken: Set when it may try to run again.
    """

    name = "vCPU"

    def __init__(self) -> None:
        self.drops = 0
        self.noticed = threading.Event()
        self.woken = threading.Event()

    @property
    def attention(self) -> bool:
        return self.noticed.is_set()

    @attention.setter
    def attention(self, value: bool) -> None:
        assert value
        self.noticed.set()

    def drop_tlb(self) -> None:
        self.drops += 1

    def wake(self) -> None:
        self.woken.set()


@contextmanager
def asking(call: Callable[[], object], *vcpus: Vcpu) -> Iterator[list[object]]:
    """Make a call on a thread, begin the block once all of `vcpus` have noticed, and wait for the call after it."""
    returned: list[object] = []
    thread = threading.Thread(target=lambda: returned.append(call()), daemon=True)
    for vcpu in vcpus:
        vcpu.noticed.clear()
    thread.start()
    for vcpu in vcpus:
        assert vcpu.noticed.wait(PATIENCE)
    yield returned
    thread.join(PATIENCE)
    assert not thread.is_alive(), "nobody ended the wait"


@pytest.fixture
def running() -> Running:
    return Running()


@pytest.fixture
def vcpu(running: Running) -> Vcpu:
    """A vCPU that runs."""
    one = Vcpu()
    assert running.enter(one)
    return one


def test_running_flush_returns_when_each_vcpu_inside_has_dropped_its_tlb(running: Running, vcpu: Vcpu) -> None:
    other = Vcpu()
    running.enter(other)
    before = vcpu.drops, other.drops
    with asking(running.flush, vcpu, other) as returned:
        running.hear(vcpu)
        assert not returned
        running.hear(other)
    assert (vcpu.drops, other.drops) == (before[0] + 1, before[1] + 1)


def test_running_flush_is_over_for_a_vcpu_that_leaves_and_it_drops_its_tlb_when_it_comes(
    running: Running, vcpu: Vcpu
) -> None:
    drops = vcpu.drops
    with asking(running.flush, vcpu) as returned:
        assert not returned
        running.leave(vcpu)
    assert vcpu.drops == drops
    running.enter(vcpu)
    assert vcpu.drops == drops + 1


def test_running_vcpu_that_leaves_and_comes_keeps_its_tlb_unless_there_was_a_flush(
    running: Running, vcpu: Vcpu
) -> None:
    drops = vcpu.drops
    for flushes in range(3):
        running.leave(vcpu)
        running.enter(vcpu)
        assert vcpu.drops == drops + flushes
        running.leave(vcpu)
        running.flush()
        assert vcpu.drops == drops + flushes
        running.enter(vcpu)
        assert vcpu.drops == drops + flushes + 1


def test_running_flush_waits_for_nobody_outside_and_for_none_that_comes_meanwhile(running: Running, vcpu: Vcpu) -> None:
    late = Vcpu()
    with asking(running.flush, vcpu):
        running.enter(late)
        running.hear(vcpu)
    assert not late.attention
    running.leave(vcpu)
    running.leave(late)
    running.flush()
    running.let_work()


def test_running_flush_does_not_wait_for_a_vcpu_in_a_page_fault_which_drops_its_tlb_on_its_way_back(
    running: Running, vcpu: Vcpu
) -> None:
    drops = vcpu.drops
    running.leave_guest(vcpu)
    running.enter_guest(vcpu)
    assert vcpu.drops == drops
    with asking(running.flush, vcpu) as returned:
        assert not returned
        running.leave_guest(vcpu)
    running.flush()
    assert vcpu.drops == drops
    running.enter_guest(vcpu)
    assert vcpu.drops == drops + 1
    with asking(running.flush, vcpu):
        running.hear(vcpu)


def test_running_vcpu_in_a_page_fault_runs_all_the_same(running: Running, vcpu: Vcpu) -> None:
    running.leave_guest(vcpu)
    assert running.any
    assert running.kick_all(0) == (vcpu,)
    with asking(running.let_work, vcpu) as returned:
        running.enter_guest(vcpu)
        assert not returned
        running.has_worked(vcpu, running.hear(vcpu))
    running.leave_guest(vcpu)
    with asking(lambda: running.kick_all(PATIENCE), vcpu) as returned:
        running.enter_guest(vcpu)
        running.leave(vcpu)
    assert returned == [()]


def test_running_let_work_returns_once_a_vcpu_has_worked_since_it_heard(running: Running, vcpu: Vcpu) -> None:
    with asking(running.let_work, vcpu) as returned:
        heard = running.hear(vcpu)
        assert not returned
        running.has_worked(vcpu, heard - 1)
        assert not returned
        running.has_worked(vcpu, heard)


def test_running_two_waits_at_once_both_end_when_a_vcpu_leaves(running: Running, vcpu: Vcpu) -> None:
    """A notifier's flush that ends first takes nothing from a slot call that waits on."""
    with asking(running.let_work, vcpu) as worked:
        with asking(running.flush, vcpu):
            running.hear(vcpu)
        assert not worked
        running.leave(vcpu)


def test_running_kick_all_returns_with_all_out_and_sends_back_who_comes(running: Running, vcpu: Vcpu) -> None:
    late = Vcpu()
    with asking(lambda: running.kick_all(PATIENCE), vcpu) as returned:
        assert running.stopped
        assert not running.enter(late)
        assert not returned
        running.leave(vcpu)
    assert returned == [()]
    assert not running.any
    assert not running.enter(vcpu)
    assert not late.woken.is_set()
    running.resume_all()
    assert late.woken.is_set()
    assert vcpu.woken.is_set()
    assert running.enter(late)
    assert running.enter(vcpu)


def test_running_kick_all_that_gives_up_names_who_is_inside_and_lets_all_go_on(running: Running, vcpu: Vcpu) -> None:
    assert running.kick_all(0) == (vcpu,)
    assert vcpu.attention
    assert not running.stopped
    assert running.enter(Vcpu())
    with asking(running.flush, vcpu):
        running.hear(vcpu)
        running.leave(next(one for one in running._heard if one is not vcpu))


def test_running_resume_lets_all_in_though_another_has_kicked_them_too(running: Running) -> None:
    """As the proposed calls: they do not count, so whoever kicked second is left without a hold."""
    running.kick_all(0)
    running.kick_all(0)
    running.resume_all()
    assert running.enter(Vcpu())


def test_running_forgets_a_vcpu_that_is_closed(running: Running, vcpu: Vcpu) -> None:
    running.leave(vcpu)
    sent_back = Vcpu()
    running.kick_all(0)
    assert not running.enter(sent_back)
    kept = [weakref.ref(vcpu), weakref.ref(sent_back)]
    running.forget(vcpu)
    running.forget(sent_back)
    del vcpu, sent_back
    gc.collect()
    # The fixture's value is the test framework's until the test ends.
    assert kept[1]() is None
    assert kept[0]() not in running._left


def test_running_let_work_leaves_tlbs_alone(running: Running, vcpu: Vcpu) -> None:
    drops = vcpu.drops
    with asking(running.let_work, vcpu):
        running.has_worked(vcpu, running.hear(vcpu))
    running.leave(vcpu)
    running.enter(vcpu)
    assert vcpu.drops == drops


def test_running_kick_all_waits_for_those_who_were_kept_out_to_work_first(
    running: Running, vcpu: Vcpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accel_mock.kvm.running._FAIRNESS_SECONDS", PATIENCE)
    with asking(lambda: running.kick_all(PATIENCE), vcpu):
        running.leave(vcpu)
    running.resume_all()
    running.enter(vcpu)
    with asking(lambda: running.kick_all(PATIENCE), vcpu) as returned:
        assert not running.stopped, "it may work first"
        vcpu.noticed.clear()
        running.has_worked(vcpu, running.hear(vcpu))
        assert vcpu.noticed.wait(PATIENCE), "now it is kicked"
        assert running.stopped
        running.leave(vcpu)
    assert returned == [()]


def test_running_kick_all_goes_on_without_a_vcpu_that_does_not_come(running: Running, vcpu: Vcpu) -> None:
    with asking(lambda: running.kick_all(PATIENCE), vcpu):
        running.leave(vcpu)
    running.resume_all()
    assert running.kick_all(PATIENCE) == ()
    assert running.stopped

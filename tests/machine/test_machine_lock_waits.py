"""Who waits for a vCPU's thread, or for the gates, holds nothing that such a thread may take first; on the mock."""

from __future__ import annotations

import threading

import pytest

import accel
from accel.blocker import AccelBlocker
from accel.errors import InhibitTimeoutError, LockError
from accel.locks import BIG_LOCK, DEVICE_LOCK, VCPU_THREAD, Lock, LockClass, waiting_for
from accel.program import GuestProgram, Loop, Out
from accel.result import Outcome
from accel.testing.programs import hello

PATIENCE = 60
SPIN = hello(end="spin")


@pytest.fixture
def machine(bench):
    """A machine whose guests spin."""
    return bench(SPIN, accelerators="mock", cpus=2).machine


@pytest.mark.parametrize("call", ["pause", "stop", "wait"])
def test_wait_for_a_run_while_holding_a_lock_is_refused_and_changes_nothing(machine, call):
    run = machine.start()
    with Lock(DEVICE_LOCK), pytest.raises(LockError, match="vcpu_thread is waited for while holding device_lock"):
        getattr(run, call)()
    assert not run.done
    machine.pause()
    machine.resume()
    machine.stop()
    assert run.wait(timeout=PATIENCE).outcome is Outcome.STOPPED


def test_call_while_holding_a_lock_is_refused(machine):
    run = machine.start()
    vcpu = machine.vm.vcpus[0]
    with Lock(DEVICE_LOCK), pytest.raises(LockError, match="vcpu_thread is waited for while holding device_lock"):
        vcpu.call(lambda: 1)
    with machine.vm.big_lock, pytest.raises(LockError, match="big_lock is held: the vCPU's thread may be waiting"):
        vcpu.call(lambda: 1)
    assert vcpu.call(lambda: 1) == 1
    run.stop()


def test_call_on_one_vcpu_from_the_thread_of_another_is_refused(machine):
    run = machine.start()
    first, second = machine.vm.vcpus
    with pytest.raises(LockError, match="vcpu_thread is waited for while holding vcpu_thread; one at a time"):
        first.call(lambda: second.call(lambda: 1))
    assert first.call(lambda: first.call(lambda: 1)) == 1
    run.stop()


def test_call_right_after_start_is_made_by_the_vcpus_thread_however_late_that_begins(machine, monkeypatch):
    bind, called = accel.Vcpu.bind, threading.Event()

    def late(vcpu, wake):
        called.wait(0.2)  # the call comes before this one, if it can
        bind(vcpu, wake)

    monkeypatch.setattr(accel.Vcpu, "bind", late)
    run = machine.start()
    where = machine.vm.vcpus[0].call(threading.get_ident)
    called.set()
    run.stop()
    assert where != threading.get_ident()


def test_thread_owes_calls_only_while_it_runs_a_vcpu(machine):
    vcpu = machine.vm.vcpus[0]
    vcpu.bind(lambda: None)
    try:
        with pytest.raises(LockError, match="one at a time"):
            waiting_for(VCPU_THREAD)
    finally:
        vcpu.unbind()
    waiting_for(VCPU_THREAD)


def test_call_on_a_vcpu_that_nobody_runs_waits_for_nobody(machine):
    with Lock(DEVICE_LOCK):
        assert machine.vm.vcpus[0].call(threading.get_ident) == threading.get_ident()


def test_wait_while_holding_a_lock_of_an_unknown_class_is_refused_once_a_handler_took_it(bench):
    machine = bench(GuestProgram((Loop((Out(0x70, 1),), None),)), accelerators="mock").machine
    lock = Lock(LockClass("plugin_lock"))
    handled = threading.Event()

    @machine.port(0x70)
    def handle(access):
        with lock:
            handled.set()

    run = machine.start()
    assert handled.wait(PATIENCE)
    with lock, pytest.raises(LockError) as caught:
        run.pause()
    assert "vcpu_thread is waited for while holding plugin_lock; elsewhere the order is vcpu_thread" in str(
        caught.value
    )
    assert "handle (machine/test_machine_lock_waits.py:" in caught.value.report
    run.stop()


def test_hold_while_holding_what_is_taken_inside_a_gate_is_refused_and_holds_nobody():
    big = Lock(BIG_LOCK)
    blocker = AccelBlocker(big)
    gate = blocker.add_gate("vCPU 0", lambda thread: None)
    lock = Lock(LockClass("backend_lock"))
    gate.enter()
    with lock:
        pass
    gate.leave()
    with big, lock, pytest.raises(LockError, match="gate is waited for while holding big_lock → backend_lock"):
        blocker.inhibit_begin(PATIENCE)
    assert not blocker.inhibited
    with big, blocker.inhibit(PATIENCE):
        pass


def test_hold_inside_a_gate_of_the_same_thread_is_refused_before_it_times_out():
    big = Lock(BIG_LOCK)
    blocker = AccelBlocker(big)
    gate = blocker.add_gate("vCPU 0", lambda thread: None)
    with big:
        gate.enter()
        with pytest.raises(LockError, match="gate is waited for while holding big_lock → gate; one at a time"):
            blocker.inhibit_begin(PATIENCE)
        gate.leave()


def test_hold_without_validation_times_out_there(monkeypatch):
    monkeypatch.delenv("ACCEL_LOCKDEP")
    big = Lock(BIG_LOCK)
    blocker = AccelBlocker(big)
    gate = blocker.add_gate("vCPU 0", lambda thread: None)
    with big:
        gate.enter()
        with pytest.raises(InhibitTimeoutError):
            blocker.inhibit_begin(0)
        gate.leave()

"""`Vcpu.call` on a vCPU that no thread runs, or that one begins or ends to run: one thread at a time is at it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

import accel
from accel.errors import LockError
from accel.program import GuestProgram, Loop
from accel.vcpu import Vcpu

#: Seconds that a thread gets for what it must not do.
_AWHILE = 0.2


@pytest.fixture
def machine() -> Iterator[accel.Machine]:
    with accel.Machine.create("mock", memory="1M") as made:
        made.load(GuestProgram((Loop(()),)))
        yield made


class Called:
    """A call made on a thread of its own, which stays in it until it may go on."""

    def __init__(self, vcpu: Vcpu, function: Callable[[], object] = lambda: None, *, stays: bool = True) -> None:
        self.inside, self.leave = threading.Event(), threading.Event()
        self.on: threading.Thread | None = None
        self.value: object = None
        self._function = function
        if not stays:
            self.leave.set()
        self.thread = threading.Thread(target=self._main, args=(vcpu,), daemon=True)
        self.thread.start()

    def _main(self, vcpu: Vcpu) -> None:
        self.value = vcpu.call(self._stay)

    def _stay(self) -> object:
        self.on = threading.current_thread()
        self.inside.set()
        assert self.leave.wait(60)
        return self._function()

    def end(self) -> None:
        self.leave.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


def test_start_while_a_call_is_made_enters_the_guest_after_it(machine: accel.Machine) -> None:
    vcpu = machine.vm.vcpus[0]
    entered, prepare = threading.Event(), vcpu.backend.prepare_thread

    def prepared() -> None:
        entered.set()
        prepare()

    vcpu.backend.prepare_thread = prepared  # type: ignore[method-assign]
    first = Called(vcpu, lambda: vcpu.call(threading.current_thread))  # a call within a call is made there
    assert first.inside.wait(60)
    run = machine.start()
    second = Called(vcpu, stays=False)
    assert not entered.wait(_AWHILE)
    assert not second.inside.is_set()
    first.end()
    second.end()
    assert first.on is first.value is first.thread
    assert second.on is not second.thread
    assert entered.wait(60)
    run.stop()
    assert run.wait().outcome == "stopped"


@pytest.mark.kvm
def test_start_while_registers_are_read_does_not_meet_the_guest() -> None:
    """KVM serves one thread at a time: the reader would wait for the guest, and take the kicks that bring it out."""
    with accel.Machine.create("kvm", memory="4M") as machine:
        machine.load(GuestProgram((Loop(()),)))
        vcpu = machine.vm.vcpus[0]
        reader = Called(vcpu, vcpu.read_state)
        assert reader.inside.wait(60)
        run = machine.start()
        assert not threading.Event().wait(_AWHILE)  # the vCPU's thread could be in the guest now
        reader.end()
        assert isinstance(reader.value, accel.X86State)
        run.stop()
        assert run.wait().outcome == "stopped"


def test_call_while_the_last_ones_of_a_run_are_made_is_one_of_them(machine: accel.Machine) -> None:
    vcpu = machine.vm.vcpus[0]
    bound, end = threading.Event(), threading.Event()

    def own_loop() -> None:
        vcpu.bind(lambda: None)
        bound.set()
        assert end.wait(60)
        vcpu.unbind()

    runner = threading.Thread(target=own_loop)
    runner.start()
    assert bound.wait(60)
    first = Called(vcpu)
    while not vcpu.has_calls:
        pass
    end.set()
    assert first.inside.wait(60)
    second = Called(vcpu, stays=False)
    while not vcpu.has_calls:
        assert not second.inside.is_set()
    first.end()
    second.end()
    runner.join()
    assert first.on is second.on is runner
    assert vcpu.call(threading.current_thread) is threading.current_thread()


def test_calls_of_two_threads_without_a_run_are_made_one_after_the_other(machine: accel.Machine) -> None:
    vcpu = machine.vm.vcpus[0]
    first = Called(vcpu)
    assert first.inside.wait(60)
    second = Called(vcpu, stays=False)
    assert not second.inside.wait(_AWHILE)
    with machine.vm.big_lock, pytest.raises(LockError, match="may be waiting for it"):
        vcpu.call(lambda: None)
    first.end()
    second.end()
    assert (first.on, second.on) == (first.thread, second.thread)


def test_call_that_raises_without_a_run_lets_the_next_one_in(machine: accel.Machine) -> None:
    vcpu = machine.vm.vcpus[0]
    with pytest.raises(KeyboardInterrupt):
        vcpu.call(interrupt)
    Called(vcpu).end()


def interrupt() -> None:
    raise KeyboardInterrupt

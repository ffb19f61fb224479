"""How runs and machines end where something else is under way, or does not work."""

from __future__ import annotations

import errno
import io
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

import pytest

import accel
from accel.devices import DebugConsole
from accel.devices.base import Device
from accel.errors import AccelError, BackendError, InhibitTimeoutError, StateError
from accel.exits import ExitKind
from accel.housekeeper import Housekeeper
from accel.program import GuestProgram, Loop, Out
from accel.run import Run

_SPIN = GuestProgram((Loop(()),))


class CallingSink(io.RawIOBase):
    """A console's sink that calls something for each write."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self._call()
        return len(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["housekeeper", "vcpu-0", "vcpu-1"])
def test_start_without_threads_to_be_had_leaves_a_machine_that_starts_later_and_closes(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """As at the interpreter's end, or at a limit of the host."""
    start, threads = threading.Thread.start, set(threading.enumerate())

    def refuse(self: threading.Thread) -> None:
        if self.name == missing:
            raise RuntimeError("can't start new thread")
        start(self)

    with accel.Machine.create("mock", memory="1M", cpus=2) as machine:
        machine.load(_SPIN)
        for _ in range(2):
            monkeypatch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                machine.start()
            monkeypatch.undo()
            machine.stop()  # a vCPU that came before may be on its way out
        machine.start()
        machine.stop()
        assert machine.wait().outcome == "stopped"
    assert set(threading.enumerate()) <= threads


def test_output_handed_on_at_the_end_cannot_wait_for_its_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a run hands on what is left, and its sink may be anybody's code."""
    refused = []
    monkeypatch.setattr(Housekeeper, "start", lambda self: None)  # all is left for the end
    with accel.Machine.create("mock", memory="1M") as machine:

        def call() -> None:
            machine.stop()
            machine.pause()
            machine.request_stop()
            for refusing in (machine.wait, machine.start, machine.close):
                with pytest.raises(StateError, match="in a device's handler would wait for itself"):
                    refusing()
                refused.append(refusing)

        machine.attach(DebugConsole(output=CallingSink(call)))  # type: ignore[arg-type]
        machine.load(GuestProgram((Out(0xE9, 7),)))
        assert machine.run(timeout=60).outcome == "halted"
        assert len(refused) == 3


class CountedDevice(Device):
    """Counts how often it was closed."""

    name = "counted"

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def meet_after(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    """Have the next two calls of a method return only once both are over."""
    both, real = threading.Barrier(2), getattr(owner, name)

    def meeting(self: object, *args: object) -> object:
        result = real(self, *args)
        with suppress(threading.BrokenBarrierError):
            both.wait(60)
            both.abort()
        return result

    monkeypatch.setattr(owner, name, meeting)


def at_once(calls: Iterable[Callable[[], object]]) -> list[BaseException | object]:
    """Make calls on a thread each, and return what they returned or raised."""
    found: list[BaseException | object] = []

    def make(call: Callable[[], object]) -> None:
        try:
            found.append(call())
        except AccelError as error:
            found.append(error)

    threads = [threading.Thread(target=make, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_close_by_two_threads_at_once_closes_each_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device = CountedDevice()
    machine = accel.Machine.create("mock", memory="1M")
    machine.attach(device)
    machine.load(_SPIN)
    machine.start()
    meet_after(monkeypatch, Run, "settle")
    assert at_once([machine.close, machine.close]) == [None, None]
    assert device.closed == 1


def test_start_by_two_threads_at_once_starts_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with accel.Machine.create("mock", memory="1M") as machine:
        machine.load(GuestProgram(()))
        machine.run(timeout=60)
        machine.load(_SPIN)
        meet_after(monkeypatch, Run, "settle")
        run, error = sorted(at_once([machine.start, machine.start]), key=lambda one: isinstance(one, BaseException))
        monkeypatch.undo()
        assert isinstance(run, Run)
        assert isinstance(error, StateError)
        machine.stop()
        assert run.wait().outcome == "stopped"


def test_close_of_a_machine_that_another_thread_starts_again_ends_that_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = accel.Machine.create("mock", memory="1M")
    machine.load(GuestProgram(()))
    machine.run(timeout=60)
    machine.load(_SPIN)
    threads, settle = set(threading.enumerate()), Run.settle
    runs = []

    def meanwhile(self: Run) -> object:
        result = settle(self)
        if not runs:
            runs.append(None)
            runs[0] = machine.start()
        return result

    monkeypatch.setattr(Run, "settle", meanwhile)
    machine.close()
    assert runs[0].done
    assert set(threading.enumerate()) <= threads


def test_close_with_a_vcpu_that_does_not_come_out_keeps_the_vm_and_can_be_retried() -> None:
    device, inside, leave = CountedDevice(), threading.Event(), threading.Event()
    machine = accel.Machine.create("mock", memory="1M")
    machine.attach(device)
    vcpu = machine.vm.vcpus[0]
    machine.vm.inhibit_timeout = 0.05

    def stay() -> int:
        inside.set()
        assert leave.wait(60)
        return ExitKind.INTERRUPTED

    vcpu.backend.run = stay  # type: ignore[method-assign]
    thread = threading.Thread(target=vcpu.run)
    thread.start()
    assert inside.wait(60)
    for _ in range(2):
        with pytest.raises(InhibitTimeoutError):
            machine.close()
        assert not machine.vm.closed
        assert machine.ram.read(0, 1) == b"\0"
    leave.set()
    thread.join()
    machine.close()
    assert machine.vm.closed
    assert device.closed == 1


def test_stop_with_a_kick_that_fails_kicks_the_others_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the host's queue of signals is full for a moment."""
    with accel.Machine.create("mock", memory="1M", cpus=2) as machine:
        machine.load(_SPIN)
        run = machine.start()
        first, kicked = machine.vm.vcpus[0].backend, threading.Event()

        def fail(thread_id: int) -> None:
            raise BackendError("tgkill", errno.EAGAIN)

        kick = machine.vm.vcpus[1].backend.kick
        monkeypatch.setattr(machine.vm.vcpus[1].backend, "kick", lambda thread_id: (kick(thread_id), kicked.set()))
        monkeypatch.setattr(first, "kick", fail)
        with pytest.raises(BackendError, match="tgkill"):
            run.request_stop()
        assert kicked.is_set()
        monkeypatch.undo()
        run.stop()
        assert run.wait().outcome == "stopped"

"""Changes that meet a vCPU anywhere: made, closed or dead while all are held, and at every point of its loop."""

from __future__ import annotations

import threading

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.errors import ClosedError
from accel.memory.listener import MemoryListener, Update
from accel.program import Load, Loop, Op, Out

PATIENCE = 60
LOW, HIGH = 0x1000_0000, 0x2000_0000
PORT = 0x80


class Arrival:
    """Runs a vCPU once on a thread of its own.

    Attributes:
        came: Set when it is about to pass its gate.
        held: Whether the VM was inhibited when it went into the accelerator, for each time.
        results: The exit, or what was raised.
    """

    def __init__(self, vcpu: accel.Vcpu, monkeypatch: pytest.MonkeyPatch) -> None:
        self.came = threading.Event()
        self.held: list[bool] = []
        self.results: list[object] = []
        self._vcpu = vcpu
        enter, run = type(vcpu.gate).enter, vcpu.backend.run

        def watched_enter(gate) -> None:
            if gate is vcpu.gate:
                self.came.set()
            enter(gate)

        def watched_run() -> int:
            self.held.append(vcpu.vm.blocker.inhibited)
            return run()

        monkeypatch.setattr(type(vcpu.gate), "enter", watched_enter)
        vcpu.backend.run = watched_run
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        assert self.came.wait(PATIENCE)

    def _main(self) -> None:
        try:
            self.results.append(self._vcpu.run())
        except accel.AccelError as error:
            self.results.append(error)

    def join(self) -> object:
        """Wait for its end; return the exit or the error."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.results[0]


def test_vcpu_that_is_made_and_run_while_the_others_are_held_waits_until_they_go_on(machine, monkeypatch) -> None:
    one = machine(Loop((Out(PORT, 0),), None))
    vm = one.vm
    for index in range(1, 5):
        with vm.big_lock, vm.blocker.inhibit(PATIENCE):
            vcpu = vm.create_vcpu(index)
            arrival = Arrival(vcpu, monkeypatch)
            one.memory.add(accel.MemoryRegion.ram(f"more{index}", PAGE_SIZE), at=HIGH + index * PAGE_SIZE)
        vcpu.kick()
        assert isinstance(arrival.join(), accel.exits.Exit)
        assert arrival.held == [False]


def test_vcpu_that_is_closed_while_all_are_held_is_waited_for_no_more(machine, monkeypatch) -> None:
    one = machine(Loop((Out(PORT, 0),), None))
    vcpu = one.vm.create_vcpu(1)
    with one.vm.big_lock, one.vm.blocker.inhibit(PATIENCE):
        arrival = Arrival(vcpu, monkeypatch)
        vcpu.close()
    assert isinstance(arrival.join(), ClosedError), "whoever waited at its gate does not run what is gone"
    with pytest.raises(ClosedError):
        vcpu.run()
    assert vcpu.gate not in one.vm.blocker.gates
    with one.transaction("map"):
        one.memory.add(accel.MemoryRegion.ram("more", PAGE_SIZE), at=HIGH)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("cpus", [1, 3])
def test_vcpu_thread_that_dies_inside_its_gate_holds_up_no_change(machine, pace, kind, cpus) -> None:
    one = machine(Loop((Out(PORT, 0),), None), cpus=cpus)
    backend = one.vm.vcpus[0].backend
    enter, inside, die = backend.run, threading.Event(), threading.Event()

    def run() -> int:
        inside.set()
        assert die.wait(PATIENCE)
        raise kind("it broke")

    backend.run = run
    extra = accel.MemoryRegion.ram("extra", PAGE_SIZE)
    started = one.start()
    assert inside.wait(PATIENCE)

    def change() -> None:
        with one.transaction("map"):
            one.memory.add(extra, at=HIGH)

    changing = threading.Thread(target=change, daemon=True)
    changing.start()
    until_inhibited(one)
    die.set()
    changing.join(PATIENCE)
    assert not changing.is_alive(), "the change waits for a thread that is gone"
    with pytest.raises(kind, match="it broke"):
        started.wait(PATIENCE)
    backend.run = enter
    guest = pace(one)
    again = one.start()
    guest.wait()
    with one.transaction("map"):
        one.memory.remove(extra)
    guest.wait()
    one.stop()
    again.wait()


def until_inhibited(one: accel.Machine) -> None:
    """Wait until a change holds whoever comes."""
    waited = threading.Event()
    for _ in range(PATIENCE * 1_000):
        if one.vm.blocker.inhibited:
            return
        waited.wait(0.001)
    raise AssertionError("nobody inhibits")


# kicks


class Points:
    """Stops a vCPU's thread at a point of its loop: ``enter``, ``entered``, ``came out``, ``left``, ``exit``."""

    INSIDE = ("entered", "came out")

    def __init__(self, one: accel.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.point = ""
        self.arrived = threading.Event()
        self.go = threading.Event()
        vcpu = one.vm.vcpus[0]
        kind = type(vcpu.gate)
        enter, leave, run = kind.enter, kind.leave, vcpu.backend.run

        def watched_enter(gate) -> None:
            self.at("enter")
            enter(gate)
            self.at("entered")

        def watched_run() -> int:
            result = run()
            self.at("came out")
            return result

        def watched_leave(gate) -> None:
            leave(gate)
            self.at("left")

        monkeypatch.setattr(kind, "enter", watched_enter)
        monkeypatch.setattr(kind, "leave", watched_leave)
        vcpu.backend.run = watched_run

    def at(self, point: str) -> None:
        """Stop here if this is the point."""
        if point == self.point:
            self.point = ""
            self.arrived.set()
            assert self.go.wait(PATIENCE)

    def arm(self, point: str) -> None:
        """Stop the thread when it comes there next."""
        self.arrived.clear()
        self.go.clear()
        self.point = point


class Inside(MemoryListener):
    """Notes whether the vCPU is in the guest while a change is applied."""

    def __init__(self, gate) -> None:
        self.seen: list[bool] = []
        self._gate = gate

    def prepare(self) -> Update:
        listener = self

        class Look(Update):
            def apply(self) -> None:
                listener.seen.append(listener._gate.busy)

            def undo(self) -> None:
                """Nothing was done."""

        return Look()


@pytest.mark.parametrize("point", ["enter", "entered", "inside", "came out", "left", "exit"])
def test_change_that_meets_the_vcpu_at_any_point_of_its_loop_is_made_without_it_and_lets_it_go_on(
    machine, pace, monkeypatch, point
) -> None:
    loop: tuple[Op, ...] = (Loop((Load(LOW),), 20), Out(PORT, 0))
    one = machine(Loop(loop, None))
    one.memory.add(accel.MemoryRegion.ram("ram", PAGE_SIZE), at=LOW)
    points = Points(one, monkeypatch)
    guest = pace(one)
    guest.before = lambda: points.at("exit")
    watch = Inside(one.vm.vcpus[0].gate)
    one.memory.add_listener(watch)
    watch.seen.clear()
    extra = accel.MemoryRegion.ram("extra", PAGE_SIZE)

    def change() -> None:
        with one.transaction("map"):
            if extra.parent is None:
                one.memory.add(extra, at=HIGH)
            else:
                one.memory.remove(extra)

    run = one.start()
    for turn in range(20):
        if point == "inside":
            guest.wait()
            change()
        else:
            points.arm(point)
            assert points.arrived.wait(PATIENCE)
            changing = threading.Thread(target=change, daemon=True)
            changing.start()
            if point in Points.INSIDE:
                until_inhibited(one)
                assert len(watch.seen) == turn, "it was made although the vCPU is inside"
            elif point != "exit":
                changing.join(PATIENCE)
                assert len(watch.seen) == turn + 1, "it waits for who is outside"
            points.go.set()
            changing.join(PATIENCE)
            assert not changing.is_alive()
        guest.wait()
    one.stop()
    result = run.wait()
    assert watch.seen == [False] * 20
    assert result.exits.get("mmio", 0) == 0

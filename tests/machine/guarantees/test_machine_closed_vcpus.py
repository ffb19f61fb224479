"""A vCPU or a VM that is closed while a thread runs it: it is brought out first, and the run ends with that error.

There is no hang, no other error, and above all no call into what is gone: its file descriptor may be somebody else's by
then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.errors import BackendError, ClosedError, InhibitTimeoutError
from accel.exits import Interrupted, IoOut
from accel.program import Load, Loop, Out

PATIENCE = 60
LOW, HIGH = 0x1000_0000, 0x2000_0000
PORT = 0x80


def until(wanted: Callable[[], bool]) -> None:
    """Wait until a thread has come to where nothing tells that it has."""
    waited = threading.Event()
    for _ in range(PATIENCE * 1_000):
        if wanted():
            return
        waited.wait(0.001)
    raise AssertionError("it does not come there")


class Stop:
    """Stops the vCPU's thread, where a method of its gate begins or ends.

    Attributes:
        go: Lets it go on.
    """

    def __init__(self, gate, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        self.go = threading.Event()
        self._arrived = threading.Event()
        self._armed = False
        called = getattr(type(gate), method)

        def watched(gate) -> None:
            if method == "enter":
                self._here()
            called(gate)
            if method == "leave":
                self._here()

        monkeypatch.setattr(type(gate), method, watched)

    def _here(self) -> None:
        if self._armed:
            self._arrived.set()
            assert self.go.wait(PATIENCE)

    def arm(self) -> None:
        """Stop the thread when it comes here."""
        self._armed = True

    def catch(self) -> None:
        """Return once the thread stands here."""
        self.arm()
        assert self._arrived.wait(PATIENCE)


@pytest.mark.parametrize("what", ["vCPU 0", "the VM"])
@pytest.mark.parametrize("where", ["kicked out", "about to enter", "amid an exit"])
def test_vcpu_that_is_closed_while_its_thread_is_outside_is_entered_no_more(
    machine, monkeypatch, pace, where, what
) -> None:
    # The guest tells that it runs, and then reads from a device or goes round in the guest.
    one = machine(Out(PORT, 0), Loop((Load(LOW),), None))
    page = accel.MemoryRegion.mmio("device", PAGE_SIZE, read=lambda offset, size: 0)
    one.memory.add(accel.MemoryRegion.ram("ram", PAGE_SIZE) if where == "kicked out" else page, at=LOW)
    vcpu, blocker, guest = one.vm.vcpus[0], one.vm.blocker, pace(one)
    stop = Stop(vcpu.gate, monkeypatch, "leave" if where == "amid an exit" else "enter")
    entered: list[bool] = []
    inside = vcpu.backend.run
    vcpu.backend.run = lambda: (entered.append(vcpu.closed), inside())[1]
    run = one.start()
    until(lambda: guest.count > 0)
    if where == "kicked out":
        until(lambda: vcpu.gate.busy)
    else:
        stop.catch()
    with one.vm.big_lock, blocker.inhibit(PATIENCE):
        if where != "amid an exit":
            stop.go.set()
            until(lambda: blocker._waiting == 1)
        vcpu.close() if what == "vCPU 0" else one.vm.close()
    stop.go.set()
    with pytest.raises(ClosedError, match=f"{what} is closed"):
        run.wait(PATIENCE)
    assert True not in entered, "it went into what is gone"


@pytest.fixture
def spinning(machine, pace) -> Callable[..., tuple[accel.Machine, Callable[[], None]]]:
    """Make machines whose vCPUs each tell once that they run, and then stay inside; and what waits until they do."""

    def make(cpus: int = 1, **options: object) -> tuple[accel.Machine, Callable[[], None]]:
        one = machine(Out(PORT, 0), Loop((Load(LOW),), None), cpus=cpus, **options)
        one.memory.add(accel.MemoryRegion.ram("ram", PAGE_SIZE), at=LOW)
        guest = pace(one)

        def inside() -> None:
            until(lambda: guest.count == cpus and all(vcpu.gate.busy for vcpu in one.vm.vcpus))

        return one, inside

    return make


@pytest.mark.parametrize("what", ["vCPU 0", "the VM"])
@pytest.mark.parametrize("cpus", [1, 3])
def test_vcpu_that_is_closed_while_it_is_in_the_guest_comes_out_and_ends_the_run(spinning, cpus, what) -> None:
    one, inside = spinning(cpus)
    run = one.start()
    inside()
    closed = one.vm.vcpus[0] if what == "vCPU 0" else one.vm
    closed.close()
    with pytest.raises(ClosedError, match=f"{what} is closed"):
        run.wait(PATIENCE)
    assert not any(vcpu.gate.busy for vcpu in one.vm.vcpus)
    closed.close()
    with pytest.raises(ClosedError):
        one.vm.vcpus[0].run()


def test_vcpu_that_is_closed_by_a_device_of_another_comes_out_and_ends_the_run(machine) -> None:
    one = machine(Loop((Out(PORT, 0), *[Load(LOW)] * 1_000), None), cpus=2)
    one.memory.add(accel.MemoryRegion.ram("ram", PAGE_SIZE), at=LOW)
    closed: list[int] = []

    def close(access) -> None:
        other = next((vcpu for vcpu in one.vm.vcpus if vcpu.gate.busy), None)
        if not closed and other is not None:
            closed.append(other.index)
            other.close()

    one.port(PORT)(close)
    with pytest.raises(ClosedError) as caught:
        one.run(PATIENCE)
    assert str(caught.value) == f"vCPU {closed[0]} is closed"


def test_vcpu_that_is_closed_in_a_loop_of_ones_own_comes_out_and_the_others_go_on(spinning) -> None:
    one, _ = spinning(2)
    vcpus, seen, ends = one.vm.vcpus, ([], []), [None, None]

    def loop(index: int) -> None:
        try:
            while True:
                seen[index].append(vcpus[index].run())
        except ClosedError as error:
            ends[index] = str(error)

    threads = [threading.Thread(target=loop, args=(index,), daemon=True) for index in (0, 1)]
    for thread in threads:
        thread.start()
    until(lambda: all(len(exits) == 1 and vcpu.gate.busy for exits, vcpu in zip(seen, vcpus, strict=True)))
    vcpus[0].close()
    threads[0].join(PATIENCE)
    assert ends == ["vCPU 0 is closed", None]
    assert [type(exit) for exit in seen[0]] == [IoOut, Interrupted]
    until(lambda: vcpus[1].gate.busy)
    with one.transaction("map"):
        one.memory.add(accel.MemoryRegion.ram("more", PAGE_SIZE), at=HIGH)
    vcpus[1].close()
    threads[1].join(PATIENCE)
    assert ends[1] == "vCPU 1 is closed"


def test_vcpu_that_does_not_come_out_is_not_closed_and_may_be_later(spinning) -> None:
    one, _ = spinning(inhibit_timeout_ms=50)
    vcpu = one.vm.vcpus[0]
    enter, inside, go = vcpu.backend.run, threading.Event(), threading.Event()

    def run() -> int:
        inside.set()
        assert go.wait(PATIENCE)
        return enter()

    vcpu.backend.run = run
    started = one.start()
    assert inside.wait(PATIENCE)
    with pytest.raises(InhibitTimeoutError, match="vCPU 0"):
        vcpu.close()
    assert not vcpu.closed
    assert vcpu.gate in one.vm.blocker.gates
    go.set()
    one.vm.inhibit_timeout = PATIENCE
    vcpu.close()
    with pytest.raises(ClosedError, match="vCPU 0 is closed"):
        started.wait(PATIENCE)


def test_vcpu_that_is_closed_right_after_it_came_out_still_tells_why(machine, monkeypatch) -> None:
    one = machine(Loop((Out(PORT, 7),), None))
    vcpu = one.vm.vcpus[0]
    stop = Stop(vcpu.gate, monkeypatch, "leave")
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(vcpu.run()), daemon=True)
    stop.arm()
    thread.start()
    stop.catch()
    vcpu.close()
    stop.go.set()
    thread.join(PATIENCE)
    assert [(type(exit), exit.data) for exit in seen] == [(IoOut, b"\x07")]


@pytest.mark.kvm
def test_vcpu_thread_whose_kvm_run_fails_ends_the_run_and_holds_up_no_change(bench, pace) -> None:
    one = bench(accel.program.GuestProgram([Out(PORT, 0), Loop((Load(LOW),), None)]), cpus=2).machine
    one.memory.add(accel.MemoryRegion.ram("ram", PAGE_SIZE), at=LOW)
    guest, vcpu = pace(one), one.vm.vcpus[0]
    run = one.start()
    until(lambda: guest.count == 2)
    null = os.open(os.devnull, os.O_RDWR)
    # What is under way goes on with the file that it began with; the next KVM_RUN is for the null device.
    os.dup2(null, vcpu.backend.fd)
    os.close(null)
    extra = accel.MemoryRegion.ram("extra", PAGE_SIZE)
    with one.transaction("map"):
        one.memory.add(extra, at=HIGH)
    with pytest.raises(BackendError, match="KVM_RUN failed: ENOTTY"):
        run.wait(PATIENCE)
    assert not any(other.gate.busy for other in one.vm.vcpus)
    with one.transaction("map"):
        one.memory.remove(extra)

"""A vCPU or a VM that is closed under a machine that runs: the run ends, with an error that says so.

That is a mistake of whoever embeds it. There is no hang, no other error, and above all no call into what is gone: its
file descriptor may be somebody else's by then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.errors import BackendError, ClosedError
from accel.program import Load, Loop, Out

PATIENCE = 20
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

    def catch(self) -> None:
        """Return once the thread stands here."""
        self._armed = True
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

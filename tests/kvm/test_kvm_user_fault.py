"""A guest on real KVM that waits for a page of its memory, and what then happens to changes of the map.

On some hosts a kick frees such a vCPU, on others it goes on waiting inside the kernel. Both are right: there the change
is made, here it ends in an error that names the vCPU, before a slot is touched.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.errors import ClosedError, InhibitTimeoutError, StateError
from accel.program import Load

pytestmark = pytest.mark.kvm

PATIENCE = 60
LAZY = 0x40_0000
ELSEWHERE = 0x80_0000

#: 1: mov LAZY + 0x1000, %al; out %al, $0x60; jmp 1b
READ_LAZY = "a000104000 e660 ebf7"


class Resolver:
    """Serves pages full of one byte, once it may."""

    def __init__(self, *, open: bool = False) -> None:
        self.asked = threading.Event()
        self.gate = threading.Event()
        self.offsets: list[int] = []
        if open:
            self.gate.set()

    def __call__(self, offset: int) -> bytes:
        self.offsets.append(offset)
        self.asked.set()
        assert self.gate.wait(PATIENCE)
        return b"\x5a" * PAGE_SIZE


def lazy_memory(guest: Any) -> accel.MemoryRegion:
    region = accel.MemoryRegion.ram("lazy", "64K")
    guest.vm.memory.add(region, at=LAZY)
    return region


def new(name: str = "new") -> accel.MemoryRegion:
    return accel.MemoryRegion.ram(name, "64K")


def test_guest_gets_the_page_that_it_touches_and_no_other_is_asked_for(boot) -> None:
    guest, resolver = boot("f4"), Resolver(open=True)
    region = lazy_memory(guest)
    region.write(0x2000, b"\x11")
    with accel.UserFaults(region, resolver):
        assert guest.load(LAZY + 0x1000) == 0x5A
        assert guest.load(LAZY + 0x2000) == 0x11
        assert guest.store(LAZY + 0x3004, 0x77)
        assert guest.load(LAZY + 0x3004) == 0x77
        assert guest.load(LAZY + 0x3005) == 0x5A
        assert guest.vm.memory.read(LAZY + 0x4FFF, 2) == b"\x5a\x5a"
    assert resolver.offsets == [0x1000, 0x3000, 0x4000, 0x5000]
    assert guest.load(LAZY + 0x6000) == 0


def until(done: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end
        time.sleep(0.001)


def grow(guest: Any) -> None:
    guest.vm.memory.add(new(), at=ELSEWHERE)


def shrink(guest: Any) -> None:
    guest.vm.memory.remove(next(one for one in guest.vm.memory.root.children if one.name == "other"))


def ring(guest: Any) -> None:
    """Add a doorbell: no slot, but a call for which the kernel waits for the vCPUs just as well."""
    fd = os.eventfd(0)
    bell = accel.MemoryRegion.mmio("bell", 0x1000)
    bell.add_eventfd(0, fd, 4)
    try:
        guest.vm.memory.add(bell, at=ELSEWHERE)
    finally:
        os.close(fd)


@pytest.mark.parametrize("change", [grow, shrink, ring])
@pytest.mark.parametrize("options", [{}, {"hold": "unsafe"}, {"plan": "replace"}], ids=str)
def test_change_beside_a_vcpu_that_waits_for_a_page_fails_before_a_slot_is_touched_and_succeeds_later(
    boot, faults, change: Callable[[Any], None], options: dict[str, object]
) -> None:
    guest, resolver = boot(READ_LAZY, inhibit_timeout_ms=300, **options), Resolver()
    guest.vm.memory.add(new("other"), at=2 * ELSEWHERE)
    region = lazy_memory(guest)
    with accel.UserFaults(region, resolver):
        with guest.running() as exits:
            assert resolver.asked.wait(PATIENCE)
            faults.reset()
            view, tree = guest.vm.memory.view, str(guest.vm.memory)
            try:
                change(guest)
            except InhibitTimeoutError as error:
                assert [(name, call) for name, call, _ in error.inside] == [("vCPU 0", "run")]
                assert "vCPU 0 in run for" in str(error)
                assert faults.calls == []
                assert (guest.vm.memory.view, str(guest.vm.memory)) == (view, tree)
                guest.vm.inhibit_timeout = PATIENCE
                resolver.gate.set()
                change(guest)
            else:
                # The kick freed the vCPU.
                assert faults.calls
                resolver.gate.set()
            seen = len(exits)
            until(lambda: len(exits) > seen + 100)
        outs = {one for one in exits if isinstance(one, accel.IoOut)}
        assert outs == {accel.IoOut(0x60, 1, 1, b"\x5a")}
        assert faults.calls
        assert resolver.offsets == [0x1000]


def test_change_waits_for_the_page_that_comes_meanwhile(boot, spawn_thread) -> None:
    guest, resolver = boot(READ_LAZY, inhibit_timeout_ms=PATIENCE * 1000), Resolver()
    region = lazy_memory(guest)
    with accel.UserFaults(region, resolver), guest.running() as exits:
        assert resolver.asked.wait(PATIENCE)
        done = spawn_thread(lambda: grow(guest))
        # A kick may free the vCPU, so that the change is over by then.
        until(lambda: guest.vm.blocker.inhibited or guest.vm.blocker.stats.inhibits)
        resolver.gate.set()
        done()
        seen = len(exits)
        until(lambda: len(exits) > seen + 10)
    assert guest.vm.memory.read(ELSEWHERE, 1) == b"\0"
    assert guest.vm.blocker.stats.inhibits == 1


@pytest.fixture
def spawn_thread():
    """Start a function on a thread; what is returned waits for its end and raises what it raised."""

    def start(target: Callable[[], object]) -> Callable[[], None]:
        errors: list[BaseException] = []

        def run() -> None:
            try:
                target()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        def join() -> None:
            thread.join(PATIENCE)
            assert not thread.is_alive()
            if errors:
                raise errors[0]

        return join

    return start


def test_closing_the_handler_frees_the_vcpu_and_the_change_that_waits_for_it(boot, spawn_thread) -> None:
    guest, resolver = boot(READ_LAZY, inhibit_timeout_ms=PATIENCE * 1000), Resolver()
    region = lazy_memory(guest)
    faults = accel.UserFaults(region, resolver)
    with guest.running() as exits:
        assert resolver.asked.wait(PATIENCE)
        changed, closed = spawn_thread(lambda: grow(guest)), spawn_thread(faults.close)
        changed()
        until(lambda: any(isinstance(one, accel.IoOut) for one in exits))
        resolver.gate.set()
        closed()
    assert accel.IoOut(0x60, 1, 1, b"\0") in exits


def test_vm_with_a_vcpu_that_waits_for_a_page_names_it_on_close_and_can_be_closed_later(boot, spawn_thread) -> None:
    guest, resolver = boot(READ_LAZY, inhibit_timeout_ms=300), Resolver()
    region = lazy_memory(guest)
    exits: list[object] = []

    def run() -> None:
        try:
            while not isinstance(exits and exits[-1], accel.IoOut):
                exits.append(guest.vcpu.run())
        except ClosedError:
            exits.append(None)  # the kick freed it, and the VM was closed

    with accel.UserFaults(region, resolver):
        done = spawn_thread(run)
        assert resolver.asked.wait(PATIENCE)
        stuck = False
        try:
            guest.vm.close()
        except InhibitTimeoutError as error:
            stuck = True
            assert "vCPU 0 in run for" in str(error)
            assert not guest.vm.closed
        resolver.gate.set()
        done()
        assert exits[-1] == (accel.IoOut(0x60, 1, 1, b"\x5a") if stuck else None)
        guest.vm.close()
        assert guest.vm.closed
    region.release()


def test_machine_whose_own_ram_comes_page_by_page_is_changed_and_ends() -> None:
    """The machine's own RAM is lazy: the guest's program is loaded before, all else comes when it is touched."""
    machine = accel.Machine.create("kvm", memory="4M", options={"kvm": {"inhibit_timeout_ms": 300}})
    resolver = Resolver()
    try:
        machine.load(accel.GuestProgram((Load(0x50000, 1),)))
        with accel.UserFaults(machine.ram, resolver):
            run = machine.start()
            assert resolver.asked.wait(PATIENCE)
            try:
                machine.memory.add(new(), at=ELSEWHERE)
            except InhibitTimeoutError as error:
                assert [name for name, _, _ in error.inside] == ["vCPU 0"]
                machine.vm.inhibit_timeout = PATIENCE
                resolver.gate.set()
                machine.memory.add(new(), at=ELSEWHERE)
            resolver.gate.set()
            assert run.wait(PATIENCE).outcome is accel.Outcome.HALTED
        assert resolver.offsets[0] // PAGE_SIZE == 0x50
    finally:
        resolver.gate.set()
        machine.close()


def test_memory_without_a_handler_grows_without_a_hold(boot) -> None:
    guest, resolver = boot("f4"), Resolver(open=True)
    region = lazy_memory(guest)
    with accel.UserFaults(new("unused"), resolver):
        grow(guest)
        assert guest.vm.blocker.stats.inhibits == 0
    with accel.UserFaults(region, resolver):
        guest.vm.memory.add(new(), at=3 * ELSEWHERE)
        assert guest.vm.blocker.stats.inhibits == 1
    guest.vm.memory.add(new(), at=4 * ELSEWHERE)
    assert guest.vm.blocker.stats.inhibits == 1


def test_machine_with_a_vcpu_that_waits_for_a_page_names_it_on_close_and_can_be_closed_later(monkeypatch) -> None:
    machine = accel.Machine.create("kvm", memory="4M")
    machine.load(accel.GuestProgram((Load(0x50000, 1),)))
    resolver = Resolver()
    with accel.UserFaults(machine.ram, resolver):
        machine.start()
        assert resolver.asked.wait(PATIENCE)
        try:
            with monkeypatch.context() as patched:
                patched.setattr("accel.run.STOP_TIMEOUT", 0.3)
                machine.close()
        except InhibitTimeoutError as error:
            if machine.vm.vcpus[0].gate.busy:  # and not just slow to end, where the kick freed it
                assert [(name, call) for name, call, _ in error.inside] == [("vCPU 0", "run")]
            assert not machine.vm.closed
        except StateError as error:
            # The kick freed it; what is left is the memory, which the handler still serves.
            assert "serves its pages" in str(error)
        finally:
            resolver.gate.set()
    machine.close()
    assert machine.vm.closed

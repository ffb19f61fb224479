"""Leaks: what a machine took is given back when it is closed: file descriptors, threads, mappings and objects."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from attrs import frozen

from accel.backend import Capability
from accel.errors import AccelError
from accel.machine import Machine
from accel.memory.dirty import DirtyClient
from accel.memory.region import MemoryRegion
from accel.plugins import find_accelerator, open_accelerator
from accel.program import Add, Loop, Out, Store
from accel.testing.claims import Claims
from accel.testing.conformance.look import BASE, finish
from accel.testing.conformance.test_kicks import COUNTER
from accel.testing.conformance.verdict import expect
from accel.testing.machines import MachineFactory

pytestmark = pytest.mark.accelerators()
runs_guests = pytest.mark.accelerators(executes=("program", "x86"))
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this host has no /proc to count in")

#: How often each thing is done.
TIMES = 12


@frozen
class Held:
    """What the process holds.

    Attributes:
        descriptors: Open file descriptors.
        threads: Threads, native ones too.
        mappings: Mappings of memory.
    """

    descriptors: int
    threads: int
    mappings: int


def held() -> Held:
    """Return what the process holds, once what was dropped is let go."""
    gc.collect()
    mappings = len(Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines())
    return Held(len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir())), mappings)


def leaks_nothing(action: Callable[[], object], what: str, patience: float) -> None:
    """Do something again and again, and raise Violation if the process holds more each time.

    Libraries load and allocate at first, and the C library keeps a mapping or two of its own; what leaks does so each
    time.
    """
    for _ in range(3):
        action()
    before = held()
    for _ in range(TIMES):
        action()
    deadline = time.monotonic() + patience
    after = held()
    while after.threads > before.threads and time.monotonic() < deadline:
        # A thread that was joined may be in the kernel's list for a moment yet.
        threading.Event().wait(0.01)
        after = held()
    for name in ("descriptors", "threads", "mappings"):
        more = getattr(after, name) - getattr(before, name)
        expect(more < TIMES, f"{what}, {TIMES} times, left {more} {name} behind")


@needs_proc
@runs_guests
def test_leaks_of_a_machine_that_ran(machine: MachineFactory, claims: Claims, patience: float) -> None:
    """A machine that ran, changed its memory and was closed leaves nothing behind."""

    def live() -> None:
        one = machine(Loop((Add(COUNTER, 1, 8),), 20), Store(BASE, 1), Out(0x80, 1), cpus=min(2, claims.max_vcpus))
        extra = MemoryRegion.ram("extra", claims.page_size, max_size=4 * claims.page_size)
        one.memory.add(extra, at=BASE)
        extra.resize(4 * claims.page_size)
        finish(one, patience)
        one.memory.remove(extra)
        one.close()
        machine.forget(one)

    leaks_nothing(live, "creating, running and closing a machine", patience)


@needs_proc
@runs_guests
def test_leaks_of_changing_memory(machine: MachineFactory, claims: Claims, patience: float) -> None:
    """A machine that lives on, and whose memory changes in every way that the accelerator claims, holds no more each
    time."""
    one, page = machine(), claims.page_size
    region = MemoryRegion.ram("ram", 2 * page, max_size=4 * page)
    device = MemoryRegion.mmio("device", page)

    def change() -> None:
        one.memory.add(region, at=BASE)
        one.memory.add(device, at=BASE + page, priority=1)
        region.move(BASE + 8 * page)
        region.resize(4 * page)
        if Capability.DIRTY_LOG in claims.capabilities:
            region.start_log(DirtyClient.VGA)
            one.vm.dirty_log.collect(region, DirtyClient.VGA)
            region.stop_log(DirtyClient.VGA)
        if Capability.READONLY_MEMORY in claims.capabilities:
            region.set_readonly(True)
            region.set_readonly(False)
        one.memory.remove(device)
        one.memory.remove(region)
        region.resize(2 * page)

    leaks_nothing(change, "changing memory and changing it back", patience)


@needs_proc
def test_leaks_of_probing(accelerator_name: str, patience: float) -> None:
    """`probe` leaves nothing open."""
    leaks_nothing(find_accelerator(accelerator_name).probe, "probing", patience)


@needs_proc
def test_leaks_of_a_vm_that_never_ran(accelerator_name: str, patience: float) -> None:
    """A VM that is closed with vCPUs that never ran leaves nothing behind."""

    def live() -> None:
        with open_accelerator(accelerator_name) as opened, opened.create_vm() as vm:
            vm.create_vcpu(0)

    leaks_nothing(live, "creating and closing a VM", patience)


@needs_proc
def test_leaks_of_creating_what_cannot_be(accelerator_name: str, claims: Claims, patience: float) -> None:
    """A machine that cannot be created, for too many vCPUs or for lack of a capability, leaves nothing behind."""

    def fail() -> None:
        with suppress(AccelError):
            Machine.create(accelerator_name, memory="4M", cpus=claims.max_vcpus + 1).close()
        with suppress(AccelError):
            Machine.create(accelerator_name, memory="4M", irqchip=False, pit=True).close()

    leaks_nothing(fail, "creating a machine that cannot be", patience)


@runs_guests
def test_leaks_no_vm_is_kept(machine: MachineFactory, patience: float) -> None:
    """Nothing keeps a VM or a vCPU of the accelerator once the machine is closed and dropped."""
    kept: list[weakref.ref[object]] = []
    for _ in range(3):
        one = machine(Out(0x80, 1))
        finish(one, patience)
        kept += [weakref.ref(one.vm.backend), weakref.ref(one.vm.vcpus[0].backend)]
        one.close()
        machine.forget(one)
        del one
    gc.collect()
    alive = [type(found).__name__ for found in map(_target, kept) if found is not None]
    expect(not alive, f"of 3 machines that were closed, these objects are kept: {', '.join(alive)}")


def _target(reference: weakref.ref[object]) -> object:
    return reference()

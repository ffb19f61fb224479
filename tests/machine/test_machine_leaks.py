"""A machine leaves nothing behind: no descriptor, thread or mapping, and no memory that grows."""

from __future__ import annotations

import gc
import os
import resource
import threading
from pathlib import Path

import pytest

import accel
from accel.devices import DebugConsole, DebugExit, Serial

pytestmark = pytest.mark.kvm


def held() -> set[object]:
    """Return what the process holds: descriptors of KVM by number, threads, and mappings of KVM by address."""
    links = {path.name: os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    descriptors = {f"{number} {target}" for number, target in links.items() if "kvm" in target}
    mappings = {line for line in Path("/proc/self/maps").read_text().splitlines() if "kvm" in line}
    return {*descriptors, *mappings, *threading.enumerate()}


def held_by_others() -> set[object]:
    """Return `held`, once what earlier tests have dropped is let go. What still goes after that is no business here."""
    gc.collect()
    return held()


def resident() -> int:
    """Return the process's resident bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def live_once(guests: Path, image: str) -> None:
    with accel.Machine.create("kvm", memory="16M", cpus=2) as machine:
        for device in (Serial(0x3F8), DebugConsole(), DebugExit()):
            machine.attach(device)
        machine.load(guests / image)
        machine.memory.add(accel.MemoryRegion.ram("extra", "1M"), at=0x1000_0000)
        machine.run(timeout=60)


@pytest.mark.timeout(900)
def test_1000_machines_leave_no_descriptor_thread_or_mapping_and_flat_memory(guests):
    before = held_by_others()
    maps_before = len(Path("/proc/self/maps").read_text().splitlines())
    live_once(guests, "hello.bin")
    samples = []
    for number in range(1000):
        live_once(guests, "hello.bin")
        if number % 100 == 99:
            gc.collect()
            samples.append(resident())
    assert held() <= before
    # The C library may keep a few arenas of its own; each machine had at least four mappings.
    assert len(Path("/proc/self/maps").read_text().splitlines()) < maps_before + 100
    growth = samples[-1] - samples[1]
    assert growth < 2 << 20, f"resident memory grew by {growth} bytes in 800 machines: {samples}"


@pytest.mark.parametrize("image", ["triple-fault.elf", "wild-jump.elf"])
def test_crashed_machine_leaves_nothing(guests, image):
    before = held_by_others()
    live_once(guests, image)
    assert held() <= before


def test_create_that_fails_opens_nothing():
    before = held_by_others()
    with pytest.raises(accel.errors.UsageError):
        accel.Machine.create("kvm", cpus=100_000)
    with pytest.raises(accel.errors.CapabilityError), accel.Machine.create("kvm") as machine:
        machine.vm.set_irq(4, True)
    assert held() <= before

"""What takes minutes: long races and many machines; `make soak` runs it."""

from __future__ import annotations

import random
import struct
import threading
import time

import pytest

import accel
from accel.result import Outcome

pytestmark = [pytest.mark.kvm, pytest.mark.soak]

REGION = 0x1000_0000
SECONDS = 60


@pytest.mark.parametrize("cpus", [1, 2, 4, 8])
def test_soak_random_changes_under_a_checking_guest_never_show(bench, cpus):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    one = bench("touch.elf", cpus=cpus, options={"kvm": {"plan": "replace"}})
    machine = one.machine
    ram = accel.MemoryRegion.ram("extra", "1M", max_size="4M")
    whole = accel.MemoryRegion.alias("whole", ram, 0, "1M")
    pieces = [accel.MemoryRegion.alias(f"piece{n}", ram, n * (256 << 10), "256K", unmergeable=True) for n in range(4)]
    machine.memory.add(whole, at=REGION)
    for piece in pieces:
        piece.set_enabled(False)
        machine.memory.add(piece, at=REGION + piece.target_offset, priority=-1)
    machine.memory.write(0x8030, struct.pack("<QQ", 0, 1))
    run = machine.start()
    changes = 0
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and not run.done:
        with machine.transaction():
            split = whole.enabled
            whole.set_enabled(not split)
            for piece in pieces:
                piece.set_enabled(split)
        if choose.random() < 0.2:
            whole.resize(choose.choice(["1M", "2M", "3M"]))
        changes += 1
    machine.memory.write(0x8010, struct.pack("<Q", 1))
    result = run.wait(timeout=60)
    assert changes > 100
    assert (result.outcome, result.exit_status, result.spurious_faults) == (Outcome.EXITED, 1, 0), one.printed


def pause_and_resume(machine: accel.Machine) -> None:
    for _ in range(3):
        machine.pause()
        machine.resume()


def test_soak_start_pause_resume_stop_in_any_order_from_two_threads(bench):
    one = bench("touch.elf", cpus=2)
    machine = one.machine
    machine.memory.add(accel.MemoryRegion.ram("extra", "1M"), at=REGION)
    machine.memory.write(0x8030, struct.pack("<Q", 0))
    deadline = time.monotonic() + SECONDS
    runs = 0
    while time.monotonic() < deadline:
        run = machine.start()
        other = threading.Thread(target=pause_and_resume, args=(machine,))
        other.start()
        machine.pause()
        machine.resume()
        machine.stop()
        other.join()
        assert run.wait(timeout=60).outcome is Outcome.STOPPED
        runs += 1
    assert runs > 100

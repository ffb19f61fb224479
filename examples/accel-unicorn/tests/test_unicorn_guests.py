"""Every example guest, as the tests on KVM have it."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

import accel
from accel.errors import CapabilityError
from accel.result import Outcome

GUESTS = Path(__file__).resolve().parents[2] / "guests"


@pytest.mark.parametrize("image", ["hello.bin", "hello-console.bin"])
def test_hello_on_unicorn_prints_and_exits(bench, image):
    one = bench(image)
    result = one.machine.run(timeout=60)
    assert (result.outcome, result.exit_status, result.accelerator) == (Outcome.EXITED, 1, "unicorn")
    assert one.printed == "Hello, accel!\n"


def test_compute_on_unicorn_prints_the_known_digest(bench):
    one = bench("compute.elf")
    assert one.machine.run(timeout=60).exit_status == 85
    assert "d7120b1de4c3bcda9ebd74541329c943e991ea2bbd5eaf49183b4822d1e629d6" in one.printed


@pytest.mark.parametrize("cpus", [1, 2, 4, 8])
def test_smp_on_unicorn_counts_together(bench, cpus):
    one = bench("smp.elf", cpus=cpus)
    assert one.machine.run(timeout=60).exit_status == 1
    assert one.printed == f"{cpus} vCPUs counted to 20000\n"


def test_echo_on_unicorn_returns_what_the_serial_line_receives(bench):
    one = bench("echo.elf")
    run = one.machine.start()
    one.serial.feed(b"over the line\n\x04")
    assert run.wait(timeout=60).exit_status == 1
    assert one.printed == "over the line\n"


def test_touch_on_unicorn_reads_back_what_it_wrote(bench):
    one = bench("touch.elf", cpus=2)
    one.machine.memory.add(accel.MemoryRegion.ram("extra", "1M"), at=0x1000_0000)
    result = one.machine.run(timeout=60)
    assert (result.exit_status, one.printed) == (1, "touch: rounds=50 errors=0\n")
    assert result.spurious_faults == 0


def test_touch_on_unicorn_without_its_ram_sees_all_ones_and_says_so(bench):
    one = bench("touch.elf")
    result = one.machine.run(timeout=60)
    assert result.exit_status == 3
    assert one.printed == (
        "touch: rounds=50 errors=3200, first at 0x10000008: expected 0x10000008, found 0xffffffffffffffff\n"
    )


def test_wild_on_unicorn_finds_nothing_where_nothing_is(bench):
    one = bench("wild.elf")
    result = one.machine.run(timeout=60)
    assert (result.exit_status, one.printed) == (1, "ok\n")
    assert result.exits["mmio"] > 0


@pytest.mark.parametrize(
    ("image", "reason"),
    [("triple-fault.elf", "shutdown"), ("garbage.elf", "shutdown"), ("wild-jump.elf", "internal-error")],
)
def test_crashing_guest_on_unicorn_names_vcpu_reason_and_place(bench, image, reason):
    result = bench(image).machine.run(timeout=60)
    assert (result.outcome, result.crash.vcpu, result.crash.reason) == (Outcome.CRASHED, 0, reason)
    assert "RIP 0x" in str(result.crash)


def test_halting_guest_on_unicorn_ends_as_halted(bench):
    result = bench("halt.bin", cpus=2).machine.run(timeout=60)
    assert (result.outcome, result.exits["halt"]) == (Outcome.HALTED, 2)


@pytest.mark.parametrize("cpus", [1, 3])
@pytest.mark.parametrize("image", ["spin.bin", "flood.bin", "flood-serial.bin", "console-spin.bin"])
def test_endless_guest_on_unicorn_is_stopped_at_the_timeout(bench, image, cpus):
    one = bench(image, cpus=cpus)
    run = one.machine.start()
    while image != "spin.bin" and not one.printed and not run.done:
        time.sleep(0.001)
    assert run.wait(timeout=0.2).outcome is Outcome.TIMED_OUT
    assert (one.printed == "") == (image == "spin.bin")


def test_exits_guest_on_unicorn_counts_as_many_exits_as_the_machine(bench):
    image = bytearray((GUESTS / "exits.bin").read_bytes())
    struct.pack_into("<I", image, 4, 2000)
    one = bench(bytes(image))
    result = one.machine.run(timeout=60)
    assert struct.unpack("<I", one.machine.memory.read(0x7C08, 4))[0] == 2000
    assert result.exits["io"] == 2001  # and the debug exit


def test_interrupt_controllers_on_unicorn_are_refused_with_the_reason(bench):
    with pytest.raises(CapabilityError, match=r"no interrupt controllers.*create the VM without irqchip"):
        bench("irq-echo.bin", irqchip=True)


def test_start_of_other_vcpus_on_unicorn_says_there_is_no_local_apic(bench):
    assert bench("sipi.elf", cpus=2).machine.run(timeout=60).exit_status == 3


@pytest.mark.parametrize("memory", ["4G", "5G"])
def test_ram_above_3g_on_unicorn_continues_at_4g(bench, memory):
    one = bench("hello.bin", memory=memory)
    one.machine.memory.write(4 << 30, b"high")
    assert one.machine.ram.read(3 << 30, 4) == b"high"
    assert one.machine.run(timeout=60).exit_status == 1

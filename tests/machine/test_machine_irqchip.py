"""Interrupt controllers on real KVM: guests that sleep until a device or another vCPU wakes them, and steering them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

import accel
from accel.errors import CapabilityError
from accel.result import Outcome
from accel_kvm import abi

pytestmark = pytest.mark.kvm

PATIENCE = 60.0  # seconds until a test gives up; nothing is judged by it otherwise
IOCTL = 16  # asm/unistd_64.h


def blocked(vcpu: accel.Vcpu) -> bool:
    """Return whether the vCPU's thread sleeps in KVM_RUN, as the kernel tells it."""
    try:
        with open(f"/proc/self/task/{vcpu.gate.thread_id}/syscall") as file:
            words = file.read().split()
    except FileNotFoundError:
        return False
    return words[0] == str(IOCTL) and int(words[2], 16) == abi.KVM_RUN


def wait_until(condition: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(int(PATIENCE * 1000)):
        if condition():
            return
        waited.wait(0.001)
    raise AssertionError("it did not come to that")


def wait_until_blocked(machine: accel.Machine) -> None:
    wait_until(lambda: all(blocked(vcpu) for vcpu in machine.vm.vcpus))


# INIT and SIPI


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_sipi_on_kvm_starts_the_other_vcpus(bench, cpus) -> None:
    one = bench("sipi.elf", cpus=cpus, irqchip=True)
    result = one.machine.run(timeout=PATIENCE)
    assert (result.outcome, result.exit_status) == (Outcome.EXITED, 1)
    assert one.printed == f"{cpus} vCPUs started\n"
    for vcpu in result.vcpus[1:]:
        # KVM_RUN said EAGAIN when the vCPU was woken, and then it was kicked out at the end.
        assert set(vcpu.exits) == {"interrupted"}
        assert vcpu.exits["interrupted"] >= 2
    for vcpu in one.machine.vm.vcpus[1:]:
        state = vcpu.read_state()
        assert (state.cs.selector, state.cs.base, state.cr0 & 1) == (0x900, 0x9000, 0)


def test_sipi_on_kvm_starts_them_again_in_a_second_run(bench, guests) -> None:
    one = bench("sipi.elf", cpus=2, irqchip=True)
    assert one.machine.run(timeout=PATIENCE).exit_status == 1
    one.machine.load(guests / "sipi.elf")
    assert one.machine.run(timeout=PATIENCE).exit_status == 1
    assert one.printed == 2 * "2 vCPUs started\n"


def test_sipi_on_kvm_while_the_machine_is_paused_again_and_again(bench) -> None:
    one = bench("sipi.elf", cpus=4, irqchip=True)
    run = one.machine.start()
    while not run.done:
        one.machine.pause()
        one.machine.resume()
    assert run.wait(timeout=PATIENCE).exit_status == 1
    assert one.printed == "4 vCPUs started\n"


def test_sipi_on_kvm_without_irqchip_finds_no_local_apic(bench) -> None:
    one = bench("sipi.elf", cpus=2)
    assert one.machine.run(timeout=PATIENCE).exit_status == 3
    assert one.printed == "sipi: no local APIC\n"


# device interrupts


def test_irq_echo_on_kvm_wakes_from_its_halt_for_input_from_another_thread(bench) -> None:
    one = bench("irq-echo.bin", irqchip=True)
    run = one.machine.start()
    lines = [b"one\n", b"two, which is longer than the FIFO has room for\n", b"\x04"]
    for line in lines:
        wait_until_blocked(one.machine)
        feeder = threading.Thread(target=one.serial.feed, args=(line,))
        feeder.start()
        feeder.join()
    result = run.wait(timeout=PATIENCE)
    assert (result.outcome, result.exit_status) == (Outcome.EXITED, 1)
    assert one.printed == b"".join(lines[:2]).decode()
    assert "halt" not in result.exits


def test_irq_echo_on_kvm_misses_no_byte_of_two_threads(bench) -> None:
    one = bench("irq-echo.bin", cpus=2, irqchip=True)
    run = one.machine.start()

    def feed(letter: bytes) -> None:
        for _ in range(500):
            assert one.serial.feed(letter, timeout=PATIENCE) == 1

    feeders = [threading.Thread(target=feed, args=(letter,)) for letter in (b"a", b"b")]
    for feeder in feeders:
        feeder.start()
    for feeder in feeders:
        feeder.join()
    one.serial.feed(b"\x04")
    assert run.wait(timeout=PATIENCE).exit_status == 1
    assert sorted(one.printed) == ["a"] * 500 + ["b"] * 500


def test_irq_echo_on_kvm_takes_what_was_fed_before_it_began(bench) -> None:
    one = bench("irq-echo.bin", irqchip=True)
    one.serial.feed(b"early\x04")
    assert one.machine.run(timeout=PATIENCE).exit_status == 1
    assert one.printed == "early"


def test_irq_echo_on_kvm_without_irqchip_halts(bench) -> None:
    assert bench("irq-echo.bin", cpus=2).machine.run(timeout=PATIENCE).outcome is Outcome.HALTED


# The interval timer at 1 kHz; the fifth tick ends the run with status 1.
TICKS = bytes.fromhex(
    "b011e620 b020e621 b004e621 b001e621 b0fee621"  # master 8259A: vectors from 0x20, only line 0 let in
    "c7068000 337c c7068200 0000"  # movw $handler, 4 * 0x20; movw $0, 4 * 0x20 + 2
    "b034e643 b0a9e640 b004e640"  # channel 0, mode 2, 1,193 clocks
    "bb0500 fb f4ebfd"  # mov $5, %bx; sti; 1: hlt; jmp 1b
    "b020e620 4b 7401 cf b000e6f4 faf4"  # handler: end of interrupt; dec %bx; jz 1f; iret; 1: debug exit; cli; hlt
)


def test_timer_on_kvm_ticks(bench) -> None:
    result = bench(TICKS, irqchip=True).machine.run(timeout=PATIENCE)
    assert (result.outcome, result.exit_status) == (Outcome.EXITED, 1)


def test_timer_on_kvm_switched_off_never_ticks(bench) -> None:
    assert bench(TICKS, irqchip=True, pit=False).machine.run(timeout=0.2).outcome is Outcome.TIMED_OUT


def test_timer_without_irqchip_is_refused_and_says_what_it_needs() -> None:
    with pytest.raises(CapabilityError, match="create the VM with irqchip"):
        accel.Machine.create("kvm", pit=True)


def test_interrupt_line_without_irqchip_is_refused_and_devices_get_none(bench) -> None:
    machine = bench("hello.bin").machine
    assert machine.irq_line(4) is None
    with pytest.raises(CapabilityError, match="create it with irqchip"):
        machine.vm.set_irq(4, True)


# steering vCPUs that sleep in the kernel


@pytest.fixture
def asleep(bench) -> accel.Machine:
    """A running machine whose vCPU 0 halts for ever and whose others wait for INIT, all of them in the kernel."""
    machine = bench("halt.bin", cpus=3, irqchip=True).machine
    machine.start()
    wait_until_blocked(machine)
    return machine


def test_pause_brings_sleeping_vcpus_out_and_resume_lets_them_sleep_on(asleep) -> None:
    for _ in range(3):
        asleep.pause()
        assert not any(gate.busy for gate in asleep.vm.blocker.gates)
        assert not any(blocked(vcpu) for vcpu in asleep.vm.vcpus)
        asleep.resume()
        wait_until_blocked(asleep)


def test_stop_ends_a_run_whose_vcpus_sleep(asleep) -> None:
    asleep.stop()
    result = asleep.wait()
    assert result.outcome is Outcome.STOPPED
    assert [vcpu.exits for vcpu in result.vcpus] == [{"interrupted": 1}] * 3


def test_close_ends_a_run_whose_vcpus_sleep(asleep) -> None:
    tasks = {vcpu.gate.thread_id for vcpu in asleep.vm.vcpus}
    asleep.close()
    # A thread that was joined may be in the kernel's list for a moment yet.
    wait_until(lambda: tasks.isdisjoint(map(int, os.listdir("/proc/self/task"))))


def test_memory_change_that_holds_everybody_wakes_sleeping_vcpus(asleep) -> None:
    with asleep.transaction(atomic="map"):
        asleep.memory.add(accel.MemoryRegion.ram("more", "1M"), at=0x1000_0000)
    assert asleep.vm.blocker.stats.inhibits == 1
    assert asleep.vm.blocker.stats.kicks >= 3
    wait_until_blocked(asleep)


def test_call_reads_the_state_of_sleeping_vcpus(asleep) -> None:
    first = asleep.vm.vcpus[0]
    # It may have slept before it came to its halt, for a lock in the kernel.
    wait_until(lambda: first.call(first.read_state).rip == 0x7C02)
    halted, waiting, _ = (vcpu.call(vcpu.read_state) for vcpu in asleep.vm.vcpus)
    assert halted.rip == 0x7C02  # behind cli; hlt
    assert (waiting.rip, waiting.cs.base) == (0xFFF0, 0xFFFF_0000)
    wait_until_blocked(asleep)

"""Every example guest on real KVM, through the whole architecture."""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import pytest

import accel
from accel.devices import Cmos, DebugConsole
from accel.result import Outcome

pytestmark = pytest.mark.kvm

SEABIOS = Path("/usr/share/seabios/bios.bin")


@pytest.mark.parametrize("image", ["hello.bin", "hello-console.bin"])
def test_hello_on_kvm_prints_and_exits(bench, image):
    one = bench(image)
    result = one.machine.run(timeout=60)
    assert (result.outcome, result.exit_status, result.accelerator) == (Outcome.EXITED, 1, "kvm")
    assert one.printed == "Hello, accel!\n"


def test_compute_on_kvm_prints_the_known_digest_and_exits_with_its_status(bench):
    one = bench("compute.elf")
    assert one.machine.run(timeout=60).exit_status == 85
    assert one.printed.splitlines() == [
        "primes below 20000: 2262",
        "sha256 of the first 256: d7120b1de4c3bcda9ebd74541329c943e991ea2bbd5eaf49183b4822d1e629d6",
        "self-check: ok",
    ]


@pytest.mark.parametrize("cpus", [1, 2, 4, 8])
def test_smp_on_kvm_counts_together(bench, cpus):
    one = bench("smp.elf", cpus=cpus)
    result = one.machine.run(timeout=60)
    assert result.exit_status == 1
    assert one.printed == f"{cpus} vCPUs counted to 20000\n"
    assert [vcpu.index for vcpu in result.vcpus] == list(range(cpus))


def test_echo_on_kvm_returns_what_the_serial_line_receives(bench):
    one = bench("echo.elf")
    run = one.machine.start()
    one.serial.feed(b"over the line\n\x04")
    assert run.wait(timeout=60).exit_status == 1
    assert one.printed == "over the line\n"


def test_touch_on_kvm_reads_back_what_it_wrote(bench):
    one = bench("touch.elf", cpus=2)
    one.machine.memory.add(accel.MemoryRegion.ram("extra", "1M"), at=0x1000_0000)
    result = one.machine.run(timeout=60)
    assert result.exit_status == 1
    assert one.printed == "touch: rounds=50 errors=0\n"
    assert result.spurious_faults == 0


def test_touch_on_kvm_without_its_ram_sees_all_ones_and_says_so(bench):
    one = bench("touch.elf")
    result = one.machine.run(timeout=60)
    assert result.exit_status == 3
    assert "errors=" in one.printed
    assert result.unassigned > 0
    assert result.spurious_faults == 0


def test_wild_on_kvm_finds_nothing_where_nothing_is(bench):
    one = bench("wild.elf")
    result = one.machine.run(timeout=60)
    assert result.exit_status == 1
    assert result.exits["mmio"] > 0
    assert result.unassigned > 0


@pytest.mark.parametrize(
    ("image", "reason"),
    [("triple-fault.elf", "shutdown"), ("garbage.elf", "shutdown"), ("wild-jump.elf", "internal-error")],
)
def test_crashing_guest_on_kvm_names_vcpu_reason_and_place(bench, image, reason):
    result = bench(image).machine.run(timeout=60)
    assert result.outcome is Outcome.CRASHED
    assert (result.crash.vcpu, result.crash.reason) == (0, reason)
    assert "RIP 0x" in str(result.crash)
    assert result.spurious_faults == 0


def test_crash_without_any_memory_change_is_no_spurious_fault(bench):
    one = bench()
    one.machine.load(b"\xcc", mode="long64")  # int3 without an interrupt table, in the machine's own RAM
    result = one.machine.run(timeout=60)
    assert result.outcome is Outcome.CRASHED
    assert result.spurious_faults == 0


def test_halting_guest_on_kvm_ends_as_halted(bench):
    result = bench("halt.bin", cpus=2).machine.run(timeout=60)
    assert result.outcome is Outcome.HALTED
    assert result.exits["halt"] == 2


@pytest.mark.parametrize("image", ["spin.bin", "flood.bin", "flood-serial.bin"])
def test_endless_guest_on_kvm_is_stopped_at_the_timeout(bench, image):
    sink = Watch(b"" if image == "spin.bin" else b"\n")
    one = bench(image, sink=sink)
    run = one.machine.start()
    assert image == "spin.bin" or sink.seen.wait(60)
    assert run.wait(timeout=0.2).outcome is Outcome.TIMED_OUT
    assert (sink.text == b"") == (image == "spin.bin")


def test_halting_guest_with_irqchip_on_kvm_is_stopped_at_the_timeout(bench):
    result = bench("halt.bin", irqchip=True).machine.run(timeout=0.2)
    assert result.outcome is Outcome.TIMED_OUT


def test_vcpus_behind_the_first_with_irqchip_wait_for_init(bench):
    one = bench("hello.bin", irqchip=True, cpus=4)
    result = one.machine.run(timeout=60)
    assert result.exit_status == 1
    assert one.printed == "Hello, accel!\n"


def test_exits_guest_on_kvm_counts_as_many_exits_as_the_machine(bench, guests):
    image = bytearray((guests / "exits.bin").read_bytes())
    struct.pack_into("<I", image, 4, 2000)
    one = bench(bytes(image))
    result = one.machine.run(timeout=60)
    counted = struct.unpack("<I", one.machine.memory.read(0x7C08, 4))[0]
    assert counted == 2000
    assert result.exits["io"] == counted + 1  # and the debug exit


def test_coalesced_console_on_kvm_loses_nothing_and_hardly_exits(bench, guests):
    image = bytearray((guests / "console-bench.bin").read_bytes())
    struct.pack_into("<I", image, 4, 5000)
    one = bench(bytes(image))
    result = one.machine.run(timeout=60)
    printed = one.console.console.total
    assert printed == 5000
    assert result.coalesced_writes + result.exits["io"] - 1 == 5000
    assert result.exits["io"] < 200


@pytest.mark.needs(str(SEABIOS))
@pytest.mark.timeout(600)  # some million instructions, on hosts that emulate them
def test_seabios_on_kvm_boots_to_no_bootable_device(bench):
    machine = bench(memory="64M", irqchip=True).machine
    log = Watch(b"No bootable device")
    machine.attach(DebugConsole(0x402, output=log))
    machine.attach(Cmos())
    machine.load(SEABIOS, loader="firmware")
    run = machine.start()
    assert log.seen.wait(500), log.text
    assert b"SeaBIOS (version" in log.text
    assert b"RamSize: 0x04000000 [cmos]" in log.text
    machine.stop()
    assert run.wait().outcome is Outcome.STOPPED


class Watch:
    """A sink that tells when some text has come."""

    def __init__(self, wanted: bytes) -> None:
        self.text = b""
        self.seen = threading.Event()
        self._wanted = wanted

    def write(self, data: bytes) -> int:
        self.text += bytes(data)
        if self._wanted in self.text:
            self.seen.set()
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""


@pytest.mark.parametrize("irqchip", [False, True])
@pytest.mark.parametrize("image", ["console-spin.bin", "console-halt.bin"])
def test_console_bytes_on_kvm_show_while_the_guest_spins_or_halts(bench, image, irqchip):
    sink = Watch(b"Hello, accel!\n")
    one = bench(image, sink=sink, irqchip=irqchip)
    run = one.machine.start()
    assert sink.seen.wait(60)
    ends_by_itself = image == "console-halt.bin" and not irqchip
    if not ends_by_itself:
        # It is inside the kernel, where it prints nothing and makes no exit any more.
        assert not run.done
        one.machine.stop()
    assert run.wait(timeout=60).outcome is (Outcome.HALTED if ends_by_itself else Outcome.STOPPED)


@pytest.mark.parametrize("memory", ["4G", "5G"])
def test_ram_above_3g_on_kvm_continues_at_4g(bench, memory):
    machine = bench("hello.bin", memory=memory).machine
    assert machine.ram_below_4g == 3 << 30
    machine.memory.write(4 << 30, b"high")
    assert machine.ram.read(3 << 30, 4) == b"high"
    assert machine.memory.view.find((3 << 30) + 4096) is None
    assert machine.run(timeout=60).exit_status == 1

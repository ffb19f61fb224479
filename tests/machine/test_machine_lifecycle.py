"""start, pause, resume, stop, wait and close, from any thread, on real KVM."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading

import pytest

import accel
from accel.errors import ClosedError, DeviceError, LockError, StateError, UsageError
from accel.locks import DEVICE_LOCK, Lock
from accel.program import GuestProgram, Loop, Out
from accel.result import Outcome

pytestmark = pytest.mark.kvm


def rounds(machine: accel.Machine) -> int:
    return struct.unpack("<Q", machine.memory.read(0x8000, 8))[0]


@pytest.fixture
def touching(bench):
    """A machine whose two vCPUs touch memory until they are stopped."""
    one = bench("touch.elf", cpus=2)
    one.machine.memory.add(accel.MemoryRegion.ram("extra", "1M"), at=0x1000_0000)
    one.machine.memory.write(0x8030, struct.pack("<Q", 0))
    return one.machine


def test_pause_holds_the_vcpus_until_resume(touching):
    run = touching.start()
    for _ in range(20):
        touching.pause()
        before = rounds(touching), touching.memory.read(0x1000_0000, 1 << 20)
        assert not any(gate.busy for gate in touching.vm.blocker.gates)
        assert (rounds(touching), touching.memory.read(0x1000_0000, 1 << 20)) == before
        touching.resume()
    touching.memory.write(0x8010, struct.pack("<Q", 1))
    assert run.wait(timeout=60).exit_status == 1


def test_stop_while_paused_ends_the_run(touching):
    run = touching.start()
    touching.pause()
    touching.stop()
    assert run.wait(timeout=60).outcome is Outcome.STOPPED


def test_memory_changes_while_paused_need_nobody_to_come_out(touching):
    run = touching.start()
    touching.pause()
    kicks = touching.vm.blocker.stats.kicks
    extra = accel.MemoryRegion.ram("more", "1M")
    with touching.transaction(atomic="map"):
        touching.memory.add(extra, at=0x2000_0000)
    assert touching.vm.blocker.stats.kicks == kicks
    assert touching.vm.blocker.stats.inhibits >= 1
    touching.resume()
    touching.stop()
    run.wait()


def test_stop_from_another_thread_ends_the_run(touching):
    run = touching.start()
    other = threading.Thread(target=touching.stop)
    other.start()
    assert run.wait(timeout=60).outcome is Outcome.STOPPED
    other.join()


def test_stop_and_pause_in_a_device_handler_do_not_wait_for_themselves(bench):
    one = bench("hello-console.bin", cpus=2)
    machine = one.machine

    @machine.port(0xEA)
    def unused(access):
        raise AssertionError

    machine.io.remove(next(region for region in machine.io.root.children if region.name == "debug-exit@0xf4"))

    @machine.port(0xF4)
    def handler(access):
        machine.pause()
        machine.resume()
        machine.stop()

    assert machine.run(timeout=60).outcome is Outcome.STOPPED


@pytest.mark.parametrize("call", ["pause", "stop", "wait", "start"])
def test_waiting_calls_inside_a_transaction_are_refused(touching, call):
    run = touching.start()
    with touching.transaction(), pytest.raises(StateError, match="inside a memory transaction"):
        getattr(touching, call)()
    touching.stop()
    run.wait()


def test_machine_goes_on_where_it_stopped(touching):
    touching.start()
    touching.stop()
    stopped_at = rounds(touching)
    run = touching.start()
    touching.memory.write(0x8010, struct.pack("<Q", 1))
    assert run.wait(timeout=60).exit_status == 1
    assert rounds(touching) >= stopped_at


def test_second_start_while_running_is_refused(touching):
    touching.start()
    with pytest.raises(StateError, match="runs already"):
        touching.start()


def test_load_while_running_is_refused(touching):
    touching.start()
    with pytest.raises(StateError, match="while the machine runs"):
        touching.load(b"\xf4")


def test_wait_without_start_is_refused(bench):
    with pytest.raises(StateError, match="nothing was started"):
        bench("hello.bin").machine.wait()


def test_wait_may_be_called_again_with_the_same_result(bench):
    run = bench("hello.bin").machine.start()
    assert run.wait() is run.wait()


def test_device_handler_that_raises_stops_the_machine_and_names_the_place(bench):
    one = bench("touch.elf", cpus=2)
    one.machine.memory.add(accel.MemoryRegion.ram("extra", "1M"), at=0x1000_0000)

    def broken(offset, value, size):
        raise ZeroDivisionError("on purpose")

    region = accel.MemoryRegion.mmio("broken", 8, write=broken)
    one.machine.io.add(region, at=0x3F8, priority=1)
    run = one.machine.start()
    with pytest.raises(DeviceError, match="device 'broken' raised ZeroDivisionError at write to port 0x3f8") as caught:
        run.wait(timeout=60)
    assert (caught.value.device, caught.value.address, caught.value.vcpu) == ("broken", 0x3F8, 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_coalesced_handler_that_raises_stops_the_machine(bench):
    one = bench("console-spin.bin")

    def broken(offset, value, size):
        raise ZeroDivisionError("on purpose")

    region = accel.MemoryRegion.mmio("broken", 1, write=broken, coalesced=True)
    one.machine.io.add(region, at=0xE9, priority=1)
    run = one.machine.start()
    with pytest.raises(DeviceError, match="device 'broken' raised ZeroDivisionError"):
        run.wait(timeout=60)


def test_mmio_handler_that_raises_names_the_address(bench):
    def broken(offset, size):
        raise ValueError("no")

    one = bench("wild.elf")
    one.machine.memory.add(accel.MemoryRegion.mmio("broken", 0x1000, read=broken), at=0xE000_0000)
    with pytest.raises(DeviceError, match="device 'broken' raised ValueError at read at 0xe0000000 for vCPU 0: no"):
        one.machine.run(timeout=60)


def test_close_stops_a_running_guest_and_may_be_called_twice(touching):
    touching.start()
    touching.close()
    touching.close()
    for call in (
        touching.start,
        lambda: touching.load(b"\xf4"),
        lambda: touching.attach(accel.devices.DebugExit()),
        lambda: touching.memory.add(accel.MemoryRegion.ram("late", "1M"), at=0x3000_0000),
    ):
        with pytest.raises(ClosedError):
            call()


def test_close_in_a_device_handler_is_refused(bench):
    one = bench("hello.bin")

    @one.machine.port(0x100)
    def unused(access):
        raise AssertionError

    region = accel.MemoryRegion.mmio("closer", 8, write=lambda offset, value, size: one.machine.close())
    one.machine.io.add(region, at=0x3F8, priority=1)
    with pytest.raises(DeviceError, match="close in a device's handler would wait for itself"):
        one.machine.run(timeout=60)


#: in al, 0x81; the first vCPU goes on with out 0x80, the other with out 0xe9; both spin then.
_APART = bytes.fromhex("e481 84c0 7404 e680 ebfe e6e9 ebfe")


def test_stop_in_a_coalesced_handler_returns_at_once_though_a_vcpu_is_in_a_device(bench):
    """The housekeeper calls such handlers under the big lock, which the vCPUs' threads may need to come to an end."""
    one = bench(_APART, cpus=2).machine
    inside, stopped = threading.Event(), threading.Event()
    numbers = iter((1, 0))

    def which(offset, size):
        number = next(numbers)
        assert number or inside.wait(60)
        return number

    def slow(offset, value, size):
        inside.set()
        assert stopped.wait(60)

    def stop(offset, value, size):
        one.stop()
        one.pause()
        with pytest.raises(StateError, match="wait in a device's handler"):
            one.wait()
        with pytest.raises(StateError, match="close in a device's handler"):
            one.close()
        stopped.set()

    one.io.add(accel.MemoryRegion.mmio("which", 1, read=which, lock=Lock(DEVICE_LOCK)), at=0x81)
    one.io.add(accel.MemoryRegion.mmio("slow", 1, write=slow, lock=Lock(DEVICE_LOCK)), at=0x80)
    one.io.add(accel.MemoryRegion.mmio("stop", 1, write=stop, coalesced=True), at=0xE9, priority=1)
    assert one.run(timeout=60).outcome is Outcome.STOPPED


def test_stop_in_a_coalesced_handler_that_a_change_calls_returns_at_once(bench):
    """What the guest did under the map before is delivered first, by whoever makes the change."""
    one = bench(GuestProgram((Out(0xE9, 7), Loop(())))).machine
    handled = []

    def stop(offset, value, size):
        one.stop()
        handled.append(value)

    one.io.add(accel.MemoryRegion.mmio("stop", 1, write=stop, coalesced=True), at=0xE9, priority=1)
    ring = one.vm.backend.ring
    with one.vm.big_lock:  # keeps the housekeeper from delivering it
        run = one.start()
        while ring.indices[0] == ring.indices[1]:
            assert not run.done
        one.memory.add(accel.MemoryRegion.ram("extra", "1M"), at=0x1000_0000)
        assert handled == [7]
    assert run.wait(timeout=60).outcome is Outcome.STOPPED


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"memory": 0}, "a guest needs some"),
        ({"memory": "63K"}, "no multiple of 0x1000"),
        ({"memory": "16T"}, "more than this host has"),
        ({"memory": "plenty"}, "is no size"),
        ({"cpus": 0}, "needs at least one"),
        ({"cpus": 100_000}, "offers up to"),
        ({"accelerators": "kwm"}, "did you mean 'kvm'"),
        ({"accelerators": ""}, "no accelerator is named"),
        ({"options": {"kvm": {"hold": "tight"}}}, "must be one of"),
        ({"options": {"kvm": {"hodl": "unsafe"}}}, "did you mean 'hold'"),
    ],
)
def test_create_with_bad_values_says_what_is_wrong(bench, config, message):
    with pytest.raises(UsageError, match=message):
        bench(**config)


def test_port_handler_answers_reads_and_sees_writes(bench):
    seen = []
    # in al, 0x50; out 0x60, al; in ax, 0x50; out 0x60, ax; hlt
    one = bench(bytes.fromhex("e450 e660 e550 e760 fa f4"))

    @one.machine.port(0x50, 2)
    def answer(access):
        access.reply({1: 0x5A, 2: 0x1234}[access.size])

    @one.machine.port(0x60, 2)
    def note(access):
        seen.append((access.port, access.size, access.is_write, access.data))
        with pytest.raises(UsageError):
            access.reply(1)

    assert one.machine.run(timeout=60).outcome is Outcome.HALTED
    assert seen == [(0x60, 1, True, b"\x5a"), (0x60, 2, True, b"\x34\x12")]


def test_string_port_output_arrives_item_by_item(bench):
    # mov si, 0x7c00 + 12; mov cx, 5; mov dx, 0x60; rep outsb; hlt; "bytes"
    code = bytes.fromhex("be0d7c b90500 ba6000 f36e fa f4") + b"bytes"
    one = bench(code)
    seen = bytearray()

    @one.machine.port(0x60)
    def note(access):
        seen.extend(access.data)

    assert one.machine.run(timeout=60).outcome is Outcome.HALTED
    assert bytes(seen) == b"bytes"


def test_interrupt_while_waiting_stops_the_guest_and_goes_on_up(guests):
    code = f"""
import accel, sys
with accel.Machine.create("kvm", memory="16M") as machine:
    machine.load({str(guests / "spin.bin")!r})
    run = machine.start()
    try:
        print("started", flush=True)
        run.wait()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
print("closed", run.done, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert process.stdout.readline() == "closed True\n"
        assert process.wait(60) == 0


def test_call_reads_registers_of_a_running_and_of_a_paused_vcpu(bench):
    one = bench("spin.bin", cpus=2)
    run = one.machine.start()
    second = one.machine.vm.vcpus[1]
    assert second.call(second.read_state).rip in range(0x7C00, 0x7E00)
    one.machine.pause()
    assert second.call(second.read_state).rdi == 1
    assert not any(gate.busy for gate in one.machine.vm.blocker.gates)
    one.machine.resume()
    assert second.call(threading.get_ident) != threading.get_ident()
    one.machine.stop()
    run.wait()
    assert second.call(threading.get_ident) == threading.get_ident()
    assert second.call(second.read_state).rdi == 1


def test_call_that_raises_raises_to_who_called_and_the_guest_goes_on(bench):
    one = bench("spin.bin")
    run = one.machine.start()
    with pytest.raises(ZeroDivisionError):
        one.machine.vm.vcpus[0].call(lambda: 1 // 0)
    assert not run.done
    with one.machine.transaction(), pytest.raises(LockError, match="big_lock is held"):
        one.machine.vm.vcpus[0].call(lambda: 1)
    one.machine.stop()
    assert run.wait().outcome is Outcome.STOPPED


def test_sink_that_breaks_stops_the_machine_and_names_the_device(bench):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as sink:
        one = bench("console-spin.bin", sink=sink)
        run = one.machine.start()
        with pytest.raises(DeviceError, match="'debug-console@0xe9' raised BrokenPipeError at handing on") as caught:
            run.wait(timeout=60)
    assert isinstance(caught.value.__cause__, BrokenPipeError)


def test_close_releases_everything_although_a_device_raises(bench):
    machine = bench("hello.bin").machine

    class Stubborn(accel.devices.DebugExit):
        def close(self):
            raise OSError("stuck")

    machine.attach(Stubborn(port=0x600))
    with pytest.raises(OSError, match="stuck"):
        machine.close()
    assert machine.vm.closed
    assert all(vcpu.closed for vcpu in machine.vm.vcpus)


def test_load_resets_the_devices(bench):
    one = bench("hello.bin")
    resets = []

    class Counting(accel.devices.DebugExit):
        def reset(self):
            resets.append(one.machine.vm.big_lock.held())

    one.machine.attach(Counting(port=0x600))
    one.machine.load(b"\xf4")
    assert resets == [True]


def test_changes_without_a_running_vcpu_keep_no_views_of_the_past(bench):
    one = bench("halt.bin", cpus=2)
    one.machine.run(timeout=60)
    extra = accel.MemoryRegion.ram("extra", "1M", max_size="2M")
    one.machine.memory.add(extra, at=0x1000_0000)
    for size in ("2M", "1M") * 10:
        extra.resize(size)
    assert len(one.machine.vm.history._views) == 1

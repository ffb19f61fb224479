"""Vm, Vcpu and OpenAccelerator over a small accelerator of the tests' own: creation, entry, closing."""

from __future__ import annotations

import errno
import threading
from array import array

import pytest

from accel.backend import MEMORY_OPTIONS, Accelerator, Availability, VcpuBackend, VmBackend, VmConfig
from accel.errors import (
    BackendError,
    CapabilityError,
    ClosedError,
    DeviceError,
    InhibitTimeoutError,
    LockError,
    OptionError,
    StateError,
    UsageError,
)
from accel.exits import ExitKind, Halt, Interrupted, IoIn, IoOut, MmioRead, MmioWrite, OtherExit, Shutdown, pack_io
from accel.memory.listener import MemoryListener
from accel.memory.region import MemoryRegion
from accel.vm import OpenAccelerator, Vm

PATIENCE = 60


class TinyVcpu(VcpuBackend):
    """Comes out with what the test put into `exits`; with none left it stays inside until it is kicked."""

    def __init__(self) -> None:
        self.record = memoryview(array("Q", (0, 0, 0)))
        self.io_data = memoryview(bytearray(64))
        self.exits: list[int] = []
        self.inside = threading.Event()
        self.kicked = threading.Event()
        self.deaf = False
        self.closed = 0

    def run(self) -> int:
        if self.exits:
            return self.exits.pop(0)
        self.inside.set()
        try:
            assert self.kicked.wait(PATIENCE)
        finally:
            self.inside.clear()
        self.kicked.clear()
        return ExitKind.INTERRUPTED

    def kick(self, thread_id: int) -> None:
        if not self.deaf:
            self.kicked.set()

    def describe(self) -> str:
        return "triple fault"

    def close(self) -> None:
        self.closed += 1


class TinyRing:
    """A ring whose entries the test writes."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, bool, bytes]] = []
        self.indices = memoryview(array("I", (0, 0)))

    def put(self, *entry: object) -> None:
        self.entries.append(entry)
        self.indices[1] += 1

    def pop(self):
        self.indices[0] = self.indices[1]
        taken, self.entries = self.entries, []
        return taken


class TinyVm(VmBackend):
    max_vcpus = 2

    def __init__(self, listener: MemoryListener) -> None:
        self.listener = listener
        self.closed = 0
        self.irqs: list[tuple[int, bool]] = []
        self.ring = TinyRing()

    def create_vcpu(self, index: int) -> VcpuBackend:
        return TinyVcpu()

    def memory_listener(self) -> MemoryListener:
        return self.listener

    def set_irq(self, line: int, level: bool) -> None:
        self.irqs.append((line, level))

    def close(self) -> None:
        self.closed += 1


class Tiny(Accelerator):
    name = "tiny"
    executes = frozenset({"program"})
    options = MEMORY_OPTIONS

    def __init__(self, listener: MemoryListener | None = None) -> None:
        self.listener = listener or MemoryListener()
        self.made: list[TinyVm] = []

    def probe(self) -> Availability:
        return Availability(True)

    def create_vm(self, config: VmConfig) -> VmBackend:
        self.made.append(TinyVm(self.listener))
        return self.made[-1]


@pytest.fixture
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture
def vm(tiny: Tiny):
    with OpenAccelerator(tiny) as opened:
        yield opened.create_vm()


# creation


def test_vm_takes_its_options_from_the_accelerator(tiny: Tiny) -> None:
    opened = OpenAccelerator(tiny, {"hold": "unsafe", "inhibit_timeout_ms": "50"})
    assert opened.options == {"hold": "unsafe", "plan": "least", "inhibit_timeout_ms": 50}
    with pytest.raises(OptionError, match=r"accelerator\.tiny\.inhibit_timeout_ms"):
        OpenAccelerator(tiny, {"inhibit_timeout_ms": 0})


def test_vm_that_fails_to_start_leaves_nothing(slot_table) -> None:
    class Bad(MemoryListener):
        def prepare(self) -> None:
            raise BackendError("MAP", errno.ENOMEM)

    accelerator = Tiny(Bad())
    with OpenAccelerator(accelerator) as opened, pytest.raises(BackendError, match="MAP failed"):
        opened.create_vm()
    assert [one.closed for one in accelerator.made] == [1]


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"irqchip": True, "pit": True}, "has no interrupt controllers; create the VM without irqchip"),
        ({"pit": True}, "has no interval timer; create the VM without pit"),
    ],
)
def test_vm_with_controllers_that_are_not_claimed_is_refused_and_closed(
    tiny: Tiny, config: dict[str, bool], problem: str
) -> None:
    with OpenAccelerator(tiny) as opened, pytest.raises(CapabilityError, match=f"accelerator 'tiny' {problem}"):
        opened.create_vm(**config)
    assert [one.closed for one in tiny.made] == [1]


@pytest.mark.parametrize("index", [-1, 2, 0])
def test_vm_vcpu_index_that_is_taken_or_impossible_is_refused(vm: Vm, index: int) -> None:
    vm.create_vcpu(0)
    with pytest.raises(UsageError, match=f"vCPU index {index} is taken or not in 0 to 1"):
        vm.create_vcpu(index)
    assert [vcpu.index for vcpu in vm.vcpus] == [0]


# exits


def test_vcpu_run_returns_what_it_came_out_with(vm: Vm) -> None:
    vcpu = vm.create_vcpu(0)
    backend = vcpu.backend

    def out(kind: ExitKind, *record: int):
        backend.exits.append(kind)
        for index, word in enumerate(record):
            backend.record[index] = word
        return vcpu.run()

    backend.io_data[:4] = b"abcd"
    assert out(ExitKind.IO, pack_io(is_out=True, size=2, port=0xE9, count=2)) == IoOut(0xE9, 2, 2, b"abcd")
    read = out(ExitKind.IO, pack_io(is_out=False, size=2, port=0x60, count=2))
    assert read == IoIn(0x60, 2, 2, None)
    read.reply(0x12345)
    assert bytes(backend.io_data[:4]) == b"\x45\x23\x45\x23"
    assert out(ExitKind.MMIO, 0xFEE0_0000, 0x1_2345_6789, 4 | 1 << 32) == MmioWrite(0xFEE0_0000, 4, 0x2345_6789)
    read = out(ExitKind.MMIO, 0xFEE0_0000, 0, 2)
    assert read == MmioRead(0xFEE0_0000, 2, None)
    read.reply(0xABCDE)
    assert backend.record[1] == 0xBCDE
    assert out(ExitKind.HALT) == Halt()
    assert out(ExitKind.SHUTDOWN) == Shutdown("triple fault")
    assert out(ExitKind.OTHER, 77) == OtherExit(77, "triple fault")


def test_vcpu_kicked_comes_out_and_a_kick_before_the_run_is_kept(vm: Vm, spawn) -> None:
    vcpu = vm.create_vcpu(0)
    thread = spawn(vcpu.run)
    assert vcpu.backend.inside.wait(PATIENCE)
    vcpu.kick()
    assert thread.join() == Interrupted()
    vcpu.kick()
    assert vcpu.run() == Interrupted()


def test_vcpu_that_raises_is_out_of_its_gate(vm: Vm) -> None:
    vcpu = vm.create_vcpu(0)
    with pytest.raises(CapabilityError):
        vcpu.read_state()
    assert not vcpu.gate.busy
    with vm.transaction("map"):
        vm.memory.add(MemoryRegion.ram("ram", 4096), 0)


def test_vcpu_inside_comes_out_for_a_change_and_goes_on(vm: Vm, spawn) -> None:
    vcpu = vm.create_vcpu(0)
    thread = spawn(lambda: [vcpu.run(), vcpu.run()])
    assert vcpu.backend.inside.wait(PATIENCE)
    with vm.transaction("map"):
        vm.memory.add(MemoryRegion.ram("ram", 4096), 0)
    assert vcpu.backend.inside.wait(PATIENCE)
    assert vm.blocker.stats.kicks == 1
    vcpu.kick()
    assert thread.join() == [Interrupted(), Interrupted()]


# closing


def test_vm_closed_refuses_use_and_closes_each_thing_once(vm: Vm) -> None:
    vcpu = vm.create_vcpu(0)
    region = MemoryRegion.ram("ram", 4096)
    vm.memory.add(region, 0)
    vm.close()
    vm.close()
    assert (vm.backend.closed, vcpu.backend.closed) == (1, 1)
    for use in (
        vcpu.run,
        lambda: vm.create_vcpu(1),
        lambda: region.resize(1),
        lambda: vm.set_irq(1, True),
        lambda: vm.memory.add_listener(MemoryListener()),
    ):
        with pytest.raises(ClosedError, match="closed"):
            use()
    with pytest.raises(ClosedError, match="its memory does not change any more"):
        region.set_enabled(True)
    assert vm.backend.irqs == []
    assert not vm.big_lock.held()


def test_vm_closed_under_a_running_vcpu_brings_it_out_first(vm: Vm, spawn) -> None:
    vcpu = vm.create_vcpu(0)
    came_out = []

    def loop() -> None:
        while True:
            vcpu.run()
            came_out.append(vcpu.backend.closed)

    thread = spawn(loop)
    assert vcpu.backend.inside.wait(PATIENCE)
    vm.close()
    with pytest.raises(ClosedError):
        thread.join()
    assert not vcpu.backend.inside.is_set()
    assert vcpu.backend.closed == 1


def test_vm_closed_lets_go_of_memory_once_the_accelerator_has(tiny: Tiny, vm: Vm, monkeypatch) -> None:
    ram, pins = MemoryRegion.ram("ram", 4096), []
    vm.memory.add(ram, 0)
    monkeypatch.setattr(tiny.made[0], "close", lambda: pins.append(ram.block.pins))
    vm.close()
    assert pins == [1]
    assert ram.block.pins == 0


def test_vm_space_made_inside_a_transaction_of_another_vm_is_refused(vm: Vm) -> None:
    """Two threads that did it the other way round would wait for each other's big lock."""
    with (
        OpenAccelerator(Tiny()) as opened,
        opened.create_vm().transaction(),
        pytest.raises(StateError, match="a transaction of another VM is open"),
    ):
        vm.create_address_space("bus", MemoryRegion.container("bus"))


def test_vm_that_cannot_be_closed_yet_is_left_open_and_may_be_closed_later(tiny: Tiny, spawn) -> None:
    opened = OpenAccelerator(tiny, {"inhibit_timeout_ms": 50})
    vm = opened.create_vm()
    vcpu = vm.create_vcpu(0)
    vcpu.backend.deaf = True
    thread = spawn(vcpu.run)
    assert vcpu.backend.inside.wait(PATIENCE)
    with pytest.raises(InhibitTimeoutError, match="vCPU 0 in run"):
        opened.close()
    assert (vm.closed, vm.backend.closed, vcpu.backend.closed) == (False, 0, 0)
    vm.memory.add(MemoryRegion.ram("ram", 4096), 0)
    vcpu.backend.kicked.set()
    assert thread.join() == Interrupted()
    opened.close()
    assert vm.closed


def test_vm_inhibit_timeout_that_is_set_later_goes_for_changes_too(vm: Vm, spawn) -> None:
    vcpu = vm.create_vcpu(0)
    vcpu.backend.deaf = True
    thread = spawn(vcpu.run)
    assert vcpu.backend.inside.wait(PATIENCE)
    vm.inhibit_timeout = 0.05
    with pytest.raises(InhibitTimeoutError, match=r"0\.05"), vm.transaction("map"):
        vm.memory.add(MemoryRegion.ram("ram", 4096), 0)
    vcpu.backend.kicked.set()
    assert thread.join() == Interrupted()


def test_vm_close_goes_on_whatever_raises(vm: Vm) -> None:
    first, second = vm.create_vcpu(0), vm.create_vcpu(1)

    def fail() -> None:
        first.backend.closed += 1
        raise BackendError("CLOSE", errno.EIO)

    first.backend.close = fail
    with pytest.raises(BackendError, match="CLOSE"):
        vm.close()
    assert (first.backend.closed, second.backend.closed, vm.backend.closed) == (1, 1, 1)


# queued writes and interrupts


def test_vm_set_irq_from_any_thread_waits_for_a_hold(vm: Vm, spawn) -> None:
    with vm.big_lock, vm.blocker.inhibit(PATIENCE):
        thread = spawn(lambda: vm.set_irq(4, True))
        while not vm.blocker._waiting:
            threading.Event().wait(0.001)
        assert vm.backend.irqs == []
        vm.set_irq(5, False)
    thread.join()
    assert vm.backend.irqs == [(5, False), (4, True)]


def test_vm_drain_delivers_what_is_queued_before_a_change(vm: Vm) -> None:
    seen = []
    port = MemoryRegion.mmio("console", 1, write=lambda offset, value, size: seen.append(chr(value)), coalesced=True)
    vm.io.add(port, 0xE9)
    vm.backend.ring.put(0xE9, 1, True, b"hi")
    vm.backend.ring.put(0x8000, 2, False, b"zz")
    vm.io.remove(port)
    assert seen == ["h", "i"]
    assert vm.coalesced_writes == 3
    assert vm.memory.unassigned == 1


@pytest.mark.parametrize("closed_first", [False, True])
def test_vm_drain_while_another_thread_closes_it_does_nothing(vm: Vm, closed_first: bool) -> None:
    """The other thread comes in between the looks at the ring, or between the last of them and the lock."""

    class Ring(TinyRing):
        @property
        def indices(self):
            words = memoryview(array("I", (0, 1)))
            vm.close()
            if closed_first:
                words.release()
            return words

        @indices.setter
        def indices(self, words: memoryview) -> None:
            pass

        def pop(self):
            raise ValueError("operation forbidden on released memoryview object")

    vm.backend.ring = Ring()
    vm.drain()
    assert vm.closed


def test_vm_drain_inside_a_handler_of_a_drain_is_left_to_the_outer(vm: Vm) -> None:
    seen = []

    def write(offset: int, value: int, size: int) -> None:
        seen.append(value)
        if value == 1:
            vm.backend.ring.put(0xE9, 1, True, b"\x02")
            vm.memory.add(MemoryRegion.ram("ram", 4096), 0)
            seen.append("edited")

    vm.io.add(MemoryRegion.mmio("device", 1, write=write, coalesced=True), 0xE9)
    vm.backend.ring.put(0xE9, 1, True, b"\x01")
    vm.drain()
    assert seen == [1, "edited"]
    vm.drain()
    assert seen == [1, "edited", 2]
    assert vm.memory.view.find(0) is not None


def test_vm_drain_names_the_device_that_raises(vm: Vm) -> None:
    vm.io.add(MemoryRegion.mmio("broken", 1, write=lambda *access: 1 / 0), 0xE9)
    vm.backend.ring.put(0xE9, 1, True, b"x")
    with pytest.raises(DeviceError, match="'broken' raised ZeroDivisionError at coalesced write to 0xe9") as caught:
        vm.drain()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    vm.drain()


def test_vcpu_that_takes_the_big_lock_inside_its_gate_is_told(vm: Vm) -> None:
    """A backend must not: the next change would wait for it while it waits for the change."""
    vcpu = vm.create_vcpu(0)

    def run() -> int:
        with vm.big_lock:
            return ExitKind.HALT

    vcpu.backend.run = run
    with pytest.raises(LockError, match="big_lock is taken while holding gate"):
        vcpu.run()
    assert not vcpu.gate.busy


def test_vm_memory_and_ports_cannot_be_closed_on_their_own(vm: Vm) -> None:
    for space in (vm.memory, vm.io):
        with pytest.raises(StateError, match="close the VM"):
            space.close()
        assert not space.closed
    assert vm.address_spaces == (vm.memory, vm.io)

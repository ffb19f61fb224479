"""A VM of the mock, with RAM, and a vCPU that runs what a test gives it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import pytest

from accel.address import PAGE_SIZE
from accel.exits import Exit, Halt, Interrupted, IoOut, MmioRead, MmioWrite
from accel.memory import guest_access
from accel.memory.dirty import DirtyClient
from accel.memory.region import MemoryRegion
from accel.memory.slot_plan import Slot
from accel.program import GuestProgram, Op
from accel.vm import OpenAccelerator, Vcpu, Vm
from accel_mock.kvm.memslots import MemSlots
from accel_mock.plugin import MockAccelerator
from accel_mock.vcpu import MockVcpu
from accel_mock.vm import MockVm

#: Where the fixtures' RAM ends.
RAM_END = 0x10000


@pytest.fixture
def open_mock() -> Iterator[Callable[..., Vm]]:
    """Make VMs of the mock without memory, with the options that are given; they are closed in the end."""
    opened: list[OpenAccelerator] = []

    def make(**options: object) -> Vm:
        opened.append(OpenAccelerator(MockAccelerator(), options))
        return opened[-1].create_vm()

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def vm(open_mock: Callable[..., Vm]) -> Vm:
    """A VM with RAM from 0 to `RAM_END`."""
    made = open_mock()
    made.memory.add(MemoryRegion.ram("ram", RAM_END), at=0)
    return made


@pytest.fixture
def vcpu(vm: Vm) -> Vcpu:
    """A vCPU of `vm`, without a program."""
    return vm.create_vcpu(0)


@pytest.fixture
def start(vcpu: Vcpu) -> Callable[..., Exit]:
    """Load operations into `vcpu` and run it to its first exit."""

    def run(*ops: Op) -> Exit:
        vcpu.load_program(GuestProgram(ops))
        return vcpu.run()

    return run


@attrs.define(eq=False)
class Guest:
    """A VM without memory, and its vCPU 0."""

    vm: Vm
    vcpu: Vcpu

    def run(self, *ops: Op) -> list[Exit]:
        """Execute operations without an error; return the exits up to the halt, all served from the views."""
        self.vcpu.load_program(GuestProgram(ops))
        exits: list[Exit] = []
        while not isinstance(access := self.vcpu.run(), Halt):
            exits.append(access)
            match access:
                case MmioRead(address, size):
                    access.reply(guest_access.load(self.vm.memory, address, size))
                case MmioWrite(address, size, value):
                    guest_access.store(self.vm.memory, address, value, size)
                case IoOut(port, size, _, data):
                    guest_access.store(self.vm.io, port, int.from_bytes(data, "little"), size)
                case _:
                    pytest.fail(f"unexpected {access}")
        assert isinstance(self.vcpu.backend, MockVcpu)
        assert self.vcpu.backend.errors == 0
        return exits

    @contextmanager
    def running(self) -> Iterator[list[Exit]]:
        """Run the vCPU on a thread during the block, or up to an exit that is no kick."""
        exits: list[Exit] = []
        stop = threading.Event()

        def loop() -> None:
            while not stop.is_set() and all(one == Interrupted() for one in exits[-1:]):
                exits.append(self.vcpu.run())

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        try:
            yield exits
        finally:
            stop.set()
            self.vcpu.kick()
            thread.join(60)
            assert not thread.is_alive()

    def dirty_pages(self, region: MemoryRegion, client: DirtyClient = DirtyClient.VGA) -> list[int]:
        """Return the numbers of the pages of `region` that were written since the last time."""
        return [
            page
            for window in self.vm.dirty_log.collect(region, client).ranges()
            for page in range(window.start // PAGE_SIZE, window.end // PAGE_SIZE)
        ]

    @property
    def memslots(self) -> MemSlots:
        """What the mock has for slots."""
        assert isinstance(self.vm.backend, MockVm)
        return self.vm.backend._memslots

    @property
    def logged(self) -> dict[int, bool]:
        """Whether each slot logs, by its address."""
        return {one.slot.gpa: one.log is not None for one in self.memslots.table.slots}


@pytest.fixture
def boot(open_mock: Callable[..., Vm]) -> Callable[..., Guest]:
    """Make guests without memory, with the options that are given."""

    def make(**options: object) -> Guest:
        vm = open_mock(**options)
        return Guest(vm, vm.create_vcpu(0))

    return make


@attrs.frozen
class SlotCall:
    """A slot call; `kind` is its method of `MemSlots`."""

    kind: str
    number: int
    gpa: int
    size: int
    is_logged: bool


@pytest.fixture
def slot_calls(monkeypatch: pytest.MonkeyPatch) -> list[SlotCall]:
    """What listeners ask of the slots; each call goes through."""
    seen: list[SlotCall] = []

    def watch(kind: str) -> None:
        method = getattr(MemSlots, kind)

        def watched(self: MemSlots, number: int, slot: Slot) -> object:
            seen.append(SlotCall(kind, number, slot.gpa, slot.size, slot.log is not None))
            return method(self, number, slot)

        monkeypatch.setattr(MemSlots, kind, watched)

    for kind in ("create", "delete", "toggle", "take_dirty"):
        watch(kind)
    return seen

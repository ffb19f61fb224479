"""Devices and guest memory, on every accelerator here: access rules, flash, doorbells, and DMA through a space of
their own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

import pytest

import accel
from accel.devices import Device, DeviceHost
from accel.errors import AddressError, RegionError, StateError, UsageError
from accel.memory.address_space import AddressSpace
from accel.memory.mmio import AccessSizes, MmioOps
from accel.program import ERRORS, GuestProgram, Load, Loop, Op, Out, Store

REGISTERS = 0xFE00_0000
DATA = 0x20_0000
EVERY = [pytest.param("kvm", marks=pytest.mark.kvm), "mock"]
every = pytest.mark.parametrize("accelerator", EVERY)

SOURCE, TARGET, SIZE, WINDOW, COMMAND = range(0, 20, 4)
COPY, COPY_TO_MEMORY = 1, 2
DONE, FAILED = 0, 0xBAD


class Copier(Device):
    """Copies bytes on its own bus, of which 64 KiB are a window onto guest memory that the guest moves.

    The registers take 4 bytes at a time. `COPY` copies from bus to bus, `COPY_TO_MEMORY` from the bus to memory.
    """

    WINDOW_SIZE = 0x1_0000

    def __init__(self, name: str = "copier", at: int = REGISTERS, ram: accel.MemoryRegion | None = None) -> None:
        self.name = name
        self.at = at
        self.registers = [0] * 5
        self.closed_with: list[bytes] = []
        self._ram = ram
        self._host: DeviceHost | None = None
        self.bus: AddressSpace | None = None

    def connect(self, host: DeviceHost) -> None:
        self._host = host
        self.root = accel.MemoryRegion.container("copier-bus", 1 << 32)
        self.window = accel.MemoryRegion.alias("copier-window", host.memory.root, 0, self.WINDOW_SIZE)
        self.root.add(self.window, 0)
        if self._ram is not None:
            self.root.add(self._ram, 0x8000_0000)

    def memory_regions(self) -> Iterable[tuple[int, accel.MemoryRegion]]:
        sizes = AccessSizes(4, 4)
        ops = MmioOps(read=self._read, write=self._write, valid=sizes, implemented=sizes)
        return ((self.at, accel.MemoryRegion.mmio(self.name, 4 * len(self.registers), ops=ops)),)

    def address_spaces(self) -> Iterable[tuple[str, accel.MemoryRegion]]:
        return (("bus", self.root),)

    def connect_spaces(self, spaces: Mapping[str, AddressSpace]) -> None:
        self.bus = spaces["bus"]

    def close(self) -> None:
        assert self.bus is not None
        self.closed_with.append(self.bus.read(DATA % self.WINDOW_SIZE, 4))

    def _read(self, offset: int, size: int) -> int:
        return self.registers[offset // 4]

    def _write(self, offset: int, value: int, size: int) -> None:
        self.registers[offset // 4] = value
        if offset == WINDOW:
            self.window.set_target_offset(value)
        elif offset == COMMAND:
            self.registers[COMMAND // 4] = self._copy(value)

    def _copy(self, command: int) -> int:
        source, target, size = self.registers[:3]
        assert self.bus is not None
        assert self._host is not None
        if size > self.WINDOW_SIZE:
            return FAILED
        try:
            into = self._host.memory if command == COPY_TO_MEMORY else self.bus
            self.bus.copy(target, source, size, into=into, as_guest=True)
        except AddressError:
            return FAILED
        return DONE


def setting(**registers: int) -> tuple[Op, ...]:
    """Return the operations that set the copier's registers, in the order given."""
    return tuple(Store(REGISTERS + globals()[name], value) for name, value in registers.items())


def run(machine: accel.Machine, ops: Iterable[Op]) -> accel.RunResult:
    machine.load(GuestProgram((*ops, Out(0xF4, ERRORS))))
    return machine.run(timeout=60)


@pytest.fixture
def bell() -> Iterator[int]:
    """An eventfd."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


# address spaces of devices


@every
def test_device_copies_through_a_window_that_the_guest_moves(bench, accelerator) -> None:
    machine = bench(accelerators=accelerator).machine
    copier = Copier()
    machine.attach(copier)
    pages = (DATA, DATA + 0x2_0000)
    body = [
        op
        for page in pages
        for op in (
            Store(page, page + 0x1234, 4),
            Store(page + 0x40, 0, 4),
            *setting(WINDOW=page, SOURCE=0, TARGET=0x40, SIZE=4, COMMAND=COPY),
            Load(REGISTERS + COMMAND, expect=DONE),
            Load(page + 0x40, expect=page + 0x1234),
        )
    ]
    result = run(machine, (Loop(body, 25), Load(pages[0] + 0x40, expect=pages[0] + 0x1234)))
    assert result.exit_status == 1
    assert result.spurious_faults == 0
    assert machine.accelerator == accelerator
    assert copier.bus is machine.address_spaces["copier.bus"]
    assert copier.bus.translate(0) == (machine.ram, pages[1])


@every
def test_device_reaches_nothing_but_what_its_bus_shows(bench, accelerator) -> None:
    """Beyond the window, into ROM, over the end of the RAM, and with a size that only a guest could think of."""
    machine = bench(accelerators=accelerator, memory="4M").machine
    machine.attach(Copier(ram=accel.MemoryRegion.ram("own", 0x1000)))
    machine.memory.add(accel.MemoryRegion.rom("rom", b"rom", 0x1000), DATA, priority=1)
    tries = [
        setting(WINDOW=0x10_0000, SOURCE=0, TARGET=0xFFFE, SIZE=4, COMMAND=COPY),
        setting(WINDOW=0x10_0000, SOURCE=0x1_0000, TARGET=0, SIZE=4, COMMAND=COPY),
        setting(WINDOW=DATA, SOURCE=0x1000, TARGET=0, SIZE=4, COMMAND=COPY),
        setting(WINDOW=0x3F_F000, SOURCE=0x800, TARGET=0xFFC, SIZE=8, COMMAND=COPY),
        setting(SIZE=0xFFFF_FFFF, COMMAND=COPY),
        setting(WINDOW=0x10_0000, SOURCE=0, TARGET=DATA, SIZE=4, COMMAND=COPY_TO_MEMORY),
        setting(WINDOW=0x10_0000, SOURCE=0, TARGET=0x7FFF_0000, SIZE=4, COMMAND=COPY_TO_MEMORY),
    ]
    fine = [
        setting(WINDOW=DATA, SOURCE=0, TARGET=0x8000_0FFD, SIZE=3, COMMAND=COPY),
        setting(SOURCE=0x8000_0FFD, TARGET=DATA + 0x1000, SIZE=3, COMMAND=COPY_TO_MEMORY),
    ]
    ops = [op for one in tries for op in (*one, Load(REGISTERS + COMMAND, expect=FAILED))]
    ops += [op for one in fine for op in (*one, Load(REGISTERS + COMMAND, expect=DONE))]
    result = run(machine, [*ops, Load(DATA, 4, expect=0x6D6F72), Load(DATA + 0x1000, 2, expect=0x6F72)])
    assert result.exit_status == 1
    assert machine.memory.read(DATA, 4) == b"rom\0"


@every
def test_device_is_refused_whole_and_leaves_nothing(bench, accelerator) -> None:
    machine = bench(accelerators=accelerator).machine
    taken = accel.MemoryRegion.mmio("taken", 8)
    machine.memory.add(taken, 0xFD00_0000)

    class Clashing(Copier):
        def memory_regions(self):
            return (*super().memory_regions(), (0xFC00_0000, taken))

    class Twofold(Copier):
        def address_spaces(self):
            return (("bus", self.root), ("bus", self.root))

    before, views = machine.devices, [space.view for space in machine.vm.address_spaces]
    for device, problem in ((Clashing(), "is in 'memory' already"), (Twofold(), r"'copier\.bus' exists already")):
        with pytest.raises((RegionError, UsageError), match=problem):
            machine.attach(device)
        assert list(machine.address_spaces) == ["memory", "io"]
        assert machine.devices == before
        assert [space.view for space in machine.vm.address_spaces] == views
    good = Copier()
    machine.attach(good)
    with pytest.raises(UsageError, match=r"address space 'copier\.bus' exists already"):
        machine.attach(Copier(at=0xFB00_0000))
    machine.attach(Copier(name="second", at=0xFB00_0000))
    assert list(machine.address_spaces) == ["memory", "io", "copier.bus", "second.bus"]


def test_device_attached_twice_is_refused(bench) -> None:
    machine = bench(accelerators="mock").machine
    copier = Copier()
    machine.attach(copier)
    with pytest.raises(StateError, match="device 'copier' is attached already"):
        machine.attach(copier)
    assert machine.devices.count(copier) == 1


def test_device_attached_in_a_transaction_that_fails_is_not_there(bench) -> None:
    machine = bench(accelerators="mock").machine
    before = machine.devices
    lost, kept = Copier("lost"), Copier("kept")
    with pytest.raises(KeyError), machine.transaction():
        machine.attach(lost)
        assert machine.devices == (*before, lost)
        assert lost.bus is not None
        raise KeyError("not like this")
    assert machine.devices == before
    assert list(machine.address_spaces) == ["memory", "io"]
    with machine.transaction():
        machine.attach(kept)
        with pytest.raises(AddressError):
            kept.bus.read(0, 1)
    assert kept.bus.read(0, 1) == b"\0"
    machine.close()
    assert (lost.closed_with, kept.closed_with) == ([], [bytes(4)])


def test_device_is_closed_before_its_space_and_that_before_the_vm(bench) -> None:
    machine = bench(accelerators="mock").machine
    copier = Copier()
    machine.attach(copier)
    copier.window.set_target_offset(DATA)
    machine.memory.write(DATA, b"last")
    told = []

    class Hearer(accel.MemoryListener):
        name = "hearer"

        def region_del(self, section) -> None:
            told.append((section.region.name, copier.closed_with.copy(), machine.vm.closed))

    copier.bus.add_listener(Hearer())
    machine.close()
    assert told == [("ram", [b"last"], False)]
    assert copier.bus.closed
    machine.close()
    assert copier.closed_with == [b"last"]


# access rules, flash and doorbells


@every
def test_device_is_asked_for_what_it_takes(bench, accelerator) -> None:
    """Big-endian registers of 16 bits behind accesses of 1 to 4 bytes; more is refused."""
    machine = bench(accelerators=accelerator).machine
    registers, calls = [0x1122, 0x3344, 0, 0], []

    def write(offset: int, value: int, size: int) -> None:
        calls.append((offset, value, size))
        registers[offset // 2] = value

    ops = MmioOps(
        read=lambda offset, size: registers[offset // 2],
        write=write,
        valid=AccessSizes(1, 4),
        implemented=AccessSizes(2, 2),
        endian="big",
    )
    for space, at in ((machine.memory, REGISTERS), (machine.io, 0x600)):
        space.add(accel.MemoryRegion.mmio("registers", 8, ops=ops), at)
    result = run(
        machine,
        [
            Load(REGISTERS, 4, expect=0x44332211),
            Load(REGISTERS + 1, 1, expect=0x22),
            Store(REGISTERS + 3, 0xFF, 1),
            Load(REGISTERS + 2, 2, expect=0xFF33),
            Load(REGISTERS, 8, expect=(1 << 64) - 1),
            Store(REGISTERS, 0, 8),
            Load(REGISTERS + 1, 2, expect=0xFFFF),
            Out(0x604, 0xA1B2, 2),
            accel.program.In(0x604, 2, expect=0xA1B2),
            Load(REGISTERS + 4, 2, expect=0xA1B2),
        ],
    )
    assert result.exit_status == 1
    assert calls == [(2, 0x33FF, 2), (4, 0xB2A1, 2)]
    assert result.unassigned == machine.memory.unassigned == 3


class Flash(Device):
    """A flash chip: 0x90 has it answer with its state, 0xff makes it memory again, 0x40 programs the next byte."""

    name = "flash"

    def __init__(self, at: int, contents: bytes, size: int) -> None:
        ops = MmioOps(read=self._read, write=self._write, valid=AccessSizes(1, 4))
        self.region = accel.MemoryRegion.rom_device("flash", contents, size, ops=ops)
        self.commands: list[int] = []
        self._at = at
        self._programs = False

    def memory_regions(self) -> Iterable[tuple[int, accel.MemoryRegion]]:
        return ((self._at, self.region),)

    def _read(self, offset: int, size: int) -> int:
        return 0x80

    def _write(self, offset: int, value: int, size: int) -> None:
        self.commands.append(value)
        if self._programs:
            self._programs = False
            self.region.write(offset, bytes([value]))
        elif value in (0x90, 0xFF):
            self.region.set_romd(value == 0xFF)
        else:
            self._programs = value == 0x40


@every
@pytest.mark.parametrize("size", [0x2000, 0x1800], ids=["whole-pages", "part-of-a-page"])
def test_flash_is_switched_by_its_guest_while_that_runs(bench, accelerator, size: int) -> None:
    machine = bench(accelerators=accelerator).machine
    flash = Flash(REGISTERS, b"flash", size)
    machine.attach(flash)
    last = REGISTERS + size - 4
    times = 20
    body = [
        Load(REGISTERS, 4, expect=int.from_bytes(b"flas", "little")),
        Load(last, 4, expect=int.from_bytes(b"\0\0\0\7", "little")),
        Store(REGISTERS, 0x90, 1),
        Load(REGISTERS, 1, expect=0x80),
        Load(last, 2, expect=0x80),
        Store(REGISTERS, 0xFF, 1),
        Load(REGISTERS + 4, 1, expect=ord("h")),
    ]
    result = run(machine, [Store(REGISTERS, 0x40, 1), Store(last + 3, 7, 1), Loop(body, times)])
    assert result.exit_status == 1
    assert result.spurious_faults == 0
    assert flash.commands == [0x40, 7, *[0x90, 0xFF] * times]
    # Memory that fills its pages is read without an exit.
    assert result.exits["mmio"] == 2 + times * (4 if size == 0x2000 else 5)


@every
def test_doorbell_rings_and_its_callback_is_not_called(bench, accelerator, bell: int) -> None:
    machine = bench(accelerators=accelerator).machine
    calls: list[tuple[int, int, int]] = []
    memory = accel.MemoryRegion.mmio("bells", 0x1000, write=lambda *call: calls.append(call))
    ports = accel.MemoryRegion.mmio("port-bells", 8, write=lambda *call: calls.append(call))
    memory.add_eventfd(0x10, bell, size=4)
    ports.add_eventfd(2, bell, size=2, match=7)
    with machine.transaction():
        machine.memory.add(memory, REGISTERS)
        machine.io.add(ports, 0x600)
    result = run(
        machine,
        [
            Store(REGISTERS + 0x10, 1, 4),
            Store(REGISTERS + 0x10, 2, 4),
            Store(REGISTERS + 0x10, 3, 2),
            Out(0x602, 7, 2),
            Out(0x602, 8, 2),
        ],
    )
    assert result.exit_status == 1
    assert os.eventfd_read(bell) == 3
    assert calls == [(0x10, 3, 2), (2, 8, 2)]
    memory.remove_eventfd(0x10, bell, size=4)
    run(machine, [Store(REGISTERS + 0x10, 1, 4)])
    assert calls[-1] == (0x10, 1, 4)

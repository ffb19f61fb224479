"""Two VMs that are asked the same: one of real KVM, one of the mock, with slot calls by number and single operations.

A slot call is KVM_SET_USER_MEMORY_REGION's: what it does follows from the slot that the number has. A guest operation
is a program of one operation; its outcome is what the vCPU came out with, and what it was answered.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from accel.arch.x86_program import assemble
from accel.errors import BackendError, MemorySlotError
from accel.exits import Halt, InternalError, MmioRead, MmioWrite
from accel.machine import Machine
from accel.memory.dirty import DirtyLog
from accel.memory.ram_block import RamBlock
from accel.memory.slot_plan import Slot
from accel.program import ERRORS, GuestProgram, Op, Out
from accel_kvm import abi
from accel_kvm.ioctl import ioctl
from accel_kvm.slots import KvmSlots
from accel_mock.kvm.memslots import MemSlots

PAGE = 0x1000
#: Guest pages that sequences are about, and pages of the block behind them.
BASE, PAGES = 0x1000_0000, 12
#: The machine's own slots have lower numbers.
FIRST_NUMBER, NUMBERS = 40, 6
_CODE = 0x20_0000
#: What a read where no memory is gets.
ANSWER = 0x5A


@attrs.frozen
class Region:
    """A slot as it is asked for: in pages, `gpa` and `offset` from the start of what the sequence is about."""

    gpa: int
    pages: int
    offset: int
    readonly: bool = False
    logged: bool = False
    skew: int = 0  # bytes by which the address is off a page's start


class Side:
    """One of the two; its block has the same bytes as the other's at the start."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.vcpu = machine.vm.vcpus[0]
        self.block = RamBlock("block", PAGES * PAGE)
        self.slots: dict[int, Slot] = {}

    def fill(self) -> None:
        """Unmap everything and write the bytes of the start: each page begins with returns."""
        for number in list(self.slots):
            assert self.set(number, None) == 0
        for page in range(PAGES):
            self.block.view[page * PAGE : (page + 1) * PAGE] = b"\xc3" * 64 + bytes([page + 1]) * (PAGE - 64)

    def slot(self, region: Region) -> Slot:
        """Return what a region asks for."""
        hva = self.block.address + region.offset * PAGE
        log = DirtyLog(self.block.max_size) if region.logged else None
        return Slot(BASE + region.gpa * PAGE + region.skew, region.pages * PAGE, hva, region.readonly, self.block, log)

    def set(self, number: int, region: Region | None) -> int:
        """Make a slot call; return its errno, or 0."""
        raise NotImplementedError

    def log(self, number: int) -> bytes | int:
        """Return the bitmap of written pages since the last time, or the errno."""
        raise NotImplementedError

    def load(self, program: GuestProgram) -> None:
        """Put the vCPU at the start of a program."""
        raise NotImplementedError

    def run(self, op: Op) -> tuple[object, ...]:
        """Execute one operation; return its exits, and the errors that the guest counted."""
        self.load(GuestProgram([op, Out(0x80, ERRORS, 4)]))
        seen: list[object] = []
        while True:
            match self.vcpu.run():
                case MmioRead(address, size) as access:
                    seen.append(("read", address - BASE, size))
                    access.reply(int.from_bytes(bytes([ANSWER]) * size, "little"))
                case MmioWrite(address, size, value):
                    seen.append(("write", address - BASE, size, value))
                case InternalError():
                    return (*seen, "internal error")
                case Halt():
                    return tuple(seen)
                case other:
                    seen.append((type(other).__name__, getattr(other, "data", None)))


class KvmSide(Side):
    """Real KVM."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._state = self.vcpu.read_state()
        self._calls = KvmSlots(machine.vm.backend._fd, PAGE, 1 << 15)

    def set(self, number: int, region: Region | None) -> int:
        """See `Side.set`."""
        size = 0 if region is None else region.pages * PAGE
        slot = self.slots.get(number, self.slot(Region(0, 1, 0))) if region is None else self.slot(region)
        try:
            self._calls._set(number, slot, size)
        except MemorySlotError as error:
            return error.errno or -1
        _note(self.slots, number, None if region is None else slot)
        return 0

    def log(self, number: int) -> bytes | int:
        """See `Side.log`."""
        # Not `take_dirty`, to which a slot without a log is one without written pages.
        bitmap = bytearray(8)
        place = ctypes.c_char.from_buffer(bitmap)
        call = abi.KvmDirtyLog(number, 0, ctypes.addressof(place))
        try:
            ioctl(self.machine.vm.backend._fd, abi.KVM_GET_DIRTY_LOG, call, "KVM_GET_DIRTY_LOG")
        except BackendError as error:
            return error.errno or -1
        pages = self.slots[number].size // PAGE
        return bytes(bitmap[: -(-pages // 8)])

    def load(self, program: GuestProgram) -> None:
        """See `Side.load`."""
        self.machine.memory.write(_CODE, assemble(program))
        self.vcpu.write_state(attrs.evolve(self._state, rip=_CODE))


class MockSide(Side):
    """The mock."""

    @property
    def _memslots(self) -> MemSlots:
        return self.machine.vm.backend._memslots

    def set(self, number: int, region: Region | None) -> int:
        """See `Side.set`."""
        old = self.slots.get(number)
        slot = None if region is None else self.slot(region)
        try:
            self._set(number, old, slot)
        except MemorySlotError as error:
            return error.errno or -1
        _note(self.slots, number, slot)
        return 0

    def _set(self, number: int, old: Slot | None, slot: Slot | None) -> None:
        if slot is None:
            self._memslots.delete(number, old or self.slot(Region(0, 1, 0)))
        elif old is None or (old.size, old.hva, old.readonly) != (slot.size, slot.hva, slot.readonly):
            self._memslots.create(number, slot)
        elif old.gpa != slot.gpa:
            self._memslots.move(number, slot)
        elif (old.log is None) != (slot.log is None):
            self._memslots.toggle(number, slot)

    def log(self, number: int) -> bytes | int:
        """See `Side.log`."""
        try:
            return bytes(self._memslots.take_dirty(number, self.slot(Region(0, 1, 0))))
        except BackendError as error:
            return error.errno or -1

    def load(self, program: GuestProgram) -> None:
        """See `Side.load`."""
        self.vcpu.load_program(program)


def _note(slots: dict[int, Slot], number: int, slot: Slot | None) -> None:
    if slot is None:
        slots.pop(number, None)
    else:
        slots[number] = slot


@contextmanager
def both_sides() -> Iterator[tuple[KvmSide, MockSide]]:
    """Make the two machines; closed in the end."""
    with (
        Machine.create("kvm", memory="4M", cpus=1) as kvm,
        Machine.create("mock", memory="4M", cpus=1) as mock,
    ):
        for machine in (kvm, mock):
            machine.load(GuestProgram([]))
        sides = KvmSide(kvm), MockSide(mock)
        yield sides
        for side in sides:
            side.fill()


def errno_name(number: object) -> object:
    """Return an errno by its name, for messages."""
    return errno.errorcode.get(number, number) if isinstance(number, int) else number

"""Who touches the area: machine code on real CPUs, guest programs where an accelerator interprets those.

Layer: above `changes`. Each guest is put into memory that the host fills anew, tells of itself while it runs, and is
judged when it has ended. The kinds of touch are those of ``examples/guests/src/stress.c``.
"""

from __future__ import annotations

import struct
from typing import Literal, Protocol, get_args

from attrs import frozen

from accel.arch.x86_paging import identity_tables
from accel.devices import DebugExit
from accel.devices.port_handler import PortAccess
from accel.errors import CapabilityError, UsageError
from accel.machine import Machine
from accel.program import ERRORS, RETURN_BYTE, Add, Fetch, GuestProgram, Load, Loop, Op, Out, Store
from accel.result import Outcome, RunResult
from accel.stress.area import BASE, CODE, DATA, TABLES, TOUCHED, WRITTEN, pattern, tail_bytes
from accel.stress.changes import ChangingMap
from accel.testing.images import image_file

Touch = Literal["read", "write", "locked", "fetch", "walk", "mixed"]
TOUCHES: tuple[Touch, ...] = get_args(Touch)
#: The kinds of touch that a pass can be of; ``mixed`` does one after the other.
KINDS = TOUCHES[:-1]

#: Most vCPUs that the guests are made for.
MAX_CPUS = 16
#: What a stress machine needs.
MEMORY = 16 << 20

_MASK = (1 << 64) - 1


@frozen
class Judgement:
    """What a guest that has ended, and the host that looked after it, found.

    Attributes:
        passes: Complete passes over the area, of all vCPUs.
        errors: Wrong values that the guest found, and sums that do not come out.
        host_errors: Words that the host found wrong in memory after the run.
        first_error: The first of the guest's, for people, or an empty string.
    """

    passes: int
    errors: int
    host_errors: int
    first_error: str = ""


class StressGuest(Protocol):
    """A guest in a machine; `ChangingMap` shows the RAM that it touches."""

    def load(self) -> None:
        """Fill the memory and put the guest at its start."""

    def begun(self) -> bool:
        """Return whether its first vCPU has made a pass."""

    def end(self) -> None:
        """Tell it, while it runs, to end."""

    def judge(self, result: RunResult) -> Judgement:
        """Judge the run that has ended."""


def make_guest(machine: Machine, memory: ChangingMap, touch: Touch, executes: frozenset[str]) -> StressGuest:
    """Return the guest for a machine whose accelerator executes this.

    Raises:
        CapabilityError: The accelerator has no such touch.
        UsageError: There are more vCPUs than guests are made for.
    """
    if machine.cpus > MAX_CPUS:
        raise UsageError(f"{machine.cpus} vCPUs: the stress guests are made for up to {MAX_CPUS}")
    if "x86" in executes:
        return ImageGuest(machine, memory, touch)
    if touch == "walk":
        raise CapabilityError(
            f"{machine.accelerator} executes programs, which walk no page tables; use --touch without walk"
        )
    return ProgramGuest(machine, memory, touch)


def _fill(memory: ChangingMap, code: bytes | None) -> None:
    """Write everything but the page tables; `code` is what every cell of code holds, or None for functions."""
    ram = memory.ram
    ram.write(0, bytes(TOUCHED))
    ram.write(TOUCHED, tail_bytes())
    for address in DATA.addresses():
        ram.write(address - BASE, pattern(address).to_bytes(8, "little"))
    for address in CODE.addresses():
        # mov rax, pattern; ret
        function = b"\x48\xb8" + pattern(address).to_bytes(8, "little") + bytes((RETURN_BYTE,))
        ram.write(address - BASE, function if code is None else code)


class _HostCheck:
    """Compares what only the host writes with what was there at the start, through the map and below it."""

    def __init__(self, machine: Machine, memory: ChangingMap) -> None:
        self._machine = machine
        self._ram = memory.ram
        self._before = memory.ram.read(0, WRITTEN.offset)
        self._tail = tail_bytes()

    def errors(self) -> int:
        """Return how many 8-byte words are wrong."""
        size = len(self._before)
        shown = self._machine.memory.read(BASE, TOUCHED)
        return (
            _differences(self._before, shown[:size])
            + _differences(self._ram.read(0, TOUCHED), shown)
            + _differences(self._tail, self._ram.read(TOUCHED, len(self._tail)))
        )


def _differences(one: bytes, other: bytes) -> int:
    if one == other:
        return 0
    return sum(one[at : at + 8] != other[at : at + 8] for at in range(0, len(one), 8))


class ImageGuest:
    """``stress.elf`` on an accelerator that executes machine code."""

    # Words of the block that host and guest share; see examples/guests/README.md.
    _STOP, _FIRST, _TABLES, _CPUS = 0x8000, 0x8010, 0x8038, 0x8088
    _CPU = struct.Struct("<8Q")
    _PASSES = 24
    _LARGE_PAGES, _LOW_WORD = 8, 0x1F_0000

    def __init__(self, machine: Machine, memory: ChangingMap, touch: Touch) -> None:
        self._machine = machine
        self._memory = memory
        self._kind = TOUCHES.index(touch)
        machine.attach(DebugExit())

    def load(self) -> None:
        """Put the image, the page tables and all patterns into memory."""
        machine = self._machine
        with image_file("stress.elf") as path:
            machine.load(path)
        _fill(self._memory, None)
        self._memory.ram.write(TABLES, identity_tables(BASE + TABLES, 1 << 32))
        for at in range(self._LOW_WORD, self._LARGE_PAGES << 21, 1 << 21):
            self._write(at, pattern(at))
        self._write(self._TABLES, BASE + TABLES)
        cells = (value for one in (DATA, WRITTEN, CODE) for value in (BASE + one.offset, one.count, one.size))
        self._write(self._TABLES + 8, *cells)
        for index in range(machine.cpus):
            self._write(self._CPUS + index * self._CPU.size, self._kind)
            for address in WRITTEN.addresses():
                word = address + 8 * (index + 1)
                self._memory.ram.write(word - BASE, struct.pack("<Q", word & 0xFFFF_FFFF))
        self._host = _HostCheck(machine, self._memory)

    def begun(self) -> bool:
        """Return whether a pass of any kind is counted."""
        return any(self._read(self._CPUS + self._PASSES, len(KINDS)))

    def end(self) -> None:
        """Set the word that ends it."""
        self._write(self._STOP, 1)

    def judge(self, result: RunResult) -> Judgement:
        """Add up what the vCPUs counted; their sums and last values can be judged if they came to their end."""
        cpus = [self._read(self._CPUS + n * self._CPU.size, 8) for n in range(self._machine.cpus)]
        errors = sum(cpu[1] for cpu in cpus)
        if result.outcome is Outcome.EXITED:
            errors += sum(map(self._wrong_sum, cpus)) + self._wrong_words([cpu[3:] for cpu in cpus])
        return Judgement(sum(sum(cpu[3:]) for cpu in cpus), errors, self._host.errors(), self._first_error(errors))

    def _wrong_sum(self, cpu: tuple[int, ...]) -> bool:
        """Return whether what a vCPU read and was returned adds up to something else than it must."""
        passes = dict(zip(KINDS, cpu[3:], strict=True))
        right = passes["read"] * sum(map(pattern, DATA.addresses()))
        right += passes["fetch"] * sum(map(pattern, CODE.addresses()))
        return cpu[2] != right & _MASK

    def _wrong_words(self, passes: list[tuple[int, ...]]) -> int:
        """Return how many written words are not what was last written or all that was added."""
        write, locked = KINDS.index("write"), KINDS.index("locked")
        added = sum(one[locked] for one in passes)
        wrong = 0
        for address in WRITTEN.addresses():
            right = [added]
            for index, one in enumerate(passes):
                right.append((one[write] << 32 | address + 8 * (index + 1) & 0xFFFF_FFFF) & _MASK)
            found = self._memory.ram.read(address - BASE, 8 * len(right))
            wrong += _differences(struct.pack(f"<{len(right)}Q", *right), found)
        return wrong

    def _first_error(self, errors: int) -> str:
        kind, address, expected, found = self._read(self._FIRST, 4)
        if not address:
            return "a sum or a last word is wrong" if errors else ""
        return f"{KINDS[kind % len(KINDS)]} at {address:#x}: expected {expected:#x}, found {found:#x}"

    def _read(self, address: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", self._machine.memory.read(address, 8 * count))

    def _write(self, address: int, *values: int) -> None:
        self._machine.memory.write(address, struct.pack(f"<{len(values)}Q", *values))


class ProgramGuest:
    """Guest programs that do the same, for accelerators that execute no machine code. They go on until stopped.

    Each vCPU counts its passes in memory and reports its errors, every few passes, through a port of its own.
    """

    _PASSES = 0x1000
    _PORT = 0x510
    #: Times that a vCPU goes through its passes between two reports.
    _ROUNDS = 2

    def __init__(self, machine: Machine, memory: ChangingMap, touch: Touch) -> None:
        self._machine = machine
        self._memory = memory
        self._touch = touch
        self._errors = [0] * machine.cpus
        machine.port(self._PORT, MAX_CPUS)(self._report)

    def load(self) -> None:
        """Give each vCPU its program, and fill the memory."""
        _fill(self._memory, bytes((RETURN_BYTE,)))
        self._errors = [0] * self._machine.cpus
        self._machine.memory.write(self._PASSES, bytes(8 * len(KINDS) * MAX_CPUS))
        for index, vcpu in enumerate(self._machine.vm.vcpus):
            for address in WRITTEN.addresses():
                word = address + 8 * (index + 1)
                self._memory.ram.write(word - BASE, struct.pack("<Q", _second(word)))
            vcpu.load_program(self._program(index))
        self._host = _HostCheck(self._machine, self._memory)

    def begun(self) -> bool:
        """Return whether a pass of any kind is counted."""
        return sum(self._counts(0)) > 0

    def end(self) -> None:
        """Stop it where it is."""
        self._machine.stop()

    def judge(self, result: RunResult) -> Judgement:
        """Add up what was counted and reported; a pass that was cut off may have added to some sums."""
        counts = [self._counts(index) for index in range(self._machine.cpus)]
        errors = sum(self._errors)
        if self._touch in ("locked", "mixed"):
            passes = sum(one[KINDS.index("locked")] for one in counts)
            words = struct.iter_unpack("<Q", b"".join(self._shared_words()))
            errors += sum(not passes <= word <= passes + self._machine.cpus for (word,) in words)
        return Judgement(sum(map(sum, counts)), errors, self._host.errors())

    def _report(self, access: PortAccess) -> None:
        if access.is_write:
            self._errors[access.port - self._PORT] = access.value

    def _shared_words(self) -> list[bytes]:
        return [self._memory.ram.read(address - BASE, 8) for address in WRITTEN.addresses()]

    def _counts(self, index: int) -> tuple[int, ...]:
        size = 8 * len(KINDS)
        return struct.unpack(f"<{len(KINDS)}Q", self._machine.memory.read(self._PASSES + index * size, size))

    def _program(self, index: int) -> GuestProgram:
        if self._touch == "mixed":
            # Without page tables, and each vCPU begins with another.
            kinds = [KINDS[(index + n) % 4] for n in range(4)]
        else:
            kinds = [self._touch]
        body = [op for kind in kinds for op in self._passes(kind, index)]
        return GuestProgram([Loop((Loop(tuple(body), self._ROUNDS), Out(self._PORT + index, ERRORS, 4)))])

    def _passes(self, kind: str, index: int) -> list[Op]:
        counter = self._PASSES + 8 * (index * len(KINDS) + KINDS.index(kind))
        counted = Add(counter, 1, 8)
        if kind == "read":
            return [*(Load(address, 8, pattern(address)) for address in DATA.addresses()), counted]
        if kind == "fetch":
            return [*(Fetch(address) for address in CODE.addresses()), counted]
        if kind == "locked":
            return [*(Add(address, 1, 8) for address in WRITTEN.addresses()), counted]
        words = [address + 8 * (index + 1) for address in WRITTEN.addresses()]
        return [
            *(op for word in words for op in (Load(word, 8, _second(word)), Store(word, pattern(word), 8))),
            counted,
            *(op for word in words for op in (Load(word, 8, pattern(word)), Store(word, _second(word), 8))),
            counted,
        ]


def _second(word: int) -> int:
    """Return the other of two values that a program writes in turn."""
    return pattern(word) ^ _MASK >> 1

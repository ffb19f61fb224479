"""Runs sequences on an accelerator, compares two, and shows in as few instructions as will do where they differ."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from attrs import field, frozen
from x86_encoding import GENERAL, STATUS
from x86_modes import CODE, DEVICE, RAM_SIZE, SEEN, memory_image
from x86_sequences import Sequence

import accel
from accel.exits import Exit, Halt, Interrupted, IoIn, IoOut, MmioRead, MmioWrite

#: A sequence takes microseconds, and longer on a host that is busy with other things; one that jumps wildly is stopped.
_PATIENCE_S = 30.0
_MOST_ACCESSES = 1000
_FLAGS = {"CF": 1 << 0, "PF": 1 << 2, "AF": 1 << 4, "ZF": 1 << 6, "SF": 1 << 7, "DF": 1 << 10, "OF": 1 << 11}
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss")

Access = tuple[str, int, int, int]


@frozen
class Outcome:
    """What a sequence did.

    Attributes:
        end: The exit with which it ended; `Halt` for those that do what they should.
        registers: General registers, RIP, CR2 and selectors, by name.
        flags: RFLAGS.
        memory: All RAM.
        accesses: To ports and the device page, in order: what, where, bytes and value.
    """

    end: str
    registers: dict[str, int] = field(factory=dict)
    flags: int = 0
    memory: bytes = field(default=b"", repr=False)
    accesses: tuple[Access, ...] = ()


class Side:
    """One accelerator's VM; used by one thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._open = accel.open_accelerator(name)
        vm = self._open.create_vm()
        for name, start, end in (("low", 0, DEVICE.start), ("high", DEVICE.end, RAM_SIZE)):
            vm.memory.add(accel.MemoryRegion.ram(name, end - start), at=start)
        self._memory = vm.memory
        self._cover = accel.MemoryRegion.ram("cover", DEVICE.size)
        self._vcpu = vm.create_vcpu(0)
        self._accesses: list[Access] = []
        self._answers = 0

    def run(self, sequence: Sequence) -> Outcome:
        """Return what `sequence` does here."""
        image = bytearray(memory_image(sequence.mode))
        image[SEEN.start : SEEN.end] = sequence.memory
        code = sequence.code
        image[CODE : CODE + len(code)] = code
        self._memory.write(0, bytes(image[: DEVICE.start]))
        self._memory.write(DEVICE.end, bytes(image[DEVICE.end :]))
        self._vcpu.write_state(sequence.mode.state(sequence.registers, sequence.flags))
        end = self._until_end()
        if end != "halt":
            return Outcome(end)
        state = self._vcpu.read_state()
        registers = {name: getattr(state, name) for name in (*GENERAL, "rip", "cr2")}
        registers |= {name: getattr(state, name).selector for name in _SEGMENTS}
        memory = self._memory.read(0, DEVICE.start) + bytes(DEVICE.size)
        memory += self._memory.read(DEVICE.end, RAM_SIZE - DEVICE.end)
        return Outcome(end, registers, state.rflags, memory, tuple(self._accesses))

    def renew_device(self) -> None:
        """Have the accelerator forget what it knows of the device page: put RAM there and take it away."""
        self._memory.add(self._cover, at=DEVICE.start)
        self._memory.remove(self._cover)

    def _until_end(self) -> str:
        self._accesses, self._answers = [], 0
        stop = threading.Timer(_PATIENCE_S, self._vcpu.kick)
        stop.start()
        try:
            while len(self._accesses) < _MOST_ACCESSES:
                found = self._vcpu.run()
                if not self._served(found):
                    return _describe(found)
            return f"more than {_MOST_ACCESSES} accesses"
        finally:
            stop.cancel()
            stop.join()

    def _served(self, found: Exit) -> bool:
        match found:
            case IoOut(port, size, count, data):
                for at in range(0, size * count, size):
                    self._accesses.append(("out", port, size, int.from_bytes(data[at : at + size], "little")))
            case IoIn(port, size, count):
                values = [self._answer("in", port, size) for _ in range(count)]
                found.reply(b"".join(value.to_bytes(size, "little") for value in values))
            case MmioWrite(address, size, value):
                self._accesses.append(("write", address, size, value))
            case MmioRead(address, size):
                found.reply(self._answer("read", address, size))
            case _:
                return False
        return True

    def _answer(self, kind: str, address: int, size: int) -> int:
        """Return what a port or device page reads: something else each time."""
        self._answers += 1
        value = (address * 0x9E37_79B9_7F4A_7C15 + self._answers * 0x85EB_CA6B >> 3) & (1 << 8 * size) - 1
        self._accesses.append((kind, address, size, value))
        return value

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _describe(found: Exit) -> str:
    """Return the kind of an exit; accelerators word the rest as they like."""
    if isinstance(found, Interrupted):
        return f"still running after {_PATIENCE_S:g} s"
    return "halt" if isinstance(found, Halt) else f"{type(found).__name__}: {getattr(found, 'detail', '')}"


def kind(end: str) -> str:
    """Return how it ended without what accelerators word as they like."""
    return end.partition(":")[0]


def differences(sequence: Sequence, one: Outcome, other: Outcome) -> list[str]:
    """Return what is not the same, a line for each; flags that are undefined in the end do not count."""
    if kind(one.end) != kind(other.end):
        return [f"end: {one.end} | {other.end}"]
    found = [
        f"{name}: {one.registers[name]:#x} | {other.registers[name]:#x}"
        for name in one.registers
        if one.registers[name] != other.registers[name]
    ]
    mask = ~(STATUS & ~sequence.defined)
    if (one.flags ^ other.flags) & mask:
        found.append(f"flags: {show_flags(one.flags & mask)} | {show_flags(other.flags & mask)}")
    ours, theirs = joined(one.accesses), joined(other.accesses)
    for number in range(max(len(ours), len(theirs))):
        here, there = ours[number : number + 1], theirs[number : number + 1]
        if here != there:
            found.append(f"access {number}: {_show(here)} | {_show(there)}")
            break
    if one.memory != other.memory:
        places = [at for at in range(RAM_SIZE) if one.memory[at] != other.memory[at]]
        found += [f"[{at:#x}]: {one.memory[at]:#04x} | {other.memory[at]:#04x}" for at in places[:16]]
        if len(places) > 16:
            found.append(f"and {len(places) - 16} more bytes of memory")
    return found


def joined(accesses: tuple[Access, ...]) -> tuple[Access, ...]:
    """Return the same with writes that follow each other in time and place made one.

    A write that begins in memory and ends on a device page comes out of Unicorn byte by byte.
    """
    found: list[Access] = []
    for access in accesses:
        kind, address, size, value = access
        if found and kind == "write" == found[-1][0] and found[-1][1] + found[-1][2] == address:
            _, start, before, low = found.pop()
            access = (kind, start, before + size, low | value << 8 * before)
        found.append(access)
    return tuple(found)


def _show(accesses: tuple[Access, ...]) -> str:
    return ", ".join(f"{kind} {size} at {address:#x}: {value:#x}" for kind, address, size, value in accesses) or "none"


def show_flags(flags: int) -> str:
    """Return flags by name."""
    return " ".join(name for name, bit in _FLAGS.items() if flags & bit) + f" ({flags:#x})"


def shrink(sequence: Sequence, differs: Callable[[Sequence], bool]) -> Sequence:
    """Return a sequence with less in it of which `differs` still holds; nothing more can be left out of it."""
    while True:
        for one in sequence.smaller():
            if differs(one):
                sequence = one
                break
        else:
            return sequence


def report(sequence: Sequence, sides: tuple[Side, Side]) -> str:
    """Return a sequence as bytes and instructions, what it begins with, and both results."""
    one, other = (side.run(sequence) for side in sides)
    lines = [f"in {sequence.mode.name}; {sides[0].name} | {sides[1].name}"]
    lines += [f"  {address:#x}: {code.hex():<24} {text}" for address, code, text in sequence.lines()]
    state = sequence.mode.state(sequence.registers, sequence.flags)
    lines.append("  begins with " + " ".join(f"{name}={getattr(state, name):#x}" for name in GENERAL))
    lines.append(f"  and flags {show_flags(sequence.flags)}; compared in the end: {show_flags(sequence.defined)}")
    lines += ["  " + line for line in differences(sequence, one, other)]
    return "\n".join(lines)

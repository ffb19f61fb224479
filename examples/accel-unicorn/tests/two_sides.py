"""Runs sequences on an accelerator, compares two, and shows in as few instructions as will do where they differ."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from attrs import frozen

import accel
from accel.exits import Exit, Halt, Interrupted, IoIn, IoOut
from x86_encoding import GENERAL, STATUS
from x86_modes import CODE, RAM_SIZE, SEEN, Mode, memory_image
from x86_sequences import Sequence

#: A sequence takes microseconds; one that jumps wildly is stopped.
_PATIENCE_S = 5.0
_FLAGS = {"CF": 1 << 0, "PF": 1 << 2, "AF": 1 << 4, "ZF": 1 << 6, "SF": 1 << 7, "DF": 1 << 10, "OF": 1 << 11}
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss")

PortAccess = tuple[str, int, int, int]


@frozen
class Outcome:
    """What a sequence did.

    Attributes:
        end: The exit with which it ended; `Halt` for those that do what they should.
        registers: General registers, RIP and selectors, by name.
        flags: RFLAGS.
        memory: All RAM.
        ports: Port accesses in order: direction, port, size and value.
    """

    end: str
    registers: dict[str, int]
    flags: int
    memory: bytes
    ports: tuple[PortAccess, ...]


class Side:
    """One accelerator's VM; used by one thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._open = accel.open_accelerator(name)
        vm = self._open.create_vm()
        self._ram = accel.MemoryRegion.ram("ram", RAM_SIZE)
        vm.memory.add(self._ram, at=0)
        self._vcpu = vm.create_vcpu(0)
        self._ports: list[PortAccess] = []

    def run(self, sequence: Sequence) -> Outcome:
        """Return what `sequence` does here."""
        image = bytearray(memory_image(sequence.mode))
        image[SEEN.start : SEEN.end] = sequence.memory
        code = sequence.code
        image[CODE : CODE + len(code)] = code
        self._ram.write(0, bytes(image))
        self._vcpu.write_state(sequence.mode.state(sequence.registers, sequence.flags))
        end = self._until_end()
        state = self._vcpu.read_state()
        registers = {name: getattr(state, name) for name in (*GENERAL, "rip")}
        registers |= {name: getattr(state, name).selector for name in _SEGMENTS}
        return Outcome(end, registers, state.rflags, self._ram.read(0, RAM_SIZE), tuple(self._ports))

    def _until_end(self) -> str:
        self._ports = []
        stop = threading.Timer(_PATIENCE_S, self._vcpu.kick)
        stop.start()
        try:
            while True:
                found = self._vcpu.run()
                if not self._served(found):
                    return _describe(found)
        finally:
            stop.cancel()
            stop.join()

    def _served(self, found: Exit) -> bool:
        match found:
            case IoOut(port, size, count, data):
                for at in range(0, size * count, size):
                    self._ports.append(("out", port, size, int.from_bytes(data[at : at + size], "little")))
            case IoIn(port, size, count):
                values = [self._answer(port, size) for _ in range(count)]
                found.reply(b"".join(value.to_bytes(size, "little") for value in values))
            case _:
                return False
        return True

    def _answer(self, port: int, size: int) -> int:
        """Return what a port reads: something else each time."""
        value = (port * 0x9E37_79B9 + len(self._ports) * 0x85EB_CA6B >> 3) & (1 << 8 * size) - 1
        self._ports.append(("in", port, size, value))
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
    if one.ports != other.ports:
        found.append(f"ports: {one.ports} | {other.ports}")
    if one.memory != other.memory:
        places = [at for at in range(RAM_SIZE) if one.memory[at] != other.memory[at]]
        found += [f"[{at:#x}]: {one.memory[at]:#04x} | {other.memory[at]:#04x}" for at in places[:16]]
        if len(places) > 16:
            found.append(f"and {len(places) - 16} more bytes of memory")
    return found


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


def mode_of(sequence: Sequence) -> Mode:
    return sequence.mode

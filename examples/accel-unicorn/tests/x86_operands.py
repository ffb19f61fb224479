"""Draws operands: registers, immediates and addresses, the latter with the instructions that prepare them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TypeVar

from attrs import define, field
from x86_encoding import BP, PAIRS_16, SP, EncodingError, Instruction, Mem, Reg, immediate, instruction
from x86_modes import DATA, DEVICE, HIGH, Mode, random_value

_T = TypeVar("_T")
_HIGH_MIDDLE = (DATA.start + DATA.end) // 2


@define(eq=False)
class Operands:
    """Draws operands for one mode.

    Attributes:
        keep: Registers that must not be written; with the stack pointer among them, nor the stack by operands.
        device: Whether operands may lie in the device page, too, or on its border.
        setup: The instructions that what was drawn since `begin` needs before it.
        used: Registers that these set, or that were drawn as fixed.
    """

    source: random.Random
    mode: Mode
    keep: frozenset[int] = frozenset()
    device: bool = False
    setup: list[Instruction] = field(factory=list)
    used: set[int] = field(factory=set)

    def begin(self) -> None:
        """Begin a new unit."""
        self.setup, self.used = [], set()

    def within(self, keep: Iterable[int]) -> Operands:
        """Return the same for code that must not write these registers either."""
        return Operands(self.source, self.mode, self.keep | frozenset(keep), self.device)

    def chance(self, one_in: int) -> bool:
        return not self.source.randrange(one_in)

    # sizes and registers

    def size(self, least: int = 1) -> int:
        """Return the bytes of an operation."""
        return self.source.choice([size for size in (1, 2, 4, 8) if least <= size <= self.mode.word])

    def op(self, mnemonic: str, opcode: bytes, size: int, *operands: Reg | Mem | str, **more: object) -> Instruction:
        """Encode an instruction of this mode."""
        return instruction(self.mode.bits, mnemonic, opcode, size, *operands, **more)  # type: ignore[arg-type]

    def reg(self, size: int, *, avoid: Iterable[int] = ()) -> Reg:
        """Return a register that may be written."""
        taken = {SP, *self.keep, *avoid}
        return self._register(size, [n for n in range(self.mode.registers) if n not in taken])

    def free(self) -> list[int]:
        """Return the registers that a unit may set before it."""
        return [n for n in range(self.mode.registers) if n not in self.keep | self.used | {SP}]

    def any_reg(self, size: int) -> Reg:
        """Return a register that is only read; RSP too."""
        return self._register(size, range(self.mode.registers))

    def _register(self, size: int, numbers: Iterable[int]) -> Reg:
        choices = [Reg(n, size) for n in numbers if size > 1 or self.mode.bits == 64 or n < 4]
        if size == 1:
            choices += [Reg(n, 1, high=True) for n in numbers if n < 4]
        return self._choice(choices)

    def _choice(self, choices: list[_T]) -> _T:
        if not choices:
            raise EncodingError
        return self.source.choice(choices)

    def fixed(self, *numbers: int) -> None:
        """Note that the unit needs these registers. Raises EncodingError where it uses or must keep them already."""
        if (self.keep | self.used) & set(numbers):
            raise EncodingError
        self.used.update(numbers)

    def set(self, number: int, value: int, size: int | None = None) -> None:
        """Have a register set before the unit."""
        self.fixed(number)
        self.setup.append(self.load(number, value, size))

    def load(self, number: int, value: int, size: int | None = None) -> Instruction:
        """Return a ``mov`` of a constant."""
        size = size or self.mode.word
        target, imm = Reg(number, size), immediate(value, size)
        opcode = b"\xb8" if size > 1 else b"\xb0"
        return self.op("mov", opcode, size, target, f"{int.from_bytes(imm, 'little'):#x}", low=target, imm=imm)

    # immediates

    def value(self) -> int:
        return random_value(self.source)

    def imm(self, size: int, *, short: bool = False) -> tuple[bytes, str]:
        """Return an immediate of an operation of `size` bytes, and how it is shown; `short` for one byte of it."""
        count = 1 if short else min(size, 4)
        value = self.value() & (1 << 8 * count) - 1
        shown = value - (1 << 8 * count) if value >> 8 * count - 1 and count < size else value
        return immediate(value, count), f"{shown:#x}"

    # memory

    def place(self, size: int, *, aligned: bool = False, margin: int = 0) -> int:
        """Return a linear address of `size` bytes in the window; often at the page border in its middle."""
        if self.device and self.chance(2):
            found = self.source.randrange(DEVICE.start + margin, DEVICE.end - size - margin)
            if not aligned and self.chance(4):
                found = self.source.choice([DEVICE.start, DEVICE.end]) - self.source.randrange(size)
            return found & -size if aligned else found
        start, end = DATA.start + margin, DATA.end - size - margin
        if aligned:
            return self.source.randrange(start, end) & -size
        if self.chance(4):
            return _HIGH_MIDDLE + self.source.randrange(-size, size + 1)
        return self.source.randrange(start, end)

    def rm(self, size: int, **more: bool) -> Reg | Mem:
        """Return a register or memory that may be written."""
        return self.mem(size, **more) if self.chance(2) else self.reg(size)

    def any_rm(self, size: int) -> Reg | Mem:
        """Return a register or memory that is only read."""
        return self.mem(size) if self.chance(2) else self.any_reg(size)

    def mem(self, size: int, *, aligned: bool = False, bytes_there: int = 0, margin: int = 0) -> Mem:
        """Return a memory operand in the window; its address is prepared by `setup`.

        Args:
            size: Bytes of the operand.
            aligned: Whether it lies at a multiple of them.
            bytes_there: How much is there, if that is not `size`.
            margin: Bytes before and behind it that are in the window too.
        """
        place = self.place(bytes_there or size, aligned=aligned, margin=margin)
        width = self.address_width()
        may_be_stack = not aligned and not margin and SP not in self.keep and width == self.mode.bits // 8 > 2
        if may_be_stack and self.chance(6):
            return Mem(size, width, base=SP, disp=self.source.randrange(-64, 64), disp_size=1)
        if width == 8 and self.chance(4):
            return Mem(size, 8, disp=place, disp_size=4, relative=True)
        return self.at(place, size, width)

    def address_width(self) -> int:
        """Return the bytes of an address; mostly the mode's own."""
        own = self.mode.bits // 8
        return {8: 4, 4: 2, 2: 4}[own] if self.chance(5) else own

    def at(self, place: int, size: int, width: int) -> Mem:
        """Return an operand at a linear address, or where that shows once more, with registers of the unit's own."""
        base, index = self._pair_16() if width == 2 else self._pair()
        if self.mode.bits == 64 and width == 8 and base is not None and self.chance(2):
            place += HIGH
        segment, offset = self._segment(place, width, "ss" if base == BP else "ds")
        scale = self.source.choice([1, 2, 4, 8]) if index is not None and width > 2 else 1
        disp, disp_size = self._disp(width, base, index)
        if base is not None:
            other = self._load_index(index, self.value(), width) * scale
            self._load_index(base, offset - disp - other, width)
        elif width == 2 and index is not None:
            self._load_index(index, offset - disp, width)
        else:
            disp = offset - self._load_index(index, self.source.randrange(-0x1000, 0x1000), width) * scale
        return Mem(size, width, base, index, scale, _signed(disp, 32), disp_size, segment)

    def _segment(self, place: int, width: int, default: str) -> tuple[str | None, int]:
        """Return a segment prefix, mostly none, and the offset of `place` in the segment."""
        names = ["ds", "es", "ss", "fs", "gs"] + ["cs"] * (self.mode.bits == 64)  # elsewhere code is not writable
        chosen = self.source.choice(names) if self.chance(4) else None
        linear_mask = (1 << 8 * self.mode.word) - 1
        for name in (chosen, None):
            ignored = self.mode.bits == 64 and name not in ("fs", "gs")
            start = self.mode.base(default if ignored or name is None else name)
            offset = place - start & linear_mask
            if offset < 1 << 8 * width or (width == 8 and offset > HIGH):
                return name, offset
        raise EncodingError

    def _pair(self) -> tuple[int | None, int | None]:
        free = self.free()
        self.source.shuffle(free)
        if len(free) < 2:
            raise EncodingError
        base = None if self.chance(6) else free[0]
        return base, free[1] if self.chance(2) else None

    def _pair_16(self) -> tuple[int | None, int | None]:
        taken = self.keep | self.used
        return self._choice([pair for pair in PAIRS_16 if not taken & {*pair}])

    def _disp(self, width: int, base: int | None, index: int | None) -> tuple[int, int]:
        """Return a displacement and its bytes; without a base it is still to be computed."""
        full = 2 if width == 2 else 4
        if base is None and (width > 2 or index is None):
            return 0, full
        sizes = [1, full] if base is not None and base & 7 == BP else [0, 1, full]
        size = self.source.choice(sizes)
        return (0, 0) if not size else (self.source.randrange(-(1 << 8 * size - 1), 1 << 8 * size - 1), size)

    def _load_index(self, number: int | None, value: int, width: int) -> int:
        """Have a register of an address set to `value`, and to anything in the bits that play no part; return it."""
        if number is None:
            return 0
        if width == 4 and self.mode.bits == 64:
            self.set(number, value & 0xFFFF_FFFF | (self.value() & 0xFFFF_FFFF) << 32)
        elif width == 2:
            self.set(number, value & 0xFFFF | self.value() & 0xFFFF_0000)
        else:
            self.set(number, value)
        return value


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value

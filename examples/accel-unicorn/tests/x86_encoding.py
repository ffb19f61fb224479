"""Encodes x86 instructions and says what they read: operands, prefixes, ModRM and SIB, and what flags they define.

No assembler is needed: what is encoded here is also what is printed, so a sequence shows itself. Source: Intel SDM
volume 2, chapter 2 (instruction format), and volume 1, appendix A (flags).
"""

from __future__ import annotations

from attrs import frozen

CF, PF, AF, ZF, SF, DF, OF = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 10, 1 << 11
#: The flags that instructions compute, and may leave undefined.
STATUS = CF | PF | AF | ZF | SF | OF

AX, CX, DX, BX, SP, BP, SI, DI = range(8)

_LOW_BYTES = ("al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil")
_HIGH_BYTES = ("ah", "ch", "dh", "bh")
_WORDS = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
#: By number, as instructions have them.
GENERAL = tuple("r" + name for name in _WORDS) + tuple(f"r{number}" for number in range(8, 16))

_SEGMENT_PREFIX = {"es": 0x26, "cs": 0x2E, "ss": 0x36, "ds": 0x3E, "fs": 0x64, "gs": 0x65}
_SIZES = {1: "byte", 2: "word", 4: "dword", 8: "qword", 16: "xmmword"}
#: How 16-bit addresses combine registers: (base, index) → the low bits of ModRM.
PAIRS_16 = {
    (BX, SI): 0,
    (BX, DI): 1,
    (BP, SI): 2,
    (BP, DI): 3,
    (None, SI): 4,
    (None, DI): 5,
    (BP, None): 6,
    (BX, None): 7,
    (None, None): 6,
}


class EncodingError(Exception):
    """The instruction has no such form: a high byte beside a REX prefix, or a jump that is too far."""


class UndefinedFlagError(Exception):
    """An instruction depends on a flag that an earlier one has left undefined."""


@frozen
class Effect:
    """What an instruction does to the flags.

    Attributes:
        reads: Flags on which its result depends.
        writes: Flags that it defines.
        undefines: Flags that are undefined after it.
        maybe: Whether it may leave the flags as they are, such as a shift by zero.
    """

    reads: int = 0
    writes: int = 0
    undefines: int = 0
    maybe: bool = False

    def after(self, defined: int) -> int:
        """Return the flags that are defined after it; `defined` are those before. Raises UndefinedFlagError."""
        if self.reads & ~defined & STATUS:
            raise UndefinedFlagError
        return (defined if self.maybe else defined | self.writes) & ~self.undefines


@frozen
class Reg:
    """A general register; `high` is one of AH, CH, DH and BH, with the number of the whole register."""

    number: int
    size: int
    high: bool = False

    @property
    def code(self) -> int:
        """The number in the instruction."""
        return self.number + 4 if self.high else self.number

    @property
    def needs_rex(self) -> bool:
        return self.number > 7 or (self.size == 1 and self.number > 3 and not self.high)

    def __str__(self) -> str:
        if self.number > 7:
            return f"r{self.number}" + {1: "b", 2: "w", 4: "d", 8: ""}[self.size]
        if self.size == 1:
            return (_HIGH_BYTES if self.high else _LOW_BYTES)[self.number]
        return {2: "", 4: "e", 8: "r"}[self.size] + _WORDS[self.number]


@frozen
class Mem:
    """A memory operand.

    Attributes:
        size: Bytes of the operand; 0 where it has none (LEA).
        width: Bytes of the address: 2, 4 or 8.
        disp: What is added; for a relative operand the address itself.
        disp_size: Bytes of it in the instruction: 0, 1, or 2 or 4 by the width.
        relative: To RIP.
    """

    size: int
    width: int
    base: int | None = None
    index: int | None = None
    scale: int = 1
    disp: int = 0
    disp_size: int = 0
    segment: str | None = None
    relative: bool = False

    def __str__(self) -> str:
        parts = ["rip"] if self.relative else []
        if self.base is not None:
            parts.append(str(Reg(self.base, self.width)))
        if self.index is not None:
            parts.append(f"{Reg(self.index, self.width)}*{self.scale}" if self.width > 2 else _WORDS[self.index])
        if self.disp_size or not parts:
            parts.append(f"{self.disp:#x}")
        size = f"{_SIZES[self.size]} " if self.size else ""
        return f"{size}{self.segment + ':' if self.segment else ''}[{' + '.join(parts).replace('+ -', '- ')}]"


@frozen
class Instruction:
    """An instruction.

    Attributes:
        mnemonic: With its prefixes, such as ``lock add``.
        size: Bytes of its operation.
        operands: As text.
        code: Its bytes.
        relative: Where in them 4 bytes are to lead to `target`, from its end; None for nowhere.
    """

    mnemonic: str
    size: int
    operands: str
    code: bytes
    effect: Effect = Effect()
    relative: int | None = None
    target: int = 0

    def encode(self, address: int) -> bytes:
        """Return its bytes at `address`."""
        if self.relative is None:
            return self.code
        distance = self.target - address - len(self.code)
        at = self.relative
        return self.code[:at] + distance.to_bytes(4, "little", signed=True) + self.code[at + 4 :]

    def __str__(self) -> str:
        return f"{self.mnemonic} {self.operands}".strip()


def immediate(value: int, size: int) -> bytes:
    """Return the low `size` bytes of `value`."""
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")


def instruction(
    bits: int,
    mnemonic: str,
    opcode: bytes,
    size: int,
    *operands: Reg | Mem | str,
    rm: Reg | Mem | None = None,
    reg: Reg | int = 0,
    low: Reg | None = None,
    imm: bytes = b"",
    prefix: bytes = b"",
    wide: bool | None = None,
    effect: Effect = Effect(),
) -> Instruction:
    """Return an encoded instruction of a code segment of `bits` bits.

    Args:
        size: Bytes of the operation, from which the prefixes follow.
        operands: To be shown.
        rm: What the ModRM byte's mode and low bits are for; None for an instruction without one.
        reg: What is in its middle: a register, or more of the opcode.
        low: A register in the low bits of the opcode's last byte.
        prefix: Such as LOCK.
        wide: Whether REX.W is needed; by default for each operation of 8 bytes.

    Raises:
        EncodingError: It cannot be encoded.
    """
    before, tail, relative = prefix, b"", None
    if isinstance(rm, Mem):
        if rm.segment:
            before += bytes([_SEGMENT_PREFIX[rm.segment]])
        if rm.width != bits // 8:
            before += b"\x67"
    if (size == 2) is (bits != 16) and size in (2, 4):
        before = b"\x66" + before
    if rm is not None:
        number = reg if isinstance(reg, int) else reg.code
        tail, relative = _modrm(rm, number & 7, bits)
    if low is not None:
        opcode = opcode[:-1] + bytes([opcode[-1] + (low.code & 7)])
    rex = _rex(size == 8 if wide is None else wide, reg, low or rm)
    registers = [one for one in (reg, rm, low) if isinstance(one, Reg)]
    if rex or any(one.needs_rex for one in registers):
        if bits != 64 or any(one.high for one in registers):
            raise EncodingError
        before += bytes([0x40 | rex])
    start = len(before) + len(opcode)
    return Instruction(
        mnemonic,
        size,
        ", ".join(map(str, operands)),
        before + opcode + tail + imm,
        effect,
        None if relative is None else start + relative,
        rm.disp if isinstance(rm, Mem) else 0,
    )


def _rex(wide: bool, reg: Reg | int, rm: Reg | Mem | None) -> int:
    bits = 8 * wide
    if isinstance(reg, Reg):
        bits |= (reg.number > 7) << 2
    if isinstance(rm, Reg):
        bits |= rm.number > 7
    elif rm is not None:
        bits |= ((rm.index or 0) > 7) << 1 | ((rm.base or 0) > 7)
    return bits


def _modrm(rm: Reg | Mem, middle: int, bits: int) -> tuple[bytes, int | None]:
    """Return ModRM, SIB and displacement, and where in them a relative displacement is."""
    middle <<= 3
    if isinstance(rm, Reg):
        return bytes([0xC0 | middle | rm.code & 7]), None
    if rm.relative:
        return bytes([middle | 5, 0, 0, 0, 0]), 1
    disp = immediate(rm.disp, rm.disp_size)
    mode = {0: 0x00, 1: 0x40}.get(rm.disp_size, 0x80)
    if rm.width == 2:
        low = PAIRS_16[rm.base, rm.index]
        if rm.base is None and rm.index is None:
            mode = 0
        return bytes([mode | middle | low]) + disp, None
    if rm.base is None:
        index = 4 if rm.index is None else rm.index & 7
        if bits != 64 and rm.index is None:
            return bytes([middle | 5]) + disp, None
        return bytes([middle | 4, _scale(rm) | index << 3 | 5]) + disp, None
    if rm.index is None and rm.base & 7 != SP:
        return bytes([mode | middle | rm.base & 7]) + disp, None
    index = 4 if rm.index is None else rm.index & 7
    return bytes([mode | middle | 4, _scale(rm) | index << 3 | rm.base & 7]) + disp, None


def _scale(rm: Mem) -> int:
    return {1: 0, 2: 0x40, 4: 0x80, 8: 0xC0}[rm.scale]

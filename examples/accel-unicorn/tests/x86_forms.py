"""Forms of instructions that compute: arithmetic, logic, products and divisions, shifts and rotations.

A form draws the instructions of a unit: one, mostly, with those that keep it within what the manual defines before it,
such as an OR before a division. Which flags each defines is the manual's (Intel SDM volume 2), not an implementation's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from attrs import frozen
from x86_encoding import AF, AX, CF, CX, DX, OF, PF, SF, STATUS, ZF, Effect, Instruction, Mem, Reg
from x86_modes import Mode
from x86_operands import Operands

Draw = Callable[[Operands], list[Instruction]]
_D = TypeVar("_D", bound=Draw)


@frozen
class Form:
    """A form.

    Attributes:
        name: What the unit is called.
        draw: Draws its instructions; may raise EncodingError, for another try.
        bits: Code segments in which it exists.
        real: Whether it exists in real mode, too; None for only there.
        moves_stack: Whether the stack pointer is another after it.
    """

    name: str
    draw: Draw
    bits: tuple[int, ...] = (16, 32, 64)
    real: bool | None = True
    moves_stack: bool = False

    def exists(self, mode: Mode) -> bool:
        """Return whether it can be drawn in a mode."""
        is_real = mode.name == "real16"
        return mode.bits in self.bits and (is_real if self.real is None else self.real or not is_real)


FORMS: dict[str, Form] = {}


def form(name: str, *, among: dict[str, Form] = FORMS, **more: Any) -> Callable[[_D], _D]:
    """Register a form under `name`; `more` are attributes of `Form`."""

    def register(draw: _D) -> _D:
        among[name] = Form(name, draw, **more)
        return draw

    return register


ALL = Effect(writes=STATUS)
LOGIC = Effect(writes=STATUS & ~AF, undefines=AF)
LOCK = b"\xf0"

_ARITHMETIC = ("add", "or", "adc", "sbb", "and", "sub", "xor", "cmp")
_CARRYING = ("adc", "sbb", "rcl", "rcr")


def _effect(name: str) -> Effect:
    if name in ("or", "and", "xor"):
        return LOGIC
    return Effect(reads=CF, writes=STATUS) if name in _CARRYING else ALL


def with_lock(o: Operands, name: str, size: int) -> tuple[str, bytes, Reg | Mem]:
    """Return the name, prefix and destination of an instruction that may be locked."""
    locked = o.chance(3)
    rm = o.mem(size, aligned=True) if locked else o.rm(size)
    return (f"lock {name}", LOCK, rm) if locked else (name, b"", rm)


def _arithmetic(index: int, name: str) -> None:
    effect = _effect(name)

    @form(f"{name} rm, r")
    def to_rm(o: Operands) -> list[Instruction]:
        size = o.size()
        label, prefix, rm = with_lock(o, name, size) if name != "cmp" else (name, b"", o.rm(size))
        reg = o.any_reg(size)
        opcode = bytes([index * 8 + (size > 1)])
        return [o.op(label, opcode, size, rm, reg, rm=rm, reg=reg, prefix=prefix, effect=effect)]

    @form(f"{name} r, rm")
    def to_reg(o: Operands) -> list[Instruction]:
        size = o.size()
        rm, reg = o.any_rm(size), o.reg(size)
        return [o.op(name, bytes([index * 8 + 2 + (size > 1)]), size, reg, rm, rm=rm, reg=reg, effect=effect)]

    @form(f"{name} rm, imm")
    def constant(o: Operands) -> list[Instruction]:
        size = o.size()
        label, prefix, rm = with_lock(o, name, size) if name != "cmp" else (name, b"", o.rm(size))
        short = size > 1 and o.chance(2)
        imm, shown = o.imm(size, short=short)
        opcode = b"\x80" if size == 1 else b"\x83" if short else b"\x81"
        return [o.op(label, opcode, size, rm, shown, rm=rm, reg=index, imm=imm, prefix=prefix, effect=effect)]

    @form(f"{name} acc, imm")
    def accumulator(o: Operands) -> list[Instruction]:
        size = o.size()
        o.fixed(AX)
        imm, shown = o.imm(size)
        return [o.op(name, bytes([index * 8 + 4 + (size > 1)]), size, Reg(AX, size), shown, imm=imm, effect=effect)]


for _index, _name in enumerate(_ARITHMETIC):
    _arithmetic(_index, _name)


@form("test")
def _test(o: Operands) -> list[Instruction]:
    size = o.size()
    if o.chance(4):
        imm, shown = o.imm(size)
        opcode = b"\xa9" if size > 1 else b"\xa8"
        return [o.op("test", opcode, size, Reg(AX, size), shown, imm=imm, effect=LOGIC)]
    rm = o.any_rm(size)
    if o.chance(2):
        imm, shown = o.imm(size)
        return [o.op("test", b"\xf7" if size > 1 else b"\xf6", size, rm, shown, rm=rm, imm=imm, effect=LOGIC)]
    reg = o.any_reg(size)
    return [o.op("test", b"\x85" if size > 1 else b"\x84", size, rm, reg, rm=rm, reg=reg, effect=LOGIC)]


def _unary(name: str, opcode: int, digit: int, effect: Effect) -> None:
    @form(name)
    def draw(o: Operands) -> list[Instruction]:
        size = o.size()
        if o.mode.bits != 64 and name in ("inc", "dec") and size > 1 and o.chance(3):
            reg = o.reg(size)
            return [o.op(name, bytes([0x40 + 8 * digit]), size, reg, low=reg, effect=effect)]
        label, prefix, rm = with_lock(o, name, size)
        return [o.op(label, bytes([opcode + (size > 1)]), size, rm, rm=rm, reg=digit, prefix=prefix, effect=effect)]


_unary("not", 0xF6, 2, Effect())
_unary("neg", 0xF6, 3, ALL)
_unary("inc", 0xFE, 0, Effect(writes=STATUS & ~CF))
_unary("dec", 0xFE, 1, Effect(writes=STATUS & ~CF))

_PRODUCT = Effect(writes=CF | OF, undefines=SF | ZF | AF | PF)
_DIVIDED = Effect(undefines=STATUS)


def _product(name: str, digit: int) -> None:
    @form(name)
    def draw(o: Operands) -> list[Instruction]:
        size = o.size()
        o.fixed(AX, *([DX] if size > 1 else []))
        rm = o.any_rm(size)
        return [o.op(name, b"\xf7" if size > 1 else b"\xf6", size, rm, rm=rm, reg=digit, effect=_PRODUCT)]


_product("mul", 4)
_product("imul", 5)


@form("imul r, rm")
def _imul_2(o: Operands) -> list[Instruction]:
    size = o.size(2)
    rm, reg = o.any_rm(size), o.reg(size)
    return [o.op("imul", b"\x0f\xaf", size, reg, rm, rm=rm, reg=reg, effect=_PRODUCT)]


@form("imul r, rm, imm")
def _imul_3(o: Operands) -> list[Instruction]:
    size, short = o.size(2), o.chance(2)
    rm, reg = o.any_rm(size), o.reg(size)
    imm, shown = o.imm(size, short=short)
    opcode = b"\x6b" if short else b"\x69"
    return [o.op("imul", opcode, size, reg, rm, shown, rm=rm, reg=reg, imm=imm, effect=_PRODUCT)]


def _division(name: str, digit: int, *, signed: bool) -> None:
    @form(name)
    def draw(o: Operands) -> list[Instruction]:
        """Divide by something odd, and so that the quotient fits."""
        size = o.size()
        o.fixed(AX, DX)
        rm = o.mem(size) if o.chance(2) else o.reg(size, avoid=(AX, DX))
        wide = size > 1
        acc, upper = Reg(AX, size), Reg(DX, size) if wide else Reg(AX, 1, high=True)
        op, imm8, shift = bytes([0x80 + 3 * wide]), b"\x01", bytes([0xC0 + wide])
        guard = [o.op("or", op, size, rm, "0x1", rm=rm, reg=1, imm=imm8, effect=LOGIC)]
        once = Effect(writes=STATUS & ~AF, undefines=AF | OF)
        if signed:
            guard.append(o.op("sar", shift, size, acc, "0x1", rm=acc, reg=7, imm=imm8, effect=once))
            extend = {1: "cbw", 2: "cwd", 4: "cdq", 8: "cqo"}[size]
            guard.append(o.op(extend, b"\x99" if wide else b"\x98", max(size, 2)))
        else:
            # Its upper half is half of the divisor.
            guard.append(o.op("mov", bytes([0x8A + wide]), size, upper, rm, rm=rm, reg=upper))
            guard.append(o.op("shr", shift, size, upper, "0x1", rm=upper, reg=5, imm=imm8, effect=once))
        return [*guard, o.op(name, bytes([0xF6 + wide]), size, rm, rm=rm, reg=digit, effect=_DIVIDED)]


_division("div", 6, signed=False)
_division("idiv", 7, signed=True)

_SHIFTS = {"rol": 0, "ror": 1, "rcl": 2, "rcr": 3, "shl": 4, "shr": 5, "sar": 7}


def shift_effect(name: str, size: int, count: int) -> Effect:
    """Return what a shift or rotation by `count`, as the instruction has it, does to the flags."""
    count &= 63 if size == 8 else 31
    reads = CF if name in _CARRYING else 0
    if not count:
        return Effect(reads=reads)
    undefined = 0 if count == 1 else OF
    if name in ("rol", "ror", "rcl", "rcr"):
        return Effect(reads, (CF | OF) & ~undefined, undefined)
    undefined |= AF
    if name != "sar" and count >= 8 * size:
        undefined |= CF
    return Effect(reads, STATUS & ~undefined, undefined)


def _shift(name: str, digit: int) -> None:
    @form(f"{name} rm, 1")
    def by_one(o: Operands) -> list[Instruction]:
        size = o.size()
        rm = o.rm(size)
        effect = shift_effect(name, size, 1)
        return [o.op(name, b"\xd1" if size > 1 else b"\xd0", size, rm, "1", rm=rm, reg=digit, effect=effect)]

    @form(f"{name} rm, imm")
    def by_constant(o: Operands) -> list[Instruction]:
        size, count = o.size(), count_for_shift(o)
        rm, opcode, effect = o.rm(size), b"\xc1" if size > 1 else b"\xc0", shift_effect(name, size, count)
        return [o.op(name, opcode, size, rm, f"{count:#x}", rm=rm, reg=digit, imm=bytes([count]), effect=effect)]

    @form(f"{name} rm, cl")
    def by_cl(o: Operands) -> list[Instruction]:
        size, count = o.size(), count_for_shift(o)
        o.set(CX, count, 1)
        rm = o.mem(size) if o.chance(2) else o.reg(size)
        effect = shift_effect(name, size, count)
        return [o.op(name, b"\xd3" if size > 1 else b"\xd2", size, rm, "cl", rm=rm, reg=digit, effect=effect)]


def count_for_shift(o: Operands) -> int:
    """Return a count; often 0, 1, about the width, or one of which only the low bits count."""
    return o.source.choice([0, 1, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, *(o.source.randrange(256),) * 8])


for _name, _digit in _SHIFTS.items():
    _shift(_name, _digit)


def _double_shift(name: str, opcode: int) -> None:
    @form(name)
    def draw(o: Operands) -> list[Instruction]:
        size = o.size(2)
        # In 16 bits, more than 16 leaves the result undefined.
        count = o.source.randrange(17) if size == 2 else count_for_shift(o)
        real = count & (63 if size == 8 else 31)
        effect = Effect()
        if real:
            undefined = AF | (OF if real > 1 else 0)
            effect = Effect(writes=STATUS & ~undefined, undefines=undefined)
        by_cl = o.chance(2)
        if by_cl:
            o.set(CX, count, 1)
        rm = o.rm(size)
        reg = o.any_reg(size)
        imm = b"" if by_cl else bytes([count])
        shown = "cl" if by_cl else f"{count:#x}"
        code = bytes([0x0F, opcode + by_cl])
        return [o.op(name, code, size, rm, reg, shown, rm=rm, reg=reg, imm=imm, effect=effect)]


_double_shift("shld", 0xA4)
_double_shift("shrd", 0xAC)

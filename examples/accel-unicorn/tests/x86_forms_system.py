"""More forms: the stack, flags, decimal arithmetic, strings and ports."""

from __future__ import annotations

from x86_encoding import AF, AX, BP, CF, CX, DF, DI, DX, OF, PF, SF, SI, SP, STATUS, ZF, Effect, Instruction, Reg
from x86_forms import ALL, form
from x86_modes import STACK
from x86_operands import Operands

# the stack


@form("push", moves_stack=True)
def _push(o: Operands) -> list[Instruction]:
    size = o.source.choice([2, 4] if o.mode.bits == 16 else [2, o.mode.bits // 8])
    match o.source.randrange(3):
        case 0:
            reg = o.any_reg(size)
            return [o.op("push", b"\x50", size, reg, low=reg, wide=False)]
        case 1:
            rm = o.any_rm(size)
            return [o.op("push", b"\xff", size, rm, rm=rm, reg=6, wide=False)]
        case _:
            short = o.chance(2)
            imm, shown = o.imm(size, short=short)
            return [o.op(f"push{size * 8}", b"\x6a" if short else b"\x68", size, shown, imm=imm, wide=False)]


@form("pop", moves_stack=True)
def _pop(o: Operands) -> list[Instruction]:
    size = o.source.choice([2, 4] if o.mode.bits == 16 else [2, o.mode.bits // 8])
    if o.chance(2):
        rm = o.rm(size)
        return [o.op("pop", b"\x8f", size, rm, rm=rm, wide=False)]
    reg = o.reg(size)
    return [o.op("pop", b"\x58", size, reg, low=reg, wide=False)]


@form("pusha", bits=(16, 32), moves_stack=True)
def _pusha(o: Operands) -> list[Instruction]:
    size = o.source.choice([2, 4])
    return [o.op(f"pusha{size * 8}", b"\x60", size)]


@form("popa", bits=(16, 32), moves_stack=True)
def _popa(o: Operands) -> list[Instruction]:
    o.fixed(*(n for n in range(8) if n != SP))
    size = o.source.choice([2, 4])
    return [o.op(f"popa{size * 8}", b"\x61", size)]


@form("push sreg", moves_stack=True)
def _push_segment(o: Operands) -> list[Instruction]:
    """Push a selector, and in real mode put it back. As 32 bits it may be written with or without its upper half."""
    size = 8 if o.mode.bits == 64 else 2
    opcode, name = o.source.choice([(b"\x0f\xa0", "fs"), (b"\x0f\xa8", "gs")])
    if o.mode.bits != 64 and o.chance(2):
        opcode, name = o.source.choice([(b"\x06", "es"), (b"\x0e", "cs"), (b"\x16", "ss"), (b"\x1e", "ds")])
    push = o.op("push", opcode, size, name, wide=False)
    if o.mode.name != "real16" or name == "cs":
        return [push]
    return [push, o.op("pop", opcode[:-1] + bytes([opcode[-1] + 1]), size, name, wide=False)]


@form("pushf", moves_stack=True)
def _pushf(o: Operands) -> list[Instruction]:
    size = o.source.choice([2, 4] if o.mode.bits == 16 else [2, o.mode.bits // 8])
    return [o.op(f"pushf{size * 8}", b"\x9c", size, wide=False, effect=Effect(reads=STATUS))]


@form("popf", moves_stack=True)
def _popf(o: Operands) -> list[Instruction]:
    size = o.source.choice([2, 4] if o.mode.bits == 16 else [2, o.mode.bits // 8])
    flags = o.source.getrandbits(16) & (STATUS | DF) | 2
    push = o.op(f"push{size * 8}", b"\x68", size, f"{flags:#x}", imm=flags.to_bytes(min(size, 4), "little"), wide=False)
    return [push, o.op(f"popf{size * 8}", b"\x9d", size, wide=False, effect=ALL)]


@form("enter and leave", moves_stack=True)
def _enter(o: Operands) -> list[Instruction]:
    o.fixed(BP)
    size, room = o.mode.bits // 8, o.source.randrange(64)
    enter = o.op("enter", b"\xc8", size, f"{room:#x}", "0", imm=room.to_bytes(2, "little") + b"\0", wide=False)
    return [enter] if o.chance(2) else [enter, o.op("leave", b"\xc9", size, wide=False)]


@form("enter nested", moves_stack=True)
def _enter_nested(o: Operands) -> list[Instruction]:
    size, room, depth = o.mode.bits // 8, o.source.randrange(16), o.source.randrange(1, 5)
    o.set(BP, STACK.start + 0x400 + o.source.randrange(64) - o.mode.base("ss"))
    imm = room.to_bytes(2, "little") + bytes([depth])
    return [o.op("enter", b"\xc8", size, f"{room:#x}", f"{depth}", imm=imm, wide=False)]


@form("leave", moves_stack=True)
def _leave(o: Operands) -> list[Instruction]:
    o.set(BP, STACK.start + 0x780 + o.source.randrange(64) - o.mode.base("ss"))
    return [o.op("leave", b"\xc9", o.mode.bits // 8, wide=False)]


# flags


def _flags(name: str, opcode: int, effect: Effect) -> None:
    @form(name)
    def draw(o: Operands) -> list[Instruction]:
        return [o.op(name, bytes([opcode]), 0, effect=effect)]


_flags("clc", 0xF8, Effect(writes=CF))
_flags("stc", 0xF9, Effect(writes=CF))
_flags("cmc", 0xF5, Effect(reads=CF, writes=CF))
_flags("cld", 0xFC, Effect())
_flags("std", 0xFD, Effect())
_flags("sahf", 0x9E, Effect(writes=STATUS & ~OF))
_flags("nop", 0x90, Effect())


@form("lahf")
def _lahf(o: Operands) -> list[Instruction]:
    o.fixed(AX)
    return [o.op("lahf", b"\x9f", 0, effect=Effect(reads=STATUS & ~OF))]


@form("nop rm")
def _long_nop(o: Operands) -> list[Instruction]:
    size = o.size(2)
    rm = o.any_rm(size)
    return [o.op("nop", b"\x0f\x1f", size, rm, rm=rm)]


# decimal arithmetic


def _decimal(name: str, code: bytes, effect: Effect) -> None:
    @form(name, bits=(16, 32))
    def draw(o: Operands) -> list[Instruction]:
        o.fixed(AX)
        return [o.op(name, code, 0, effect=effect)]


_decimal("daa", b"\x27", Effect(reads=CF | AF, writes=STATUS & ~OF, undefines=OF))
_decimal("das", b"\x2f", Effect(reads=CF | AF, writes=STATUS & ~OF, undefines=OF))
_decimal("aaa", b"\x37", Effect(reads=AF, writes=CF | AF, undefines=OF | SF | ZF | PF))
_decimal("aas", b"\x3f", Effect(reads=AF, writes=CF | AF, undefines=OF | SF | ZF | PF))
_decimal("aam", b"\xd4\x0a", Effect(writes=SF | ZF | PF, undefines=OF | AF | CF))
_decimal("aad", b"\xd5\x0a", Effect(writes=SF | ZF | PF, undefines=OF | AF | CF))

# strings

_MOST_ITEMS = 12
_LETTER = {1: "b", 2: "w", 4: "d", 8: "q"}


def _string(name: str, opcode: int, *, source: bool, target: bool, compares: bool, acc: int) -> None:
    """Register a string form; `acc` is 1 where the accumulator is read, 2 where it is written."""

    @form(name)
    def draw(o: Operands) -> list[Instruction]:
        size, width = o.size(), o.address_width()
        items = o.source.randrange(_MOST_ITEMS)
        repeat = o.source.choice([b"", b"\xf3", b"\xf2" if compares else b"\xf3"])
        if acc == 2:
            o.fixed(AX)
        margin = size * _MOST_ITEMS
        if source:
            _point(o, SI, "ds", o.place(size, margin=margin), width)
        if target:
            _point(o, DI, "es", o.place(size, margin=margin), width)
        if repeat:
            o.set(CX, _in_width(o, items, width))
        label = {b"": "", b"\xf3": "repe " if compares else "rep ", b"\xf2": "repne "}[repeat] + name + _LETTER[size]
        effect = Effect(maybe=bool(repeat) and not items, writes=STATUS) if compares else Effect()
        prefix = repeat + (b"" if width == o.mode.bits // 8 else b"\x67")
        return [o.op(label, bytes([opcode + (size > 1)]), size, prefix=prefix, effect=effect)]


def _point(o: Operands, number: int, segment: str, place: int, width: int) -> None:
    o.set(number, _in_width(o, place - o.mode.base(segment), width))


def _in_width(o: Operands, value: int, width: int) -> int:
    """Return `value`, and anything in the bits that addresses of `width` bytes have not."""
    mask = (1 << 8 * width) - 1
    return value & mask | o.value() & ((1 << 8 * o.mode.word) - 1) & ~mask


_string("movs", 0xA4, source=True, target=True, compares=False, acc=0)
_string("cmps", 0xA6, source=True, target=True, compares=True, acc=0)
_string("stos", 0xAA, source=False, target=True, compares=False, acc=1)
_string("lods", 0xAC, source=True, target=False, compares=False, acc=2)
_string("scas", 0xAE, source=False, target=True, compares=True, acc=1)

# ports


@form("in")
def _in(o: Operands) -> list[Instruction]:
    size = o.source.choice([1, 2, 4])
    o.fixed(AX)
    acc = Reg(AX, size)
    if o.chance(2):
        port = o.source.randrange(256)
        return [o.op("in", bytes([0xE4 + (size > 1)]), size, acc, f"{port:#x}", imm=bytes([port]))]
    o.set(DX, o.source.randrange(0x1_0000 - 4))
    return [o.op("in", bytes([0xEC + (size > 1)]), size, acc, "dx")]


@form("out")
def _out(o: Operands) -> list[Instruction]:
    size = o.source.choice([1, 2, 4])
    acc = Reg(AX, size)
    if o.chance(2):
        port = o.source.randrange(256)
        return [o.op("out", bytes([0xE6 + (size > 1)]), size, f"{port:#x}", acc, imm=bytes([port]))]
    o.set(DX, o.source.randrange(0x1_0000 - 4))
    return [o.op("out", bytes([0xEE + (size > 1)]), size, "dx", acc)]


def _port_string(name: str, opcode: int, pointer: int, segment: str) -> None:
    @form(name)
    def draw(o: Operands) -> list[Instruction]:
        size, width, repeated = o.source.choice([1, 2, 4]), o.address_width(), o.chance(2)
        _point(o, pointer, segment, o.place(size, margin=size * _MOST_ITEMS), width)
        o.set(DX, o.source.randrange(0x1_0000 - 4))
        if repeated:
            o.set(CX, _in_width(o, o.source.randrange(_MOST_ITEMS), width))
        prefix = b"\xf3" * repeated + (b"" if width == o.mode.bits // 8 else b"\x67")
        label = ("rep " if repeated else "") + name + _LETTER[size]
        return [o.op(label, bytes([opcode + (size > 1)]), size, prefix=prefix)]


_port_string("ins", 0x6C, DI, "es")
_port_string("outs", 0x6E, SI, "ds")

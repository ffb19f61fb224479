"""Units that end in an exception, whose handler halts: RIP tells which it was, the stack what it pushed."""

from __future__ import annotations

from functools import partial

from x86_encoding import AX, BX, CX, DX, SI, STATUS, Effect, Instruction, Mem, Reg
from x86_forms import ALL, Form, form
from x86_forms_data import define_flags
from x86_modes import HIGH
from x86_operands import Operands

FAULTS: dict[str, Form] = {}
_fault = partial(form, among=FAULTS)

#: The pushed flags are compared.
_PUSHES = Effect(reads=STATUS)
#: Where long mode has no pages, and where no address can be.
_NOWHERE, _FAR = 0x6543_2100_0000, 0x1234_5678_9ABC_DEF0
#: No instructions anywhere, or none that can be locked.
_UNDEFINED = (b"\x0f\x0b", b"\x0f\xff\xc0", b"\x0f\xb9\xc0", b"\xf0\x01\xc0", b"\xf0\x8b\x00", b"\xfe\xf8")
#: None in long mode.
_UNDEFINED_64 = (b"\x06", b"\x0e", b"\x27", b"\x37", b"\x60", b"\x61", b"\xce", b"\xd4\x0a", b"\x9a", b"\xea")


@_fault("divide by zero")
def _zero(o: Operands) -> list[Instruction]:
    size, digit = o.size(), o.source.choice([6, 7])
    rm = o.mem(size) if o.chance(2) else o.reg(size, avoid=(AX, DX))
    clear = o.op("and", b"\x80" if size == 1 else b"\x83", size, rm, "0", rm=rm, reg=4, imm=b"\0")
    compare = define_flags(o)
    name = {6: "div", 7: "idiv"}[digit]
    return [clear, compare, o.op(name, bytes([0xF6 + (size > 1)]), size, rm, rm=rm, reg=digit, effect=_PUSHES)]


@_fault("quotient too large")
def _overflow(o: Operands) -> list[Instruction]:
    size = o.size(2)
    o.set(DX, o.source.choice([2, 3, 0x7FFF]), size)
    o.set(CX, 2, size)
    rm, digit = Reg(CX, size), o.source.choice([6, 7])
    return [o.op({6: "div", 7: "idiv"}[digit], b"\xf7", size, rm, rm=rm, reg=digit, effect=_PUSHES)]


@_fault("aam by zero", bits=(16, 32))
def _aam(o: Operands) -> list[Instruction]:
    return [o.op("aam", b"\xd4\0", 0, "0", effect=_PUSHES)]


@_fault("int3")
def _int3(o: Operands) -> list[Instruction]:
    return [o.op("int3", b"\xcc", 0, effect=_PUSHES)]


@_fault("int n")
def _int(o: Operands) -> list[Instruction]:
    vector = o.source.randrange(32)
    return [o.op("int", b"\xcd", 0, f"{vector:#x}", imm=bytes([vector]), effect=_PUSHES)]


@_fault("into", bits=(16, 32))
def _into(o: Operands) -> list[Instruction]:
    return [
        o.load(AX, 0x7F, 1),
        o.op("add", b"\x04", 1, Reg(AX, 1), "0x1", imm=b"\1", effect=ALL),
        o.op("into", b"\xce", 0, effect=_PUSHES),
    ]


@_fault("undefined opcode")
def _ud(o: Operands) -> list[Instruction]:
    code = o.source.choice(_UNDEFINED)
    return [o.op("undefined", code, 0, code.hex(), effect=_PUSHES)]


@_fault("undefined in long mode", bits=(64,))
def _ud_long(o: Operands) -> list[Instruction]:
    code = o.source.choice(_UNDEFINED_64)
    return [o.op("undefined", code + bytes(6), 0, code.hex(), effect=_PUSHES)]


def _accesses(o: Operands, rm: Mem, size: int) -> Instruction:
    reg = Reg(o.source.choice([AX, CX, DX, BX]), size)
    match o.source.randrange(4):
        case 0:
            return o.op("mov", bytes([0x8A + (size > 1)]), size, reg, rm, rm=rm, reg=reg, effect=_PUSHES)
        case 1:
            return o.op("mov", bytes([0x88 + (size > 1)]), size, rm, reg, rm=rm, reg=reg, effect=_PUSHES)
        case 2:
            return o.op("add", bytes([size > 1]), size, rm, reg, rm=rm, reg=reg, effect=_PUSHES)
        case _:
            return o.op("xchg", bytes([0x86 + (size > 1)]), size, rm, reg, rm=rm, reg=reg, effect=_PUSHES)


@_fault("page fault", bits=(64,))
def _page_fault(o: Operands) -> list[Instruction]:
    size = o.size()
    o.set(BX, _NOWHERE + o.source.randrange(0x10000))
    return [_accesses(o, Mem(size, 8, BX), size)]


@_fault("page fault across pages", bits=(64,))
def _page_fault_across(o: Operands) -> list[Instruction]:
    size = o.size(2)
    o.set(SI, HIGH + 0x1_0000 - o.source.randrange(1, size))
    return [_accesses(o, Mem(size, 8, SI), size)]


@_fault("not canonical", bits=(64,))
def _not_canonical(o: Operands) -> list[Instruction]:
    size = o.size()
    o.set(BX, _FAR + o.source.randrange(0x10000))
    return [_accesses(o, Mem(size, 8, BX), size)]


@_fault("not canonical jump", bits=(64,))
def _jump(o: Operands) -> list[Instruction]:
    o.set(BX, _FAR)
    reg = Reg(BX, 8)
    return [o.op("jmp", b"\xff", 8, reg, rm=reg, reg=4, wide=False, effect=_PUSHES)]


@_fault("beyond the limit of real mode", real=None)
def _limit(o: Operands) -> list[Instruction]:
    size = o.size(2)
    width = o.source.choice([2, 4])
    o.set(BX, o.source.randrange(0x1_0000 - size + 1, 0x1_0000) if width == 2 else o.value() | 0x1_0000)
    return [_accesses(o, Mem(size, width, BX), size)]


@_fault("selector beyond the table", real=False)
def _selector(o: Operands) -> list[Instruction]:
    o.set(AX, o.source.choice([0x28, 0x33, 0xFFF8, 0x0C]), 2)
    number, name = o.source.choice([(0, "es"), (3, "ds"), (4, "fs"), (5, "gs"), (2, "ss")])
    reg = Reg(AX, 2)
    return [o.op("mov", b"\x8e", 0, name, reg, rm=reg, reg=number, effect=_PUSHES)]


@_fault("null stack selector", bits=(16, 32), real=False)
def _null(o: Operands) -> list[Instruction]:
    o.set(AX, 0, 2)
    reg = Reg(AX, 2)
    return [o.op("mov", b"\x8e", 0, "ss", reg, rm=reg, reg=2, effect=_PUSHES)]


@_fault("reserved control bits", bits=(32, 64))
def _control(o: Operands) -> list[Instruction]:
    o.set(AX, o.source.choice([1 << 31, 0xFFFF_FFFF]), 4)
    reg = Reg(AX, o.mode.word)
    return [o.op("mov", b"\x0f\x22", 0, "cr4", reg, rm=reg, reg=4, wide=False, effect=_PUSHES)]


@_fault("no such msr")
def _msr(o: Operands) -> list[Instruction]:
    o.set(CX, 0x1234_5678)
    return [o.op("rdmsr", b"\x0f\x32", 0, effect=_PUSHES)]

"""More forms: moves, conversions, exchanges and single bits."""

from __future__ import annotations

from attrs import evolve
from x86_encoding import AF, AX, BX, CF, CX, DX, OF, PF, SF, STATUS, ZF, Effect, EncodingError, Instruction, Reg
from x86_forms import ALL, LOCK, LOGIC, form, with_lock
from x86_operands import Operands

#: Conditions by number, and the flags that they read.
CONDITIONS = (
    ("o", OF),
    ("no", OF),
    ("b", CF),
    ("ae", CF),
    ("e", ZF),
    ("ne", ZF),
    ("be", CF | ZF),
    ("a", CF | ZF),
    ("s", SF),
    ("ns", SF),
    ("p", PF),
    ("np", PF),
    ("l", SF | OF),
    ("ge", SF | OF),
    ("le", SF | OF | ZF),
    ("g", SF | OF | ZF),
)


def define_flags(o: Operands) -> Instruction:
    """Return an instruction that defines all flags and changes nothing else."""
    reg, (imm, shown) = o.any_reg(4), o.imm(4, short=True)
    return o.op("cmp", b"\x83", 4, reg, shown, rm=reg, reg=7, imm=imm, effect=ALL)


# moves and conversions


@form("mov rm, r")
def _mov_to_rm(o: Operands) -> list[Instruction]:
    size = o.size()
    rm, reg = o.rm(size), o.any_reg(size)
    return [o.op("mov", bytes([0x88 + (size > 1)]), size, rm, reg, rm=rm, reg=reg)]


@form("mov r, rm")
def _mov_to_reg(o: Operands) -> list[Instruction]:
    size = o.size()
    rm, reg = o.any_rm(size), o.reg(size)
    return [o.op("mov", bytes([0x8A + (size > 1)]), size, reg, rm, rm=rm, reg=reg)]


@form("mov rm, imm")
def _mov_imm(o: Operands) -> list[Instruction]:
    size = o.size()
    rm, (imm, shown) = o.rm(size), o.imm(size)
    return [o.op("mov", bytes([0xC6 + (size > 1)]), size, rm, shown, rm=rm, imm=imm)]


@form("mov r, imm")
def _mov_r_imm(o: Operands) -> list[Instruction]:
    size, value = o.size(), o.value()
    reg, imm = o.reg(size), (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    opcode = b"\xb8" if size > 1 else b"\xb0"
    return [o.op("mov", opcode, size, reg, f"{value & (1 << 8 * size) - 1:#x}", low=reg, imm=imm)]


@form("mov moffs")
def _mov_moffs(o: Operands) -> list[Instruction]:
    size, width, place = o.size(), o.mode.bits // 8, o.place(8)
    offset = place - o.mode.base("ds") & (1 << 8 * width) - 1
    to_memory = o.chance(2)
    if not to_memory:
        o.fixed(AX)
    acc, where = Reg(AX, size), f"[{offset:#x}]"
    opcode = bytes([0xA0 + (size > 1) + 2 * to_memory])
    imm = offset.to_bytes(width, "little")
    return [o.op("mov", opcode, size, *((where, acc) if to_memory else (acc, where)), imm=imm)]


def _extension(name: str, opcode: int) -> None:
    @form(name)
    def draw(o: Operands) -> list[Instruction]:
        size = o.size(2)
        narrow = o.source.choice([1, 2])
        rm, reg = o.any_rm(narrow), o.reg(size)
        return [o.op(name, bytes([0x0F, opcode + narrow - 1]), size, reg, rm, rm=rm, reg=reg)]


_extension("movzx", 0xB6)
_extension("movsx", 0xBE)


@form("movsxd", bits=(64,))
def _movsxd(o: Operands) -> list[Instruction]:
    rm, reg = o.any_rm(4), o.reg(8)
    return [o.op("movsxd", b"\x63", 8, reg, rm, rm=rm, reg=reg)]


@form("cmov")
def _cmov(o: Operands) -> list[Instruction]:
    size, number = o.size(2), o.source.randrange(16)
    name, reads = CONDITIONS[number]
    rm, reg = o.any_rm(size), o.reg(size)
    return [o.op(f"cmov{name}", bytes([0x0F, 0x40 + number]), size, reg, rm, rm=rm, reg=reg, effect=Effect(reads))]


@form("setcc")
def _setcc(o: Operands) -> list[Instruction]:
    number = o.source.randrange(16)
    name, reads = CONDITIONS[number]
    rm = o.rm(1)
    return [o.op(f"set{name}", bytes([0x0F, 0x90 + number]), 1, rm, rm=rm, effect=Effect(reads))]


@form("lea")
def _lea(o: Operands) -> list[Instruction]:
    size = o.size(2)
    memory = o.mem(0, bytes_there=8)
    reg = o.reg(size)
    return [o.op("lea", b"\x8d", size, reg, memory, rm=memory, reg=reg)]


def _accumulator(name: str, opcode: int, size: int, *written: int) -> None:
    bits = (64,) if size == 8 else (16, 32, 64)

    @form(name, bits=bits)
    def draw(o: Operands) -> list[Instruction]:
        o.fixed(*written)
        return [o.op(name, bytes([opcode]), size)]


for _name, _opcode, _size in (("cbw", 0x98, 2), ("cwde", 0x98, 4), ("cdqe", 0x98, 8)):
    _accumulator(_name, _opcode, _size, AX)
for _name, _opcode, _size in (("cwd", 0x99, 2), ("cdq", 0x99, 4), ("cqo", 0x99, 8)):
    _accumulator(_name, _opcode, _size, DX)


@form("bswap")
def _bswap(o: Operands) -> list[Instruction]:
    size = o.size(4)
    reg = o.reg(size)
    return [o.op("bswap", b"\x0f\xc8", size, reg, low=reg)]


@form("xlat")
def _xlat(o: Operands) -> list[Instruction]:
    o.fixed(AX)
    start = o.mode.base("ds")
    o.set(BX, o.place(1, margin=256) - start)
    return [o.op("xlat", b"\xd7", 1)]


@form("mov r, sreg")
def _mov_from_segment(o: Operands) -> list[Instruction]:
    size, number = o.size(2), o.source.randrange(6)
    reg, name = o.reg(size), ("es", "cs", "ss", "ds", "fs", "gs")[number]
    return [o.op("mov", b"\x8c", size, reg, name, rm=reg, reg=number)]


# exchanges


@form("xchg")
def _xchg(o: Operands) -> list[Instruction]:
    size = o.size()
    if size > 1 and o.chance(4):
        reg = o.reg(size, avoid=(AX,))
        o.fixed(AX)
        return [o.op("xchg", b"\x90", size, Reg(AX, size), reg, low=reg)]
    rm = o.mem(size, aligned=True) if o.chance(2) else o.reg(size)
    reg = o.reg(size)
    return [o.op("xchg", bytes([0x86 + (size > 1)]), size, rm, reg, rm=rm, reg=reg)]


@form("xadd")
def _xadd(o: Operands) -> list[Instruction]:
    size = o.size()
    label, prefix, rm = with_lock(o, "xadd", size)
    reg = o.reg(size)
    return [o.op(label, bytes([0x0F, 0xC0 + (size > 1)]), size, rm, reg, rm=rm, reg=reg, prefix=prefix, effect=ALL)]


@form("cmpxchg")
def _cmpxchg(o: Operands) -> list[Instruction]:
    size = o.size()
    o.fixed(AX)
    label, prefix, rm = with_lock(o, "cmpxchg", size)
    reg = o.any_reg(size)
    opcode = bytes([0x0F, 0xB0 + (size > 1)])
    found = o.op(label, opcode, size, rm, reg, rm=rm, reg=reg, prefix=prefix, effect=ALL)
    if isinstance(rm, Reg) or o.chance(2):
        return [found]
    # So that it succeeds.
    acc = Reg(AX, size)
    return [o.op("mov", bytes([0x8A + (size > 1)]), size, acc, rm, rm=rm, reg=acc), found]


@form("cmpxchg8b")
def _cmpxchg8b(o: Operands) -> list[Instruction]:
    o.fixed(AX, DX)
    prefix = LOCK if o.chance(2) else b""
    rm = o.mem(8, aligned=True)
    # Its size is not that of operands, of which 16-bit code would take a prefix.
    size = 8 if o.mode.bits == 64 else o.mode.bits // 8
    label = "lock cmpxchg8b" if prefix else "cmpxchg8b"
    # It leaves the other flags as they are, but see `known_differences`.
    effect = Effect(writes=ZF, undefines=STATUS & ~ZF)
    return [o.op(label, b"\x0f\xc7", size, rm, rm=rm, reg=1, prefix=prefix, wide=False, effect=effect)]


@form("cmpxchg8b and flags")
def _cmpxchg8b_flags(o: Operands) -> list[Instruction]:
    found = _cmpxchg8b(o)[0]
    rm, reg = o.any_reg(4), o.any_reg(4)
    before = o.op("cmp", b"\x39", 4, rm, reg, rm=rm, reg=reg, effect=ALL)
    return [before, evolve(found, effect=Effect(writes=ZF))]


# single bits


def _bit(name: str, digit: int) -> None:
    effect = Effect(writes=CF, undefines=OF | SF | AF | PF)

    @form(f"{name} rm, imm")
    def constant(o: Operands) -> list[Instruction]:
        size, number = o.size(2), o.source.randrange(256)
        label, prefix, rm = with_lock(o, name, size) if name != "bt" else (name, b"", o.rm(size))
        shown, imm = f"{number:#x}", bytes([number])
        return [o.op(label, b"\x0f\xba", size, rm, shown, rm=rm, reg=digit, imm=imm, prefix=prefix, effect=effect)]

    @form(f"{name} r, r")
    def register(o: Operands) -> list[Instruction]:
        size = o.size(2)
        rm, reg = o.reg(size), o.any_reg(size)
        return [o.op(name, bytes([0x0F, 0x83 + 8 * digit]), size, rm, reg, rm=rm, reg=reg, effect=effect)]

    @form(f"{name} m, r")
    def memory(o: Operands) -> list[Instruction]:
        """Of a string of bits that reaches 64 bytes in either direction."""
        size = o.size(2)
        rm = o.mem(size, aligned=True, margin=80)
        free = o.free()
        if not free:
            raise EncodingError
        number = o.source.choice(free)
        o.set(number, o.source.randrange(-512, 512), size)
        reg = Reg(number, size)
        return [o.op(name, bytes([0x0F, 0x83 + 8 * digit]), size, rm, reg, rm=rm, reg=reg, effect=effect)]


for _name, _digit in (("bt", 4), ("bts", 5), ("btr", 6), ("btc", 7)):
    _bit(_name, _digit)


def _scan(name: str, opcode: int) -> None:
    @form(name)
    def draw(o: Operands) -> list[Instruction]:
        """Of something that is not 0, of which the result is undefined."""
        size, bit = o.size(2), o.source.randrange(16)
        rm, reg = o.rm(size), o.reg(size)
        effect = Effect(writes=ZF, undefines=STATUS & ~ZF)
        some = o.op("bts", b"\x0f\xba", size, rm, f"{bit:#x}", rm=rm, reg=5, imm=bytes([bit]))
        clear = Effect(writes=CF, undefines=OF | SF | AF | PF)
        guard = Instruction(some.mnemonic, size, some.operands, some.code, clear, some.relative, some.target)
        return [guard, o.op(name, bytes([0x0F, opcode]), size, reg, rm, rm=rm, reg=reg, effect=effect)]


_scan("bsf", 0xBC)
_scan("bsr", 0xBD)


@form("loop on a condition")
def _loop(o: Operands) -> list[Instruction]:
    """Of one instruction, which the last round leaves by the counter."""
    o.set(CX, o.source.randint(1, 3))
    size = o.size(2)
    reg = o.reg(size, avoid=(CX,))
    shift = o.op("shl", b"\xd1", size, reg, "1", rm=reg, reg=4, effect=LOGIC)
    name, opcode = o.source.choice([("loope", 0xE1), ("loopne", 0xE0)])
    back = len(shift.code) + 2
    return [shift, o.op(name, bytes([opcode, 0x100 - back]), 0, f"{-back}", effect=Effect(ZF))]

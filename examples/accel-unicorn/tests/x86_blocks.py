"""Blocks: jumps forwards, loops and calls around a body of other nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from x86_encoding import BX, CF, CX, SP, STATUS, ZF, Effect, EncodingError, Instruction, Mem, Reg
from x86_forms_data import CONDITIONS, define_flags
from x86_operands import Operands
from x86_sequences import Block, Flow, Jump, Node, Part, Place

#: Draws a body that keeps these registers; the flags are those that are defined where it begins.
Body = Callable[[Iterable[int], int], tuple[Node, ...]]
_MOST_ROUNDS = 4


def _near(o: Operands) -> int:
    """Return the bytes of a jump that is not short."""
    return 2 if o.mode.bits == 16 else 4


def _over(o: Operands) -> Jump:
    return Jump("jmp short", b"\xeb", 1, Place.END) if o.chance(2) else Jump("jmp", b"\xe9", _near(o), Place.END)


def conditional(o: Operands, defined: int, body: Body) -> Block:
    """Jump over the body on a condition."""
    number = o.source.randrange(16)
    name, reads = CONDITIONS[number]
    jump = Jump(f"j{name} short", bytes([0x70 + number]), 1, Place.END, Effect(reads))
    if o.chance(2):
        jump = Jump(f"j{name}", bytes([0x0F, 0x80 + number]), _near(o), Place.END, Effect(reads))
    return Block("jcc", Flow.MAYBE, (jump,), body((), defined))


def always(o: Operands, defined: int, body: Body) -> Block:
    """Jump over the body."""
    return Block("jmp", Flow.NEVER, (_over(o),), body((), defined))


def if_counter(o: Operands, defined: int, body: Body) -> Block:
    """Jump over the body if the counter is 0."""
    prefix, name = _counter(o)
    return Block(name, Flow.MAYBE, (Jump(f"{name} short", prefix + b"\xe3", 1, Place.END),), body((), defined))


def _counter(o: Operands) -> tuple[bytes, str]:
    width = o.address_width()
    prefix = b"" if width == o.mode.bits // 8 else b"\x67"
    return prefix, {2: "jcxz", 4: "jecxz", 8: "jrcxz"}[width]


def loop(o: Operands, defined: int, body: Body) -> Block:
    """Count down. After LOOPE and LOOPNE the flags are defined anew, see `known_differences`."""
    o.begin()
    o.fixed(CX)
    prefix, name = _counter(o)
    rounds, word = o.source.randint(1, _MOST_ROUNDS), o.mode.word
    ignored = {"jcxz": o.value() & ~0xFFFF, "jecxz": o.value() & ~0xFFFF_FFFF, "jrcxz": 0}[name]
    head = o.load(CX, rounds | ignored, word)
    suffix, opcode, reads = o.source.choice([("", 0xE2, 0), ("e", 0xE1, ZF), ("ne", 0xE0, ZF)])
    jump = Jump(f"loop{suffix} by {name[1:-1]}", prefix + bytes([opcode]), 1, Place.BODY, Effect(reads))
    tail = (jump, define_flags(o)) if suffix else (jump,)
    return Block(f"loop{suffix}", Flow.LOOP, (head,), body((CX,), defined), tail)


def count_down(o: Operands, defined: int, body: Body) -> Block:
    """Count down in any register."""
    o.begin()
    reg = o.reg(o.source.choice([2, 4]))
    head = o.load(reg.number, o.source.randint(1, _MOST_ROUNDS), reg.size)
    down = o.op("dec", b"\xff", reg.size, reg, rm=reg, reg=1, effect=Effect(writes=STATUS & ~CF))
    tail = (down, Jump("jne short", b"\x75", 1, Place.BODY, Effect(ZF)))
    return Block("dec and jne", Flow.LOOP, (head,), body((reg.number,), defined), tail)


def call(o: Operands, defined: int, body: Body) -> Block:
    """Call the body, which lies behind a jump over it; RET may drop arguments."""
    width, pushes = o.mode.bits // 8, o.source.randrange(3)
    head: list[Part] = [
        o.op("push", b"\x6a", width, f"{n:#x}", imm=bytes([n]), wide=False) for n in range(1, pushes + 1)
    ]
    ret = o.op("ret", b"\xc3", 0)
    if pushes:
        drop = pushes * width
        ret = o.op("ret", b"\xc2", 0, f"{drop:#x}", imm=drop.to_bytes(2, "little"))
    head += [*_call(o), _over(o)]
    return Block("call and ret", Flow.ONCE, tuple(head), body((SP,), defined), (ret,))


def _call(o: Operands) -> list[Part]:
    if o.chance(2):
        return [Jump("call", b"\xe8", _near(o), Place.BODY)]
    address, reg = _address(o)
    return [address, o.op("call", b"\xff", reg.size, reg, rm=reg, reg=2, wide=False)]


def _address(o: Operands, place: Place = Place.BODY) -> tuple[Jump, Reg]:
    """Return what loads an address into a register."""
    size = o.mode.bits // 8
    reg = o.reg(size)
    load = o.load(reg.number, 0, size)
    return Jump(f"mov {reg},", load.code[:-size], size, place, absolute=True), reg


def indirect(o: Operands, defined: int, body: Body) -> Block:
    """Jump to the body by a register, or by returning to it."""
    address, reg = _address(o)
    never = Instruction("ud2", 0, "", b"\x0f\x0b")
    if o.chance(2):
        jump = [o.op("jmp", b"\xff", reg.size, reg, rm=reg, reg=4, wide=False)]
    else:
        jump = [o.op("push", b"\x50", reg.size, reg, low=reg, wide=False), o.op("ret", b"\xc3", 0)]
    return Block("indirect jmp", Flow.ONCE, (address, *jump, never), body((), defined))


def changes_itself(o: Operands, defined: int, body: Body) -> Block:
    """Change the constant of the instruction behind the body. Code is where data is, but for segment bases."""
    if o.mode.base("ds") or o.mode.base("ss"):
        raise EncodingError
    o.begin()
    o.fixed(BX)
    address, reg = _address(o, Place.TAIL)
    constant = Mem(1, o.mode.bits // 8, base=reg.number, disp=1, disp_size=1)
    (old, shown_old), (new, shown) = o.imm(1), o.imm(1)
    store = o.op("mov", b"\xc6", 1, constant, shown, rm=constant, imm=new)
    target = Reg(BX, 1)
    load = o.op("mov", b"\xb0", 1, target, shown_old, low=target, imm=old)
    return Block("changed code", Flow.ONCE, (address, store), body((BX,), defined), (load,))


BLOCKS = (conditional, conditional, always, if_counter, loop, count_down, call, indirect, changes_itself)

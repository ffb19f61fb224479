"""The last forms: vector and floating-point registers, which are seen through memory only."""

from __future__ import annotations

from x86_encoding import Instruction, Reg
from x86_forms import form
from x86_operands import Operands

#: A prefix and an opcode.
_Code = tuple[bytes, bytes]


def _copy(name: str, pairs: tuple[tuple[_Code, _Code], ...], size: int, *, aligned: bool) -> None:
    """Register a form that loads a register and stores it."""

    @form(name, real=False)  # CR4.OSFXSR is clear in real mode
    def draw(o: Operands) -> list[Instruction]:
        codes = o.source.choice(pairs)
        reg, shown = Reg(o.source.randrange(8), 4), "xmm"
        source, target = o.mem(size, aligned=aligned), o.mem(size, aligned=aligned)
        (prefix, load), (store_prefix, store) = codes
        shown += str(reg.number)
        return [
            o.op(name, load, 0, shown, source, rm=source, reg=reg, prefix=prefix),
            o.op(name, store, 0, target, shown, rm=target, reg=reg, prefix=store_prefix),
        ]


_copy(
    "movups",
    (((b"", b"\x0f\x10"), (b"", b"\x0f\x11")), ((b"\xf3", b"\x0f\x6f"), (b"\xf3", b"\x0f\x7f"))),
    16,
    aligned=False,
)
_copy(
    "movaps",
    (((b"", b"\x0f\x28"), (b"", b"\x0f\x29")), ((b"\x66", b"\x0f\x6f"), (b"\x66", b"\x0f\x7f"))),
    16,
    aligned=True,
)
_copy("movq", (((b"\xf3", b"\x0f\x7e"), (b"\x66", b"\x0f\xd6")),), 8, aligned=False)


@form("paddq", real=False)
def _paddq(o: Operands) -> list[Instruction]:
    memory = o.mem(16, aligned=True)
    return [
        o.op("movaps", b"\x0f\x28", 0, "xmm3", memory, rm=memory, reg=3),
        o.op("paddq", b"\x0f\xd4", 0, "xmm3", memory, rm=memory, reg=3, prefix=b"\x66"),
        o.op("movaps", b"\x0f\x29", 0, memory, "xmm3", rm=memory, reg=3),
    ]


@form("fild and fistp")
def _fild(o: Operands) -> list[Instruction]:
    source, target = o.mem(8), o.mem(8)
    return [
        o.op("fninit", b"\xdb\xe3", 0),
        o.op("fild", b"\xdf", 0, source, rm=source, reg=5),
        o.op("fistp", b"\xdf", 0, target, rm=target, reg=7),
    ]

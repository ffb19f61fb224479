"""How much of a read lies on its second page, found out from the instruction.

Where a read begins in RAM and ends on a device page, the engine asks for a whole aligned word there and does not say
how much of it the guest reads. The instruction does: its operand's address tells where the page border cuts it. Known
are all forms of operands, and 64-bit ones by their REX prefix; vector loads count as 32 bits. Source: Intel SDM volume
2, chapter 2 (instruction format).
"""

from __future__ import annotations

from collections.abc import Iterator

from accel.address import PAGE_SIZE
from accel.arch.x86 import X86State
from accel_unicorn.guest_memory import GuestMemory, NoMemoryError
from accel_unicorn.layout import GENERAL

_LONGEST = 15
_SEGMENT_PREFIX = {0x26: "es", 0x2E: "cs", 0x36: "ss", 0x3E: "ds", 0x64: "fs", 0x65: "gs"}
_OTHER_PREFIX = frozenset({0x66, 0xF0, 0xF2, 0xF3})
#: Opcodes with an immediate of a byte, or of a word, behind their memory operand; two-byte ones without their 0x0f.
_WITH_BYTE = frozenset({0x6B, 0x80, 0x82, 0x83, 0xC0, 0xC1, 0xC6})
_WITH_WORD = frozenset({0x69, 0x81, 0xC7})
#: SHLD and SHRD are not among them: Unicorn forgets their immediate as well, and it is where Unicorn reads that counts.
_WITH_BYTE_0F = frozenset({0x3A, 0x70, 0x71, 0x72, 0x73, 0xBA, 0xC2, 0xC4, 0xC5, 0xC6})
#: Opcodes that read memory without saying where: strings, the stack, and absolute addresses. No ModRM follows.
_IMPLICIT = frozenset({*range(0x58, 0x60), 0x07, 0x17, 0x1F, 0x61, *range(0x6C, 0x70), 0x9D, *range(0xA0, 0xA8)})
_IMPLICIT |= {*range(0xAA, 0xB0), 0xC2, 0xC3, 0xC9, 0xCA, 0xCB, 0xCF}
_BASES_16 = (("rbx", "rsi"), ("rbx", "rdi"), ("rbp", "rsi"), ("rbp", "rdi"), ("rsi",), ("rdi",), ("rbp",), ("rbx",))


def rest_of_read(state: X86State, memory: GuestMemory, address: int, piece: int) -> int | None:
    """Return how many bytes the instruction at RIP reads at physical `address`, the beginning of a page, of an operand
    that begins on another; None if it reads no such one. `piece` is what the engine reads at a time, 4 at most."""
    code = _instruction(state, memory)
    for operand in _operands(state, code):
        border = (operand | PAGE_SIZE - 1) + 1
        try:
            if 0 < border - operand < 8 and memory.translate(state, border) == address:
                rest = (8 if piece == 4 and _is_wide(code) else piece) - (border - operand)
                return rest if rest > 0 else piece
        except NoMemoryError:
            continue
    return None


def is_input(state: X86State, memory: GuestMemory) -> bool:
    """Return whether the instruction at RIP is an INS, which reads a port and writes memory."""
    for byte in _instruction(state, memory):
        is_rex = state.cs.long and byte & 0xF0 == 0x40
        if byte not in _SEGMENT_PREFIX and byte not in _OTHER_PREFIX and byte != 0x67 and not is_rex:
            return byte & 0xFE == 0x6C
    return False


def _instruction(state: X86State, memory: GuestMemory) -> bytes:
    """Return what is there of the instruction at RIP."""
    linear = state.rip if state.cs.long else state.cs.base + state.rip
    for length in (_LONGEST, PAGE_SIZE - linear % PAGE_SIZE):
        try:
            return memory.read(state, linear, length)
        except NoMemoryError:
            continue
    return b""


def _is_wide(code: bytes) -> bool:
    """Return whether an instruction of long mode has a 64-bit operand in memory; MOVSXD has one of 32 bits."""
    for at, byte in enumerate(code):
        if byte not in _SEGMENT_PREFIX and byte not in _OTHER_PREFIX and byte != 0x67:
            return byte & 0xF8 == 0x48 and code[at + 1 : at + 2] != b"\x63"
    return False


def _operands(state: X86State, code: bytes) -> Iterator[int]:
    """Yield the linear addresses at which the instruction may have an operand."""
    long = state.cs.long
    bits = 64 if long else 32 if state.cs.db else 16
    at, segment, rex = 0, None, 0
    while at < len(code) and (code[at] in _SEGMENT_PREFIX or code[at] in _OTHER_PREFIX or code[at] == 0x67):
        segment = _SEGMENT_PREFIX.get(code[at], segment)
        if code[at] == 0x67:
            bits = {64: 32, 32: 16, 16: 32}[bits]
        at += 1
    if long and at < len(code) and code[at] & 0xF0 == 0x40:
        rex, at = code[at], at + 1
    behind = _immediate(code[at : at + 3], 4 if rex & 8 or 0x66 not in code[:at] else 2)
    if at < len(code) and code[at] == 0x0F:
        at += 2 if code[at + 1 : at + 2] in (b"\x38", b"\x3a") else 1
    mask = (1 << bits) - 1
    places = [(segment or "ds", state.rsi), ("es", state.rdi), ("ss", state.rsp)]
    if code[at : at + 1] and (code[at] not in _IMPLICIT or code[at - 1 : at] == b"\x0f"):
        offset, base = _modrm(state, code[at + 1 :], bits, rex, at + 1 + behind)
        places.insert(0, (segment or base, offset))
    for name, value in places:
        start = 0 if long and name not in ("fs", "gs") else getattr(state, name).base
        yield (start + (value & mask)) & ((1 << 64) - 1 if long else 0xFFFF_FFFF)
    moffs = int.from_bytes(code[at + 1 : at + 1 + bits // 8], "little")
    yield moffs + (0 if long else getattr(state, segment or "ds").base)


def _immediate(code: bytes, word: int) -> int:
    """Return the bytes of the immediate behind a memory operand, which a relative one does not begin at."""
    opcode, more = code[:1], code[1:2] or b"\0"
    if opcode == b"\x0f":
        return int(more[0] in _WITH_BYTE_0F)
    if opcode in (b"\xf6", b"\xf7") and not more[0] & 0x30:  # TEST, of all that these are
        return word if opcode == b"\xf7" else 1
    return 1 if opcode and opcode[0] in _WITH_BYTE else word if opcode and opcode[0] in _WITH_WORD else 0


def _modrm(state: X86State, code: bytes, bits: int, rex: int, before: int) -> tuple[int, str]:
    """Return the offset and default segment of a ModRM operand."""
    if not code:
        return 0, "ds"
    mode, low = code[0] >> 6, code[0] & 7
    if bits == 16:
        names = () if (mode, low) == (0, 6) else _BASES_16[low]
        size = 2 if mode == 2 or not names else mode
        total = sum(getattr(state, name) for name in names) + _signed(code[1 : 1 + size])
        return total, "ss" if "rbp" in names else "ds"
    at, total, segment = 1, 0, "ds"
    base: int | None = low | (rex & 1) << 3
    if low == 4:
        sib, at = (code[1] if len(code) > 1 else 0), 2
        index = sib >> 3 & 7 | (rex & 2) << 2
        if index != 4:
            total = getattr(state, GENERAL[index]) << (sib >> 6)
        base = sib & 7 | (rex & 1) << 3
        if sib & 7 == 5 and mode == 0:
            base = None
    elif low == 5 and mode == 0:
        base = None
        if state.cs.long:
            # Relative to the next instruction.
            total = state.rip + before + at + 4
    if base is not None:
        total += getattr(state, GENERAL[base])
        segment = "ss" if base in (4, 5) else "ds"
    size = 4 if base is None or mode == 2 else mode
    return total + _signed(code[at : at + size]), segment


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)

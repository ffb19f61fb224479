"""The modes in which sequences run, and where everything lies: code, data, stack, tables and handlers.

The first 64 KiB of RAM are the same in all modes. Data is read and written in a window of two pages, with a page
border in its middle, and around the stack pointer. Each exception ends in a HLT of its own, so that RIP tells which
it was, and the stack what it pushed.
"""

from __future__ import annotations

import random
import struct
from functools import cache

from attrs import evolve, field, frozen
from x86_encoding import DF, GENERAL, STATUS

from accel import AddressRange, X86State
from accel.arch.x86 import FLAT_CODE, FLAT_DATA, LONG_CODE, NO_IDT, X86Segment, X86Table
from accel.arch.x86_paging import page_tables

RAM_SIZE = 0x2_0000
IDT, GDT, HANDLERS = 0x2000, 0x2400, 0x2800
DATA = AddressRange(0x3000, 0x5000)
STACK = AddressRange(0x6000, 0x7000)
#: What sequences may change.
SEEN = AddressRange(DATA.start, STACK.end)
CODE = 0x8000
#: A page without memory, for accesses that become exits.
DEVICE = AddressRange(0xA000, 0xB000)
TABLES = 0x1_0000
_MAPPED = 0x1_0000
#: Where long mode has the same memory once more, beyond what 32 bits reach.
HIGH = 0xFFFF_8012_3450_0000

VECTORS = 32
_HLT = 0xF4


@frozen(eq=False)
class Mode:
    """A mode.

    Attributes:
        bits: Of the code segment.
        bases: Of the segments; all others lie at 0.
        long_active: Whether it is a submode of long mode.
    """

    name: str
    bits: int
    bases: dict[str, int] = field(factory=dict)
    long_active: bool = False

    @property
    def word(self) -> int:
        """Bytes of a general register."""
        return 8 if self.bits == 64 else 4

    @property
    def registers(self) -> int:
        return 16 if self.bits == 64 else 8

    def base(self, segment: str) -> int:
        return self.bases.get(segment, 0)

    @property
    def stack(self) -> int:
        """The stack pointer with which sequences begin."""
        return (STACK.start + STACK.end) // 2 - self.base("ss")

    def state(self, registers: tuple[int, ...], flags: int) -> X86State:
        """Return the state in which a sequence begins; all registers but the stack pointer are random."""
        values = dict(zip(GENERAL, registers, strict=True)) | {"rsp": self.stack, "rflags": flags | 2}
        if self.name == "real16":
            segments = {name: X86Segment(base=base, selector=base >> 4, type=3) for name, base in self.bases.items()}
            return X86State.entering("real16", CODE, **values, **segments)
        tables = TABLES if self.long_active else None
        segments = {name: evolve(FLAT_DATA, base=base) for name, base in self.bases.items()}
        gate = 16 if self.long_active else 8
        values |= {"gdt": X86Table(GDT, 5 * 8 - 1), "idt": X86Table(IDT, VECTORS * gate - 1)} | segments
        state = X86State.entering("long64" if tables else "protected32", CODE, tables=tables, **values)
        return evolve(state, cs=self._code(), tr=X86Segment(selector=0, limit=0xFFFF, type=0xB, s=False))

    def _code(self) -> X86Segment:
        if self.bits == 64:
            return LONG_CODE
        return evolve(FLAT_CODE, db=self.bits == 32, selector=0x18 if self.long_active or self.bits == 16 else 0x08)


REAL_BASES = {"ds": 0x1000, "es": 0x0800, "ss": 0x0400, "fs": 0x1230, "gs": 0x2FF0}
MODES = (
    Mode("long64", 64, {"fs": 0x1234, "gs": 0x7000_0000}, long_active=True),
    Mode("protected32", 32),
    Mode("protected32-bases", 32, {"ds": 0x1001, "es": 0xFFFF_F000, "ss": 0x0200, "fs": 0x1238, "gs": 0x7000_0000}),
    Mode("protected16", 16, {"ds": 0x1000, "fs": 0x2345}),
    Mode("compat32", 32, {"fs": 0x1234}, long_active=True),
    Mode("real16", 16, REAL_BASES),
)
BY_NAME = {mode.name: mode for mode in MODES}


@cache
def memory_image(mode: Mode) -> bytes:
    """Return what lies in memory below the data, and above the code: tables and handlers."""
    image = bytearray(RAM_SIZE)
    image[HANDLERS : HANDLERS + VECTORS] = bytes([_HLT]) * VECTORS
    for vector in range(VECTORS):
        target = HANDLERS + vector
        if mode.name == "real16":
            struct.pack_into("<HH", image, 4 * vector, target, 0)
        elif mode.long_active:
            struct.pack_into("<HHBBHII", image, IDT + 16 * vector, target, 0x08, 0, 0x8E, 0, 0, 0)
        else:
            struct.pack_into("<HHBBH", image, IDT + 8 * vector, target, 0x08, 0, 0x8E, 0)
    handler_code = LONG_CODE if mode.long_active else FLAT_CODE
    code = evolve(FLAT_CODE, db=mode.bits == 32)
    for index, segment in enumerate((handler_code, FLAT_DATA, code), 1):
        struct.pack_into("<Q", image, GDT + 8 * index, segment.descriptor())
    tables = page_tables(TABLES, [(0, 0, _MAPPED), (HIGH, 0, _MAPPED)])
    image[TABLES : TABLES + len(tables)] = tables
    return bytes(image)


def no_table() -> X86Table:
    """Return the interrupt table with which each exception is a shutdown."""
    return NO_IDT


#: Values at which carries, signs and widths show.
_CORNERS = (0, 1, 2, 0xF, 0x10, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
_CORNERS_64 = (*_CORNERS, 0x1_0000_0000, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 2)


def random_value(source: random.Random) -> int:
    """Return 64 bits: a corner, a few bits, or any."""
    match source.randrange(4):
        case 0:
            return source.choice(_CORNERS_64)
        case 1:
            return source.getrandbits(64) & source.getrandbits(64) & source.getrandbits(64)
        case 2:
            return source.choice(_CORNERS_64) + source.randrange(-2, 3) & (1 << 64) - 1
        case _:
            return source.getrandbits(64)


def random_registers(source: random.Random, mode: Mode) -> tuple[int, ...]:
    """Return values for the general registers that the mode has; zeros for the others."""
    mask = (1 << 8 * mode.word) - 1
    return tuple(random_value(source) & mask if n < mode.registers else 0 for n in range(16))


def random_flags(source: random.Random) -> int:
    """Return RFLAGS with which a sequence begins."""
    return source.getrandbits(32) & (STATUS | DF)


def random_memory(source: random.Random) -> bytes:
    """Return what lies in `SEEN`: corners and anything."""
    data = bytearray(source.randbytes(SEEN.size))
    for _ in range(200):
        at = source.randrange(0, SEEN.size - 8)
        data[at : at + 8] = random_value(source).to_bytes(8, "little")
    return bytes(data)

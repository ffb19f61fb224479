"""Where a saved context of Unicorn holds what its register calls cannot reach, found by looking.

Segment registers have a hidden part (base, limit, attributes) that Unicorn's calls neither show nor take, and CR0 and
EFER written by a call leave the derived mode bits behind. A saved context has them all, but its layout is nobody's
promise. So a throw-away engine is given values through the calls, and the context is searched for them; whatever is
found has to agree with what else is known, or nothing is used and the accelerator says that it does not know this
Unicorn. Source of the order of the fields: ``struct CPUX86State``, target/i386/cpu.h of QEMU 5.0, on which Unicorn 2 is
built.
"""

from __future__ import annotations

import functools
import struct

from attrs import frozen
from unicorn import x86_const as x86

from accel.errors import BackendError
from accel_unicorn.engine import Engine, version

#: The general registers in the order of their numbers in machine code.
GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
GENERAL_NUMBERS = tuple(getattr(x86, f"UC_X86_REG_{name.upper()}") for name in GENERAL)
#: Segments in the order in which they lie there.
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr")

# Offsets from the general registers: 16 of them, then these.
_RIP, _FLAGS, _CC_SOURCE, _CC_OPERATION, _DIRECTION, _HFLAGS = 128, 136, 152, 168, 172, 176
_SEGMENTS, _SEGMENT_SIZE = 184, 24
_CONTROL = _SEGMENTS + 10 * _SEGMENT_SIZE
# From the error code: behind the next instruction's address, the debug registers and their breakpoints.
_IN_FLIGHT = 112
_MSR_EFER = 0xC000_0080


@frozen
class Layout:
    """Offsets in a saved context.

    Attributes:
        general: 16 general registers, 64 bits each.
        rip: Instruction pointer.
        flags: RFLAGS; while the engine is inside, without what the next three hold.
        cc_source: The arithmetic flags, where `cc_operation` is `CC_FLAGS`.
        cc_operation: How they are to be computed, 32 bits.
        direction: 1, or -1 where DF is set, 32 bits.
        hflags: Mode bits derived from the others, 32 bits.
        segments: Selector (32 bits), base (64 at 8), limit (32 at 16), attributes (32 at 20) of each of `SEGMENTS`,
            then GDTR and IDTR alike.
        control: CR0 to CR4.
        efer: EFER.
        error_code: Of the last exception, 32 bits.
    """

    general: int
    efer: int
    error_code: int

    @property
    def rip(self) -> int:
        return self.general + _RIP

    @property
    def flags(self) -> int:
        return self.general + _FLAGS

    @property
    def in_flight(self) -> int:
        """Where it says which exception is being delivered, 32 bits: -1 for none."""
        return self.error_code + _IN_FLIGHT

    @property
    def cc_source(self) -> int:
        return self.general + _CC_SOURCE

    @property
    def cc_operation(self) -> int:
        return self.general + _CC_OPERATION

    @property
    def direction(self) -> int:
        return self.general + _DIRECTION

    @property
    def hflags(self) -> int:
        return self.general + _HFLAGS

    @property
    def control(self) -> int:
        return self.general + _CONTROL

    def segment(self, index: int) -> int:
        """Return where the segment of this index lies; 8 is GDTR and 9 IDTR."""
        return self.general + _SEGMENTS + index * _SEGMENT_SIZE


@functools.cache
def layout() -> Layout:
    """Return the layout of this Unicorn's contexts; found once for the process.

    Raises:
        BackendError: It is not the one that this plugin knows.
    """
    engine = Engine()
    try:
        marks = [0x1F2E_3D4C_5B6A_0000 + number for number in range(16)]
        for number, mark in zip(GENERAL_NUMBERS, marks, strict=True):
            engine.write(number, mark)
        engine.write(x86.UC_X86_REG_RIP, 0x7A7B_7C7D)
        # selector, base, limit, attributes
        tables = {8: (0, 0x6611_0000, 0x1122, 0), 9: (0, 0x6622_0000, 0x3344, 0), 6: (0x28, 0x6633_0000, 0x55, 0x8200)}
        for index, register in ((8, x86.UC_X86_REG_GDTR), (9, x86.UC_X86_REG_IDTR), (6, x86.UC_X86_REG_LDTR)):
            engine.write(register, tables[index])
        engine.write(x86.UC_X86_REG_CR2, 0x77_8899)
        with engine.context() as context:
            before = bytes(context)
        efer = engine.read_msr(_MSR_EFER)
        engine.write_msr(_MSR_EFER, efer ^ 1)
        with engine.context() as context:
            data = bytes(context)
        # The one word that changed; a mode bit may have, too, but that is in another.
        changed = [at for at in range(0, len(data) - 7, 8) if data[at : at + 8] != before[at : at + 8]]
        efers = [at for at in changed if struct.unpack_from("<Q", before, at)[0] == efer]
        if len(efers) != 1:
            raise _unknown()
        found = Layout(_only(data, struct.pack("<16Q", *marks)), efers[0], 0)
        _verify(data, found, tables, efer ^ 1)
        return Layout(found.general, found.efer, _error_code(engine, found))
    finally:
        engine.close()


def _only(data: bytes, wanted: bytes, begin: int = 0) -> int:
    """Return the only place of `wanted`."""
    at = data.find(wanted, begin)
    if at < 0 or data.find(wanted, at + 1) >= 0:
        raise _unknown()
    return at


def _verify(data: bytes, found: Layout, tables: dict[int, tuple[int, int, int, int]], efer: int) -> None:
    right = [struct.unpack_from("<Q", data, found.rip)[0] == 0x7A7B_7C7D]
    for index, (selector, base, limit, attributes) in tables.items():
        given = struct.unpack_from("<I4xQII", data, found.segment(index))
        right.append(given[1:3] == (base, limit) and (index != 6 or (given[0], given[3]) == (selector, attributes)))
    cr0, _, cr2 = struct.unpack_from("<3Q", data, found.control)
    right += [cr2 == 0x77_8899, cr0 & 1 == 1, struct.unpack_from("<Q", data, found.efer)[0] == efer]
    right.append(struct.unpack_from("<i", data, found.direction)[0] == 1)
    # 64-bit code with long mode active, as every new engine of this kind is.
    right.append(struct.unpack_from("<I", data, found.hflags)[0] & 0xC080 == 0xC080)
    if not all(right):
        raise _unknown()


def _error_code(engine: Engine, found: Layout) -> int:
    """Return where the error code lies, by a general protection fault that has a telling one."""
    from accel_unicorn.switch import BEGIN, EVENT, EXCEPTION, FIRST

    page = engine.scratch_page()
    page[:2] = b"\x8e\xd8"  # mov ds, eax
    engine.write(x86.UC_X86_REG_GDTR, (0, 0, 0, 0))
    engine.write(x86.UC_X86_REG_RAX, 0x5A58)
    words = engine.switch.words
    words[BEGIN] = engine.scratch_address
    engine.switch.enter()
    if (words[EVENT], words[FIRST]) != (EXCEPTION, 13):
        raise _unknown()
    with engine.context() as context:
        data = bytes(context)
    # RAX has the same bits, so look behind the registers; what follows is "was it an INT" and the next instruction.
    at = _only(data, struct.pack("<II", 0x5A58, 0), found.control)
    if struct.unpack_from("<i", data, at + _IN_FLIGHT)[0] != 13:
        raise _unknown()
    return at


def _unknown() -> BackendError:
    return BackendError("Unicorn", 0, f"version {version()} keeps its registers in a way that is not known; use 2.1")

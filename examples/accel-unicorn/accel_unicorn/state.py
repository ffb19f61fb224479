"""Between `X86State` and a Unicorn engine.

Written through a saved context (`accel_unicorn.layout`), with the mode bits that QEMU derives from the registers
computed here, as its ``x86_update_hflags`` does. CR8 and the APIC base are kept for whoever asks: there is no APIC.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from unicorn import x86_const as x86

from accel.arch.x86 import CR0_PG, X86Segment, X86State, X86Table
from accel_unicorn.engine import Engine
from accel_unicorn.layout import GENERAL, SEGMENTS, layout

#: The flags that QEMU computes when somebody asks, and DF.
_COMPUTED_FLAGS = 0x8D5
_DF = 1 << 10
_TF, _IOPL, _VM = 1 << 8, 3 << 12, 1 << 17
_CC_FLAGS = 1  # "they are in the source as they are"

_PE, _MP_EM_TS = 1 << 0, 0xE
_OSFXSR, _SMAP = 1 << 9, 1 << 21
_SVME, _LMA = 1 << 12, 1 << 10


def reset_floating_point(engine: Engine) -> None:
    """Set the x87 and SSE control registers to what they are after reset; Unicorn leaves zeros there."""
    engine.write(x86.UC_X86_REG_FPCW, 0x37F)
    engine.write(x86.UC_X86_REG_FPTAG, 0xFFFF)
    engine.write(x86.UC_X86_REG_MXCSR, 0x1F80)


def read_state(engine: Engine, kept: X86State) -> X86State:
    """Return the registers; what the engine has not is taken from `kept`."""
    where = layout()
    with engine.context() as context:
        data = bytes(context)
    values: dict[str, Any] = dict(zip(GENERAL, struct.unpack_from("<16Q", data, where.general), strict=True))
    values["rip"] = struct.unpack_from("<Q", data, where.rip)[0]
    values["rflags"] = engine.read(x86.UC_X86_REG_RFLAGS)
    for index, name in enumerate(SEGMENTS):
        values[name] = _segment(*struct.unpack_from("<I4xQII", data, where.segment(index)))
    for index, name in ((8, "gdt"), (9, "idt")):
        _, base, limit, _ = struct.unpack_from("<I4xQII", data, where.segment(index))
        values[name] = X86Table(base, limit)
    cr0, _, cr2, cr3, cr4 = struct.unpack_from("<5Q", data, where.control)
    efer = struct.unpack_from("<Q", data, where.efer)[0]
    return X86State(**values, cr0=cr0, cr2=cr2, cr3=cr3, cr4=cr4, efer=efer, cr8=kept.cr8, apic_base=kept.apic_base)


def write_state(engine: Engine, state: X86State) -> None:
    """Set the registers; the engine stands, and not in the middle of an instruction."""
    where = layout()
    with engine.edited_context() as data:
        struct.pack_into("<16Q", data, where.general, *(getattr(state, name) & _WORD for name in GENERAL))
        struct.pack_into("<Q", data, where.rip, state.rip & _WORD)
        # All of them: the engine takes them apart when it is entered, and what it made of them is for whoever asks.
        struct.pack_into("<Q", data, where.flags, state.rflags | 2)
        struct.pack_into("<Q", data, where.cc_source, state.rflags & _COMPUTED_FLAGS)
        struct.pack_into("<I", data, where.cc_operation, _CC_FLAGS)
        struct.pack_into("<i", data, where.direction, -1 if state.rflags & _DF else 1)
        struct.pack_into("<I", data, where.hflags, mode_bits(state))
        for index, name in enumerate(SEGMENTS):
            _pack_segment(data, where.segment(index), getattr(state, name))
        for index, table in ((8, state.gdt), (9, state.idt)):
            struct.pack_into("<Q", data, where.segment(index) + 8, table.base)
            struct.pack_into("<I", data, where.segment(index) + 16, table.limit)
        struct.pack_into("<Q", data, where.control, state.cr0)
        struct.pack_into("<3Q", data, where.control + 16, state.cr2, state.cr3, state.cr4)
        struct.pack_into("<Q", data, where.efer, state.efer)
        # Whoever delivers an exception says so by setting the registers; else the next one were a double fault.
        struct.pack_into("<i", data, where.in_flight, -1)


def save(engine: Engine) -> bytes:
    """Return all that the engine knows of its CPU, floating point and model-specific registers too."""
    with engine.context() as data:
        return bytes(data)


def restore(engine: Engine, saved: bytes) -> None:
    """Set what `save` gave, of this engine; it stands, and not in the middle of an instruction."""
    with engine.edited_context() as data:
        # What lies before the registers is about the context itself.
        memoryview(data).cast("B")[layout().general :] = saved[layout().general :]


@contextmanager
def physical_addresses(engine: Engine) -> Iterator[None]:
    """Let addresses lead to themselves in the block, whatever the guest's paging is; anywhere the engine stands."""
    where = layout().control
    with engine.context() as data:
        cr0 = struct.unpack_from("<Q", data, where)[0]
    if not cr0 & CR0_PG:
        yield
        return
    with engine.edited_context() as data:
        struct.pack_into("<Q", data, where, cr0 & ~CR0_PG)
    try:
        yield
    finally:
        with engine.edited_context() as data:
            struct.pack_into("<Q", data, where, cr0)


def exception_details(engine: Engine) -> tuple[int, bool, int]:
    """Return the error code of the last exception, whether an INT instruction made it, and RIP behind that."""
    with engine.context() as data:
        code, software, behind = struct.unpack_from("<IIQ", data, layout().error_code)
    return code, bool(software), behind


def flags_within(engine: Engine) -> int:
    """Return RFLAGS while the engine stands in the middle of an instruction, at an access or an exception.

    Where the instruction before has set flags, Unicorn computes them in between, for its hook, and notes them as well.
    In the middle of the next it has forgotten that, and takes the result for an operand from which they are still to be
    computed. It shows by its being what was noted.
    """
    where = layout()
    with engine.context() as data:
        (noted,) = struct.unpack_from("<Q", data, where.flags)
        (source,) = struct.unpack_from("<Q", data, where.cc_source)
    flags = engine.read(x86.UC_X86_REG_RFLAGS)
    return flags & ~_COMPUTED_FLAGS | source if source == noted & _COMPUTED_FLAGS else flags


def mode_bits(state: X86State) -> int:
    """Return QEMU's hflags for `state`: what translated code depends on."""
    bits = state.ss.dpl if state.cr0 & _PE else 0
    if state.rflags & _VM:
        bits = 3
    bits |= (state.cr0 & _PE) << 7 | (state.cr0 & _MP_EM_TS) << 8
    bits |= state.rflags & (_TF | _IOPL | _VM)
    bits |= bool(state.cr4 & _OSFXSR) << 22 | bool(state.cr4 & _SMAP) << 23 | bool(state.efer & _SVME) << 20
    if state.efer & _LMA:
        bits |= 1 << 14
        if state.cs.long:
            return bits | 1 << 4 | 1 << 5 | 1 << 15
    bits |= state.cs.db << 4 | state.ss.db << 5
    flat = state.cr0 & _PE and not state.rflags & _VM and state.cs.db
    if not flat or state.ds.base or state.es.base or state.ss.base:
        bits |= 1 << 6
    return bits


_WORD = (1 << 64) - 1


def _segment(selector: int, base: int, limit: int, flags: int) -> X86Segment:
    return X86Segment(
        base=base,
        limit=limit,
        selector=selector & 0xFFFF,
        type=flags >> 8 & 0xF,
        present=bool(flags & 1 << 15),
        dpl=flags >> 13 & 3,
        db=bool(flags & 1 << 22),
        s=bool(flags & 1 << 12),
        long=bool(flags & 1 << 21),
        granularity=bool(flags & 1 << 23),
        available=bool(flags & 1 << 20),
    )


def _pack_segment(data: ctypes.Array[ctypes.c_ubyte], at: int, segment: X86Segment) -> None:
    flags = segment.type << 8 | segment.s << 12 | segment.dpl << 13 | segment.present << 15
    flags |= segment.available << 20 | segment.long << 21 | segment.db << 22 | segment.granularity << 23
    struct.pack_into("<I4xQII", data, at, segment.selector, segment.base, segment.limit, flags)

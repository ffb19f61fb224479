"""Exceptions through the guest's interrupt table, and system calls: what a CPU does and Unicorn leaves to others.

Covered: real mode; protected mode through 16-bit and 32-bit interrupt and trap gates; long mode, with the interrupt
stack table; each at the same privilege or to an inner one through the TSS; double faults and the triple fault.
SYSCALL in long mode. Not covered: task gates, virtual-8086 mode, SYSCALL in legacy mode (an invalid opcode, as on
Intel's). Not checked: limits of code and stack segments. Source: Intel SDM volume 3, chapter 6.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from attrs import evolve, frozen

from accel.arch.x86 import CR0_PE, EFER_LMA, X86Segment, X86State
from accel_unicorn.guest_memory import GuestMemory, NoMemoryError

_BREAKPOINT, _DOUBLE_FAULT, _INVALID_TSS, _NOT_PRESENT, _PROTECTION, _PAGE_FAULT = 3, 8, 10, 11, 13, 14
_CONTRIBUTORY = frozenset({0, 10, 11, 12, 13})
_WITH_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21})
_OVERFLOW = 4
#: Those after which nothing is tried again: traps, interrupts and aborts.
_NO_FAULTS = frozenset({1, 2, 3, 4, 8, 18})

_TF, _IF, _NT, _RF, _VM, _AC = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17, 1 << 18

_STAR, _LSTAR, _FMASK = 0xC000_0081, 0xC000_0082, 0xC000_0084


class _FaultError(Exception):
    """Delivering an exception made another one."""

    def __init__(self, vector: int, code: int, address: int | None = None) -> None:
        super().__init__(f"exception {vector}")
        self.vector, self.code, self.address = vector, code, address


@frozen
class _Gate:
    selector: int
    offset: int
    kind: int
    dpl: int
    stack: int

    @property
    def is_trap(self) -> bool:
        return bool(self.kind & 1)

    @property
    def is_wide(self) -> bool:
        return bool(self.kind & 8)


def deliver(state: X86State, vector: int, code: int, memory: GuestMemory, *, software: bool = False) -> X86State | None:
    """Return the registers at the first instruction of the guest's handler; its stack is written.

    Args:
        state: At the instruction that is to be tried again, or behind the INT that made it.
        vector: Which exception.
        code: Its error code, for those that have one.
        memory: The guest's.
        software: Whether an INT instruction made it.

    Returns:
        None for a triple fault: nothing but a reset helps.
    """
    while True:
        try:
            if not state.cr0 & CR0_PE:
                return _real(state, vector, memory)
            return _protected(state, vector, code, memory, software=software)
        except NoMemoryError as error:
            fault = _FaultError(_PAGE_FAULT, 0, error.address)
        except _FaultError as error:
            fault = error
        if vector == _DOUBLE_FAULT and not software:
            return None
        serious = vector in _CONTRIBUTORY and fault.vector in _CONTRIBUTORY
        if not software and (serious or vector == _PAGE_FAULT):
            vector, code = _DOUBLE_FAULT, 0
        else:
            if software:
                # It is the INT that faults, so it is what is tried again.
                state = evolve(state, rip=state.rip - (1 if vector in (_BREAKPOINT, _OVERFLOW) else 2))
            vector, code, software = fault.vector, fault.code, False
        if fault.address is not None and state.cr0 & 1 << 31:
            state = evolve(state, cr2=fault.address)


def _real(state: X86State, vector: int, memory: GuestMemory) -> X86State:
    if 4 * vector + 3 > state.idt.limit:
        raise _FaultError(_PROTECTION, 0)
    offset, selector = struct.unpack("<HH", memory.read(state, state.idt.base + 4 * vector, 4))
    sp = state.rsp
    for value in (state.rflags, state.cs.selector, state.rip):
        sp = sp & ~0xFFFF | sp - 2 & 0xFFFF
        memory.write(state, state.ss.base + (sp & 0xFFFF), struct.pack("<H", value & 0xFFFF))
    code = evolve(state.cs, selector=selector, base=selector << 4)
    return evolve(state, rsp=sp, cs=code, rip=offset, rflags=state.rflags & ~(_IF | _TF | _AC))


def _protected(state: X86State, vector: int, code: int, memory: GuestMemory, *, software: bool) -> X86State:
    long = bool(state.efer & EFER_LMA)
    where = vector * 8 + 2  # as error codes name a gate
    gate = _gate(state, vector, memory, long=long)
    privilege = state.cs.selector & 3
    if software and gate.dpl < privilege:
        raise _FaultError(_PROTECTION, where)
    target = _descriptor(state, gate.selector, memory)
    if not target.s or not target.type & 8 or target.dpl > privilege or (long and not target.long):
        raise _FaultError(_PROTECTION, gate.selector & 0xFFFC)
    if not target.present:
        raise _FaultError(_NOT_PRESENT, gate.selector & 0xFFFC)
    inner = privilege if target.type & 4 else target.dpl  # a conforming segment keeps the privilege
    stack, top = _stack(state, gate, inner, privilege, memory, long=long)
    is_fault = not software and vector not in _NO_FAULTS
    frame = [state.rip, state.cs.selector, state.rflags | (_RF if is_fault else 0)]
    if long or inner < privilege:
        frame += [state.rsp, state.ss.selector]
    if vector in _WITH_CODE and not software:
        frame.insert(0, code)
    width = 8 if long else 4 if gate.is_wide else 2
    mask = (1 << 8 * width) - 1
    data = b"".join((value & mask).to_bytes(width, "little") for value in frame)
    bottom = _below(stack, top, len(data), long=long)
    memory.write(evolve(state, ss=stack), (0 if long else stack.base) + _offset(stack, bottom, long=long), data)
    flags = state.rflags & ~(_TF | _NT | _RF | _VM)
    if not gate.is_trap:
        flags &= ~_IF
    target = evolve(target, selector=gate.selector & 0xFFFC | inner)
    return evolve(state, cs=target, rip=gate.offset, ss=stack, rsp=bottom, rflags=flags)


def _gate(state: X86State, vector: int, memory: GuestMemory, *, long: bool) -> _Gate:
    size = 16 if long else 8
    if vector * size + size - 1 > state.idt.limit:
        raise _FaultError(_PROTECTION, vector * 8 + 2)
    raw = memory.read(state, state.idt.base + vector * size, size)
    low, selector, extra, access, high = struct.unpack_from("<HHBBH", raw)
    offset = low | high << 16
    if long:
        offset |= struct.unpack_from("<I", raw, 8)[0] << 32
    gate = _Gate(selector, offset, access & 0xF, access >> 5 & 3, extra & 7 if long else 0)
    if access & 0x10 or gate.kind not in ((0xE, 0xF) if long else (6, 7, 0xE, 0xF)):
        raise _FaultError(_PROTECTION, vector * 8 + 2)
    if not access & 0x80:
        raise _FaultError(_NOT_PRESENT, vector * 8 + 2)
    return gate if gate.is_wide else evolve(gate, offset=offset & 0xFFFF)


def _descriptor(state: X86State, selector: int, memory: GuestMemory) -> X86Segment:
    """Return the segment that a selector names in the GDT or LDT."""
    table = X86Segment(base=state.gdt.base, limit=state.gdt.limit) if not selector & 4 else state.ldt
    at = selector & 0xFFF8
    if not selector & 0xFFFC or at + 7 > table.limit:
        raise _FaultError(_PROTECTION, selector & 0xFFFC)
    raw = int.from_bytes(memory.read(state, table.base + at, 8), "little")
    access, flags = raw >> 40 & 0xFF, raw >> 52 & 0xF
    limit = raw & 0xFFFF | raw >> 32 & 0xF_0000
    fields: dict[str, Any] = {
        "base": raw >> 16 & 0xFF_FFFF | raw >> 56 << 24,
        "limit": limit << 12 | 0xFFF if flags & 8 else limit,
        "selector": selector,
        "type": access & 0xF | 1,  # accessed
        "s": bool(access & 0x10),
        "dpl": access >> 5 & 3,
        "present": bool(access & 0x80),
        "available": bool(flags & 1),
        "long": bool(flags & 2),
        "db": bool(flags & 4),
        "granularity": bool(flags & 8),
    }
    return X86Segment(**fields)


def _stack(
    state: X86State, gate: _Gate, inner: int, privilege: int, memory: GuestMemory, *, long: bool
) -> tuple[X86Segment, int]:
    """Return the stack segment and pointer on which the frame goes."""
    if long:
        if gate.stack:
            at = 0x1C + 8 * gate.stack
        elif inner < privilege:
            at = 4 + 8 * inner
        else:
            return state.ss, state.rsp
        top = int.from_bytes(_tss(state, at, 8, memory), "little")
        if inner == privilege:
            return state.ss, top
        return X86Segment(limit=0xFFFF_FFFF, selector=inner, type=3, dpl=inner, db=True, granularity=True), top
    if inner == privilege:
        return state.ss, state.rsp
    top, selector = struct.unpack("<IH", _tss(state, 4 + 8 * inner, 6, memory))
    stack = _descriptor(state, selector, memory)
    if not stack.s or stack.type & 0xA != 2 or stack.dpl != inner:
        raise _FaultError(_INVALID_TSS, selector & 0xFFFC)
    return stack, top


def _tss(state: X86State, at: int, size: int, memory: GuestMemory) -> bytes:
    if at + size - 1 > state.tr.limit:
        raise _FaultError(_INVALID_TSS, state.tr.selector & 0xFFFC)
    return memory.read(state, state.tr.base + at, size)


def _below(stack: X86Segment, top: int, size: int, *, long: bool) -> int:
    """Return the stack pointer `size` bytes below `top`."""
    if long:
        return (top & ~0xF) - size & (1 << 64) - 1
    mask = 0xFFFF_FFFF if stack.db else 0xFFFF
    return top & ~mask | top - size & mask


def _offset(stack: X86Segment, pointer: int, *, long: bool) -> int:
    return pointer if long or stack.db else pointer & 0xFFFF


def system_call(state: X86State, read_msr: Callable[[int], int]) -> X86State:
    """Return the registers behind a SYSCALL in long mode; `state` is at the instruction, two bytes long."""
    star, mask = read_msr(_STAR), read_msr(_FMASK)
    selector = star >> 32 & 0xFFFC
    code = X86Segment(limit=0xFFFF_FFFF, selector=selector, type=0xB, long=True, granularity=True)
    stack = X86Segment(limit=0xFFFF_FFFF, selector=selector + 8, type=3, db=True, granularity=True)
    return evolve(
        state,
        rcx=state.rip + 2,
        r11=state.rflags & ~_RF,
        rip=read_msr(_LSTAR),
        cs=code,
        ss=stack,
        rflags=state.rflags & ~(mask | _RF) | 2,
    )

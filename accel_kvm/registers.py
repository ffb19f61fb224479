"""Between `X86State` and KVM's register structures (KVM_GET/SET_REGS, /SREGS), and what CPUID says of one vCPU."""

from __future__ import annotations

from ctypes import Structure
from typing import Any

from accel.arch.x86 import X86Segment, X86State, X86Table
from accel_kvm import abi

_GENERAL = tuple(one[0] for one in abi.KvmRegs._fields_)
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_TABLES = ("gdt", "idt")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")

#: Field of `X86Segment` → field of ``struct kvm_segment``.
_SEGMENT_FIELDS = {
    "base": "base",
    "limit": "limit",
    "selector": "selector",
    "type": "type",
    "present": "present",
    "dpl": "dpl",
    "db": "db",
    "s": "s",
    "long": "l",
    "granularity": "g",
    "available": "avl",
}
_FLAGS = frozenset({"present", "db", "s", "long", "granularity", "available"})


def general_registers(state: X86State) -> abi.KvmRegs:
    """Return the general registers of `state`."""
    return abi.KvmRegs(**{name: getattr(state, name) for name in _GENERAL})


def fill_special_registers(sregs: abi.KvmSregs, state: X86State) -> None:
    """Set the special registers of `state` in `sregs`, which holds what the vCPU has now."""
    for name in _SEGMENTS:
        segment, target = getattr(state, name), getattr(sregs, name)
        for ours, theirs in _SEGMENT_FIELDS.items():
            setattr(target, theirs, int(getattr(segment, ours)))
        target.unusable = int(not segment.present)
    for name in _TABLES:
        table, target = getattr(state, name), getattr(sregs, name)
        target.base, target.limit = table.base, table.limit
    for name in _CONTROL:
        setattr(sregs, name, getattr(state, name))
    if state.apic_base is not None:
        sregs.apic_base = state.apic_base


def state_from(regs: abi.KvmRegs, sregs: abi.KvmSregs) -> X86State:
    """Return both as one value."""
    values: dict[str, Any] = {name: getattr(regs, name) for name in _GENERAL}
    for name in _SEGMENTS:
        source = getattr(sregs, name)
        fields = {ours: getattr(source, theirs) for ours, theirs in _SEGMENT_FIELDS.items()}
        values[name] = X86Segment(**{key: bool(v) if key in _FLAGS else v for key, v in fields.items()})
    for name in _TABLES:
        source = getattr(sregs, name)
        values[name] = X86Table(source.base, source.limit)
    for name in (*_CONTROL, "apic_base"):
        values[name] = getattr(sregs, name)
    return X86State(**values)


def with_apic_id(supported: Structure, apic_id: int) -> Structure:
    """Return a copy of a list of CPUID leaves in which a vCPU has this APIC ID.

    KVM_GET_SUPPORTED_CPUID gives that of the host's processor which happens to ask.
    """
    own = type(supported).from_buffer_copy(supported)
    for number in range(own.nent):
        leaf = own.entries[number]
        if leaf.function == 0x1:
            leaf.ebx = leaf.ebx & 0xFF_FFFF | (apic_id & 0xFF) << 24
        elif leaf.function in (0xB, 0x1F):  # of every level
            leaf.edx = apic_id
        elif leaf.function == 0x8000_001E:
            leaf.eax = apic_id
    return own

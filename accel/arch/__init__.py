"""Architectures: register state, boot states and memory layout, one set of files per architecture."""

from accel.arch.x86 import BootMode, X86Segment, X86State, X86Table, ram_layout
from accel.arch.x86_boot import BootPlan, plan_boot

__all__ = [
    "BootMode",
    "BootPlan",
    "X86Segment",
    "X86State",
    "X86Table",
    "plan_boot",
    "ram_layout",
]

"""Architectures: register state, boot states and memory layout, one set of files per architecture."""

from accel.arch.x86 import (
    BootMode,
    X86Segment,
    X86State,
    X86Table,
    ram_layout,
)

__all__ = [
    "BootMode",
    "X86Segment",
    "X86State",
    "X86Table",
    "ram_layout",
]

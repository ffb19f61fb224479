"""x86 as values: registers, segments, boot modes, and where a PC's RAM lies.

Owns what every x86 accelerator shares and no accelerator decides. Pure values without I/O; stands just above
`address`. What a vCPU starts with is built in `x86_boot`. Upstream: Intel SDM volume 3, 3.4.5 (segment
descriptors) and 9.1.1 (state after reset); the fields are those of ``struct kvm_regs`` and ``struct
kvm_sregs`` (asm/kvm.h), so that an accelerator which takes them copies field by field.
"""

from __future__ import annotations

import enum
from typing import Any

from attrs import evolve, frozen

from accel.address import PAGE_SIZE, AddressRange, align_up, format_size
from accel.errors import AddressError, UsageError

#: RAM stops here and goes on at `HIGH_RAM_START`; the gap is for devices and firmware.
LOW_RAM_END = 3 << 30
HIGH_RAM_START = 4 << 30

#: Most RAM that is placed, so that the page tables which map all of it (4 KiB for each GiB) stay small too.
MAX_RAM = 16 << 40

#: Where a CPU fetches its first instruction after reset (CS base 0xffff0000, IP 0xfff0).
RESET_VECTOR = 0xFFFF_FFF0

CR0_PE = 1 << 0
CR0_MP = 1 << 1
CR0_ET = 1 << 4
CR0_NE = 1 << 5
CR0_WP = 1 << 16
CR0_NW = 1 << 29
CR0_CD = 1 << 30
CR0_PG = 1 << 31
CR4_PAE = 1 << 5
CR4_OSFXSR = 1 << 9
CR4_OSXMMEXCPT = 1 << 10
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
#: Bit 1 of RFLAGS always reads as one.
RFLAGS_FIXED = 1 << 1


class BootMode(enum.StrEnum):
    """The CPU mode in which a guest is entered."""

    REAL16 = "real16"
    PROTECTED32 = "protected32"
    LONG64 = "long64"
    #: The state that the accelerator itself leaves a vCPU in, F000:FFF0; nothing is set.
    RESET = "reset"


@frozen
class X86Segment:
    """A segment register with its hidden part; the defaults are a data segment after reset.

    Attributes:
        base: Linear address of its first byte.
        limit: Offset of its last byte, in bytes whatever `granularity` says.
        selector: The visible part.
        type: The descriptor's four type bits.
        present: A segment that is not present is unusable.
        dpl: Privilege level, 0 to 3.
        db: 32-bit default operation size.
        s: Code or data, not a system segment.
        long: 64-bit code.
        granularity: The descriptor's limit counts 4 KiB units.
        available: The bit left to system software.
    """

    base: int = 0
    limit: int = 0xFFFF
    selector: int = 0
    type: int = 0x3
    present: bool = True
    dpl: int = 0
    db: bool = False
    s: bool = True
    long: bool = False
    granularity: bool = False
    available: bool = False

    def descriptor(self) -> int:
        """Return the 8-byte GDT entry that loads as this segment, as an int (little-endian in memory)."""
        limit = self.limit >> 12 if self.granularity else self.limit
        access = self.type | self.s << 4 | self.dpl << 5 | self.present << 7
        flags = self.available | self.long << 1 | self.db << 2 | self.granularity << 3
        return (
            limit & 0xFFFF
            | (self.base & 0xFF_FFFF) << 16
            | access << 40
            | (limit >> 16 & 0xF) << 48
            | flags << 52
            | (self.base >> 24 & 0xFF) << 56
        )


@frozen
class X86Table:
    """A descriptor table register (GDTR, IDTR); `limit` is the offset of the table's last byte."""

    base: int = 0
    limit: int = 0xFFFF


#: Selectors of a flat code and a flat data segment, where a GDT has them right behind its null entry.
FLAT_CODE_SELECTOR, FLAT_DATA_SELECTOR = 0x08, 0x10
FLAT_DATA = X86Segment(limit=0xFFFF_FFFF, selector=FLAT_DATA_SELECTOR, type=0x3, db=True, granularity=True)
FLAT_CODE = X86Segment(limit=0xFFFF_FFFF, selector=FLAT_CODE_SELECTOR, type=0xB, db=True, granularity=True)
LONG_CODE = evolve(FLAT_CODE, db=False, long=True)
#: No interrupt table: an exception before the guest has set one up is a shutdown, not a wild jump.
NO_IDT = X86Table(base=0, limit=0)

#: Ends of where an entry point may lie.
ENTRY_END = {BootMode.REAL16: 1 << 20, BootMode.PROTECTED32: 1 << 32, BootMode.LONG64: 1 << 47}

_RESET_CODE = X86Segment(base=0xFFFF_0000, selector=0xF000, type=0xB)
_RESET_DATA = X86Segment()
_RESET_TASK = X86Segment(type=0xB, s=False)
_RESET_LDT = X86Segment(type=0x2, s=False)


@frozen
class X86State:
    """Registers and mode of one x86 vCPU; the defaults are the architecture's state after reset.

    Attributes:
        apic_base: The APIC base MSR; None leaves it as it is.
    """

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0xFFF0
    rflags: int = RFLAGS_FIXED
    cs: X86Segment = _RESET_CODE
    ds: X86Segment = _RESET_DATA
    es: X86Segment = _RESET_DATA
    fs: X86Segment = _RESET_DATA
    gs: X86Segment = _RESET_DATA
    ss: X86Segment = _RESET_DATA
    tr: X86Segment = _RESET_TASK
    ldt: X86Segment = _RESET_LDT
    gdt: X86Table = X86Table()
    idt: X86Table = X86Table()
    cr0: int = CR0_ET | CR0_NW | CR0_CD
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    apic_base: int | None = None

    @classmethod
    def entering(cls, mode: BootMode | str, at: int, *, tables: int | None = None, **registers: Any) -> X86State:
        """Return the state in which a vCPU begins at address `at` in `mode`, for code that brings no boot data.

        As docs/reference/entry-contract.md has it, but with nothing in memory: ring 0 and flat segments (in real mode
        those of address 0, with the interrupt table there), SSE usable, no GDT to load segments from, no stack and,
        outside of real mode, no interrupt table.

        >>> state = X86State.entering("protected32", 0x10_0000, rsp=0x9000, rcx=3)
        >>> hex(state.rip), state.rcx, state.cs.db
        ('0x100000', 3, True)

        Args:
            mode: Any but ``reset``, whose state `X86State()` is.
            at: Address of the first instruction; in long mode a virtual one.
            tables: Guest-physical address of the top page table; in long mode, and only there. See
                `accel.arch.x86_paging.identity_tables`.
            registers: Fields to be set in place of what the mode has there.

        Raises:
            UsageError: The mode cannot begin there, or `tables` are missing or for nothing.
        """
        mode = BootMode(mode)
        if mode is BootMode.RESET:
            raise UsageError("a vCPU in mode reset begins at the reset vector; X86State() is that state")
        if not 0 <= at < ENTRY_END[mode]:
            raise UsageError(f"{at:#x} cannot be reached in {mode}, which ends at {ENTRY_END[mode]:#x}")
        if (tables is None) is (mode is BootMode.LONG64):
            raise UsageError(
                "long64 needs page tables in guest memory; give their address as tables"
                if tables is None
                else f"{mode} has no page tables; leave tables out"
            )
        return evolve(_real(at) if mode is BootMode.REAL16 else _flat(at, tables), **registers)


def _real(at: int) -> X86State:
    selector, offset = (0, at) if at < 0x1_0000 else (at >> 4, at & 0xF)
    return X86State(
        rip=offset,
        cs=X86Segment(base=selector << 4, selector=selector, type=0xB),
        idt=X86Table(limit=0x3FF),
        cr0=CR0_ET,
    )


def _flat(at: int, tables: int | None) -> X86State:
    state = X86State(
        rip=at,
        cs=FLAT_CODE,
        ds=FLAT_DATA,
        es=FLAT_DATA,
        fs=FLAT_DATA,
        gs=FLAT_DATA,
        ss=FLAT_DATA,
        gdt=X86Table(base=0, limit=0),
        idt=NO_IDT,
        cr0=CR0_PE | CR0_MP | CR0_ET | CR0_NE,
        cr4=CR4_OSFXSR | CR4_OSXMMEXCPT,
    )
    if tables is None:
        return state
    return evolve(
        state,
        cs=LONG_CODE,
        cr0=state.cr0 | CR0_WP | CR0_PG,
        cr3=tables,
        cr4=state.cr4 | CR4_PAE,
        efer=EFER_LME | EFER_LMA,
    )


def ram_layout(size: int) -> tuple[AddressRange, ...]:
    """Return where `size` bytes of RAM lie: from 0 up to 3 GiB, and what is left from 4 GiB up.

    >>> ram_layout(4 << 30)
    (AddressRange(0x0, 0xc0000000), AddressRange(0x100000000, 0x140000000))

    Raises:
        AddressError: `size` is not above zero, not a multiple of 4,096, or more than a guest can address.
    """
    if size <= 0:
        raise AddressError(f"memory of {size} bytes: a guest needs some; try 64M")
    if size % PAGE_SIZE:
        fits = format_size(align_up(size, PAGE_SIZE))
        raise AddressError(f"memory of {size:#x} bytes is no multiple of {PAGE_SIZE:#x}; try {fits}")
    if size > MAX_RAM:
        raise AddressError(f"memory of {size:#x} bytes is too much; use at most {format_size(MAX_RAM)}")
    low = AddressRange(0, min(size, LOW_RAM_END))
    if size <= LOW_RAM_END:
        return (low,)
    return low, AddressRange.sized(HIGH_RAM_START, size - LOW_RAM_END)

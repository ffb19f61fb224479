"""Structures of the KVM interface, as ``linux/kvm.h`` lays them out; no logic.

Lowest layer of the plugin: it imports nothing of the project, and `accel_kvm.abi` hands its names on beside
the numbers. Upstream: ``linux/kvm.h``, for x86 also ``asm/kvm.h`` (marked so). What each field means is in
the kernel's ``Documentation/virt/kvm/api.rst``.

Names follow one rule, and a test that compiles a C program against the header relies on it: a class
``KvmFooBar`` is ``struct kvm_foo_bar``; a class with a leading underscore has no name in the header either
and is checked inside the structure that holds it; a field has the header's name.

Lifetime: a structure owns its memory. Whoever hands its address to the kernel keeps the object alive until
the call has returned; KVM keeps no such pointer afterwards.
"""

from __future__ import annotations

import functools
from ctypes import Structure, Union, c_char, c_int32, c_uint8, c_uint16, c_uint32, c_uint64

# --- Structures of the memory map (linux/kvm.h) ---------------------------------------------------


class KvmUserspaceMemoryRegion(Structure):
    """One memory slot; a `memory_size` of 0 deletes it."""

    _fields_ = [
        ("slot", c_uint32),  # slot id | address space << 16
        ("flags", c_uint32),  # KVM_MEM_*
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    ]


class KvmUserspaceMemoryRegion2(Structure):
    """One memory slot that may be backed by a guest_memfd; since Linux 6.8 (KVM_CAP_USER_MEMORY2)."""

    _fields_ = [
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
        ("guest_memfd_offset", c_uint64),
        ("guest_memfd", c_uint32),
        ("pad1", c_uint32),
        ("pad2", c_uint64 * 14),
    ]


class KvmEnableCap(Structure):
    """A capability to switch on or off, with what it takes."""

    _fields_ = [("cap", c_uint32), ("flags", c_uint32), ("args", c_uint64 * 4), ("pad", c_uint8 * 64)]


class KvmDirtyGfn(Structure):
    """An entry of a dirty ring: a slot and one of its pages."""

    _fields_ = [("flags", c_uint32), ("slot", c_uint32), ("offset", c_uint64)]


class KvmDirtyLog(Structure):
    """A slot and where its dirty bitmap goes: one bit per page, rounded up to whole 64-bit words."""

    _fields_ = [("slot", c_uint32), ("padding1", c_uint32), ("dirty_bitmap", c_uint64)]


class KvmCoalescedMmioZone(Structure):
    """A range whose writes are queued; `pio` is 1 for ports (KVM_CAP_COALESCED_PIO)."""

    _fields_ = [("addr", c_uint64), ("size", c_uint32), ("pio", c_uint32)]


class KvmCoalescedMmio(Structure):
    """One queued write."""

    _fields_ = [("phys_addr", c_uint64), ("len", c_uint32), ("pio", c_uint32), ("data", c_uint8 * 8)]


class KvmCoalescedMmioRing(Structure):
    """Head of the ring page; KVM_COALESCED_MMIO_MAX entries follow, one of which always stays free.

    The kernel moves `last`, the reader moves `first`; both count modulo KVM_COALESCED_MMIO_MAX.
    """

    _fields_ = [("first", c_uint32), ("last", c_uint32), ("coalesced_mmio", KvmCoalescedMmio * 0)]


class KvmIoeventfd(Structure):
    """A doorbell: guest writes of `len` bytes (0: of any size) at `addr` add 1 to the eventfd `fd`."""

    _fields_ = [
        ("datamatch", c_uint64),  # counts with KVM_IOEVENTFD_FLAG_DATAMATCH
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),  # KVM_IOEVENTFD_FLAG_*
        ("pad", c_uint8 * 36),
    ]


# --- Structures of interrupts and time (linux/kvm.h) ----------------------------------------------


class KvmIrqLevel(Structure):
    """The level of an interrupt line."""

    _fields_ = [("irq", c_uint32), ("level", c_uint32)]


class KvmPitConfig(Structure):
    """How the interval timer is created."""

    _fields_ = [("flags", c_uint32), ("pad", c_uint32 * 15)]


# --- Structures of a vCPU's state (asm/kvm.h for x86; kvm_mp_state and kvm_translation: linux/kvm.h)

_REGS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rip", "rflags"),
)


class KvmRegs(Structure):
    """General registers."""

    _fields_ = [(name, c_uint64) for name in _REGS]


class KvmSegment(Structure):
    """A segment register with its hidden part; `limit` is in bytes whatever `g` says."""

    _fields_ = [
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        *((name, c_uint8) for name in ("type", "present", "dpl", "db", "s", "l", "g", "avl")),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    ]


class KvmDtable(Structure):
    """A descriptor-table register."""

    _fields_ = [("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3)]


class KvmSregs(Structure):
    """Special registers."""

    _fields_ = [
        *((name, KvmSegment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        *((name, KvmDtable) for name in ("gdt", "idt")),
        *((name, c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", c_uint64 * 4),
    ]


class KvmMpState(Structure):
    """Whether a vCPU runs, halts or waits for INIT or SIPI."""

    _fields_ = [("mp_state", c_uint32)]


class KvmTranslation(Structure):
    """A linear address and, after the call, where the guest's page tables lead it."""

    _fields_ = [
        ("linear_address", c_uint64),
        ("physical_address", c_uint64),
        ("valid", c_uint8),
        ("writeable", c_uint8),
        ("usermode", c_uint8),
        ("pad", c_uint8 * 5),
    ]


class KvmCpuidEntry2(Structure):
    """One CPUID leaf; `index` counts where the flag KVM_CPUID_FLAG_SIGNIFCANT_INDEX is set."""

    _fields_ = [
        *((name, c_uint32) for name in ("function", "index", "flags", "eax", "ebx", "ecx", "edx")),
        ("padding", c_uint32 * 3),
    ]


class KvmCpuid2(Structure):
    """Head of a list of CPUID leaves; `cpuid2` makes one with room for entries."""

    _fields_ = [("nent", c_uint32), ("padding", c_uint32), ("entries", KvmCpuidEntry2 * 0)]


@functools.cache
def _cpuid2_type(entry_count: int) -> type[Structure]:
    fields = [("nent", c_uint32), ("padding", c_uint32), ("entries", KvmCpuidEntry2 * entry_count)]
    return type(f"_Cpuid2With{entry_count}", (Structure,), {"_fields_": fields})


def cpuid2(entry_count: int) -> Structure:
    """Return a zeroed ``struct kvm_cpuid2`` with room for `entry_count` entries and `nent` set to it."""
    return _cpuid2_type(entry_count)(nent=entry_count)


# --- struct kvm_run (linux/kvm.h): the page that a vCPU shares with its process -------------------


class _Hw(Structure):  # KVM_EXIT_UNKNOWN
    _fields_ = [("hardware_exit_reason", c_uint64)]


class _FailEntry(Structure):  # KVM_EXIT_FAIL_ENTRY
    _fields_ = [("hardware_entry_failure_reason", c_uint64), ("cpu", c_uint32)]


class _Io(Structure):  # KVM_EXIT_IO; `count` items of `size` bytes lie `data_offset` bytes behind the page's start
    _fields_ = [
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    ]


class _Mmio(Structure):  # KVM_EXIT_MMIO
    _fields_ = [("phys_addr", c_uint64), ("data", c_uint8 * 8), ("len", c_uint32), ("is_write", c_uint8)]


class _Internal(Structure):  # KVM_EXIT_INTERNAL_ERROR; `ndata` of the words in `data` are set
    _fields_ = [("suberror", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16)]


class _EmulationFailure(Structure):  # the same for KVM_INTERNAL_ERROR_EMULATION
    _fields_ = [
        ("suberror", c_uint32),
        ("ndata", c_uint32),
        ("flags", c_uint64),
        ("insn_size", c_uint8),
        ("insn_bytes", c_uint8 * 15),
    ]


class _SystemEvent(Structure):  # KVM_EXIT_SYSTEM_EVENT
    _fields_ = [("type", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16)]


class _ExitUnion(Union):
    _fields_ = [
        ("hw", _Hw),
        ("fail_entry", _FailEntry),
        ("io", _Io),
        ("mmio", _Mmio),
        ("internal", _Internal),
        ("emulation_failure", _EmulationFailure),
        ("system_event", _SystemEvent),
        ("padding", c_char * 256),
    ]


class _SyncRegs(Union):
    _fields_ = [("padding", c_char * 2048)]


class KvmRun(Structure):
    """The shared page: what KVM_RUN is told, and why it came back.

    Laid over a vCPU's mapping with `from_buffer`, which keeps the mapping's buffer exported. Written by the
    thread in KVM_RUN alone, but for `immediate_exit`, which any thread may set.
    """

    _anonymous_ = ("exit_union",)
    _fields_ = [
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("exit_union", _ExitUnion),
        ("kvm_valid_regs", c_uint64),
        ("kvm_dirty_regs", c_uint64),
        ("s", _SyncRegs),
    ]

"""Numbers and structures of the KVM interface, as ``linux/kvm.h`` defines them; no logic.

Lowest layer of the plugin: it imports nothing of the project. Upstream: ``linux/kvm.h``, for x86 also
``asm/kvm.h`` (marked so), and ``asm-generic/ioctl.h`` for how a request number is put together. What each
means is in the kernel's ``Documentation/virt/kvm/api.rst``.

Names follow one rule, and a test that compiles a C program against the header relies on it: a constant has
the header's own name; a class ``KvmFooBar`` is ``struct kvm_foo_bar``; a class with a leading underscore has
no name in the header either and is checked inside the structure that holds it; a field has the header's name.

Lifetime: a structure owns its memory. Whoever hands its address to the kernel keeps the object alive until
the call has returned; KVM keeps no such pointer afterwards.
"""

from __future__ import annotations

import functools
import mmap
from ctypes import Structure, Union, c_char, c_int32, c_uint8, c_uint16, c_uint32, c_uint64, sizeof

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


# --- Structures of interrupts and time (linux/kvm.h) ----------------------------------------------


class _IrqOrStatus(Union):
    _fields_ = [("irq", c_uint32), ("status", c_int32)]


class KvmIrqLevel(Structure):
    """The level of an interrupt line."""

    _anonymous_ = ("irq_or_status",)
    _fields_ = [("irq_or_status", _IrqOrStatus), ("level", c_uint32)]


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


class _Io(
    Structure
):  # KVM_EXIT_IO; `count` items of `size` bytes lie `data_offset` bytes behind the page's start
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


# --- Constants (linux/kvm.h) ----------------------------------------------------------------------

KVM_API_VERSION = 12

# Flags of a memory slot.
KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1
KVM_MEM_GUEST_MEMFD = 1 << 2  # since Linux 6.8; KVM_SET_USER_MEMORY_REGION2 only

# Entries of the coalesced ring, which fills one host page.
KVM_COALESCED_MMIO_MAX = (mmap.PAGESIZE - sizeof(KvmCoalescedMmioRing)) // sizeof(KvmCoalescedMmio)

# kvm_pit_config.flags: also answer the speaker port 0x61, so that it does not exit.
KVM_PIT_SPEAKER_DUMMY = 1

# kvm_cpuid_entry2.flags (asm/kvm.h; the header's own spelling).
KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0

# kvm_mp_state.mp_state.
KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1
KVM_MP_STATE_INIT_RECEIVED = 2
KVM_MP_STATE_HALTED = 3
KVM_MP_STATE_SIPI_RECEIVED = 4

# kvm_run.exit_reason, those that an x86 guest can meet.
KVM_EXIT_UNKNOWN = 0
KVM_EXIT_EXCEPTION = 1
KVM_EXIT_IO = 2
KVM_EXIT_HYPERCALL = 3
KVM_EXIT_DEBUG = 4
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_IRQ_WINDOW_OPEN = 7
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_SET_TPR = 11
KVM_EXIT_TPR_ACCESS = 12
KVM_EXIT_NMI = 16
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_IOAPIC_EOI = 26
KVM_EXIT_HYPERV = 27
KVM_EXIT_X86_RDMSR = 29
KVM_EXIT_X86_WRMSR = 30
KVM_EXIT_DIRTY_RING_FULL = 31
KVM_EXIT_AP_RESET_HOLD = 32
KVM_EXIT_X86_BUS_LOCK = 33
KVM_EXIT_XEN = 34
KVM_EXIT_NOTIFY = 37
KVM_EXIT_MEMORY_FAULT = 39  # since Linux 6.8

# kvm_run.io.direction.
KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1

# kvm_run.internal.suberror.
KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_SIMUL_EX = 2
KVM_INTERNAL_ERROR_DELIVERY_EV = 3
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4

# kvm_run.emulation_failure.flags: the instruction's bytes are given.
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1 << 0

# Capabilities, arguments of KVM_CHECK_EXTENSION: 0 is no, a greater number yes and often a quantity.
KVM_CAP_IRQCHIP = 0
KVM_CAP_USER_MEMORY = 3
KVM_CAP_SET_TSS_ADDR = 4
KVM_CAP_EXT_CPUID = 7
KVM_CAP_NR_VCPUS = 9  # recommended number
KVM_CAP_NR_MEMSLOTS = 10  # 0 means 32
KVM_CAP_MP_STATE = 14
KVM_CAP_COALESCED_MMIO = 15  # the ring's page number within a vCPU's mapping
KVM_CAP_SYNC_MMU = 16
KVM_CAP_IRQFD = 32
KVM_CAP_PIT2 = 33
KVM_CAP_IOEVENTFD = 36
KVM_CAP_SET_IDENTITY_MAP_ADDR = 37
KVM_CAP_INTERNAL_ERROR_DATA = 40
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_SYNC_REGS = 74
KVM_CAP_SIGNAL_MSI = 77
KVM_CAP_READONLY_MEM = 81
KVM_CAP_CHECK_EXTENSION_VM = 105
KVM_CAP_DISABLE_QUIRKS = 116
KVM_CAP_MULTI_ADDRESS_SPACE = 118
KVM_CAP_MAX_VCPU_ID = 128
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_COALESCED_PIO = 162
KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168
KVM_CAP_DIRTY_LOG_RING = 192
KVM_CAP_BINARY_STATS_FD = 203
KVM_CAP_DISABLE_QUIRKS2 = 213
KVM_CAP_DIRTY_LOG_RING_ACQ_REL = 223
KVM_CAP_USER_MEMORY2 = 231  # this and those below: since Linux 6.8
KVM_CAP_MEMORY_FAULT_INFO = 232
KVM_CAP_MEMORY_ATTRIBUTES = 233
KVM_CAP_GUEST_MEMFD = 234

# --- Requests (linux/kvm.h; the packing: asm-generic/ioctl.h, which x86 and arm64 use) ------------

KVMIO = 0xAE  # the type byte of every KVM request

_WRITE = 1  # the kernel reads the argument
_READ = 2  # the kernel writes the argument


def _IOC(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | KVMIO << 8 | number


def _IO(number: int) -> int:
    return _IOC(0, number, 0)


def _IOR(number: int, argument: type[Structure]) -> int:
    return _IOC(_READ, number, sizeof(argument))


def _IOW(number: int, argument: type[Structure] | type[c_uint64]) -> int:
    return _IOC(_WRITE, number, sizeof(argument))


def _IOWR(number: int, argument: type[Structure]) -> int:
    return _IOC(_READ | _WRITE, number, sizeof(argument))


# On /dev/kvm.
KVM_GET_API_VERSION = _IO(0x00)
KVM_CREATE_VM = _IO(0x01)
KVM_CHECK_EXTENSION = _IO(0x03)  # on a VM, too
KVM_GET_VCPU_MMAP_SIZE = _IO(0x04)
KVM_GET_SUPPORTED_CPUID = _IOWR(0x05, KvmCpuid2)

# On a VM.
KVM_CREATE_VCPU = _IO(0x41)
KVM_GET_DIRTY_LOG = _IOW(0x42, KvmDirtyLog)
KVM_SET_USER_MEMORY_REGION = _IOW(0x46, KvmUserspaceMemoryRegion)
KVM_SET_TSS_ADDR = _IO(0x47)  # the address itself is the argument
KVM_SET_IDENTITY_MAP_ADDR = _IOW(0x48, c_uint64)
KVM_SET_USER_MEMORY_REGION2 = _IOW(0x49, KvmUserspaceMemoryRegion2)
KVM_CREATE_IRQCHIP = _IO(0x60)
KVM_IRQ_LINE = _IOW(0x61, KvmIrqLevel)
KVM_REGISTER_COALESCED_MMIO = _IOW(0x67, KvmCoalescedMmioZone)
KVM_UNREGISTER_COALESCED_MMIO = _IOW(0x68, KvmCoalescedMmioZone)
KVM_CREATE_PIT2 = _IOW(0x77, KvmPitConfig)

# On a vCPU.
KVM_RUN = _IO(0x80)
KVM_GET_REGS = _IOR(0x81, KvmRegs)
KVM_SET_REGS = _IOW(0x82, KvmRegs)
KVM_GET_SREGS = _IOR(0x83, KvmSregs)
KVM_SET_SREGS = _IOW(0x84, KvmSregs)
KVM_TRANSLATE = _IOWR(0x85, KvmTranslation)
KVM_SET_CPUID2 = _IOW(0x90, KvmCpuid2)
KVM_GET_MP_STATE = _IOR(0x98, KvmMpState)
KVM_SET_MP_STATE = _IOW(0x99, KvmMpState)

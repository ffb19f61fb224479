"""Numbers of the KVM interface, as ``linux/kvm.h`` defines them, and the structures of `accel_kvm.structs`.

Lowest layer of the plugin; no logic. Upstream: ``linux/kvm.h``, for x86 also ``asm/kvm.h`` (marked so), and
``asm-generic/ioctl.h`` for how a request number is put together. What each means is in the kernel's
``Documentation/virt/kvm/api.rst``. A constant has the header's own name; a test that compiles a C program
compares every one with the header.
"""

from __future__ import annotations

import mmap
from ctypes import Structure, c_uint64, sizeof

from accel_kvm.structs import KvmCoalescedMmio as KvmCoalescedMmio
from accel_kvm.structs import KvmCoalescedMmioRing as KvmCoalescedMmioRing
from accel_kvm.structs import KvmCoalescedMmioZone as KvmCoalescedMmioZone
from accel_kvm.structs import KvmCpuid2 as KvmCpuid2
from accel_kvm.structs import KvmCpuidEntry2 as KvmCpuidEntry2
from accel_kvm.structs import KvmDirtyGfn as KvmDirtyGfn
from accel_kvm.structs import KvmDirtyLog as KvmDirtyLog
from accel_kvm.structs import KvmDtable as KvmDtable
from accel_kvm.structs import KvmEnableCap as KvmEnableCap
from accel_kvm.structs import KvmIoeventfd as KvmIoeventfd
from accel_kvm.structs import KvmIrqLevel as KvmIrqLevel
from accel_kvm.structs import KvmMpState as KvmMpState
from accel_kvm.structs import KvmPitConfig as KvmPitConfig
from accel_kvm.structs import KvmRegs as KvmRegs
from accel_kvm.structs import KvmRun as KvmRun
from accel_kvm.structs import KvmSegment as KvmSegment
from accel_kvm.structs import KvmSregs as KvmSregs
from accel_kvm.structs import KvmTranslation as KvmTranslation
from accel_kvm.structs import KvmUserspaceMemoryRegion as KvmUserspaceMemoryRegion
from accel_kvm.structs import KvmUserspaceMemoryRegion2 as KvmUserspaceMemoryRegion2
from accel_kvm.structs import cpuid2 as cpuid2

# --- Constants (linux/kvm.h) ----------------------------------------------------------------------

KVM_API_VERSION = 12

# Flags of a memory slot.
KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1
KVM_MEM_GUEST_MEMFD = 1 << 2  # since Linux 6.8; KVM_SET_USER_MEMORY_REGION2 only

# Entries of the coalesced ring, which fills one host page.
KVM_COALESCED_MMIO_MAX = (mmap.PAGESIZE - sizeof(KvmCoalescedMmioRing)) // sizeof(KvmCoalescedMmio)

# Bits of KVM_CAP_DISABLE_QUIRKS2 (asm/kvm.h): to delete a slot drops what KVM built for all memory; since Linux 6.12.
KVM_X86_QUIRK_SLOT_ZAP_ALL = 1 << 7

# Dirty rings: where a vCPU's is in its mapping, in pages (asm/kvm.h), and kvm_dirty_gfn.flags.
KVM_DIRTY_LOG_PAGE_OFFSET = 64
KVM_DIRTY_GFN_F_DIRTY = 1 << 0
KVM_DIRTY_GFN_F_RESET = 1 << 1

# kvm_ioeventfd.flags.
KVM_IOEVENTFD_FLAG_DATAMATCH = 1 << 0
KVM_IOEVENTFD_FLAG_PIO = 1 << 1
KVM_IOEVENTFD_FLAG_DEASSIGN = 1 << 2

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
KVM_CAP_IOEVENTFD_ANY_LENGTH = 122
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
KVM_IOEVENTFD = _IOW(0x79, KvmIoeventfd)
KVM_ENABLE_CAP = _IOW(0xA3, KvmEnableCap)  # on a vCPU, too

KVM_RESET_DIRTY_RINGS = _IO(0xC7)

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

"""Hypervisor.framework as this plugin calls it: return codes, flags, and `HvfApi`, the functions.

Layer: the bottom of the plugin; it imports nothing. Source: Apple's documentation "Hypervisor", the pages of the
functions named here, for what they do; the headers hv_vm.h, hv_vcpu.h (macOS 15) for signatures and rules, and
arm64/hv/hv_kern_types.h for numbers. All of it is for Apple silicon; Macs with Intel processors have other functions.

Each method has the name and the arguments of its C function and returns its ``hv_return_t``. Two things differ, since
Python has no pointers to write to: what a function writes is returned after the code, and a list carries its length.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol


class HvReturn(enum.IntEnum):
    """``hv_return_t``, a ``mach_error_t``: a signed ``int`` in C, unsigned here."""

    HV_SUCCESS = 0
    #: The operation was unsuccessful.
    HV_ERROR = 0xFAE94001
    #: The owning resource was busy.
    HV_BUSY = 0xFAE94002
    #: An argument is invalid.
    HV_BAD_ARGUMENT = 0xFAE94003
    #: The guest is in an illegal state.
    HV_ILLEGAL_GUEST_STATE = 0xFAE94004
    #: The host has no resources for it.
    HV_NO_RESOURCES = 0xFAE94005
    #: There is no VM or no vCPU.
    HV_NO_DEVICE = 0xFAE94006
    #: The system does not allow it, as without the entitlement.
    HV_DENIED = 0xFAE94007
    HV_FAULT = 0xFAE94008
    #: The hypervisor does not support it.
    HV_UNSUPPORTED = 0xFAE9400F


class HvMemory(enum.IntFlag):
    """``hv_memory_flags_t``: what a guest may do with memory."""

    READ = 1 << 0
    WRITE = 1 << 1
    EXEC = 1 << 2

    @property
    def letters(self) -> str:
        """The flags as people write them, such as ``r-x``."""
        return "".join(letter if flag in self else "-" for flag, letter in zip(HvMemory, "rwx", strict=True))


class HvfApi(Protocol):
    """The functions of Hypervisor.framework that this plugin calls, or that whoever runs its vCPUs will call.

    There is one VM in a process, so none of them takes one. Memory calls are made by any thread, one at a time; calls
    on a vCPU by the thread that created it, but for `hv_vcpus_exit`.
    """

    def hv_vm_get_max_vcpu_count(self) -> tuple[int, int]:
        """``hv_return_t hv_vm_get_max_vcpu_count(uint32_t *max_vcpu_count)``; returns the code and the count."""
        ...

    def hv_vm_create(self, config: int) -> int:
        """``hv_return_t hv_vm_create(hv_vm_config_t config)``; 0 is NULL, the default configuration."""
        ...

    def hv_vm_destroy(self) -> int:
        """``hv_return_t hv_vm_destroy(void)``; every vCPU must be destroyed before. What is mapped goes too."""
        ...

    def hv_vm_map(self, addr: int, ipa: int, size: int, flags: int) -> int:
        """``hv_return_t hv_vm_map(void *addr, hv_ipa_t ipa, size_t size, hv_memory_flags_t flags)``.

        Shows the host's memory at `addr` to the guest at `ipa`. Both are page aligned and `size` is in pages. The host
        memory must be one mapping, as by mmap, and must stay until it is unmapped.
        """
        ...

    def hv_vm_unmap(self, ipa: int, size: int) -> int:
        """``hv_return_t hv_vm_unmap(hv_ipa_t ipa, size_t size)``; a part of what was mapped is enough."""
        ...

    def hv_vm_protect(self, ipa: int, size: int, flags: int) -> int:
        """``hv_return_t hv_vm_protect(hv_ipa_t ipa, size_t size, hv_memory_flags_t flags)``.

        Changes what the guest may do with mapped memory, a whole mapping or a part; the memory stays where it is.
        """
        ...

    def hv_vcpu_create(self, config: int) -> tuple[int, int, int]:
        """``hv_return_t hv_vcpu_create(hv_vcpu_t *vcpu, hv_vcpu_exit_t **exit, hv_vcpu_config_t config)``.

        Creates a vCPU for the calling thread, which can have one. Returns the code, the vCPU, and the address of its
        ``hv_vcpu_exit_t``, which `hv_vcpu_run` fills in.
        """
        ...

    def hv_vcpu_destroy(self, vcpu: int) -> int:
        """``hv_return_t hv_vcpu_destroy(hv_vcpu_t vcpu)``; by the thread that created it."""
        ...

    def hv_vcpu_run(self, vcpu: int) -> int:
        """``hv_return_t hv_vcpu_run(hv_vcpu_t vcpu)``; blocks until the guest comes out; by its own thread.

        With ctypes, by `ctypes.CDLL`, which releases the GIL for the time.
        """
        ...

    def hv_vcpus_exit(self, vcpus: Sequence[int]) -> int:
        """``hv_return_t hv_vcpus_exit(hv_vcpu_t *vcpus, uint32_t vcpu_count)``; by any thread.

        Makes each leave the guest, with the reason ``HV_EXIT_REASON_CANCELED``; one that is not in there returns at
        once from its next `hv_vcpu_run`, without having executed anything.
        """
        ...

"""KvmSystem: the file descriptor of ``/dev/kvm``.

Source: KVM api.rst, section 4, "system ioctls". Calls on it pass no gate: they touch no VM.
"""

from __future__ import annotations

import errno
import os
from ctypes import Structure
from pathlib import Path

from accel.backend import Capability
from accel.errors import BackendError
from accel_kvm import abi
from accel_kvm.ioctl import ioctl

_DEVICE = "/dev/kvm"

_ADVICE = {
    errno.ENOENT: "this host has no KVM: load the module kvm_intel or kvm_amd, enable virtualization in the "
    "firmware, or enable nested virtualization if this is a virtual machine",
    errno.EACCES: "add your user to the group that owns /dev/kvm (often 'kvm') and log in again, or run as root",
    errno.EPERM: "the container or sandbox denies /dev/kvm; pass the device in, such as with --device /dev/kvm",
    errno.ENODEV: "the device node exists but KVM is not loaded: load the module kvm_intel or kvm_amd",
}

#: Capability → the extension that tells it, on /dev/kvm or on a VM.
_EXTENSIONS = {
    Capability.READONLY_MEMORY: abi.KVM_CAP_READONLY_MEM,
    Capability.COALESCED_PIO: abi.KVM_CAP_COALESCED_PIO,
    Capability.COALESCED_MMIO: abi.KVM_CAP_COALESCED_MMIO,
    Capability.IOEVENTFD: abi.KVM_CAP_IOEVENTFD,
    # No extension of its own: it came with slots of user memory. A VM is asked itself (`dirty_log.is_offered`).
    Capability.DIRTY_LOG: abi.KVM_CAP_USER_MEMORY,
    Capability.IRQCHIP: abi.KVM_CAP_IRQCHIP,
    Capability.PIT: abi.KVM_CAP_PIT2,
    # Its two kinds differ on other processors only.
    Capability.DIRTY_RING: abi.KVM_CAP_DIRTY_LOG_RING,
}

_CPUID_ENTRIES = 256


def extensions(fd: int) -> frozenset[Capability]:
    """Return the capabilities that KVM_CHECK_EXTENSION tells on `fd`, of ``/dev/kvm`` or a VM."""
    return frozenset(capability for capability, number in _EXTENSIONS.items() if extension(fd, number))


def extension(fd: int, number: int) -> int:
    """Return what KVM_CHECK_EXTENSION says: 0 is no, a greater number yes and often a quantity."""
    return ioctl(fd, abi.KVM_CHECK_EXTENSION, number, "KVM_CHECK_EXTENSION")


def can_zap_one_slot(fd: int) -> bool:
    """Return whether a VM can be told to drop, with a slot, the page tables of that slot only."""
    return bool(extension(fd, abi.KVM_CAP_DISABLE_QUIRKS2) & abi.KVM_X86_QUIRK_SLOT_ZAP_ALL)


class KvmSystem:
    """An open ``/dev/kvm``.

    Raises:
        BackendError: It is absent, not permitted, or of another API version; says what to do.
    """

    def __init__(self) -> None:
        try:
            self.fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            number = error.errno or errno.EIO
            raise BackendError(f"open {_DEVICE}", number, _ADVICE.get(number, "")) from error
        try:
            self._check_version()
        except BackendError:
            self.close()
            raise

    def _check_version(self) -> None:
        version = ioctl(self.fd, abi.KVM_GET_API_VERSION, 0, "KVM_GET_API_VERSION")
        if version != abi.KVM_API_VERSION:
            raise BackendError(
                "KVM_GET_API_VERSION",
                errno.ENOTSUP,
                f"version {version}; this plugin speaks {abi.KVM_API_VERSION}, so the kernel must be 2.6.22 or newer",
            )

    def capabilities(self) -> frozenset[Capability]:
        """Return what the host offers in general; a VM may offer less."""
        return extensions(self.fd)

    def details(self) -> dict[str, str]:
        """Return what else is worth knowing of the host, by label."""
        return {
            "host": self.host(),
            "api": str(abi.KVM_API_VERSION),
            "slots": str(extension(self.fd, abi.KVM_CAP_NR_MEMSLOTS)),
            "slot call": "KVM_SET_USER_MEMORY_REGION"
            + (" (…REGION2, here too, adds only guest_memfd)" if extension(self.fd, abi.KVM_CAP_USER_MEMORY2) else ""),
            "slot deletion": "drops the page tables of all memory"
            + (
                ", which can be switched off (KVM_X86_QUIRK_SLOT_ZAP_ALL)"
                if can_zap_one_slot(self.fd)
                else "; this kernel has no switch for that (KVM_X86_QUIRK_SLOT_ZAP_ALL, since Linux 6.12)"
            ),
        }

    def create_vm(self) -> int:
        """Return the file descriptor of a new VM (KVM_CREATE_VM)."""
        return ioctl(self.fd, abi.KVM_CREATE_VM, 0, "KVM_CREATE_VM")

    def vcpu_mmap_size(self) -> int:
        """Return the bytes that each vCPU shares (KVM_GET_VCPU_MMAP_SIZE)."""
        return ioctl(self.fd, abi.KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE")

    def supported_cpuid(self) -> Structure:
        """Return the CPUID leaves that a guest may see (KVM_GET_SUPPORTED_CPUID)."""
        cpuid = abi.cpuid2(_CPUID_ENTRIES)
        ioctl(self.fd, abi.KVM_GET_SUPPORTED_CPUID, cpuid, "KVM_GET_SUPPORTED_CPUID")
        return cpuid

    def host(self) -> str:
        """Return the flavour of KVM, kernel and machine, such as ``kvm_intel, Linux 6.8.0 x86_64``."""
        flavours = sorted(path.name for path in Path("/sys/module").glob("kvm_*"))
        system = os.uname()
        return f"{'+'.join(flavours) or 'kvm'}, {system.sysname} {system.release} {system.machine}"

    def close(self) -> None:
        """Close the file descriptor; may be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

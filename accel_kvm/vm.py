"""KvmVm: the file descriptor of a VM.

Source: KVM api.rst, section 4, "vm ioctls". A VM belongs to the process that created it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from ctypes import c_uint64
from functools import partial
from typing import cast

from accel.backend import HOLD_NEEDS, Capability, VcpuBackend, VmBackend, VmConfig
from accel.errors import BackendError, CapabilityError, UsageError
from accel.memory.listener import MemoryListener
from accel.memory.slot_plan import Policy
from accel_kvm import abi
from accel_kvm.coalesced import KvmCoalescedRing
from accel_kvm.dirty_log import is_offered
from accel_kvm.dirty_ring import DirtyRingLost, KvmDirtyRings
from accel_kvm.io_listener import KvmIoListener
from accel_kvm.ioctl import ioctl
from accel_kvm.kick import DEFAULT_SIGNAL, install
from accel_kvm.memory_listener import KvmMemoryListener
from accel_kvm.registers import with_apic_id
from accel_kvm.slots import OWN_PAGES
from accel_kvm.system import KvmSystem, extension, extensions
from accel_kvm.vcpu import KvmVcpu

# Where VMX keeps four pages of its own in the guest's space, below the firmware: it needs them to run real mode
# on hosts without "unrestricted guest". Other hosts ignore them.
_IDENTITY_MAP = 0xFEFF_C000
_TSS = 0xFEFF_D000

_DEFAULT_SLOTS = 32
_LINES = 24

#: ``hold`` → the kernel call that it stands for: "KVM: API to block and resume all running vcpus in a vm" and "kvm:
#: implement atomic memslot updates", both on the kvm mailing list in autumn 2022, neither merged.
_PROPOSED = {
    "kick-all": "KVM_KICK_ALL_RUNNING_VCPUS",
    "region-list": "KVM_SET_USER_MEMORY_REGION_LIST",
}
_DEFAULT_VCPUS = 4


class KvmVm(VmBackend):
    """One VM of KVM.

    Raises:
        BackendError: A call failed.
        CapabilityError: `config` asks for an interrupt controller or timer that this KVM has not.
    """

    def __init__(self, config: VmConfig) -> None:
        self._config = config
        self._kick_signal = cast(int, config.options.get("kick_signal", DEFAULT_SIGNAL))
        self._fd = -1
        self._ring_page = 0
        self._listener: KvmMemoryListener | None = None
        self._rings: KvmDirtyRings | None = None
        install(self._kick_signal)
        self._system = KvmSystem()
        try:
            self._fd = self._system.create_vm()
            self._create()
        except BaseException:
            self.close()
            raise

    def _create(self) -> None:
        fd = self._fd
        self.capabilities = extensions(fd)
        if not is_offered(fd):
            self.capabilities -= {Capability.DIRTY_LOG}
        self._any_size = extension(fd, abi.KVM_CAP_IOEVENTFD_ANY_LENGTH) > 0
        self.max_vcpus = extension(fd, abi.KVM_CAP_MAX_VCPUS) or _DEFAULT_VCPUS
        self._mmap_size = self._system.vcpu_mmap_size()
        self._cpuid = self._system.supported_cpuid()
        if self.capabilities & {Capability.COALESCED_PIO, Capability.COALESCED_MMIO}:
            self._ring_page = extension(fd, abi.KVM_CAP_COALESCED_MMIO)
        if extension(fd, abi.KVM_CAP_SET_TSS_ADDR):
            ioctl(fd, abi.KVM_SET_TSS_ADDR, _TSS, "KVM_SET_TSS_ADDR")
        if extension(fd, abi.KVM_CAP_SET_IDENTITY_MAP_ADDR):
            address = c_uint64(_IDENTITY_MAP)
            ioctl(fd, abi.KVM_SET_IDENTITY_MAP_ADDR, address, "KVM_SET_IDENTITY_MAP_ADDR")
        self._check_hold(str(self._config.options.get("hold", "inhibit")))
        ring_size = cast(int, self._config.options.get("dirty_ring_size", 0))
        if ring_size:
            self._rings = KvmDirtyRings(fd, ring_size)
        if self._config.irqchip:
            self._require(Capability.IRQCHIP)
            ioctl(fd, abi.KVM_CREATE_IRQCHIP, 0, "KVM_CREATE_IRQCHIP")
        if self._config.pit:
            self._require(Capability.PIT)
            if not self._config.irqchip:
                raise CapabilityError(
                    "KVM's interval timer needs its interrupt controllers; create the VM with irqchip"
                )
            pit = abi.KvmPitConfig(flags=abi.KVM_PIT_SPEAKER_DUMMY)
            ioctl(fd, abi.KVM_CREATE_PIT2, pit, "KVM_CREATE_PIT2")

    def _check_hold(self, hold: str) -> None:
        """Refuse a `hold` for which the kernel lacks a call, and say which; the core would not know its name."""
        missing = _PROPOSED.get(hold)
        if missing is not None and HOLD_NEEDS[hold] not in self.capabilities:
            raise CapabilityError(
                f"hold={hold} needs {missing}, which was proposed in 2022 and which no released kernel has; "
                "use hold=inhibit"
            )

    def _require(self, capability: Capability) -> None:
        if capability not in self.capabilities:
            raise CapabilityError(f"this KVM does not offer {capability}; create the VM without it")

    def create_vcpu(self, index: int) -> VcpuBackend:
        """Create a vCPU (KVM_CREATE_VCPU), with all CPUID features that the host offers and its index as APIC ID."""
        try:
            fd = ioctl(self._fd, abi.KVM_CREATE_VCPU, index, "KVM_CREATE_VCPU")
        except BackendError as error:
            if error.errno != errno.EEXIST:
                raise
            # KVM keeps a vCPU as long as the VM, also where what came after its creation failed.
            advice = f"an attempt before may have made vCPU {index} and then failed; create the VM anew. Or {OWN_PAGES}"
            raise BackendError("KVM_CREATE_VCPU", errno.EEXIST, advice) from error
        try:
            vcpu = KvmVcpu(fd, self._mmap_size, self._kick_signal)
        except BaseException:
            os.close(fd)
            raise
        try:
            vcpu.set_cpuid(with_apic_id(self._cpuid, index))
            if self._rings is not None:
                self._rings.add(fd)
                vcpu.on_close = partial(self._close_ring, fd)
            if self.ring is None and self._ring_page:
                self.ring = KvmCoalescedRing(fd, self._ring_page)
        except BaseException:
            vcpu.close()
            raise
        return vcpu

    def memory_listener(self) -> MemoryListener:
        """Return the listener that keeps the memslots, and what KVM answers by itself."""
        self._listener = KvmMemoryListener(
            self._fd,
            policy=cast(Policy, self._config.options.get("plan", "least")),
            page_size=self.page_size,
            slot_count=extension(self._fd, abi.KVM_CAP_NR_MEMSLOTS) or _DEFAULT_SLOTS,
            capabilities=self.capabilities,
            any_size=self._any_size,
            rings=self._rings,
        )
        return self._listener

    def empty_dirty_rings(self) -> None:
        """Merge the dirty rings into the logs; see `VmBackend.empty_dirty_rings`."""
        if self._rings is None:
            super().empty_dirty_rings()
        elif self._listener is not None:
            self._listener.slots.empty_rings()

    def _close_ring(self, vcpu_fd: int) -> None:
        """Bring in what a vCPU, which is out for good, has noted, and let go of its ring."""
        assert self._rings is not None
        try:
            self.empty_dirty_rings()
        except DirtyRingLost:
            pass  # All that logs counts as written, and the ring that lost entries goes.
        finally:
            self._rings.remove(vcpu_fd)

    def memory_figures(self) -> Mapping[str, float]:
        """Return figures of the slots."""
        return {} if self._listener is None else self._listener.figures

    def io_listener(self) -> MemoryListener | None:
        """Return the listener for ports that KVM answers by itself."""
        return KvmIoListener(self._fd, is_port=True, capabilities=self.capabilities, any_size=self._any_size)

    def set_irq(self, line: int, level: bool) -> None:
        """Set an interrupt line's level (KVM_IRQ_LINE)."""
        if not self._config.irqchip:
            super().set_irq(line, level)
        if not 0 <= line < _LINES:
            # KVM takes 32 bits of the number, and says nothing where there is no such line.
            raise UsageError(f"interrupt line {line} is not in 0 to {_LINES - 1}, the pins of KVM's IOAPIC")
        ioctl(self._fd, abi.KVM_IRQ_LINE, abi.KvmIrqLevel(line, level), "KVM_IRQ_LINE")

    def host(self) -> str:
        """Return the flavour of KVM and its kernel."""
        return self._system.host()

    def close(self) -> None:
        """Close the VM and ``/dev/kvm``; the kernel drops its slots."""
        if self.ring is not None:
            cast(KvmCoalescedRing, self.ring).close()
            self.ring = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._system.close()

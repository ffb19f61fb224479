"""The kernel's own table of KVM's locks and their orders, as data: what it names, and what it says of the order.

Layer: above `lock_classes`, which has the locks that the model takes. Source: the kernel's page on KVM's locks
(virt/kvm/locking). The page describes some of these locks and only names the others in an order; `described` tells.
Everything that stands in no order as the outer one is a leaf: no other lock is taken while holding it.
"""

from __future__ import annotations

import enum

from attrs import frozen

from accel.locks import LockClass
from accel_mock.kvm.lock_classes import MMU, MN_ACTIVE, MN_INVALIDATE, SLOTS, SLOTS_ARCH, SRCU


@frozen
class KernelLock:
    """A lock of the page.

    Attributes:
        lock_class: Its name, type, what it protects, and a comment.
        arch: Where there is one: ``any`` or ``x86``.
        described: Whether the page has an entry for it.
    """

    lock_class: LockClass
    arch: str
    described: bool = True

    @property
    def name(self) -> str:
        """What the kernel calls it."""
        return self.lock_class.name


class Rule(enum.Enum):
    """What an order says."""

    NESTS = "is taken outside"
    """Who holds the inner one must not take the outer one."""
    WAITS = "is held while waiting for"
    """Whoever is waited for must not take the outer one."""
    READS = "is read outside"
    """The outer one is a read section; who holds the inner one must not wait for its readers."""


@frozen
class Order:
    """An order that the page states.

    Attributes:
        outer: What comes first.
        inner: What comes then.
        rule: How the two go together.
        arch: Where it applies.
    """

    outer: LockClass
    inner: LockClass
    rule: Rule = Rule.NESTS
    arch: str = "any"

    @property
    def name(self) -> str:
        """What it says."""
        return f"{self.outer.name} {self.rule.value} {self.inner.name}"

    @property
    def scenario(self) -> str:
        """The name of the scenario in which two threads keep it."""
        return f"mock/order-{_in_scenario(self.outer)}-{_in_scenario(self.inner)}"

    @property
    def broken_by(self) -> str:
        """The name of the one in which a thread does not."""
        return f"{self.scenario}-wrong-broken"


def _in_scenario(lock_class: LockClass) -> str:
    """Return a lock's name as it stands in a scenario's, which is typed into a shell."""
    return lock_class.name.replace("->", ".")


KVM_LOCK = LockClass(
    "kvm_lock",
    protects="the list of VMs, how many use the hardware, and whether its virtualization is on",
    comment="CPUs are also kept from coming and going, by cpus_read_lock(), while it is turned on or off",
    type="mutex",
)
CPU_HOTPLUG = LockClass(
    "cpu_hotplug_lock",
    protects="which CPUs are online",
    comment="read by cpus_read_lock(); the kernel's, not KVM's",
    type="reader/writer lock that is fair",
)
VENDOR_MODULE = LockClass(
    "vendor_module_lock",
    protects="the loading of a vendor's module, kvm_amd or kvm_intel",
    comment="there because kvm_lock deadlocks: cpu_hotplug_lock is taken outside it when CPUs come and go, and loading "
    "a module needs cpu_hotplug_lock many times",
    type="mutex",
)
KVM = LockClass("kvm->lock", protects="what a VM is made of: its vCPUs and devices", type="mutex")
VCPU = LockClass("vcpu->mutex", protects="one vCPU against two ioctls at a time", type="mutex")
IRQ = LockClass("kvm->irq_lock", protects="how interrupts are routed", type="mutex")
HV = LockClass("kvm->arch.hyperv.hv_lock", protects="what Hyper-V guests share with KVM", type="mutex")
XEN = LockClass("kvm->arch.xen.xen_lock", protects="what Xen guests share with KVM", type="mutex")
TDP_MMU_PAGES = LockClass(
    "kvm->arch.tdp_mmu_pages_lock",
    protects="the list of page tables for the processor's own second level",
    comment="mmu_lock, an rwlock, is held for reading at least",
    type="spinlock",
)
UNSYNC_PAGES = LockClass(
    "kvm->arch.mmu_unsync_pages_lock",
    protects="which shadow pages are out of step with the guest's tables",
    comment="as kvm->arch.tdp_mmu_pages_lock",
    type="spinlock",
)
TSC_WRITE = LockClass(
    "kvm_arch::tsc_write_lock",
    protects="the last write of a guest's clock, and the offsets that follow from it",
    comment="a raw one, since nobody may be preempted between two offsets",
    type="raw spinlock",
)
WAKEUP = LockClass(
    "wakeup_vcpus_on_cpu_lock",
    protects="the vCPUs that block on a CPU and wait for an interrupt of an assigned device",
    comment="one per CPU; the hardware's notification looks there for whom to wake",
    type="spinlock",
)

#: All locks that the page names.
LOCKS = (
    KernelLock(KVM_LOCK, "any"),
    KernelLock(CPU_HOTPLUG, "any", described=False),
    KernelLock(MN_INVALIDATE, "any"),
    KernelLock(MN_ACTIVE, "any", described=False),
    KernelLock(TSC_WRITE, "x86"),
    KernelLock(MMU, "any"),
    KernelLock(SRCU, "any"),
    KernelLock(SLOTS_ARCH, "any"),
    KernelLock(WAKEUP, "x86"),
    KernelLock(VENDOR_MODULE, "x86"),
    KernelLock(KVM, "any", described=False),
    KernelLock(VCPU, "any", described=False),
    KernelLock(SLOTS, "any", described=False),
    KernelLock(IRQ, "any", described=False),
    KernelLock(HV, "x86", described=False),
    KernelLock(XEN, "x86", described=False),
    KernelLock(TDP_MMU_PAGES, "x86", described=False),
    KernelLock(UNSYNC_PAGES, "x86", described=False),
)

#: All orders that it states.
ORDERS = (
    Order(CPU_HOTPLUG, KVM_LOCK),
    Order(VENDOR_MODULE, CPU_HOTPLUG, arch="x86"),
    Order(KVM, VCPU),
    Order(KVM, SLOTS),
    Order(KVM, IRQ),
    Order(SLOTS, IRQ),
    # A change of the memslots waits for pairs of a notifier, which therefore take neither.
    Order(SLOTS, MN_ACTIVE, Rule.WAITS),
    Order(SLOTS_ARCH, MN_ACTIVE, Rule.WAITS),
    # synchronize_srcu() is called inside these; readers take none of them.
    Order(KVM, SRCU, Rule.WAITS),
    Order(VCPU, SRCU, Rule.WAITS),
    Order(SLOTS, SRCU, Rule.WAITS),
    # It is released before synchronize_srcu(), so readers may take it.
    Order(SRCU, SLOTS_ARCH, Rule.READS),
    Order(VCPU, HV, arch="x86"),
    Order(VCPU, XEN, arch="x86"),
    Order(MMU, TDP_MMU_PAGES, arch="x86"),
    Order(MMU, UNSYNC_PAGES, arch="x86"),
)

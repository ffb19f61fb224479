"""The memory listener that turns a change of the memory map into memslot updates, and brings in written pages.

The core's `SlotListener` notes, plans and carries out; here stands what KVM's slots can be, and that what KVM answers
by itself changes in the same transaction, before the slots. Source: KVM_SET_USER_MEMORY_REGION in KVM api.rst.
"""

from __future__ import annotations

from accel.backend import Capability
from accel.memory.slot_listener import SlotListener, SlotRules
from accel.memory.slot_plan import Policy
from accel_kvm.dirty_ring import KvmDirtyRings
from accel_kvm.io_listener import KvmIoListener
from accel_kvm.slots import MAX_SLOT_SIZE, KvmSlots


class KvmMemoryListener(SlotListener, KvmIoListener):
    """Maps RAM and ROM into one VM, and registers what KVM answers by itself. State is guarded by the big lock.

    Args:
        vm_fd: The VM.
        policy: ``least`` or ``replace``; see `accel.memory.slot_plan`.
        page_size: Granule of a mapping, bytes.
        slot_count: Greatest number of slots (KVM_CAP_NR_MEMSLOTS). Fragments are merged rather than exceed it.
        capabilities: What the VM offers.
        any_size: As for `KvmIoListener`.
        rings: As for `KvmSlots`.

    Attributes:
        slots: The table.
    """

    slots: KvmSlots

    name = "kvm-memory"

    def __init__(
        self,
        vm_fd: int,
        *,
        policy: Policy,
        page_size: int,
        slot_count: int,
        capabilities: frozenset[Capability],
        any_size: bool,
        rings: KvmDirtyRings | None = None,
    ) -> None:
        KvmIoListener.__init__(self, vm_fd, is_port=False, capabilities=capabilities, any_size=any_size)
        rules = SlotRules(
            owner="this KVM",
            page_size=page_size,
            max_slot_size=MAX_SLOT_SIZE,
            readonly=Capability.READONLY_MEMORY in capabilities,
            dirty_log=Capability.DIRTY_LOG in capabilities,
            dirty_rings=rings is not None,
        )
        SlotListener.__init__(self, KvmSlots(vm_fd, page_size, slot_count, rings), rules, policy)

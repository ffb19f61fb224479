"""What the mock offers, in numbers and capabilities; apart from the VM so that probing imports nothing more."""

from __future__ import annotations

from accel.backend import Capability

CAPABILITIES = frozenset(
    {
        Capability.KICK_ALL_VCPUS,
        Capability.REGION_LIST,
        Capability.READONLY_MEMORY,
        Capability.DIRTY_LOG,
        Capability.DIRTY_RING,
        Capability.COALESCED_PIO,
        Capability.COALESCED_MMIO,
        Capability.IOEVENTFD,
    }
)
#: As many slots as KVM on x86 has.
SLOT_COUNT = 32764
MAX_VCPUS = 64
#: Ways to zap, the first by default; `accel_mock.vm` says what they are.
ZAPS = ("fast", "all", "all-yield", "slot")

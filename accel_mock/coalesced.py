"""Coalesced port writes: queued in a ring instead of leaving the guest for each, as KVM_CAP_COALESCED_PIO does.

The ring is shared by all vCPUs of a VM. vCPUs move `last`, the reader moves `first`, and one place stays empty,
so that equal indices mean an empty ring.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable

from accel.address import AddressRange
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.listener import PRIORITY_ACCEL, MemoryListener, Update

#: Places in the ring, as many as a page of KVM's entries holds; one less fit.
RING_SIZE = 170

_Entry = tuple[int, int, bool, bytes]
_EMPTY: _Entry = (0, 1, True, b"")


class MockCoalescedRing:
    """The ring and the ports that use it; see `accel.backend.CoalescedRing`.

    Attributes:
        indices: `first` and `last`; each has one writer at a time.
        zones: Ports whose writes are queued; immutable, replaced under the big lock.
    """

    def __init__(self) -> None:
        self.indices = memoryview(array("I", (0, 0)))
        self.zones: tuple[AddressRange, ...] = ()
        # Guarded by _lock, which vCPUs take one at a time to add an entry; a leaf.
        self._entries = [_EMPTY] * RING_SIZE
        self._lock = threading.Lock()

    def push(self, port: int, data: bytes) -> bool:
        """Queue a write; return False where its ports are not coalesced or the ring is full. Any vCPU."""
        end = port + len(data)
        if not any(zone.start <= port and end <= zone.end for zone in self.zones):
            return False
        with self._lock:
            first, last = self.indices
            following = (last + 1) % RING_SIZE
            if following == first:
                return False
            self._entries[last] = (port, len(data), True, data)
            self.indices[1] = following
            return True

    def pop(self) -> Iterable[_Entry]:
        """Take out all entries, oldest first; under the ring's lock."""
        first, last = self.indices
        if first <= last:
            found = self._entries[first:last]
        else:
            found = self._entries[first:] + self._entries[:last]
        self.indices[0] = last
        return found


class _ZonesUpdate(Update):
    """Replaces the coalesced ports. Needs no hold: no mapping changes."""

    def __init__(self, ring: MockCoalescedRing, zones: tuple[AddressRange, ...]) -> None:
        self._ring = ring
        self._before = ring.zones
        self._after = zones

    def apply(self) -> None:
        self._ring.zones = self._after

    def undo(self) -> None:
        self._ring.zones = self._before


class MockIoListener(MemoryListener):
    """Keeps the ring's ports. State is guarded by the big lock."""

    name = "mock-io"
    priority = PRIORITY_ACCEL

    def __init__(self, ring: MockCoalescedRing) -> None:
        self._ring = ring
        self._zones = ring.zones

    def begin(self) -> None:
        """Start from what is in force."""
        self._zones = self._ring.zones

    def coalesced_io_del(self, section: MemoryRegionSection, window: AddressRange) -> None:
        """Note ports whose writes are no longer queued."""
        self._zones = tuple(zone for zone in self._zones if zone != window)

    def coalesced_io_add(self, section: MemoryRegionSection, window: AddressRange) -> None:
        """Note ports whose writes are queued from now on."""
        self._zones = (*self._zones, window)

    def prepare(self) -> Update | None:
        """Return the change to make, if there is one."""
        return _ZonesUpdate(self._ring, self._zones) if self._zones != self._ring.zones else None

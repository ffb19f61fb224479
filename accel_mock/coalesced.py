"""Coalesced writes: queued in a ring instead of leaving the guest for each, as KVM_REGISTER_COALESCED_MMIO does.

The ring is shared by all vCPUs of a VM, for memory and ports. vCPUs move `last`, the reader moves `first`, and one
place stays empty, so that equal indices mean an empty ring.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable

from accel.address import AddressRange
from accel.errors import BackendError
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.ioeventfd import IoEventFd
from accel.memory.listener import PRIORITY_ACCEL, MemoryListener, Update, UpdateInTurn
from accel_mock.doorbells import DoorbellsUpdate, MockDoorbells
from accel_mock.faults import Faults

#: Places in the ring, as many as a page of KVM's entries holds; one less fit.
RING_SIZE = 170

_Entry = tuple[int, int, bool, bytes]
_EMPTY: _Entry = (0, 1, True, b"")


class MockCoalescedRing:
    """The ring and the zones that use it; see `accel.backend.CoalescedRing`.

    Args:
        faults: Which changes of zones fail.

    Attributes:
        faults: As given.
        indices: `first` and `last`; each has one writer at a time.
        zones: The ranges whose writes are queued, of the ports (True) and of the memory (False). Each set is
            immutable and replaced under the big lock.
    """

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = Faults() if faults is None else faults
        self.indices = memoryview(array("I", (0, 0)))
        self.zones: dict[bool, frozenset[AddressRange]] = {True: frozenset(), False: frozenset()}
        # Guarded by _lock, which vCPUs take one at a time to add an entry; a leaf.
        self._entries = [_EMPTY] * RING_SIZE
        self._lock = threading.Lock()

    def push(self, address: int, data: bytes, *, is_port: bool) -> bool:
        """Queue a write; return False where it is not inside one zone or the ring is full. Any vCPU."""
        end = address + len(data)
        if not any(zone.start <= address and end <= zone.end for zone in self.zones[is_port]):
            return False
        with self._lock:
            first, last = self.indices
            following = (last + 1) % RING_SIZE
            if following == first:
                return False
            self._entries[last] = (address, len(data), is_port, data)
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
    """Replaces the zones of one space. Needs no hold: a write beside them exits, and the view says what it does."""

    def __init__(self, ring: MockCoalescedRing, is_port: bool, zones: frozenset[AddressRange]) -> None:
        self._zones = ring.zones
        self._faults = ring.faults
        self._is_port = is_port
        self._before = ring.zones[is_port]
        self._after = zones

    def apply(self) -> None:
        error = self._faults.errno_of("coalesce")
        if error:
            raise BackendError("mock coalescing call", error, f"{len(self._after)} ranges")
        self._zones[self._is_port] = self._after

    def undo(self) -> None:
        self._zones[self._is_port] = self._before


class MockIoListener(MemoryListener):
    """Keeps the zones and the doorbells of one space. State is guarded by the big lock.

    Args:
        ring: The VM's.
        doorbells: The VM's.
        is_port: Whether the space is the ports; otherwise the memory.
    """

    name = "mock-io"
    priority = PRIORITY_ACCEL

    def __init__(self, ring: MockCoalescedRing, doorbells: MockDoorbells, *, is_port: bool) -> None:
        self._ring = ring
        self._doorbells = doorbells
        self._is_port = is_port
        self._zones = ring.zones[is_port]
        self._bells = doorbells.registered[is_port]

    def begin(self) -> None:
        """Start from what is in force."""
        self._zones = self._ring.zones[self._is_port]
        self._bells = self._doorbells.registered[self._is_port]

    def coalesced_io_del(self, section: MemoryRegionSection, window: AddressRange) -> None:
        """Note a range whose writes are no longer queued."""
        self._zones -= {window}

    def coalesced_io_add(self, section: MemoryRegionSection, window: AddressRange) -> None:
        """Note a range whose writes are queued from now on."""
        self._zones |= {window}

    def eventfd_del(self, section: MemoryRegionSection, eventfd: IoEventFd) -> None:
        """Note a doorbell that rings no longer."""
        self._bells -= {eventfd}

    def eventfd_add(self, section: MemoryRegionSection, eventfd: IoEventFd) -> None:
        """Note a doorbell that rings from now on."""
        self._bells |= {eventfd}

    def prepare(self) -> Update | None:
        """Return the change to make, if there is one."""
        zones = bells = None
        if self._zones != self._ring.zones[self._is_port]:
            zones = _ZonesUpdate(self._ring, self._is_port, self._zones)
        if self._bells != self._doorbells.registered[self._is_port]:
            bells = DoorbellsUpdate(self._doorbells, self._is_port, self._bells)
        return UpdateInTurn(zones, bells) if zones and bells else zones or bells

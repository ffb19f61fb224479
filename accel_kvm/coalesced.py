"""Coalesced port writes: the kernel queues them in a ring instead of leaving the guest for each.

Source: KVM_REGISTER_COALESCED_MMIO and KVM_CAP_COALESCED_PIO in KVM api.rst. The ring is one page, shared by all
vCPUs of a VM; the kernel moves `last`, the reader moves `first`.
"""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Iterator

from accel.address import AddressRange
from accel.errors import BackendError
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.listener import PRIORITY_ACCEL, MemoryListener, Update
from accel_kvm import abi
from accel_kvm.ioctl import ioctl

_HEADER = 8
_ENTRY = struct.Struct("<QII8s")
_CAPACITY = abi.KVM_COALESCED_MMIO_MAX


class KvmCoalescedRing:
    """The ring; see `accel.backend.CoalescedRing`.

    Args:
        vcpu_fd: Any vCPU of the VM; the mapping is the ring's own and outlives it.
        page_number: Where the ring lies in what a vCPU shares (KVM_CAP_COALESCED_MMIO).
    """

    def __init__(self, vcpu_fd: int, page_number: int) -> None:
        self._map = mmap.mmap(vcpu_fd, mmap.PAGESIZE, offset=page_number * mmap.PAGESIZE)
        self._page = memoryview(self._map)
        self.indices = self._page[:_HEADER].cast("I")

    def pop(self) -> Iterator[tuple[int, int, bool, bytes]]:
        """Take out all entries, oldest first."""
        first, last = self.indices
        found = []
        while first != last:
            # Up to the end of the ring in one piece; what is beyond it starts at the front again.
            stop = last if last > first else _CAPACITY
            found.append(bytes(self._page[_offset(first) : _offset(stop)]))
            first = stop % _CAPACITY
        # The entries are copied, so the kernel may have their places. x86 keeps these accesses in order.
        self.indices[0] = first
        for chunk in found:
            yield from _entries(chunk)

    def close(self) -> None:
        """Unmap the page."""
        self.indices.release()
        self._page.release()
        self._map.close()


def _offset(index: int) -> int:
    return _HEADER + index * _ENTRY.size


def _entries(chunk: bytes) -> Iterator[tuple[int, int, bool, bytes]]:
    words = memoryview(chunk).cast("Q")
    addresses, shapes = words[0::3].tolist(), words[1::3].tolist()
    count = len(addresses)
    one_byte_port = 1 | 1 << 32
    if shapes.count(one_byte_port) == count and addresses.count(addresses[0]) == count:
        # A console's text: every entry is one byte to the same port.
        yield addresses[0], 1, True, chunk[16 :: _ENTRY.size]
        return
    for address, size, is_port, data in _ENTRY.iter_unpack(chunk):
        yield address, size, bool(is_port), data[:size]


#: A region's name and the ports of it whose writes are queued.
_Zone = tuple[str, AddressRange]


class _ZoneUpdate(Update):
    """Unregisters zones, then registers zones; undone in reverse. Needs no hold: no mapping changes."""

    def __init__(self, vm_fd: int, deletes: list[_Zone], adds: list[_Zone]) -> None:
        self._vm_fd = vm_fd
        self._steps = [(zone, False) for zone in deletes] + [(zone, True) for zone in adds]
        self._done: list[tuple[_Zone, bool]] = []

    def apply(self) -> None:
        for zone, register in self._steps:
            self._call(zone, register)
            self._done.append((zone, register))

    def undo(self) -> None:
        while self._done:
            zone, register = self._done.pop()
            self._call(zone, not register)

    def _call(self, named: _Zone, register: bool) -> None:
        region, window = named
        name = "KVM_REGISTER_COALESCED_MMIO" if register else "KVM_UNREGISTER_COALESCED_MMIO"
        request = abi.KVM_REGISTER_COALESCED_MMIO if register else abi.KVM_UNREGISTER_COALESCED_MMIO
        zone = abi.KvmCoalescedMmioZone(window.start, window.size, 1)
        try:
            ioctl(self._vm_fd, request, zone, name)
        except BackendError as error:
            detail = f"ports {window} of region '{region}'"
            raise BackendError(name, error.errno or errno.EIO, detail) from error


class KvmIoListener(MemoryListener):
    """Registers the coalesced ranges of the port space with KVM. State is guarded by the big lock.

    Args:
        vm_fd: The VM.
    """

    name = "kvm-io"
    priority = PRIORITY_ACCEL

    def __init__(self, vm_fd: int) -> None:
        self._vm_fd = vm_fd
        self._deletes: list[_Zone] = []
        self._adds: list[_Zone] = []

    def coalesced_io_del(self, section: MemoryRegionSection, window: AddressRange) -> None:
        """Note a range whose writes are no longer queued."""
        self._deletes.append((section.region.name, window))

    def coalesced_io_add(self, section: MemoryRegionSection, window: AddressRange) -> None:
        """Note a range whose writes are queued from now on."""
        self._adds.append((section.region.name, window))

    def prepare(self) -> Update | None:
        """Return the calls to make."""
        return _ZoneUpdate(self._vm_fd, self._deletes, self._adds) if self._deletes or self._adds else None

    def commit(self) -> None:
        """Forget the ranges."""
        self._deletes, self._adds = [], []

    def abort(self) -> None:
        """Forget the ranges."""
        self._deletes, self._adds = [], []

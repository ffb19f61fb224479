"""Coalesced writes: the kernel queues them in a ring instead of leaving the guest for each.

Source: KVM_REGISTER_COALESCED_MMIO, KVM_CAP_COALESCED_MMIO and KVM_CAP_COALESCED_PIO in KVM api.rst. The ring is one
page, shared by all vCPUs of a VM, for memory and ports; the kernel moves `last`, the reader moves `first`.
"""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Iterator

from attrs import field, frozen

from accel.address import AddressRange
from accel.errors import BackendError
from accel_kvm import abi
from accel_kvm.ioctl import ioctl, map_shared

_HEADER = 8
_ENTRY = struct.Struct("<QII8s")
_CAPACITY = abi.KVM_COALESCED_MMIO_MAX
#: Most bytes of one zone: KVM keeps the size in a signed int. It queues no write that lies in two zones.
_MAX_ZONE = 1 << 30


class KvmCoalescedRing:
    """The ring; see `accel.backend.CoalescedRing`.

    Args:
        vcpu_fd: Any vCPU of the VM; the mapping is the ring's own and outlives it.
        page_number: Where the ring lies in what a vCPU shares (KVM_CAP_COALESCED_MMIO).

    Raises:
        BackendError: It could not be mapped.
    """

    def __init__(self, vcpu_fd: int, page_number: int) -> None:
        self._map = map_shared(vcpu_fd, mmap.PAGESIZE, page_number, "mmap of the coalesced ring")
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
    count, shape = len(addresses), shapes[0]
    if shape & 0xFFFF_FFFF == 1 and shapes.count(shape) == count and addresses.count(addresses[0]) == count:
        # A console's text: every entry is one byte to the same place.
        yield addresses[0], 1, bool(shape >> 32), chunk[16 :: _ENTRY.size]
        return
    for address, size, is_port, data in _ENTRY.iter_unpack(chunk):
        yield address, size, bool(is_port), data[:size]


@frozen
class Zone:
    """A range of one space whose writes are queued.

    Attributes:
        window: Its addresses.
        is_port: Whether that space is the ports.
        region: Name of its region, for messages.
    """

    window: AddressRange
    is_port: bool
    region: str = field(eq=False)

    def set(self, vm_fd: int, on: bool) -> None:
        """Have KVM queue writes to it, or not any more. Raises BackendError."""
        name = "KVM_REGISTER_COALESCED_MMIO" if on else "KVM_UNREGISTER_COALESCED_MMIO"
        request = abi.KVM_REGISTER_COALESCED_MMIO if on else abi.KVM_UNREGISTER_COALESCED_MMIO
        zone = abi.KvmCoalescedMmioZone(self.window.start, self.window.size, int(self.is_port))
        try:
            ioctl(vm_fd, request, zone, name)
        except BackendError as error:
            detail = f"{'ports' if self.is_port else 'addresses'} {self.window} of region '{self.region}'"
            raise BackendError(name, error.errno or errno.EIO, detail) from error


def zones_in(window: AddressRange, is_port: bool, region: str) -> list[Zone]:
    """Return the zones that cover `window`, ascending: one, but for huge ones."""
    starts = range(window.start, window.end, _MAX_ZONE)
    return [Zone(AddressRange(at, min(at + _MAX_ZONE, window.end)), is_port, region) for at in starts]

"""The listener for guest writes that KVM answers by itself: it queues them, or rings an eventfd.

Source: KVM_REGISTER_COALESCED_MMIO and KVM_IOEVENTFD in KVM api.rst. What KVM does not offer is left to the core:
such writes exit, and it calls the handler or rings in their place. So these calls need no hold either: a write that
falls between two of them exits, and the view in force says what it does.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from accel.address import AddressRange
from accel.backend import Capability
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.ioeventfd import SIZES, IoEventFd
from accel.memory.listener import PRIORITY_ACCEL, MemoryListener, Update
from accel_kvm.coalesced import Zone, zones_in
from accel_kvm.ioeventfd import Doorbell


class KvmIoListener(MemoryListener):
    """Registers queued ranges and doorbells of one space with KVM. State is guarded by the big lock.

    Args:
        vm_fd: The VM.
        is_port: Whether the space is the ports; otherwise the memory.
        capabilities: What the VM offers.
        any_size: Whether it offers doorbells for writes of any size (KVM_CAP_IOEVENTFD_ANY_LENGTH); counts for ports.
    """

    name = "kvm-io"
    priority = PRIORITY_ACCEL

    def __init__(self, vm_fd: int, *, is_port: bool, capabilities: frozenset[Capability], any_size: bool) -> None:
        self._vm_fd = vm_fd
        self._is_port = is_port
        self._capabilities = capabilities
        self._any_size = any_size
        # What goes and what comes in the transaction, in order; dicts for their keys.
        self._gone: dict[Zone | Doorbell, None] = {}
        self._come: dict[Zone | Doorbell, None] = {}

    def begin(self) -> None:
        """Start with empty lists."""
        self._gone.clear()
        self._come.clear()

    def coalesced_io_del(self, section: MemoryRegionSection, window: AddressRange) -> None:
        """Note a range whose writes are no longer queued."""
        self._gone |= dict.fromkeys(self._zones(section, window))

    def coalesced_io_add(self, section: MemoryRegionSection, window: AddressRange) -> None:
        """Note a range whose writes are queued from now on."""
        self._come |= dict.fromkeys(self._zones(section, window))

    def eventfd_del(self, section: MemoryRegionSection, eventfd: IoEventFd) -> None:
        """Note a doorbell that rings no longer."""
        self._gone |= dict.fromkeys(self._doorbells(section, eventfd))

    def eventfd_add(self, section: MemoryRegionSection, eventfd: IoEventFd) -> None:
        """Note a doorbell that rings from now on."""
        self._come |= dict.fromkeys(self._doorbells(section, eventfd))

    def prepare(self) -> Update | None:
        """Return the calls to make: none for what goes and comes again as it was, such as with a resized region."""
        gone = [one for one in self._gone if one not in self._come]
        come = [one for one in self._come if one not in self._gone]
        return _IoUpdate(self._vm_fd, gone, come) if gone or come else None

    def commit(self) -> None:
        """Let go of what was noted."""
        self.begin()

    def abort(self) -> None:
        """Let go of what was noted."""
        self.begin()

    def _zones(self, section: MemoryRegionSection, window: AddressRange) -> Iterable[Zone]:
        needed = Capability.COALESCED_PIO if self._is_port else Capability.COALESCED_MMIO
        return zones_in(window, self._is_port, section.region.name) if needed in self._capabilities else ()

    def _doorbells(self, section: MemoryRegionSection, eventfd: IoEventFd) -> Iterable[Doorbell]:
        if Capability.IOEVENTFD not in self._capabilities:
            return []
        if eventfd.size:
            sizes: tuple[int, ...] = (eventfd.size,)
        elif self._is_port:
            sizes = SIZES[:1] if self._any_size else ()
        else:
            # In memory KVM's own "any size" takes reads for writes where the processor is Intel's: it rings, and skips
            # the instruction. A write of a size that is none of these, a part of one across pages, exits.
            sizes = SIZES[1:]
        return [Doorbell(attrs.evolve(eventfd, size=size), self._is_port, section.region.name) for size in sizes]


class _IoUpdate(Update):
    """Unregisters what goes, then registers what comes; undone in reverse."""

    def __init__(self, vm_fd: int, gone: Iterable[Zone | Doorbell], come: Iterable[Zone | Doorbell]) -> None:
        self._vm_fd = vm_fd
        self._steps = [(one, False) for one in gone] + [(one, True) for one in come]
        self._done: list[tuple[Zone | Doorbell, bool]] = []

    def apply(self) -> None:
        for one, on in self._steps:
            one.set(self._vm_fd, on)
            self._done.append((one, on))

    def undo(self) -> None:
        while self._done:
            one, on = self._done.pop()
            one.set(self._vm_fd, not on)

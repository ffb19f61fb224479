"""What a device is: regions in the port and memory spaces, address spaces of its own, `reset`, `flush` and `close`.

A device declares its regions and spaces; `Machine.attach` adds them in one transaction. Handlers run under the big
lock (or under the lock a region declares) on the vCPU thread that made the access, so they need no locking
of their own against other accesses; whatever another thread touches (an input queue) must be safe by itself.

A device that reads or writes guest memory itself (DMA) does so through an address space: `DeviceHost.memory`, or one
of its own, whose root shows aliases of that, moved as its guest programs it. It writes with ``as_guest``, and bounds
what the guest asks for before it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from attrs import frozen

from accel.memory.address_space import AddressSpace
from accel.memory.region import MemoryRegion
from accel.options import Option


class DeviceHost(Protocol):
    """What a machine offers its devices."""

    #: The guest-physical address space; aliases of its `root` show a device some of it.
    memory: AddressSpace
    #: Number of vCPUs.
    cpus: int
    #: Bytes of RAM below 3 GiB, and bytes of RAM from 4 GiB up.
    ram_below_4g: int
    ram_above_4g: int

    def request_exit(self, status: int) -> None:
        """End the run with the guest's exit status; returns at once."""

    def irq_line(self, number: int) -> Callable[[bool], None] | None:
        """Return a function that sets an interrupt line's level, from any thread; None without irqchip."""


class Device:
    """Base of devices; every method has a default that does nothing.

    Attributes:
        name: For messages, such as ``serial0``, and the first part of the names of its address spaces.
    """

    name: str = "device"

    def connect(self, host: DeviceHost) -> None:
        """Take what is needed from the machine; called once, before the regions are added."""

    def io_regions(self) -> Iterable[tuple[int, MemoryRegion]]:
        """Return `(port, region)` for each region in the port space."""
        return ()

    def memory_regions(self) -> Iterable[tuple[int, MemoryRegion]]:
        """Return `(address, region)` for each region in the memory space."""
        return ()

    def address_spaces(self) -> Iterable[tuple[str, MemoryRegion]]:
        """Return `(name, root)` for each address space of its own, such as what it sees as a bus master."""
        return ()

    def connect_spaces(self, spaces: Mapping[str, AddressSpace]) -> None:
        """Take the spaces that were made of `address_spaces`, by the names given there; called once, if there are any.

        They show something once all of the device is in force, which is before the first access to it. The machine
        closes them after the device.
        """

    def reset(self) -> None:
        """Go to the power-on state."""

    def flush(self, wait: float = 0.0) -> None:
        """Hand on what is buffered; called every few milliseconds by a thread of the machine, and at the end.

        Without `wait` it hands on what is taken at once; with it, it waits up to so many seconds for the
        rest, and raises TimeoutError if some is left. Needs no lock.
        """

    def close(self) -> None:
        """Release everything; called once."""


@frozen
class DeviceType:
    """A kind of device, as registered through ``accel_register_devices``.

    Attributes:
        name: As in ``[[device]] type = "…"``.
        summary: One line for `accelctl list devices`.
        options: The options it declares.
        create: Makes a device from a value for each declared option.
        console: Whether it has an `output` (a binary file, settable) that is the guest's console.
    """

    name: str
    summary: str
    options: tuple[Option, ...]
    create: Callable[[dict[str, object]], Device]
    console: bool = False

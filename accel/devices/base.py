"""What a device is: regions in the port and memory spaces, `reset`, `flush` and `close`.

A device declares its regions; `Machine.attach` adds them in one transaction. Handlers run under the big
lock (or under the lock a region declares) on the vCPU thread that made the access, so they need no locking
of their own against other accesses; whatever another thread touches (an input queue) must be safe by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from attrs import frozen

from accel.memory.region import MemoryRegion
from accel.options import Option


class DeviceHost(Protocol):
    """What a machine offers its devices."""

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
        name: For messages, such as ``serial0``.
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

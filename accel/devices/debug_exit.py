"""A port by which the guest ends the run with a status of its own.

Layer: devices. Upstream: QEMU's ``isa-debug-exit`` (its documented behaviour): writing `v` ends the run with
``(v << 1) | 1``, so that a guest's exit never looks like the 0 of a clean shutdown.
"""

from __future__ import annotations

from collections.abc import Iterable

from accel.devices.base import Device, DeviceHost
from accel.devices.ports import check_port
from accel.memory.region import MemoryRegion

DEFAULT_PORT = 0xF4
SIZE = 4


class DebugExit(Device):
    """Four ports; a write to any of them ends the run.

    Args:
        port: The first one.
        name: For messages; by default after the port.

    Raises:
        AddressError: The ports do not fit into the port space.
    """

    def __init__(self, port: int = DEFAULT_PORT, name: str | None = None) -> None:
        self.port = check_port("debug-exit", port, SIZE)
        self.name = name if name is not None else f"debug-exit@{port:#x}"
        self._host: DeviceHost | None = None

    def connect(self, host: DeviceHost) -> None:
        """Take the machine whose run is to end."""
        self._host = host

    def io_regions(self) -> Iterable[tuple[int, MemoryRegion]]:
        """Return the ports."""
        return ((self.port, MemoryRegion.mmio(self.name, SIZE, read=self.read, write=self.write)),)

    def read(self, offset: int, size: int) -> int:
        """Return 0."""
        return 0

    def write(self, offset: int, value: int, size: int) -> None:
        """End the run with status ``(value << 1) | 1``; `value` is what was written, 1, 2 or 4 bytes wide."""
        if self._host is not None:
            self._host.request_exit(value << 1 | 1)

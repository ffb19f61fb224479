"""A function as a device: what `Machine.port` makes of a decorated function."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from accel.devices.base import Device
from accel.devices.ports import check_port
from accel.errors import UsageError
from accel.memory.region import MemoryRegion


class PortAccess:
    """One access to a port that a function handles.

    Attributes:
        port: The port.
        size: Bytes: 1, 2 or 4.
        is_write: Whether the guest writes.
        value: What the guest writes, little-endian; after a read's `reply`, what it gets.
    """

    __slots__ = ("is_write", "port", "size", "value")

    def __init__(self, port: int, size: int, *, is_write: bool, value: int) -> None:
        self.port = port
        self.size = size
        self.is_write = is_write
        self.value = value

    @property
    def data(self) -> bytes:
        """The value as bytes, as the guest wrote them."""
        return self.value.to_bytes(self.size, "little")

    def reply(self, value: int) -> None:
        """Answer a read; without an answer the guest gets all ones. Raises UsageError for a write."""
        if self.is_write:
            raise UsageError(f"a write to port {self.port:#x} takes no reply")
        self.value = value


class PortHandler(Device):
    """Calls `handler` for each access to `count` ports from `port` on, under the big lock.

    Raises:
        AddressError: The ports do not fit into the port space.
    """

    def __init__(self, port: int, count: int, handler: Callable[[PortAccess], object]) -> None:
        self.port = check_port("port handler", port, count)
        self.name = getattr(handler, "__name__", "handler")
        self._count = count
        self._handler = handler

    def io_regions(self) -> Iterable[tuple[int, MemoryRegion]]:
        """Return the ports as one region."""
        region = MemoryRegion.mmio(self.name, self._count, read=self._read, write=self._write)
        return ((self.port, region),)

    def _read(self, offset: int, size: int) -> int:
        access = PortAccess(self.port + offset, size, is_write=False, value=(1 << 8 * size) - 1)
        self._handler(access)
        return access.value

    def _write(self, offset: int, value: int, size: int) -> None:
        self._handler(PortAccess(self.port + offset, size, is_write=True, value=value))

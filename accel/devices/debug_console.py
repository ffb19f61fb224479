"""A port that prints each byte written to it, as firmware and small kernels use for their logs.

Layer: devices. Upstream: QEMU's ``isa-debugcon`` (its documented behaviour): a write is a console byte, a
read gives 0xE9, by which firmware tells that the port is there. Port 0xE9 is the usual one; SeaBIOS logs to
0x402.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

from accel.devices.base import Device
from accel.devices.console import ConsoleOutput
from accel.devices.ports import check_port
from accel.memory.region import MemoryRegion

DEFAULT_PORT = 0xE9
SIZE = 1
_PRESENT = 0xE9


class DebugConsole(Device):
    """A write-only console on one port.

    Its writes may be coalesced: an accelerator that can queues them without leaving the guest, and they
    arrive a few milliseconds later, in order, a run at a time. They touch nothing but the console's buffer,
    so they need no lock.

    Args:
        port: Its port.
        output: Binary file for what the guest prints; None keeps only the capture of `console`.
        name: For messages; by default after the port.

    Attributes:
        console: The buffer and the capture behind `output`.

    Raises:
        AddressError: There is no such port.
    """

    def __init__(self, port: int = DEFAULT_PORT, output: BinaryIO | None = None, name: str | None = None) -> None:
        self.port = check_port("debug-console", port, SIZE)
        self.name = name if name is not None else f"debug-console@{port:#x}"
        self.console = ConsoleOutput(output)

    @property
    def output(self) -> BinaryIO | None:
        """The binary file that takes what the guest prints."""
        return self.console.sink

    @output.setter
    def output(self, output: BinaryIO | None) -> None:
        self.console.sink = output

    def io_regions(self) -> Iterable[tuple[int, MemoryRegion]]:
        """Return the one port, as a region whose writes may be coalesced."""
        region = MemoryRegion.mmio(
            self.name, SIZE, read=self.read, write=self.write, coalesced=True, write_run=self.write_run
        )
        return ((self.port, region),)

    def read(self, offset: int, size: int) -> int:
        """Return the value that says that the console is there."""
        return _PRESENT

    def write(self, offset: int, value: int, size: int) -> None:
        """Print the low byte; there is no port for more. Raises as `ConsoleOutput.relieve`."""
        console = self.console
        console.put(value & 0xFF)
        if len(console.pending) > console.bound:
            console.relieve()

    def write_run(self, offset: int, data: bytes) -> None:
        """Print a run of one-byte writes. Raises as `ConsoleOutput.relieve`."""
        self.console.write(data)

    def flush(self, wait: float = 0.0) -> None:
        """Hand on what is pending; see `ConsoleOutput.flush`."""
        self.console.flush(wait)

    def close(self) -> None:
        """Hand on what the sink takes at once; the sink stays open."""
        self.console.flush()

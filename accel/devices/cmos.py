"""The PC's CMOS memory and real-time clock: how much RAM there is, how many vCPUs, what time it is.

Layer: devices. Upstream: the Motorola MC146818 data sheet for the clock; the register numbers that PC
firmware reads for RAM and processors, as SeaBIOS documents them (its ``src/hw/rtc.h``).

The clock follows the host's and cannot be set: writes to its registers and to the status registers are
ignored. They always say: no update in progress, BCD, 24 hours, no interrupt, battery good. All else is
plain memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from accel.devices.base import Device, DeviceHost
from accel.devices.ports import check_port
from accel.memory.mmio import AccessSizes, MmioOps
from accel.memory.region import MemoryRegion

DEFAULT_PORT = 0x70
SIZE = 2
_KIB = 1 << 10
_MIB = 1 << 20
_UNIT = 64 * _KIB

_STATUS = {0x0A: 0x26, 0x0B: 0x02, 0x0C: 0x00, 0x0D: 0x80}
_TIME: dict[int, Callable[[datetime], int]] = {
    0x00: lambda now: now.second,
    0x02: lambda now: now.minute,
    0x04: lambda now: now.hour,
    0x06: lambda now: now.isoweekday() % 7 + 1,  # Sunday is 1
    0x07: lambda now: now.day,
    0x08: lambda now: now.month,
    0x09: lambda now: now.year % 100,
    0x32: lambda now: now.year // 100,
}
_READ_ONLY = _STATUS.keys() | _TIME.keys()


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Cmos(Device):
    """Index port and data port; 128 registers.

    Args:
        port: The index port; the data port is the next one.
        clock: Returns the time of day that the guest sees; by default UTC.
        name: For messages; by default after the port.

    Raises:
        AddressError: The ports do not fit into the port space.
    """

    def __init__(
        self, port: int = DEFAULT_PORT, clock: Callable[[], datetime] = _utc_now, name: str | None = None
    ) -> None:
        self.port = check_port("cmos", port, SIZE)
        self.name = name if name is not None else f"cmos@{port:#x}"
        self._clock = clock
        self._initial = bytes(128)
        self.reset()

    def connect(self, host: DeviceHost) -> None:
        """Take the sizes of the machine's RAM and the number of its vCPUs."""
        self._initial = _describe(host.ram_below_4g, host.ram_above_4g, host.cpus)
        self.reset()

    def io_regions(self) -> Iterable[tuple[int, MemoryRegion]]:
        """Return the two ports; an access to both is one to each."""
        ops = MmioOps(self.read, self.write, implemented=AccessSizes(1, 1))
        return ((self.port, MemoryRegion.mmio(self.name, SIZE, ops=ops)),)

    def reset(self) -> None:
        """Go back to index 0 and to the registers as they were when the machine was made."""
        self._index = 0
        self._registers = bytearray(self._initial)

    def read(self, offset: int, size: int) -> int:
        """Return the register at the index from the data port; the index port reads all ones."""
        return self._data() if offset == 1 else 0xFF

    def write(self, offset: int, value: int, size: int) -> None:
        """Set the index (bit 7, which masks NMI on a PC, is ignored) or the register at the index."""
        if offset == 0:
            self._index = value & 0x7F
        elif self._index not in _READ_ONLY:
            self._registers[self._index] = value

    def _data(self) -> int:
        index = self._index
        if index in _TIME:
            value = _TIME[index](self._clock())
            return value // 10 << 4 | value % 10
        return _STATUS.get(index, self._registers[index])


def _describe(ram_below_4g: int, ram_above_4g: int, cpus: int) -> bytes:
    """Return the 128 registers that describe a machine; sizes that do not fit are capped."""
    registers = bytearray(128)

    def put(value: int, *indices: int) -> None:
        capped = min(max(value, 0), (1 << 8 * len(indices)) - 1)
        for shift, index in enumerate(indices):
            registers[index] = capped >> 8 * shift & 0xFF

    extended = (ram_below_4g - _MIB) // _KIB
    put(min(ram_below_4g // _KIB, 640), 0x15, 0x16)
    put(extended, 0x17, 0x18)
    put(extended, 0x30, 0x31)
    put((ram_below_4g - 16 * _MIB) // _UNIT, 0x34, 0x35)
    put(ram_above_4g // _UNIT, 0x5B, 0x5C, 0x5D)
    put(cpus - 1, 0x5F)
    return bytes(registers)

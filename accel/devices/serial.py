"""A serial port, the guest's console line in both directions: a 16550A between files and an interrupt line.

Layer: devices; what the registers do is `accel.devices.uart`.

Locks and threads. Handlers run on vCPU threads under the big lock, `feed` and `input_done` on any thread.
`_lock` is a leaf that guards the registers where both meet. It is not held while bytes go out, which may
wait for the sink, nor while the interrupt line is set, which may wait at the VM's gate; `_settle_line` says
how levels arrive in order all the same. The interrupt is not gated by OUT2, so that drivers that forget to
set it work too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import BinaryIO

from accel.devices.base import Device, DeviceHost
from accel.devices.console import ConsoleOutput
from accel.devices.ports import check_port
from accel.devices.uart import LSR, LSR_OE, RBR_THR, Uart
from accel.errors import ClosedError, StateError
from accel.memory.mmio import AccessSizes, MmioOps
from accel.memory.region import MemoryRegion

DEFAULT_PORT = 0x3F8
DEFAULT_IRQ = 4
SIZE = 8


class Serial(Device):
    """A 16550A serial port.

    Args:
        port: The first of its eight ports.
        output: Binary file for what the guest sends; None keeps only the capture of `console`.
        irq: Its interrupt line, used if the machine has an interrupt controller.
        name: For messages; by default after the port.
        input_limit: Bytes that `feed` queues at most.

    Attributes:
        console: The buffer and the capture behind `output`.

    Raises:
        AddressError: The ports do not fit into the port space.
    """

    def __init__(
        self,
        port: int = DEFAULT_PORT,
        output: BinaryIO | None = None,
        irq: int = DEFAULT_IRQ,
        name: str | None = None,
        *,
        input_limit: int = 64 << 10,
    ) -> None:
        self.port = check_port("serial", port, SIZE)
        self.irq = irq
        self.name = name if name is not None else f"serial@{port:#x}"
        self.console = ConsoleOutput(output)
        self._put = self.console.put
        self._pending = self.console.pending
        self._bound = self.console.bound
        # `Uart.plain_thr` as of the last register write; after a reset, the next write brings it up to date.
        self._plain_thr = RBR_THR
        self._input_limit = input_limit
        self._line: Callable[[bool], None] | None = None
        # Guards all below.
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._uart = Uart()
        self._closed = False
        # What the interrupt line was last set to (None where that is not known), and whether a thread is setting it.
        self._level: bool | None = False
        self._settling = False

    @property
    def output(self) -> BinaryIO | None:
        """The binary file that takes what the guest sends."""
        return self.console.sink

    @output.setter
    def output(self, output: BinaryIO | None) -> None:
        self.console.sink = output

    # the machine's side

    def connect(self, host: DeviceHost) -> None:
        """Take the interrupt line, if there is an interrupt controller."""
        self._line = host.irq_line(self.irq)

    def io_regions(self) -> Iterable[tuple[int, MemoryRegion]]:
        """Return the eight ports; a wider access is a run of bytes."""
        ops = MmioOps(self.read, self.write, implemented=AccessSizes(1, 1))
        return ((self.port, MemoryRegion.mmio(self.name, SIZE, ops=ops)),)

    def reset(self) -> None:
        """Set the registers as at power-on; queued input and pending output stay."""
        with self._lock:
            self._uart.reset()
        self._settle_line()

    def flush(self, wait: float = 0.0) -> None:
        """Hand on what is pending; see `ConsoleOutput.flush`."""
        self.console.flush(wait)

    def close(self) -> None:
        """Wake up whoever waits in `feed`, and hand on what the sink takes at once; the sink stays open."""
        with self._lock:
            self._closed = True
            self._room.notify_all()
        self.console.flush()

    # input from the host

    def feed(self, data: bytes, timeout: float | None = 0.0) -> int:
        """Queue `data` as input for the guest and return how many bytes were taken; any thread.

        Takes what fits into `input_limit`; where nothing fits, waits up to `timeout` seconds (None: for ever)
        until the guest has read some. What is not taken is the caller's to feed again: nothing is lost. The
        bytes that one call takes stay together.

        Raises:
            StateError: `input_done` was called, before or while it waits.
            ClosedError: The device is closed, before or while it waits.
        """
        with self._lock:
            self._check_input()
            queue = self._uart.input
            if data and len(queue) >= self._input_limit:
                self._room.wait_for(self._may_feed, timeout)
                self._check_input()
            taken = min(len(data), self._input_limit - len(queue))
            queue += data[:taken]
            self._uart.arrive()
        self._settle_line()
        return taken

    def input_done(self) -> None:
        """Say that no more input comes; the carrier (DCD) drops once the guest has read all. Any thread."""
        with self._lock:
            self._uart.carrier = False
            self._uart.update_modem()
            self._room.notify_all()
        self._settle_line()

    def _check_input(self) -> None:
        if self._closed:
            raise ClosedError(f"device '{self.name}' is closed; it takes no more input")
        if not self._uart.carrier:
            raise StateError(f"device '{self.name}' takes no more input: input_done was called")

    def _may_feed(self) -> bool:
        return len(self._uart.input) < self._input_limit or self._closed or not self._uart.carrier

    # the guest's side

    def write(self, offset: int, value: int, size: int) -> None:
        """Write a register, which is a byte. Raises as `ConsoleOutput.relieve`."""
        # A byte that only goes out comes first: the guest exits for each.
        if offset == self._plain_thr:
            self._put(value)
            if len(self._pending) > self._bound:
                self.console.relieve()
            return
        with self._lock:
            sent = self._uart.set(offset, value)
            self._plain_thr = self._uart.plain_thr
        self._settle_line()
        if sent is not None:
            self.console.write(bytes((sent,)))

    def read(self, offset: int, size: int) -> int:
        """Read a register, which is a byte."""
        # Drivers poll LSR before each byte; reading it changes something only where it holds an error.
        if offset == LSR:
            status = self._uart.lsr
            if not status & LSR_OE:
                return status
        with self._lock:
            value = self._uart.get(offset)
            if offset == RBR_THR:
                self._room.notify_all()
        self._settle_line()
        return value

    def _settle_line(self) -> None:
        """Bring the interrupt line to the level that the registers ask for; without `_lock`.

        One thread at a time sets the line and looks again after each change, so the last level set is always
        the last one asked for; a thread that finds another at it leaves the rest to that one. A level that
        fell and rose in between still makes an edge, since `Uart.dipped` remembers it.
        """
        line = self._line
        if line is None:
            return
        with self._lock:
            if self._settling:
                return
            self._settling = True
        try:
            while (step := self._next_step()) is not None:
                line(step)
        except BaseException:
            # An interrupt (Ctrl-C) may have come before the line was set, or after it.
            with self._lock:
                self._level = None
                self._settling = False
            raise

    def _next_step(self) -> bool | None:
        """Return the level to set now, or None where the line is right, which ends the settling."""
        with self._lock:
            uart = self._uart
            wanted = uart.interrupting
            if wanted == self._level and not (wanted and uart.dipped):
                self._settling = False
                return None
            # Still up after a dip, or perhaps: down now, and up again in the next step.
            self._level = level = wanted and self._level is False
            uart.dipped = False
            return level

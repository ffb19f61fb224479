"""The registers of a 16550A, as a state machine without threads, ports or files.

Layer: devices, below `serial`, which guards it with a lock. Upstream: National Semiconductor PC16550D data
sheet; register numbers as in ``linux/serial_reg.h``.

What a driver looks at to tell a 16550A from its kin (interrupt enable bits, loopback, FIFO bits, FIFO
depth, scratch register) is as the data sheet says. There is no timing: the transmitter is always empty
again at once, and a receive FIFO below its trigger level times out at once. In between, the interrupt falls
as it would on the hardware (`Uart.dipped`).

The line comes with perfect flow control. `input` holds what the other end has to say; the FIFO shows the
first bytes of it and fills up again when it has been read. Thus input never overruns, and a byte is gone
only once the guest has read it: what resets the FIFO does not lose what the guest has not seen. Loopback
overruns as the hardware does, and sets OE.
"""

from __future__ import annotations

FIFO_DEPTH = 16

# Registers; the first two are the divisor while LCR_DLAB is set.
RBR_THR, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)

IER_RX, IER_TX, IER_LINE, IER_MODEM = 0x01, 0x02, 0x04, 0x08
IIR_NONE, IIR_MODEM, IIR_TX, IIR_RX, IIR_LINE, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
IIR_FIFO = 0xC0
FCR_ENABLE, FCR_CLEAR_RX = 0x01, 0x02
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_DR, LSR_OE, LSR_THRE, LSR_TEMT = 0x01, 0x02, 0x20, 0x40
MSR_DCTS, MSR_DDSR, MSR_TERI, MSR_DDCD = 0x01, 0x02, 0x04, 0x08
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80

_TRIGGERS = (1, 4, 8, 14)
_DEFAULT_DIVISOR = 12  # 9600 baud
_LOOPED_LINES = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))


class Uart:
    """The registers and the receive FIFO. Not thread safe.

    Attributes:
        input: Bytes from the other end that the guest has not read; call `arrive` after adding some.
        carrier: Whether the other end is there; call `update_modem` after changing it.
        lsr: The line status register, always up to date.
        plain_thr: The register whose write only sends a byte and changes nothing here: `RBR_THR`, or -1 in
            loopback, with DLAB, or with the transmit interrupt enabled.
        dipped: Whether `interrupting` was False at some moment since the user of this last cleared it, so
            that an edge-triggered controller must see the line fall and rise, even if it is up again.
    """

    def __init__(self) -> None:
        self.input = bytearray()
        self.carrier = True
        self.reset()

    def reset(self) -> None:
        """Set the registers as at power-on; `input` and `carrier` belong to the other end and stay."""
        self._divisor = _DEFAULT_DIVISOR
        self._ier = 0
        self._fifo = False
        self._trigger = 1
        self._lcr = 0
        self._mcr = 0
        self._scr = 0
        self.lsr = LSR_THRE | LSR_TEMT
        # The FIFO: bytes that came back in loopback, then as many of the first bytes of `input`.
        self._looped = bytearray()
        self._shown = 0
        # Whether "transmitter empty" is still to be told, and whether a FIFO below its trigger has timed out.
        self._tx_empty = False
        self._timed_out = True
        self.plain_thr = RBR_THR
        self._msr = self._modem_lines()
        self.dipped = True
        self.arrive()

    # registers

    def get(self, register: int) -> int:
        """Read a register (0..7)."""
        value = self._get(register)
        self._watch()
        return value

    def _get(self, register: int) -> int:
        divisor = self._lcr & LCR_DLAB
        if register == RBR_THR:
            return self._divisor & 0xFF if divisor else self._receive()
        if register == IER:
            return self._divisor >> 8 if divisor else self._ier
        if register == IIR_FCR:
            cause = self._cause()
            if cause == IIR_TX:
                self._tx_empty = False
            return cause | (IIR_FIFO if self._fifo else 0)
        if register == LCR:
            return self._lcr
        if register == MCR:
            return self._mcr
        if register == LSR:
            status = self.lsr
            self.lsr &= ~LSR_OE
            return status
        if register == MSR:
            status = self._msr
            self._msr &= 0xF0
            return status
        return self._scr

    def set(self, register: int, value: int) -> int | None:
        """Write a register (0..7); return the byte that goes out on the line, if one does."""
        divisor = self._lcr & LCR_DLAB
        sent = None
        if register == RBR_THR and divisor:
            self._divisor = self._divisor & 0xFF00 | value
        elif register == RBR_THR:
            sent = self._send(value)
        elif register == IER and divisor:
            self._divisor = self._divisor & 0x00FF | value << 8
        elif register == IER:
            self._set_ier(value & 0x0F)
        elif register == IIR_FCR:
            self._set_fcr(value)
        elif register == LCR:
            self._lcr = value
        elif register == MCR:
            self._set_mcr(value & 0x1F)
        elif register == SCR:
            self._scr = value
        special = self._lcr & LCR_DLAB or self._mcr & MCR_LOOP or self._ier & IER_TX
        self.plain_thr = -1 if special else RBR_THR
        self._watch()
        return sent

    def _set_ier(self, value: int) -> None:
        if value & ~self._ier & IER_TX:
            # The transmitter is empty, so enabling its interrupt raises it.
            self._tx_empty = True
        self._ier = value

    def _set_fcr(self, value: int) -> None:
        fifo = bool(value & FCR_ENABLE)
        if fifo != self._fifo or (fifo and value & FCR_CLEAR_RX):
            self._looped.clear()
            self._shown = 0
        self._fifo = fifo
        # The other bits are programmed only while the FIFOs are on.
        self._trigger = _TRIGGERS[value >> 6] if fifo else 1
        self.arrive()

    def _set_mcr(self, value: int) -> None:
        if value & MCR_LOOP:
            # The receiver is off the line; what it showed of `input` is shown again afterwards.
            self._shown = 0
        self._mcr = value
        self.arrive()
        self.update_modem()

    # data

    def _send(self, value: int) -> int | None:
        # Full for a moment, then empty again.
        self._tx_empty = False
        self._watch()
        self._tx_empty = True
        if not self._mcr & MCR_LOOP:
            return value
        if len(self._looped) < self._depth:
            self._looped.append(value)
        else:
            self.lsr |= LSR_OE
            if not self._fifo:
                # Without FIFO, the new byte takes the place of the one that was not read.
                self._looped[:] = (value,)
        self._update_ready()
        return None

    def _receive(self) -> int:
        """Take the oldest byte out of the FIFO; 0 if there is none."""
        if self._looped:
            value = self._looped[0]
            del self._looped[:1]
        elif self._shown:
            value = self.input[0]
            del self.input[:1]
            self._shown -= 1
        else:
            return 0
        # What is below the trigger now has to time out first.
        self._timed_out = False
        self._watch()
        self._timed_out = True
        if not self._available:
            self.arrive()
            self.update_modem()
        self._update_ready()
        return value

    def arrive(self) -> None:
        """Let the FIFO show as much of `input` as it holds."""
        if not self._mcr & MCR_LOOP:
            self._shown = min(self._depth - len(self._looped), len(self.input))
        self._update_ready()

    @property
    def _depth(self) -> int:
        return FIFO_DEPTH if self._fifo else 1

    @property
    def _available(self) -> int:
        return len(self._looped) + self._shown

    def _update_ready(self) -> None:
        self.lsr = self.lsr & ~LSR_DR | (LSR_DR if self._available else 0)

    # modem lines and interrupts

    def _modem_lines(self) -> int:
        if self._mcr & MCR_LOOP:
            return sum(seen for wired, seen in _LOOPED_LINES if self._mcr & wired)
        there = self.carrier or self.input
        return MSR_CTS | MSR_DSR | (MSR_DCD if there else 0)

    def update_modem(self) -> None:
        """Bring the modem status up to date and note what has changed since the guest last read it."""
        lines = self._modem_lines()
        old = self._msr & 0xF0
        changed = lines ^ old
        deltas = changed >> 4 & (MSR_DCTS | MSR_DDSR | MSR_DDCD)
        if old & ~lines & MSR_RI:
            deltas |= MSR_TERI
        self._msr = lines | self._msr & 0x0F | deltas

    def _cause(self) -> int:
        """Return the interrupt of highest priority that is enabled and pending."""
        if self._ier & IER_LINE and self.lsr & LSR_OE:
            return IIR_LINE
        if self._ier & IER_RX and self._available:
            if self._available >= self._trigger:
                return IIR_RX
            if self._timed_out:
                return IIR_TIMEOUT
        if self._ier & IER_TX and self._tx_empty:
            return IIR_TX
        if self._ier & IER_MODEM and self._msr & 0x0F:
            return IIR_MODEM
        return IIR_NONE

    def _watch(self) -> None:
        if not self.interrupting:
            self.dipped = True

    @property
    def interrupting(self) -> bool:
        """Whether the interrupt line is to be high; never in loopback, where a PC cuts it off."""
        return self._cause() != IIR_NONE and not self._mcr & MCR_LOOP

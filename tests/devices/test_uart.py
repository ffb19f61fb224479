"""The 16550A's registers, against the data sheet."""

from __future__ import annotations

import pytest

from accel.devices import uart
from accel.devices.uart import (
    FCR_CLEAR_RX,
    FCR_ENABLE,
    IER,
    IER_LINE,
    IER_MODEM,
    IER_RX,
    IER_TX,
    IIR_FCR,
    IIR_FIFO,
    IIR_LINE,
    IIR_MODEM,
    IIR_NONE,
    IIR_RX,
    IIR_TIMEOUT,
    IIR_TX,
    LCR,
    LCR_DLAB,
    LSR,
    LSR_DR,
    LSR_OE,
    LSR_TEMT,
    LSR_THRE,
    MCR,
    MCR_DTR,
    MCR_LOOP,
    MCR_OUT1,
    MCR_OUT2,
    MCR_RTS,
    MSR,
    MSR_CTS,
    MSR_DCD,
    MSR_DCTS,
    MSR_DDCD,
    MSR_DDSR,
    MSR_DSR,
    MSR_RI,
    MSR_TERI,
    RBR_THR,
    SCR,
    Uart,
)

EMPTY = LSR_THRE | LSR_TEMT
ALL_LINES = MSR_CTS | MSR_DSR | MSR_DCD


def with_input(data: bytes, *, fcr: int = FCR_ENABLE) -> Uart:
    device = Uart()
    device.set(IIR_FCR, fcr)
    device.input += data
    device.arrive()
    return device


def test_uart_power_on_registers_are_quiet() -> None:
    device = Uart()
    assert [device.get(register) for register in range(8)] == [0, 0, IIR_NONE, 0, 0, EMPTY, ALL_LINES, 0]


@pytest.mark.parametrize(("register", "stays"), [(IER, 0x0F), (LCR, 0xFF), (MCR, 0x1F), (SCR, 0xFF)])
def test_uart_plain_register_keeps_its_bits(register: int, stays: int) -> None:
    device = Uart()
    for value in (0xFF, 0x5A, 0x00, 0xA5):
        device.set(LCR, 0)
        device.set(register, value)
        assert device.get(register) == value & stays


@pytest.mark.parametrize("register", [LSR, MSR])
def test_uart_status_register_ignores_writes(register: int) -> None:
    device = Uart()
    before = device.get(register)
    device.set(register, before ^ 0xFF)
    assert device.get(register) == before


def test_uart_dlab_shows_divisor_in_place_of_data_and_ier() -> None:
    device = with_input(b"x")
    device.set(IER, IER_LINE)
    device.set(LCR, LCR_DLAB | 3)
    assert device.set(RBR_THR, 0x34) is None
    device.set(IER, 0x12)
    assert (device.get(RBR_THR), device.get(IER)) == (0x34, 0x12)
    device.set(LCR, 3)
    assert (device.get(RBR_THR), device.get(IER)) == (ord("x"), IER_LINE)
    device.set(LCR, LCR_DLAB)
    assert (device.get(RBR_THR), device.get(IER)) == (0x34, 0x12)


def test_uart_written_byte_goes_out_and_leaves_transmitter_empty() -> None:
    device = Uart()
    assert device.set(RBR_THR, 0x41) == 0x41
    assert device.get(LSR) == EMPTY


def test_uart_without_input_reads_zero_and_not_ready() -> None:
    device = Uart()
    assert device.get(RBR_THR) == 0
    assert not device.get(LSR) & LSR_DR


@pytest.mark.parametrize("fcr", [0, FCR_ENABLE])
def test_uart_input_is_read_in_order_and_ready_until_the_last(fcr: int) -> None:
    data = bytes(range(40))
    device = with_input(data, fcr=fcr)
    got = bytearray()
    while device.get(LSR) & LSR_DR:
        got.append(device.get(RBR_THR))
    assert got == data
    assert not device.get(LSR) & LSR_OE


@pytest.mark.parametrize("fcr", [FCR_ENABLE | FCR_CLEAR_RX, 0, 0xC7])
def test_uart_fifo_reset_keeps_what_the_guest_has_not_read(fcr: int) -> None:
    device = with_input(b"abc")
    device.set(IIR_FCR, fcr)
    assert bytes(device.get(RBR_THR) for _ in range(3)) == b"abc"


def test_uart_reset_keeps_input_and_carrier_only() -> None:
    device = with_input(b"ab")
    device.carrier = False
    for register in (SCR, IER, MCR, LCR):
        device.set(register, 0xFF)
    device.reset()
    assert (device.get(SCR), device.get(IER), device.get(MCR), device.get(LCR)) == (0, 0, 0, 0)
    assert device.plain_thr == RBR_THR
    assert device.get(RBR_THR) == ord("a")
    assert device.get(MSR) == ALL_LINES
    assert device.get(RBR_THR) == ord("b")
    assert device.get(MSR) == MSR_CTS | MSR_DSR | MSR_DDCD


# interrupts


def test_uart_iir_shows_fifo_bits_only_while_enabled() -> None:
    device = Uart()
    device.set(IIR_FCR, FCR_ENABLE)
    assert device.get(IIR_FCR) == IIR_FIFO | IIR_NONE
    device.set(IIR_FCR, 0xC0)  # without the enable bit
    assert device.get(IIR_FCR) == IIR_NONE


@pytest.mark.parametrize(("bits", "level"), [(0x00, 1), (0x40, 4), (0x80, 8), (0xC0, 14)])
def test_uart_receive_interrupt_tells_trigger_from_timeout(bits: int, level: int) -> None:
    device = Uart()
    device.set(IIR_FCR, FCR_ENABLE | bits)
    device.set(IER, IER_RX)
    for count in range(1, 17):
        device.input += b"x"
        device.arrive()
        expected = IIR_RX if count >= level else IIR_TIMEOUT
        assert device.get(IIR_FCR) & 0x0F == expected
    for _ in range(16):
        device.get(RBR_THR)
    assert device.get(IIR_FCR) & 0x0F == IIR_NONE


def test_uart_trigger_without_fifo_is_one() -> None:
    device = with_input(b"x", fcr=0xC0)
    device.set(IER, IER_RX)
    assert device.get(IIR_FCR) == IIR_RX


def test_uart_transmit_interrupt_comes_with_enabling_and_goes_with_iir() -> None:
    device = Uart()
    device.set(IER, IER_TX)
    assert device.interrupting
    assert device.get(IIR_FCR) == IIR_TX
    assert device.get(IIR_FCR) == IIR_NONE
    device.set(IER, IER_TX)  # no change, so nothing new to tell
    assert device.get(IIR_FCR) == IIR_NONE
    device.set(RBR_THR, 0x41)
    assert device.get(IIR_FCR) == IIR_TX
    device.set(IER, 0)
    device.set(IER, IER_TX)
    assert device.get(IIR_FCR) == IIR_TX


def test_uart_iir_with_higher_cause_leaves_transmit_interrupt() -> None:
    device = with_input(b"x")
    device.set(IER, IER_RX | IER_TX)
    assert device.get(IIR_FCR) & 0x0F == IIR_RX
    device.get(RBR_THR)
    assert device.get(IIR_FCR) & 0x0F == IIR_TX


def test_uart_causes_come_in_order_of_priority_and_each_read_clears_its_own() -> None:
    device = Uart()
    device.set(MCR, MCR_LOOP)
    device.get(MSR)
    device.set(IER, IER_RX | IER_TX | IER_LINE | IER_MODEM)
    device.set(RBR_THR, 1)
    device.set(RBR_THR, 2)  # overruns: no FIFO
    device.set(MCR, MCR_LOOP | MCR_RTS)
    for cause, register in ((IIR_LINE, LSR), (IIR_RX, RBR_THR), (IIR_TX, IIR_FCR), (IIR_MODEM, MSR)):
        assert device._cause() == cause
        device.get(register)
    assert device.get(IIR_FCR) == IIR_NONE


@pytest.mark.parametrize("enabled", [IER_RX, IER_TX, IER_LINE, IER_MODEM])
def test_uart_cause_that_is_not_enabled_does_not_interrupt(enabled: int) -> None:
    causes = {IER_RX: IIR_RX, IER_TX: IIR_TX, IER_LINE: IIR_LINE, IER_MODEM: IIR_MODEM}
    device = Uart()
    device.set(MCR, MCR_LOOP | MCR_RTS)
    device.set(RBR_THR, 1)
    device.set(RBR_THR, 2)
    device.set(IER, enabled)
    assert device.get(IIR_FCR) == causes[enabled]


def test_uart_loopback_cuts_the_interrupt_off() -> None:
    device = Uart()
    device.set(IER, IER_TX)
    device.set(MCR, MCR_LOOP)
    assert not device.interrupting
    device.set(MCR, 0)
    assert device.interrupting


def test_uart_dipped_notes_each_fall_of_the_interrupt() -> None:
    device = Uart()
    device.set(IIR_FCR, FCR_ENABLE | 0x40)  # trigger 4
    device.set(IER, IER_RX)
    device.input += bytes(20)
    device.arrive()
    falls = []
    while device.interrupting:
        device.dipped = False
        device.get(RBR_THR)
        falls.append(device.dipped)
    # 16 in the FIFO, 4 more once it is empty: each read that leaves fewer than 4 has to time out first.
    assert falls == [False] * 12 + [True] * 8


def test_uart_read_that_clears_the_cause_makes_the_interrupt_dip() -> None:
    device = Uart()
    device.set(IER, IER_TX)
    device.dipped = False
    device.get(SCR)
    assert not device.dipped
    device.get(IIR_FCR)
    assert device.dipped


def test_uart_transmit_makes_the_interrupt_dip() -> None:
    device = Uart()
    device.set(IER, IER_TX)
    device.dipped = False
    device.set(RBR_THR, 0x41)
    assert device.interrupting
    assert device.dipped


# loopback and modem lines


def test_uart_loopback_bytes_come_back_and_do_not_go_out() -> None:
    device = with_input(b"line")
    device.set(MCR, MCR_LOOP)
    assert not device.get(LSR) & LSR_DR
    assert device.set(RBR_THR, 0x55) is None
    assert device.get(LSR) == EMPTY | LSR_DR
    assert device.get(RBR_THR) == 0x55
    device.set(MCR, 0)
    assert bytes(device.get(RBR_THR) for _ in range(4)) == b"line"


def test_uart_loopback_overrun_drops_the_newest_with_fifo_and_says_so_once() -> None:
    device = Uart()
    device.set(IIR_FCR, FCR_ENABLE)
    device.set(MCR, MCR_LOOP)
    for value in range(17):
        device.set(RBR_THR, value)
    assert device.get(LSR) & LSR_OE
    assert not device.get(LSR) & LSR_OE
    assert [device.get(RBR_THR) for _ in range(17)] == [*range(16), 0]


def test_uart_loopback_overrun_without_fifo_keeps_the_newest() -> None:
    device = Uart()
    device.set(MCR, MCR_LOOP)
    device.set(RBR_THR, 1)
    device.set(RBR_THR, 2)
    assert device.get(LSR) & LSR_OE
    assert device.get(RBR_THR) == 2


def test_uart_loopback_bytes_are_lost_by_fifo_reset() -> None:
    device = Uart()
    device.set(IIR_FCR, FCR_ENABLE)
    device.set(MCR, MCR_LOOP)
    device.set(RBR_THR, 1)
    device.set(IIR_FCR, FCR_ENABLE | FCR_CLEAR_RX)
    assert not device.get(LSR) & LSR_DR


@pytest.mark.parametrize(
    ("output", "seen"),
    [(MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD), (0x0F, 0xF0)],
)
def test_uart_loopback_wires_outputs_to_inputs(output: int, seen: int) -> None:
    device = Uart()
    device.set(MCR, MCR_LOOP | output)
    assert device.get(MSR) & 0xF0 == seen


def test_uart_msr_deltas_name_changes_until_read() -> None:
    device = Uart()
    device.set(MCR, MCR_LOOP)
    assert device.get(MSR) == MSR_DCTS | MSR_DDSR | MSR_DDCD
    assert device.get(MSR) == 0
    device.set(MCR, MCR_LOOP | MCR_OUT1)
    assert device.get(MSR) == MSR_RI  # only the end of a ring counts
    device.set(MCR, MCR_LOOP)
    assert device.get(MSR) == MSR_TERI


def test_uart_plain_thr_only_where_a_write_changes_nothing() -> None:
    device = Uart()
    for register, special in ((LCR, LCR_DLAB), (MCR, MCR_LOOP), (IER, IER_TX)):
        device.set(register, special)
        assert device.plain_thr == -1
        device.set(register, 0)
        assert device.plain_thr == uart.RBR_THR

"""What drivers do to find out which UART they have, done to ours: it is a 16550A and nothing more or less."""

from __future__ import annotations

import pytest

from accel.devices import Serial
from accel.devices.uart import (
    FCR_ENABLE,
    IER,
    IER_RX,
    IER_TX,
    IIR_FCR,
    IIR_NONE,
    LCR,
    LCR_DLAB,
    LSR,
    LSR_DR,
    LSR_TEMT,
    LSR_THRE,
    MCR,
    MCR_LOOP,
    MCR_OUT2,
    MCR_RTS,
    MSR,
    MSR_CTS,
    MSR_DCD,
    RBR_THR,
    SCR,
)

EFR = 2
LCR_EXTENDED = 0xBF
LCR_BANK_2 = 0xE0
FIFO_64 = 0x20
CLEAR_BOTH = 0x06


class Probe:
    """Byte access to a port, as a driver has it; puts LCR and MCR back as it found them."""

    def __init__(self) -> None:
        self.device = Serial()

    def get(self, register: int, lcr: int | None = None) -> int:
        if lcr is not None:
            self.put(LCR, lcr)
        return self.device.read(register, 1)

    def put(self, register: int, value: int, lcr: int | None = None) -> None:
        if lcr is not None:
            self.put(LCR, lcr)
        self.device.write(register, value, 1)


@pytest.fixture
def probe() -> Probe:
    return Probe()


def test_probe_scratch_register_holds_patterns(probe: Probe) -> None:
    for pattern in (0xA5, 0x5A, 0x00, 0xFF):
        probe.put(SCR, pattern)
        assert probe.get(SCR) == pattern


def test_probe_interrupt_enables_go_all_off_and_all_on(probe: Probe) -> None:
    saved = probe.get(IER)
    probe.put(IER, 0)
    off = probe.get(IER)
    probe.put(IER, 0x0F)
    on = probe.get(IER)
    probe.put(IER, saved)
    assert (off, on, probe.get(IER)) == (0, 0x0F, saved)


def test_probe_interrupt_enables_have_no_sleep_or_unit_enable_bits(probe: Probe) -> None:
    probe.put(IER, 0xF0)
    assert probe.get(IER) == 0


def test_probe_loopback_of_modem_lines(probe: Probe) -> None:
    saved = probe.get(MCR)
    probe.put(MCR, MCR_LOOP | MCR_OUT2 | MCR_RTS)
    assert probe.get(MSR) & 0xF0 == MSR_DCD | MSR_CTS
    probe.put(MCR, saved)
    assert probe.device.console.captured() == b""


def test_probe_fifo_bits_say_16550a(probe: Probe) -> None:
    probe.put(EFR, 0, lcr=LCR_EXTENDED)
    probe.put(IIR_FCR, FCR_ENABLE, lcr=0)
    assert probe.get(IIR_FCR) >> 6 == 3


@pytest.mark.parametrize("lcr", [LCR_DLAB, LCR_EXTENDED])
def test_probe_finds_no_enhanced_feature_register(probe: Probe, lcr: int) -> None:
    # Those who have one read it as zero here; ours still shows the FIFO bits of IIR.
    probe.put(IIR_FCR, FCR_ENABLE)
    assert probe.get(EFR, lcr=lcr) != 0


def test_probe_finds_no_second_bank(probe: Probe) -> None:
    probe.put(IIR_FCR, FCR_ENABLE)
    before = probe.get(EFR, lcr=LCR_BANK_2)
    probe.put(MCR, probe.get(MCR, lcr=0) ^ MCR_LOOP)
    after = probe.get(EFR, lcr=LCR_BANK_2)
    assert (before ^ after) & MCR_LOOP == 0


def test_probe_finds_no_64_byte_fifo_with_or_without_dlab(probe: Probe) -> None:
    for lcr in (0, LCR_DLAB):
        probe.put(IIR_FCR, FCR_ENABLE, lcr=0)
        probe.put(IIR_FCR, FCR_ENABLE | FIFO_64, lcr=lcr)
        assert probe.get(IIR_FCR) & 0xE0 == 0xC0


def test_probe_fifo_depth_is_16(probe: Probe) -> None:
    probe.put(IIR_FCR, FCR_ENABLE | CLEAR_BOTH, lcr=0)
    probe.put(MCR, MCR_LOOP)
    probe.put(RBR_THR, 1, lcr=LCR_DLAB)
    probe.put(IER, 0)
    probe.put(LCR, 3)
    for value in range(256):
        probe.put(RBR_THR, value)
    depth = 0
    while probe.get(LSR) & LSR_DR and depth < 256:
        assert probe.get(RBR_THR) == depth
        depth += 1
    assert depth == 16
    assert probe.device.console.captured() == b""


def test_probe_divisor_reads_back(probe: Probe) -> None:
    probe.put(RBR_THR, 0x01, lcr=LCR_DLAB)
    probe.put(IER, 0x00)
    assert (probe.get(RBR_THR), probe.get(IER)) == (0x01, 0x00)
    probe.put(LCR, 3)
    assert probe.get(IER) == 0


def test_startup_finds_quiet_device_after_clearing(probe: Probe) -> None:
    probe.put(IIR_FCR, FCR_ENABLE)
    probe.put(IIR_FCR, FCR_ENABLE | CLEAR_BOTH)
    probe.put(IIR_FCR, 0)
    for register in (LSR, RBR_THR, IIR_FCR, MSR):
        probe.get(register)
    assert probe.get(LSR) == LSR_THRE | LSR_TEMT
    assert probe.get(IIR_FCR) == IIR_NONE


def test_startup_sees_transmit_interrupt_each_time_it_is_enabled(probe: Probe) -> None:
    seen = []
    for _ in range(2):
        probe.put(IER, IER_TX)
        probe.put(IER, IER_TX)
        seen.append(probe.get(IIR_FCR))
        probe.put(IER, 0)
    assert not any(value & IIR_NONE for value in seen)


def test_startup_then_echo_by_polling(probe: Probe) -> None:
    probe.put(IER, 0)
    probe.put(RBR_THR, 1, lcr=LCR_DLAB)
    probe.put(IER, 0)
    probe.put(LCR, 3)
    # Input that waits already is not lost by what a driver does to start up.
    probe.device.feed(b"hello")
    probe.put(IIR_FCR, 0xC7)
    probe.put(MCR, 0x0B)
    probe.put(IER, IER_RX)
    while probe.get(LSR) & LSR_DR:
        byte = probe.get(RBR_THR)
        assert probe.get(LSR) & LSR_THRE
        probe.put(RBR_THR, byte)
    assert probe.device.console.captured() == b"hello"

"""The serial device's interrupt line: right level, an edge for each cause, whichever threads are at it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest
from attrs import define, field

from accel.devices import Serial
from accel.devices.uart import (
    FCR_ENABLE,
    IER,
    IER_MODEM,
    IER_RX,
    IER_TX,
    IIR_FCR,
    IIR_MODEM,
    IIR_RX,
    IIR_TIMEOUT,
    IIR_TX,
    LCR,
    LCR_DLAB,
    LSR,
    LSR_DR,
    MSR,
    MSR_DCD,
    MSR_DDCD,
    RBR_THR,
)


@define(eq=False)
class Host:
    """A machine with one interrupt line that an edge-triggered controller watches."""

    has_irqchip: bool = True
    cpus: int = 1
    ram_below_4g: int = 0
    ram_above_4g: int = 0
    asked: list[int] = field(factory=list)
    levels: list[bool] = field(factory=list)
    latched: threading.Event = field(factory=threading.Event)

    def request_exit(self, status: int) -> None:
        raise AssertionError("a serial port ends no run")

    def irq_line(self, number: int) -> Callable[[bool], None] | None:
        self.asked.append(number)
        return self.set_level if self.has_irqchip else None

    def set_level(self, level: bool) -> None:
        assert level != (self.levels[-1] if self.levels else False), "the line was set to what it was"
        self.levels.append(level)
        if level:
            self.latched.set()


def connected() -> tuple[Serial, Host]:
    device, host = Serial(), Host()
    device.connect(host)
    return device, host


def read_all(device: Serial) -> bytes:
    got = bytearray()
    while device.read(LSR, 1) & LSR_DR:
        got.append(device.read(RBR_THR, 1))
    return bytes(got)


def test_serial_reset_sets_registers_and_fast_path_back_and_lowers_the_line() -> None:
    device, host = connected()
    device.write(IER, IER_TX, 1)
    device.write(LCR, LCR_DLAB, 1)
    device.feed(b"kept")
    device.reset()
    assert host.levels == [True, False]
    device.write(RBR_THR, 0x41, 1)
    assert device.console.captured() == b"A"
    assert read_all(device) == b"kept"


def test_serial_feed_of_one_stream_keeps_its_order_while_the_guest_reads() -> None:
    device, host = connected()
    device.write(IIR_FCR, FCR_ENABLE | 0x80, 1)
    device.write(IER, IER_RX, 1)
    data = random.Random(1).randbytes(20_000)

    def pump() -> None:
        rest = data
        while rest:
            rest = rest[device.feed(rest[:7], timeout=None) :]

    thread = threading.Thread(target=pump)
    thread.start()
    got = bytearray()
    while len(got) < len(data):
        # A driver that trusts edges: it reads only when one came, and then until there is no more.
        assert host.latched.wait(timeout=60), "an interrupt was lost"
        host.latched.clear()
        got += read_all(device)
    thread.join()
    assert got == data


def test_serial_carrier_drops_after_the_last_byte_and_interrupts() -> None:
    device, host = connected()
    device.feed(b"ab")
    device.write(IER, IER_MODEM, 1)
    device.input_done()
    device.read(RBR_THR, 1)
    assert device.read(MSR, 1) & MSR_DCD
    assert host.levels == []
    device.read(RBR_THR, 1)
    assert host.levels == [True]
    assert device.read(IIR_FCR, 1) == IIR_MODEM
    assert device.read(MSR, 1) & (MSR_DCD | MSR_DDCD) == MSR_DDCD
    assert host.levels == [True, False]


def test_serial_without_irqchip_is_polled() -> None:
    device = Serial(irq=3)
    host = Host(has_irqchip=False)
    device.connect(host)
    device.write(IER, IER_RX | IER_TX, 1)
    device.feed(b"x")
    assert host.asked == [3]
    assert device.read(IIR_FCR, 1) == IIR_RX


def test_serial_feed_raises_the_line_and_reading_lowers_it() -> None:
    device, host = connected()
    device.write(IER, IER_RX, 1)
    device.feed(b"x")
    assert host.levels == [True]
    device.feed(b"y")
    assert host.levels == [True]
    assert device.read(IIR_FCR, 1) == IIR_RX
    device.read(RBR_THR, 1)
    assert host.levels == [True, False, True]  # the next byte is an edge of its own
    device.read(RBR_THR, 1)
    assert host.levels == [True, False, True, False]


def test_serial_transmit_interrupt_makes_an_edge_for_each_byte() -> None:
    device, host = connected()
    device.write(IER, IER_TX, 1)
    assert host.levels == [True]
    device.write(RBR_THR, 0x41, 1)
    assert host.levels == [True, False, True]
    assert device.read(IIR_FCR, 1) == IIR_TX
    assert host.levels == [True, False, True, False]
    device.write(RBR_THR, 0x42, 1)
    assert host.levels == [True, False, True, False, True]
    assert device.console.captured() == b"AB"


def test_serial_timeout_after_trigger_is_an_edge() -> None:
    device, host = connected()
    device.write(IIR_FCR, FCR_ENABLE | 0xC0, 1)
    device.write(IER, IER_RX, 1)
    device.feed(bytes(15))
    assert host.levels == [True]
    device.read(RBR_THR, 1)
    assert host.levels == [True]
    device.read(RBR_THR, 1)
    assert host.levels == [True, False, True]
    assert device.read(IIR_FCR, 1) & 0x0F == IIR_TIMEOUT


def test_serial_edge_that_arises_while_another_thread_sets_the_line_is_not_lost() -> None:
    device = Serial()
    levels: list[bool] = []
    inside, go = threading.Event(), threading.Event()

    class SlowHost(Host):
        def set_level(self, level: bool) -> None:
            levels.append(level)
            if len(levels) == 1:
                inside.set()
                go.wait()

    device.connect(SlowHost())
    device.write(IER, IER_RX, 1)
    feeder = threading.Thread(target=device.feed, args=(b"x",))
    feeder.start()
    inside.wait()
    # The guest does not wait for the feeder, which is still setting the line: it reads, and the line falls …
    assert device.read(RBR_THR, 1) == ord("x")
    # … and it rises again.
    assert device.feed(b"y") == 1
    assert levels == [True]
    go.set()
    feeder.join()
    assert levels == [True, False, True]


def test_serial_line_that_raises_surfaces_and_can_be_set_again() -> None:
    device = Serial()
    levels: list[bool] = []

    class Broken(Host):
        def set_level(self, level: bool) -> None:
            levels.append(level)
            if len(levels) == 1:
                raise OSError("no such line")

    device.connect(Broken())
    with pytest.raises(OSError, match="no such line"):
        device.write(IER, IER_TX, 1)
    device.read(IIR_FCR, 1)
    assert levels == [True, False]


def test_serial_lock_is_free_while_the_line_is_set() -> None:
    device = Serial()
    free: list[bool] = []

    class Asking(Host):
        def set_level(self, level: bool) -> None:
            free.append(not device._lock.locked())

    device.connect(Asking())
    device.write(IER, IER_TX, 1)
    device.read(IIR_FCR, 1)
    assert free == [True, True]


def test_serial_carrier_drops_at_once_where_nothing_waits_to_be_read() -> None:
    device, host = connected()
    device.write(IER, IER_MODEM, 1)
    device.input_done()
    assert host.levels == [True]
    assert device.read(MSR, 1) & (MSR_DCD | MSR_DDCD) == MSR_DDCD


@pytest.mark.parametrize("was_set", [False, True])
def test_serial_line_whose_setting_was_interrupted_makes_an_edge_the_next_time(was_set: bool) -> None:
    """Ctrl-C on a thread that feeds, before the line is set or after it."""
    levels: list[bool] = []
    interrupts = iter([True])

    def line(level: bool) -> None:
        interrupted = next(interrupts, False)
        if was_set or not interrupted:
            levels.append(level)
        if interrupted:
            raise KeyboardInterrupt

    class OneLine(Host):
        def irq_line(self, number: int) -> Callable[[bool], None] | None:
            return line

    serial = Serial()
    serial.connect(OneLine())
    with pytest.raises(KeyboardInterrupt):
        serial.write(IER, IER_TX, 1)
    assert levels == [True] * was_set
    serial.feed(b"a")
    assert levels == [True] * was_set + [False, True]

"""The serial device: ports, output, and input from other threads."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Callable

import pytest

from accel.devices import Serial
from accel.devices.uart import (
    IER,
    IER_TX,
    IIR_FCR,
    IIR_NONE,
    LCR,
    LCR_DLAB,
    LSR,
    LSR_DR,
    LSR_OE,
    MCR,
    MCR_LOOP,
    RBR_THR,
    SCR,
)
from accel.errors import AddressError, ClosedError, StateError


def read_all(device: Serial) -> bytes:
    got = bytearray()
    while device.read(LSR, 1) & LSR_DR:
        got.append(device.read(RBR_THR, 1))
    return bytes(got)


@pytest.mark.parametrize("port", [-1, 0xFFF9, 0x10000])
def test_serial_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(AddressError, match=r"'serial': port -?0x[0-9a-f]+ .* 0\.\.0xfff8"):
        Serial(port)


def test_serial_region_covers_eight_ports_and_reaches_the_registers() -> None:
    device = Serial(0x2F8, name="com2")
    ((port, region),) = device.io_regions()
    assert (port, region.size, region.name, region.coalesced) == (0x2F8, 8, "com2", ())
    assert region.ops is not None
    assert region.ops.read is not None
    assert region.ops.write is not None
    region.ops.write(SCR, 0x5A, 1)
    assert region.ops.read(SCR, 1) == 0x5A


def test_serial_name_says_the_port() -> None:
    assert Serial(0x2F8).name == "serial@0x2f8"


def test_serial_output_reaches_sink_on_flush_and_close() -> None:
    sink = io.BytesIO()
    device = Serial(output=sink)
    device.write(RBR_THR, 0x41, 1)
    assert sink.getvalue() == b""
    device.flush()
    assert sink.getvalue() == b"A"
    device.write(RBR_THR, 0x42, 1)
    device.close()
    assert sink.getvalue() == b"AB"
    assert not sink.closed


def test_serial_output_can_be_set_later() -> None:
    device, sink = Serial(), io.BytesIO()
    device.output = sink
    assert device.output is sink
    device.write(RBR_THR, 0x41, 1)
    device.flush()
    assert sink.getvalue() == b"A"


def test_serial_flush_with_wait_passes_it_on() -> None:
    class Never(io.BytesIO):
        def write(self, data: object, /) -> int:
            raise BlockingIOError

    device = Serial(output=Never())
    device.write(RBR_THR, 0x41, 1)
    device.flush()
    with pytest.raises(TimeoutError):
        device.flush(wait=0.002)


def test_serial_flood_hands_on_by_itself() -> None:
    sink = io.BytesIO()
    device = Serial(output=sink)
    for i in range(200_000):
        device.write(RBR_THR, i & 0xFF, 1)
    assert len(device.console.pending) <= device.console.bound
    device.flush()
    assert sink.getvalue() == bytes(i & 0xFF for i in range(200_000))


def test_serial_flood_with_transmit_interrupt_hands_on_by_itself() -> None:
    device = Serial(output=io.BytesIO())
    device.write(IER, IER_TX, 1)
    for _ in range(70_000):
        device.write(RBR_THR, 0x41, 1)
    assert len(device.console.pending) <= device.console.bound


@pytest.mark.parametrize(("register", "special"), [(LCR, LCR_DLAB), (MCR, MCR_LOOP)])
def test_serial_thr_in_special_state_prints_nothing(register: int, special: int) -> None:
    device = Serial()
    device.write(register, special, 1)
    device.write(RBR_THR, 0x41, 1)
    device.write(register, 0, 1)
    device.write(RBR_THR, 0x42, 1)
    assert device.console.captured() == b"B"


def test_serial_wide_access_is_a_run_of_bytes() -> None:
    device = Serial()
    ((_, region),) = device.io_regions()
    ops = region.ops
    assert ops is not None
    ops.store(RBR_THR, 0x0541, 2)
    assert device.console.captured() == b"A"
    assert device.read(IER, 1) == 0x05
    ops.store(MCR, 0, 4)
    assert ops.load(IIR_FCR, 2) == IIR_NONE
    assert ops.load(IER, 2) == IIR_NONE << 8 | 0x05


def test_serial_feed_takes_what_fits_and_says_how_much() -> None:
    device = Serial(input_limit=4)
    assert device.feed(b"abcdef") == 4
    assert device.feed(b"ef") == 0
    assert device.feed(b"ef", timeout=0.001) == 0
    assert device.feed(b"") == 0
    assert device.read(RBR_THR, 1) == ord("a")
    assert device.feed(b"ef") == 1
    assert read_all(device) == b"bcde"


def test_serial_feed_of_nothing_does_not_wait() -> None:
    device = Serial(input_limit=1)
    device.feed(b"x")
    assert device.feed(b"", timeout=None) == 0


def test_serial_feed_from_threads_delivers_each_in_order_under_back_pressure() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chooser = random.Random(seed)
    device = Serial(input_limit=32)
    lengths = [[chooser.randrange(1, 50) for _ in range(60)] for _ in range(3)]
    streams = [bytes([which]) * sum(lengths[which]) for which in range(3)]
    start = threading.Barrier(4)

    def pump(which: int) -> None:
        start.wait()
        data = streams[which]
        for length in lengths[which]:
            part, data = data[:length], data[length:]
            while part:
                part = part[device.feed(part, timeout=None) :]

    threads = [threading.Thread(target=pump, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()
    start.wait()
    got = bytearray()
    total = sum(map(len, streams))
    while len(got) < total:
        assert len(device._uart.input) <= 32
        got += read_all(device)
    for thread in threads:
        thread.join()
    assert not device.read(LSR, 1) & LSR_OE
    for which, stream in enumerate(streams):
        assert got.count(which) == len(stream)


def stop_waiting_feed(device: Serial, stop: Callable[[], None]) -> list[Exception]:
    """Let a thread wait in `feed`, call `stop`, and return what the thread raised."""
    errors: list[Exception] = []
    waiting = threading.Event()
    may_feed = device._may_feed

    def asked() -> bool:
        # Asked under the device's lock, which only waiting releases: whoever gets it next finds a waiter.
        waiting.set()
        return may_feed()

    device._may_feed = asked  # type: ignore[method-assign]

    def pump() -> None:
        try:
            device.feed(b"y", timeout=None)
        except StateError as error:
            errors.append(error)

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    waiting.wait()
    stop()
    thread.join(timeout=60)
    assert not thread.is_alive(), "feed was not woken"
    return errors


def test_serial_close_wakes_a_waiting_feed() -> None:
    device = Serial(input_limit=1)
    device.feed(b"x")
    assert [type(error) for error in stop_waiting_feed(device, device.close)] == [ClosedError]
    with pytest.raises(ClosedError, match=r"serial@0x3f8.* closed"):
        device.feed(b"z")


def test_serial_input_done_wakes_a_waiting_feed_and_refuses_more() -> None:
    device = Serial(input_limit=1)
    device.feed(b"x")
    assert [type(error) for error in stop_waiting_feed(device, device.input_done)] == [StateError]
    with pytest.raises(StateError, match="input_done was called"):
        device.feed(b"z")
    assert read_all(device) == b"x"


def test_serial_overrun_in_loopback_is_told_once() -> None:
    device = Serial()
    device.write(MCR, MCR_LOOP, 1)
    device.write(RBR_THR, 1, 1)
    device.write(RBR_THR, 2, 1)
    assert device.read(LSR, 1) & LSR_OE
    assert not device.read(LSR, 1) & LSR_OE

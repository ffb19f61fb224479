"""The debug console: one port, writes that may come one by one or in runs."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.address import AddressRange
from accel.devices import DebugConsole
from accel.errors import AddressError


@pytest.mark.parametrize("port", [-1, 0x10000])
def test_debug_console_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(AddressError, match=r"'debug-console'.*0\.\.0xffff"):
        DebugConsole(port)


def test_debug_console_region_is_coalesced_and_takes_runs() -> None:
    device = DebugConsole(0x402)
    ((port, region),) = device.io_regions()
    assert (port, region.size, region.name) == (0x402, 1, "debug-console@0x402")
    assert region.coalesced == (AddressRange(0, 1),)
    assert region.ops is not None
    assert region.ops.write is not None
    assert region.ops.write_run is not None
    region.ops.write(0, 0x41, 1)
    region.ops.write_run(0, b"BC")
    assert device.console.captured() == b"ABC"


def test_debug_console_reads_presence_value() -> None:
    for port in (0xE9, 0x402):
        ((_, region),) = DebugConsole(port).io_regions()
        assert region.ops is not None
        assert region.ops.read is not None
        assert region.ops.read(0, 1) == 0xE9


@given(st.lists(st.one_of(st.integers(0, 255), st.binary(max_size=20)), max_size=30))
def test_debug_console_bytes_and_runs_stay_in_order(writes: list[int | bytes]) -> None:
    sink = io.BytesIO()
    device = DebugConsole(output=sink)
    expected = b""
    for write in writes:
        if isinstance(write, int):
            device.write(0, write, 1)
            expected += bytes((write,))
        else:
            device.write_run(0, write)
            expected += write
    device.flush()
    assert sink.getvalue() == expected


def test_debug_console_wide_write_prints_its_low_byte() -> None:
    device = DebugConsole()
    device.write(0, 0x4241, 2)
    assert device.console.captured() == b"A"


@pytest.mark.parametrize("run", [1, 7])
def test_debug_console_flood_hands_on_by_itself(run: int) -> None:
    sink = io.BytesIO()
    device = DebugConsole(output=sink)
    for _ in range(70_000):
        if run == 1:
            device.write(0, 0x41, 1)
        else:
            device.write_run(0, b"A" * run)
    assert len(device.console.pending) <= device.console.bound
    device.close()
    assert sink.getvalue() == b"A" * run * 70_000
    assert not sink.closed


def test_debug_console_output_can_be_set_later() -> None:
    device, sink = DebugConsole(), io.BytesIO()
    device.output = sink
    assert device.output is sink
    device.write(0, 0x41, 1)
    device.flush()
    assert sink.getvalue() == b"A"

"""The debug exit port: a write ends the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import define, field

from accel.devices import DebugExit
from accel.errors import AddressError


@define(eq=False)
class Host:
    """A machine that notes how its run ends."""

    cpus: int = 1
    ram_below_4g: int = 0
    ram_above_4g: int = 0
    statuses: list[int] = field(factory=list)

    def request_exit(self, status: int) -> None:
        self.statuses.append(status)

    def irq_line(self, number: int) -> Callable[[bool], None] | None:
        return None


@pytest.mark.parametrize("port", [-1, 0xFFFD])
def test_debug_exit_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(AddressError, match=r"'debug-exit'.*0\.\.0xfffc"):
        DebugExit(port)


@pytest.mark.parametrize(
    ("value", "size", "status"), [(0, 1, 1), (1, 1, 3), (0xFF, 1, 511), (0x1234, 2, 0x2469), (1 << 31, 4, 2**32 + 1)]
)
def test_debug_exit_write_ends_the_run_with_odd_status(value: int, size: int, status: int) -> None:
    device, host = DebugExit(), Host()
    device.connect(host)
    ((port, region),) = device.io_regions()
    assert (port, region.size, region.name) == (0xF4, 4, "debug-exit@0xf4")
    assert region.ops is not None
    assert region.ops.write is not None
    region.ops.write(0, value, size)
    assert host.statuses == [status]


def test_debug_exit_read_gives_zero_and_ends_nothing() -> None:
    device, host = DebugExit(), Host()
    device.connect(host)
    assert device.read(0, 4) == 0
    assert host.statuses == []


def test_debug_exit_before_it_is_connected_does_nothing() -> None:
    device, host = DebugExit(), Host()
    device.write(0, 1, 1)
    device.connect(host)
    assert host.statuses == []

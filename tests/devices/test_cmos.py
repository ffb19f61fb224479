"""CMOS: what firmware reads about the machine, and the time of day."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from attrs import define

from accel.devices import Cmos
from accel.errors import AddressError
from accel.memory.mmio import MmioOps

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NOW = datetime(2031, 11, 9, 23, 58, 47, tzinfo=UTC)  # a Sunday


@define(eq=False)
class Host:
    """A machine of some size."""

    ram_below_4g: int = 64 * MIB
    ram_above_4g: int = 0
    cpus: int = 1

    def request_exit(self, status: int) -> None:
        raise AssertionError("CMOS ends no run")

    def irq_line(self, number: int) -> Callable[[bool], None] | None:
        raise AssertionError("CMOS has no interrupt")


def register(device: Cmos, index: int) -> int:
    device.write(0, index, 1)
    return device.read(1, 1)


def number(device: Cmos, *indices: int) -> int:
    """Return a little-endian number out of several registers."""
    return sum(register(device, index) << 8 * i for i, index in enumerate(indices))


def of(host: Host) -> Cmos:
    device = Cmos(clock=lambda: NOW)
    device.connect(host)
    return device


def ops_of(device: Cmos) -> MmioOps:
    ((_, region),) = device.io_regions()
    assert region.ops is not None
    return region.ops


@pytest.mark.parametrize("port", [-1, 0xFFFF])
def test_cmos_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(AddressError, match=r"'cmos'.*0\.\.0xfffe"):
        Cmos(port)


def test_cmos_region_covers_index_and_data() -> None:
    ((port, region),) = Cmos().io_regions()
    assert (port, region.size, region.name) == (0x70, 2, "cmos@0x70")
    assert region.ops is not None
    assert region.ops.read is not None
    assert region.ops.write is not None
    region.ops.write(0, 0x0D, 1)
    assert region.ops.read(1, 1) == 0x80


@pytest.mark.parametrize(
    ("below", "base", "extended", "above_16m"),
    [
        (512 * KIB, 512, 0, 0),
        (1 * MIB, 640, 0, 0),
        (4 * MIB, 640, 3 * 1024, 0),
        (16 * MIB, 640, 15 * 1024, 0),
        (64 * MIB, 640, 63 * 1024, 48 * 16),
        (65 * MIB, 640, 0xFFFF, 49 * 16),
        (3 * GIB, 640, 0xFFFF, (3 * 1024 - 16) * 16),
    ],
)
def test_cmos_describes_ram_below_4g(below: int, base: int, extended: int, above_16m: int) -> None:
    device = of(Host(ram_below_4g=below))
    assert number(device, 0x15, 0x16) == base
    assert number(device, 0x17, 0x18) == extended
    assert number(device, 0x30, 0x31) == extended
    assert number(device, 0x34, 0x35) == above_16m


@pytest.mark.parametrize(
    ("above", "units"), [(0, 0), (64 * KIB, 1), (5 * GIB, 5 << 14), (1 << 40, 0xFFFFFF), (1 << 39, 1 << 23)]
)
def test_cmos_describes_ram_above_4g(above: int, units: int) -> None:
    assert number(of(Host(ram_above_4g=above)), 0x5B, 0x5C, 0x5D) == units


@pytest.mark.parametrize(("cpus", "value"), [(1, 0), (4, 3), (256, 255), (1024, 255)])
def test_cmos_describes_number_of_cpus(cpus: int, value: int) -> None:
    assert register(of(Host(cpus=cpus)), 0x5F) == value


def test_cmos_clock_reads_in_bcd_and_24_hours() -> None:
    device = of(Host())
    read = [register(device, index) for index in (0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32)]
    assert read == [0x47, 0x58, 0x23, 1, 0x09, 0x11, 0x31, 0x20]


@pytest.mark.parametrize(("day", "expected"), [(9, 1), (10, 2), (15, 7)])
def test_cmos_weekday_counts_from_sunday(day: int, expected: int) -> None:
    device = Cmos(clock=lambda: NOW.replace(day=day))
    assert register(device, 0x06) == expected


def test_cmos_clock_goes_on() -> None:
    times = iter([NOW, NOW.replace(second=48)])
    device = Cmos(clock=lambda: next(times))
    assert (register(device, 0), register(device, 0)) == (0x47, 0x48)


def test_cmos_default_clock_is_utc() -> None:
    before = datetime.now(UTC)
    year = register(Cmos(), 0x09)
    assert year in {int(str(when.year % 100), 16) for when in (before, datetime.now(UTC))}


@pytest.mark.parametrize(("index", "value"), [(0x0A, 0x26), (0x0B, 0x02), (0x0C, 0x00), (0x0D, 0x80)])
def test_cmos_status_registers_are_fixed(index: int, value: int) -> None:
    device = of(Host())
    assert register(device, index) == value
    device.write(1, 0xFF, 1)
    assert device.read(1, 1) == value


def test_cmos_time_cannot_be_set() -> None:
    device = of(Host())
    register(device, 0x02)
    device.write(1, 0x11, 1)
    assert device.read(1, 1) == 0x58


def test_cmos_other_registers_are_memory_until_reset() -> None:
    device = of(Host())
    for index in (0x0F, 0x01, 0x38, 0x34, 0x7F):
        device.write(0, index, 1)
        device.write(1, index ^ 0xFF, 1)
    for index in (0x0F, 0x01, 0x38, 0x34, 0x7F):
        assert register(device, index) == index ^ 0xFF
    device.reset()
    assert register(device, 0x0F) == 0
    assert register(device, 0x7F) == 0
    assert number(device, 0x34, 0x35) == 48 * 16


def test_cmos_reset_goes_back_to_index_zero() -> None:
    device = of(Host())
    device.write(0, 0x0D, 1)
    device.reset()
    assert device.read(1, 1) == 0x47


def test_cmos_nmi_bit_of_index_is_ignored() -> None:
    assert register(of(Host()), 0x80 | 0x0D) == 0x80


def test_cmos_index_port_reads_all_ones() -> None:
    device = of(Host())
    device.write(0, 0x0D, 1)
    assert device.read(0, 1) == 0xFF
    assert ops_of(device).load(0, 2) == 0x80FF


def test_cmos_wide_write_sets_index_then_data() -> None:
    device = of(Host())
    ops_of(device).store(0, 0xAB0F, 2)
    assert register(device, 0x0F) == 0xAB

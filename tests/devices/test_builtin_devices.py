"""The built-in devices as they are registered: names, options, what is made of them."""

from __future__ import annotations

import io

import pytest

from accel.devices import Cmos, DebugConsole, DebugExit, Device, Serial
from accel.devices.base import DeviceType
from accel.devices.builtin import BUILTIN_DEVICES
from accel.errors import OptionError
from accel.options import parse_options

BY_NAME = {kind.name: kind for kind in BUILTIN_DEVICES}


def make(kind: DeviceType, **given: object) -> Device:
    return kind.create(parse_options(kind.name, kind.options, given))


@pytest.mark.parametrize(
    ("name", "cls", "port", "console"),
    [
        ("serial", Serial, 0x3F8, True),
        ("debug-console", DebugConsole, 0xE9, True),
        ("debug-exit", DebugExit, 0xF4, False),
        ("cmos", Cmos, 0x70, False),
    ],
)
def test_builtin_device_with_defaults_answers_at_its_usual_port(
    name: str, cls: type[Device], port: int, console: bool
) -> None:
    device = make(BY_NAME[name])
    assert type(device) is cls
    assert [at for at, _ in device.io_regions()] == [port]
    assert BY_NAME[name].console is console


def test_builtin_devices_are_these() -> None:
    assert list(BY_NAME) == ["serial", "debug-console", "debug-exit", "cmos"]


@pytest.mark.parametrize("kind", BUILTIN_DEVICES, ids=lambda kind: kind.name)
def test_builtin_device_takes_highest_port_that_its_option_allows(kind: DeviceType) -> None:
    (option,) = (option for option in kind.options if option.name == "port")
    assert option.maximum is not None
    device = make(kind, port=option.maximum)
    ((port, region),) = device.io_regions()
    assert port + region.size == 0x10000
    with pytest.raises(OptionError, match=r"port.*at most"):
        make(kind, port=option.maximum + 1)


def test_builtin_serial_takes_irq() -> None:
    device = make(BY_NAME["serial"], irq="3", port="0x2f8")
    assert isinstance(device, Serial)
    assert (device.irq, device.port) == (3, 0x2F8)
    with pytest.raises(OptionError, match="irq"):
        make(BY_NAME["serial"], irq=24)


@pytest.mark.parametrize("kind", [kind for kind in BUILTIN_DEVICES if kind.console], ids=lambda kind: kind.name)
def test_builtin_console_has_settable_output(kind: DeviceType) -> None:
    device, sink = make(kind), io.BytesIO()
    assert isinstance(device, Serial | DebugConsole)
    device.output = sink
    device.write(0, 0x41, 1)
    device.flush()
    assert sink.getvalue() == b"A"

"""The devices that come with the core, as they are registered for workload files and the command line."""

from __future__ import annotations

from typing import cast

from accel.devices import cmos, debug_console, debug_exit, serial
from accel.devices.base import DeviceType
from accel.devices.cmos import Cmos
from accel.devices.debug_console import DebugConsole
from accel.devices.debug_exit import DebugExit
from accel.devices.ports import PORT_SPACE_SIZE
from accel.devices.serial import Serial
from accel.options import Option

_LAST_IRQ = 23  # pins of the I/O APIC


def _port(default: int, size: int) -> Option:
    return Option("port", "int", default, "first port it answers at", minimum=0, maximum=PORT_SPACE_SIZE - size)


def _int(options: dict[str, object], name: str) -> int:
    return cast(int, options[name])


BUILTIN_DEVICES: tuple[DeviceType, ...] = (
    DeviceType(
        "serial",
        "16550A serial port: the guest's console, output and input",
        (
            _port(serial.DEFAULT_PORT, serial.SIZE),
            Option(
                "irq",
                "int",
                serial.DEFAULT_IRQ,
                "interrupt line, where the machine has an interrupt controller",
                minimum=0,
                maximum=_LAST_IRQ,
            ),
        ),
        lambda options: Serial(_int(options, "port"), irq=_int(options, "irq")),
        console=True,
    ),
    DeviceType(
        "debug-console",
        "port that prints each byte written to it, and reads 0xe9; firmware logs to 0x402",
        (_port(debug_console.DEFAULT_PORT, debug_console.SIZE),),
        lambda options: DebugConsole(_int(options, "port")),
        console=True,
    ),
    DeviceType(
        "debug-exit",
        "port that ends the run: writing v gives exit status (v << 1) | 1",
        (_port(debug_exit.DEFAULT_PORT, debug_exit.SIZE),),
        lambda options: DebugExit(_int(options, "port")),
    ),
    DeviceType(
        "cmos",
        "CMOS memory and clock: tells firmware RAM size, number of vCPUs and the time",
        (_port(cmos.DEFAULT_PORT, cmos.SIZE),),
        lambda options: Cmos(_int(options, "port")),
    ),
)

"""Devices of a machine; see `accel.devices.base` for what a device is."""

from accel.devices.base import Device, DeviceHost, DeviceType
from accel.devices.cmos import Cmos
from accel.devices.console import ConsoleOutput
from accel.devices.debug_console import DebugConsole
from accel.devices.debug_exit import DebugExit
from accel.devices.serial import Serial

__all__ = [
    "Cmos",
    "ConsoleOutput",
    "DebugConsole",
    "DebugExit",
    "Device",
    "DeviceHost",
    "DeviceType",
    "Serial",
]

"""accel: guest memory that changes atomically under running vCPUs, on accelerators that are plugins.

The names below are the public API. They are imported when first used, so that importing `accel` costs next to
nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accel import devices as devices
    from accel import errors as errors
    from accel import program as program
    from accel.address import AddressRange as AddressRange
    from accel.arch.x86 import BootMode as BootMode
    from accel.arch.x86 import X86State as X86State
    from accel.backend import MEMORY_OPTIONS as MEMORY_OPTIONS
    from accel.backend import Accelerator as Accelerator
    from accel.backend import Availability as Availability
    from accel.backend import Capability as Capability
    from accel.backend import VcpuBackend as VcpuBackend
    from accel.backend import VmBackend as VmBackend
    from accel.backend import VmConfig as VmConfig
    from accel.devices.base import Device as Device
    from accel.devices.base import DeviceType as DeviceType
    from accel.devices.port_handler import PortAccess as PortAccess
    from accel.errors import AccelError as AccelError
    from accel.exits import Debug as Debug
    from accel.exits import DirtyRingFull as DirtyRingFull
    from accel.exits import ExitKind as ExitKind
    from accel.exits import FailEntry as FailEntry
    from accel.exits import Halt as Halt
    from accel.exits import InternalError as InternalError
    from accel.exits import Interrupted as Interrupted
    from accel.exits import IoIn as IoIn
    from accel.exits import IoOut as IoOut
    from accel.exits import MmioRead as MmioRead
    from accel.exits import MmioWrite as MmioWrite
    from accel.exits import OtherExit as OtherExit
    from accel.exits import Shutdown as Shutdown
    from accel.hookspecs import hookimpl as hookimpl
    from accel.machine import Machine as Machine
    from accel.memory.address_space import AddressSpace as AddressSpace
    from accel.memory.backing import Backing as Backing
    from accel.memory.dirty import DirtyClient as DirtyClient
    from accel.memory.flat_view import FlatView as FlatView
    from accel.memory.flat_view import MemoryRegionSection as MemoryRegionSection
    from accel.memory.ioeventfd import IoEventFd as IoEventFd
    from accel.memory.listener import MemoryListener as MemoryListener
    from accel.memory.listener import Update as Update
    from accel.memory.mmio import AccessSizes as AccessSizes
    from accel.memory.mmio import MmioOps as MmioOps
    from accel.memory.region import MemoryRegion as MemoryRegion
    from accel.memory.region import RegionKind as RegionKind
    from accel.memory.user_fault import UserFaults as UserFaults
    from accel.options import Option as Option
    from accel.plugins import open_accelerator as open_accelerator
    from accel.program import GuestProgram as GuestProgram
    from accel.result import Outcome as Outcome
    from accel.result import RunResult as RunResult
    from accel.result import VcpuResult as VcpuResult
    from accel.run import Run as Run
    from accel.vcpu import Vcpu as Vcpu
    from accel.vm import OpenAccelerator as OpenAccelerator
    from accel.vm import Vm as Vm

_WHERE = {
    "MEMORY_OPTIONS": "accel.backend",
    "AccelError": "accel.errors",
    "Accelerator": "accel.backend",
    "AccessSizes": "accel.memory.mmio",
    "AddressRange": "accel.address",
    "AddressSpace": "accel.memory.address_space",
    "Availability": "accel.backend",
    "Backing": "accel.memory.backing",
    "BootMode": "accel.arch.x86",
    "Capability": "accel.backend",
    "Debug": "accel.exits",
    "Device": "accel.devices.base",
    "DeviceType": "accel.devices.base",
    "DirtyClient": "accel.memory.dirty",
    "DirtyRingFull": "accel.exits",
    "ExitKind": "accel.exits",
    "FailEntry": "accel.exits",
    "FlatView": "accel.memory.flat_view",
    "GuestProgram": "accel.program",
    "Halt": "accel.exits",
    "InternalError": "accel.exits",
    "Interrupted": "accel.exits",
    "IoEventFd": "accel.memory.ioeventfd",
    "IoIn": "accel.exits",
    "IoOut": "accel.exits",
    "Machine": "accel.machine",
    "MemoryListener": "accel.memory.listener",
    "MemoryRegion": "accel.memory.region",
    "MemoryRegionSection": "accel.memory.flat_view",
    "MmioOps": "accel.memory.mmio",
    "MmioRead": "accel.exits",
    "MmioWrite": "accel.exits",
    "OpenAccelerator": "accel.vm",
    "Option": "accel.options",
    "OtherExit": "accel.exits",
    "Outcome": "accel.result",
    "PortAccess": "accel.devices.port_handler",
    "RegionKind": "accel.memory.region",
    "Run": "accel.run",
    "RunResult": "accel.result",
    "Shutdown": "accel.exits",
    "Update": "accel.memory.listener",
    "UserFaults": "accel.memory.user_fault",
    "Vcpu": "accel.vcpu",
    "VcpuBackend": "accel.backend",
    "VcpuResult": "accel.result",
    "Vm": "accel.vm",
    "VmBackend": "accel.backend",
    "VmConfig": "accel.backend",
    "X86State": "accel.arch.x86",
    "hookimpl": "accel.hookspecs",
    "open_accelerator": "accel.plugins",
}

_MODULES = ("devices", "errors", "program")

__version__ = "0.1.0"
__all__ = [*_WHERE, "__version__", *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"accel.{name}")
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'accel' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)

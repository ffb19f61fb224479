"""The hooks of a plugin: signatures only. A plugin is a module in the entry-point group ``accel``.

Mark implementations with `hookimpl`. Importing a plugin must be cheap and open nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from accel.backend import Accelerator
    from accel.devices.base import DeviceType
    from accel.loaders.image import Loader
    from accel.machine import Machine
    from accel.memory.listener import MemoryListener

PROJECT = "accel"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def accel_register_accelerators(register: Callable[[Accelerator], None]) -> None:
    """Call `register` once for each accelerator."""


@hookspec
def accel_register_devices(register: Callable[[DeviceType], None]) -> None:
    """Call `register` once for each kind of device."""


@hookspec
def accel_register_loaders(register: Callable[[Loader], None]) -> None:
    """Call `register` once for each image format."""


@hookspec
def accel_register_commands(cli: click.Group) -> None:
    """Add commands to `accelctl`."""


@hookspec
def accel_register_scenarios(register: Callable[[str], None]) -> None:
    """Call `register` with the name of each package or module that has scenarios for the explorer.

    It is imported when somebody explores, all modules of a package.
    """


@hookspec
def accel_memory_listeners(machine: Machine) -> Iterable[MemoryListener]:  # type: ignore[empty-body]
    """Return listeners for the memory space of a machine that was just created."""


@hookspec
def accel_machine_created(machine: Machine) -> None:
    """Hear that a machine was created and has its listeners."""


@hookspec
def accel_machine_closed(machine: Machine) -> None:
    """Hear that a machine was closed."""

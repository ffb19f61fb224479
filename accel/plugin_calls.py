"""Calling what plugins brought, so that whatever goes wrong in it says whose it is and how to do without it.

Each plugin's hook is called by itself, in order of the plugins, where pluggy would call all of them at once: so the
one that fails is known, and who heard of a machine hears of its end. Nothing here is on the path of a guest's exit or
of a memory change: listeners are called as objects, and only where one fails its `origin` is looked at.

An `AccelError` stays what it is and gets the plugin for an `origin`; any other exception becomes a `PluginError`, whose
cause it is. Layer: above `plugins`, below `machine`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pluggy
from attrs import evolve

from accel.backend import Accelerator
from accel.backend_checks import ContractError
from accel.devices.base import Device, DeviceType
from accel.errors import AccelError, PluginError
from accel.loaders.image import Image, Loader
from accel.memory.listener import MemoryListener
from accel.plugin_checks import described, is_guests, one_line, place_of, shown
from accel.plugin_info import BUILTIN, PluginInfo, without
from accel.plugins import plugin_manager
from accel.vm import OpenAccelerator, Vm

if TYPE_CHECKING:
    from accel.machine import Machine

_log = logging.getLogger("accel.plugins")


@contextmanager
def blamed(plugin: str, what: str, *, refuses: bool = True) -> Iterator[None]:
    """Name `plugin` in whatever is raised inside, which is `what` it does, such as a hook.

    Args:
        plugin: Its name; nothing is done for the core's own.
        what: For the message.
        refuses: Whether an `AccelError` is an objection to something that the user did not ask the plugin for, so
            that it gets an `origin`.

    Raises:
        PluginError: Something else than an AccelError was raised, which is the cause.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything
        if plugin == BUILTIN:
            raise
        info = plugin_manager().info(plugin)
        if not isinstance(error, AccelError):
            raise _failure(info, what, error) from error
        if refuses and not isinstance(error, PluginError) and error.origin is None:
            error.origin = f"{what} of {_origin(info)}"
        raise


def _origin(info: PluginInfo) -> str:
    return f"plugin '{info.name}' from {info.distribution}; {without(info.name)}"


def _failure(info: PluginInfo, what: str, error: BaseException) -> PluginError:
    if isinstance(error, ContractError):
        return _problem(info, f"{what} breaks the contract: {one_line(str(error))}")
    return _problem(info, f"{what} failed: {described(error, info.module, info.file)}")


def _problem(info: PluginInfo, text: str) -> PluginError:
    return info.problem(f"{text}; {without(info.name)}")


# a machine


class MachinePlugins:
    """What the plugins hear of one machine.

    Args:
        machine: The machine.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        # Who was asked for listeners or told that it was created, by name, in order.
        self._heard: dict[str, None] = {}
        self._created = False

    def created(self) -> None:
        """Register the plugins' memory listeners, and tell that the machine was created.

        Raises:
            PluginError: A plugin's hook failed, or returned something else than listeners.
            AccelError: A plugin or a listener refuses; it has an `origin`.
        """
        for plugin, listener in [*self._listeners()]:
            # Past the class, which may be one that refuses to be written to.
            object.__setattr__(listener, "origin", _origin(plugin_manager().info(plugin)))
            self._machine.memory.add_listener(listener)
        for implementation in _implementations("accel_machine_created"):
            self._call(implementation)
        self._heard |= dict.fromkeys(one.plugin_name for one in _implementations("accel_machine_closed"))
        self._created = True

    def closed(self) -> None:
        """Tell those who heard of the machine that it is closed, in reverse; all of them hear it, whatever raises.

        Raises:
            AccelError: The first that failed; its notes have the others. Where the machine never came to be they are
                logged, since the reason for that is what matters.
        """
        failed: AccelError | None = None
        heard = [one for one in _implementations("accel_machine_closed") if one.plugin_name in self._heard]
        for implementation in reversed(heard):
            try:
                self._call(implementation)
            except AccelError as error:
                if not self._created:
                    _log.error("%s", error)
                elif failed is None:
                    failed = error
                else:
                    failed.add_note(str(error))
        if failed is not None:
            raise failed

    def _listeners(self) -> Iterator[tuple[str, MemoryListener]]:
        for implementation in _implementations("accel_memory_listeners"):
            plugin = implementation.plugin_name
            returned = self._call(implementation)
            with blamed(plugin, "accel_memory_listeners"):
                if not isinstance(returned, Iterable):
                    raise _wrong(
                        plugin, f"returned {shown(returned)}, not a list of memory listeners; return [] for none"
                    )
                listeners = list(returned)
            for listener in listeners:
                if isinstance(listener, type) and issubclass(listener, MemoryListener):
                    raise _wrong(plugin, f"returned {shown(listener)}; return an object: {listener.__name__}()")
                if not isinstance(listener, MemoryListener):
                    problem = f"returned {shown(listener)} for a listener; derive its class from accel.MemoryListener"
                    raise _wrong(plugin, problem)
                yield plugin, listener

    def _call(self, implementation: pluggy.HookImpl) -> object:
        """Call one plugin's hook with the machine, if it wants to know it."""
        self._heard[implementation.plugin_name] = None
        given = {"machine": self._machine}
        with blamed(implementation.plugin_name, _hook(implementation)):
            return implementation.function(*(given[name] for name in implementation.argnames))


def _implementations(hook: str) -> list[pluggy.HookImpl]:
    """Return the plugins' implementations of a hook: in order of the plugins, but for those who ask for another."""
    found: list[pluggy.HookImpl] = getattr(plugin_manager().hook, hook).get_hookimpls()
    return sorted(found, key=lambda one: one.trylast - one.tryfirst)


def _hook(implementation: pluggy.HookImpl) -> str:
    return str(implementation.opts["specname"] or implementation.function.__name__)


def _wrong(plugin: str, text: str) -> PluginError:
    return _problem(plugin_manager().info(plugin), f"accel_memory_listeners {text}")


# accelerators, devices and loaders


def create_vm(opened: OpenAccelerator, *, irqchip: bool, pit: bool) -> Vm:
    """Create a VM, as `OpenAccelerator.create_vm` does.

    Raises:
        PluginError: The accelerator raised something else than an AccelError, or returned what it must not.
        AccelError: It refuses.
    """
    with accelerator_blamed(opened.accelerator):
        return opened.create_vm(irqchip=irqchip, pit=pit)


def create_vcpus(vm: Vm, opened: OpenAccelerator, count: int) -> None:
    """Create the vCPUs of a machine; raises as `create_vm` does."""
    with accelerator_blamed(opened.accelerator):
        for index in range(count):
            vm.create_vcpu(index)


def accelerator_failure(accelerator: Accelerator, error: BaseException) -> BaseException:
    """Return what an accelerator failed with while a machine ran, as an error that names its plugin.

    An AccelError is returned as it is, and so is what did not come out of the plugin's code, or is the guest's own.
    """
    plugin = plugin_manager().source(accelerator)
    info = plugin_manager().info(plugin)
    its_own = isinstance(error, ContractError) or place_of(error, info.module) is not None
    if isinstance(error, AccelError) or plugin == BUILTIN or is_guests(error) or not its_own:
        return error
    named = _failure(info, f"accelerator '{accelerator.name}'", error)
    named.__cause__ = error
    return named


@contextmanager
def accelerator_blamed(accelerator: Accelerator) -> Iterator[None]:
    """Do the same with whatever is raised inside."""
    with blamed(plugin_manager().source(accelerator), f"accelerator '{accelerator.name}'", refuses=False):
        yield


def create_device(kind: DeviceType, values: dict[str, object]) -> Device:
    """Make a device of this kind from a value for each of its options.

    Raises:
        PluginError: Its plugin failed, or made something else.
        AccelError: The plugin refuses the values.
    """
    plugin = plugin_manager().source(kind)
    with blamed(plugin, f"making a device '{kind.name}'", refuses=False):
        device: object = kind.create(values)
    if not isinstance(device, Device):
        problem = f"making a device '{kind.name}' gave {shown(device)}; derive its class from accel.devices.Device"
        raise _problem(plugin_manager().info(plugin), problem)
    return device


def loaders() -> list[Loader]:
    """Return the loaders of all plugins; where one of them fails, the error names its plugin.

    What they raise besides AccelError is a PluginError then.
    """
    return [_guarded(loader) for loader in plugin_manager().loaders().values()]


def _guarded(loader: Loader) -> Loader:
    plugin = plugin_manager().source(loader)
    if plugin == BUILTIN:
        return loader

    def detect(head: bytes) -> bool:
        with blamed(plugin, f"loader '{loader.name}', looking at an image,", refuses=False):
            return bool(loader.detect(head))

    def load(*arguments: Any) -> Image:
        with blamed(plugin, f"loader '{loader.name}'", refuses=False):
            image: object = loader.load(*arguments)
        if not isinstance(image, Image):
            problem = f"loader '{loader.name}' returned {shown(image)}, not an Image"
            raise _problem(plugin_manager().info(plugin), problem)
        return image

    return evolve(loader, detect=detect, load=load)

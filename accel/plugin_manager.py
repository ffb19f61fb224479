"""The plugin manager: imports plugins one by one, keeps what each registered, and why one is not in use.

One that fails is noted and does not stop the others, and a name that is switched off is never imported. Built-in
devices and loaders register through the same hooks as anyone's. Layer: above `plugin_sources`, which finds plugins,
`plugin_info` and `plugin_checks`; below `plugins`, which has the process's manager.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pluggy
from attrs import define, field

from accel import hookspecs
from accel.errors import PluginError
from accel.hookspecs import hookimpl
from accel.plugin_checks import (
    contract_problem,
    described,
    missing_hooks,
    place_of,
    plugin_name_problem,
    registered_problem,
)
from accel.plugin_info import BUILTIN, PluginInfo, asked
from accel.plugin_sources import PluginSource, installed_plugins, local_plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from accel.backend import Accelerator
    from accel.devices.base import DeviceType
    from accel.loaders.image import Loader

_KINDS = {
    "accel_register_accelerators": "accelerator",
    "accel_register_devices": "device",
    "accel_register_loaders": "loader",
}


@hookimpl
def accel_register_devices(register: Callable[[DeviceType], None]) -> None:
    """Register the built-in devices."""
    from accel.devices.builtin import BUILTIN_DEVICES

    for device in BUILTIN_DEVICES:
        register(device)


@hookimpl
def accel_register_loaders(register: Callable[[Loader], None]) -> None:
    """Register the built-in loaders."""
    from accel.loaders.builtin import BUILTIN_LOADERS

    for loader in BUILTIN_LOADERS:
        register(loader)


_BUILTIN = SimpleNamespace(accel_register_devices=accel_register_devices, accel_register_loaders=accel_register_loaders)


@define(eq=False)
class PluginManager:
    """Loads plugins and hands out what they registered.

    Args:
        blocked: Names of plugins that are not to be imported.

    Attributes:
        plugins: Every plugin found, by name, in order of names. A second one of a name stands beside the first, under
            its name and distribution.
    """

    blocked: frozenset[str] = frozenset()
    plugins: dict[str, PluginInfo] = field(factory=dict, init=False)
    _manager: pluggy.PluginManager = field(init=False)
    # What each registration hook brought, by name, and by identity which plugin it came from. Kept, since plugins may
    # make a new object each time they are asked.
    _found: dict[str, dict[str, Any]] = field(factory=dict, init=False)
    _sources: dict[int, str] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._manager.register(_BUILTIN, BUILTIN)

    @property
    def hook(self) -> Any:
        """pluggy's hook callers, such as ``hook.accel_machine_created(machine=…)``."""
        return self._manager.hook

    def load_entry_points(self) -> None:
        """Load every plugin of the entry-point group that is not blocked."""
        self._load_all(installed_plugins())

    def load_folder(self, folder: Path) -> None:
        """Load every file of `folder` that is a plugin and is not blocked; a folder that cannot be read is noted."""
        try:
            found = local_plugins(folder)
        except OSError as error:
            info = PluginInfo(str(folder), str(folder), str(folder))
            info.error = info.problem(
                f"cannot be read: {os.strerror(error.errno or 0)}; --plugin-dir or ACCEL_PLUGIN_DIR names it, and "
                "takes a folder"
            )
            self.plugins[info.name] = info
            return
        self._load_all(found)

    def _load_all(self, found: Iterable[PluginSource]) -> None:
        for source in found:
            info = PluginInfo(source.name, source.distribution, source.where, source.module)
            problem = plugin_name_problem(source.name, BUILTIN)
            if problem is not None:
                self.plugins[f"{source.name} ({source.distribution})"] = info
                info.error = info.problem(problem)
            elif source.name in self.plugins:
                self.plugins[f"{source.name} ({source.distribution})"] = info
                other = self.plugins[source.name].distribution
                info.error = info.problem(f"the name is taken by {other}; uninstall or rename one of them")
            else:
                self.plugins[source.name] = info
            if source.name in self.blocked:
                info.switched_off, info.error = True, info.problem("switched off")
            elif info.error is None:
                self._load(source, info)

    def _load(self, source: PluginSource, info: PluginInfo) -> None:
        try:
            with asked(info, "imported"):
                plugin = source.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything; some derive from no Exception
            info.error = info.problem(f"cannot be imported: {described(error, info.module, info.file)}")
            return
        problem = missing_hooks(self._manager, plugin)
        if problem is not None:
            info.error = info.problem(problem)
            return
        try:
            self._add(plugin, info)
        except PluginError as error:
            info.error = error

    def register(self, plugin: object, name: str, source: str = "?") -> None:
        """Add a plugin: any object with hook implementations; `source` says for messages who brought it.

        Raises:
            PluginError: It implements a hook that does not exist or with arguments that do not.
        """
        info = PluginInfo(name, source)
        self._add(plugin, info)
        self.plugins[name] = info

    def _add(self, plugin: object, info: PluginInfo) -> None:
        self._forget()
        problem = contract_problem(self._manager, plugin)
        if problem is not None:
            raise info.problem(f"breaks the hook contract: {problem}")
        try:
            self._manager.register(plugin, info.name)
        except pluggy.PluginValidationError as error:
            if self._manager.is_registered(plugin):  # some versions of pluggy take it out themselves
                self._manager.unregister(plugin)
            raise info.problem(f"breaks the hook contract: {' '.join(str(error).split())}") from error
        except ValueError as error:
            taken = self._manager.get_name(plugin)
            problem = f"'{taken}' is the same object" if taken else "there is a plugin of this name"
            raise info.problem(f"{problem}; it can be in use once") from error
        info.hooks = self.hooks_of(info.name)

    def unregister(self, plugin: object) -> None:
        """Take out a plugin that `register` added; what it registered is gone with it."""
        self._forget()
        self.plugins.pop(self._manager.get_name(plugin) or "", None)
        self._manager.unregister(plugin)

    def _forget(self) -> None:
        self._found.clear()
        self._sources.clear()

    def hooks_of(self, plugin: str) -> tuple[str, ...]:
        """Return the hooks that a plugin which is loaded implements, by its name; of the core, too."""
        callers = self._manager.get_hookcallers(self._manager.get_plugin(plugin)) or ()
        return tuple(sorted(caller.name for caller in callers))

    # what plugins registered

    def accelerators(self) -> dict[str, Accelerator]:
        """Return the registered accelerators by name."""
        return self._collect("accel_register_accelerators")

    def devices(self) -> dict[str, DeviceType]:
        """Return the registered kinds of device by name."""
        return self._collect("accel_register_devices")

    def loaders(self) -> dict[str, Loader]:
        """Return the registered image formats by name."""
        return self._collect("accel_register_loaders")

    def source(self, registered: object) -> str:
        """Return the name of the plugin that registered something."""
        return self._sources.get(id(registered), BUILTIN)

    def info(self, plugin: str) -> PluginInfo:
        """Return what is known of a plugin by its name; of the core, too."""
        return self.plugins.get(plugin) or PluginInfo(plugin, hookspecs.PROJECT)

    def _collect(self, hook: str) -> dict[str, Any]:
        """Return what the registration hook brings, in order of names; asks the plugins once."""
        if hook not in self._found:
            self._found[hook] = self._ask(hook)
        return dict(self._found[hook])

    def _ask(self, hook: str) -> dict[str, Any]:
        """Call each plugin's registration hook by itself, so that one that fails is named."""
        found: dict[str, Any] = {}
        for implementation in getattr(self.hook, hook).get_hookimpls():
            plugin = implementation.plugin_name

            def register(thing: Any, plugin: str = plugin) -> None:
                problem = registered_problem(hook, thing)
                if problem is None and thing.name in found:
                    taken = self.info(self._sources[id(found[thing.name])])
                    problem = f"{_KINDS[hook]} '{thing.name}' is registered by {taken} already; switch one of them off"
                if problem is not None:
                    raise self.info(plugin).problem(problem)
                found[thing.name] = thing
                self._sources[id(thing)] = plugin

            self.call(implementation, register=register)
        return dict(sorted(found.items()))

    def call(self, implementation: pluggy.HookImpl, **arguments: object) -> PluginError | None:
        """Call one plugin's implementation of a hook; what it raises is noted with the plugin, and returned.

        For hooks whose plugins are asked each by itself. Give it all arguments of the hook.
        """
        info = self.info(implementation.plugin_name)
        hook = implementation.opts["specname"] or implementation.function.__name__
        try:
            with asked(info, f"asked by {hook}"):
                implementation.function(*(arguments[name] for name in implementation.argnames))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything; the others go on
            if isinstance(error, PluginError):
                info.error = error
            else:
                info.error = info.problem(f"{hook} failed: {described(error, info.module, info.file)}")
            return info.error
        return None

    # whose fault it is

    def blame(self, error: BaseException) -> PluginError | None:
        """Return what a plugin raised, as an error that names it; None if `error` came out of no plugin's code."""
        for info in self.plugins.values():
            if place_of(error, info.module) is not None:
                return info.problem(f"raised {described(error, info.module, info.file)}")
        return None

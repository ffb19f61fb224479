"""Finding plugins, and choosing an accelerator from a list with a reason for each that is passed over.

Entry points of the group ``accel`` are loaded one by one, in order of their names; one that fails is noted
and does not stop the others, and a name that is switched off is never imported. Built-in devices and loaders
register through the same hooks as anyone's.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from importlib import import_module, metadata
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy
from attrs import define, field

from accel import hookspecs, turns
from accel.backend import Accelerator, Availability, VmBackend, VmConfig
from accel.errors import NoAcceleratorError, PluginError, UsageError
from accel.hookspecs import hookimpl
from accel.options import nearest, parse_options
from accel.vm import OpenAccelerator

if TYPE_CHECKING:
    from collections.abc import Callable

    from accel.devices.base import DeviceType
    from accel.loaders.image import Loader

#: Names of plugins that are not loaded, separated by commas.
BLOCK_VARIABLE = "ACCEL_BLOCK_PLUGINS"

T = TypeVar("T")


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
class PluginInfo:
    """One plugin that was found.

    Attributes:
        name: The entry point's name.
        distribution: The distribution that brought it, with its version.
        error: Why it is not in use, or None.
    """

    name: str
    distribution: str
    error: PluginError | None = None


@define(eq=False)
class PluginManager:
    """Loads plugins and hands out what they registered.

    Attributes:
        plugins: Every plugin found, by name, in order of names.
        hook: pluggy's hook callers.
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
        self._manager.register(_BUILTIN, "builtin")

    @property
    def hook(self) -> Any:
        """pluggy's hook callers, such as ``hook.accel_machine_created(machine=…)``."""
        return self._manager.hook

    def load_entry_points(self) -> None:
        """Load every plugin of the entry-point group that is not blocked."""
        points = metadata.entry_points(group=hookspecs.PROJECT)
        for point in sorted(points, key=lambda one: (one.name, one.value)):
            dist = point.dist
            source = f"{dist.name} {dist.version}" if dist else "?"
            if point.name in self.blocked:
                info = PluginInfo(point.name, source, PluginError(point.name, source, "switched off"))
            elif point.name in self.plugins:
                other = self.plugins[point.name].distribution
                problem = f"the name is taken by {other}; uninstall one of them"
                self.plugins[f"{point.name} ({source})"] = PluginInfo(
                    point.name, source, PluginError(point.name, source, problem)
                )
                continue
            else:
                info = PluginInfo(point.name, source)
                try:
                    self.register(_load(point), point.name, source)
                except PluginError as error:
                    info.error = error
                except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise anything
                    problem = f"cannot be imported: {type(error).__name__}: {error}"
                    info.error = PluginError(point.name, source, problem)
            self.plugins[info.name] = info

    def register(self, plugin: object, name: str, source: str = "?") -> None:
        """Add a plugin: any object with hook implementations; `source` says for messages who brought it.

        Raises:
            PluginError: It implements a hook that does not exist or with arguments that do not.
        """
        self._forget()
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            if self._manager.is_registered(plugin):  # some versions of pluggy take it out themselves
                self._manager.unregister(plugin)
            raise PluginError(name, source, f"breaks the hook contract: {error}") from error
        except ValueError as error:
            raise PluginError(name, source, str(error)) from error

    def unregister(self, plugin: object) -> None:
        """Take out a plugin that `register` added; what it registered is gone with it."""
        self._forget()
        self._manager.unregister(plugin)

    def _forget(self) -> None:
        self._found.clear()
        self._sources.clear()

    # what plugins registered

    def accelerators(self) -> dict[str, Accelerator]:
        """Return the registered accelerators by name."""
        return self._collect("accel_register_accelerators", lambda one: one.name)

    def devices(self) -> dict[str, DeviceType]:
        """Return the registered kinds of device by name."""
        return self._collect("accel_register_devices", lambda one: one.name)

    def loaders(self) -> dict[str, Loader]:
        """Return the registered image formats by name."""
        return self._collect("accel_register_loaders", lambda one: one.name)

    def source(self, registered: object) -> str:
        """Return the name of the plugin that registered something."""
        return self._sources.get(id(registered), "builtin")

    def _collect(self, hook_name: str, key: Callable[[Any], str]) -> dict[str, Any]:
        """Return what the registration hook brings, in order of names; asks the plugins once."""
        if hook_name not in self._found:
            self._found[hook_name] = self._ask(hook_name, key)
        return dict(self._found[hook_name])

    def _ask(self, hook_name: str, key: Callable[[Any], str]) -> dict[str, Any]:
        """Call each plugin's registration hook by itself, so that one that fails is named."""
        found: dict[str, Any] = {}
        for implementation in getattr(self.hook, hook_name).get_hookimpls():
            plugin = implementation.plugin_name

            def register(thing: Any, plugin: str = plugin) -> None:
                if key(thing) in found:
                    taken = self._sources[id(found[key(thing)])]
                    problem = f"'{key(thing)}' is registered by plugin '{taken}' already"
                    raise PluginError(plugin, self._info(plugin).distribution, problem)
                found[key(thing)] = thing
                self._sources[id(thing)] = plugin

            try:
                implementation.function(register)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise anything; the others go on
                self._note_failure(plugin, hook_name, error)
        return dict(sorted(found.items()))

    def _info(self, plugin: str) -> PluginInfo:
        return self.plugins.setdefault(plugin, PluginInfo(plugin, "?"))

    def _note_failure(self, plugin: str, hook_name: str, error: BaseException) -> None:
        info = self._info(plugin)
        if isinstance(error, PluginError):
            info.error = error
        else:
            problem = f"{hook_name} failed: {type(error).__name__}: {error}"
            info.error = PluginError(plugin, info.distribution, problem)


def _load(point: metadata.EntryPoint) -> object:
    """Return what an entry point names."""
    # Not by its own `load`: where modules are copied, the copy is wanted, which `import_module` gives here.
    found: object = import_module(point.module)
    return functools.reduce(getattr, filter(None, (point.attr or "").split(".")), found)


@functools.cache
def plugin_manager() -> PluginManager:
    """Return the process's plugin manager, loaded on first use; ``ACCEL_BLOCK_PLUGINS`` switches plugins off."""
    names = os.environ.get(BLOCK_VARIABLE, "").split(",")
    manager = PluginManager(frozenset(name.strip() for name in names if name.strip()))
    manager.load_entry_points()
    return manager


# choosing an accelerator


def parse_accelerators(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names in ``"kvm,mock"`` or in a list, in order. Raises UsageError if there are none."""
    parts = names.split(",") if isinstance(names, str) else list(names)
    found = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not found:
        raise UsageError("no accelerator is named; write one or more, such as kvm or kvm,mock")
    return found


def default_accelerators() -> tuple[str, ...]:
    """Return the names of all accelerators, the preferred first: what is tried where nobody named any."""
    known = plugin_manager().accelerators().values()
    return tuple(one.name for one in sorted(known, key=lambda one: (-one.priority, one.name)))


class _Missing(Accelerator):
    """Stands for the accelerators of a plugin that is switched off or broken: passed over, with the reason."""

    executes = frozenset()

    def __init__(self, name: str, error: PluginError) -> None:
        self.name = name  # type: ignore[misc]  # a class attribute of those that a plugin registers
        self._error = error

    def probe(self) -> Availability:
        return Availability(False, str(self._error))

    def create_vm(self, config: VmConfig) -> VmBackend:
        raise self._error


def find_accelerator(name: str) -> Accelerator:
    """Return the accelerator of this name; one whose plugin is switched off or broken says so when it is probed.

    Raises:
        UsageError: There is no plugin or accelerator of this name; tells the nearest.
    """
    known = plugin_manager().accelerators()
    if name in known:
        return known[name]
    plugin = plugin_manager().plugins.get(name)
    if plugin is not None and plugin.error is not None:
        return _Missing(name, plugin.error)
    raise UsageError(f"no accelerator '{name}'; {nearest(name, known)}")


def check_options(name: str, given: Mapping[str, object]) -> None:
    """Check options for the accelerator `name`; those of a plugin that is switched off or broken are not known.

    Raises:
        UsageError: There is no such accelerator.
        OptionError: An option is unknown or does not fit.
    """
    accelerator = find_accelerator(name)
    if not isinstance(accelerator, _Missing):
        parse_options(f"accelerator.{name}", accelerator.options, given)


def probe(accelerator: Accelerator) -> Availability:
    """Return whether `accelerator` can be used; one whose probe raises cannot, and the reason says so."""
    try:
        return accelerator.probe()
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything
        return Availability(False, f"its probe failed: {type(error).__name__}: {error}")


def open_accelerator(
    names: str | Iterable[str],
    *,
    options: Mapping[str, Mapping[str, object]] | None = None,
    executes: str | None = None,
) -> OpenAccelerator:
    """Open the first accelerator in the list that can be used.

    Args:
        names: One name, several with commas, or a list; tried in order.
        options: Options by accelerator name, such as ``{"kvm": {"plan": "replace"}}``.
        executes: What it must execute, such as ``x86``; None for anything.

    Raises:
        UsageError: An accelerator is unknown.
        OptionError: An option is unknown or does not fit.
        NoAcceleratorError: None can be used; has the reason for each.
    """
    options = options or {}
    wanted = [find_accelerator(name) for name in parse_accelerators(names)]
    for name in options:
        check_options(name, options[name])
    reasons: dict[str, str] = {}
    for accelerator in wanted:
        if executes is not None and executes not in accelerator.executes and not isinstance(accelerator, _Missing):
            can = " or ".join(sorted(accelerator.executes))
            reasons[accelerator.name] = f"executes {can}, and this needs {executes}"
            continue
        if turns.take is not None and not accelerator.takes_turns:
            reasons[accelerator.name] = "cannot repeat a run, which a seed asks for"
            continue
        available = probe(accelerator)
        if available.ok:
            return OpenAccelerator(accelerator, options.get(accelerator.name))
        reasons[accelerator.name] = available.reason
    raise NoAcceleratorError(reasons, "see what there is with: accelctl list accelerators")

"""The plugins of this process, and choosing an accelerator from a list with a reason for each that is passed over.

Plugins are found when somebody first asks for them. Two environment variables say which: ``ACCEL_BLOCK_PLUGINS`` names
those that are switched off, and ``ACCEL_PLUGIN_DIR`` a folder with plugins of one file each, which are left alone
otherwise. Layer: above `plugin_manager`, which imports them, and `probing`, which asks accelerators.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import evolve

from accel import turns
from accel.backend import Accelerator, Availability, VmBackend, VmConfig
from accel.errors import NoAcceleratorError, PluginError, UsageError
from accel.options import nearest, parse_options
from accel.plugin_checks import one_line
from accel.plugin_info import BLOCK_VARIABLE as BLOCK_VARIABLE
from accel.plugin_info import BUILTIN as BUILTIN
from accel.plugin_info import PluginInfo as PluginInfo
from accel.plugin_manager import PluginManager as PluginManager
from accel.plugin_sources import installed_plugins, local_plugins
from accel.probing import ask
from accel.vm import OpenAccelerator

#: A folder with plugins of one file each.
FOLDER_VARIABLE = "ACCEL_PLUGIN_DIR"
#: Longest that a probe's reason is told, in characters.
_LONGEST_REASON = 1000


def plugin_manager() -> PluginManager:
    """Return the process's plugin manager, loaded on first use.

    If the environment variables say something else later, it is another one, with its own instances of what plugins
    register.
    """
    return _loaded(os.environ.get(BLOCK_VARIABLE, ""), os.environ.get(FOLDER_VARIABLE, ""))


@functools.cache
def _loaded(blocked: str, folder: str) -> PluginManager:
    manager = PluginManager(frozenset(name.strip() for name in blocked.split(",") if name.strip()))
    manager.load_entry_points()
    if folder:
        manager.load_folder(Path(folder))
    return manager


def known_names() -> list[str]:
    """Return the names of all plugins that can be found, in order; imports none of them."""
    found = installed_plugins()
    folder = os.environ.get(FOLDER_VARIABLE, "")
    if folder:
        with suppress(OSError):  # the manager notes it
            found += local_plugins(Path(folder))
    return sorted({one.name for one in found})


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
    known = plugin_manager().accelerators()
    return tuple(sorted(known, key=lambda name: (-known[name].priority, name)))


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
    broken = [one.name for one in plugin_manager().plugins.values() if one.state == "broken"]
    missing = f" (broken plugins: {', '.join(broken)}; see accelctl plugins)" if broken else ""
    raise UsageError(f"no accelerator '{name}'; {nearest(name, known)}{missing}")


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
    """Return whether `accelerator` can be used; one whose probe is no good cannot, and the reason says whose it is.

    Waits at most for ``ACCEL_PROBE_TIMEOUT`` seconds, by default 5.
    """
    return probe_all([accelerator])[0]


def probe_all(accelerators: Sequence[Accelerator]) -> list[Availability]:
    """Do the same with several at once, so that slow ones are waited for together."""
    found = []
    for accelerator, answer in zip(accelerators, ask(accelerators), strict=True):
        if isinstance(answer, str):
            info = plugin_manager().plugins.get(plugin_manager().source(accelerator))
            answer = Availability(False, answer if info is None else str(info.problem(answer)))
        elif not answer.ok and not answer.reason:
            answer = Availability(False, "its probe says that it cannot be used, and no reason")
        elif answer.reason:
            answer = evolve(answer, reason=one_line(answer.reason, _LONGEST_REASON))
        found.append(answer)
    return found


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

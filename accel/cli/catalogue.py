"""What plugins have registered, as plain values for ``accelctl list``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import Factory, asdict, filters, frozen

import accel
from accel.address import format_size
from accel.options import Option
from accel.plugins import BUILTIN, PluginInfo, default_accelerators, find_accelerator, plugin_manager, probe_all

#: What of an option is data: not the functions that read it.
_DECLARED = filters.exclude("item", "whole")


@frozen
class Entry:
    """One accelerator, device or loader.

    Attributes:
        plugin: Name of the plugin that registered it; ``builtin`` for the core's own.
        distribution: The distribution that brought the plugin, with its version.
        available: Whether it can be used here; None where that is no question.
        reason: Why it cannot.
        executes: What an accelerator's vCPUs execute.
        capabilities: What it offers beyond RAM and vCPUs.
        details: Further facts, by label.
    """

    name: str
    summary: str
    plugin: str
    distribution: str
    options: tuple[Option, ...] = ()
    available: bool | None = None
    reason: str = ""
    executes: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    details: Mapping[str, str] = Factory(dict)

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        data: dict[str, Any] = {
            "name": self.name,
            "summary": self.summary,
            "plugin": self.plugin,
            "distribution": self.distribution,
            "options": [asdict(option, filter=_DECLARED) for option in self.options],
            "details": dict(self.details),
        }
        if self.available is not None:
            data |= {
                "available": self.available,
                "reason": self.reason,
                "executes": list(self.executes),
                "capabilities": list(self.capabilities),
            }
        return data


def accelerators() -> list[Entry]:
    """Probe every accelerator and return them in the order in which they are tried."""
    entries = []
    known = [find_accelerator(name) for name in default_accelerators()]
    for accelerator, found in zip(known, probe_all(known), strict=True):
        entries.append(
            Entry(
                accelerator.name,
                accelerator.summary,
                *_source(accelerator),
                options=tuple(accelerator.options),
                available=found.ok,
                reason=found.reason,
                executes=tuple(sorted(accelerator.executes)),
                capabilities=tuple(sorted(found.capabilities)),
                details=found.details,
            )
        )
    return entries


def devices() -> list[Entry]:
    """Return every kind of device by name."""
    return [
        Entry(
            device.name,
            device.summary,
            *_source(device),
            options=tuple(device.options),
            details={"console": "prints what the guest writes"} if device.console else {},
        )
        for device in plugin_manager().devices().values()
    ]


def loaders() -> list[Entry]:
    """Return every image format, in the order in which they are asked."""
    ordered = sorted(plugin_manager().loaders().values(), key=lambda loader: -loader.priority)
    return [
        Entry(loader.name, loader.summary, *_source(loader), details={"priority": str(loader.priority)})
        for loader in ordered
    ]


def broken_plugins() -> list[dict[str, str]]:
    """Return the plugins that are not in use, with the reason for each."""
    return [
        {"plugin": info.name, "distribution": info.distribution, "reason": str(info.error)}
        for info in plugin_manager().plugins.values()
        if info.error is not None
    ]


def plugins() -> list[dict[str, Any]]:
    """Return every plugin as plain data, the core's own part first; asks all for what they register."""
    manager = plugin_manager()
    registered: dict[str, Mapping[str, object]] = {
        "accelerators": manager.accelerators(),
        "devices": manager.devices(),
        "loaders": manager.loaders(),
    }
    own = PluginInfo(BUILTIN, f"accel {accel.__version__}", "accel", hooks=manager.hooks_of(BUILTIN))
    return [_plugin(info, registered) for info in (own, *manager.plugins.values())]


def _plugin(info: PluginInfo, registered: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
    name, _, version = ("", "", "") if info.file else info.distribution.rpartition(" ")
    source = plugin_manager().source
    # One without hooks is broken, and may have the name of one that is not.
    brought = {
        kind: [one for one, thing in things.items() if info.hooks and source(thing) == info.name]
        for kind, things in registered.items()
    }
    return {
        "name": info.name,
        "distribution": name or None,
        "version": version if name else None,
        "where": info.where,
        "state": info.state,
        "reason": None if info.error is None else str(info.error),
        "hooks": list(info.hooks),
        "registered": brought,
    }


def _source(registered: object) -> tuple[str, str]:
    plugin = plugin_manager().source(registered)
    info = plugin_manager().plugins.get(plugin)
    return plugin, info.distribution if info is not None else f"accel {accel.__version__}"


def default_text(option: Option) -> str:
    """Return an option's default as it is written in TOML."""
    value = option.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and option.kind == "size":
        return format_size(value)
    return f"{value:#x}" if isinstance(value, int) and option.name == "port" else str(value)


def values_text(option: Option) -> str:
    """Return what an option takes, in a few words."""
    if option.kind == "choice":
        return " | ".join(option.choices)
    bounds: Sequence[int | None] = (option.minimum, option.maximum)
    if option.kind in ("int", "size") and any(bound is not None for bound in bounds):
        least, most = ("" if bound is None else f"{bound:#x}" if bound > 9999 else str(bound) for bound in bounds)
        return f"{option.kind} {least}…{most}"
    return option.kind

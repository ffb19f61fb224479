"""All scenarios that there are here: the project's own, and those that plugins register.

Layer: above `scenario`; imports plugins.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

from accel.errors import AccelError
from accel.plugin_calls import blamed
from accel.plugins import plugin_manager
from accel.testing.explore.scenario import SCENARIOS, Scenario

_OWN = "accel.testing.scenarios"


def all_scenarios() -> tuple[dict[str, Scenario], list[str]]:
    """Return the scenarios by name, in order, and what is wrong with those of a plugin that cannot be."""
    problems: list[str] = []
    _import_all(_OWN)
    for implementation in plugin_manager().hook.accel_register_scenarios.get_hookimpls():
        names: list[str] = []
        try:
            with blamed(implementation.plugin_name, "accel_register_scenarios"):
                implementation.function(*(names.append for _ in implementation.argnames))
                for name in names:
                    _import_all(name)
        except AccelError as error:
            problems.append(str(error))
    return dict(sorted(SCENARIOS.items())), problems


def _import_all(name: str) -> None:
    """Import a module, and all of a package."""
    module = importlib.import_module(name)
    for inner in _modules_of(module):
        importlib.import_module(inner)


def _modules_of(package: ModuleType) -> Iterator[str]:
    for found in pkgutil.iter_modules(getattr(package, "__path__", ())):
        yield f"{package.__name__}.{found.name}"

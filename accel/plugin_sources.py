"""Where plugins come from: entry points of installed distributions, and the files of a folder that somebody named.

A `PluginSource` is a plugin that was found and not yet imported, so that one that is switched off never is. Layer:
below `plugin_manager`, which imports them one by one.

Files are foreign code as soon as they are imported. So a folder is looked into only if it was asked for by name, and
never the current one by itself; other folders below it are left alone, and so are files whose names begin with ``_``
or ``.``, as those that editors leave do.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib import import_module, metadata, util
from pathlib import Path

from attrs import field, frozen

from accel.hookspecs import PROJECT

#: Modules that are made of local files are called so, and the file's name without ``.py``.
_LOCAL = "accel_local_"


@frozen
class PluginSource:
    """A plugin that was found.

    Attributes:
        name: The entry point's name, or the file's without ``.py``.
        distribution: The distribution that brought it, with its version, or the path of the file.
        where: What is imported: a module, with an attribute after a colon, or the file.
        module: The name of the module that this gives.
        load: Imports it and returns the object with the hooks; raises anything.
    """

    name: str
    distribution: str
    where: str
    module: str
    load: Callable[[], object] = field(repr=False)


def installed_plugins() -> list[PluginSource]:
    """Return the plugins of installed distributions, in order of their names."""
    points = metadata.entry_points(group=PROJECT)
    return [
        PluginSource(point.name, _distribution(point), point.value, _module(point), functools.partial(_load, point))
        for point in sorted(points, key=lambda one: (one.name, one.value))
    ]


def local_plugins(folder: Path) -> list[PluginSource]:
    """Return the plugins in `folder`, one a file, in order of their names. Raises OSError if it cannot be read."""
    # Absolute, since the current folder may be another by the time it is imported.
    paths = sorted(one for one in folder.absolute().iterdir() if one.suffix == ".py" and one.is_file())
    return [
        PluginSource(path.stem, str(path), str(path), _LOCAL + path.stem, functools.partial(_load_file, path))
        for path in paths
        if not path.name.startswith(("_", "."))
    ]


def _distribution(point: metadata.EntryPoint) -> str:
    dist = point.dist
    return f"{dist.name} {dist.version}" if dist else "?"


def _module(point: metadata.EntryPoint) -> str:
    return point.value.partition(":")[0].strip()


def _load(point: metadata.EntryPoint) -> object:
    """Return what an entry point names."""
    # Not by its own `load`: where modules are copied, the copy is wanted, which `import_module` gives here.
    found: object = import_module(point.module)
    return functools.reduce(getattr, filter(None, (point.attr or "").split(".")), found)


def _load_file(path: Path) -> object:
    """Return the module that a file makes; a second time the same one."""
    name = _LOCAL + path.stem
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    spec = util.spec_from_file_location(name, path)
    assert spec is not None, "its name ends in .py"
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    # As for any import: classes and pickles look for their module there.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module

"""Copies of modules for an exploration: every access visible, threads and clocks cooperative, the real ones untouched.

A module that is not copied is shared with the rest of the program: everything from outside, and the errors. Copies
import copies. The source may be patched before it is compiled, so that a planted mistake can be looked for.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
from collections.abc import Collection, Mapping
from functools import lru_cache
from importlib.abc import InspectLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from attrs import frozen

from accel.errors import UsageError
from accel.testing.explore.accesses import Accesses
from accel.testing.explore.instrument import instrument
from accel.testing.explore.primitives import modules, quiet
from accel.testing.explore.runtime import Runtime

#: Packages whose modules are always copied.
COPIED = ("accel",)
#: Modules in them that are shared all the same: errors, so that whoever explores can catch them, and the explorer.
SHARED = ("accel.errors", "accel.testing.explore")
#: Modules that watch what is explored and are no part of it: their own locks are no steps.
WATCHING = ("accel.lock_graph",)


@frozen
class Patch:
    """A change of a module's source.

    Attributes:
        module: Which.
        old: A text that stands in it once.
        new: What stands there instead.
    """

    module: str
    old: str
    new: str


class World:
    """Copies of modules, made as they are imported.

    Args:
        instrumented: The modules whose accesses are visible, as names or beginnings of names.
        patches: Changes of their source.
        copied: Further packages to copy, for scenarios that live elsewhere.
        shared: Further modules of copied packages that are shared all the same.

    Raises:
        UsageError: A patch's text does not stand in its module exactly once.
    """

    def __init__(
        self,
        instrumented: Collection[str],
        patches: Collection[Patch] = (),
        copied: Collection[str] = (),
        shared: Collection[str] = (),
    ) -> None:
        self.runtime = Runtime()
        self._instrumented = tuple(instrumented)
        self._patches = tuple(patches)
        self._copied = (*COPIED, *copied)
        self._shared = (*SHARED, *shared)
        self._modules: dict[str, ModuleType] = {}
        self._stand_ins: Mapping[str, ModuleType] = modules(self.runtime)
        self.runtime.local_type = self._stand_ins["threading"].local
        self._names = Accesses(self.runtime).names()
        stand_in = ModuleType("importlib", importlib.__doc__)
        stand_in.__dict__.update(importlib.__dict__)
        stand_in.__dict__["import_module"] = self._import_module
        self._stand_ins = {**self._stand_ins, "importlib": stand_in}
        self._builtins = {**vars(builtins), "__import__": self._import}
        self._quiet = quiet(self._stand_ins["threading"])

    def stand_in(self, name: str) -> ModuleType:
        """Return what stands in for `threading` or `time`."""
        return self._stand_ins[name]

    def load(self, name: str) -> ModuleType:
        """Return the copy of a module, made at the first time."""
        found = self._modules.get(name)
        if found is not None:
            return found
        parent, _, last = name.rpartition(".")
        if parent:
            self.load(parent)
            if name in self._modules:
                return self._modules[name]
        spec = importlib.util.find_spec(name)
        if spec is None or (spec.origin is None and spec.submodule_search_locations is None):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        module = ModuleType(name)
        module.__file__ = spec.origin
        module.__package__ = name if spec.submodule_search_locations is not None else parent
        if spec.submodule_search_locations is not None:
            module.__path__ = list(spec.submodule_search_locations)
        module.__dict__["__builtins__"] = self._builtins
        visible = _begins(name, self._instrumented)
        if visible:
            module.__dict__.update(self._names)
        self._modules[name] = module
        patches = tuple((one.old, one.new) for one in self._patches if one.module == name)
        try:
            # Without an origin it is a namespace, of which there is nothing to execute.
            if spec.origin is not None:
                exec(_compiled(name, spec.origin, visible, patches), module.__dict__)
        except BaseException:
            del self._modules[name]
            raise
        if parent:
            setattr(self._modules[parent], last, module)
        return module

    def _is_copied(self, name: str) -> bool:
        return _begins(name, self._copied) and not _begins(name, self._shared)

    def _import_module(self, name: str, package: str | None = None) -> ModuleType:
        name = importlib.util.resolve_name(name, package)
        return self.load(name) if self._is_copied(name) else importlib.import_module(name)

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Collection[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if level:
            assert globals is not None
            name = importlib.util.resolve_name("." * level + name, globals["__package__"])
        if name == "threading" and globals is not None and globals["__name__"] in WATCHING:
            return self._quiet
        if name in self._stand_ins:
            return self._stand_ins[name]
        if not self._is_copied(name):
            return builtins.__import__(name, globals, locals, tuple(fromlist or ()), 0)
        module = self.load(name)
        if not fromlist:
            return self.load(name.partition(".")[0])
        for one in fromlist:
            if hasattr(module, "__path__") and one not in module.__dict__:
                self._import_submodule(module, f"{name}.{one}", one)
        return module

    def _import_submodule(self, module: ModuleType, name: str, last: str) -> None:
        if importlib.util.find_spec(name) is None:
            return
        if self._is_copied(name):
            self.load(name)
        else:
            setattr(module, last, importlib.import_module(name))


def _begins(name: str, beginnings: Collection[str]) -> bool:
    return any(name == one or name.startswith(one + ".") for one in beginnings)


@lru_cache(maxsize=1024)
def _compiled(name: str, path: str, visible: bool, patches: tuple[tuple[str, str], ...]) -> CodeType:
    if not visible and not patches:
        loader = getattr(importlib.util.find_spec(name), "loader", None)
        code: CodeType | None = loader.get_code(name) if isinstance(loader, InspectLoader) else None
        if code is not None:
            return code
    source = Path(path).read_text()
    for old, new in patches:
        if source.count(old) != 1:
            raise UsageError(f"patch of {name}: the text {old!r} stands in it {source.count(old)} times, not once")
        source = source.replace(old, new)
    tree = ast.parse(source, path)
    return compile(instrument(tree) if visible else tree, path, "exec", dont_inherit=True)

"""What instrumented code calls: each access to an attribute or a container is a step of the engine, and then made.

Layer: above `runtime`, beside `instrument`, which writes the calls.
"""

from __future__ import annotations

import operator
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from accel.testing.explore.runtime import Runtime

#: Mutable things whose content is one piece of data; of the last two each item is, and slices are not seen as items.
_CONTAINERS = frozenset({dict, list, set, deque, OrderedDict, defaultdict, Counter, bytearray, memoryview})
_BY_ITEM = frozenset({bytearray, memoryview})
_READS = frozenset(
    "get items keys values copy index count find startswith __len__ most_common total issubset issuperset union "  # noqa: SIM905
    "intersection difference symmetric_difference isdisjoint tobytes cast release hex decode".split()
)
#: Operators that look at all that is in what stands beside them, by the names of their nodes.
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "BitOr": operator.or_,
    "BitXor": operator.xor,
    "BitAnd": operator.and_,
    "Eq": operator.eq,
    "NotEq": operator.ne,
    "Lt": operator.lt,
    "LtE": operator.le,
    "Gt": operator.gt,
    "GtE": operator.ge,
}
#: The operators of augmented assignment.
_IN_PLACE: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.iadd,
    "Sub": operator.isub,
    "Mult": operator.imul,
    "MatMult": operator.imatmul,
    "Div": operator.itruediv,
    "FloorDiv": operator.ifloordiv,
    "Mod": operator.imod,
    "Pow": operator.ipow,
    "LShift": operator.ilshift,
    "RShift": operator.irshift,
    "BitOr": operator.ior,
    "BitXor": operator.ixor,
    "BitAnd": operator.iand,
}


class Accesses:
    """What instrumented code calls, bound to one runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        # (type, attribute) → its name as data, or None if it is no data of an instance.
        self._labels: dict[tuple[type, str], str | None] = {}
        self._local = runtime.local_type

    def names(self) -> dict[str, Any]:
        """Return the names that instrumented code uses."""
        return {
            "_x_load": self.load,
            "_x_store": self.store,
            "_x_delete": self.delete,
            "_x_method": self.method,
            "_x_look": self.look,
            "_x_item": self.item,
            "_x_set_item": self.set_item,
            "_x_delete_item": self.delete_item,
            "_x_in": self.contains,
            "_x_touch": self.touch,
            "_x_binary": self.binary,
            "_x_in_place": self.in_place,
            "_x_atomic": self.atomic,
        }

    def load(self, owner: Any, name: str, /) -> Any:
        """Read an attribute."""
        engine = self._runtime.engine
        if engine is None or engine.current is None:
            return getattr(owner, name)
        key = type(owner), name
        label = self._labels[key] if key in self._labels else self._label(owner, name)
        if label is None:
            return getattr(owner, name)
        engine.access(owner, name, label, write=False)
        value = getattr(owner, name)
        if type(value) in _CONTAINERS and id(value) not in engine.containers:
            engine.containers[id(value)] = value, label
        return value

    def store(self, owner: Any, name: str, value: Any, /) -> None:
        """Write an attribute."""
        engine = self._runtime.engine
        if engine is not None and engine.current is not None:
            key = type(owner), name
            label = self._labels[key] if key in self._labels else self._label(owner, name)
            if label is not None:
                engine.access(owner, name, label, write=True, value=value)
                if type(value) in _CONTAINERS and id(value) not in engine.containers:
                    engine.containers[id(value)] = value, label
        setattr(owner, name, value)

    def delete(self, owner: Any, name: str, /) -> None:
        """Delete an attribute."""
        engine = self._runtime.engine
        if engine is not None and engine.current is not None:
            label = self._label(owner, name)
            if label is not None:
                engine.access(owner, name, label, write=True)
        delattr(owner, name)

    def method(self, owner: Any, name: str, /) -> Any:
        """Return what is called when a method is, or what an attribute holds."""
        if type(owner) in _CONTAINERS:
            return partial(self._call, owner, getattr(owner, name), name not in _READS)
        return self.load(owner, name)

    def _call(self, owner: Any, function: Any, writes: bool, /, *args: Any, **kwargs: Any) -> Any:
        """Call a container's method, which looks at all that is in containers that it is given."""
        others = [one for one in args if type(one) in _CONTAINERS]
        if not others:
            self._access(owner, write=writes)
            return function(*args, **kwargs)
        with self.atomic():
            self._access(owner, write=writes)
            for one in others:
                self._access(one, write=False)
            return function(*args, **kwargs)

    def look(self, function: Any, first: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function that looks at all that is in its first argument."""
        return function(self.touch(first), *args, **kwargs)

    def item(self, owner: Any, key: Any, /) -> Any:
        """Read an item."""
        if type(owner) in _CONTAINERS:
            self._access(owner, key, write=type(owner) is defaultdict)
            value = owner[key]
            if type(value) in _CONTAINERS:
                self._inside(owner, value)
            return value
        return owner[key]

    def set_item(self, owner: Any, key: Any, value: Any, /) -> None:
        """Write an item."""
        if type(owner) in _CONTAINERS:
            self._access(owner, key, write=True, value=value)
            if type(value) in _CONTAINERS:
                self._inside(owner, value)
        owner[key] = value

    def delete_item(self, owner: Any, key: Any, /) -> None:
        """Delete an item."""
        if type(owner) in _CONTAINERS:
            self._access(owner, key, write=True)
        del owner[key]

    def contains(self, one: Any, owner: Any, /) -> bool:
        """Look for an item."""
        return one in self.touch(owner)

    def touch(self, owner: Any, /) -> Any:
        """Return `owner`, of which all is read now if it is a container."""
        if type(owner) in _CONTAINERS:
            self._access(owner, write=False)
        return owner

    def binary(self, name: str, one: Any, other: Any, /) -> Any:
        """Join or compare two things."""
        if type(one) in _CONTAINERS and type(other) in _CONTAINERS:
            with self.atomic():
                self._access(one, write=False)
                self._access(other, write=False)
                return _BINARY[name](one, other)
        return _BINARY[name](self.touch(one), self.touch(other))

    def in_place(self, name: str, one: Any, other: Any, /) -> Any:
        """Do what an augmented assignment does before it assigns."""
        if type(one) in _CONTAINERS:
            with self.atomic():
                self._access(one, write=True)
                return _IN_PLACE[name](one, self.touch(other))
        return _IN_PLACE[name](one, self.touch(other))

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Make what is done inside one step; what it touches is noted all the same."""
        task = self._runtime.task
        if task is None or task.atomic:
            yield
            return
        task.atomic = True
        try:
            yield
        finally:
            task.atomic = task.going = False

    def _access(self, owner: Any, key: Any = "[]", *, write: bool, value: Any = None) -> None:
        engine = self._runtime.engine
        if engine is not None and engine.current is not None:
            known = engine.containers.get(id(owner))
            label = type(owner).__name__ if known is None else known[1]
            if type(owner) in _BY_ITEM and isinstance(key, int):
                engine.access(owner, key, f"{label}[{key}]", write=write, value=value)
            else:
                engine.access(owner, "[]", f"{label}[]", write=write)

    def _inside(self, owner: Any, value: Any) -> None:
        """Name a container that is in another."""
        engine = self._runtime.engine
        if engine is not None and engine.current is not None and id(value) not in engine.containers:
            known = engine.containers.get(id(owner))
            if known is not None:
                engine.containers[id(value)] = value, f"{known[1]}[]"

    def _label(self, owner: Any, name: str) -> str | None:
        kind = type(owner)
        label: str | None = f"{kind.__name__}.{name}"
        if isinstance(owner, (type, ModuleType)) or issubclass(kind, self._local):
            label = None
        else:
            for base in kind.__mro__:
                if name in base.__dict__:
                    found = base.__dict__[name]
                    if hasattr(found, "__get__") and type(found).__name__ != "member_descriptor":
                        label = None
                    break
        self._labels[kind, name] = label
        return label

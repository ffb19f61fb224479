"""Makes every access of a module's functions to attributes and containers visible to an engine; nothing else changes.

`instrument` rewrites the syntax tree: a load of ``x.a`` becomes ``_x_load(x, 'a')``, and so on for stores, deletes,
items, methods of containers, membership, iteration and truth. `Accesses` is what these names are bound to. What it does
not see: variables that closures share, globals, and what functions written in C do with what they are given.

An access and its check are one step: arguments and values are worked out before. A method decorated with ``atomically``
is one step, as an instruction of a processor is that reads and writes at once.
"""

from __future__ import annotations

import ast
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from accel.testing.explore.primitives import Runtime

#: Mutable things whose content is one piece of data; of the last two each item is.
_CONTAINERS = frozenset({dict, list, set, deque, OrderedDict, defaultdict, Counter, bytearray, memoryview})
_BY_ITEM = frozenset({bytearray, memoryview})
_READS = frozenset(
    "get items keys values copy index count find startswith __len__ most_common total issubset issuperset union "  # noqa: SIM905
    "intersection isdisjoint tobytes cast release".split()
)
#: Functions that look at all that is in what they are given.
_LOOKING = frozenset(
    "len list tuple sorted any all sum min max set frozenset dict bool iter enumerate reversed bytes".split()  # noqa: SIM905
)


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
            "_x_invoke": self.invoke,
            "_x_item": self.item,
            "_x_set_item": self.set_item,
            "_x_delete_item": self.delete_item,
            "_x_in": self.contains,
            "_x_touch": self.touch,
            "_x_atomic": self.atomic,
        }

    def load(self, owner: Any, name: str, /) -> Any:
        """Read an attribute."""
        key = type(owner), name
        label = self._labels[key] if key in self._labels else self._label(owner, name)
        if label is not None:
            engine = self._runtime.engine
            if engine is not None and engine.current is not None:
                engine.access(owner, name, label, write=False)
                value = getattr(owner, name)
                if type(value) in _CONTAINERS:
                    engine.containers[id(value)] = value, label
                return value
        return getattr(owner, name)

    def store(self, owner: Any, name: str, value: Any, /) -> None:
        """Write an attribute."""
        key = type(owner), name
        label = self._labels[key] if key in self._labels else self._label(owner, name)
        engine = self._runtime.engine
        if label is not None and engine is not None and engine.current is not None:
            engine.access(owner, name, label, write=True, value=value)
        setattr(owner, name, value)

    def delete(self, owner: Any, name: str, /) -> None:
        """Delete an attribute."""
        label = self._label(owner, name)
        engine = self._runtime.engine
        if label is not None and engine is not None and engine.current is not None:
            engine.access(owner, name, label, write=True)
        delattr(owner, name)

    def invoke(self, owner: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method, or what an attribute holds."""
        if type(owner) in _CONTAINERS:
            self._access(owner, write=name not in _READS)
            return getattr(owner, name)(*args, **kwargs)
        return self.load(owner, name)(*args, **kwargs)

    def item(self, owner: Any, key: Any, /) -> Any:
        """Read an item."""
        if type(owner) in _CONTAINERS:
            self._access(owner, key, write=False)
        return owner[key]

    def set_item(self, owner: Any, key: Any, value: Any, /) -> None:
        """Write an item."""
        if type(owner) in _CONTAINERS:
            self._access(owner, key, write=True, value=value)
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

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Make what is done inside one step; what it touches is noted all the same. Does not nest."""
        task = self._runtime.task
        if task is None:
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

    def _label(self, owner: Any, name: str) -> str | None:
        kind = type(owner)
        label: str | None = f"{kind.__name__}.{name}"
        if isinstance(owner, (type, ModuleType)) or issubclass(kind, self._local):
            label = None
        else:
            for base in kind.__mro__:
                if name in base.__dict__:
                    if (
                        hasattr(base.__dict__[name], "__get__")
                        and type(base.__dict__[name]).__name__ != "member_descriptor"
                    ):
                        label = None
                    break
        self._labels[kind, name] = label
        return label


def instrument(tree: ast.Module) -> ast.Module:
    """Return `tree` with the accesses of its functions made visible."""
    made: ast.Module = _Modules().visit(tree)
    return ast.fix_missing_locations(made)


class _Modules(ast.NodeTransformer):
    """Finds the functions; what runs when a module or class is made stays as it is."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """Rewrite the body, not the decorators and defaults; what is decorated with `atomically` is one step."""
        node.body = _Functions().rewrite(node.body)
        others = [one for one in node.decorator_list if not (isinstance(one, ast.Name) and one.id == "atomically")]
        if len(others) < len(node.decorator_list):
            node.decorator_list = others
            inside = ast.With([ast.withitem(_call(node, "_x_atomic"))], node.body)
            node.body = [ast.copy_location(inside, node)]
        return node


class _Functions(ast.NodeTransformer):
    """Rewrites what functions do."""

    def __init__(self) -> None:
        self._temporaries = 0

    def rewrite(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """Return the statements rewritten."""
        return [made for one in body for made in _as_list(self.visit(one))]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """A function inside: its body only."""
        node.body = self.rewrite(node.body)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        """A class inside: its functions only."""
        node.body = [_Modules().visit(one) for one in node.body]
        return node

    # reads

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        """``x.a``."""
        node.value = self.visit(node.value)
        if not isinstance(node.ctx, ast.Load) or not _plain(node):
            return node
        return _call(node, "_x_load", node.value, ast.Constant(node.attr))

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """``x[k]``."""
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return node
        return _call(node, "_x_item", node.value, node.slice)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """``x.m(…)``, and functions that look into what they are given."""
        func = node.func
        node.args = [self.visit(one) for one in node.args]
        node.keywords = [self.visit(one) for one in node.keywords]
        if isinstance(func, ast.Attribute) and _plain(func):
            node.args = [self.visit(func.value), ast.Constant(func.attr), *node.args]
            node.func = ast.copy_location(ast.Name("_x_invoke", ast.Load()), func)
        elif isinstance(func, ast.Name):
            if func.id in _LOOKING and node.args and not isinstance(node.args[0], ast.Starred):
                node.args[0] = _touch(node.args[0])
        elif not isinstance(func, ast.Attribute):
            node.func = self.visit(func)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        """``k in x``."""
        self.generic_visit(node)
        if len(node.ops) == 1 and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            found = _call(node, "_x_in", node.left, node.comparators[0])
            if isinstance(node.ops[0], ast.In):
                return found
            return ast.copy_location(ast.UnaryOp(ast.Not(), found), node)
        return node

    def visit_Starred(self, node: ast.Starred) -> ast.Starred:
        """``*x``."""
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            node.value = _touch(node.value)
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.comprehension:
        """``for … in x``."""
        self.generic_visit(node)
        node.iter = _touch(node.iter)
        return node

    def visit_For(self, node: ast.For) -> ast.For:
        """``for … in x:``."""
        node.iter = _touch(self.visit(node.iter))
        node.body = self.rewrite(node.body)
        node.orelse = self.rewrite(node.orelse)
        return node

    def _tested(self, node: Any) -> Any:
        self.generic_visit(node)
        node.test = _touch(node.test)
        return node

    visit_If = visit_While = visit_IfExp = _tested

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.UnaryOp:
        """``not x``."""
        self.generic_visit(node)
        if isinstance(node.op, ast.Not):
            node.operand = _touch(node.operand)
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.BoolOp:
        """``x and y``."""
        self.generic_visit(node)
        node.values = [_touch(one) for one in node.values]
        return node

    # writes

    def visit_Assign(self, node: ast.Assign) -> Any:
        """``x.a = v``, also several at once."""
        node.value = self.visit(node.value)
        if all(isinstance(one, ast.Name) for one in node.targets):
            return node
        kept = self._temporary(node)
        made: list[ast.stmt] = [ast.copy_location(ast.Assign([kept], node.value), node)]
        for target in node.targets:
            made += self._assign(target, ast.Name(kept.id, ast.Load()), node)
        return made

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        """``x.a: t = v``."""
        if node.value is None:
            return node
        node.value = self.visit(node.value)
        if isinstance(node.target, ast.Name):
            return node
        return self._assign(node.target, node.value, node)

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        """``x.a += v``: a read and a write."""
        node.value = self.visit(node.value)
        target = node.target
        if isinstance(target, ast.Name):
            return node
        kept = self._temporary(node)
        owner = self.visit(target.value)
        made: list[ast.stmt] = [ast.copy_location(ast.Assign([kept], owner), node)]
        again = ast.Name(kept.id, ast.Load())
        if isinstance(target, ast.Attribute):
            if not _plain(target):
                return node
            key: ast.expr = ast.Constant(target.attr)
            load, store = "_x_load", "_x_store"
        else:
            key_kept = self._temporary(node)
            made.append(ast.copy_location(ast.Assign([key_kept], self.visit(target.slice)), node))
            key = ast.Name(key_kept.id, ast.Load())
            load, store = "_x_item", "_x_set_item"
        value = ast.BinOp(_call(node, load, again, key), node.op, node.value)
        made.append(ast.copy_location(ast.Expr(_call(node, store, again, key, value)), node))
        return made

    def visit_Delete(self, node: ast.Delete) -> Any:
        """``del x.a``."""
        made: list[ast.stmt] = []
        for target in node.targets:
            if isinstance(target, ast.Attribute) and _plain(target):
                done = _call(node, "_x_delete", self.visit(target.value), ast.Constant(target.attr))
                made.append(ast.copy_location(ast.Expr(done), node))
            elif isinstance(target, ast.Subscript):
                done = _call(node, "_x_delete_item", self.visit(target.value), self.visit(target.slice))
                made.append(ast.copy_location(ast.Expr(done), node))
            else:
                made.append(ast.copy_location(ast.Delete([target]), node))
        return made

    def _assign(self, target: ast.expr, value: ast.expr, at: ast.stmt) -> list[ast.stmt]:
        if isinstance(target, ast.Attribute) and _plain(target):
            done = _call(at, "_x_store", self.visit(target.value), ast.Constant(target.attr), value)
        elif isinstance(target, ast.Subscript):
            done = _call(at, "_x_set_item", self.visit(target.value), self.visit(target.slice), value)
        elif isinstance(target, (ast.Tuple, ast.List)):
            later: list[ast.stmt] = []
            for index, one in enumerate(target.elts):
                inner = one.value if isinstance(one, ast.Starred) else one
                if isinstance(inner, ast.Name):
                    continue
                kept = self._temporary(at)
                later += self._assign(inner, ast.Name(kept.id, ast.Load()), at)
                target.elts[index] = ast.Starred(kept, ast.Store()) if isinstance(one, ast.Starred) else kept
            return [ast.copy_location(ast.Assign([target], value), at), *later]
        else:
            return [ast.copy_location(ast.Assign([target], value), at)]
        return [ast.copy_location(ast.Expr(done), at)]

    def _temporary(self, at: ast.stmt) -> ast.Name:
        self._temporaries += 1
        return ast.copy_location(ast.Name(f"_x_{self._temporaries}", ast.Store()), at)


def _plain(node: ast.Attribute) -> bool:
    """Return whether an attribute can be named by a string: not ``super().a``, and no name that a class mangles."""
    of_super = (
        isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name) and node.value.func.id == "super"
    )
    return not of_super and not (node.attr.startswith("__") and not node.attr.endswith("__"))


def _touch(node: ast.expr) -> ast.expr:
    if isinstance(node, (ast.Constant, ast.Compare, ast.GeneratorExp)):
        return node
    return _call(node, "_x_touch", node)


def _call(at: ast.AST, name: str, *args: ast.expr) -> ast.Call:
    call = ast.Call(ast.Name(name, ast.Load()), list(args), [])
    return ast.copy_location(call, at)


def _as_list(made: Any) -> list[ast.stmt]:
    return made if isinstance(made, list) else [made]

"""Makes every access of a module's functions to attributes and containers visible to an engine; nothing else changes.

`instrument` rewrites the syntax tree: a load of ``x.a`` becomes ``_x_load(x, 'a')``, and so on for stores, deletes,
items, methods of containers, membership, iteration and truth; `accesses` is what these names are bound to. What it does
not see: variables that closures share, globals, names that a class mangles (``self.__a``), attributes that a pattern of
``match`` looks at, items reached through a slice, and what functions written in C do with what they are given.

An access and its check are one step: arguments and values are worked out before. A method decorated with ``atomically``
is one step, as an instruction of a processor is that reads and writes at once.

Layer: nothing but syntax trees. The code that is made evaluates everything in Python's order.
"""

from __future__ import annotations

import ast
from typing import Any

#: Functions that look at all that is in what they are given.
_LOOKING = frozenset(
    "len list tuple sorted any all sum min max set frozenset dict bool iter enumerate reversed bytes "  # noqa: SIM905
    "str repr".split()
)
#: Operators that look at all that is in what stands beside them.
_JOINING = (ast.Add, ast.Sub, ast.BitOr, ast.BitAnd, ast.BitXor)
_COMPARING = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
#: What is new or no container, or is looked at piece by piece already.
_UNTOUCHED = (
    *(ast.Constant, ast.Compare, ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp),
    *(ast.List, ast.Tuple, ast.Set, ast.Dict, ast.JoinedStr, ast.BoolOp),
)


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
            node.func = _call(func, "_x_method", self.visit(func.value), ast.Constant(func.attr))
        elif not isinstance(func, ast.Name):
            node.func = self.visit(func)
        elif func.id in _LOOKING and node.args and not isinstance(node.args[0], (ast.Starred, *_UNTOUCHED)):
            node.args = [func, *node.args]
            node.func = ast.copy_location(ast.Name("_x_look", ast.Load()), func)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        """``k in x``."""
        self.generic_visit(node)
        if len(node.ops) == 1 and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            found = _call(node, "_x_in", node.left, node.comparators[0])
            if isinstance(node.ops[0], ast.In):
                return found
            return ast.copy_location(ast.UnaryOp(ast.Not(), found), node)
        if len(node.ops) == 1 and isinstance(node.ops[0], _COMPARING):
            return _joined(node, node.ops[0], node.left, node.comparators[0])
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        """``x + y``."""
        self.generic_visit(node)
        return _joined(node, node.op, node.left, node.right) if isinstance(node.op, _JOINING) else node

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
        if len(node.targets) == 1:
            return self._assign_one(node.targets[0], node.value, node)
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
        return self._assign_one(node.target, node.value, node)

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        """``x.a += v``: a read and a write, and perhaps a write of what is inside."""
        value = self.visit(node.value)
        operator = ast.Constant(type(node.op).__name__)
        target = node.target
        if isinstance(target, ast.Name):
            changed = _call(node, "_x_in_place", operator, ast.Name(target.id, ast.Load()), value)
            return ast.copy_location(ast.Assign([target], changed), node)
        made: list[ast.stmt] = []
        owner = self._kept(target.value, node, made)
        if isinstance(target, ast.Attribute):
            if not _plain(target):
                target.value, node.value = owner, value
                return [*made, node]
            key: ast.expr = ast.Constant(target.attr)
            load, store = "_x_load", "_x_store"
        else:
            key = self._kept(target.slice, node, made)
            load, store = "_x_item", "_x_set_item"
        changed = _call(node, "_x_in_place", operator, _call(node, load, owner, key), value)
        made.append(ast.copy_location(ast.Expr(_call(node, store, owner, key, changed)), node))
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

    def _assign_one(self, target: ast.expr, value: ast.expr, at: ast.stmt) -> list[ast.stmt]:
        """Assign a value that is yet to be worked out, which comes before the target's parts are."""
        made: list[ast.stmt] = []
        parts = [getattr(target, part) for part in ("value", "slice") if hasattr(target, part)]
        assigns = any(isinstance(one, ast.NamedExpr) for one in ast.walk(value))
        if assigns or not all(isinstance(one, (ast.Name, ast.Constant)) for one in parts):
            value = self._kept(value, at, made, visited=True)
        return made + self._assign(target, value, at)

    def _assign(self, target: ast.expr, value: ast.expr, at: ast.stmt) -> list[ast.stmt]:
        if isinstance(target, ast.Attribute) and _plain(target):
            done = _call(at, "_x_store", self.visit(target.value), ast.Constant(target.attr), value)
        elif isinstance(target, ast.Subscript):
            done = _call(at, "_x_set_item", self.visit(target.value), self.visit(target.slice), value)
        elif isinstance(target, (ast.Tuple, ast.List)):
            return self._unpack(target, value, at)
        else:
            return [ast.copy_location(ast.Assign([self.visit(target)], value), at)]
        return [ast.copy_location(ast.Expr(done), at)]

    def _unpack(self, target: ast.Tuple | ast.List, value: ast.expr, at: ast.stmt) -> list[ast.stmt]:
        """Unpack into temporaries, then assign from left to right."""
        names = [one.value if isinstance(one, ast.Starred) else one for one in target.elts]
        if all(isinstance(one, ast.Name) for one in names):
            return [ast.copy_location(ast.Assign([target], value), at)]
        later: list[ast.stmt] = []
        for index, inner in enumerate(names):
            kept = self._temporary(at)
            later += self._assign(inner, ast.Name(kept.id, ast.Load()), at)
            is_starred = isinstance(target.elts[index], ast.Starred)
            target.elts[index] = ast.Starred(kept, ast.Store()) if is_starred else kept
        return [ast.copy_location(ast.Assign([target], value), at), *later]

    def _kept(self, node: ast.expr, at: ast.stmt, made: list[ast.stmt], *, visited: bool = False) -> ast.expr:
        """Return an expression that can be used twice, once `made` has run."""
        if isinstance(node, (ast.Name, ast.Constant)):
            return node
        kept = self._temporary(at)
        made.append(ast.copy_location(ast.Assign([kept], node if visited else self.visit(node)), at))
        return ast.Name(kept.id, ast.Load())

    def _temporary(self, at: ast.stmt) -> ast.Name:
        self._temporaries += 1
        return ast.copy_location(ast.Name(f"_x_{self._temporaries}", ast.Store()), at)


def _plain(node: ast.Attribute) -> bool:
    """Return whether an attribute can be named by a string: not ``super().a``, and no name that a class mangles."""
    of_super = (
        isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name) and node.value.func.id == "super"
    )
    return not of_super and not (node.attr.startswith("__") and not node.attr.endswith("__"))


def _joined(node: ast.expr, op: ast.AST, left: ast.expr, right: ast.expr) -> ast.expr:
    """Return what stands for an operator between two things that may be containers."""
    if isinstance(left, ast.Constant) or isinstance(right, ast.Constant):
        return node
    return _call(node, "_x_binary", ast.Constant(type(op).__name__), left, right)


def _touch(node: ast.expr) -> ast.expr:
    if isinstance(node, _UNTOUCHED) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)):
        return node
    return _call(node, "_x_touch", node)


def _call(at: ast.AST, name: str, *args: ast.expr) -> ast.Call:
    call = ast.Call(ast.Name(name, ast.Load()), list(args), [])
    return ast.copy_location(call, at)


def _as_list(made: Any) -> list[ast.stmt]:
    return made if isinstance(made, list) else [made]

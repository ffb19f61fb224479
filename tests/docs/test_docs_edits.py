"""Blocks that change a file do what a reader would, and the tutorial's accelerator comes out as the scaffold's."""

from __future__ import annotations

import ast
import difflib
from importlib import resources
from typing import Any

import pytest

from .edit_page import merged

#: A file, a block, and what comes of them.
CASES = {
    "import_of_the_same_module_replaces_it": """
from accel.program import Out
---
from accel.program import In, Out
---
from accel.program import In, Out
""",
    "new_import_goes_where_it_is_sorted": """
from array import array

import accel
from accel.program import Out
---
from itertools import repeat
from accel.exits import ExitKind
---
from array import array
from itertools import repeat

import accel
from accel.exits import ExitKind
from accel.program import Out
""",
    "class_without_gaps_replaces_it": """
class A:
    x = 1

    def gone(self): ...


class B: ...
---
class A:
    def new(self): ...
---
class A:
    def new(self): ...


class B: ...
""",
    "new_class_goes_to_the_end": """
class A: ...
---
class B:
    x = 1
---
class A: ...


class B:
    x = 1
""",
    "function_replaces_it_with_its_decorators": """
@hook
def register(a):
    pass


class A: ...
---
@other
def register(b):
    go()
---
@other
def register(b):
    go()


class A: ...
""",
    "method_replaces_it_or_goes_to_the_end": """
class A:
    def one(self):
        old()

    def two(self):
        old()


class B: ...
---
class A:
    # ...

    def three(self):
        new()

    def one(self):
        new()

    # ...
---
class A:
    def one(self):
        new()

    def two(self):
        old()

    def three(self):
        new()


class B: ...
""",
    "assignment_replaces_it_or_follows_the_last": """
class A:
    x = 1

    def one(self): ...
---
class A:
    x = 2
    y = 3

    # ...
---
class A:
    x = 2
    y = 3

    def one(self): ...
""",
    "first_assignment_goes_before_the_methods": """
class A:
    def one(self): ...
---
class A:
    x = 2

    # ...
---
class A:
    x = 2

    def one(self): ...
""",
    "function_without_gaps_replaces_it_in_a_class_with_gaps": """
class A:
    def one(self):
        first()
        second()
---
class A:
    def one(self):
        second()

    # ...
---
class A:
    def one(self):
        second()
""",
    "lines_of_a_function_go_where_they_are_shown": """
class A:
    def one(self):
        first()
        for op in ops:
            look()
        last()
---
class A:
    def one(self):
        zeroth()
        # ...
        for op in ops:
            before()
            look()
            after()
        # ...
        very_last()
---
class A:
    def one(self):
        zeroth()
        first()
        for op in ops:
            before()
            look()
            after()
        last()
        very_last()
""",
    "lines_between_a_gap_and_a_line_go_before_that": """
class A:
    def one(self):
        first()
        second()
        third()
---
class A:
    def one(self):
        # ...
        new()
        newer()
        third()
---
class A:
    def one(self):
        first()
        second()
        new()
        newer()
        third()
""",
    "lines_below_a_gap_go_to_the_end": """
class A:
    def one(self):
        first()
        while True:
            look()
---
class A:
    def one(self):
        # ...
        while True:
            # ...
            go()
---
class A:
    def one(self):
        first()
        while True:
            look()
            go()
""",
    "cases_go_to_the_end_in_order_or_into_the_same_case": """
class A:
    def one(self):
        match op:
            case Load(address):
                load()
            case Halt():
                return
---
class A:
    def one(self):
        match op:
            # ...
            case Load(address):
                # ...
                count()
---
class A:
    def one(self):
        match op:
            case Load(address):
                load()
                count()
            case Halt():
                return
""",
    "new_cases_keep_their_order": """
class A:
    def one(self):
        match op:
            case Load(address):
                load()
---
class A:
    def one(self):
        match op:
            # ...
            case B():
                b()
            case A():
                a()
---
class A:
    def one(self):
        match op:
            case Load(address):
                load()
            case B():
                b()
            case A():
                a()
""",
}


@pytest.mark.parametrize("case", CASES)
def test_edit(case: str) -> None:
    text, block, result = CASES[case].removeprefix("\n").split("---\n")
    assert merged(text, block) == result


@pytest.mark.parametrize(
    "block", ["import os\n", "class A:\n    # ...\n\n    def new(self):\n        # ...\n        go()\n"]
)
def test_edit_that_has_no_place_is_an_error(block: str) -> None:
    with pytest.raises(AssertionError, match="show"):
        merged("import accel\n\n\nclass A:\n    x = 1\n", block)


# the tutorial


@pytest.fixture
def finished(pages: dict[str, Any]) -> str:
    """The file that the tutorial ends with."""
    text = ""
    for block in pages["docs/tutorial/write-an-accelerator.md"].blocks:
        if block.file == "plugins/toy.py":
            text = block.text
        elif block.edited == "plugins/toy.py":
            text = merged(text, block.text)
    return text


def test_tutorial_ends_with_the_accelerator_of_the_scaffold(finished: str) -> None:
    template = (resources.files("accel.cli") / "scaffold" / "package" / "plugin.py").read_text(encoding="utf-8")
    wanted, found = _essence(template.replace("$name", "toy")), _essence(finished)
    assert found == wanted, "\n".join(difflib.unified_diff(wanted.splitlines(), found.splitlines(), lineterm=""))


class _Untyped(ast.NodeTransformer):
    """Takes out what is there for type checkers, and puts what may stand in any order into one order."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        for one in node.args.args:
            one.annotation = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        assert node.value is not None
        return ast.Assign([node.target], node.value, lineno=node.lineno)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        return node.args[1] if isinstance(node.func, ast.Name) and node.func.id == "cast" else node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.body.sort(key=lambda one: one.name if isinstance(one, ast.FunctionDef) else "")
        return node

    def visit_Match(self, node: ast.Match) -> ast.AST:
        self.generic_visit(node)
        node.cases.sort(key=lambda one: ast.unparse(one.pattern))
        return node


def _essence(text: str) -> str:
    """Return a module without its docstring, types and imports, in a certain order."""
    body = [one for one in ast.parse(text).body[1:] if not isinstance(one, (ast.Import, ast.ImportFrom))]
    return ast.unparse(_Untyped().visit(ast.Module(body, [])))

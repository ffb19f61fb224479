"""Writes a block of a page into a Python file that the page has begun, as a reader does who follows it.

What has a name replaces what has that name in the file: an import of a module, a function, a class. What is new is
added: an import in its place in the order, all else at the end. ``# ...`` stands for what the block leaves out:

- In a class, what the block has of it replaces what has that name there, and what is new is added: an assignment
  before the methods, a method at the end.
- In a function, lines that the file has show the place, and the others are added there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from operator import itemgetter

_LEFT_OUT = re.compile(r" *# \.\.\.\n")
_Import = ast.Import | ast.ImportFrom
_Piece = ast.stmt | ast.match_case


def merged(text: str, block: str) -> str:
    """Return `text`, a Python file, with `block` written into it."""
    for node in ast.parse(block).body:
        text = _statement(text, block, node)
    return text


def _statement(text: str, block: str, node: ast.stmt) -> str:
    body = ast.parse(text).body
    old = _find(body, node)
    if isinstance(node, ast.ClassDef) and old is not None and _leaves_out(block, node):
        for member in node.body:
            text = _member(text, block, node.name, member)
        return text
    if old is not None:
        return _replace(text, old, _source(block, node))
    if isinstance(node, _Import):
        return _insert(text, _import_line(body, node), _source(block, node))
    return f"{text.rstrip()}\n\n\n{_source(block, node)}"


def _import_line(body: list[ast.stmt], node: _Import) -> int:
    """Return the line after which an import goes: among those of the standard library, or of this project."""
    place = _place(node)
    before = [one for one in body if isinstance(one, _Import) and _place(one)[0] == place[0] and _place(one) < place]
    assert before, f"where should '{ast.unparse(node)}' go? show the whole file once more"
    return _end(before[-1])


def _place(node: _Import) -> tuple[bool, bool, str]:
    """Return what imports are sorted by."""
    name = _key(node)
    return name.split(".")[0] == "accel", isinstance(node, ast.ImportFrom), name


# classes


def _member(text: str, block: str, owner: str, member: ast.stmt) -> str:
    (found,) = (one for one in ast.parse(text).body if isinstance(one, ast.ClassDef) and one.name == owner)
    old = _find(found.body, member)
    source = _source(block, member)
    if isinstance(member, ast.FunctionDef) and _leaves_out(block, member):
        assert isinstance(old, ast.FunctionDef), f"{owner}.{member.name} is not there yet; show all of it"
        woven = sorted(_woven(block, old.body, member.body), key=itemgetter(0))
        while woven:
            # From the end on, so that the lines before keep their numbers.
            text = _insert(text, *woven.pop())
        return text
    if old is not None:
        return _replace(text, old, source)
    if not isinstance(member, ast.Assign):
        return _insert(text, _end(found), "\n" + source)
    assigned = [one for one in found.body if isinstance(one, ast.Assign)]
    return _insert(text, _end(assigned[-1]), source) if assigned else _insert(text, found.lineno, source + "\n")


# inside of functions


def _woven(block: str, old: Sequence[_Piece], new: Sequence[_Piece]) -> Iterator[tuple[int, str]]:
    """Yield what of `new` is not in `old`, with the line of the file after which it goes."""
    lines = block.splitlines(keepends=True)
    same = [next((one for one in old if type(one) is type(node) and _head(one) == _head(node)), None) for node in new]
    at = _start(old[0]) - 1
    for index, (node, there) in enumerate(zip(new, same, strict=True)):
        if there is not None:
            at = _end(there)
            for part in ("body", "cases"):
                if hasattr(node, part):
                    yield from _woven(block, getattr(there, part), getattr(node, part))
            continue
        if _LEFT_OUT.fullmatch(lines[_start(node) - 2]):
            # After what is left out, which is all up to the next line that is shown.
            following = next((one for one in same[index:] if one is not None), None)
            at = _end(old[-1]) if following is None else _start(following) - 1
        yield at, _source(block, node)


# nodes and lines


def _key(node: ast.stmt) -> str:
    """Return the name by which something of a module or a class is known."""
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            return node.name
        case ast.ImportFrom():
            return node.module or ""
        case ast.Import():
            return node.names[0].name
        case ast.Assign():
            return ast.unparse(node.targets[0])
    raise AssertionError(f"a page cannot write this into a file: {ast.unparse(node)}")


def _head(node: _Piece) -> str:
    """Return the line that a statement begins with, or a case."""
    return ast.unparse(node).splitlines()[0]


def _find(body: list[ast.stmt], node: ast.stmt) -> ast.stmt | None:
    """Return what `node` takes the place of."""
    return next((one for one in body if type(one) is type(node) and _key(one) == _key(node)), None)


def _start(node: _Piece) -> int:
    if isinstance(node, ast.match_case):
        return node.pattern.lineno
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(one.lineno for one in decorators)])


def _end(node: _Piece) -> int:
    last = node.body[-1] if isinstance(node, ast.match_case) else node
    assert last.end_lineno is not None
    return last.end_lineno


def _leaves_out(block: str, node: ast.ClassDef | ast.FunctionDef) -> bool:
    """Whether there is a ``# ...`` in a class or a function."""
    deeper = " " * (node.col_offset + 1)
    lines = block.splitlines(keepends=True)[node.lineno :]
    inside = takewhile(lambda line: not line.strip() or line.startswith(deeper), lines)
    return any(_LEFT_OUT.fullmatch(line) for line in inside)


def _source(text: str, node: _Piece) -> str:
    return "".join(text.splitlines(keepends=True)[_start(node) - 1 : _end(node)])


def _replace(text: str, old: ast.stmt, source: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join([*lines[: _start(old) - 1], source, *lines[_end(old) :]])


def _insert(text: str, line: int, source: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join([*lines[:line], source, *lines[line:]])

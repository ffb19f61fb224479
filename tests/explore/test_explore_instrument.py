"""Instrumented code does what plain code does, and says so to the engine."""

from __future__ import annotations

import ast
import doctest
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from accel.testing.explore.accesses import Accesses
from accel.testing.explore.choosers import RandomChooser
from accel.testing.explore.engine import Engine, Everything
from accel.testing.explore.instrument import instrument
from accel.testing.explore.runtime import Runtime
from accel.testing.explore.task import Task
from accel.testing.explore.world import World

HERE = Path(__file__).parent
CASES = {
    name: file
    for file in ("instrument_cases.py", "instrument_cases_blocks.py")
    for name in re.findall(r"^def (case_\w+)", (HERE / file).read_text(), re.MULTILINE)
}


def called(case: str, names: dict[str, Any] | None) -> tuple[str, list[Any]]:
    """Return what a case returns or raises, and what it logs; instrumented if there are names."""
    common = (HERE / "instrument_common.py").read_text()
    tree = ast.parse(common + (HERE / CASES[case]).read_text().replace("from instrument_common import *", ""))
    namespace: dict[str, Any] = {"__name__": "case", **(names or {})}
    exec(compile(tree if names is None else instrument(tree), "case", "exec"), namespace)
    try:
        result = repr(namespace[case]())
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    return result, namespace["log"]


@pytest.mark.parametrize("case", CASES)
def test_instrument_keeps_what_a_function_does(case: str) -> None:
    assert called(case, Accesses(Runtime()).names()) == called(case, None)


def executed(body: Callable[[dict[str, Any]], object]) -> list[str]:
    """Run `body` as the only task of an execution; return the steps of it."""
    runtime = Runtime()
    steps: list[str] = []

    def observe(task: Task, step: str, *, timed_out: bool) -> None:
        steps.append(step)

    engine = Engine(RandomChooser(0), shared=Everything(), observer=observe)
    engine.spawn("only", lambda: body(Accesses(runtime).names()))
    runtime.engine = engine
    engine.run()
    assert engine.violation is None, engine.violation
    return steps


@pytest.mark.parametrize("case", CASES)
def test_instrument_keeps_what_a_function_does_while_it_is_explored(case: str) -> None:
    found: list[Any] = []
    executed(lambda names: found.append(called(case, names)))
    assert found == [called(case, None)]


STEPS = {
    "b.x = b.y": ["read Box.y", "write Box.x = 1"],
    "b.x += b.y": ["read Box.x", "read Box.y", "write Box.x = 2"],
    "b.l.append(b.y)": ["read Box.l", "read Box.y", "write Box.l[]"],
    "b.l[0] += 1": ["read Box.l", "read Box.l[]", "write Box.l[]"],
    "l = b.l\nl += b.l": ["read Box.l", "read Box.l", "write Box.l[]", "read Box.l[]"],
    "b.l += (1,)": ["read Box.l", "write Box.l[]", "write Box.l = list"],
    "b.l == b.x": ["read Box.l", "read Box.x", "read Box.l[]"],
    "b.l + b.l": ["read Box.l", "read Box.l", "read Box.l[]", "read Box.l[]"],
    "b.l.extend(b.d)": ["read Box.l", "read Box.d", "write Box.l[]", "read Box.d[]"],
    "if b.l: pass": ["read Box.l", "read Box.l[]"],
    "for _ in b.l: pass": ["read Box.l", "read Box.l[]"],
    "3 in b.l": ["read Box.l", "read Box.l[]"],
    "len(b.l)": ["read Box.l", "read Box.l[]"],
    "not b.l or True": ["read Box.l", "read Box.l[]"],
    "b.d['k'].append(1)": ["read Box.d", "read Box.d[]", "write Box.d[][]"],
    "b.n = {}\nb.n['a'] = 1": ["write Box.n = dict", "read Box.n", "write Box.n[]"],
    "b.buffer[3] = 7": ["read Box.buffer", "write Box.buffer[3] = 7"],
    "del b.x": ["write Box.x"],
    "del b.l[0]": ["read Box.l", "write Box.l[]"],
    "b.x, b.y = b.y, b.x": ["read Box.y", "read Box.x", "write Box.x = 1", "write Box.y = 1"],
    "b.me.x": ["read Box.me", "read Box.x"],
    "b.counts['a'] += 1": ["read Box.counts", "write Box.counts[]", "write Box.counts[]"],
    "sorted(b.l, key=b.key)": ["read Box.l", "read Box.key", "read Box.l[]"],
}


@pytest.mark.parametrize("body", STEPS)
def test_instrument_shows_each_access(body: str) -> None:
    def run(names: dict[str, Any]) -> None:
        tree = instrument(ast.parse("class Box: pass\n\ndef main(b):\n" + textwrap.indent(body, "    ")))
        namespace: dict[str, Any] = dict(names)
        exec(compile(tree, "case", "exec"), namespace)
        box = namespace["Box"]()
        box.__dict__.update(
            x=1, y=1, l=[0], d={"k": []}, me=box, buffer=bytearray(4), counts=defaultdict(int), key=None
        )
        namespace["main"](box)

    assert executed(run) == STEPS[body]


def test_instrument_makes_an_atomic_method_one_step() -> None:
    source = """
class Box:
    def __init__(self): self.n = 0
    @atomically
    def add(self):
        self.n = self.n + 1
"""
    namespace: dict[str, Any] = {"__name__": "case", **Accesses(Runtime()).names()}
    exec(compile(instrument(ast.parse(source)), "case", "exec"), namespace)
    box = namespace["Box"]()
    box.add()
    assert box.n == 1


MODULES = ["accel.address", "accel.options", "accel.arch.x86", "accel.exits", "accel.program", "accel.memory.mmio"]


@pytest.mark.parametrize("name", MODULES)
def test_instrument_keeps_a_module_s_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    copy = World(("accel",)).load(name)
    examples = doctest.DocTestParser().get_doctest(copy_text(copy), vars(copy), name, None, 0)
    assert examples.examples
    # The examples name the classes of the copy, whose errors are the ordinary ones.
    assert doctest.DocTestRunner().run(examples).failed == 0, capsys.readouterr().out


def copy_text(module: ModuleType) -> str:
    """Return all docstrings of a module."""
    tree = ast.parse(Path(str(module.__file__)).read_text())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return "\n\n".join(ast.get_docstring(one) or "" for one in ast.walk(tree) if isinstance(one, kinds))

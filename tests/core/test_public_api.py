"""The public API: every name is there, comes when it is first used, and every example in a docstring works."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

import accel

ROOT = Path(accel.__file__).parent.parent
PACKAGES = ("accel", "accel_kvm", "accel_mock", "accel_hvf_stub")


def _module_names() -> list[str]:
    names = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] != "__main__":
                names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


MODULES = _module_names()


def test_public_api_names_are_all_there_and_each_once() -> None:
    assert len(set(accel.__all__)) == len(accel.__all__)
    for name in accel.__all__:
        assert getattr(accel, name) is not None
    assert dir(accel) == sorted(accel.__all__)


def test_public_api_names_have_docstrings() -> None:
    for name in set(accel.__all__) - {"__version__", "MEMORY_OPTIONS"}:
        assert inspect.getdoc(getattr(accel, name)), name


def test_public_api_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'accel' has no attribute 'Machin'"):
        accel.Machin  # noqa: B018


def test_public_api_type_checkers_see_what_is_imported_lazily() -> None:
    """The list for type checkers and the one for the interpreter are the same."""
    tree = ast.parse(Path(accel.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name: where for name, where in typed.items() if where != "accel"} == accel._WHERE
    assert {name for name, where in typed.items() if where == "accel"} == {"devices", "errors", "program"}
    assert set(typed) | {"__version__"} == set(accel.__all__)


def test_public_api_star_import_gives_all_names() -> None:
    namespace: dict[str, object] = {}
    exec("from accel import *", namespace)
    assert set(accel.__all__) <= set(namespace)


def _loaded(script: str) -> set[str]:
    """Return the modules that a process of its own has loaded after `script`."""
    text = dedent(script) + "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, env=environment, check=True
    )
    return set(json.loads(done.stdout))


def test_public_api_import_loads_nothing_but_itself() -> None:
    loaded = _loaded("import accel; accel.__version__; dir(accel)")
    assert {name for name in loaded if name.startswith("accel")} == {"accel"}
    assert not loaded & {"attr", "pluggy", "click"}


def test_public_api_name_loads_what_it_needs_and_no_more() -> None:
    loaded = _loaded("import accel; accel.AddressRange; accel.AddressRange")
    assert {name for name in loaded if name.startswith("accel")} == {"accel", "accel.address", "accel.errors"}
    assert "accel.machine" not in _loaded("import accel; accel.MemoryRegion; accel.IoOut; accel.errors")


def test_public_api_machine_loads_no_command_line() -> None:
    loaded = _loaded("import accel; accel.Machine")
    assert not loaded & {"click", "rich", "cattrs", "elftools", "tomllib", "argparse"}
    assert not {name for name in loaded if name.startswith(("accel.cli", "accel.workload", "accel_"))}


def test_public_api_name_is_kept_after_its_first_use() -> None:
    accel.__dict__.pop("Option", None)
    first = accel.Option
    assert accel.__dict__["Option"] is first


def test_public_api_packages_are_typed() -> None:
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").exists(), package


@pytest.mark.parametrize("name", MODULES)
def test_module_docstring_says_what_it_is_and_its_examples_work(name: str) -> None:
    module = importlib.import_module(name)
    path = Path(module.__file__)
    if path.read_text().strip():
        assert inspect.getdoc(module), f"{name} has no docstring"
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS, extraglobs={})
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples in {name} do not work"


def test_module_examples_are_found() -> None:
    """The test above would pass if it collected nothing."""
    attempted = sum(doctest.testmod(importlib.import_module(name)).attempted for name in ("accel.address", "accel.vm"))
    assert attempted >= 5

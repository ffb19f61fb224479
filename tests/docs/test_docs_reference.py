"""The reference pages and the locking page say what the code says."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import accel
from accel import errors
from accel.locks import LOCK_CLASSES
from accel.memory.address_space import AddressSpace
from accel.memory.dirty_sync import DirtySync
from accel.options import Option
from accel.plugins import plugin_manager

ROOT = Path(__file__).parents[2]


def rows(text: str) -> list[list[str]]:
    """Return the cells of each row of the tables in `text`, without their headings."""
    found: list[list[str]] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if cells and all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            found.pop()
        elif cells:
            found.append(cells)
    return found


def own_part(text: str) -> str:
    """Return `text` up to its first heading."""
    return re.split(r"^#+ ", text, maxsplit=1, flags=re.MULTILINE)[0]


def spans(cell: str) -> list[str]:
    """Return the pieces of inline code in a cell."""
    return re.findall(r"`([^`]+)`", cell)


# api.md


def test_api_page_has_each_public_name_once(reference):
    text = reference["api"].text.replace(reference["api"].section("In modules of their own"), "")
    groups = [own_part(part) for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]]
    names = [spans(cells[0])[0] for group in groups for cells in rows(group)]
    assert sorted(names) == sorted(accel.__all__)


def test_api_page_names_in_modules_exist(reference):
    for cells in rows(reference["api"].section("In modules of their own")):
        first, *others = spans(cells[0])
        module, _, name = first.rpartition(".")
        if cells[1].startswith("module:"):
            importlib.import_module(first)
            continue
        for one in (name, *others):
            assert hasattr(importlib.import_module(module), one), f"{module} has no {one}"


CLASSES = {
    "Machine": accel.Machine,
    "Run": accel.Run,
    "RunResult": accel.RunResult,
    "OpenAccelerator": accel.OpenAccelerator,
    "Vm": accel.Vm,
    "Vcpu": accel.Vcpu,
    "MemoryRegion": accel.MemoryRegion,
    "Address spaces": AddressSpace,
    "Dirty logs": DirtySync,
    "GuestProgram": accel.GuestProgram,
    "X86State": accel.X86State,
}


def signature(function: Any, *, bound: bool) -> str:
    """Return a function's arguments without their types, as a caller sees them."""
    whole = inspect.signature(function)
    arguments = [one.replace(annotation=inspect.Parameter.empty) for one in whole.parameters.values()]
    shown = whole.replace(parameters=arguments[bound:], return_annotation=inspect.Signature.empty)
    return re.sub(r"<(\w+\.\w+): [^>]*>", r"\1", str(shown)).replace("'", '"')


def members(kind: type) -> dict[str, str]:
    """Return the public members of a class, with their arguments; properties and attributes have none."""
    ours = [one for one in reversed(kind.__mro__) if one.__module__.startswith("accel.")]
    return {name: arguments for one in ours for name, arguments in own_members(one).items()}


def own_members(kind: type) -> dict[str, str]:
    """Return those that a class defines itself."""
    found = dict.fromkeys(re.findall(r"^    (\w+): ", inspect.getdoc(kind) or "", re.MULTILINE), "")
    found |= {name: "" for name in getattr(kind, "__annotations__", {}) if not name.startswith("_")}
    for name, member in vars(kind).items():
        if name.startswith("_"):
            continue
        if isinstance(member, classmethod):
            found[name] = signature(member.__func__, bound=True)
        elif inspect.isfunction(member):
            found[name] = signature(member, bound=True)
        elif isinstance(member, property):
            found[name] = ""
    return found


@pytest.mark.parametrize("heading", CLASSES)
def test_api_page_has_the_methods_of_each_class_with_their_arguments(reference, heading):
    section, known = own_part(reference["api"].section(heading)), members(CLASSES[heading])
    listed = [span for cells in rows(section) for span in spans(cells[0])]
    for span in listed:
        name, arguments = re.fullmatch(r"(\w+)(\(.*\))?", span).groups()
        assert name in known or hasattr(CLASSES[heading], name), f"{heading} has no {name}"
        assert (arguments or "") == known.get(name, ""), f"{heading}.{name}"
    methods = {name for name, arguments in known.items() if arguments}
    mentioned = {span.partition("(")[0] for span in spans(section)}
    assert not methods - mentioned


# devices.md and accelerator-options.md


def option_row(option: Option) -> list[str]:
    if option.choices:
        limits = ", ".join(f"`{choice}`" for choice in option.choices)
    elif option.maximum is None:
        limits = "" if option.minimum is None else f"{option.minimum} and up"
    else:
        limits = f"{option.minimum} to {option.maximum}"
    return [f"`{option.name}`", option.kind, f"`{option.default}`", limits, option.help]


def in_decimal(cells: list[str]) -> list[str]:
    """Return a row with hexadecimal default and limits in decimal."""
    return [*cells[:2], *(re.sub(r"0x[0-9a-f]+", lambda m: str(int(m[0], 16)), cell) for cell in cells[2:4]), cells[4]]


def own(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out what plugins of others brought."""
    ours = {"builtin", "kvm", "mock", "hvf", "trace"}
    return {name: one for name, one in found.items() if plugin_manager().source(one) in ours}


def headings(text: str) -> list[str]:
    return re.findall(r"^## (.+)$", text, re.MULTILINE)


def test_devices_page_has_each_device_with_its_options(reference):
    page, devices = reference["devices"], own(plugin_manager().devices())
    assert headings(page.text)[: len(devices)] == sorted(devices)
    for name, device in devices.items():
        section = page.section(name)
        assert device.summary in section
        assert [in_decimal(cells) for cells in rows(section)] == [option_row(option) for option in device.options]


def test_devices_page_names_the_class_of_each_device(reference):
    page = reference["devices"]
    for name, device in own(plugin_manager().devices()).items():
        made = device.create({option.name: option.default for option in device.options})
        assert f"Class `{type(made).__name__}`." in page.section(name)


def test_accelerator_options_page_has_each_accelerator_with_its_options(reference):
    page, accelerators = reference["accelerator-options"], own(plugin_manager().accelerators())
    assert headings(page.text)[: len(accelerators)] == sorted(accelerators)
    for name, accelerator in accelerators.items():
        section = page.section(name)
        assert rows(section) == [option_row(option) for option in accelerator.options]
        assert all(f"Executes `{what}`" in section for what in accelerator.executes)


# errors.md


def drawn_hierarchy(text: str) -> list[tuple[str, str, str]]:
    """Return `(name, parent, other base)` for each line of a drawn tree."""
    found: list[tuple[str, str, str]] = []
    above: list[str] = []
    for line in text.strip().splitlines():
        prefix, name, other = re.match(r"([│├└─ ]*)(\w+)(?: \((\w+)\))?", line).groups()
        depth = len(prefix) // 4
        above[depth:] = [name]
        found.append((name, above[depth - 1] if depth else "Exception", other or ""))
    return found


def real_errors() -> dict[str, type[Exception]]:
    return {name: one for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)}


def test_errors_page_draws_the_hierarchy_that_is_there(reference):
    (tree,) = [block.text for block in reference["errors"].blocks]
    real = [
        (name, one.__bases__[0].__name__, one.__bases__[1].__name__ if len(one.__bases__) > 1 else "")
        for name, one in real_errors().items()
    ]
    assert sorted(drawn_hierarchy(tree)) == sorted(real)


def test_errors_page_says_what_each_error_carries(reference):
    found = {spans(cells[0])[0]: spans(cells[2]) for cells in rows(reference["errors"].text)}
    assert sorted(found) == sorted(real_errors())
    for name, attributes in found.items():
        documented = re.findall(r"^    (\w+): ", inspect.getdoc(real_errors()[name]) or "", re.MULTILINE)
        assert attributes == documented, name


# architecture.md and locking.md


def test_architecture_page_names_each_module_of_the_core(pages):
    named = {span for _, span in pages["docs/explanation/architecture.md"].code_spans()}
    modules = {f"accel/{path.name}" for path in (ROOT / "accel").glob("*.py") if path.name != "__init__.py"}
    modules |= {f"accel/memory/{path.name}" for path in (ROOT / "accel/memory").glob("[a-z]*.py")}
    modules |= {f"accel/{path.name}/" for path in (ROOT / "accel").iterdir() if (path / "__init__.py").exists()}
    assert modules - {"accel/memory/"} <= named


def test_locking_page_has_each_lock_class_with_its_words(pages):
    page = pages["docs/explanation/locking.md"]
    for lock_class in LOCK_CLASSES:
        section = page.section(lock_class.name)
        text = " ".join(section.split())
        assert f"**Rank:** {lock_class.rank} " in text
        assert f"**Type:** {lock_class.type}" in text, lock_class.name
        assert f"**Protects:** {lock_class.protects}." in text, lock_class.name
        assert all(f"**{field}:**" in section for field in ("Type", "Protects", "Comment"))


def test_locking_page_gives_the_order_of_the_ranks(pages):
    section = own_part(pages["docs/explanation/locking.md"].section("Acquisition orders"))
    named = [spans(line)[0] for line in section.splitlines() if re.match(r"\d+\. `", line)]
    assert named == [one.name for one in sorted(LOCK_CLASSES, key=lambda one: one.rank)]


def plain_locks() -> set[str]:
    """Return `Class.attribute` of each lock that is no `accel.locks.Lock`, read from the sources."""
    found = set()
    for folder in ("accel", "accel_kvm", "accel_mock", "accel_hvf_stub", "accel_trace"):
        for path in (ROOT / folder).rglob("*.py"):
            # Scenarios have locks of their own to be explored, which protect nothing of the project.
            if path.name == "locks.py" or "scenarios" in path.parts:
                continue
            for kind in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(kind, ast.ClassDef):
                    found |= {f"{kind.name}.{name}" for name in _lock_attributes(kind)}
    return found


def _lock_attributes(kind: ast.ClassDef) -> set[str]:
    names = set()
    for node in ast.walk(kind):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if not (isinstance(target, ast.Attribute) and isinstance(value, ast.Call)):
            continue
        made = value.func
        if isinstance(made, ast.Attribute) and made.attr in ("Lock", "RLock", "Condition", "Semaphore"):
            names.add(target.attr)
    return names


def test_locking_page_names_each_plain_lock(pages):
    page = pages["docs/explanation/locking.md"]
    assert {span for cells in rows(page.section("Plain locks")) for span in spans(cells[0])} == plain_locks()

"""The house: imports run downward, the core knows no accelerator, plugins know the core's public names only.

All imports count, also those inside functions. Imports for type checkers only are judged apart: they may go upward
where two modules describe one thing, and each that does is listed here with its reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

import accel

ROOT = Path(accel.__file__).parent.parent
PLUGINS = ("accel_kvm", "accel_mock", "accel_hvf_stub", "accel_trace")

#: Top to bottom. A module stands in the longest entry that it begins with; modules of one entry may import each
#: other, but not in a circle.
LAYERS = [
    "accel.__main__",
    "accel.cli",
    "accel.stress",
    "accel.workload",
    "accel.testing",
    "accel.machine",
    "accel.machine_devices",
    "accel.machine_ram",
    "accel.run",
    "accel.vcpu_thread",
    "accel.housekeeper",
    "accel.mmio_dispatch",
    "accel.port_dispatch",
    "accel.run_control",
    "accel.result",
    "accel.plugin_calls",
    "accel.plugins",
    "accel.probing",
    "accel.plugin_manager",
    "accel.plugin_info",
    "accel.plugin_sources",
    "accel.plugin_checks",
    "accel.loaders",
    "accel.devices",
    "accel.hookspecs",
    "accel.vm",
    "accel.vcpu",
    "accel.backend_checks",
    "accel.backend",
    "accel.arch",
    "accel.program",
    "accel.exits",
    "accel.memory.guest_access",
    "accel.memory.dirty_sync",
    "accel.memory.transaction",
    "accel.memory.journal",
    "accel.memory.pins",
    "accel.memory.damage",
    "accel.memory.commit",
    "accel.memory.record",
    "accel.memory.address_space",
    "accel.memory.served",
    "accel.memory.slot_listener",
    "accel.memory.slot_table",
    "accel.memory.slot_update",
    "accel.memory.slot_merge",
    "accel.memory.dirty_rings",
    "accel.memory.slot_plan",
    "accel.memory.listener",
    "accel.memory.host_access",
    "accel.memory.parts",
    "accel.memory.render",
    "accel.memory.splice",
    "accel.memory.flat_view",
    "accel.memory.user_fault",
    "accel.memory.page_resolver",
    "accel.memory.userfaultfd",
    "accel.memory.region",
    "accel.memory.region_contents",
    "accel.memory.region_tree",
    "accel.memory.children",
    "accel.memory.ioeventfd",
    "accel.memory.mmio",
    "accel.memory.ram_block",
    "accel.memory.backing",
    "accel.memory.host_file",
    "accel.memory.host_memory",
    "accel.memory.dirty",
    "accel.memory.bitmap",
    "accel.memory",
    "accel.blocker",
    "accel.blocker_stats",
    "accel.gate",
    "accel.read_locks",
    "accel.locks",
    "accel.lock_graph",
    "accel.lock_report",
    "accel.lock_classes",
    "accel.interrupts",
    "accel.wakeup",
    "accel.options",
    "accel.address",
    "accel.turns",
    "accel.errors",
]

#: Imports for type checkers that go upward, and why they cannot go down.
UPWARD_TYPES = {
    ("accel.vcpu", "accel.vm"): "a vCPU belongs to a VM, which makes it",
    ("accel.gate", "accel.blocker"): "a gate belongs to a blocker, which makes it",
    ("accel.memory.address_space", "accel.memory.transaction"): "a space is part of every transaction",
    ("accel.hookspecs", "accel.machine"): "hooks are told of machines",
    ("accel.plugin_calls", "accel.machine"): "a machine's plugins belong to it, which makes the object",
    ("accel.hookspecs", "accel.loaders.image"): "loaders are registered by a hook",
    ("accel.hookspecs", "accel.devices.base"): "devices are registered by a hook",
}

#: What plugins may use.
PUBLIC = (
    "accel",
    "accel.address",
    "accel.arch",
    "accel.backend",
    "accel.errors",
    "accel.exits",
    "accel.hookspecs",
    "accel.locks",
    "accel.memory.dirty_rings",
    "accel.memory.flat_view",
    "accel.memory.ioeventfd",
    "accel.memory.listener",
    "accel.memory.slot_merge",
    "accel.memory.slot_plan",
    "accel.memory.slot_listener",
    "accel.memory.slot_table",
    "accel.memory.slot_update",
    "accel.options",
    "accel.plugin_checks",
    "accel.program",
    "accel.read_locks",
    "accel.turns",
    "accel.wakeup",
)

#: What their scenarios for the explorer may use beyond: the explorer, and what is explored together with them.
EXPLORED = ("accel.blocker", "accel.testing.explore", "accel.testing.lock_scenarios", "accel.testing.scenarios")


@frozen
class Import:
    """One module that one module imports."""

    source: str
    target: str
    types_only: bool
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def _name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for package in ("accel", *PLUGINS) for path in sorted((ROOT / package).rglob("*.py"))}


def _is_types_block(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(name: str, text: str) -> Iterator[Import]:
    """Yield what the module `name` with this text imports of this project."""

    def visit(node: ast.AST, types_only: bool) -> Iterator[Import]:
        if _is_types_block(node):
            for child in node.body:
                yield from visit(child, True)
            for child in node.orelse:
                yield from visit(child, types_only)
            return
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno} imports relatively"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [one if one in MODULES else str(node.module) for one in inside]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            targets = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        for target in targets:
            if target.partition(".")[0] in ("accel", *PLUGINS):
                yield Import(name, target, types_only, node.lineno)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, types_only)

    yield from visit(ast.parse(text), False)


IMPORTS = [one for name, path in MODULES.items() for one in imports_of(name, path.read_text())]
CORE = [one for one in IMPORTS if one.source.startswith("accel.")]


def layer(module: str) -> int:
    """Return the number of the module's layer; 0 is the top."""
    fitting = [entry for entry in LAYERS if module == entry or module.startswith(entry + ".")]
    assert fitting, f"{module} has no place in the house: put it into LAYERS"
    return LAYERS.index(max(fitting, key=len))


def test_layers_every_module_has_a_place_and_every_place_a_module() -> None:
    used = {layer(name) for name in MODULES if name.startswith("accel.")}
    unused = {entry for number, entry in enumerate(LAYERS) if number not in used}
    assert not unused, f"LAYERS names what is not there: {unused}"


def _goes_up(one: Import) -> bool:
    return one.target != "accel" and layer(one.target) < layer(one.source)


def test_layers_imports_run_downward() -> None:
    upward = [str(one) for one in CORE if not one.types_only and _goes_up(one)]
    assert not upward, "\n".join(upward)


def test_layers_imports_for_types_run_downward_but_for_those_with_a_reason() -> None:
    assert {(one.source, one.target) for one in CORE if one.types_only and _goes_up(one)} == set(UPWARD_TYPES)


def test_layers_modules_do_not_import_each_other_in_a_circle() -> None:
    below: dict[str, set[str]] = {name: set() for name in MODULES}
    for one in CORE:
        if not one.types_only and one.source != one.target:
            below[one.source].add(one.target)
    while leaves := {name for name, targets in below.items() if not targets & set(below)}:
        below = {name: targets for name, targets in below.items() if name not in leaves}
    assert not below, f"these import each other in a circle: {sorted(below)}"


def test_layers_core_imports_the_facade_nowhere() -> None:
    """`import accel` inside the core would hide what a module needs; the commands are users of it."""
    assert [str(one) for one in CORE if one.target == "accel" and not one.source.startswith("accel.cli")] == []


def test_layers_core_names_no_accelerator() -> None:
    """Neither its package, in code or text, nor its name, in code below the commands."""
    for name, path in MODULES.items():
        if name.split(".")[0] != "accel":
            continue
        text = path.read_text()
        assert not [package for package in PLUGINS if package in text], name
        if name.startswith(("accel.cli", "accel.workload", "accel.testing")):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant):
                assert node.value not in ("kvm", "mock", "hvf"), f"{name}:{node.lineno}"


@pytest.mark.parametrize("package", PLUGINS)
def test_layers_plugin_imports_public_names_and_itself(package: str) -> None:
    for one in IMPORTS:
        if one.source.partition(".")[0] == package:
            own = one.target.partition(".")[0] == package
            public = one.target in PUBLIC or one.target.startswith("accel.arch.")
            scenario = one.source.startswith(f"{package}.scenarios") and one.target.startswith(EXPLORED)
            assert own or public or scenario, str(one)


@pytest.mark.parametrize("package", PLUGINS)
def test_layers_plugin_entry_module_is_cheap(package: str) -> None:
    """What is imported to find plugins loads nothing of the plugin itself but its limits."""
    eager = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.parse(MODULES[f"{package}.plugin"].read_text()).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert not {one for one in eager if one.startswith(package) and not one.endswith(".limits")}


def test_layers_pytest_plugin_imports_nothing_of_accel_by_itself() -> None:
    """pytest loads it in every project; what it needs is imported inside of its functions."""
    body = ast.parse((ROOT / "accel_pytest.py").read_text()).body
    top = "\n".join(ast.unparse(node) for node in body if isinstance(node, (ast.Import, ast.ImportFrom, ast.If)))
    assert [one.target for one in imports_of("accel_pytest", top) if not one.types_only] == []
    assert any(one.types_only for one in imports_of("accel_pytest", top))


def test_layers_reader_sees_imports_wherever_they_are() -> None:
    text = """
import accel.errors
from accel import hookspecs, nothing
from accel.memory import region
if TYPE_CHECKING:
    from accel.vm import Vm
else:
    from accel.vcpu import Vcpu
def late():
    from accel_kvm.vm import KvmVm
    importlib.import_module("accel_mock.vm")
import os.path
"""
    found = [(one.target, one.types_only) for one in imports_of("accel.x", text)]
    assert found == [
        ("accel.errors", False),
        ("accel.hookspecs", False),
        ("accel", False),
        ("accel.memory.region", False),
        ("accel.vm", True),
        ("accel.vcpu", False),
        ("accel_kvm.vm", False),
        ("accel_mock.vm", False),
    ]

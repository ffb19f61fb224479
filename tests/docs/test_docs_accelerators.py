"""The page on accelerators: its picture is drawn anew, its calls are all there are, its table says what they claim."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from accel import backend
from accel.backend import Capability, VmConfig
from accel.plugins import plugin_manager

from .lifecycle_picture import TARGET, calls, svg_text

ROOT = Path(__file__).parents[2]
PAGE = "docs/explanation/accelerators.md"
CLASSES = (backend.Accelerator, backend.VmBackend, backend.VcpuBackend)
METHODS = {
    f"{kind.__name__}.{name}": name in kind.__abstractmethods__
    for kind in CLASSES
    for name, one in vars(kind).items()
    if callable(one) and not name.startswith("_")
}


def cells_of(text: str) -> list[list[str]]:
    """Return the cells of each line of the tables in `text`."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


@pytest.fixture
def section(pages: dict[str, Any]) -> Any:
    return pages[PAGE].section


@pytest.fixture
def table(section: Any) -> dict[str, dict[str, str]]:
    """The last table: accelerator → label → cell."""
    rows = cells_of(section("Which there are"))
    start = next(number for number, row in enumerate(rows) if row[0] == "" and "`kvm`" in row)
    names = [name.strip("`") for name in rows[start][1:]]
    body = [(row[0].strip("`"), row[1:]) for row in rows[start + 2 :]]
    return {name: {label: cells[at] for label, cells in body} for at, name in enumerate(names)}


# the picture


def test_accelerators_picture_is_what_the_script_draws() -> None:
    assert TARGET.read_text(encoding="utf-8") == svg_text(), "run: python tests/docs/lifecycle_picture.py"


def test_accelerators_picture_shows_calls_that_there_are_and_all_that_must_be() -> None:
    assert set(calls()) <= set(METHODS)
    assert {name for name, required in METHODS.items() if required} <= set(calls())
    assert all(f"{call.partition('.')[2]}()" in svg_text() for call in calls())


# the calls


def test_accelerators_page_has_each_call_and_says_which_must_be(section: Any) -> None:
    first = [row[0] for row in cells_of(section("The calls"))[2:]]
    told = {name: f"*`{name}`*" in cell for cell in first for name in re.findall(r"`([\w.]+)`", cell)}
    assert told == METHODS


# what each can do


def test_accelerators_table_has_a_row_for_each_capability(table: dict[str, dict[str, str]]) -> None:
    for column in table.values():
        assert list(column) == ["runs guests", "executes", "tests", *map(str, Capability)]
        assert {column[str(one)] for one in Capability} <= {"yes", "no"}


def claims() -> dict[str, dict[str, Any]]:
    """Return what `accelctl list` says of each accelerator here."""
    command = [sys.executable, "-m", "accel", "list", "accelerators", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return {one["name"]: one for one in json.loads(done.stdout)["accelerators"]}


def test_accelerators_table_says_what_accelctl_lists(table: dict[str, dict[str, str]]) -> None:
    found = claims()
    assert {"kvm", "mock", "hvf"} <= set(found)
    for name, column in table.items():
        if name not in found:
            continue  # not installed here
        one = found[name]
        assert column["executes"] == ", ".join(f"`{what}`" for what in one["executes"]), name
        claimed = {str(capability) for capability in Capability if column[str(capability)] == "yes"}
        if not one["available"]:
            continue
        assert column["runs guests"] == "yes", name
        if name == "kvm":  # a kernel may lack some
            assert set(one["capabilities"]) <= claimed
        else:
            assert set(one["capabilities"]) == claimed, name


def test_accelerators_table_says_what_the_stub_s_vms_offer(table: dict[str, dict[str, str]]) -> None:
    accelerator = plugin_manager().accelerators()["hvf"]
    vm = accelerator.create_dry_vm(VmConfig({option.name: option.default for option in accelerator.options}))
    try:
        claimed = {capability for capability in Capability if table["hvf"][str(capability)] == "yes"}
        assert vm.capabilities == claimed
    finally:
        vm.close()
    assert table["hvf"]["runs guests"] == "no"


def test_accelerators_page_names_folders_with_tests(table: dict[str, dict[str, str]]) -> None:
    for name, column in table.items():
        folders = re.findall(r"`([^`]+)`", column["tests"])
        assert folders, name
        for folder in folders:
            assert list((ROOT / folder).rglob("test_*.py")), f"{name}: {folder} has no tests"


def test_accelerators_page_says_of_each_what_it_cannot_do(section: Any, table: dict[str, dict[str, str]]) -> None:
    assert re.findall(r"^- \*\*`(\w+)`\*\* cannot ", section("What each cannot do"), re.MULTILINE) == list(table)

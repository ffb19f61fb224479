"""The reference pages of accelctl and of workload files list what the code has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import attrs
import click
import pytest

from accel.cli import app, conformance, demo, list, locks, mtree, plugins, run, stress
from accel.program import _OPS
from accel.result import Outcome
from accel.workload import schema
from accel.workload.report import Report

PAGES = Path(__file__).parents[2] / "docs" / "reference"


def sections(name: str) -> dict[str, str]:
    """Return a page's sections by heading, whatever its level."""
    parts = re.split(r"^#+ (.*)$", (PAGES / name).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def first_cells(text: str) -> set[str]:
    """Return what stands in backquotes in the first cells of the tables in `text`."""
    return {word for row in re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE) for word in re.findall(r"`([^`]*)`", row)}


TABLES = {
    "[machine]": schema.MachineSpec,
    "[image]": schema.ImageSpec,
    "[[region]]": schema.RegionSpec,
    "[run]": schema.RunSpec,
    "[expect]": schema.ExpectSpec,
}


@pytest.mark.parametrize("heading", TABLES)
def test_workload_page_lists_every_field(heading: str) -> None:
    fields = {field.name for field in attrs.fields(TABLES[heading])}
    listed = first_cells(sections("workload-file.md")[heading])
    if heading == "[image]":
        fields |= {*_OPS, "text"}
    assert listed == fields


def test_workload_page_lists_every_change() -> None:
    fields = {field.name for field in attrs.fields(schema.ChangeSpec)}
    assert first_cells(sections("workload-file.md")["[[change]]"]) == fields | {*get_args(schema.Action)}


def test_workload_page_lists_every_outcome() -> None:
    row = next(line for line in sections("workload-file.md")["[expect]"].splitlines() if line.startswith("| `outcome`"))
    assert re.findall(r"`([^`]*)`", row)[1:] == [str(outcome) for outcome in Outcome]


@pytest.mark.parametrize("command", [run.command, mtree.command, stress.command, conformance.command])
def test_accelctl_page_lists_every_flag(command: click.Command) -> None:
    text = sections("accelctl.md")[f"accelctl {command.name}"]
    listed = {word.split()[0] for word in first_cells(text) if word.startswith("-")}
    flags = {
        name
        for option in command.params
        if isinstance(option, click.Option)
        for name in (*option.opts, *option.secondary_opts)
    }
    assert listed == flags


@pytest.mark.parametrize("command", [list.command, plugins.command, demo.command, locks.command])
def test_accelctl_page_names_every_flag_of_the_other_commands(command: click.Command) -> None:
    text = sections("accelctl.md")[f"accelctl {command.name}"]
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.opts[0] in text


def test_accelctl_page_lists_every_flag_before_the_command() -> None:
    listed = first_cells(sections("accelctl.md")["Flags before the command"])
    flags = {option.opts[0] for option in app.group.params if isinstance(option, click.Option)}
    assert {word.split()[0] for word in listed} == flags


def test_accelctl_page_lists_every_key_of_plugins() -> None:
    from accel.cli.catalogue import plugins as found_plugins

    listed = first_cells(sections("accelctl.md")["accelctl plugins"])
    assert listed == {key for one in found_plugins() for key in one}


def test_accelctl_page_lists_every_key_of_the_report() -> None:
    from accel.result import RunResult

    result = RunResult(Outcome.EXITED, 1, None, 0.0, "mock", "", ())
    data = Report("x", result, b"\xff", 1, False, 0).to_data()
    listed = set(re.findall(r"`([^`]*)`", sections("accelctl.md")["Output"]))
    assert set(data) <= listed


def test_accelctl_page_lists_every_key_of_stress_and_every_kind() -> None:
    from accel.stress.figures import Combination, Figures

    data = Figures(Combination("read", 1, "inhibit", "replace")).to_data()
    text = sections("accelctl.md")["accelctl stress"]
    listed = set(re.findall(r"`([^`]*)`", text))
    assert {*data, *stress.TOUCHES, *stress.CHANGES} <= listed

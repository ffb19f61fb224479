"""Stress from a workload file: its own guest, its changes one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel.errors import UsageError
from accel.stress.figures import Figures
from accel.stress.runner import StressSpec
from accel.stress.workload import _in_order, stress_workload
from accel.workload.parse import parse_text

FILE = """
format = 1
machine = {accelerators = ["kvm"], memory = "2M"}
device = [{type = "debug-exit"}]
region = [{name = "window", kind = "ram", at = 0x1000_0000, size = "64K", max_size = "128K"}]
image = {program = [
  {op = "loop", count = COUNT, body = [{op = "load", address = 0x1000_0000, expect = 0}]},
  {op = "out", port = 0xf4, value = "errors"},
]}
expect = {exit_status = STATUS, min_changes = 1000000, spurious_faults = 7, accelerator = "kvm"}
[[change]]
region = "window"
do = "resize"
size = "128K"
every = "60min"
[[change]]
region = "window"
do = "readonly"
after = "60min"
[[change]]
region = "window"
do = "split"
every = "60min"
"""


def workload(count: int = 1_000_000_000, status: int = 1):
    return parse_text(FILE.replace("COUNT", str(count)).replace("STATUS", str(status)), "w.toml", Path())


def run(one, **how):
    return list(stress_workload("w.toml", one, StressSpec(accelerator="mock", **how)))


def run_until_passes(one, passes: int) -> Figures:
    """Run until the guest has come to its end so often, however long that takes."""

    def end(live: Figures) -> None:
        if live.guest_passes >= passes:
            raise KeyboardInterrupt

    seen: list[Figures] = []
    spec = StressSpec(accelerator="mock", seconds=100.0)
    with pytest.raises(KeyboardInterrupt):
        for figures in stress_workload("w.toml", one, spec, end):
            seen.append(figures)
    (figures,) = seen
    return figures


def test_changes_are_made_once_each_and_then_back_and_forth() -> None:
    specs = workload().changes
    order = _in_order(specs)
    made = [(spec.do, back) for spec, back in (next(order) for _ in range(9))]
    assert made[:3] == [("resize", False), ("readonly", False), ("split", False)]
    assert made[3:5] == [("resize", True), ("split", True)]
    assert made[5:7] == [("resize", False), ("split", False)]
    assert made[7:9] == made[3:5]


def test_workload_runs_on_the_chosen_accelerator_whatever_it_names() -> None:
    (figures,) = run(workload(), updates=20)
    assert figures.combination.touch == "w.toml"
    assert (figures.updates, figures.clean, figures.complete) == (20, True, True)
    assert figures.inhibits > 0
    assert figures.guest_passes == 0, "it was stopped"


def test_workload_that_ends_is_started_anew_and_judged_by_what_its_guest_does() -> None:
    figures = run_until_passes(workload(count=100_000), 2)
    assert figures.guest_passes >= 2
    assert figures.clean, figures.first_error


def test_workload_whose_expectation_fails_has_an_error() -> None:
    figures = run_until_passes(workload(count=100_000, status=3), 1)
    assert figures.guest_errors == figures.guest_passes > 0
    assert figures.first_error == "exit_status: expected 3, found 1"


def test_workload_without_a_change_that_repeats_is_refused() -> None:
    text = FILE.replace("COUNT", "5").replace("STATUS", "1").replace("every", "after")
    with pytest.raises(UsageError, match=r"w\.toml: there is no \[\[change\]\] that repeats"):
        run(parse_text(text, "w.toml", Path()), updates=1)

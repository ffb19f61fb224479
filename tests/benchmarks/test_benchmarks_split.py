"""The benchmark of split updates runs, its sides do the same, and a program whose vCPUs must end does end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import Baselines

ROOT = Path(__file__).parent.parent.parent
_ROUNDS = 2
_MODES = {
    f"split, {vcpus}, {gap}" for vcpus in ("1 vCPU", "2 vCPUs", "4 vCPUs") for gap in ("back to back", "0.5 ms apart")
}

pytestmark = [pytest.mark.needs("gcc"), pytest.mark.kvm, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the benchmark wrote as JSON."""
    target = tmp_path_factory.mktemp("split") / "found.json"
    command = [sys.executable, "-m", "benchmarks", "split", "--rounds", str(_ROUNDS), "--scale", "0.1"]
    done = subprocess.run(
        [*command, "--check", "--json", str(target)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(target.read_text())
    return found


def test_split_report_has_every_mode_with_equally_many_updates_and_no_fault(report: dict[str, Any]) -> None:
    assert {one["name"] for one in report["comparisons"]} == _MODES
    for one in report["comparisons"]:
        for side in ("side", "peer"):
            # Ten updates a turn at this scale, three turns a round.
            assert [counts["done"] for counts in one[side]["counts"]] == [30] * _ROUNDS
            assert all(counts["faults"] == 0 for counts in one[side]["counts"])
            assert one[side]["peak_kib"] > 0
        assert one["ratio"] > 0


def test_split_goals_are_those_of_each_mode_and_of_the_tail_with_one_vcpu(report: dict[str, Any]) -> None:
    limits = {goal["text"]: goal["limit"] for one in report["comparisons"] for goal in one["goals"]}
    medians = {f"{mode}: p50{part}, times C's": 1.5 for mode in _MODES for part in ("", " of the hold alone")}
    tails = {f"{mode}: p99, times C's": 2.0 for mode in _MODES if "1 vCPU" in mode}
    assert limits == {**medians, **tails}


def test_split_report_names_the_host_and_its_kvm(report: dict[str, Any]) -> None:
    assert report["host"]["kvm"]
    assert report["skipped"] == []


@pytest.mark.parametrize("side", ["C", "accel"])
def test_split_side_kicks_running_vcpus_for_its_updates_and_ends(side: str, tmp_path: Path) -> None:
    program = str(Baselines.find_compiler(tmp_path).program("split"))
    command = [program] if side == "C" else [sys.executable, "-m", "benchmarks.worker", "turns", "split"]
    unchecked = {name: value for name, value in os.environ.items() if name != "ACCEL_LOCKDEP"}
    done = subprocess.run(
        [*command, "2"],
        cwd=ROOT,
        env=unchecked,
        input="gap0 20\ngap500 20\ncounts 1\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    ready, back_to_back, apart, counts = map(json.loads, done.stdout.splitlines())
    assert ready == {}
    assert [len(one["costs"]) for one in (back_to_back, apart)] == [20, 20]
    kicks, faults = counts["costs"]
    assert kicks > 0
    assert faults == 0

"""The benchmark of the mock's speed runs both ways, and its guest does what it says; no time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import model_jobs

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("job", ["model", "model-repeatable"])
def test_model_job_runs_its_guest_to_the_end_and_measures_both_sides(job: str) -> None:
    """The job ends the process if the guest added another number of times than it should have."""
    found = model_jobs.run(job, 640)
    assert found["seconds"] > 0
    assert found["peer_seconds"] > 0


@pytest.mark.needs("gcc")
@pytest.mark.timeout(400)
def test_model_benchmark_has_a_ratio_and_a_goal_for_either_kind_of_run(tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks", "--rounds", "1", "--scale", "0.002", "--json", str(target), "model"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    comparisons = json.loads(target.read_text())["comparisons"]
    assert [(one["name"].split(":")[0], len(one["goals"])) for one in comparisons] == [
        ("mock", 1), ("mock from a seed", 1),
    ]  # fmt: skip
    assert all(one["ratio"] > 0 and one["notes"]["operations per second"] for one in comparisons)

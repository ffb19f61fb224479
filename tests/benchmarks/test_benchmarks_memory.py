"""The benchmarks of guest memory run and their sides agree, with tiny maps: never how long anything takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
_ROUNDS = 2

pytestmark = [pytest.mark.needs("gcc"), pytest.mark.timeout(400)]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "--rounds", str(_ROUNDS), "--scale", "0.005", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def _turns(*job: str, asked: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.worker", "turns", *job]
    unchecked = {name: value for name, value in os.environ.items() if name != "ACCEL_LOCKDEP"}
    return subprocess.run(
        command, cwd=ROOT, env=unchecked, input=asked, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the benchmarks of memory wrote as JSON."""
    target = tmp_path_factory.mktemp("benchmarks") / "found.json"
    done = _run("commits", "access", "footprint", "dirty", "--check", "--json", str(target))
    assert done.returncode == 0, done.stderr
    assert "goals" in done.stdout
    found: dict[str, Any] = json.loads(target.read_text())
    return found


def _names(report: dict[str, Any]) -> list[str]:
    return [one["name"] for one in report["comparisons"]]


def test_memory_report_has_every_listener_map_and_edit_at_both_ends(report: dict[str, Any]) -> None:
    kvm = [] if report["skipped"] else ["resize, KVM"]
    cases = ["resize, no listener", "resize, recorded slots", *kvm, "resize, half of it aliased"]
    cases += ["resize, MMIO and overlap", "remove or add", "move", "disable or enable", "read-only or writable"]
    assert {f"{case}: 1 of {size}" for case in cases for size in (20, 50)} <= set(_names(report))


def test_memory_report_says_what_is_skipped_only_where_kvm_is_absent(report: dict[str, Any]) -> None:
    skipped = ["commits on KVM: /dev/kvm cannot be opened"]
    assert report["skipped"] == ([] if "resize, KVM: 1 of 20" in _names(report) else skipped)


def test_memory_comparisons_have_a_ratio_and_memory_for_each_round(report: dict[str, Any]) -> None:
    for one in report["comparisons"]:
        for side in ("side", "peer"):
            assert len(one[side]["values"]) == _ROUNDS, one["name"]
            assert one[side]["peak_kib"] > 0
            assert all(counts["done"] > 0 for counts in one[side]["counts"])
        assert one["ratio"] > 0


def test_memory_commits_of_both_sizes_and_of_c_are_equally_many(report: dict[str, Any]) -> None:
    commits = [one for one in report["comparisons"] if ": 1 of " in one["name"]]
    done = {counts["done"] for one in commits for counts in one["side"]["counts"]}
    in_c = [one for one in commits if one["peer"]["name"].startswith("C:")]
    done |= {counts["done"] for one in in_c for counts in one["peer"]["counts"]}
    # One pair to a turn at this scale, two turns to a round.
    assert done == {4}


def test_memory_goals_are_set_where_the_project_has_them(report: dict[str, Any]) -> None:
    goals = [goal["text"] for one in report["comparisons"] for goal in one["goals"]]
    assert "resize, no listener: 1 of 50, times 1 of 20" in goals
    assert "resize, recorded slots: 1 of 50, ms in the least round" in goals
    assert "translate among 50, µs in the least round" in goals
    assert "write 1308 KiB, one section, times the plain copy" in goals
    assert not [text for text in goals if "KiB, 16 sections" in text], "sections below 1 MiB have none"


def test_memory_view_that_is_kept_shares_its_sections(report: dict[str, Any]) -> None:
    kept = next(one for one in report["comparisons"] if one["name"].startswith("the view before, kept"))
    assert kept["ratio"] < 0.5


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("ram", id="RAM"),
        pytest.param("aliases", id="half of it aliased"),
        pytest.param("mixed", id="MMIO and overlap"),
    ],
)
def test_turns_of_every_edit_leave_the_map_that_rendering_gives(kind: str) -> None:
    asked = "".join(f"{edit} 6\n" for edit in ("resize", "remove", "move", "enable", "readonly"))
    done = _turns("commits", kind, "24", "slots", asked=f"{asked}resize-all 1\nrender 2\n")
    assert done.returncode == 0, done.stderr
    ready, *answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert ready == {}
    assert [len(one["costs"]) for one in answers] == [6, 6, 6, 6, 6, 2, 2]


def test_turns_that_leave_another_map_than_rendering_gives_fail() -> None:
    # The region that is edited shows at another place than its view says: as if a commit had rendered too little.
    program = (
        "from benchmarks import scenes\n"
        "with scenes.scene('ram', 4, 'slots') as scene:\n"
        "    scene.transactions.damage = lambda region, start, end: None\n"
        "    scene.ram[0].move(scene.ram[0].offset + 4096)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "the view is not what rendering the whole tree gives" in done.stderr


def test_turns_of_a_side_that_is_unknown_end_the_run_with_the_reason() -> None:
    program = (
        "from benchmarks.processes import BenchmarkError\n"
        "from benchmarks.turns import TurnProcess, python_job\n"
        "try:\n"
        "    with TurnProcess(python_job('dirty')) as process:\n"
        "        process.wait_ready()\n"
        "        process.turn('nonsense', 1)\n"
        "except BenchmarkError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert "KeyError: 'nonsense'" in done.stdout, done.stderr

"""The benchmarks run and their sides agree, with tiny counts: what they count is checked, never how long it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
_SCALE = 0.005
# 20,000 writes to a turn, 5 turns to a round.
_WRITES_IN_A_ROUND = round(20_000 * _SCALE) * 5

pytestmark = [pytest.mark.kvm, pytest.mark.needs("gcc"), pytest.mark.timeout(400)]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "--rounds", "2", "--scale", str(_SCALE), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the benchmarks of exits and small pieces wrote as JSON."""
    target = tmp_path_factory.mktemp("benchmarks") / "found.json"
    done = _run("exit", "console", "micro", "--check", "--json", str(target))
    assert done.returncode == 0, done.stderr
    assert "goals" in done.stdout
    return json.loads(target.read_text())


def _named(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in report["comparisons"] if one["name"] == name)


def test_report_names_the_host_it_was_measured_on(report: dict[str, Any]) -> None:
    host = report["host"]
    assert host["kernel"].startswith(os.uname().sysname)
    assert "kvm" in host["kvm"]
    assert host["cpus"] == len(os.sched_getaffinity(0))
    assert "-O2" in host["compiler"]


@pytest.mark.parametrize("name", ["port write exit (serial)", "memory write exit (MMIO)"])
def test_exit_counts_on_both_sides_equal_the_guests_own(report: dict[str, Any], name: str) -> None:
    wanted = _WRITES_IN_A_ROUND
    for side in ("side", "peer"):
        for counts in _named(report, name)[side]["counts"]:
            assert counts == {"guest_count": wanted, "exits": wanted, "delivered": wanted, "in_sink": wanted}


def test_coalesced_console_delivers_every_byte_with_fewer_exits(report: dict[str, Any]) -> None:
    wanted = _WRITES_IN_A_ROUND
    for counts in _named(report, "console byte, coalesced")["side"]["counts"]:
        assert counts["guest_count"] == counts["delivered"] == counts["in_sink"] == wanted
        assert counts["exits"] < wanted


def test_every_comparison_has_a_sample_and_a_ratio_for_each_round(report: dict[str, Any]) -> None:
    for one in report["comparisons"]:
        assert len(one["side"]["values"]) == len(one["peer"]["values"]) == report["rounds"] == 2
        assert one["ratio"] > 0
        assert one["side"]["peak_kib"] > 0 < one["peer"]["peak_kib"]


def test_startup_runs_the_command_line(tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    done = _run("startup", "--json", str(target))
    assert done.returncode == 0, done.stderr
    names = [one["name"] for one in json.loads(target.read_text())["comparisons"]]
    assert names == ["accelctl --help", "accelctl run hello.bin"]


def test_unknown_benchmark_is_refused_with_the_names() -> None:
    done = _run("exits")
    assert done.returncode == 2
    assert "'exit', 'console', 'startup', 'micro', 'commits', 'access', 'footprint', 'dirty'" in done.stderr

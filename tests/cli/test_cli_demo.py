"""accelctl demo: on real KVM, on the mock, and what it says where KVM is missing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from accel.cli.demo_show import verdict
from accel.cli.race import Side

Accelctl = Callable[..., subprocess.CompletedProcess[bytes]]

ABSENT = "import accel_kvm.system; accel_kvm.system._DEVICE = '/nonexistent/kvm'"


@pytest.mark.kvm
def test_demo_on_kvm_shows_faults_without_protection_and_none_with_it(accelctl: Accelctl) -> None:
    done = accelctl("demo", "--json")
    data = json.loads(done.stdout)
    assert done.returncode == 0, data
    assert data["accelerator"] == "kvm"
    assert data["passed_over"] == {}
    assert data["guest"]["exit_status"] == 85
    assert "self-check: ok" in data["guest"]["console"]
    unprotected, protected = data["race"]["unprotected"], data["race"]["protected"]
    assert unprotected["faults"] > 0
    assert (protected["faults"], protected["errors"], protected["crash"]) == (0, 0, None)
    assert protected["changes"] > 0
    assert data["passed"]


@pytest.mark.kvm
def test_demo_for_people_explains_what_it_shows(accelctl: Accelctl) -> None:
    done = accelctl("demo", "--seconds", "1")
    text = done.stdout.decode()
    assert done.returncode == 0, text
    assert done.stderr == b""
    for words in (" on kvm (", "self-check: ok", "as it should", "the race", "unprotected", "spurious faults"):
        assert words in text
    assert text.endswith("faults without protection, none with it.\n")


def test_demo_without_kvm_runs_the_mock_and_says_how_to_get_kvm(accelctl_after: Accelctl) -> None:
    without = f"import os; os.environ['ACCEL_BLOCK_PLUGINS'] = 'unicorn'; {ABSENT}"
    done = accelctl_after(without, "demo", "--seconds", "1")
    text = " ".join(done.stdout.decode().split())
    assert done.returncode == 0, text
    assert "on mock" in text
    assert "kvm and hvf cannot be used here, so mock shows it" in text
    assert "counting to 7000 by sevens done" in text
    assert "Machine code on a real processor needs one of these, which say here: kvm: open /nonexistent/kvm" in text
    assert "load the module kvm_intel or kvm_amd" in text


def test_demo_without_any_accelerator_says_why(accelctl: Accelctl) -> None:
    done = accelctl("demo", "--accel", "hvf,nothing")
    assert done.returncode == 3
    assert b"hvf: Hypervisor.framework exists on macOS only" in done.stderr
    assert b"nothing: no accelerator 'nothing'" in done.stderr


@pytest.mark.parametrize(
    ("unprotected", "protected", "passed"),
    [
        (Side("unsafe", faults=1), Side("inhibit"), True),
        (Side("unsafe", faults=0), Side("inhibit"), False),
        (Side("unsafe", faults=1), Side("inhibit", faults=1), False),
        (Side("unsafe", faults=1), Side("inhibit", errors=1), False),
        (Side("unsafe", faults=1), Side("inhibit", crash="triple fault"), False),
        (Side("unsafe", faults=1, errors=2, crash="triple fault"), Side("inhibit"), True),
    ],
)
def test_verdict_needs_faults_without_protection_and_none_with_it(
    unprotected: Side, protected: Side, passed: bool
) -> None:
    assert verdict(unprotected, protected) is passed


def test_images_in_the_package_are_the_example_guests(guests: Path) -> None:
    folder = Path(__file__).parents[2] / "accel" / "testing" / "images"
    images = {path.name for path in folder.glob("*.elf")}
    assert images == {"compute.elf", "stress.elf", "touch.elf"}
    for name in images:
        assert (folder / name).read_bytes() == (guests / name).read_bytes(), f"copy examples/guests/{name} anew"

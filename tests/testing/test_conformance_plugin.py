"""The pytest plugin: imports nothing of accel before it has to; options, marker and fixtures in tests of one's own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Process = Callable[..., "subprocess.CompletedProcess[str]"]

TESTS = """
import pytest
from accel.program import Out, Store


def test_by_option(machine):
    one = machine(Store(0x30_0000, 7), memory="4M")
    one.run(timeout=60)
    assert one.memory.read(0x30_0000, 1) == bytes((7,))
    assert one.accelerator == machine.accelerator


@pytest.mark.accelerators("mock", "soundmock")
def test_by_name(machine, accelerator_name):
    assert machine().accelerator == accelerator_name


@pytest.mark.accelerators(capabilities=["irqchip"])
def test_by_capability(machine):
    assert machine(irqchip=True)


@pytest.mark.accelerators("mock", executes="x86")
def test_by_what_it_executes(machine):
    assert False, "not reached"


@pytest.mark.accelerators("mock", vcpus=65)
def test_by_vcpus(machine):
    assert False, "not reached"


def test_without_an_accelerator():
    assert True
"""


@pytest.fixture
def own_tests(python: Process, tmp_path: Path) -> Process:
    """Run pytest in a folder with tests of one's own, strictly: `own_tests("--accel", "mock")`."""
    (tmp_path / "test_own.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\naddopts = --strict-markers --strict-config\n"
    )

    def run(*arguments: str, tests: str = "") -> subprocess.CompletedProcess[str]:
        if tests:
            (tmp_path / "test_own.py").write_text(tests)
        return python(
            *("-m", "pytest", "-rs", "-v", "-p", "no:cacheprovider", "-p", "accel_pytest", *arguments), cwd=tmp_path
        )

    return run


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return how each test ended, by its name."""
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("test_own.py::")]
    return {words[0].removeprefix("test_own.py::test_"): words[1] for words in lines}


def test_plugin_imports_nothing_of_accel_before_a_test_needs_it(python: Process, tmp_path: Path) -> None:
    (tmp_path / "test_none.py").write_text(
        "import sys\n\ndef test_none():\n"
        "    found = [name for name in sys.modules if name == 'accel' or name.startswith('accel.')]\n"
        "    assert 'accel_pytest' in sys.modules\n"
        "    assert not found, found\n"
    )
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path, autoload=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_plugin_runs_tests_on_the_accelerators_of_the_option(own_tests: Process) -> None:
    done = own_tests("--accel", "mock,soundmock", "--accel", "mock")
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcomes(done) == {
        "by_option[mock]": "PASSED",
        "by_option[soundmock]": "PASSED",
        "by_name[mock]": "PASSED",
        "by_name[soundmock]": "PASSED",
        "by_capability[mock]": "SKIPPED",
        "by_capability[soundmock]": "SKIPPED",
        "by_what_it_executes[mock]": "SKIPPED",
        "by_vcpus[mock]": "SKIPPED",
        "without_an_accelerator": "PASSED",
    }
    for reason in (
        "mock does not claim irqchip",
        "mock executes program; this needs x86",
        "mock has up to 64 vCPUs in a VM; this needs 65",
    ):
        assert reason in done.stdout


def test_plugin_without_the_option_runs_what_a_marker_chooses(own_tests: Process) -> None:
    done = own_tests("-k", "by_option or by_name or without")
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcomes(done) == {
        "by_option[none]": "SKIPPED",
        "by_name[mock]": "PASSED",
        "by_name[soundmock]": "PASSED",
        "without_an_accelerator": "PASSED",
    }
    assert "no accelerator is chosen; give --accel NAME, or mark the test with accelerators(NAME)" in done.stdout


def test_plugin_skips_what_is_for_others_than_the_option_says(own_tests: Process) -> None:
    done = own_tests("--accel", "sizewrong", "-k", "by_name")
    assert outcomes(done) == {"by_name[none]": "SKIPPED"}
    assert "runs on mock, soundmock, and --accel is sizewrong" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--accel", "mok"), "ERROR: --accel: no accelerator 'mok'; did you mean 'mock'"),
        (("--accel", "hvf"), "ERROR: --accel: none of these can be used here: hvf: Hypervisor.framework"),
        (("--accel", " , "), "ERROR: --accel: no accelerator is named"),
    ],
)
def test_plugin_option_that_means_nothing_is_a_usage_error(
    own_tests: Process, arguments: tuple[str, ...], words: str
) -> None:
    done = own_tests(*arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert words in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_plugin_skips_an_accelerator_that_cannot_be_used_beside_one_that_can(own_tests: Process) -> None:
    done = own_tests("--accel", "hvf,mock", "-k", "by_option")
    assert outcomes(done) == {"by_option[hvf]": "SKIPPED", "by_option[mock]": "PASSED"}
    assert "hvf cannot be used here: Hypervisor.framework" in done.stdout


@pytest.mark.parametrize(
    ("marker", "words"),
    [("colour='red'", "unexpected keyword argument 'colour'"), ("vcpus=0", "accelerators(): ")],
)
def test_plugin_marker_that_means_nothing_says_where(own_tests: Process, marker: str, words: str) -> None:
    tests = f"import pytest\n\n@pytest.mark.accelerators({marker})\ndef test_marked(machine):\n    assert machine\n"
    done = own_tests("--accel", "mock", tests=tests)
    assert done.returncode != 0
    assert words in done.stdout + done.stderr
    assert "test_own.py::test_marked" in done.stdout + done.stderr


def test_plugin_closes_machines_after_a_test_that_fails(own_tests: Process) -> None:
    tests = (
        "made = []\n\n"
        "def test_failing(machine):\n    made.append(machine())\n    assert False\n\n"
        "def test_after():\n    assert made[0].vm.closed\n"
    )
    done = own_tests("--accel", "mock", tests=tests)
    assert outcomes(done) == {"failing[mock]": "FAILED", "after": "PASSED"}


def test_plugin_works_where_tests_are_spread_over_processes(own_tests: Process) -> None:
    pytest.importorskip("xdist")
    done = own_tests("-p", "xdist", "--accel", "mock,soundmock", "-n", "2", "-k", "by_option or by_name")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout

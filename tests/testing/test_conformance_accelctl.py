"""accelctl conformance: a table and JUnit XML for what passes and fails; nothing that an accelerator does ends it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from accel.testing.conformance import session

Process = Callable[..., "subprocess.CompletedProcess[str]"]

GROUPS = {
    *("lifecycle", "exits", "kicks", "memory", "slots", "readonly", "dirty_log"),
    *("atomic", "errors", "leaks", "threads", "extras", "x86"),
}
#: What each of them does not claim.
SKIPPED = {
    "mock": "mock executes program; this needs x86",
    "kvm": "kvm does not claim kick-all-vcpus",
    "unicorn": "unicorn does not claim dirty-log",
}


@pytest.mark.parametrize("accelerator", ["mock", pytest.param("kvm", marks=pytest.mark.kvm), "unicorn"])
def test_conformance_of_the_projects_accelerators_passes_and_writes_junit(
    check: Process, tmp_path: Path, accelerator: str
) -> None:
    if accelerator == "unicorn":
        pytest.importorskip("accel_unicorn", reason="examples/accel-unicorn is not installed")
    junit = tmp_path / "results.xml"
    done = check(accelerator, "--junit", junit, "--timeout", "60")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert {line.split()[0] for line in done.stdout.partition("\n\n")[0].splitlines()[1:]} == GROUPS
    assert done.stdout.splitlines()[-1].startswith(f"{accelerator} conforms: ")
    suites = ElementTree.parse(junit).getroot()
    assert {suite.get("name") for suite in suites} == GROUPS
    assert sum(int(suite.get("tests", "0")) for suite in suites) == len(list(suites.iter("testcase"))) > 200
    assert not list(suites.iter("failure"))
    reasons = {str(one.get("message")) for one in suites.iter("skipped")}
    assert SKIPPED[accelerator] in reasons


def test_conformance_failure_says_what_it_did_and_the_rule(check: Process, tmp_path: Path) -> None:
    junit = tmp_path / "results.xml"
    done = check("haltasshutdown", "-k", "exits", "--junit", junit)
    assert done.returncode == 1
    text = " ".join(done.stdout.split())
    assert (
        "FAILED exits: end_of_a_program_is_halt it at the end of a program the vCPU came out with Shutdown(detail=''); "
        "due was Halt rule A guest that halts comes out as HALT, and as nothing else." in text
    )
    assert "Traceback" not in done.stdout
    assert text.endswith("s")
    assert "haltasshutdown does not conform: " in text
    failures = list(ElementTree.parse(junit).iter("failure"))
    assert any("came out with Shutdown" in str(one.get("message")) for one in failures)
    assert all("rule: " in str(one.text) for one in failures)


def test_conformance_verbose_shows_where_it_was_seen(check: Process) -> None:
    done = check("interruptlineraises", "-k", "errors", "-v")
    assert "planted_faults.py" in done.stdout
    assert "  | " in done.stdout


def test_conformance_json_has_groups_and_tests(check: Process) -> None:
    done = check("claimstoomuch", "--group", "lifecycle,errors", "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert (document["format"], document["accelerator"], document["passed"]) == (1, "claimstoomuch", False)
    assert [group["name"] for group in document["groups"]] == ["lifecycle", "errors"]
    (failed,) = [one for one in document["tests"] if one["outcome"] == "failed"]
    assert (failed["group"], failed["name"]) == ("lifecycle", "vm_offers_what_the_probe_claims")
    assert failed["rule"].startswith("What `probe` claims, a VM has")
    skipped = [one for one in document["tests"] if one["outcome"] == "skipped"]
    assert skipped
    assert all(one["text"] for one in skipped)


def test_conformance_of_vcpus_that_never_come_out_fails_by_kicks_and_goes_on(check: Process) -> None:
    done = check("kickignored", "-k", "kicks", "--timeout", "2", "--json")
    assert done.returncode == 1
    tests = {one["name"]: one for one in json.loads(done.stdout)["tests"]}
    assert len(tests) >= 11
    inside = tests["inside_the_guest_bring_it_out"]
    assert inside["outcome"] == "failed"
    assert "after a kick inside the guest: vCPU 0 did not come out within 2 s; its thread stands in " in inside["text"]
    assert all(one["text"] for one in tests.values() if one["outcome"] == "failed")
    assert "did not come out" in tests["reach_only_the_vcpu_that_they_are_for"]["text"]


def test_conformance_of_what_crashes_names_the_signal_and_goes_on(check: Process) -> None:
    done = check("crashes", "-k", "lifecycle,exits", "--json")
    assert done.returncode == 1
    tests = json.loads(done.stdout)["tests"]
    failed = {one["name"]: one["text"] for one in tests if one["outcome"] == "failed"}
    assert failed == {
        "vm_has_what_the_surface_asks_for": "crashed the process: SIGSEGV",
        "fetch_from_a_hole_is_a_failure_that_is_described": "crashed the process: SIGSEGV",
        "fetch_finds_the_code_that_is_there_now": "crashed the process: SIGSEGV",
    }
    assert sum(one["outcome"] == "passed" for one in tests) == len(tests) - 3 > 20


def test_conformance_goes_on_in_a_new_process_where_a_thread_stays_behind(python: Process) -> None:
    script = (
        "from accel.testing.conformance import session\n"
        "children, run_child = [], session._Session._run_child\n"
        "session._Session._run_child = lambda self: (children.append(1), run_child(self))\n"
        "report = session.run('oneatatime', ['threads'], patience=5)\n"
        "print(len(children), *(one.name for one in report.all('failed')))\n"
    )
    assert python("-c", script).stdout == "2 run_vcpus_at_once\n"


def test_conformance_child_that_dies_while_it_writes_is_heard_up_to_there(monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"id": "a", "group": "exits", "name": "out", "rule": "Data comes out."}
    lines = json.dumps({"tests": [about]}) + "\n" + json.dumps({"start": "a"}) + '\n{"end": "a", "outc'

    def command(self: object, descriptor: int) -> list[str]:
        return [sys.executable, "-c", f"import os; os.write({descriptor}, {lines.encode()!r}); os._exit(9)"]

    monkeypatch.setattr(session._Session, "_command", command)
    (failed,) = session.run("mock", ["exits"]).all("failed")
    assert (failed.name, failed.text) == ("out", "ended the process, with exit code 9")


def test_conformance_gives_up_after_many_deaths_and_says_so(python: Process) -> None:
    script = (
        "from accel.testing.conformance import session\n"
        "session.MOST_DEATHS = 2\n"
        "report = session.run('vmcrashes', ['lifecycle'])\n"
        "print(len(report.all('passed')), *(one.text for one in report.all('failed')), sep='\\n')\n"
    )
    passed, *texts = python("-c", script).stdout.splitlines()
    assert (passed, texts[:2]) == ("0", ["crashed the process: SIGSEGV"] * 2)
    assert len(texts) > 8
    assert all(text.startswith("was not tried: 2 tests before had ended their process") for text in texts[2:])


def test_conformance_of_what_keeps_the_interpreter_for_itself_is_ended_and_goes_on(
    broken_plugin: Path, python: Process
) -> None:
    script = (
        "from accel.testing.conformance import session\n"
        "session.HANG_SECONDS = -2\n"  # 6, with four times the longest wait
        "report = session.run('keepsinterpreter', ['exits'], patience=2)\n"
        "print(len(report.all('passed')), *(one.text for one in report.all('failed')), sep='\\n')\n"
    )
    done = python("-c", script)
    passed, *texts = done.stdout.splitlines()
    assert int(passed) > 20
    # One for each rule about fetches.
    assert len(texts) == 2
    assert set(texts) == {"did not come back within 6 s, and could only be stopped together with the process"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("hvf",), 3, "hvf: Hypervisor.framework exists on macOS only"),
        (("mok",), 2, "no accelerator 'mok'; did you mean 'mock'"),
        (("mock", "-k", "kick"), 2, "no group 'kick' of tests; did you mean 'kicks'"),
        ((), 2, "which accelerator?"),
        (("mock,kvm",), 2, "'mock,kvm': one accelerator at a time"),
        (("mock", "--timeout", "0"), 2, "0.0 is no number above zero"),
        (("mock", "--junit", "no/such/folder.xml"), 2, "--junit no/such/folder.xml: No such file or directory"),
    ],
)
def test_conformance_of_what_cannot_be_is_one_message(
    check: Process, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = check(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_conformance_of_what_executes_no_guest_of_ours_skips_with_the_reason(check: Process) -> None:
    done = check("elsewhere", "-k", "lifecycle,memory,leaks", "--json")
    assert done.returncode == 0
    tests = json.loads(done.stdout)["tests"]
    skipped = {one["text"] for one in tests if one["outcome"] == "skipped"}
    assert skipped == {"elsewhere executes arm64; this needs program or x86"}
    passed = {one["name"] for one in tests if one["outcome"] == "passed"}
    assert {"probe_says_what_it_offers", "of_a_vm_that_never_ran"} <= passed
    assert all(one["outcome"] == "skipped" for one in tests if one["group"] == "memory")


def test_conformance_without_pytest_prints_how_to_install_it(python: Process) -> None:
    script = (
        "import sys\nsys.modules['pytest'] = None\nfrom accel.cli import main\nsys.exit(main(['conformance', 'mock']))"
    )
    done = python("-c", script)
    assert done.returncode == 2
    assert done.stderr == "accelctl: conformance needs pytest; install it with: pip install 'accel[testing]'\n"


def test_conformance_lists_its_groups(check: Process) -> None:
    done = check("--list", "--json")
    listed = json.loads(done.stdout)["groups"]
    assert set(listed) == GROUPS == set(session.groups())
    assert next(iter(listed)) == "lifecycle"
    assert all(": " in text for text in listed.values())
    assert "kicks" in check("--list").stdout


def test_conformance_takes_no_settings_of_the_folder_that_it_runs_in(check: Process, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\nfilterwarnings = error\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError('not this one')\n")
    done = check("mock", "-k", "errors", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conftest.py", "pytest.ini"]


def test_conformance_tells_once_what_fails_in_the_same_words(check: Process) -> None:
    done = check("recordnarrow", "-k", "exits,kicks")
    assert done.returncode == 1
    said = done.stdout
    assert said.count("VcpuBackend.record is a memoryview of 16 bytes") == said.count("FAILED ") == 1
    words = " ".join(said.split())
    assert re.search(r"also \d+ more in the same words: \d+ of exits, \d+ of kicks", words)
    assert check("recordnarrow", "-k", "exits", "--verbose").stdout.count("FAILED ") > 20

"""``accelctl run --dry-run``: the calls of a workload's memory in order, as text and as JSON, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import accel
from accel.backend import Accelerator, VmBackend, VmConfig
from accel.cli.dry_run import due
from accel.cli.memory_map.stage import staged_session
from accel.cli.run import command
from accel.errors import CapabilityError
from accel.plugins import plugin_manager
from accel.program import GuestProgram
from accel.workload.schema import ChangeSpec, Count, Duration, ImageSpec, Workload
from accel_hvf_stub.plugin import HvfAccelerator

ROOT = Path(accel.__file__).parent.parent
RESIZE = ROOT / "examples" / "workloads" / "memory-resize.toml"
SUCCESS = "HV_SUCCESS"

HEAD = """
format = 1
machine = {accelerators = ["hvf"], memory = "1M"}
image = {program = []}
"""


@pytest.fixture
def dry_run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Dry-run a workload of this text, or a file, with more flags."""

    def run(workload: str | Path, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
        path = workload
        if isinstance(workload, str):
            path = tmp_path / "w.toml"
            path.write_text(workload)
        return subprocess.run(
            [sys.executable, "-m", "accel", "run", str(path), "--dry-run", *flags],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=tmp_path,
            env={**os.environ, **env},
        )

    return run


def steps_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Return the steps of a JSON document, and check what stands around them."""
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {key: document[key] for key in ("format", "accelerator", "page_size")} == {
        "format": 1,
        "accelerator": "hvf",
        "page_size": 16384,
    }
    steps: list[dict[str, Any]] = document["steps"]
    assert all(call["result"] == SUCCESS for step in steps for call in step["calls"])
    return steps


def short(step: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the calls of a step: name and arguments in their order."""
    return [(call["name"], *call["arguments"].values()) for call in step["calls"]]


def test_dry_run_prints_the_calls_of_a_workload_and_of_its_changes(dry_run) -> None:
    done = dry_run(RESIZE, "--accel", "hvf")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "memory-resize.toml on hvf, in pages of 16K; nothing runs",
        "",
        "when the guest starts",
        "  call       ipa         size       flags  addr       result",
        "  hv_vm_map  0x0         0x4000000  rwx    ram+0x0    HV_SUCCESS",
        "  hv_vm_map  0x10000000  0x100000   rwx    extra+0x0  HV_SUCCESS",
        "",
        "after 5ms, change[0]: resize extra, every 5ms",
        "  call       ipa         size      flags  addr            result",
        "  hv_vm_map  0x10100000  0x100000  rwx    extra+0x100000  HV_SUCCESS",
        "",
        "after 10ms, change[0]: resize extra, and back, every 5ms",
        "  call         ipa         size      result",
        "  hv_vm_unmap  0x10100000  0x100000  HV_SUCCESS",
    ]


def test_dry_run_json_is_one_document_that_is_the_same_in_each_run(dry_run) -> None:
    first, second = (dry_run(RESIZE, "--accel", "hvf", "--json") for _ in range(2))
    assert first.stdout == second.stdout
    steps = steps_of(first)
    assert [(one["at"], one["change"], one["every"], one["held"]) for one in steps] == [
        (None, None, None, False),
        (5000, 0, 5000, False),
        (10000, 0, 5000, False),
    ]
    assert steps[1]["calls"] == [
        {
            "name": "hv_vm_map",
            "arguments": {"ipa": "0x10100000", "size": "0x100000", "flags": "rwx", "addr": "extra+0x100000"},
            "result": SUCCESS,
        }
    ]


CHANGES = (
    HEAD
    + """
[[region]]
name = "one"
at = 0x1000_0000
size = "64K"

[[region]]
name = "two"
at = 0x2000_0000
size = "64K"

[[change]]
after = "7ms"
do = "move"
at = 0x2000_4000
region = "two"

[[change]]
every = "3ms"
times = 1
do = "readonly"
region = "one"

[[change]]
every = "4ms"
do = "disable"
region = "one"
"""
)


def test_dry_run_makes_changes_in_the_order_in_which_they_are_due(dry_run) -> None:
    steps = steps_of(dry_run(CHANGES, "--json"))
    assert [(one["at"], one["change"]) for one in steps[1:]] == [(3000, 1), (4000, 2), (7000, 0), (8000, 2)]
    assert [short(one) for one in steps] == [
        [
            ("hv_vm_map", "0x0", "0x100000", "rwx", "ram+0x0"),
            ("hv_vm_map", "0x10000000", "0x10000", "rwx", "one+0x0"),
            ("hv_vm_map", "0x20000000", "0x10000", "rwx", "two+0x0"),
        ],
        [("hv_vm_protect", "0x10000000", "0x10000", "r-x")],
        [("hv_vm_unmap", "0x10000000", "0x10000")],
        [
            ("hv_vm_unmap", "0x20000000", "0x10000"),
            ("hv_vm_map", "0x20004000", "0x10000", "rwx", "two+0x0"),
        ],
        [("hv_vm_map", "0x10000000", "0x10000", "r-x", "one+0x0")],
    ]
    assert [one["held"] for one in steps] == [False, False, False, True, False]


def test_dry_run_shows_who_would_be_held_in_text(dry_run) -> None:
    text = dry_run(CHANGES).stdout
    assert "after 7ms, change[0]: move two (vCPUs held)\n" in text
    assert "after 3ms, change[1]: readonly one, every 3ms\n" in text


def test_dry_run_of_a_whole_map_change_shows_that_it_holds(dry_run) -> None:
    atomic = CHANGES.replace('do = "readonly"', 'do = "readonly"\natomic = "map"')
    assert [one["held"] for one in steps_of(dry_run(atomic, "--json"))] == [False, True, False, True, False]


def test_dry_run_takes_the_options_of_its_accelerator(dry_run) -> None:
    replaced = steps_of(dry_run(CHANGES, "--json", "-o", "hvf.plan=replace"))
    assert short(replaced[1]) == [
        ("hv_vm_unmap", "0x10000000", "0x10000"),
        ("hv_vm_map", "0x10000000", "0x10000", "r-x", "one+0x0"),
    ]
    assert replaced[1]["held"]
    refused = dry_run(CHANGES, "-o", "hvf.hold=kick-all")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "hold=kick-all needs 'kick-all-vcpus'" in refused.stderr


def test_dry_run_of_a_step_without_calls_says_so(dry_run) -> None:
    device = HEAD + '[[region]]\nname = "c"\nkind = "container"\nat = 0x1000_0000\nsize = "64K"\n'
    text = dry_run(device + '[[change]]\nafter = "1ms"\ndo = "disable"\nregion = "c"\n').stdout
    assert text.endswith("after 1ms, change[0]: disable c\n  no calls\n")


def test_dry_run_of_an_image_for_another_processor_shows_its_memory(dry_run, tmp_path: Path) -> None:
    image = tmp_path / "guest.bin"
    image.write_bytes(b"\xf4")
    done = dry_run(image, "--accel", "hvf", "--memory", "8M", "--cpus", "3")
    assert done.stdout.splitlines()[-1] == "  hv_vm_map  0x0  0x800000  rwx    ram+0x0  HV_SUCCESS"


def test_dry_run_makes_no_file_and_fills_no_memory(dry_run, tmp_path: Path) -> None:
    shutil.copy(RESIZE, tmp_path / "r.toml")
    shutil.copy(RESIZE.parent / "touch.elf", tmp_path)
    backing = f"file,path={tmp_path / 'made'},create"
    done = dry_run(tmp_path / "r.toml", "--accel", "hvf", "--memory-backing", backing)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "made").exists()


def test_dry_run_save_writes_the_workload_too(dry_run, tmp_path: Path) -> None:
    done = dry_run(CHANGES, "--save", "saved.toml")
    assert done.returncode == 0
    assert "two" in (tmp_path / "saved.toml").read_text()


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4
    for one in words:
        assert one in done.stderr


@pytest.mark.parametrize("names", ["kvm", "mock", "kvm,mock"])
def test_dry_run_on_accelerators_without_one_is_refused_and_names_one_that_has_it(dry_run, names: str) -> None:
    refused(dry_run(RESIZE, "--accel", names), 3, names.replace(",", ", "), "no dry run", "--accel", "hvf")


def test_dry_run_takes_the_first_accelerator_of_the_list_that_has_one(dry_run) -> None:
    assert dry_run(RESIZE, "--accel", "kvm,hvf").stdout.startswith("memory-resize.toml on hvf")


def test_dry_run_of_an_accelerator_that_is_switched_off_says_so(dry_run) -> None:
    done = dry_run(RESIZE, "--accel", "hvf", ACCEL_BLOCK_PLUGINS="hvf")
    refused(done, 3, "hvf", "switched off", "no accelerator that is installed does")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--seed", "0"], "--seed"),
        (["--input", "-"], "--input"),
        (["--timeout", "1"], "--timeout"),
        (["--guest-status"], "--guest-status"),
        (["--quiet"], "--quiet"),
    ],
)
def test_dry_run_with_a_flag_for_guests_that_run_is_refused(dry_run, flags: list[str], word: str) -> None:
    done = dry_run(RESIZE, "--accel", "hvf", *flags)
    refused(done, 2, f"--dry-run runs no guest, so {word} means nothing")
    assert done.stdout == ""


ODD = '[[region]]\nname = "odd"\nat = 0x1000_0000\nsize = "20K"\n'
BAD: dict[str, tuple[str, list[str], tuple[str, ...]]] = {
    "size": (HEAD + ODD, [], ("'odd'", "[0x10000000, 0x10005000)", "16K")),
    "address": (HEAD + ODD.replace("0x1000_0000", "0x1000_1000"), [], ("'odd'", "0x10001000", "16K")),
    "ram": (HEAD, ["--memory", "20K"], ("'ram'", "[0x0, 0x5000)", "16K")),
    "too high": (HEAD + ODD.replace("0x1000_0000", "0x10_0000_0000").replace("20K", "16K"), [], ("'odd'", "64G")),
    "no workload": ("format = 2", [], ("format",)),
    "no such option": (HEAD, ["-o", "hvf.pln=least"], ("pln", "plan")),
    "no such accelerator": (HEAD, ["--accel", "hvv"], ("hvv", "hvf")),
}


@pytest.mark.parametrize("name", BAD)
def test_dry_run_of_what_cannot_be_is_refused_with_the_reason(dry_run, name: str) -> None:
    text, flags, words = BAD[name]
    done = dry_run(text, *flags)
    refused(done, 2, *words)
    as_json = dry_run(text, "--json", *flags)
    assert as_json.returncode == 2
    document = json.loads(as_json.stdout)
    assert document["error"]["exit_code"] == 2
    for one in words:
        assert one in document["error"]["message"]


def test_dry_run_shows_the_steps_before_a_change_that_cannot_be_made(dry_run) -> None:
    text = CHANGES + '[[change]]\nafter = "5ms"\ndo = "resize"\nsize = "20K"\nregion = "two"\n'
    done = dry_run(text)
    refused(done, 2, "'two'", "[0x20000000, 0x20005000)", "16K")
    assert done.stdout.count("\nafter ") == 2
    assert "error" in json.loads(dry_run(text, "--json").stdout)


def test_dry_run_names_that_would_steer_a_terminal_are_shown_escaped(dry_run) -> None:
    text = dry_run(HEAD + ODD.replace("odd", "\\u001b[2J\\u0007").replace("20K", "16K")).stdout
    assert "\x1b" not in text
    assert "\\x1b[2J" in text


def test_dry_run_needs_no_plugin_but_its_own_and_leaves_nothing_registered() -> None:
    before = set(plugin_manager().accelerators())
    result = CliRunner().invoke(command, [str(RESIZE), "--accel", "hvf", "--dry-run"], standalone_mode=False)
    assert result.exception is None
    assert set(plugin_manager().accelerators()) == before


def test_accelerator_without_a_dry_run_says_so() -> None:
    for name in ("kvm", "mock"):
        plain: Accelerator = plugin_manager().accelerators()[name]
        assert not plain.dry_run
        with pytest.raises(CapabilityError, match=f"{name} offers no dry run"):
            plain.create_dry_vm(VmConfig())


def test_vm_that_is_no_dry_one_has_no_calls_to_take(rig) -> None:
    assert list(rig.vm.backend.take_calls()) == []


class _Watched(HvfAccelerator):
    """Hands out its dry VMs to a test too."""

    def create_dry_vm(self, config: VmConfig) -> VmBackend:
        self.made = super().create_dry_vm(config)
        return self.made


def test_staged_session_takes_each_call_once_and_closes_the_dry_vm() -> None:
    watched = _Watched()
    workload = Workload(image=ImageSpec(program=GuestProgram([])))
    with staged_session(workload, "w", watched) as session:
        vm = session.machine.vm.backend
        assert [call.name for call in vm.take_calls()] == ["hv_vm_map"]
        assert list(vm.take_calls()) == []
        # What it noted of host memory would otherwise grow with each mapping.
        assert watched.made._sources == {}
    assert [call.function for call in watched.made._recorder.calls] == ["hv_vm_destroy"]
    assert watched.made._recorder.illegal == []


def test_due_repeats_once_there_and_back_unless_it_is_limited() -> None:
    def spec(**fields: object) -> ChangeSpec:
        return ChangeSpec("r", "disable", **fields)  # type: ignore[arg-type]

    specs = [
        spec(every=Duration(10)),
        spec(after=Duration(15)),
        spec(every=Duration(4), after=Duration(10), times=Count(9)),
        spec(every=Duration(7), times=Count(1)),
    ]
    assert due(specs) == [(7, 3, 0), (10, 0, 0), (10, 2, 0), (14, 2, 1), (15, 1, 0), (20, 0, 1)]

"""accelctl run on the example guests: the guest's bytes on stdout, the report on stderr, the exit code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Accelctl = Callable[..., subprocess.CompletedProcess[bytes]]

WORKLOADS = Path(__file__).parents[2] / "examples" / "workloads"


def document(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    """Return the one JSON document on stdout."""
    data: dict[str, Any] = json.loads(done.stdout)
    return data


@pytest.mark.kvm
def test_run_hello_prints_its_bytes_and_reports_on_stderr(accelctl: Accelctl, guests: Path) -> None:
    done = accelctl("run", guests / "hello.bin")
    assert done.returncode == 0
    assert done.stdout == b"Hello, accel!\n"
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("guest   exited with status 1 after ")
    assert lines[1].startswith("ran on  kvm (")
    assert "1 vCPU" in lines[1]
    assert lines[2].startswith("exits   io ")


#: Image, flags, what it prints, its status.
GUESTS: list[tuple[str, list[str], bytes, int]] = [
    ("hello.bin", [], b"Hello, accel!\n", 1),
    ("hello-console.bin", [], b"Hello, accel!\n", 1),
    ("compute.elf", [], b"self-check: ok\n", 85),
    ("smp.elf", ["--cpus", "1"], b"1 vCPUs counted to 20000\n", 1),
    ("smp.elf", ["--cpus", "2"], b"2 vCPUs counted to 20000\n", 1),
    ("smp.elf", ["--cpus", "4"], b"4 vCPUs counted to 20000\n", 1),
    ("wild.elf", [], b"ok\n", 1),
    ("touch.elf", ["--memory", "512M"], b"touch: rounds=50 errors=0\n", 1),
    ("touch.elf", [], b"touch: rounds=50 errors=3200, first at 0x10000008", 3),
]


@pytest.mark.kvm
@pytest.mark.parametrize(("image", "flags", "printed", "status"), GUESTS)
def test_run_each_guest_on_the_accelerator_that_was_asked_for(
    accelctl: Accelctl, guests: Path, image: str, flags: list[str], printed: bytes, status: int
) -> None:
    done = accelctl("run", guests / image, *flags, "--timeout", "60", "--json")
    data = document(done)
    assert done.returncode == 0, done.stderr
    assert data["accelerator"] == "kvm"
    assert data["outcome"] == "exited"
    assert data["exit_status"] == status
    assert printed in data["console"].encode()
    assert len(data["vcpus"]) == (int(flags[1]) if "--cpus" in flags else 1)
    assert done.stderr == b""


@pytest.mark.kvm
def test_run_input_from_a_pipe_is_echoed(accelctl: Accelctl, guests: Path) -> None:
    done = accelctl("run", guests / "echo.elf", "--input", "-", "--timeout", "30", stdin=b"over and out\x04")
    assert (done.returncode, done.stdout) == (0, b"over and out")


@pytest.mark.kvm
def test_run_input_from_a_file_is_echoed(accelctl: Accelctl, guests: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\x00\xff keys\x04")
    done = accelctl("run", guests / "echo.elf", "--input", "keys", "--timeout", "30")
    assert (done.returncode, done.stdout) == (0, b"\x00\xff keys")


@pytest.mark.kvm
def test_run_stdin_that_is_no_terminal_is_left_alone(accelctl: Accelctl, guests: Path) -> None:
    done = accelctl("run", guests / "echo.elf", "--timeout", "0.5", stdin=b"not for the guest\x04")
    assert (done.returncode, done.stdout) == (124, b"")


@pytest.mark.kvm
def test_run_quiet_prints_the_guest_only(accelctl: Accelctl, guests: Path) -> None:
    done = accelctl("run", guests / "hello.bin", "-q")
    assert (done.stdout, done.stderr) == (b"Hello, accel!\n", b"")


@pytest.mark.kvm
@pytest.mark.parametrize(("flags", "code"), [([], 0), (["--guest-status"], 85)])
def test_run_guest_status_is_the_exit_code_on_request(
    accelctl: Accelctl, guests: Path, flags: list[str], code: int
) -> None:
    assert accelctl("run", guests / "compute.elf", "-q", *flags).returncode == code


#: Image, flags, exit code, outcome, words in the report.
ENDINGS = [
    ("halt.bin", [], 0, "halted", "halted after"),
    ("triple-fault.elf", [], 4, "crashed", "vCPU 0: shutdown: triple fault at RIP"),
    ("garbage.elf", [], 4, "crashed", "crashed: vCPU 0: shutdown"),
    ("wild-jump.elf", [], 4, "crashed", "internal-error"),
    ("spin.bin", ["--timeout", "0.3"], 124, "timed-out", "timed out after"),
    ("console-spin.bin", ["--timeout", "0.3"], 124, "timed-out", "timed out after"),
    ("halt.bin", ["--irqchip", "--timeout", "0.3"], 124, "timed-out", "timed out after"),
]


@pytest.mark.kvm
@pytest.mark.parametrize(("image", "flags", "code", "outcome", "words"), ENDINGS)
def test_run_each_ending_has_its_exit_code(
    accelctl: Accelctl, guests: Path, image: str, flags: list[str], code: int, outcome: str, words: str
) -> None:
    done = accelctl("run", guests / image, *flags)
    assert done.returncode == code
    assert words in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert document(accelctl("run", guests / image, *flags, "--json"))["outcome"] == outcome


@pytest.mark.kvm
@pytest.mark.parametrize("image", ["flood.bin", "flood-serial.bin"])
def test_run_guest_that_floods_is_stopped_and_the_report_is_bounded(
    accelctl: Accelctl, guests: Path, image: str
) -> None:
    done = accelctl("run", guests / image, "--timeout", "2", "--json")
    assert done.returncode == 124
    assert len(done.stdout) < 2 << 20


@pytest.mark.kvm
def test_run_output_that_nobody_reads_ends_quietly(guests: Path) -> None:
    command = [sys.executable, "-m", "accel", "run", guests / "flood.bin", "--timeout", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.kvm
def test_run_output_to_a_full_disk_is_one_message(guests: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "accel", "run", guests / "hello.bin"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 5
    assert done.stderr.decode().count("\n") == 1
    assert "No space left on device" in done.stderr.decode()


@pytest.mark.kvm
def test_run_without_stdin_and_stdout_runs(guests: Path) -> None:
    command = f"'{sys.executable}' -m accel run '{guests / 'hello.bin'}' <&- >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    assert b"exited with status 1" in done.stderr


@pytest.mark.kvm
def test_run_interrupt_stops_the_guest_and_reports(guests: Path) -> None:
    command = [sys.executable, "-m", "accel", "run", guests / "console-spin.bin"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"Hello, accel!\n"
        process.send_signal(signal.SIGINT)
        report = process.stderr.read().decode()
        assert process.wait() == 130
    assert "stopped after" in report
    assert "Traceback" not in report


@pytest.mark.kvm
def test_run_options_of_the_accelerator_are_used(accelctl: Accelctl) -> None:
    done = accelctl("run", WORKLOADS / "race.toml", "-o", "kvm.hold=inhibit", "--accel", "kvm", "--json")
    data = document(done)
    assert data["spurious_faults"] == 0
    assert data["memory"]["inhibits"] > 0
    assert done.returncode == 1
    assert [one["name"] for one in data["expectations"] if not one["passed"]] == ["min_spurious_faults"]


# workload files


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("name", "accelerator"),
    [("hello", "kvm"), ("memory-resize", "kvm"), ("memory-tree", "kvm"), ("race", "kvm"), ("mock-program", "mock")],
)
def test_run_example_workload_passes(accelctl: Accelctl, name: str, accelerator: str) -> None:
    done = accelctl("run", WORKLOADS / f"{name}.toml", "--json")
    data = document(done)
    assert done.returncode == 0, data
    assert data["passed"]
    assert data["accelerator"] == accelerator


def test_run_example_workloads_are_all_tested() -> None:
    tested = {"hello", "memory-resize", "memory-tree", "race", "mock-program"}
    assert {path.stem for path in WORKLOADS.glob("*.toml")} == tested


def test_run_memory_tree_is_the_same_on_the_mock(accelctl: Accelctl) -> None:
    done = accelctl("run", WORKLOADS / "memory-tree.toml", "--accel", "mock", "--json")
    data = document(done)
    assert (done.returncode, data["accelerator"], data["spurious_faults"]) == (0, "mock", 0), data
    assert [(one["name"], one["backing"]) for one in data["ram"]] == [
        ("ram", "memfd"),
        ("bank-0", "anonymous"),
        ("bank-1", "anonymous"),
        ("page", "anonymous"),
    ]
    assert data["ram"][0]["resident_bytes"] == data["ram"][0]["size"]


def test_run_images_of_example_workloads_are_the_guests(guests: Path) -> None:
    for name in ("hello.bin", "touch.elf"):
        assert (WORKLOADS / name).read_bytes() == (guests / name).read_bytes(), f"copy examples/guests/{name} anew"


def test_run_race_is_lost_on_the_mock_too(accelctl: Accelctl) -> None:
    done = accelctl("run", WORKLOADS / "race.toml", "--accel", "mock", "--json")
    data = document(done)
    assert (done.returncode, data["accelerator"]) == (0, "mock")
    assert data["spurious_faults"] > 0


@pytest.mark.kvm
def test_run_program_gives_the_same_on_kvm_and_mock(accelctl: Accelctl) -> None:
    for accelerator in ("mock", "kvm"):
        done = accelctl("run", WORKLOADS / "mock-program.toml", "--accel", accelerator, "--json")
        data = document(done)
        assert (data["accelerator"], data["console"], done.returncode) == (accelerator, "a thousand sevens\n", 0)


def test_run_failed_expectation_is_told_and_exits_with_1(accelctl: Accelctl, tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(
        'format = 1\nmachine = {accelerators = ["mock"]}\nimage = {program = [{op = "halt"}]}\n'
        'expect = {outcome = "exited"}\n'
    )
    done = accelctl("run", "w.toml", "-q")
    assert done.returncode == 1
    assert "FAILED outcome: expected exited, found halted" in done.stderr.decode()


def test_run_flags_come_before_the_file(accelctl: Accelctl, tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(
        'format = 1\nmachine = {accelerators = ["kvm"], cpus = 7, memory = "900G"}\n'
        'image = {program = [{op = "loop", body = []}]}\nrun = {timeout = "1min"}\n'
    )
    done = accelctl("run", "w.toml", "--accel", "mock", "--cpus", "2", "--memory", "2M", "--timeout", "0.05", "--json")
    data = document(done)
    assert (done.returncode, data["accelerator"], len(data["vcpus"])) == (124, "mock", 2)


# saving


@pytest.mark.kvm
def test_run_save_writes_what_the_flags_meant(accelctl: Accelctl, guests: Path, tmp_path: Path) -> None:
    (tmp_path / "compute.elf").write_bytes((guests / "compute.elf").read_bytes())
    flags = ["--memory", "32M", "--cpus", "2", "-o", "kvm.plan=replace", "--timeout", "50"]
    first = accelctl("run", "compute.elf", *flags, "--save", "saved.toml")
    assert first.returncode == 0, first.stderr
    saved = (tmp_path / "saved.toml").read_text()
    for line in ('memory = "32M"', "cpus = 2", 'plan = "replace"', 'path = "compute.elf"', 'timeout = "50s"'):
        assert line in saved.splitlines()
    second = accelctl("run", "saved.toml", "--json")
    data = document(second)
    assert (second.returncode, len(data["vcpus"]), data["exit_status"]) == (0, 2, 85)
    assert data["console"].encode() == first.stdout

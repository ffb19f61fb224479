"""``accelctl run --until TEXT``."""

from __future__ import annotations

import json

import pytest

SEABIOS = "/usr/share/seabios/bios.bin"


@pytest.mark.kvm
@pytest.mark.needs(SEABIOS)
def test_run_firmware_until_it_finds_no_disk_is_success_with_its_log_on_stdout(accelctl) -> None:
    done = accelctl("run", "--firmware", SEABIOS, "--until", "No bootable device", "--timeout", "90")
    assert done.returncode == 0
    assert done.stdout.startswith(b"SeaBIOS (version")
    assert b"No bootable device" in done.stdout
    assert b"printed what it was run until" in done.stderr


@pytest.mark.kvm
def test_run_until_of_a_guest_that_ends_without_it_is_a_failed_expectation(accelctl, guests) -> None:
    done = accelctl("run", guests / "hello.bin", "--until", "goodbye", "--json")
    assert done.returncode == 1
    [verdict] = json.loads(done.stdout)["expectations"]
    assert (verdict["name"], verdict["passed"]) == ("until", False)


def test_run_until_nothing_is_a_usage_error(accelctl) -> None:
    done = accelctl("run", "guest.bin", "--until", "")
    assert done.returncode == 2
    assert b"Invalid value for '--until': has 0 bytes; it must have 1 to 1,024" in done.stderr


def test_run_until_is_saved_in_the_workload_file(accelctl, tmp_path) -> None:
    (tmp_path / "w.toml").write_text(
        'format = 1\nmachine.accelerators = "mock"\nimage.program = [{op = "text", port = 0xe9, text = "hi"}, '
        '{op = "loop", body = []}]\ndevice = [{type = "debug-console"}]\n'
    )
    done = accelctl("run", tmp_path / "w.toml", "--until", "hi", "--save", tmp_path / "saved.toml")
    assert (done.returncode, done.stdout) == (0, b"hi")
    assert 'until = "hi"' in (tmp_path / "saved.toml").read_text()
    again = accelctl("run", tmp_path / "saved.toml", "--json")
    assert json.loads(again.stdout)["outcome"] == "printed"

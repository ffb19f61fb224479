"""accelctl list: what there is, whether it can be used, and why not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

import accel

Accelctl = Callable[..., subprocess.CompletedProcess[bytes]]


def test_list_names_everything_and_why_it_cannot_be_used(accelctl: Accelctl) -> None:
    done = accelctl("list")
    text = done.stdout.decode()
    assert done.returncode == 0
    assert done.stderr == b""
    for word in ("kvm", "mock", "hvf", "serial", "debug-console", "debug-exit", "cmos", "elf", "flat", "firmware"):
        assert any(line.startswith(word) for line in text.splitlines()), word
    assert "hvf: Hypervisor.framework exists on macOS only" in text
    assert f"(accel {accel.__version__})" in text


def test_list_json_tells_availability_and_capabilities(accelctl: Accelctl) -> None:
    data = json.loads(accelctl("list", "accelerators", "--json").stdout)
    assert list(data) == ["format", "accelerators", "broken_plugins"]
    found = {one["name"]: one for one in data["accelerators"]}
    assert found["mock"]["available"] is True
    assert found["mock"]["executes"] == ["program"]
    assert found["mock"]["plugin"] == "mock"
    assert found["hvf"]["available"] is False
    assert found["hvf"]["reason"]
    assert "hold" in [option["name"] for option in found["mock"]["options"]]
    assert data["broken_plugins"] == []


@pytest.mark.kvm
def test_list_kvm_is_available_with_its_capabilities(accelctl: Accelctl) -> None:
    data = json.loads(accelctl("list", "accelerators", "kvm", "--json").stdout)
    (kvm,) = data["accelerators"]
    assert kvm["available"] is True
    assert "readonly-memory" in kvm["capabilities"]
    assert kvm["details"]["host"]


def test_list_one_device_prints_its_options(accelctl: Accelctl) -> None:
    done = accelctl("list", "devices", "serial")
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert ["port", "0x3f8", "int", "0…0xfff8"] in [line[:4] for line in lines]
    assert ["irq", "4"] in [line[:2] for line in lines]


def test_list_unknown_name_suggests_the_nearest(accelctl: Accelctl) -> None:
    done = accelctl("list", "loaders", "efl")
    assert done.returncode == 2
    assert done.stderr.decode() == "accelctl: no loader 'efl'; did you mean 'elf'?\n"


def test_list_plugin_that_is_switched_off_is_told(accelctl: Accelctl) -> None:
    done = accelctl("list", "accelerators", env={"ACCEL_BLOCK_PLUGINS": "kvm"})
    text = done.stdout.decode()
    assert not any(line.startswith("kvm") for line in text.splitlines())
    assert "not in use: plugin 'kvm'" in text
    assert "switched off" in text


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["list", "--help"], ["--help"]])
def test_output_that_nobody_reads_ends_quietly(accelctl_after: Accelctl, arguments: list[str]) -> None:
    code = "import os; read, write = os.pipe(); os.close(read); os.dup2(write, 1)"
    done = accelctl_after(code, *arguments)
    assert (done.returncode, done.stderr) == (141, b"")

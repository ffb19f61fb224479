"""The machine code is what its source says, and the accelerator says why it cannot be used."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import accel_unicorn.switch as switch
import pytest
from accel_unicorn.plugin import UnicornAccelerator

SOURCE = Path(switch.__file__).with_suffix(".s")


@pytest.mark.skipif(not (shutil.which("as") and shutil.which("objcopy")), reason="needs GNU binutils")
def test_switch_code_is_what_the_source_assembles_to(tmp_path):
    built, flat = tmp_path / "switch.o", tmp_path / "switch.bin"
    subprocess.run(["as", "--64", "-o", built, SOURCE], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", built, flat], check=True)
    assert flat.read_bytes() == switch.CODE
    symbols = subprocess.run(["nm", built], check=True, capture_output=True, text=True).stdout.split("\n")
    places = {line.split()[2]: int(line.split()[0], 16) for line in symbols if line}
    assert {name: places[name] for name in switch.LABELS} == switch.LABELS


def test_probe_without_unicorn_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "unicorn" or name.startswith("accel_unicorn.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "unicorn", None)
    found = UnicornAccelerator().probe()
    assert not found.ok
    assert "pip install" in found.reason


def test_probe_on_another_host_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(switch.platform, "machine", lambda: "aarch64")
    assert "needs an x86-64 host" in UnicornAccelerator().probe().reason


def test_plugin_is_imported_without_unicorn():
    code = "import sys, accel_unicorn.plugin; sys.exit('unicorn' in sys.modules or 'ctypes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

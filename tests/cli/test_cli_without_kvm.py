"""`accelctl` where there is no /dev/kvm: it is hidden in a mount namespace, and accel-unicorn runs the same guests."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("unshare", "mount")

#: Runs a command with /dev/kvm, if there is one, covered by a device that is none.
HIDDEN = ("unshare", "-m", "sh", "-c", '[ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm; exec "$@"', "sh")
PATIENCE = 110

#: Guest → accelctl's exit code, and what it prints, or the beginning of the SHA-256 of that. None for endless text.
PRINTED = {
    "compute.elf": (0, "b660b4294fb92d69"),
    "console-bench.bin": (0, "c36196d2df6734a4"),
    "console-halt.bin": (0, "Hello, accel!\n"),
    "console-spin.bin": (0, "Hello, accel!\n"),
    "echo.elf": (124, ""),
    "exits.bin": (0, "c36196d2df6734a4"),
    "flood-serial.bin": (124, None),
    "flood.bin": (124, None),
    "garbage.elf": (4, ""),
    "halt.bin": (0, ""),
    "hello-console.bin": (0, "Hello, accel!\n"),
    "hello.bin": (0, "Hello, accel!\n"),
    "irq-echo.bin": (0, ""),
    "sipi.elf": (0, "sipi: no local APIC\n"),
    "smp.elf": (0, "2 vCPUs counted to 20000\n"),
    "spin.bin": (124, ""),
    "stress.elf": (124, ""),
    "touch.elf": (0, "a2352bc94f3dcbce"),
    "triple-fault.elf": (4, ""),
    "wild-jump.elf": (4, ""),
    "wild.elf": (0, "ok\n"),
}

Hidden = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="session")
def hidden() -> Hidden:
    """Run accelctl where /dev/kvm cannot be used; skips where this system gives nobody a mount namespace."""
    pytest.importorskip("accel_unicorn", reason="accel-unicorn is not installed: pip install ./examples/accel-unicorn")
    tried = subprocess.run([*HIDDEN, "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"no mount namespace here: {tried.stderr.decode().strip()}")

    def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*HIDDEN, sys.executable, "-m", "accel", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            env={**os.environ, "ACCEL_LOCKDEP": "0"},
            check=False,
        )

    return run


def test_every_example_guest_has_its_row(guests: Path) -> None:
    assert {path.name for path in guests.iterdir() if path.suffix in (".bin", ".elf")} == PRINTED.keys()


@pytest.mark.parametrize("guest", PRINTED)
def test_guest_on_unicorn_prints_what_it_prints_on_kvm(hidden: Hidden, guests: Path, guest: str) -> None:
    code, expected = PRINTED[guest]
    # The others come to their end by themselves, on a busy host not within a second.
    seconds = 1 if code == 124 else 60
    cpus = 2 if guest == "smp.elf" else 1
    until = ("--until", expected) if guest == "console-spin.bin" else ()
    ran = hidden("run", guests / guest, "--accel", "unicorn", "--cpus", cpus, "--timeout", seconds, *until)
    assert ran.returncode == code, ran.stderr.decode()
    if expected is not None:
        digest = hashlib.sha256(ran.stdout).hexdigest()[:16]
        assert expected in (ran.stdout.decode(), digest)


def test_nobody_has_to_name_unicorn_where_there_is_no_kvm(hidden: Hidden, guests: Path) -> None:
    ran = hidden("run", guests / "hello.bin", "--json")
    assert ran.returncode == 0, ran.stderr.decode()
    assert json.loads(ran.stdout)["accelerator"] == "unicorn"


def test_demo_runs_machine_code_and_shows_both_sides_of_the_race(hidden: Hidden) -> None:
    ran = hidden("demo", "--seconds", 1, "--json")
    assert ran.returncode == 0, ran.stderr.decode()
    shown = json.loads(ran.stdout)
    assert shown["accelerator"] == "unicorn"

"""The terminal as serial line: a real pseudo terminal, whose settings must come back whatever happens."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from accel.cli.terminal import Keys, usable

_PATIENCE_S = 60.0
_HINT = b"Ctrl-A x ends the run"


class Terminal:
    """A pseudo terminal with accelctl in it, and what it shows."""

    def __init__(self, command: list[str]) -> None:
        self.leader, self.follower = os.openpty()
        self.before = termios.tcgetattr(self.follower)
        self.shown = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_TERMINAL, *command],
            stdin=self.follower,
            stdout=self.follower,
            stderr=self.follower,
            start_new_session=True,
        )

    def settings(self) -> list[Any]:
        """Return the terminal's settings now."""
        return termios.tcgetattr(self.follower)

    def type(self, keys: bytes) -> None:
        """Type `keys`."""
        os.write(self.leader, keys)

    def until(self, condition: Callable[[], bool]) -> None:
        """Read what is shown until `condition` holds."""
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.shown
            if select.select([self.leader], [], [], 0.02)[0]:
                self.shown += os.read(self.leader, 4096)

    def until_raw(self) -> None:
        """Wait until the terminal is raw, so that keys go to the guest."""
        self.until(lambda: _HINT in self.shown and not self.settings()[3] & termios.ICANON)

    def stopped(self) -> bool:
        """Return whether the process has stopped since the last time this was asked."""
        return os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOHANG) is not None

    def end(self) -> int:
        """Wait for the end and return the exit code."""
        self.until(lambda: self.process.poll() is not None)
        while select.select([self.leader], [], [], 0)[0]:
            self.shown += os.read(self.leader, 4096)
        return self.process.returncode

    def close(self) -> None:
        """Release everything."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.leader)
        os.close(self.follower)


#: Makes the terminal the controlling one, so that Ctrl-C reaches the process, and becomes accelctl.
_IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "accel", *sys.argv[1:]])
"""

Start = Callable[..., Terminal]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start accelctl in a terminal: `start("run", path)`."""
    started: list[Terminal] = []

    def run(*command: str | Path) -> Terminal:
        started.append(Terminal([str(one) for one in command]))
        return started[-1]

    yield run
    for terminal in started:
        terminal.close()


@pytest.mark.kvm
def test_terminal_keys_go_to_the_guest_and_it_is_restored(start: Start, guests: Path) -> None:
    terminal = start("run", guests / "echo.elf")
    terminal.until_raw()
    terminal.type(b"hi\r")
    terminal.until(lambda: b"hi\r" in terminal.shown)
    terminal.type(b"\x04")
    assert terminal.end() == 0
    assert terminal.settings() == terminal.before
    assert b"exited with status 1" in terminal.shown


@pytest.mark.kvm
def test_terminal_ctrl_c_interrupts_and_it_is_restored(start: Start, guests: Path) -> None:
    terminal = start("run", guests / "echo.elf")
    terminal.until_raw()
    terminal.type(b"typed")
    terminal.until(lambda: b"typed" in terminal.shown)
    terminal.type(b"\x03")
    assert terminal.end() == 130
    assert terminal.settings() == terminal.before
    assert b"stopped" in terminal.shown
    assert b"Traceback" not in terminal.shown


@pytest.mark.kvm
def test_terminal_ctrl_a_x_ends_the_run(start: Start, guests: Path) -> None:
    terminal = start("run", guests / "echo.elf")
    terminal.until_raw()
    terminal.type(b"\x01x")
    assert terminal.end() == 130
    assert terminal.settings() == terminal.before


@pytest.mark.kvm
def test_terminal_escapes_send_the_keys_that_the_host_keeps(start: Start, guests: Path) -> None:
    terminal = start("run", guests / "echo.elf")
    terminal.until_raw()
    terminal.type(b"<\x01c\x01\x01\x1a\x1c>")
    terminal.until(lambda: b"<\x03\x01\x1a\x1c>" in terminal.shown)
    terminal.type(b"\x04")
    assert terminal.end() == 0


@pytest.mark.kvm
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminal_is_restored_before_a_signal_ends_it(start: Start, guests: Path, number: signal.Signals) -> None:
    terminal = start("run", guests / "echo.elf")
    terminal.until_raw()
    terminal.process.send_signal(number)
    assert terminal.end() == 128 + number, terminal.shown
    assert terminal.settings() == terminal.before


@pytest.mark.kvm
def test_terminal_is_restored_while_it_is_suspended(start: Start, guests: Path) -> None:
    terminal = start("run", guests / "echo.elf")
    terminal.until_raw()
    terminal.process.send_signal(signal.SIGTSTP)
    # The settings come back just before it stops, and a SIGCONT in between would be lost.
    terminal.until(terminal.stopped)
    assert terminal.settings() == terminal.before
    terminal.process.send_signal(signal.SIGCONT)
    terminal.until(lambda: not terminal.settings()[3] & termios.ICANON)
    terminal.type(b"on\x04")
    assert terminal.end() == 0
    assert b"on" in terminal.shown
    assert terminal.settings() == terminal.before


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("image", "flags", "code"), [("triple-fault.elf", [], 4), ("spin.bin", ["--timeout", "0.3"], 124)]
)
def test_terminal_is_restored_after_a_crash_and_a_timeout(
    start: Start, guests: Path, image: str, flags: list[str], code: int
) -> None:
    terminal = start("run", guests / image, *flags)
    assert terminal.end() == code
    assert terminal.settings() == terminal.before


@pytest.mark.kvm
def test_terminal_is_restored_after_an_error(start: Start, guests: Path, tmp_path: Path) -> None:
    (tmp_path / "echo.elf").write_bytes((guests / "echo.elf").read_bytes())
    (tmp_path / "w.toml").write_text(
        "format = 1\nimage.path = 'echo.elf'\ndevice = [{type = 'serial'}]\nregion = [{name = 'r', size = '1M'}]\n"
        "change = [{region = 'r', do = 'add', at = 0xffff_ffff_ffff_f000, after = '1ms'}]\n"
    )
    terminal = start("run", tmp_path / "w.toml")
    # It says so right before it makes the terminal raw, for how long nobody knows.
    assert terminal.end() == 2
    assert _HINT in terminal.shown
    assert terminal.settings() == terminal.before


@pytest.mark.kvm
def test_terminal_is_left_alone_with_json_and_with_input(start: Start, guests: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\x04")
    for flags in (["--json", "--timeout", "0.3"], ["--input", str(tmp_path / "keys")]):
        terminal = start("run", guests / "echo.elf", *flags)
        assert terminal.end() in (0, 124)
        assert _HINT not in terminal.shown


def test_usable_needs_a_terminal_in_the_foreground() -> None:
    read, write = os.pipe()
    leader, follower = os.openpty()
    # A terminal, but not the one that controls this process.
    assert not usable(follower)
    assert not usable(read)
    for descriptor in (read, write, leader, follower):
        os.close(descriptor)
    assert not usable(read)


def test_keys_escape_may_be_split_over_chunks() -> None:
    ended: list[bool] = []
    keys = Keys([b"a\x01", b"cb", b"\x01", b"\x01", b"\x01q", b"\x01", b"xlost"], lambda: ended.append(True))
    assert b"".join(keys) == b"a\x03b\x01q"
    assert ended == [True]


def test_keys_without_escapes_are_as_typed() -> None:
    typed = bytes(byte for byte in range(256) if byte != 1)
    assert b"".join(Keys([typed], lambda: None)) == typed

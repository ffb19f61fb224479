"""Plugins that are hostile, or broken in odd ways: one message names whose they are, and accelctl works on.

All of them are files in a folder, most of them loaded by one process; those that end it have one of their own.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from textwrap import dedent, indent

import pytest

from accel.cli.exit_codes import ExitCode

Accelctl = Callable[..., subprocess.CompletedProcess[bytes]]

HOOK = """
import accel

@accel.hookimpl
def accel_register_accelerators(register):
    pass
"""


def command(body: str) -> str:
    return (
        "import click\nimport accel\n\n@accel.hookimpl\ndef accel_register_commands(cli):\n"
        + indent(dedent(body).strip(), "    ")
        + "\n"
    )


def accelerator(body: str, name: str) -> str:
    return (
        "import sys\nimport accel\nfrom accel_mock.plugin import MockAccelerator\n\n"
        f"class Evil(MockAccelerator):\n    name = {name!r}\n    summary = 'evil'\n"
        + indent(dedent(body).strip(), "    ")
        + "\n\n@accel.hookimpl\ndef accel_register_accelerators(register):\n    register(Evil())\n"
    )


# while they are loaded, and when they are asked

#: For each plugin its text, and how the reason goes on behind the name.
BROKEN = {
    "ends": ("import sys\nsys.exit(0)", "cannot be imported: SystemExit: 0 (line 2)"),
    "recursion": ("def f():\n    f()\nf()", "cannot be imported: RecursionError: maximum recursion depth exceeded"),
    "memory": ("raise MemoryError", "cannot be imported: MemoryError (line 1)"),
    "mute": (
        "class Mute(Exception):\n    def __str__(self):\n        raise KeyboardInterrupt\nraise Mute",
        "cannot be imported: Mute: its text cannot be had (KeyboardInterrupt) (line 4)",
    ),
    "steers": ("raise ValueError('\\x1b[31mred\\r\\n\\a')", "cannot be imported: ValueError: \x1b[31mred \a (line 1)"),
    "long": ("raise ValueError('x' * 10**6)", f"cannot be imported: ValueError: {'x' * 299}… (line 1)"),
    "nul": ("x = 1\0", "cannot be imported: SyntaxError: source code string cannot contain null bytes"),
    "asynchronous": (
        HOOK.replace("def ", "async def "),
        "breaks the hook contract: accel_register_accelerators is async, and nobody would await it; write def",
    ),
    "generator": (
        HOOK.replace("pass", "yield"),
        "breaks the hook contract: accel_register_accelerators has a yield, so calling it does nothing; leave that out",
    ),
    "com,ma": (HOOK, "a plugin's name is made of letters, digits, '-', '_' and '.', at most 64; rename it"),
    "esc\x1b[31m": (HOOK, "a plugin's name is made of letters, digits, '-', '_' and '.', at most 64; rename it"),
    "builtin": (HOOK, "the name 'builtin' stands for what is built in; rename it"),
    "options": (
        accelerator("options = property(lambda self: 1 / 0)", "options"),
        "accel_register_accelerators failed: ZeroDivisionError: division by zero (line 8)",
    ),
    "longname": (
        accelerator("", "a" * 10_000),
        f"an object of class Evil.name is '{'a' * 58}…; it must be letters, digits, '-' and '_', at most 64",
    ),
    "summary": (
        accelerator("summary = '\\x1b[31mred'", "summary"),
        "an object of class Evil.summary is '\\x1b[31mred'; it must be a line of text, at most 300 characters",
    ),
    "takes-run": (
        command("cli.add_command(click.Command('run', callback=lambda: print('EVIL')))"),
        "accel_register_commands failed: UsageError: command 'run' is accelctl's own; give it another name (line 6)",
    ),
    "no-command": (
        command("cli.add_command(print, 'x')"),
        "accel_register_commands failed: UsageError: an object of class builtin_function_or_method is no click command",
    ),
    "odd-command": (
        command("cli.add_command(click.Command('\\x1b[31m'))"),
        "accel_register_commands failed: UsageError: a command cannot be called '\\x1b[31m': letters, digits,",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them, one that works, and files that are no plugins."""
    path = tmp_path_factory.mktemp("hostile")
    for name, (text, _) in BROKEN.items():
        (path / f"{name}.py").write_text(text)
    (path / "latin.py").write_bytes(b"x = '\xe4'\n")
    (path / "prints.py").write_text("print('NOISE')\n" + HOOK.replace("pass", "print('NOISE')"))
    # An editor's lock, files that are none, links that lead nowhere or around.
    (path / ".#lock.py").write_text("raise ValueError\n")
    (path / "folder.py").mkdir()
    (path / "loop.py").symlink_to("loop.py")
    (path / "gone.py").symlink_to("nothing.py")
    (path / "zero.py").symlink_to("/dev/zero")
    os.mkfifo(path / "fifo.py")
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, str | None]:
    """Why each plugin is not in use; what they print is no part of the document."""
    done = subprocess.run(
        [sys.executable, "-m", "accel", "--plugin-dir", str(folder), "plugins", "--json"],
        capture_output=True,
        timeout=100,
        check=True,
    )
    assert done.stderr.decode().splitlines().count("NOISE") == 2
    return {one["name"]: one["reason"] for one in json.loads(done.stdout)["plugins"]}


@pytest.mark.parametrize("name", BROKEN)
def test_plugin_that_is_hostile_is_told_in_a_line(found: dict[str, str | None], folder: Path, name: str) -> None:
    said = found[name]
    assert said is not None
    assert said.startswith(f"plugin '{name}' (from {folder}/{name}.py): {BROKEN[name][1]}")
    assert "\n" not in said


def test_plugins_that_are_hostile_leave_the_others_alone(found: dict[str, str | None]) -> None:
    assert {name for name, reason in found.items() if reason is None} >= {"mock", "kvm", "prints"}
    assert "(unicode error) 'utf-8'" in str(found["latin"])
    assert not {".#lock", "folder", "loop", "gone", "zero", "fifo"} & found.keys()


def test_words_of_plugins_never_steer_the_terminal(accelctl: Accelctl, folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a[/b]:smile:"
    odd.mkdir(parents=True)
    (odd / "toy.py").write_text(
        accelerator("def probe(self):\n    return accel.Availability(False, '\\x1b[31m\\n' * 9)", "toy")
    )
    for given in ((folder, "plugins"), (folder, "list"), (odd, "plugins"), (odd, "list", "accelerators", "toy")):
        done = accelctl("--plugin-dir", *given)
        assert done.returncode == 0
        assert b"\x1b" not in done.stdout + done.stderr
        assert b"Traceback" not in done.stderr
    assert f"{odd}/toy.py".encode() in done.stdout
    assert b"no: " + rb" ".join([rb"\x1b[31m"] * 9) in done.stdout


def test_plugin_in_whose_import_somebody_gets_impatient_is_named(tmp_path: Path) -> None:
    (tmp_path / "sleeps.py").write_text("print('begins', flush=True)\nimport time\ntime.sleep(1000)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "accel", "--plugin-dir", str(tmp_path), "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == b"begins\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=100)
    assert (process.returncode, output) == (ExitCode.INTERRUPTED, b"")
    assert errors.decode().strip() == (
        f"accelctl: interrupted while plugin 'sleeps' (from {tmp_path}/sleeps.py) was imported; to do without it: "
        "accelctl -p no:sleeps, or ACCEL_BLOCK_PLUGINS=sleeps"
    )


def test_plugin_that_has_two_entries_is_in_use_once(tmp_path: Path, accelctl: Accelctl) -> None:
    info = tmp_path / "two-1.0.dist-info"
    info.mkdir()
    (tmp_path / "two.py").write_text(HOOK)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: two\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[accel]\none = two\nother = two\n")
    done = accelctl("plugins", env={"PYTHONPATH": str(tmp_path)})
    assert "plugin 'other' (from two 1.0): 'one' is the same object; it can be in use once" in done.stdout.decode()


# while a guest runs


def test_kick_that_raises_while_memory_changes_is_told_and_ends_the_run(
    accelctl_after: Accelctl, tmp_path: Path
) -> None:
    (tmp_path / "kicks.py").write_text(
        accelerator(
            """
            def create_vm(self, config):
                vm = super().create_vm(config)
                create = vm.create_vcpu
                def create_vcpu(index):
                    vcpu = create(index)
                    def kick(thread_id):
                        raise ValueError("cannot kick")
                    vcpu.kick = kick
                    return vcpu
                vm.create_vcpu = create_vcpu
                return vm
            """,
            "kicks",
        )
    )
    (tmp_path / "w.toml").write_text(
        """
        format = 1
        machine = {accelerators = ["kicks"], memory = "1M"}
        image = {program = [{op = "loop", body = [{op = "store", address = 0x10000000, value = 42}]}]}
        region = [{name = "extra", at = 0x10000000, size = "1M"}]
        change = [{every = "10ms", do = "split", region = "extra"}]
        """
    )
    patience = "import accel.run; accel.run.STOP_TIMEOUT = 0.5"
    done = accelctl_after(patience, "--plugin-dir", tmp_path, "run", tmp_path / "w.toml", "--json")
    assert done.returncode == ExitCode.HOST_FAILED
    assert b"Traceback" not in done.stderr
    assert done.stderr.decode().startswith(
        f"accelctl: plugin 'kicks' (from {tmp_path}/kicks.py): raised ValueError: cannot kick (line "
    )
    assert json.loads(done.stdout)["error"]["exit_code"] == ExitCode.HOST_FAILED


# their commands

COMMANDS = command(
    """
    def ends(code):
        raise SystemExit(code)

    def raises(error):
        raise error

    class Rude(click.Command):
        def get_short_help_str(self, limit=45):
            raise ValueError("rude")

    for name, code in {"words": "bye", "nothing": None, "three": 3, "many": 256}.items():
        cli.add_command(click.Command(name, callback=lambda code=code: ends(code)))
    cli.add_command(click.Command("base", callback=lambda: raises(BaseException("odd"))))
    cli.add_command(click.Command("leaves", callback=lambda: raises(GeneratorExit("odd"))))
    cli.add_command(click.Command("returns", callback=lambda: 256))
    """
)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("words", ExitCode.HOST_FAILED, "accelctl: bye\n"),
        ("nothing", ExitCode.SUCCESS, ""),
        ("three", 3, ""),
        ("many", 255, ""),
        ("returns", 255, ""),
        ("base", ExitCode.HOST_FAILED, "raised BaseException: odd"),
        ("leaves", ExitCode.HOST_FAILED, "raised GeneratorExit: odd"),
    ],
)
def test_command_of_a_plugin_that_ends_oddly_says_so(
    accelctl: Accelctl, tmp_path: Path, name: str, code: int, said: str
) -> None:
    (tmp_path / "odd.py").write_text(COMMANDS)
    done = accelctl("--plugin-dir", tmp_path, name)
    assert done.returncode == code
    assert said in done.stderr.decode()
    assert (done.stderr == b"") == (said == "")
    assert b"Traceback" not in done.stderr


def test_command_of_a_plugin_that_spoils_the_help_is_named(accelctl: Accelctl, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(COMMANDS + "    cli.add_command(Rude('rude'))\n")
    done = accelctl("--plugin-dir", tmp_path, "--help")
    assert done.returncode == ExitCode.HOST_FAILED
    assert done.stderr.decode().startswith(f"accelctl: plugin 'odd' (from {tmp_path}/odd.py): raised ValueError: rude")


# on a narrow terminal


def test_plugins_on_a_narrow_terminal_are_told_whole() -> None:
    terminal, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    # Not by a fork of this process, which has other threads.
    process = subprocess.Popen(
        [sys.executable, "-m", "accel", "plugins"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    output = b""
    while True:
        try:
            chunk = os.read(terminal, 1 << 16)
        except OSError:  # as Linux tells the end of a terminal
            break
        if not chunk:
            break
        output += chunk
    assert process.wait() == 0
    os.close(terminal)
    assert "…" not in output.decode()
    assert b"accel_register_accelerators" in output
    assert b"accel_register_scenarios" in output

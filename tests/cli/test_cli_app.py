"""The command group: help, version, plugins' commands, and that each error has its exit code."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

import accel
from accel import errors
from accel.cli import app
from accel.cli.app import CommandGroup, printable
from accel.cli.exit_codes import MEANINGS, ExitCode, error_code, report_code
from accel.errors import BackendError, DeviceError, GuestCrashError, MapLostError, NoAcceleratorError
from accel.hookspecs import hookimpl
from accel.interrupts import interrupts_held_back
from accel.plugins import PluginManager
from accel.result import Outcome, RunResult
from accel.workload.expect import Verdict
from accel.workload.report import Report

Accelctl = Callable[..., subprocess.CompletedProcess[bytes]]


def test_help_lists_commands_and_exit_codes(accelctl: Accelctl) -> None:
    done = accelctl("--help")
    text = done.stdout.decode()
    assert done.returncode == 0
    for word in ("run", "mtree", "list", "plugins", "demo", "stress", "Exit codes:"):
        assert word in text
    for code, meaning in MEANINGS.items():
        assert f"{code:>3}  {meaning}" in text


@pytest.mark.parametrize("command", ["run", "mtree", "list", "plugins", "demo", "stress"])
def test_help_of_each_command(accelctl: Accelctl, command: str) -> None:
    assert accelctl(command, "--help").stdout.startswith(f"Usage: accelctl {command} ".encode())


def test_version(accelctl: Accelctl) -> None:
    assert accelctl("--version").stdout.decode() == f"accelctl, version {accel.__version__}\n"


def test_no_command_prints_help_and_is_a_usage_error(accelctl: Accelctl) -> None:
    done = accelctl()
    assert done.returncode == 2
    assert b"Usage: accelctl" in done.stderr


@pytest.mark.parametrize("command", [(), ("plugins",), ("conformance",), ("list",)])
def test_help_fits_into_80_columns(accelctl: Accelctl, command: tuple[str, ...]) -> None:
    text = accelctl(*command, "--help", env={"COLUMNS": "80"}).stdout.decode()
    assert [line for line in text.splitlines() if len(line) > 80 or re.search(r"[a-z]\.\.\.$", line)] == []


def test_script_is_installed() -> None:
    done = subprocess.run([Path(sys.executable).with_name("accelctl"), "--version"], capture_output=True, check=True)
    assert done.stdout.startswith(b"accelctl, version")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom accel.cli import main\nmain(['--help'])\n"
        "heavy = {'rich', 'cattrs', 'elftools', 'tomllib', 'accel.machine.Machine', 'accel_kvm.system'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr == b"[]\n"


@pytest.mark.kvm
def test_run_of_an_image_imports_neither_rich_nor_cattrs(guests: Path) -> None:
    code = (
        f"import sys\nfrom accel.cli import main\nmain(['run', '-q', {str(guests / 'hello.bin')!r}])\n"
        "print(sorted({'rich', 'cattrs', 'elftools', 'tomllib'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr == b"[]\n"


# commands of plugins


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginManager]:
    found = PluginManager()
    monkeypatch.setattr("accel.plugins.plugin_manager", lambda: found)
    return found


def plugin(add: Callable[[click.Group], None]) -> SimpleNamespace:
    """Return a plugin whose hook calls `add` with the group."""

    @hookimpl
    def accel_register_commands(cli: click.Group) -> None:
        add(cli)

    return SimpleNamespace(accel_register_commands=accel_register_commands)


def test_group_has_the_commands_of_plugins(manager: PluginManager) -> None:
    command = click.Command("extra", callback=lambda: None, help="More.")
    manager.register(plugin(lambda cli: cli.add_command(command)), "third-party")
    group = CommandGroup("accelctl")
    context = click.Context(group)
    assert group.list_commands(context) == [*app._COMMANDS, "extra"]
    assert group.get_command(context, "extra") is command


def test_group_plugin_that_fails_is_named_and_the_rest_works(
    manager: PluginManager, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(cli: click.Group) -> None:
        raise RuntimeError("no")

    manager.register(plugin(fail), "broken", "dist 1.0")
    manager.register(plugin(lambda cli: cli.add_command(click.Command("extra"))), "third-party")
    group = CommandGroup("accelctl")
    assert "extra" in group.list_commands(click.Context(group))
    assert capsys.readouterr().err == (
        "accelctl: plugin 'broken' (from dist 1.0): accel_register_commands failed: RuntimeError: no\n"
    )
    assert manager.plugins["broken"].state == "broken"


@pytest.mark.parametrize(
    ("name", "problem"),
    [("run", "command 'run' is accelctl's own"), ("extra", "there is a command 'extra' already, of another plugin")],
)
def test_group_plugin_cannot_replace_a_command(
    manager: PluginManager, capsys: pytest.CaptureFixture[str], name: str, problem: str
) -> None:
    first = click.Command("extra")
    manager.register(plugin(lambda cli: cli.add_command(first)), "first")
    manager.register(plugin(lambda cli: cli.add_command(click.Command(name))), "second")
    group = CommandGroup("accelctl")
    context = click.Context(group)
    assert group.list_commands(context) == [*app._COMMANDS, "extra"]
    assert group.get_command(context, "extra") is first
    assert f"accelctl: plugin 'second' (from ?): accel_register_commands failed: UsageError: {problem}" in (
        capsys.readouterr().err
    )


# errors


def broken_pipe() -> DeviceError:
    error = DeviceError("serial", "write to port", 0x3F8, 0, BrokenPipeError())
    error.__cause__ = BrokenPipeError()
    return error


CODES: list[tuple[BaseException, ExitCode]] = [
    (errors.UsageError("x"), ExitCode.USAGE),
    (errors.ImageError("x", "y"), ExitCode.USAGE),
    (errors.WorkloadError("x", "y", 1, "z"), ExitCode.USAGE),
    (errors.OptionError("x", "y", 1, "z"), ExitCode.USAGE),
    (errors.AddressError("x"), ExitCode.USAGE),
    (errors.RegionError("x", "y"), ExitCode.USAGE),
    (NoAcceleratorError({"kvm": "no"}), ExitCode.NO_ACCELERATOR),
    (errors.CapabilityError("x"), ExitCode.NO_ACCELERATOR),
    (GuestCrashError(0, "shutdown", "x"), ExitCode.GUEST_CRASHED),
    (DeviceError("x", "read of port", 1, 0, ValueError()), ExitCode.HOST_FAILED),
    (BackendError("KVM_RUN", 5), ExitCode.HOST_FAILED),
    (BackendError("KVM_RUN", 32), ExitCode.HOST_FAILED),
    (MapLostError("x"), ExitCode.HOST_FAILED),
    (errors.InhibitTimeoutError(1.0, []), ExitCode.HOST_FAILED),
    (ValueError("x"), ExitCode.HOST_FAILED),
    (KeyboardInterrupt(), ExitCode.INTERRUPTED),
    (BrokenPipeError(), ExitCode.OUTPUT_CLOSED),
    (broken_pipe(), ExitCode.OUTPUT_CLOSED),
]


@pytest.mark.parametrize(("error", "code"), CODES, ids=lambda value: type(value).__name__)
def test_error_code_of_each_kind(error: BaseException, code: ExitCode) -> None:
    assert error_code(error) is code


def run_failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command that raises `error` and return the exit code."""

    @click.command("fail")
    def command() -> None:
        raise error

    group = CommandGroup("accelctl")
    group.add_command(command)
    monkeypatch.setattr(app, "group", group)
    monkeypatch.setattr(app, "_discard_output", lambda: None)
    return app.run(["fail"])


@pytest.mark.parametrize(("error", "code"), CODES, ids=lambda value: type(value).__name__)
def test_main_turns_each_error_into_a_message_and_its_code(
    error: BaseException, code: ExitCode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(error, monkeypatch) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    if code is ExitCode.OUTPUT_CLOSED:
        assert captured.err == ""
    elif code is not ExitCode.INTERRUPTED:
        assert str(error) in captured.err


def test_main_unexpected_error_is_called_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(ZeroDivisionError("division by zero"), monkeypatch) == 5
    assert capsys.readouterr().err == (
        "accelctl: unexpected ZeroDivisionError: division by zero\n"
        "This is a bug in accelctl or a plugin; ACCEL_DEBUG=1 shows where it comes from.\n"
    )


@pytest.mark.parametrize(("error", "code"), [(SystemExit(7), 7), (SystemExit("no"), 5)])
def test_main_ending_that_was_asked_for_keeps_its_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_failing(error, monkeypatch) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_main_signal_ends_it_as_an_interrupt_with_its_own_code(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned: list[bool] = []

    @click.command("wait")
    def command() -> None:
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(True)

    group = CommandGroup("accelctl")
    group.add_command(command)
    monkeypatch.setattr(app, "group", group)
    assert app.run(["wait"]) == 128 + number
    assert cleaned == [True]
    assert signal.getsignal(number) is signal.SIG_DFL


def test_main_signal_waits_while_interrupts_are_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[bool] = []

    @click.command("wait")
    def command() -> None:
        with interrupts_held_back():
            signal.raise_signal(signal.SIGTERM)
            done.append(True)

    group = CommandGroup("accelctl")
    group.add_command(command)
    monkeypatch.setattr(app, "group", group)
    assert app.run(["wait"]) == 143
    assert done == [True]


@pytest.mark.parametrize("ignored", ["INT", "HUP"])
def test_main_signal_that_is_ignored_is_left_alone(ignored: str) -> None:
    code = (
        f"import signal\nsignal.signal(signal.SIG{ignored}, signal.SIG_IGN)\n"
        "from accel.cli import app\nfrom accel.cli.signals import ending_signals\n"
        f"with ending_signals():\n    signal.raise_signal(signal.SIG{'TERM' if ignored == 'INT' else 'HUP'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == (-signal.SIGTERM if ignored == "INT" else 0)
    assert done.stderr == b""


def report(
    outcome: Outcome, *, status: int | None = None, failed: bool = False, expected: Outcome | None = None
) -> Report:
    result = RunResult(outcome, status, None, 0.0, "mock", "", ())
    return Report("x", result, b"", 0, False, 0, (Verdict("x", False, "1", "2"),) if failed else (), expected)


@pytest.mark.parametrize(
    ("given", "guest_status", "code"),
    [
        (report(Outcome.EXITED, status=3), False, 0),
        (report(Outcome.EXITED, status=3), True, 3),
        (report(Outcome.EXITED, status=513), True, 255),
        (report(Outcome.EXITED, status=3, failed=True), True, 1),
        (report(Outcome.HALTED), True, 0),
        (report(Outcome.HALTED, failed=True), False, 1),
        (report(Outcome.CRASHED, failed=True), False, 4),
        (report(Outcome.CRASHED, expected=Outcome.CRASHED), False, 0),
        (report(Outcome.CRASHED, expected=Outcome.CRASHED, failed=True), False, 1),
        (report(Outcome.TIMED_OUT, failed=True), False, 124),
        (report(Outcome.TIMED_OUT, expected=Outcome.TIMED_OUT), True, 0),
        (report(Outcome.STOPPED), True, 130),
    ],
)
def test_report_code_of_each_ending(given: Report, guest_status: bool, code: int) -> None:
    assert report_code(given, guest_status=guest_status) == code


def test_printable_escapes_what_steers_a_terminal() -> None:
    assert printable("a\x1b[2J\x07\u202eb\n") == "a\\x1b[2J\\x07\\u202eb\n"


def test_exit_codes_page_lists_each_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "exit-codes.md").read_text()
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert rows == [str(int(code)) for code in ExitCode]

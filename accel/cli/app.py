"""The command group of `accelctl`, and how any error becomes one message and an exit code.

Nothing heavy is imported here: ``accelctl --help`` imports click and the command files, which import what they need
when they run.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import click

import accel
from accel.cli.exit_codes import LAST_STATUS, MEANINGS, ExitCode, error_code, output_closed
from accel.cli.plugin_flags import plugin_flags, use_plugins
from accel.cli.signals import ending_signals
from accel.errors import AccelError, UsageError

#: Set to anything but 0, it shows where an error comes from.
DEBUG_VARIABLE = "ACCEL_DEBUG"

_COMMANDS = ("run", "mtree", "list", "plugins", "demo", "stress", "explore", "locks", "conformance")
#: What a command's name may be.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items())


class CommandGroup(click.Group):
    """The built-in commands, each imported when it is needed, and those of plugins."""

    _plugins_added = False

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Read the flags; those about plugins first, since ``--help`` lists the commands of plugins."""
        given, _, _ = self.make_parser(context).parse_args(list(arguments))
        use_plugins(context, given)
        return super().parse_args(context, arguments)

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of all commands."""
        self._add_plugin_commands()
        return [*_COMMANDS, *sorted(self.commands.keys() - set(_COMMANDS))]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return the command of this name; plugins are loaded only if no built-in has it."""
        if name in _COMMANDS:
            command: click.Command = importlib.import_module(f"accel.cli.{name}").command
            return command
        self._add_plugin_commands()
        return self.commands.get(name)

    def add_command(self, command: click.Command, name: str | None = None) -> None:
        """Take a command of a plugin. Raises UsageError if it is none, or if there is one of this name."""
        from accel.plugin_checks import shown

        if not isinstance(command, click.Command):
            raise UsageError(f"{shown(command)} is no click command; put @click.command before the function")
        name = name or command.name
        if name is None or not _NAME.fullmatch(name):
            raise UsageError(f"a command cannot be called {shown(name)}: letters, digits, '-' and '_', at most 40")
        if name in _COMMANDS:
            raise UsageError(f"command '{name}' is accelctl's own; give it another name")
        if name in self.commands:
            raise UsageError(f"there is a command '{name}' already, of another plugin; give it another name")
        super().add_command(command, name)

    def invoke(self, context: click.Context) -> Any:
        """Run the command and return its exit code; errors end here, where click would take some for its own."""
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except SystemExit as error:
            if output_closed(error.__context__):
                return ExitCode.OUTPUT_CLOSED  # as rich ends the process
            return _exit_code(error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - the command line's last word
            return _failed(error)

    def _add_plugin_commands(self) -> None:
        """Let each plugin add its commands, once; one that fails is named and keeps nobody from working."""
        if self._plugins_added:
            return
        self._plugins_added = True
        from accel.plugins import plugin_manager

        manager = plugin_manager()
        for implementation in manager.hook.accel_register_commands.get_hookimpls():
            problem = manager.call(implementation, cli=self)
            if problem is not None:
                click.echo(f"accelctl: {printable(str(problem))}", err=True)


@click.group(
    cls=CommandGroup,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(accel.__version__, prog_name="accelctl")
@plugin_flags
def group() -> None:
    """Run guests on KVM and other accelerators, and watch their memory change under them."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; see `accel.cli.exit_codes`."""
    with ending_signals() as ending:
        return ending.exit_code(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        with ExitStack() as at_end:
            try:
                result = group.main(arguments, prog_name="accelctl", standalone_mode=False, obj=at_end)
            except (click.ClickException, click.Abort, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001 - help asks commands of plugins, which may raise anything
                return _failed(error)
        return _fitting(result) if isinstance(result, int) else ExitCode.SUCCESS
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt) as error:
        # click makes an Abort of Ctrl-C.
        for note in getattr(error.__cause__ or error, "__notes__", ()):
            _complain(note)
        return ExitCode.INTERRUPTED
    except SystemExit:
        # click ends like this where it could not print help, since whoever read it has gone.
        return ExitCode.OUTPUT_CLOSED


def _exit_code(error: SystemExit) -> int:
    """Return what a command wants to exit with, as Python would: its words are printed, and count as a failure."""
    if error.code is None:
        return ExitCode.SUCCESS
    if isinstance(error.code, int):
        return _fitting(error.code)
    _complain(str(error.code))
    return ExitCode.HOST_FAILED


def _fitting(code: int) -> int:
    """Return an exit code that is no other when the system has cut it to 8 bits."""
    return code if 0 <= code <= LAST_STATUS else LAST_STATUS


def _complain(text: str) -> None:
    # A terminal that is gone takes no message either.
    with suppress(OSError):
        click.echo(click.style("accelctl: ", bold=True) + printable(text), err=True)


def _failed(error: BaseException) -> int:
    code = error_code(error)
    if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        traceback.print_exception(error)
    if code is ExitCode.OUTPUT_CLOSED:
        _discard_output()
    else:
        _complain(_message(error))
    return code


def _message(error: BaseException) -> str:
    if isinstance(error, AccelError):
        return str(error)
    from accel.plugins import plugin_manager

    blamed = plugin_manager().blame(error)
    if blamed is not None:
        return f"{blamed}\nThis is a bug in the plugin; {DEBUG_VARIABLE}=1 shows where it comes from."
    if isinstance(error, OSError):
        return str(error)
    return (
        f"unexpected {type(error).__name__}: {error}\n"
        f"This is a bug in accelctl or a plugin; {DEBUG_VARIABLE}=1 shows where it comes from."
    )


def printable(text: str) -> str:
    """Return `text` without what would steer a terminal; files and guests have a say in messages."""
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


def _discard_output() -> None:
    """Keep Python from complaining at exit about output that nobody reads any more."""
    if sys.stdout is not None:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)

"""The global flags ``-p no:NAME`` and ``--plugin-dir DIR``: which plugins there are, said before any is loaded.

Both set the environment variables that `accel.plugins` reads, for the length of the command: processes that a command
starts have the same plugins. Layer: below `accel.cli.app`; imports nothing heavy unless a flag is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., object])

_OFF = "no:"


def plugin_flags(command: F) -> F:
    """Add the flags to the command group; `use_plugins` does what they say."""
    switch = click.option(
        "-p",
        "plugins",
        metavar="no:NAME",
        multiple=True,
        expose_value=False,
        help="Switch a plugin off for this command; may be repeated. accelctl plugins has the names.",
    )
    folder = click.option(
        "--plugin-dir",
        type=click.Path(exists=True, file_okay=False),
        expose_value=False,
        help="Load the plugins in this folder too: Python files, each a plugin.",
    )
    return switch(folder(command))


def use_plugins(context: click.Context, given: Mapping[str, Any]) -> None:
    """Do what the flags say; `given` is what click's parser has read, before any flag acts.

    If the context's object is an `ExitStack`, closing that puts everything back.

    Raises:
        click.UsageError: Something else than ``no:NAME`` is given, or there is no such plugin.
    """
    folder, plugins = given.get("plugin_dir"), given.get("plugins")
    if folder:
        from accel.plugins import FOLDER_VARIABLE

        # Absolute, for processes that are started elsewhere.
        _set(context, FOLDER_VARIABLE, str(Path(folder).absolute()))
    if plugins:
        from accel.plugins import BLOCK_VARIABLE

        names = _names(plugins)
        before = os.environ.get(BLOCK_VARIABLE, "")
        _set(context, BLOCK_VARIABLE, ",".join(filter(None, [before, *names])))


def _names(given: Sequence[str]) -> list[str]:
    """Return the plugins to switch off. A name that nobody has is a slip, and would leave on what is to be off."""
    from accel.options import nearest
    from accel.plugins import BUILTIN, known_names

    known = known_names()
    for one in given:
        name = one.removeprefix(_OFF)
        if not one.startswith(_OFF) or not name:
            raise click.UsageError(f"-p {one}: it takes no:NAME, which switches a plugin off; --plugin-dir adds some")
        if name == BUILTIN:
            raise click.UsageError(f"-p {one}: what is built in cannot be switched off")
        if name not in known:
            raise click.UsageError(f"-p {one}: no plugin '{name}'; {nearest(name, known)}")
    return [one.removeprefix(_OFF) for one in given]


def _set(context: click.Context, variable: str, value: str) -> None:
    before = os.environ.get(variable)
    os.environ[variable] = value
    if isinstance(context.obj, ExitStack):
        context.obj.callback(_restore, variable, before)


def _restore(variable: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = value

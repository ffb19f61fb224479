"""``accelctl plugins new NAME``: writes a distribution of one's own, with an accelerator that works.

What it writes lies in the folder ``scaffold`` as it is, with ``$name`` and the like for what differs; the Python files
there are checked and formatted like any here. Nothing that is there already is overwritten.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from string import Template

import click

import accel
from accel.errors import UsageError

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
#: Longest name: with it, no line of the scaffold is too long.
_LONGEST = 30

#: Folders and files of the scaffold that are called otherwise where they are written.
_RENAMED = {"gitignore": ".gitignore"}


@click.command("new", short_help="Write a new plugin that works, in a folder accel-NAME.")
@click.argument("name")
@click.option(
    "--dir",
    "parent",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Where its folder goes; by default here.",
)
def command(name: str, parent: Path) -> None:
    """Write a new plugin: a distribution of its own in a folder accel-NAME, with an accelerator that works.

    It installs with pip, runs guest programs, and passes the conformance suite. Make it yours from there.
    """
    folder = parent / f"accel-{name}"
    check_name(name)
    write(name, folder)
    # pip takes a bare name for one of an index.
    shown = str(folder) if folder.is_absolute() else f"./{folder}"
    click.echo(
        f"{folder} has a plugin with the accelerator '{name}'. Next:\n\n"
        f"  pip install -e {shlex.quote(f'{shown}[test]')}\n"
        f"  accelctl list accelerators {name}\n"
        f"  accelctl run {shlex.quote(f'{shown}/hello.toml')}\n"
        f"  accelctl conformance {name}\n\n"
        f"Then make it yours: {shown}/{package_of(name)}/plugin.py"
    )


def package_of(name: str) -> str:
    """Return the name of the Python package of the plugin `name`."""
    return f"accel_{name.replace('-', '_')}"


def check_name(name: str) -> None:
    """Raise UsageError if no plugin can be called so, or if there is one already."""
    bare = name.removeprefix("accel-")
    if bare != name:
        raise UsageError(f"'{name}': leave out 'accel-', which the distribution gets: accelctl plugins new {bare}")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise UsageError(
            f"'{name}' cannot be a plugin's name: lower-case letters and digits, with '-' or '_' between, "
            f"at most {_LONGEST}, and first a letter"
        )
    from accel.plugins import BUILTIN, plugin_manager

    manager = plugin_manager()
    if name == BUILTIN:
        raise UsageError(f"the name '{name}' stands for what is built in; take another one")
    if name in manager.plugins:
        raise UsageError(f"the name is taken by {manager.plugins[name]}; take another one")
    if name in manager.accelerators():
        owner = manager.info(manager.source(manager.accelerators()[name]))
        raise UsageError(f"there is an accelerator '{name}', by {owner}; take another name")
    package = package_of(name)
    if find_spec(package) is not None or _is_installed(f"accel-{name}"):
        raise UsageError(f"accel-{name}, or a package {package}, is installed already; take another name")


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def write(name: str, folder: Path) -> None:
    """Write the distribution into `folder`, which must not be there.

    Raises:
        UsageError: It is, or it cannot be written; then nothing is left of it.
    """
    values = {
        "name": name,
        "package": package_of(name),
        "distribution": f"accel-{name}",
        "version": accel.__version__,
    }
    try:
        folder.mkdir()
    except FileExistsError as error:
        raise UsageError(f"{folder} is there already; nothing was written") from error
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}") from error
    try:
        for path, text in scaffold(values):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise UsageError(f"{folder}: {error.strerror}; nothing was kept") from error
        raise


def scaffold(values: dict[str, str]) -> Iterator[tuple[Path, str]]:
    """Yield each file of a new plugin: its path in the distribution's folder, and its text."""
    for path, file in _files(resources.files("accel.cli") / "scaffold", Path()):
        parts = [values["package"] if one == "package" else one for one in path.parts]
        name = parts[-1].removesuffix(".in")
        parts[-1] = _RENAMED.get(name, name)
        yield Path(*parts), Template(file.read_text(encoding="utf-8")).substitute(values)


def _files(folder: Traversable, path: Path) -> Iterator[tuple[Path, Traversable]]:
    for one in sorted(folder.iterdir(), key=lambda one: one.name):
        if one.is_dir():
            # Not what Python leaves there.
            if one.name != "__pycache__":
                yield from _files(one, path / one.name)
        else:
            yield path / one.name, one

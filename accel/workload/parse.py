"""From a workload file to a `Workload`: reading it safely, and errors that name file, field and value.

Layer: above `convert` and `check`. The file is data from a stranger: at most `MAX_FILE_SIZE` bytes of UTF-8, its
paths stay in its folder with symlinks resolved, and whatever is wrong with it is a WorkloadError.
"""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from cattrs.errors import (
    AttributeValidationNote,
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationNote,
)

from accel.address import format_size
from accel.errors import OptionError, ProgramError, WorkloadError
from accel.options import nearest
from accel.workload.check import check
from accel.workload.convert import bad, structuring_converter, table_keys
from accel.workload.schema import FORMAT, TABLE_NAMES, Workload

#: Larger files are refused before they are read.
MAX_FILE_SIZE = 1 << 20

_FIELD_SHOWN = 120
_PROBLEM_SHOWN = 600


def parse_file(path: str | os.PathLike[str]) -> Workload:
    """Return the workload in a TOML file.

    Raises:
        WorkloadError: The file cannot be read, is no TOML, or says something that cannot be.
    """
    name = os.fspath(path)
    return parse_text(_read(name), name, Path(name).parent)


def parse_text(text: str, name: str, folder: Path) -> Workload:
    """Return the workload in `text`.

    Args:
        text: TOML.
        name: What errors call it.
        folder: Where its paths start, and what they cannot leave.

    Raises:
        WorkloadError: As for `parse_file`.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError as error:
        raise WorkloadError(name, "", None, "is nested too deeply") from error
    except ValueError as error:
        raise WorkloadError(name, "", None, f"is no TOML: {error}") from error
    _check_format(name, data)
    del data["format"]
    root = folder.resolve()
    try:
        workload: Workload = structuring_converter(lambda given: _find(root, given)).structure(data, Workload)
        check(workload)
    except RecursionError as error:
        raise WorkloadError(name, "", None, "is nested too deeply") from error
    except (ClassValidationError, WorkloadError, OptionError) as error:
        raise _placed(name, error) from error
    return workload


def _read(name: str) -> str:
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for its writer.
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise WorkloadError(name, "", None, "is no regular file")
            with open(descriptor, "rb", closefd=False) as file:
                # One byte more shows that the file is larger, even if it grew just now.
                data = file.read(MAX_FILE_SIZE + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise WorkloadError(name, "", None, "no such file") from error
    except OSError as error:
        raise WorkloadError(name, "", None, f"cannot be read: {os.strerror(error.errno or 0)}") from error
    except ValueError as error:
        raise WorkloadError(repr(name), "", None, f"is no path: {error}") from error
    if len(data) > MAX_FILE_SIZE:
        raise WorkloadError(name, "", None, f"is larger than {format_size(MAX_FILE_SIZE)}, too large for a workload")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise WorkloadError(name, "", None, f"is not UTF-8, at byte {error.start:#x}; save it as UTF-8") from error


def _check_format(name: str, data: dict[str, Any]) -> None:
    if "format" not in data:
        raise WorkloadError(name, "format", None, f"is missing; put format = {FORMAT} at the top")
    if type(data["format"]) is not int or data["format"] != FORMAT:
        raise WorkloadError(name, "format", data["format"], f"this version reads format {FORMAT}")


def _find(root: Path, given: str) -> Path:
    """Return the absolute path of a file that the workload names, with symlinks resolved."""
    try:
        found = (root / given).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise bad(given, f"is no path: {error}") from error
    if not found.is_relative_to(root):
        raise bad(given, "leads out of the workload's folder; a workload reads only files beside and below it")
    return found


# errors


def _placed(name: str, error: BaseException) -> WorkloadError:
    """Return the first thing that is wrong as one error with file, field and value."""
    field = ""
    cls: type = Workload
    while isinstance(error, ClassValidationError | ExceptionGroup):
        cls = getattr(error, "cl", cls)
        error = error.exceptions[0]
        for note in getattr(error, "__notes__", ()):
            field = _joined(field, _step(note))
    found = _explained(name, field, cls, error)
    # Keys may be as long as the file.
    return WorkloadError(name, _cut(found.field, _FIELD_SHOWN), found.value, _cut(found.problem, _PROBLEM_SHOWN))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "…"


def _step(note: str) -> str:
    if isinstance(note, AttributeValidationNote):
        return TABLE_NAMES.get(note.name, note.name)
    return f"[{note.index}]" if isinstance(note, IterableValidationNote) else ""


def _joined(field: str, step: str) -> str:
    return f"{field}.{step}" if field and step and not step.startswith("[") else field + step


def _explained(name: str, field: str, cls: type, error: BaseException) -> WorkloadError:
    match error:
        case ForbiddenExtraKeysError():
            key = min(error.extra_fields)
            advice = nearest(key, table_keys(cls))
            return WorkloadError(name, _joined(field, key), None, f"no such {_thing(field)}; {advice}")
        case KeyError():
            return WorkloadError(name, field, None, "is missing")
        case ProgramError():
            place = _joined(field + error.where, error.field)
            return WorkloadError(name, place, error.value, error.problem)
        case OptionError():
            return WorkloadError(name, f"{error.where}.{error.option}", error.value, error.problem)
        case WorkloadError():
            return WorkloadError(name, _joined(field, error.field), error.value, error.problem)
    return WorkloadError(name, field, None, f"cannot be understood: {error}")


def _thing(field: str) -> str:
    return "field" if field else "table"

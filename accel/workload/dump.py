"""From a `Workload` back to a TOML file that means the same: what ``accelctl run --save`` writes.

Layer: above `convert`. `to_toml` writes the part of TOML that plain data needs: tables, lists of tables, values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from accel.errors import WorkloadError
from accel.workload.convert import HexInt, unstructuring_converter
from accel.workload.schema import FORMAT, Workload

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
# Control characters must be escaped in TOML; surrogates cannot be in a file at all.
_ESCAPED = re.compile(r'["\\\x00-\x1f\x7f]')


def dump_workload(workload: Workload, folder: Path) -> str:
    """Return `workload` as TOML for a file in `folder`; `parse` makes an equal one of it.

    Raises:
        WorkloadError: It names a file outside of `folder`, or text that cannot be in a TOML file.
    """
    root = folder.resolve()
    data = unstructuring_converter(lambda path: _relative(path, root)).unstructure(workload)
    # What a reader wants to see even where it is the default.
    machine = {
        "accelerators": list(workload.machine.accelerators),
        "memory": data.get("machine", {}).pop("memory", "64M"),
        "cpus": workload.machine.cpus,
    }
    tables = {**data, "machine": {**machine, **data.get("machine", {})}}
    order = ["machine", "accelerator", *(name for name in tables if name not in ("machine", "accelerator"))]
    return to_toml({"format": FORMAT, **{name: tables[name] for name in order if name in tables}})


def _relative(path: Path, root: Path) -> str:
    found = path.resolve()
    if not found.is_relative_to(root):
        raise WorkloadError(
            str(root),
            "",
            None,
            f"{path} is not in this folder, and a workload reads only files beside and below it; save it there",
        )
    return os.fspath(found.relative_to(root))


# TOML


def to_toml(data: Mapping[str, Any]) -> str:
    """Return plain data (str, int, bool, lists and tables of them) as TOML.

    Raises:
        WorkloadError: A text has surrogates, as a path that is no UTF-8 has.
    """
    return "\n".join(_lines(data, ())).strip("\n") + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    inner = {name: value for name, value in table.items() if _is_table(value)}
    for name, value in table.items():
        if name not in inner:
            yield f"{_key(name)} = {_value(value)}"
    for name, value in inner.items():
        here = (*path, name)
        shown = ".".join(map(_key, here))
        if isinstance(value, Mapping):
            # A table that only holds tables needs no header of its own.
            if not value or any(not _is_table(one) for one in value.values()):
                yield f"\n[{shown}]"
            yield from _lines(value, here)
        else:
            for one in value:
                yield f"\n[[{shown}]]"
                yield from _lines(one, here)


def _is_table(value: object) -> bool:
    if isinstance(value, list):
        # A program is a list of tables too, and reads better with an operation on each line.
        return bool(value) and all(isinstance(one, Mapping) and "op" not in one for one in value)
    return isinstance(value, Mapping)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _text(name)


def _value(value: object, indent: str = "") -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case HexInt():
            return f"0x{value:_x}"
        case int():
            return str(value)
        case str():
            return _text(value)
        case Mapping():
            return "{" + ", ".join(f"{_key(name)} = {_value(one, indent)}" for name, one in value.items()) + "}"
        case list() if any(isinstance(one, Mapping) for one in value):
            inner = indent + "  "
            return "[\n" + "".join(f"{inner}{_value(one, inner)},\n" for one in value) + indent + "]"
        case list():
            return "[" + ", ".join(map(_value, value)) + "]"
    raise TypeError(f"{value!r} has no place in a workload")


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise WorkloadError("workload", "", text, "is no UTF-8, so it cannot be in a TOML file; rename it") from error
    return '"' + _ESCAPED.sub(lambda found: _ESCAPES.get(found[0], f"\\u{ord(found[0]):04x}"), text) + '"'

"""Between plain data, as TOML gives it, and the schema's values: cattrs with the rules of a workload file.

Layer: above `schema`, below `parse` and `dump`. Every type is strict: text is never taken for a number, nor a
table for a list. What does not fit raises WorkloadError without a place; cattrs notes the place, and `parse` puts
it together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import GenericAlias
from typing import Any, Literal, get_args, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from accel.address import ADDRESS_SPACE_SIZE, format_size, parse_size
from accel.arch.x86 import BootMode
from accel.errors import UsageError, WorkloadError
from accel.memory.backing import Backing
from accel.plugins import parse_accelerators
from accel.program import GuestProgram
from accel.result import Outcome
from accel.workload.backing import BackingTable, refuse_files
from accel.workload.schema import (
    TABLE_NAMES,
    Accelerators,
    Address,
    Byte,
    Count,
    DeviceSpec,
    Duration,
    FilePath,
    Priority,
    Size,
    Texts,
    Workload,
)
from accel.workload.units import format_duration, parse_duration

#: Most tables in one list, so that no file asks for work without end.
MAX_TABLES = 1024

_HEX_KEYS = frozenset({"address", "port", "value", "expect"})

_OVERRIDES: dict[type, dict[str, Any]] = {
    Workload: {name: override(rename=renamed) for name, renamed in TABLE_NAMES.items()}
}


class HexInt(int):
    """A number that is written in hex."""


def table_keys(cls: type) -> list[str]:
    """Return the keys that a table may have in TOML."""
    names = TABLE_NAMES if cls is Workload else {}
    return [names.get(field.name, field.name) for field in attrs.fields(cls)]


def bad(value: object, problem: str) -> WorkloadError:
    """Return the error about a value whose place is not known here."""
    return WorkloadError("workload", "", value, problem)


def structuring_converter(find_file: Callable[[str], Path]) -> cattrs.Converter:
    """Return a converter from plain data; `find_file` turns a path in the file into an absolute one."""
    converter = cattrs.Converter(forbid_extra_keys=True, prefer_attrib_converters=False)

    def register(kind: Any, hook: Callable[[Any], object]) -> None:
        converter.register_structure_hook(kind, lambda value, _: hook(value))

    for kind, what in ((int, "a whole number"), (bool, "true or false"), (str, "text")):
        register(kind, _exactly(kind, what))
    register(Size, _size)
    register(Address, lambda value: _within(value, 0, ADDRESS_SPACE_SIZE - 1))
    register(Count, _count)
    register(Byte, lambda value: _within(value, 0, 255))
    register(Priority, lambda value: _within(value, -(1 << 31), (1 << 31) - 1))
    register(Duration, lambda value: _rewrapped(value, parse_duration, _exactly(str, 'a duration such as "5ms"')))
    register(Accelerators, lambda value: _rewrapped(value, parse_accelerators, _text_or_list))
    register(Texts, _texts)
    register(FilePath, lambda value: find_file(_exactly(str, "a path")(value)))
    register(GuestProgram, lambda value: GuestProgram.from_data(value, ""))
    register(DeviceSpec, _device)
    register(Backing, lambda value: _backing(value, converter))
    register(BootMode, lambda value: BootMode(_choose(value, tuple(BootMode))))
    register(Outcome, lambda value: Outcome(_choose(value, tuple(Outcome))))
    converter.register_structure_hook_func(_is_literal, lambda value, kind: _choose(value, get_args(kind)))
    converter.register_structure_hook_func(_is_mapping, lambda value, _: _tables_of_options(value))
    converter.register_structure_hook_factory(_is_table, lambda cls: _table(cls, converter))
    converter.register_structure_hook_factory(_is_list, lambda kind: _list_of(kind, converter))
    return converter


def unstructuring_converter(write_file: Callable[[Path], str]) -> cattrs.Converter:
    """Return a converter to plain data without defaults; `write_file` makes a path relative to the file."""
    converter = cattrs.Converter(omit_if_default=True)

    def register(kind: Any, hook: Callable[[Any], object]) -> None:
        converter.register_unstructure_hook_func(lambda wanted: wanted == kind, hook)

    register(Size, format_size)
    register(Address, HexInt)
    register(Duration, format_duration)
    register(Accelerators, list)
    register(Texts, list)
    register(FilePath, write_file)
    register(GuestProgram, lambda program: _in_hex(program.to_data()))
    register(Backing, lambda backing: converter.unstructure(BackingTable.of(backing)))
    register(DeviceSpec, lambda device: {"type": device.type, **_in_hex(dict(device.options))})
    converter.register_unstructure_hook_factory(
        _is_table,
        lambda cls: make_dict_unstructure_fn(cls, converter, _cattrs_omit_if_default=True, **_OVERRIDES.get(cls, {})),
    )
    return converter


def _in_hex(data: Any) -> Any:
    """Return plain data with the numbers that people write in hex as such."""
    if isinstance(data, list):
        return [_in_hex(one) for one in data]
    if isinstance(data, dict):
        return {key: HexInt(one) if _is_hex(key, one) else _in_hex(one) for key, one in data.items()}
    return data


def _is_hex(key: str, value: object) -> bool:
    return key in _HEX_KEYS and type(value) is int and value > 9


def _is_table(kind: Any) -> bool:
    return attrs.has(kind) and kind not in (Backing, DeviceSpec, GuestProgram)


def _is_list(kind: Any) -> bool:
    return _origin(kind) is tuple


def _is_literal(kind: Any) -> bool:
    return _origin(kind) is Literal


def _is_mapping(kind: Any) -> bool:
    return _origin(kind) is Mapping


def _origin(kind: Any) -> Any:
    return get_origin(kind)


def _table(cls: Any, converter: cattrs.Converter) -> Callable[[object, object], object]:
    inner: Any = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True, **_OVERRIDES.get(cls, {}))
    return lambda value, _: inner(_require_table(value), cls)


def _list_of(kind: Any, converter: cattrs.Converter) -> Callable[[object, object], object]:
    items: Any = GenericAlias(list, get_args(kind)[:1])

    def structure(value: object, _: object) -> object:
        if not isinstance(value, list):
            raise bad(value, "must be a list of tables; write its name in double brackets, such as [[device]]")
        if len(value) > MAX_TABLES:
            raise bad(None, f"{len(value)} tables are too many; a workload has at most {MAX_TABLES}")
        return tuple(converter.structure(value, items))

    return structure


def _exactly(kind: type, what: str) -> Callable[[Any], Any]:
    def check(value: object) -> object:
        if type(value) is not kind:
            raise bad(value, f"must be {what}")
        return value

    return check


def _count(value: object) -> int:
    number = _exactly(int, "a whole number")(value)
    if number < 1:
        raise bad(value, "must be at least 1")
    return int(number)


def _within(value: object, least: int, most: int) -> int:
    number = _exactly(int, "a whole number")(value)
    if not least <= number <= most:
        shown = [str(limit) if abs(limit) < 1 << 16 else hex(limit) for limit in (least, most)]
        raise bad(value, f"must be from {' to '.join(shown)}")
    return int(number)


def _size(value: object) -> int:
    if type(value) not in (int, str):
        raise bad(value, 'must be a size such as "64M" or 4096')
    size = _rewrapped(value, parse_size, lambda given: given)
    if not 0 < size <= ADDRESS_SPACE_SIZE:
        raise bad(value, "must be from 1 byte to 2^64")
    return int(size)


def _rewrapped(value: object, parse: Callable[[Any], Any], check: Callable[[object], Any]) -> Any:
    """Return `parse(check(value))`; an error of `parse` becomes one about `value`."""
    checked = check(value)
    try:
        return parse(checked)
    except UsageError as error:
        raise bad(value, str(error)) from error


def _text_or_list(value: Any) -> str | list[str]:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items):
        raise bad(value, "must be text or a list of texts")
    checked: str | list[str] = value
    return checked


def _texts(value: object) -> tuple[str, ...]:
    checked = _text_or_list(value)
    return (checked,) if isinstance(checked, str) else tuple(checked)


def _choose(value: object, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise bad(value, f"must be one of {', '.join(choices)}")
    return value


def _require_table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad(value, "must be a table")
    return value


def _backing(value: object, converter: cattrs.Converter) -> Backing:
    table = _require_table(value)
    refuse_files(table)
    return converter.structure(table, BackingTable).backing()


def _device(value: object) -> DeviceSpec:
    given = dict(_require_table(value))
    if "type" not in given:
        raise WorkloadError("workload", "type", None, 'is missing, such as type = "serial"')
    name = given.pop("type")
    if not isinstance(name, str):
        raise WorkloadError("workload", "type", name, "must be text")
    return DeviceSpec(name, given)


def _tables_of_options(value: object) -> dict[str, dict[str, object]]:
    return {name: dict(_require_table(options)) for name, options in _require_table(value).items()}

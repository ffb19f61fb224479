"""Guest programs: small immutable lists of operations that every accelerator can run in its own way.

A `GuestProgram` is what a test, a demo or a workload file wants the guest to do to memory and ports, without
an instruction set: the mock interprets it, and `accel.arch.x86_program` assembles it into machine code, so
that one program judges them all. This module owns the operations, their rules and their plain-data form (for
TOML and JSON); it runs nothing. Pure values, near the bottom of the house.

Each vCPU runs the whole program by itself, with an **error count** of its own: a `Load` or `In` that states
what it expects and reads something else adds one. ``Out(port, ERRORS)`` reports the count. Falling off the
end is a `Halt`.
"""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TypeAlias

import attrs
from attrs import field, frozen

from accel.address import ADDRESS_SPACE_SIZE
from accel.errors import ProgramError
from accel.options import nearest

#: Deepest nesting of loops, so that each loop counter can have a register.
MAX_DEPTH = 8
#: Most operations in a program, those in loop bodies included.
MAX_OPS = 65_536
#: What `Fetch` must find at its address: the x86 near return.
RETURN_BYTE = 0xC3

_MEMORY_SIZES = (1, 2, 4, 8)
_PORT_SIZES = (1, 2, 4)
_PORT_SPACE_SIZE = 1 << 16


class ErrorCount(enum.Enum):
    """Stands for the error count where an `Out` takes a value."""

    ERRORS = "errors"


#: The vCPU's error count so far, saturated to the size of the `Out`.
ERRORS = ErrorCount.ERRORS


def _as_tuple(ops: Iterable[Op]) -> tuple[Op, ...]:
    return tuple(ops)


@frozen
class Load:
    """Read `size` bytes (1, 2, 4 or 8) at `address`; another value than `expect` is an error."""

    address: int
    size: int = 4
    expect: int | None = None


@frozen
class Store:
    """Write `value` as `size` bytes (1, 2, 4 or 8), little-endian, at `address`."""

    address: int
    value: int
    size: int = 4


@frozen
class Add:
    """Add `value` to `size` bytes at `address` as one atomic operation that wraps; naturally aligned."""

    address: int
    value: int = 1
    size: int = 4


@frozen
class Fetch:
    """Execute the code at `address`, which must be a return (`RETURN_BYTE`)."""

    address: int


@frozen
class In:
    """Read `size` bytes (1, 2 or 4) from `port`; another value than `expect` is an error."""

    port: int
    size: int = 1
    expect: int | None = None


@frozen
class Out:
    """Write `value`, or the error count, as `size` bytes (1, 2 or 4) to `port`."""

    port: int
    value: int | ErrorCount
    size: int = 1


@frozen
class Loop:
    """Run `body` `count` times, or for ever where `count` is None. An endless empty body spins."""

    body: tuple[Op, ...] = field(converter=_as_tuple)
    count: int | None = None


@frozen
class Halt:
    """Stop this vCPU for good."""


Op: TypeAlias = Load | Store | Add | Fetch | In | Out | Loop | Halt

_OPS: dict[str, type[Op]] = {
    "load": Load,
    "store": Store,
    "add": Add,
    "fetch": Fetch,
    "in": In,
    "out": Out,
    "loop": Loop,
    "halt": Halt,
}
_NAMES = {kind: name for name, kind in _OPS.items()}


def text(port: int, data: bytes) -> tuple[Out, ...]:
    """Return the operations that write each byte of `data` to `port`."""
    return tuple(Out(port, byte) for byte in data)


@frozen
class GuestProgram:
    """An immutable list of operations, checked when it is made.

    >>> print(GuestProgram([Store(0x1000, 7), Loop([Load(0x1000, expect=7)], count=3), Out(0xF4, ERRORS)]))
    store4 [0x1000] = 0x7
    loop 3
      load4 [0x1000] expect 0x7
    out1 0xf4 = errors

    Raises:
        ProgramError: An operation has a value that it cannot have, loops are nested deeper than `MAX_DEPTH`,
            or there are more than `MAX_OPS` operations.
    """

    ops: tuple[Op, ...] = field(converter=_as_tuple)

    def __attrs_post_init__(self) -> None:
        _check_ops("program", self.ops, 0, 0)

    def __str__(self) -> str:
        return self.pretty()

    def pretty(self) -> str:
        """Return the program as text, one operation a line, loop bodies indented."""
        return _pretty(self.ops)

    def walk(self) -> Iterator[Op]:
        """Return the operations one by one, in the order in which a vCPU executes them; endless if the program is.

        For an accelerator that interprets programs. Loops are followed; each turn of an empty one gives the `Loop`
        itself, so that who spins there can still be kicked. The last is a `Halt`, after which nothing comes.

        >>> list(GuestProgram([Loop([Load(0), Loop([], count=1)], count=2)]).walk())  # doctest: +NORMALIZE_WHITESPACE
        [Load(address=0, size=4, expect=None), Loop(body=(), count=1), Load(address=0, size=4, expect=None),
         Loop(body=(), count=1), Halt()]
        """
        for op in chain(_walk(self.ops), (Halt(),)):
            yield op
            if isinstance(op, Halt):
                return

    @classmethod
    def from_data(cls, data: object, where: str = "program") -> GuestProgram:
        """Return the program that a list of tables describes, as TOML or JSON give it.

        Each table has ``op`` (the operation's name in lower case) and the operation's fields; a ``loop``
        without ``count`` is endless, an ``out`` may have ``value = "errors"``, and
        ``{op = "text", port = …, text = "…"}`` writes text.

        Raises:
            ProgramError: As for `GuestProgram`, or the data is of another shape; it names the operation,
                with `where` as the name of the list, and the field.
        """
        ops = _ops_from_data(where, data, 0)
        _check_ops(where, ops, 0, 0)
        return cls(ops)

    def to_data(self) -> list[dict[str, object]]:
        """Return the program as a list of tables for `from_data`."""
        return [_op_to_data(op) for op in self.ops]


def _walk(ops: Iterable[Op]) -> Iterator[Op]:
    for op in ops:
        if not isinstance(op, Loop):
            yield op
            continue
        # Not a range: a count may be larger than one can have.
        turns = 0
        while op.count is None or turns < op.count:
            turns += 1
            yield from _walk(op.body) if op.body else (op,)


def _pretty(ops: Iterable[Op]) -> str:
    lines = []
    for op in ops:
        match op:
            case Load(address, size, expect):
                lines.append(f"load{size} [{address:#x}]" + _expected(expect))
            case Store(address, value, size):
                lines.append(f"store{size} [{address:#x}] = {value:#x}")
            case Add(address, value, size):
                lines.append(f"add{size} [{address:#x}] += {value:#x}")
            case Fetch(address):
                lines.append(f"fetch [{address:#x}]")
            case In(port, size, expect):
                lines.append(f"in{size} {port:#x}" + _expected(expect))
            case Out(port, value, size):
                shown = value.value if isinstance(value, ErrorCount) else f"{value:#x}"
                lines.append(f"out{size} {port:#x} = {shown}")
            case Loop(body, count):
                lines.append("loop for ever" if count is None else f"loop {count}")
                if body:
                    lines.append(textwrap.indent(_pretty(body), "  "))
            case Halt():
                lines.append("halt")
    return "\n".join(lines)


def _expected(expect: int | None) -> str:
    return "" if expect is None else f" expect {expect:#x}"


def _check_ops(where: str, ops: Sequence[Op], depth: int, total: int) -> int:
    """Check `ops` and return the number of operations so far; `depth` is the number of loops around them."""
    if depth > MAX_DEPTH:
        raise ProgramError(where, "", None, f"loops are nested deeper than {MAX_DEPTH}")
    total += len(ops)
    if total > MAX_OPS:
        raise ProgramError(where, "", None, f"more than {MAX_OPS} operations in the program")
    for index, op in enumerate(ops):
        place = f"{where}[{index}]"
        if type(op) not in _NAMES:
            raise ProgramError(place, "", op, "is no operation; use Load, Store, Add, Fetch, In, Out, …")
        if isinstance(op, Loop):
            if op.count is not None:
                _check_int(place, "count", op.count, ADDRESS_SPACE_SIZE - 1, least=1)
            total = _check_ops(f"{place}.body", op.body, depth + 1, total)
        else:
            _check_op(place, op)
    return total


def _check_op(where: str, op: Op) -> None:
    match op:
        case Load(address, size, value) | Store(address, value, size) | Add(address, value, size):
            _check_target(where, "address", address, size, _MEMORY_SIZES, ADDRESS_SPACE_SIZE)
            if isinstance(op, Add) and address % size:
                raise ProgramError(where, "address", address, f"must be a multiple of the size, {size}")
            if value is not None or not isinstance(op, Load):
                name = "expect" if isinstance(op, Load) else "value"
                _check_int(where, name, value, (1 << 8 * size) - 1)
        case Fetch(address):
            _check_int(where, "address", address, ADDRESS_SPACE_SIZE - 1)
        case In(port, size, expect):
            _check_target(where, "port", port, size, _PORT_SIZES, _PORT_SPACE_SIZE)
            if expect is not None:
                _check_int(where, "expect", expect, (1 << 8 * size) - 1)
        case Out(port, value, size):
            _check_target(where, "port", port, size, _PORT_SIZES, _PORT_SPACE_SIZE)
            if value is not ERRORS:
                _check_int(where, "value", value, (1 << 8 * size) - 1)


def _check_target(where: str, name: str, start: object, size: object, sizes: tuple[int, ...], limit: int) -> None:
    if type(size) is not int or size not in sizes:
        raise ProgramError(where, "size", size, f"must be one of {', '.join(map(str, sizes))}")
    _check_int(where, name, start, limit - size)


def _check_int(where: str, name: str, value: object, most: int, least: int = 0) -> None:
    if type(value) is not int:
        raise ProgramError(where, name, value, "must be a whole number")
    if not least <= value <= most:
        raise ProgramError(where, name, value, f"must be from {least} to {most:#x}")


def _ops_from_data(where: str, data: object, depth: int) -> tuple[Op, ...]:
    if not isinstance(data, Sequence) or isinstance(data, (str, bytes)):
        raise ProgramError(where, "", data, "must be a list of operations")
    if depth > MAX_DEPTH:
        raise ProgramError(where, "", None, f"loops are nested deeper than {MAX_DEPTH}")
    ops: list[Op] = []
    for index, item in enumerate(data):
        ops.extend(_op_from_data(f"{where}[{index}]", item, depth))
        if len(ops) > MAX_OPS:
            raise ProgramError(where, "", None, f"more than {MAX_OPS} operations in the program")
    return tuple(ops)


def _op_from_data(where: str, item: object, depth: int) -> tuple[Op, ...]:
    if not isinstance(item, Mapping):
        raise ProgramError(where, "", item, 'must be a table such as {op = "load", address = 0x1000}')
    given = dict(item)
    name = given.pop("op", None)
    if name == "text":
        return _text_from_data(where, given)
    kind = _OPS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ProgramError(where, "op", name, f"no such operation; {nearest(str(name), [*_OPS, 'text'])}")
    known = {attribute.name: attribute for attribute in attrs.fields(kind)}
    _check_keys(where, given, list(known), [n for n, a in known.items() if a.default is attrs.NOTHING])
    if kind is Loop:
        given["body"] = _ops_from_data(f"{where}.body", given["body"], depth + 1)
    elif kind is Out and given["value"] == ERRORS.value:
        given["value"] = ERRORS
    return (kind(**given),)


def _text_from_data(where: str, given: Mapping[str, object]) -> tuple[Op, ...]:
    _check_keys(where, given, ["port", "text"], ["port", "text"])
    words, port = given["text"], given["port"]
    if not isinstance(words, str):
        raise ProgramError(where, "text", words, "must be text")
    _check_int(where, "port", port, _PORT_SPACE_SIZE - 1)
    assert isinstance(port, int)
    return text(port, words.encode())


def _check_keys(where: str, given: Mapping[str, object], known: list[str], required: list[str]) -> None:
    for key, value in given.items():
        if key not in known:
            raise ProgramError(where, str(key), value, f"no such field; {nearest(str(key), known)}")
    for key in required:
        if key not in given:
            raise ProgramError(where, key, None, "is missing")


def _op_to_data(op: Op) -> dict[str, object]:
    data: dict[str, object] = {"op": _NAMES[type(op)]}
    for attribute in attrs.fields(type(op)):
        value = getattr(op, attribute.name)
        if attribute.name == "body":
            data["body"] = [_op_to_data(inner) for inner in value]
        elif value is ERRORS:
            data["value"] = ERRORS.value
        elif value is not None:
            data[attribute.name] = value
    return data

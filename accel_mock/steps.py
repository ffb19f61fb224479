"""Compiles a guest program into steps: one closure an operation, bound to the vCPU that runs it.

Each step tries the direct way, memory in a slot, and is otherwise an access: a generator that yields the kind of each
exit it needs and goes on when the vCPU is entered again, with the answer in the exit record (`accel_mock.emulator`). So
what KVM's emulator does to an operation without memory, a read exit, then a write exit for a read-modify-write, or an
exit for each page that it touches, is written down in the order in which it happens.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterable
from typing import Protocol, runtime_checkable

from accel.exits import ExitKind, pack_io
from accel.program import (
    RETURN_BYTE,
    Add,
    ErrorCount,
    Fetch,
    GuestProgram,
    In,
    Load,
    Loop,
    Op,
    Out,
    Store,
)
from accel_mock.emulator import is_answered, parts_of, read_parts, write_parts
from accel_mock.vcpu import EXIT, MockVcpu, Step

#: Little-endian, as the guest is; on little-endian hosts one copy of the whole item, so nobody sees half of it.
ITEM = {1: struct.Struct("<B"), 2: struct.Struct("<H"), 4: struct.Struct("<I"), 8: struct.Struct("<Q")}

_IO = int(ExitKind.IO)
_HALT = int(ExitKind.HALT)


@runtime_checkable
class PlaysItself(Protocol):
    """A program that makes its steps as it goes; see `accel_mock.python_guest`."""

    def steps(self, vcpu: MockVcpu) -> list[Step]:
        """Return the steps for `vcpu`."""


def compile_program(program: GuestProgram, vcpu: MockVcpu) -> list[Step]:
    """Return the steps of `program` for `vcpu`; O(operations)."""
    vcpu.counters = []
    if isinstance(program, PlaysItself):
        return program.steps(vcpu)
    steps: list[Step] = []
    compile_ops(program.ops, 0, steps, vcpu)
    steps.append(_halt)
    return steps


def in_turns(steps: Iterable[Step], take: Callable[[int], int]) -> list[Step]:
    """Return `steps` that take turns with other threads; see `accel.turns`."""
    granted = left = take(0)

    def turn(step: Step) -> Step:
        def counted() -> int:
            nonlocal granted, left
            if not left:
                granted = left = take(granted)
            left -= 1
            return step()

        return counted

    return [turn(step) for step in steps]


def compile_ops(ops: Iterable[Op], depth: int, steps: list[Step], vcpu: MockVcpu) -> None:
    """Append the steps of `ops`, which stand in `depth` loops."""
    for op in ops:
        place = len(steps)
        match op:
            case Loop(body, count):
                if count is not None:
                    steps.append(_loop_begin(vcpu, place, depth, count))
                compile_ops(body, depth + 1, steps, vcpu)
                steps.append(_loop_end(vcpu, place, len(steps), depth, count))
            case Load():
                steps.append(_load(vcpu, place, op))
            case Store():
                steps.append(_store(vcpu, place, op))
            case Add():
                steps.append(_add(vcpu, place, op))
            case Fetch():
                steps.append(_fetch(vcpu, place, op))
            case In():
                steps.append(_in(vcpu, place, op))
            case Out():
                steps.append(_out(vcpu, place, op))
            case _:
                steps.append(_halt)


def _halt() -> int:
    return EXIT - _HALT


# loops


def _loop_begin(vcpu: MockVcpu, place: int, depth: int, count: int) -> Step:
    counters, body = vcpu.counters, place + 1
    while len(counters) <= depth:
        counters.append(0)

    def step() -> int:
        counters[depth] = count
        return body

    return step


def _loop_end(vcpu: MockVcpu, begin: int, place: int, depth: int, count: int | None) -> Step:
    if count is None:
        return lambda: begin
    counters, body, after = vcpu.counters, begin + 1, place + 1

    def step() -> int:
        counters[depth] -= 1
        return body if counters[depth] else after

    return step


# memory


def _load(vcpu: MockVcpu, place: int, op: Load) -> Step:
    address, size, expect, after = op.address, op.size, op.expect, place + 1
    unpack, readable = ITEM[size].unpack_from, vcpu.readable
    parts = parts_of(address, size)

    def access() -> Generator[int, None, None]:
        value = yield from read_parts(vcpu, parts)
        if expect is not None and value != expect:
            vcpu.errors += 1

    def step() -> int:
        found = readable.get(address) or vcpu.find_to_read(address)
        if not found:
            return vcpu.start_access(access(), place) if found is None else place
        memory, offset = found
        if expect is not None and unpack(memory, offset)[0] != expect:
            vcpu.errors += 1
        return after

    return step if len(parts) == 1 else lambda: vcpu.start_access(access(), place)


def _store(vcpu: MockVcpu, place: int, op: Store) -> Step:
    address, value, size, bus, after = op.address, op.value, op.size, vcpu.bus, place + 1
    pack, writable = ITEM[size].pack_into, vcpu.writable
    parts = parts_of(address, size)

    def step() -> int:
        found = writable.get(address) or vcpu.find_to_write(address)
        if not found:
            return vcpu.start_access(write_parts(vcpu, parts, value), place) if found is None else place
        memory, offset = found
        with bus:
            pack(memory, offset, value)
        return after

    return step if len(parts) == 1 else lambda: vcpu.start_access(write_parts(vcpu, parts, value), place)


def _add(vcpu: MockVcpu, place: int, op: Add) -> Step:
    address, value, size, bus, after = op.address, op.value, op.size, vcpu.bus, place + 1
    pack, unpack, mask = ITEM[size].pack_into, ITEM[size].unpack_from, (1 << 8 * size) - 1
    writable = vcpu.writable
    parts = parts_of(address, size)

    def access() -> Generator[int, None, None]:
        # As KVM's emulator does it: a read and a write, and nothing that joins them.
        old = yield from read_parts(vcpu, parts)
        yield from write_parts(vcpu, parts, old + value)

    def step() -> int:
        found = writable.get(address) or vcpu.find_to_write(address)
        if not found:
            return vcpu.start_access(access(), place) if found is None else place
        memory, offset = found
        with bus:
            pack(memory, offset, unpack(memory, offset)[0] + value & mask)
        return after

    return step


def _fetch(vcpu: MockVcpu, place: int, op: Fetch) -> Step:
    address, readable, after = op.address, vcpu.readable, place + 1

    def step() -> int:
        found = readable.get(address) or vcpu.find_to_read(address)
        if not found:
            if found is not None:
                return place
            problem = f"instruction fetch at {address:#x}, where no memory is"
            return vcpu.fail(ExitKind.INTERNAL_ERROR, problem, address)
        code = found[0][found[1]]
        if code != RETURN_BYTE:
            problem = f"the instruction at {address:#x} is {code:#04x}; guest programs execute returns only"
            return vcpu.fail(ExitKind.SHUTDOWN, problem)
        return after

    return step


# ports


def _in(vcpu: MockVcpu, place: int, op: In) -> Step:
    word = pack_io(is_out=False, size=op.size, port=op.port)

    def access() -> Generator[int, None, None]:
        vcpu.record[0] = word
        yield _IO
        if op.expect is not None and int.from_bytes(vcpu.io_data[: op.size], "little") != op.expect:
            vcpu.errors += 1

    return lambda: vcpu.start_access(access(), place)


def _out(vcpu: MockVcpu, place: int, op: Out) -> Step:
    port, size = op.port, op.size
    word = pack_io(is_out=True, size=size, port=port)
    data: Callable[[], bytes]
    if isinstance(op.value, ErrorCount):
        most = (1 << 8 * size) - 1

        def data() -> bytes:
            return min(vcpu.errors, most).to_bytes(size, "little")

    else:
        fixed = op.value.to_bytes(size, "little")

        def data() -> bytes:
            return fixed

    def access() -> Generator[int, None, None]:
        written = data()
        if not is_answered(vcpu, port, written, is_port=True):
            vcpu.record[0] = word
            vcpu.io_data[:size] = written
            yield _IO

    return lambda: vcpu.start_access(access(), place)

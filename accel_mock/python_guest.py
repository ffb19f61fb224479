"""Guests written in Python, for people who write tests: a generator that yields operations and gets back what was read.

Layer: above `accel_mock.steps`, whose operations they are made of, so memory, exits and kicks are the same as for any
program. The mock's alone, and never made from a file: what a generator does is not bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias

from accel.errors import CapabilityError, ProgramError
from accel.exits import ExitKind, pack_io
from accel.plugin_checks import mark_as_guests
from accel.program import GuestProgram, In, Load, Loop, Op
from accel_mock.emulator import parts_of, read_parts
from accel_mock.steps import ITEM, compile_ops
from accel_mock.vcpu import EXIT, MockVcpu, Step

#: What a test writes: called once for each vCPU that it is loaded into.
GuestFunction: TypeAlias = Callable[[], Generator[Op, int | None, object]]

#: Steps that are kept for operations that come again.
_KEPT = 4096


class PythonGuest(GuestProgram):
    """A guest that is a generator function: where a machine or vCPU of the mock takes a `GuestProgram`.

    What it yields is executed; ``value = yield Load(0x1000)`` and ``yield In(0x60)`` give what was read, the other
    operations None. Its end is a halt. An exception in it ends the run, and is raised to whoever waits.

    Args:
        function: Makes the generator.
    """

    __slots__ = ("_function",)
    _function: GuestFunction

    def __init__(self, function: GuestFunction) -> None:
        object.__setattr__(self, "_function", function)

    @property
    def ops(self) -> tuple[Op, ...]:
        """Raise CapabilityError: nobody knows them before they are executed."""
        raise CapabilityError("a guest in Python runs on the mock only; write a GuestProgram for other accelerators")

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"PythonGuest({getattr(self._function, '__qualname__', self._function)})"

    __str__ = __repr__

    def steps(self, vcpu: MockVcpu) -> list[Step]:
        """Return the steps for `vcpu`; see `accel_mock.steps.PlaysItself`."""
        return _Player(self._function, vcpu).steps()


class _Player:
    """Plays one guest on one vCPU. Owned by the vCPU's thread."""

    def __init__(self, function: GuestFunction, vcpu: MockVcpu) -> None:
        self._generator = function()
        self._vcpu = vcpu
        # What the last operation read, and the step of the one that is being executed.
        self._value: int | None = None
        self._current: Step = self._next
        self._kept: dict[Op, Step] = {}

    def steps(self) -> list[Step]:
        """Return the steps: fetch the next operation, execute it, and again."""
        return [self._next, self._execute, self._next]

    def _next(self) -> int:
        value, self._value = self._value, None
        try:
            op = self._generator.send(value)
        except StopIteration:
            return EXIT - ExitKind.HALT
        except BaseException as error:
            mark_as_guests(error)
            raise
        step = self._kept.get(op)
        if step is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            step = self._kept[op] = self._step(op)
        self._current = step
        return 1

    def _execute(self) -> int:
        return self._current()

    def _step(self, op: Op) -> Step:
        if isinstance(op, Loop):
            raise ProgramError("guest", "", op, "a guest in Python loops in Python; yield what is in the loop")
        GuestProgram((op,))  # raises for what cannot be
        if isinstance(op, Load):
            return self._load(op)
        if isinstance(op, In):
            return self._in(op)
        steps: list[Step] = [self._next]
        compile_ops((op,), 0, steps, self._vcpu)
        return steps[1]

    def _take(self, value: int, expect: int | None) -> None:
        self._value = value
        if expect is not None and value != expect:
            self._vcpu.errors += 1

    def _load(self, op: Load) -> Step:
        address, expect, vcpu, take = op.address, op.expect, self._vcpu, self._take
        parts, unpack, readable = parts_of(address, op.size), ITEM[op.size].unpack_from, vcpu.readable

        def access() -> Generator[int, None, None]:
            take((yield from read_parts(vcpu, parts)), expect)

        def step() -> int:
            found = readable.get(address) or vcpu.find_to_read(address)
            if not found:
                return vcpu.start_access(access(), 1) if found is None else 1
            memory, offset = found
            take(unpack(memory, offset)[0], expect)
            return 2

        return step if len(parts) == 1 else lambda: vcpu.start_access(access(), 1)

    def _in(self, op: In) -> Step:
        vcpu, word = self._vcpu, pack_io(is_out=False, size=op.size, port=op.port)

        def access() -> Generator[int, None, None]:
            vcpu.record[0] = word
            yield int(ExitKind.IO)
            self._take(int.from_bytes(vcpu.io_data[: op.size], "little"), op.expect)

        return lambda: vcpu.start_access(access(), 1)

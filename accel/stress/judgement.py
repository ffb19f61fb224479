"""What a stress guest is judged by: the kinds of touch, what fills the memory, and what the host compares it with.

Layer: above `changes`, below the guests. The kinds of touch are those of ``examples/guests/src/stress.c``.
"""

from __future__ import annotations

from typing import Literal, get_args

from attrs import frozen

from accel.machine import Machine
from accel.program import RETURN_BYTE
from accel.stress.area import BASE, CODE, DATA, TOUCHED, WRITTEN, pattern, tail_bytes
from accel.stress.changes import ChangingMap

Touch = Literal["read", "write", "locked", "fetch", "walk", "mixed"]
TOUCHES: tuple[Touch, ...] = get_args(Touch)
#: The kinds of touch that a pass can be of; ``mixed`` does one after the other.
KINDS = TOUCHES[:-1]


@frozen
class Judgement:
    """What a guest that has ended, and the host that looked after it, found.

    Attributes:
        passes: Complete passes over the area, of all vCPUs.
        errors: Wrong values that the guest found, and sums that do not come out.
        host_errors: Words that the host found wrong in memory after the run.
        first_error: The first of the guest's, for people, or an empty string.
    """

    passes: int
    errors: int
    host_errors: int
    first_error: str = ""


def fill(memory: ChangingMap, code: bytes | None) -> None:
    """Write everything but the page tables; `code` is what every cell of code holds, or None for functions."""
    ram = memory.ram
    ram.write(0, bytes(TOUCHED))
    ram.write(TOUCHED, tail_bytes())
    for address in DATA.addresses():
        ram.write(address - BASE, pattern(address).to_bytes(8, "little"))
    for address in CODE.addresses():
        # mov rax, pattern; ret
        function = b"\x48\xb8" + pattern(address).to_bytes(8, "little") + bytes((RETURN_BYTE,))
        ram.write(address - BASE, function if code is None else code)


class HostCheck:
    """Compares what only the host writes with what was there at the start, through the map and below it."""

    def __init__(self, machine: Machine, memory: ChangingMap) -> None:
        self._machine = machine
        self._ram = memory.ram
        self._before = memory.ram.read(0, WRITTEN.offset)
        self._tail = tail_bytes()

    def errors(self) -> int:
        """Return how many 8-byte words are wrong."""
        size = len(self._before)
        shown = self._machine.memory.read(BASE, TOUCHED)
        return (
            differences(self._before, shown[:size])
            + differences(self._ram.read(0, TOUCHED), shown)
            + differences(self._tail, self._ram.read(TOUCHED, len(self._tail)))
        )


def differences(one: bytes, other: bytes) -> int:
    if one == other:
        return 0
    return sum(one[at : at + 8] != other[at : at + 8] for at in range(0, len(one), 8))

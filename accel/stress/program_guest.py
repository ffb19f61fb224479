"""The stress guest on accelerators that interpret guest programs.

Layer: above `judgement`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from accel.devices.base import Device
from accel.locks import DEVICE_LOCK, Lock
from accel.machine import Machine
from accel.memory.region import MemoryRegion
from accel.program import ERRORS, RETURN_BYTE, Add, Fetch, GuestProgram, Load, Loop, Op, Out, Store
from accel.result import RunResult
from accel.stress.area import BASE, CODE, DATA, WRITTEN, pattern
from accel.stress.changes import ChangingMap
from accel.stress.judgement import KINDS, HostCheck, Judgement, Touch, fill

_MASK = (1 << 64) - 1


class _Reports(Device):
    """Takes each vCPU's count of errors, at a port of its own, four bytes wide.

    It has a lock of its own: under the big lock each vCPU would wait here for the change that goes on, and with changes
    back to back none would ever be amid its memory when that changes.
    """

    PORT, WIDTH = 0x510, 4
    name = "stress-reports"

    def __init__(self, cpus: int) -> None:
        self.errors = [0] * cpus
        self._lock = Lock(DEVICE_LOCK)

    def io_regions(self) -> Iterable[tuple[int, MemoryRegion]]:
        """Return the ports."""
        size = self.WIDTH * len(self.errors)
        return ((self.PORT, MemoryRegion.mmio(self.name, size, write=self._write, lock=self._lock)),)

    def _write(self, offset: int, value: int, size: int) -> None:
        self.errors[offset // self.WIDTH] = value


class ProgramGuest:
    """Guest programs that do the same, for accelerators that execute no machine code. They go on until stopped.

    Each vCPU counts its passes in memory and reports its errors, every few passes, through a port of its own.
    """

    _PASSES = 0x1000
    #: Times that a vCPU goes through its passes between two reports.
    _ROUNDS = 2

    def __init__(self, machine: Machine, memory: ChangingMap, touch: Touch) -> None:
        self._machine = machine
        self._memory = memory
        self._touch = touch
        self._reports = _Reports(machine.cpus)
        machine.attach(self._reports)

    def load(self) -> None:
        """Give each vCPU its program, and fill the memory."""
        fill(self._memory, bytes((RETURN_BYTE,)))
        self._reports.errors = [0] * self._machine.cpus
        self._machine.memory.write(self._PASSES, bytes(8 * len(KINDS) * self._machine.cpus))
        for index, vcpu in enumerate(self._machine.vm.vcpus):
            for address in WRITTEN.addresses():
                word = address + 8 * (index + 1)
                self._memory.ram.write(word - BASE, struct.pack("<Q", _second(word)))
            vcpu.load_program(self._program(index))
        self._host = HostCheck(self._machine, self._memory)

    def begun(self) -> bool:
        """Return whether a pass of any kind is counted."""
        return sum(self._counts(0)) > 0

    def end(self) -> None:
        """Stop it where it is."""
        self._machine.stop()

    def judge(self, result: RunResult) -> Judgement:
        """Add up what was counted and reported; a pass that was cut off may have added to some sums."""
        counts = [self._counts(index) for index in range(self._machine.cpus)]
        errors = sum(self._reports.errors)
        if self._touch in ("locked", "mixed"):
            passes = sum(one[KINDS.index("locked")] for one in counts)
            words = struct.iter_unpack("<Q", b"".join(self._shared_words()))
            errors += sum(not passes <= word <= passes + self._machine.cpus for (word,) in words)
        return Judgement(sum(map(sum, counts)), errors, self._host.errors())

    def _shared_words(self) -> list[bytes]:
        return [self._memory.ram.read(address - BASE, 8) for address in WRITTEN.addresses()]

    def _counts(self, index: int) -> tuple[int, ...]:
        size = 8 * len(KINDS)
        return struct.unpack(f"<{len(KINDS)}Q", self._machine.memory.read(self._PASSES + index * size, size))

    def _program(self, index: int) -> GuestProgram:
        if self._touch == "mixed":
            # Without page tables, and each vCPU begins with another.
            kinds = [KINDS[(index + n) % 4] for n in range(4)]
        else:
            kinds = [self._touch]
        body = [op for kind in kinds for op in self._passes(kind, index)]
        report = Out(_Reports.PORT + index * _Reports.WIDTH, ERRORS, _Reports.WIDTH)
        return GuestProgram([Loop((Loop(tuple(body), self._ROUNDS), report))])

    def _passes(self, kind: str, index: int) -> list[Op]:
        counter = self._PASSES + 8 * (index * len(KINDS) + KINDS.index(kind))
        counted = Add(counter, 1, 8)
        if kind == "read":
            return [*(Load(address, 8, pattern(address)) for address in DATA.addresses()), counted]
        if kind == "fetch":
            return [*(Fetch(address) for address in CODE.addresses()), counted]
        if kind == "locked":
            return [*(Add(address, 1, 8) for address in WRITTEN.addresses()), counted]
        words = [address + 8 * (index + 1) for address in WRITTEN.addresses()]
        return [
            *(op for word in words for op in (Load(word, 8, _second(word)), Store(word, pattern(word), 8))),
            counted,
            *(op for word in words for op in (Load(word, 8, pattern(word)), Store(word, _second(word), 8))),
            counted,
        ]


def _second(word: int) -> int:
    """Return the other of two values that a program writes in turn."""
    return pattern(word) ^ _MASK >> 1

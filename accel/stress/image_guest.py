"""The stress guest on accelerators that execute machine code.

Layer: above `judgement`.
"""

from __future__ import annotations

import struct

from accel.arch.x86_paging import identity_tables
from accel.devices import DebugExit
from accel.machine import Machine
from accel.result import Outcome, RunResult
from accel.stress.area import BASE, CODE, DATA, TABLES, WRITTEN, pattern
from accel.stress.changes import ChangingMap
from accel.stress.judgement import KINDS, TOUCHES, HostCheck, Judgement, Touch, differences, fill
from accel.testing.images import image_file

_MASK = (1 << 64) - 1


class ImageGuest:
    """``stress.elf`` on an accelerator that executes machine code."""

    # Words of the block that host and guest share; see examples/guests/README.md.
    _STOP, _FIRST, _TABLES, _CPUS = 0x8000, 0x8010, 0x8038, 0x8088
    _CPU = struct.Struct("<8Q")
    _PASSES = 24
    _LARGE_PAGES, _LOW_WORD = 8, 0x1F_0000

    def __init__(self, machine: Machine, memory: ChangingMap, touch: Touch) -> None:
        self._machine = machine
        self._memory = memory
        self._kind = TOUCHES.index(touch)
        machine.attach(DebugExit())

    def load(self) -> None:
        """Put the image, the page tables and all patterns into memory."""
        machine = self._machine
        with image_file("stress.elf") as path:
            machine.load(path)
        fill(self._memory, None)
        self._memory.ram.write(TABLES, identity_tables(BASE + TABLES, 1 << 32))
        for at in range(self._LOW_WORD, self._LARGE_PAGES << 21, 1 << 21):
            self._write(at, pattern(at))
        self._write(self._TABLES, BASE + TABLES)
        cells = (value for one in (DATA, WRITTEN, CODE) for value in (BASE + one.offset, one.count, one.size))
        self._write(self._TABLES + 8, *cells)
        for index in range(machine.cpus):
            self._write(self._CPUS + index * self._CPU.size, self._kind)
            for address in WRITTEN.addresses():
                word = address + 8 * (index + 1)
                self._memory.ram.write(word - BASE, struct.pack("<Q", word & 0xFFFF_FFFF))
        self._host = HostCheck(machine, self._memory)

    def begun(self) -> bool:
        """Return whether a pass of any kind is counted."""
        return any(self._read(self._CPUS + self._PASSES, len(KINDS)))

    def end(self) -> None:
        """Set the word that ends it."""
        self._write(self._STOP, 1)

    def judge(self, result: RunResult) -> Judgement:
        """Add up what the vCPUs counted; their sums and last values can be judged if they came to their end."""
        cpus = [self._read(self._CPUS + n * self._CPU.size, 8) for n in range(self._machine.cpus)]
        errors = sum(cpu[1] for cpu in cpus)
        if result.outcome is Outcome.EXITED:
            errors += sum(map(self._wrong_sum, cpus)) + self._wrong_words([cpu[3:] for cpu in cpus])
        return Judgement(sum(sum(cpu[3:]) for cpu in cpus), errors, self._host.errors(), self._first_error(errors))

    def _wrong_sum(self, cpu: tuple[int, ...]) -> bool:
        """Return whether what a vCPU read and was returned adds up to something else than it must."""
        passes = dict(zip(KINDS, cpu[3:], strict=True))
        right = passes["read"] * sum(map(pattern, DATA.addresses()))
        right += passes["fetch"] * sum(map(pattern, CODE.addresses()))
        return cpu[2] != right & _MASK

    def _wrong_words(self, passes: list[tuple[int, ...]]) -> int:
        """Return how many written words are not what was last written or all that was added."""
        write, locked = KINDS.index("write"), KINDS.index("locked")
        added = sum(one[locked] for one in passes)
        wrong = 0
        for address in WRITTEN.addresses():
            right = [added]
            for index, one in enumerate(passes):
                right.append((one[write] << 32 | address + 8 * (index + 1) & 0xFFFF_FFFF) & _MASK)
            found = self._memory.ram.read(address - BASE, 8 * len(right))
            wrong += differences(struct.pack(f"<{len(right)}Q", *right), found)
        return wrong

    def _first_error(self, errors: int) -> str:
        kind, address, expected, found = self._read(self._FIRST, 4)
        if not address:
            return "a sum or a last word is wrong" if errors else ""
        return f"{KINDS[kind % len(KINDS)]} at {address:#x}: expected {expected:#x}, found {found:#x}"

    def _read(self, address: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", self._machine.memory.read(address, 8 * count))

    def _write(self, address: int, *values: int) -> None:
        self._machine.memory.write(address, struct.pack(f"<{len(values)}Q", *values))

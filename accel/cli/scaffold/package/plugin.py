"""The accelerator '$name', which interprets guest programs. accel imports this at each start: open nothing."""

from array import array
from collections.abc import Callable, Generator, Iterator
from itertools import repeat
from typing import cast

import accel
from accel.address import PAGE_SIZE
from accel.exits import ExitKind, pack_io
from accel.memory.slot_listener import SlotListener, SlotRules
from accel.memory.slot_plan import Policy
from accel.memory.slot_table import SlotsByAddress
from accel.program import RETURN_BYTE, Add, ErrorCount, Fetch, In, Load, Out, Store


class Interpreter(accel.Accelerator):
    name, summary, executes = "$name", "interprets guest programs", frozenset({"program"})
    options = accel.MEMORY_OPTIONS

    def probe(self) -> accel.Availability:
        return accel.Availability(True, capabilities=Vm.capabilities)  # or False, and why it cannot be used here

    def create_vm(self, config: accel.VmConfig) -> accel.VmBackend:
        return Vm(cast(Policy, config.options["plan"]))


@accel.hookimpl
def accel_register_accelerators(register: Callable[[accel.Accelerator], None]) -> None:
    register(Interpreter())


class Vm(accel.VmBackend):
    capabilities = frozenset({accel.Capability.READONLY_MEMORY, accel.Capability.DIRTY_LOG})
    max_vcpus = 16

    def __init__(self, plan: Policy) -> None:
        self._slots, self._plan = SlotsByAddress(), plan

    def memory_listener(self) -> accel.MemoryListener:
        # It hears of each change of the memory map, plans which slots go and come, and does that in the table.
        return SlotListener(self._slots, SlotRules(owner="$name"), self._plan)

    def create_vcpu(self, index: int) -> accel.VcpuBackend:
        return Vcpu(self._slots)

    def close(self) -> None:
        self._slots = SlotsByAddress()  # lets go of the host's memory


class Vcpu(accel.VcpuBackend):
    def __init__(self, slots: SlotsByAddress) -> None:
        self.record = memoryview(array("Q", (0, 0, 0)))  # what the last exit is about, as accel.exits lays it out
        self.io_data = memoryview(bytearray(8))
        self._slots, self._kicked, self._problem = slots, False, "no program is loaded"
        self._steps: Iterator[ExitKind] = repeat(ExitKind.FAIL_ENTRY)

    def load_program(self, program: accel.GuestProgram) -> None:
        self._steps = self._play(program)  # a generator: it stands still at each exit, amid an operation

    def run(self) -> int:
        return next(self._steps, ExitKind.HALT)

    def kick(self, thread_id: int) -> None:
        self._kicked = True  # from any thread; it is seen before the next operation, in this run or one to come

    def describe(self) -> str:
        return self._problem

    def close(self) -> None:
        self._steps = iter(())

    def _play(self, program: accel.GuestProgram) -> Iterator[ExitKind]:
        errors = 0
        for op in program.walk():
            while self._kicked:  # looked at between two operations, where nothing is lost by coming out
                self._kicked = False
                yield ExitKind.INTERRUPTED
            match op:
                case Load(address, size, expect):
                    loaded = yield from self._access(address, size)
                    errors += expect not in (None, loaded)
                case Store(address, value, size):
                    yield from self._access(address, size, value)
                case Add(address, value, size):
                    if self._slots.access(address, size, value, add=True) is None:
                        old = yield from self._access(address, size)  # a device is asked, and then told
                        yield from self._access(address, size, old + value)
                case Fetch(address):
                    while (code := self._slots.access(address, 1)) != RETURN_BYTE:
                        self._problem = f"there is no code to execute at {address:#x}"
                        yield ExitKind.INTERNAL_ERROR if code is None else ExitKind.SHUTDOWN
                case In(port, size, expect):
                    self.record[0] = pack_io(is_out=False, size=size, port=port)
                    yield ExitKind.IO  # when it is run again, the answer is there
                    errors += expect not in (None, int.from_bytes(self.io_data[:size], "little"))
                case Out(port, value, size):
                    number = min(errors, (1 << 8 * size) - 1) if isinstance(value, ErrorCount) else value
                    self.record[0] = pack_io(is_out=True, size=size, port=port)
                    self.io_data[:size] = number.to_bytes(size, "little")
                    yield ExitKind.IO

    def _access(self, address: int, size: int, value: int | None = None) -> Generator[ExitKind, None, int]:
        """Load, or store `value`; what is no memory comes out."""
        room, mask = PAGE_SIZE - address % PAGE_SIZE, (1 << 8 * size) - 1
        if size > room:  # the rest is in the next page, which may be something else
            low = yield from self._access(address, room, value)
            high = yield from self._access(address + room, size - room, None if value is None else value >> 8 * room)
            return low | high << 8 * room
        found = self._slots.access(address, size, value)
        if found is None:
            self.record[0], self.record[1] = address, (value or 0) & mask
            self.record[2] = size | (value is not None) << 32
            yield ExitKind.MMIO
            found = self.record[1] & mask  # a load finds its answer in the record
        return found

"""A vCPU: enters its engine with a turn, and makes exits of what it comes out with.

The engine is in one of three places. *Ended*: no emulation goes on, the next one begins at RIP. *Between*: it stands
before an instruction. *Within*: it stands in a hook in the middle of an instruction, and wants an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from attrs import evolve
from unicorn import UcError
from unicorn import unicorn_const as uc
from unicorn import x86_const as x86

from accel.address import PAGE_SIZE
from accel.arch.x86 import X86State
from accel.backend import VcpuBackend
from accel.errors import BackendError
from accel.exits import ExitKind
from accel_unicorn import interrupts, switch
from accel_unicorn.access import GO_ON, Access, Accesses
from accel_unicorn.crossing import rest_of_read
from accel_unicorn.engine import Engine, error_text
from accel_unicorn.guest_memory import GuestMemory
from accel_unicorn.slots import UnicornSlots
from accel_unicorn.state import (
    exception_details,
    physical_addresses,
    read_state,
    reset_floating_point,
    restore,
    save,
    write_state,
)
from accel_unicorn.switch import ATTENTION, BEGIN, FIRST, FOURTH, REPLY, SECOND, THIRD
from accel_unicorn.turn import Turn

_ENDED, _BETWEEN, _WITHIN = range(3)

_IO, _MMIO, _HALT = int(ExitKind.IO), int(ExitKind.MMIO), int(ExitKind.HALT)
_INTERRUPTED, _SHUTDOWN, _ERROR = int(ExitKind.INTERRUPTED), int(ExitKind.SHUTDOWN), int(ExitKind.INTERNAL_ERROR)

_GIVEN_UP = (uc.UC_ERR_READ_UNMAPPED, uc.UC_ERR_READ_PROT, uc.UC_ERR_WRITE_UNMAPPED, uc.UC_ERR_WRITE_PROT)
_NO_CODE = (uc.UC_ERR_FETCH_UNMAPPED, uc.UC_ERR_FETCH_PROT)
_BREAKPOINT, _INVALID_OPCODE = 3, 6


class UnicornVcpu(VcpuBackend):
    """One vCPU. Owned by the thread that runs it, but for the kick."""

    def __init__(self, engine: Engine, slots: UnicornSlots, turn: Turn) -> None:
        self.engine = engine
        self._slots = slots
        self._turn = turn
        self._words = engine.switch.words
        self._accesses = Accesses(self._words)
        self._memory = GuestMemory(slots)
        self.record, self.io_data = engine.switch.record, engine.switch.io_data
        self._place = _ENDED
        # The access that wants an answer; None for a port access.
        self._access: Access | None = None
        self._kicked = False
        self._finishing = False
        self._problem = ""
        self._fault: int | None = None
        self._kept = X86State()
        events: list[Callable[[], int | None]] = [self._unknown] * 8
        events[switch.ENDED] = self._ended
        events[switch.STOPPED] = self._stopped
        events[switch.PORT] = self._port
        events[switch.DEVICE] = self._device
        events[switch.DEVICE_READ] = self._device_read
        events[switch.MEMORY] = self._memory_access
        events[switch.EXCEPTION] = self._exception
        events[switch.SYSCALL] = self._system_call
        self._events = events
        self._enter = engine.switch.enter
        engine.physical_addresses = partial(physical_addresses, engine)
        reset_floating_point(engine)
        write_state(engine, self._kept)
        self._words[BEGIN] = self._kept.rip

    def run(self) -> int:
        """Enter the guest until it comes out; see `VcpuBackend.run`."""
        self._turn.take(self._words)
        try:
            if self._access is not None:
                self._answer()
            kind = self._enter()
            if kind <= _MMIO:  # an exit as it stands
                self._place = _WITHIN
                return kind
            return self._come_out(kind)
        except UcError as error:
            raise BackendError("Unicorn", 0, str(error)) from error
        finally:
            self._turn.give()

    def _come_out(self, event: int) -> int:
        events = self._events
        while True:
            kind = events[event]()
            if kind is not None:
                return kind
            event = self._enter()

    def kick(self, thread_id: int) -> None:
        """Have the engine stop before its next instruction."""
        self._kicked = True
        self._words[ATTENTION] = 1

    def finish(self) -> int:
        """Complete the last exit's instruction; see `VcpuBackend.finish`."""
        if self._place != _WITHIN:
            return _INTERRUPTED
        self._finishing = True
        self._words[ATTENTION] = 1
        try:
            return self.run()
        finally:
            self._finishing = False
            # A kick is for the next run.
            if self._kicked:
                self._words[ATTENTION] = 1

    def read_state(self) -> X86State:
        """Return all registers."""
        return read_state(self.engine, self._kept)

    def write_state(self, state: X86State) -> None:
        """Set all registers; what is left of the last exit's instruction is completed first, and dropped."""
        self.end()
        self._set(state)
        # Whoever sets registers may have loaded other code, of which the engine knows nothing.
        self.engine.flush_code()

    def end(self) -> None:
        """Let the emulation end between two instructions, so that the engine can be changed at will."""
        while self.finish() != _INTERRUPTED:
            pass
        if self._place == _BETWEEN:
            self._turn.take(self._words)
            try:
                self._leave_emulation()
            finally:
                self._turn.give()

    def save(self) -> bytes:
        """Return the whole state of the CPU, for `restore` on this vCPU; nothing is left to complete."""
        self.end()
        return save(self.engine)

    def restore(self, saved: bytes) -> None:
        """Set what `save` gave."""
        self.end()
        restore(self.engine, saved)
        self.engine.flush_code()
        self._has_ended()

    def flush_code(self) -> None:
        """Forget the code that was translated; nothing is left to complete."""
        self.end()
        self.engine.flush_code()

    def describe(self) -> str:
        """Return what went wrong, and where the guest stands."""
        state = self.read_state()
        return f"{self._problem} at RIP {state.rip:#x}, CS base {state.cs.base:#x}, CR0 {state.cr0:#x}".strip()

    def fault_address(self) -> int | None:
        """Return the guest-physical address of the fetch that failed, if the last exit is about one."""
        return self._fault

    def close(self) -> None:
        """Release the engine."""
        self._slots.remove(self.engine)
        self.engine.close()

    # going on

    def _answer(self) -> None:
        """Give the hook in which the engine stands what it returns."""
        access, self._access = self._access, None
        if access is None:
            return
        engine = self.engine
        engine.reading = None
        answer = self._accesses.served(access, self.record[1], engine.epoch)
        if access.piece and not access.write:
            self._words[REPLY] = answer
        else:
            self._reply(answer)

    def _reply(self, answer: int) -> None:
        if answer == GO_ON:
            # It goes on to make the access, so there has to be something.
            self._map_device()
        self._words[REPLY] = answer

    def _map_device(self) -> None:
        address = self._accesses.take_unmapped()
        if address is not None and self._slots.find(address) is None:
            self.engine.map_device(address, *self._slots.hole(address))

    def _leave_emulation(self) -> None:
        """From within a hook whose instruction is done with, or from between two: end the emulation, with a turn."""
        self._words[REPLY] = 0
        self.engine.stop()
        if self.engine.switch.enter() != switch.ENDED:
            raise BackendError("Unicorn", 0, "the emulation did not end where it was told to")
        self._has_ended()

    def _has_ended(self) -> None:
        self._place = _ENDED
        self._words[BEGIN] = self.engine.read(x86.UC_X86_REG_RIP)

    def _set(self, state: X86State) -> None:
        self._kept = state
        write_state(self.engine, state)
        self._words[BEGIN] = state.rip

    # what the engine comes out with; each returns an exit kind, or None to go on

    def _stopped(self) -> int | None:
        if self._accesses.restarting:
            # An instruction that was begun anew; its accesses are served, so it is to be completed first.
            return None
        words = self._words
        words[ATTENTION] = 0
        self._place = _BETWEEN
        if self._finishing:
            return _INTERRUPTED
        if self._kicked:
            self._kicked = False
            return _INTERRUPTED
        if self._turn.wanted:
            self._turn.give()
            self._turn.take(words)
        return None

    def _port(self) -> int | None:
        self._place = _WITHIN
        return _IO

    def _device(self) -> int | None:
        self._place = _WITHIN
        return _MMIO

    def _memory_access(self) -> int | None:
        words = self._words
        found = self._accesses.ask(words[FIRST], words[SECOND], words[THIRD], words[FOURTH], self.engine.epoch)
        if not isinstance(found, Access):
            self._reply(found)
            return None
        return self._exit_for(found)

    def _device_read(self) -> int | None:
        words = self._words
        address, size = words[FIRST], words[SECOND]
        here = None
        if address % PAGE_SIZE == 0:
            here = rest_of_read(self.read_state(), self._memory, address, size)
        found = self._accesses.ask_rest(address, size, here, self.engine.epoch)
        if not isinstance(found, Access):
            words[REPLY] = found
            return None
        self.engine.reading = address
        return self._exit_for(found)

    def _exit_for(self, found: Access) -> int:
        record = self.record
        record[0] = found.address
        record[1] = found.value & (1 << 8 * found.here) - 1
        record[2] = found.here | found.write << 32
        self._access = found
        self._place = _WITHIN
        return _MMIO

    def _ended(self) -> int | None:
        error = self._words[FIRST]
        self._has_ended()
        if error in _GIVEN_UP:
            self._accesses.begins_anew()
            self._map_device()
            return None
        if error == uc.UC_ERR_OK:
            return _HALT
        if self._finishing and not self._accesses.restarting:
            # It is about the next instruction, which will fail again.
            return _INTERRUPTED
        if error == uc.UC_ERR_INSN_INVALID:
            return self._deliver(_INVALID_OPCODE)
        self._problem, self._fault = error_text(error), None
        if error in _NO_CODE:
            state = self.read_state()
            self._problem = "instruction fetch where there is no memory"
            self._fault = self._memory.fetched(state)
        return _ERROR

    def _exception(self) -> int | None:
        state = self.read_state()
        code, software = exception_details(self.engine)
        vector = self._words[FIRST]
        self._leave_emulation()
        # Unicorn has put RIP behind the instruction by now, even if that is to be tried again.
        self._set(state)
        if self._finishing and not self._accesses.restarting:
            # Of the next instruction, which will do it again; but an INT has been executed.
            self._set(state if not software else self._before_int(state, vector))
            return _INTERRUPTED
        return self._deliver(vector, code, software=software)

    def _before_int(self, state: X86State, vector: int) -> X86State:
        return evolve(state, rip=state.rip - (1 if vector == _BREAKPOINT else 2))

    def _deliver(self, vector: int, code: int = 0, *, software: bool = False) -> int | None:
        """Go on in the guest's handler."""
        state = interrupts.deliver(self.read_state(), vector, code, self._memory, software=software)
        if state is None:
            self._problem, self._fault = f"triple fault (exception {vector}, error code {code:#x})", None
            return _SHUTDOWN
        self._set(state)
        return None

    def _system_call(self) -> int | None:
        state = self.read_state()
        self._leave_emulation()
        self._set(interrupts.system_call(state, self.engine.read_msr))
        return None

    def _unknown(self) -> int | None:
        raise BackendError("Unicorn", 0, "an event that nobody asked for")

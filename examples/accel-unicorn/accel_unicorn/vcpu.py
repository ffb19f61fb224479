"""A vCPU: enters its engine with a turn, and makes exits of what it comes out with."""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve
from unicorn import unicorn_const as uc
from unicorn import x86_const as x86

from accel.address import PAGE_SIZE
from accel.errors import BackendError
from accel.exits import ExitKind
from accel_unicorn import interrupts, switch
from accel_unicorn.access import GO_ON, Access, Accesses
from accel_unicorn.crossing import is_input, rest_of_read
from accel_unicorn.engine import Engine, UcError, error_text
from accel_unicorn.slots import UnicornSlots
from accel_unicorn.standing import BETWEEN, WITHIN, StandingVcpu
from accel_unicorn.state import exception_details, flags_within
from accel_unicorn.switch import (
    ATTENTION,
    COUNT,
    EVENT,
    FIRST,
    FOURTH,
    INPUT,
    KNOWN,
    MAX_KNOWN,
    PLACE,
    REPLY,
    SECOND,
    THIRD,
)
from accel_unicorn.turn import Turn

_IO, _MMIO, _HALT = int(ExitKind.IO), int(ExitKind.MMIO), int(ExitKind.HALT)
_INTERRUPTED, _SHUTDOWN, _ERROR = int(ExitKind.INTERRUPTED), int(ExitKind.SHUTDOWN), int(ExitKind.INTERNAL_ERROR)

_GIVEN_UP = (uc.UC_ERR_READ_UNMAPPED, uc.UC_ERR_READ_PROT, uc.UC_ERR_WRITE_UNMAPPED, uc.UC_ERR_WRITE_PROT)
_NO_CODE = (uc.UC_ERR_FETCH_UNMAPPED, uc.UC_ERR_FETCH_PROT)
_INVALID_OPCODE = 6


class UnicornVcpu(StandingVcpu):
    """One vCPU. Owned by the thread that runs it, but for the kick."""

    def __init__(self, engine: Engine, slots: UnicornSlots, turn: Turn) -> None:
        super().__init__(engine, slots, turn)
        self._accesses = Accesses(self._words)
        # The access that wants an answer; None for one whose answer the hook finds in the record.
        self._access: Access | None = None
        # Set by any thread, before ATTENTION; taken back by the vCPU's.
        self._kicked = False
        # Whether it only completes an instruction, and where that one is.
        self._finishing, self._finishes = False, 0
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
        self._owner, self._queue = turn.owner, turn.queue

    def run(self) -> int:
        """Enter the guest until it comes out; see `VcpuBackend.run`."""
        words, owner = self._words, self._owner
        try:
            # As `Turn.take` does it.
            if self._queue or owner.setdefault(0, words) is not words:
                self._turn.wait(words)
            if self._access is not None:
                self._answer()
            try:
                kind = self._enter()
            except BaseException:
                self._enter = self._missed
                raise
            if kind <= _MMIO:  # an exit as it stands
                self._place = WITHIN
                return kind
            return self._come_out(kind)
        except UcError as error:
            raise BackendError("Unicorn", 0, str(error)) from error
        finally:
            # As `Turn.give` does it, but without a call before the turn is given, behind which an interrupt may come.
            try:
                if owner[0] is words:
                    del owner[0]
            except KeyError:  # one came before it had the turn
                pass
            if self._queue:
                self._turn.hand_on()

    def _come_out(self, event: int) -> int:
        events = self._events
        while True:
            kind = events[event]()
            if kind is not None:
                return kind
            try:
                event = self._enter()
            except BaseException:
                self._enter = self._missed
                raise

    def _missed(self) -> int:
        """Return what the engine came out with at an interrupt (Ctrl-C), whose exception took its place."""
        self._enter = self.engine.switch.enter
        return int(self._words[EVENT])

    def kick(self, thread_id: int) -> None:
        """Have the engine stop before its next instruction."""
        self._kicked = True
        self._words[ATTENTION] = 1

    def finish(self) -> int:
        """Complete the last exit's instruction; see `VcpuBackend.finish`."""
        if self._place != WITHIN:
            return _INTERRUPTED
        self._finishing, self._finishes = True, self.engine.read(x86.UC_X86_REG_RIP)
        self._words[ATTENTION] = 1
        try:
            return self.run()
        finally:
            self._finishing = False
            # A kick is for the next run.
            if self._kicked:
                self._words[ATTENTION] = 1

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
        else:
            self.engine.keep_flags()
        self._words[REPLY] = answer

    def _map_device(self) -> None:
        address = self._accesses.take_unmapped()
        if address is not None and self._slots.find(address) is None:
            self.engine.map_device(address, *self._slots.hole(address))

    # what the engine comes out with; each returns an exit kind, or None to go on

    def _stopped(self) -> int | None:
        if self._accesses.restarting:
            # An instruction that was begun anew; its accesses are served, so it is to be completed first.
            return None
        self._place = BETWEEN
        return self._look_up()

    def _look_up(self) -> int | None:
        """Between two instructions: see who wanted the engine to stop."""
        words = self._words
        words[ATTENTION] = 0
        if self._finishing:
            return _INTERRUPTED
        if self._kicked:
            self._kicked = False
            return _INTERRUPTED
        if self._turn.wanted:
            self._turn.give(words)
            self._turn.take(words)
        return None

    def _port(self) -> int | None:
        self._place = WITHIN
        return _IO

    def _device(self) -> int | None:
        self._place = WITHIN
        return _MMIO

    def _memory_access(self) -> int | None:
        words = self._words
        hook = words[FIRST], words[SECOND], words[THIRD], words[FOURTH]
        found = self._accesses.ask(*hook, self.engine.epoch, self._is_try)
        if not isinstance(found, Access):
            self._reply(found)
            return None
        return self._exit_for(found)

    def _is_try(self) -> bool:
        """Return whether the instruction is one that reads a port into memory, and has yet to read it."""
        words = self._words
        if is_input(self.read_state(), self._memory):
            return bool(words[INPUT] != words[COUNT])
        # If it becomes one, a device is told of a zero too much.
        words[KNOWN + words[PLACE] % MAX_KNOWN] = words[PLACE]
        return False

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
        self._place = WITHIN
        return _MMIO

    def _ended(self) -> int | None:
        error = self._words[FIRST]
        self._has_ended()
        if error in _GIVEN_UP:
            self.engine.restore_flags()
            self._accesses.begins_anew()
            self._map_device()
            return None
        if error == uc.UC_ERR_OK:
            return _HALT
        if self._finishing and not self._accesses.restarting:
            # It is about the next instruction, which will fail again.
            return _INTERRUPTED
        if error == uc.UC_ERR_INSN_INVALID:
            return self._invalid()
        self._problem, self._fault = error_text(error), None
        if error in _NO_CODE:
            state = self.read_state()
            self._problem = "instruction fetch where there is no memory"
            self._fault = self._memory.fetched(state)
        return _ERROR

    def _invalid(self) -> int | None:
        """An invalid opcode, or INT 6, which Unicorn takes for one."""
        _, software, behind = exception_details(self.engine)
        if software:
            self._set(evolve(self.read_state(), rip=behind))
        return self._deliver(_INVALID_OPCODE, software=software)

    def _exception(self) -> int | None:
        state = evolve(self.read_state(), rflags=flags_within(self.engine))
        code, software, _ = exception_details(self.engine)
        vector = self._words[FIRST]
        self._leave_emulation()
        # Unicorn has put RIP behind the instruction by now, even if that is to be tried again.
        self._set(state)
        if self._finishing and state.rip != self._finishes:
            # The next instruction cannot be fetched, which it will find out again.
            return _INTERRUPTED
        return self._deliver(vector, code, software=software)

    def _deliver(self, vector: int, code: int = 0, *, software: bool = False) -> int | None:
        """Go on in the guest's handler."""
        state = interrupts.deliver(self.read_state(), vector, code, self._memory, software=software)
        if state is None:
            self._problem, self._fault = f"triple fault (exception {vector}, error code {code:#x})", None
            return _SHUTDOWN
        self._set(state)
        # A handler that cannot be fetched is another exception, and so on for ever without a single instruction.
        return self._look_up() if self._words[ATTENTION] else None

    def _system_call(self) -> int | None:
        state = self.read_state()
        self._leave_emulation()
        self._set(interrupts.system_call(state, self.engine.read_msr))
        return None

    def _unknown(self) -> int | None:
        raise BackendError("Unicorn", 0, "an event that nobody asked for")

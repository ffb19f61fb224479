"""What can be done with a vCPU while its engine stands: read and set its registers, end the emulation, save it.

The engine is in one of three places. *Ended*: no emulation goes on, the next one begins at RIP. *Between*: it stands
before an instruction. *Within*: it stands in a hook in the middle of an instruction, and wants an answer.
"""

from __future__ import annotations

from functools import partial

from unicorn import x86_const as x86

from accel.arch.x86 import X86State
from accel.backend import VcpuBackend
from accel.errors import BackendError, CapabilityError
from accel.exits import ExitKind
from accel_unicorn import switch
from accel_unicorn.engine import Engine
from accel_unicorn.guest_memory import GuestMemory
from accel_unicorn.slots import UnicornSlots
from accel_unicorn.state import (
    flags_within,
    physical_addresses,
    read_state,
    reset_floating_point,
    restore,
    save,
    write_state,
)
from accel_unicorn.switch import BEGIN, REPLY
from accel_unicorn.turn import Turn

ENDED, BETWEEN, WITHIN = range(3)

_INTERRUPTED = int(ExitKind.INTERRUPTED)
_EFER_SVME = 1 << 12


class StandingVcpu(VcpuBackend):
    """A vCPU as it is between two runs. Owned by the thread that runs it.

    Attributes:
        engine: The engine.
    """

    def __init__(self, engine: Engine, slots: UnicornSlots, turn: Turn) -> None:
        self.engine = engine
        self.record, self.io_data = engine.switch.record, engine.switch.io_data
        self._slots = slots
        self._turn = turn
        self._words = engine.switch.words
        self._memory = GuestMemory(slots)
        self._place = ENDED
        # What the last exit was about that ended the guest, and where it fetched then.
        self._problem = ""
        self._fault: int | None = None
        # Registers that the engine has not.
        self._kept = X86State()
        engine.physical_addresses = partial(physical_addresses, engine)
        engine.flags_within = partial(flags_within, engine)
        reset_floating_point(engine)
        self._set(self._kept)

    def read_state(self) -> X86State:
        """Return all registers."""
        return read_state(self.engine, self._kept)

    def write_state(self, state: X86State) -> None:
        """Set all registers; what is left of the last exit's instruction is completed first, and dropped.

        Raises:
            CapabilityError: EFER.SVME is set. The guest has no such bit, and Unicorn's nested guests know no way out.
        """
        if state.efer & _EFER_SVME:
            raise CapabilityError("unicorn has no nested guests: leave EFER.SVME (0x1000) clear")
        self.end()
        self._set(state)
        # Whoever sets registers may have loaded other code, of which the engine knows nothing.
        self.engine.flush_code()

    def end(self) -> None:
        """Let the emulation end between two instructions, so that the engine can be changed at will."""
        while self.finish() != _INTERRUPTED:
            pass
        if self._place == BETWEEN:
            try:
                self._turn.take(self._words)
                self._leave_emulation()
            finally:
                self._turn.give(self._words)

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

    def _leave_emulation(self) -> None:
        """From within a hook whose instruction is done with, or from between two: end the emulation, with a turn."""
        self._words[REPLY] = 0
        self.engine.stop()
        if self.engine.switch.enter() != switch.ENDED:
            raise BackendError("Unicorn", 0, "the emulation did not end where it was told to")
        self._has_ended()

    def _has_ended(self) -> None:
        self._place = ENDED
        self._words[BEGIN] = self.engine.read(x86.UC_X86_REG_RIP)

    def _set(self, state: X86State) -> None:
        self._kept = state
        write_state(self.engine, state)
        self._words[BEGIN] = state.rip

"""A vCPU's gate: the flag that an inhibitor looks at, one on the path of every guest exit.

Layer: below `accel.blocker`, whose text explains the protocol. Which of the four kinds is made depends on whether this
Python has a GIL and whether locks are validated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from accel.locks import GATE, check_order, note_released, note_taken, validation_enabled

if TYPE_CHECKING:
    from accel.blocker import AccelBlocker

#: Whether plain stores and loads are ordered between threads.
GIL_ENABLED: bool = getattr(sys, "_is_gil_enabled", lambda: True)()

#: Later than any generation: keeps no view of the past.
NEVER = 1 << 62


class VcpuGate:
    """One vCPU's gate.

    Attributes:
        busy: Written by the thread that runs the vCPU only; read by the inhibitor.
        operation: The call it is in, for diagnostics. Owned by the vCPU's thread.
        thread_id: Native id of the thread that runs the vCPU. Owned by that thread.
        entered: The map generation at the last entry (see `accel.memory.served`), or `NEVER` where nobody asks.
    """

    __slots__ = ("_blocker", "busy", "entered", "kick", "name", "operation", "thread_id")

    lock_class = GATE

    def __init__(self, blocker: AccelBlocker, name: str, kick: Callable[[int], None]) -> None:
        self._blocker = blocker
        self.name = name
        self.kick = kick
        self.busy = False
        self.operation = ""
        self.thread_id = 0
        self.entered = NEVER

    def enter(self) -> None:
        """Pass in; waits outside while another thread inhibits. Called by the vCPU's thread.

        Raises:
            MapLostError: The VM is poisoned.
        """
        self.busy = True
        if self._blocker.inhibited:
            self._blocker.wait_outside(self)

    def leave(self) -> None:
        """Pass out, or give up entering. Called by the vCPU's thread."""
        self.busy = False
        if self._blocker.inhibited:
            self._blocker.note_left()

    def step_out(self) -> None:
        """Pass out after a kick: like `leave`, but wait outside until the inhibit that it was for has ended."""
        self.busy = False
        if self._blocker.inhibited:
            self._blocker.linger()

    def mark(self) -> None:
        """Be inside from now on; for the blocker, on the vCPU's thread."""
        self.busy = True


class _LockedVcpuGate(VcpuGate):
    """The gate for builds without a GIL: mark and look in one critical section."""

    __slots__ = ()

    def enter(self) -> None:
        with self._blocker.gates_lock:
            self.busy = True
            inhibited = self._blocker.inhibited
        if inhibited:
            self._blocker.wait_outside(self)

    def leave(self) -> None:
        with self._blocker.gates_lock:
            self.busy = False
            inhibited = self._blocker.inhibited
        if inhibited:
            self._blocker.left.set()

    def step_out(self) -> None:
        self.leave()


class _OrderChecks(VcpuGate):
    """What lock validation adds to a gate: being inside counts as holding it."""

    __slots__ = ()

    def enter(self) -> None:
        check_order(GATE)
        super().enter()
        note_taken(self)

    def leave(self) -> None:
        super().leave()
        note_released(self)

    def step_out(self) -> None:
        super().step_out()
        note_released(self)


class _CheckedVcpuGate(_OrderChecks):
    __slots__ = ()


class _CheckedLockedVcpuGate(_OrderChecks, _LockedVcpuGate):
    __slots__ = ()


def make_gate(blocker: AccelBlocker, name: str, kick: Callable[[int], None]) -> VcpuGate:
    """Return a gate of the kind that this build of Python needs."""
    kind: type[VcpuGate]
    if validation_enabled():
        kind = _CheckedVcpuGate if GIL_ENABLED else _CheckedLockedVcpuGate
    else:
        kind = VcpuGate if GIL_ENABLED else _LockedVcpuGate
    return kind(blocker, name, kick)

"""The accel-blocker: hold every vCPU and VM call out of the accelerator for a moment.

One per VM, for every KVM-like accelerator. Source: QEMU's accel-blocker (commit f39b7d2b96 and its review),
with gates per vCPU, an event instead of a spin, an owner thread, nesting and a time-out.

The protocol
------------
Each vCPU has a gate, a flag that only the thread that runs the vCPU writes. To enter, the thread marks itself
busy and *then* looks whether the VM is inhibited; if so it takes the mark back, wakes the inhibitor and waits
outside. The inhibitor marks the VM inhibited and *then* looks at the gates. So at least one of the two sees
the other: either the vCPU steps back, or the inhibitor finds it busy, kicks it and waits.

*No wake-up is lost.* The inhibitor resets its event before each scan. A gate that is left after the scan sets
the event after the reset, so the wait returns; one that is left before the scan is seen as not busy. Only the last
to leave sets it, so that the inhibitor is not woken for nothing: who sees another gate busy leaves that to its thread,
which unmarks it later, and looks at the others after that.

*Who waits outside is let in.* Each waits at a door of its own, a lock. Under one lock it sees that the VM is inhibited
and hands in the door, or it marks its gate; under the same lock the inhibitor ends the inhibit and takes the doors,
which it then opens. So a door is either taken or not needed.

*The kick is not lost.* It goes once to each gate that is found busy. The vCPU may not have reached its ioctl yet,
may be in it, or may be past it; the backend's kick is sticky until the vCPU's own thread takes it back, and that
thread looks at its gate again before it re-enters, so one kick is enough.

*No deadlock.* The inhibitor waits only for calls into the accelerator to return, and kicks those that would
not by themselves. It must not hold what such a call needs to finish: device locks and the coalesced ring are
never held by it, and a vCPU that handles an exit (and may wait for the big lock) is not inside its gate.
The one known call that a kick may not free is a vCPU that waits for a user-space page fault: that ends in
`InhibitTimeoutError`, before anything has changed.

*Few hand-overs of the GIL.* The inhibitor kicks right before it waits, which releases the GIL that the vCPU's thread
needs to leave; and that thread, once kicked out, does nothing else before it waits outside (`linger`), which releases
it again. So nobody asks for the GIL while the change is made.

*Nobody starves.* Whoever waited through one inhibit gets a chance to pass in before the next begins, for a
millisecond: an inhibitor that comes back at once would otherwise win every time, since those who wait must first be
scheduled. They need nothing that the inhibitor holds, so this wait cannot deadlock. A vCPU that was kicked out counts
until it goes on, not until it is in; if the next inhibit is faster it waits once more, as one who comes.

*Mark-then-look needs store-load order.* With the GIL, CPython gives it: both threads run under one lock.
Free-threaded builds do not order a store before a later load of another field, so there the gates
mark and look under a lock (`accel.gate`).

*Poison.* If a failed change cannot be undone, the VM stays inhibited for good, and whoever waits outside or comes
later gets `MapLostError` instead of waiting. Closing a VM does the same, with `ClosedError`.

What would break it: looking before marking; resetting the event after the scan; a second thread running the
same vCPU; taking a lock inside a gate that the inhibitor holds, above all the big lock. Lock validation
raises for the last.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import TracebackType

from accel.blocker_stats import BlockerStats
from accel.errors import AccelError, ClosedError, InhibitTimeoutError, MapLostError, StateError
from accel.gate import VcpuGate, make_gate
from accel.interrupts import deliver_interrupts
from accel.lock_classes import Mode
from accel.locks import GATE, GATES_LOCK, Lock, check_order, note_released, note_taken, validation_enabled
from accel.wakeup import Wakeup

_log = logging.getLogger("accel.blocker")

#: Longest wait, in seconds, of a new inhibit for those that the last one held: long enough for a thread that has a
#: core to pass, short enough that more busy vCPUs than cores don't slow every change to the pace of the scheduler.
_FAIRNESS_TIMEOUT = 0.001

#: Longest time, in seconds, that the wait for quiet goes without letting an interrupt through.
_INTERRUPT_PERIOD = 0.1


class AccelBlocker:
    """Holds the calls into one VM's accelerator.

    Attributes:
        inhibited: Read by gates without a lock; written under `gates_lock` by the inhibitor.
        left: Set by whoever is the last to leave while the VM is inhibited.
        stats: Counters, for reports.
    """

    #: For lock validation: a VM call counts as being inside a gate.
    lock_class = GATE

    def __init__(self, big_lock: Lock) -> None:
        self._big_lock = big_lock
        self._checked = validation_enabled()
        self.gates_lock = Lock(GATES_LOCK)
        self.inhibited = False
        self.left = Wakeup()
        self.stats = BlockerStats()
        self._owner = 0
        self._depth = 0
        self._held_since = 0.0
        # Makes what whoever comes gets, once nobody may enter any more.
        self._refusal: Callable[[], AccelError] | None = None
        # Immutable, replaced under gates_lock, so that a scan needs no lock.
        self._gates: tuple[VcpuGate, ...] = ()
        # Thread → the VM call it is in. Guarded by gates_lock.
        self._vm_calls: dict[int, str] = {}
        # Who waits outside: locks that are released to let them go on. Guarded by gates_lock.
        self._doors: list[threading.Lock] = []
        # How many wait, or were let go on and are not in yet (or, of those who linger, do not run yet); guarded by
        # gates_lock. And whether that has become none.
        self._waiting = 0
        self._all_passed = Wakeup()

    # gates

    def add_gate(self, name: str, kick: Callable[[int], None]) -> VcpuGate:
        """Return a gate for a new vCPU; `kick(thread_id)` must bring that thread out of the accelerator."""
        gate = make_gate(self, name, kick)
        with self.gates_lock:
            self._gates = (*self._gates, gate)
        return gate

    def remove_gate(self, gate: VcpuGate) -> None:
        """Forget the gate of a vCPU that is gone."""
        with self.gates_lock:
            self._gates = tuple(other for other in self._gates if other is not gate)
        self.left.set()

    @property
    def gates(self) -> tuple[VcpuGate, ...]:
        """All gates."""
        return self._gates

    def note_left(self) -> None:
        """Wake the inhibitor, unless another vCPU is inside still, whose thread will."""
        for gate in self._gates:
            if gate.busy:
                return
        self.left.set()

    def linger(self) -> None:
        """Tell that the caller left its gate, and wait until the inhibit ends, if one is in force.

        For who would enter again at once. The inhibitor needs the GIL to go on, and gets it right after it is woken.
        """
        door = threading.Lock()
        door.acquire()
        counted = 0
        try:
            with self.gates_lock:
                if self.inhibited and self._refusal is None and self._owner != threading.get_ident():
                    self._doors.append(door)
                    self._waiting += 1
                    counted = 1
            self.note_left()
            if counted:
                door.acquire()
        finally:
            # In place, since an interrupt may come at each call.
            if counted:
                with self.gates_lock:
                    self._waiting -= 1
                    if not self._waiting:
                        self._all_passed.set()

    def wait_outside(self, gate: VcpuGate) -> None:
        """Step back from `gate`, wait until the inhibit ends, and enter; the owner thread passes at once."""
        if self._owner == threading.get_ident() and self._refusal is None:
            return
        gate.leave()
        self._pass_in(gate.mark)

    @contextmanager
    def vm_call(self, operation: str) -> Iterator[None]:
        """Pass the VM's gate around a call that is on no vCPU; holders of the big lock pass at once; nests.

        Raises:
            MapLostError: The VM is poisoned.
            ClosedError: The VM is closed.
        """
        me = threading.get_ident()
        if self._big_lock.held() or me in self._vm_calls:
            # An inhibitor holds the big lock, so there is none, or it is this thread; or it waits for this call.
            yield
            return
        if self._checked:
            check_order(GATE)
        try:
            self._pass_in(partial(self._vm_calls.__setitem__, me, operation))
            if self._checked:
                note_taken(self)
            yield
        finally:
            with self.gates_lock:
                self._vm_calls.pop(me, None)
            note_released(self)
            # Whether or not anybody waits: VM calls are rare, and a wake-up too many only costs a scan.
            self.left.set()

    def _pass_in(self, mark: Callable[[], None]) -> None:
        """Wait until there is no inhibit, then call `mark`, under the lock under which the next one begins."""
        counted = 0
        try:
            while True:
                with self.gates_lock:
                    # Under the lock, or the refusal could come before the door is handed in.
                    self.check()
                    if not self.inhibited:
                        mark()
                        return
                    door = threading.Lock()
                    door.acquire()
                    self._doors.append(door)
                    self._waiting += 1 - counted
                    counted = 1
                door.acquire()
        finally:
            # In place, since an interrupt may come at each call.
            if counted:
                with self.gates_lock:
                    self._waiting -= 1
                    if not self._waiting:
                        self._all_passed.set()

    # inhibiting

    def inhibit(self, timeout: float) -> AbstractContextManager[None]:
        """Hold everyone out for the duration of the block. Needs the big lock; nests.

        Args:
            timeout: Longest wait in seconds until everyone is out.

        Raises:
            InhibitTimeoutError: Somebody did not come out; everybody goes on.
            LockError: The big lock is not held.
        """
        return _Inhibit(self, timeout)

    def inhibit_begin(self, timeout: float) -> None:
        """Hold everyone out until `inhibit_end`; see `inhibit`."""
        self._big_lock.assert_held()
        if self._depth:
            self._depth += 1
            return
        if self._checked:
            check_order(GATE, Mode.SYNC)
        started = time.perf_counter()
        # Seen without the lock, since it is not exact in any case: who comes a moment later is not waited for.
        if self._waiting:
            self._let_pass(min(timeout, _FAIRNESS_TIMEOUT))
        try:
            self._owner = threading.get_ident()
            self._depth = 1
            with self.gates_lock:
                self.inhibited = True
            self._wait_until_quiet(started, timeout)
        except BaseException:
            self._open()
            raise
        self._held_since = time.perf_counter()
        self.stats.note_wait(self._held_since - started)

    def inhibit_end(self) -> None:
        """Let everyone go on, unless an outer inhibit is in force. Raises StateError if none is."""
        self._big_lock.assert_held()
        if not self._depth:
            raise StateError("inhibit_end without inhibit_begin")
        self._depth -= 1
        if self._depth == 0:
            self._open()
            self.stats.note_hold(time.perf_counter() - self._held_since)

    def poison(self, error: MapLostError) -> None:
        """Never let anyone in again: whoever tries gets `error`. Needs the big lock."""

        def again() -> MapLostError:
            fresh = MapLostError(error.problem, error.slots)
            fresh.listener, fresh.step = error.listener, error.step
            fresh.__cause__ = error
            return fresh

        self._refuse(again)

    def close(self) -> None:
        """Never let anyone in again, since the VM is going: whoever tries gets ClosedError. Needs the big lock."""
        self._refuse(lambda: ClosedError("the VM is closed"))

    def check(self) -> None:
        """Raise what whoever enters gets: MapLostError if the VM is poisoned, ClosedError if it is closed."""
        if self._refusal is not None:
            # A new one for each who asks: an exception that is raised again and again grows.
            raise self._refusal()

    def _refuse(self, refusal: Callable[[], AccelError]) -> None:
        self._big_lock.assert_held()
        self._refusal = refusal
        self._open_doors(inhibited=True)
        for gate in self._gates:
            if gate.busy:
                try:
                    gate.kick(gate.thread_id)
                except Exception:  # noqa: BLE001 - the others must come out all the same
                    _log.exception("%s could not be kicked out of a VM that nobody may enter any more", gate.name)

    def _open(self) -> None:
        self._depth = 0
        self._owner = 0
        self._open_doors(inhibited=self._refusal is not None)

    def _open_doors(self, *, inhibited: bool) -> None:
        with self.gates_lock:
            self.inhibited = inhibited
            doors, self._doors = self._doors, []
        for door in doors:
            door.release()

    def _let_pass(self, timeout: float) -> None:
        """Wait until those who waited through the last inhibit are in, or `timeout` seconds."""
        with self.gates_lock:
            if not self._waiting:
                return
            self._all_passed.clear()
        self._all_passed.wait(timeout)

    def _wait_until_quiet(self, started: float, timeout: float) -> None:
        kicked: set[VcpuGate] = set()
        while True:
            self.left.clear()
            busy = [gate for gate in self._gates if gate.busy]
            calls = self._calls_of_others() if self._vm_calls else []
            if not busy and not calls:
                return
            waited = time.perf_counter() - started
            pause = min(timeout - waited, _INTERRUPT_PERIOD)
            # Next to the wait, since who is kicked needs the GIL to leave.
            for gate in busy:
                if gate not in kicked:
                    kicked.add(gate)
                    self.stats.kicks += 1
                    gate.kick(gate.thread_id)
            if waited >= timeout:
                inside = [(gate.name, gate.operation, waited) for gate in busy]
                raise InhibitTimeoutError(timeout, inside + [("the VM", call, waited) for call in calls])
            self.left.wait(pause)
            deliver_interrupts()

    def _calls_of_others(self) -> list[str]:
        # None begins while the VM is inhibited: under this lock they look, and under it that was set.
        with self.gates_lock:
            return [call for thread, call in self._vm_calls.items() if thread != threading.get_ident()]


class _Inhibit(AbstractContextManager[None]):
    """The context of `AccelBlocker.inhibit`."""

    __slots__ = ("_blocker", "_timeout")

    def __init__(self, blocker: AccelBlocker, timeout: float) -> None:
        self._blocker = blocker
        self._timeout = timeout

    def __enter__(self) -> None:
        self._blocker.inhibit_begin(self._timeout)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._blocker.inhibit_end()

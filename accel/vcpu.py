"""Vcpu: one virtual CPU, for people who run it in a loop of their own and for the machine's vCPU threads.

Owns the gate around every call into the accelerator, the exit objects of `run`, and calls that other threads
want made on the thread that runs it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

from accel.arch.x86 import X86State
from accel.backend import VcpuBackend
from accel.backend_checks import check_kind
from accel.errors import ClosedError, StateError
from accel.exits import (
    Debug,
    DirtyRingFull,
    Exit,
    ExitKind,
    FailEntry,
    Halt,
    InternalError,
    Interrupted,
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    OtherExit,
    Shutdown,
    unpack_io,
)
from accel.interrupts import interrupts_held_back
from accel.locks import VCPU_THREAD, note_released, note_taken, validation_enabled, waiting_for
from accel.program import GuestProgram

if TYPE_CHECKING:
    from accel.vm import Vm

T = TypeVar("T")

#: Exits that carry nothing but a line about what happened.
_DETAILED: dict[int, type[Shutdown] | type[FailEntry] | type[InternalError] | type[Debug]] = {
    ExitKind.SHUTDOWN: Shutdown,
    ExitKind.FAIL_ENTRY: FailEntry,
    ExitKind.INTERNAL_ERROR: InternalError,
    ExitKind.DEBUG: Debug,
}


class _Thread(threading.local):
    """The calling thread's native id, which costs a system call to ask for."""

    def __init__(self) -> None:
        self.ask()

    def ask(self) -> None:
        """Ask for it."""
        self.native_id = threading.get_native_id()


_thread = _Thread()
# A child's thread has an id of its own, and a kick by the parent's would reach nobody.
os.register_at_fork(after_in_child=_thread.ask)


class _Call:
    """A call that another thread wants made on the vCPU's thread."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.done = threading.Event()
        self.value: object = None
        self.error: BaseException | None = None
        self._function = function

    def make(self) -> None:
        """Make it, and let the other thread go on."""
        try:
            self.value = self._function()
        except BaseException as error:  # noqa: BLE001 - it is raised on the thread that asked
            self.error = error
        self.done.set()


class Vcpu:
    """A virtual CPU. One thread at a time runs it; other threads may `kick` it, or `call` something on it.

    Attributes:
        index: Its number in the VM.
        gate: Its gate at the blocker; passed around every call into the accelerator.
        backend: The accelerator's side.
    """

    #: For lock validation: a thread that runs it in a loop owes others the calls that they want made.
    lock_class = VCPU_THREAD

    def __init__(self, vm: Vm, index: int, backend: VcpuBackend) -> None:
        self.vm = vm
        self.index = index
        self.backend = backend
        self.closed = False
        # What completing the last access for `read_state` came out with; `run` returns it. Owned by the vCPU's thread.
        self._held: int | None = None
        self.gate = vm.blocker.add_gate(f"vCPU {index}", backend.kick)
        # Wakes the thread that runs it in a loop, or None without one, and that thread's native id. All of these are
        # guarded by `_calls_lock`, a leaf.
        self._wake: Callable[[], None] | None = None
        self._runner = 0
        # Native id of the thread that makes its own call, since no thread ran it then; 0 without one. Only that thread
        # takes it back.
        self._maker = 0
        self._calls: deque[_Call] = deque()
        self._calls_lock = threading.Lock()
        self._call_made = threading.Condition(self._calls_lock)

    def run(self) -> Exit:
        """Enter the guest until it comes out, and return why.

        A read (`IoIn`, `MmioRead`) is answered with its `reply` before the next run or `read_state`.

        Raises:
            BackendError: The accelerator failed.
            MapLostError: A memory change could not be undone, so the guest must not go on.
            ClosedError: The vCPU is closed.
        """
        found = self._inside("run", self._enter)
        if isinstance(found, DirtyRingFull):
            self.empty_dirty_rings()
        return found

    def empty_dirty_rings(self) -> None:
        """Make room in the dirty rings, after an exit since one was full; takes the big lock, so not inside the gate.

        Raises:
            BackendError: The accelerator failed.
        """
        # An interrupt (Ctrl-C) between taking entries and merging them would lose the pages.
        with interrupts_held_back(), self.vm.big_lock:
            if not self.closed:
                self.vm.backend.empty_dirty_rings()

    def kick(self) -> None:
        """Make the `run` in progress, or else the next one, return `Interrupted`; any thread."""
        # A thread that begins to run it after the id was read but before the kick is made would miss the signal;
        # one that begins after the kick is made finds it.
        thread_id = -1
        while thread_id != self.gate.thread_id:
            thread_id = self.gate.thread_id
            self.backend.kick(thread_id)

    def call(self, function: Callable[[], T]) -> T:
        """Return `function()`, made on the thread that runs this vCPU, outside of the guest; any thread.

        If a thread runs it in a loop (a started machine), that thread is kicked out for it, also while it is
        paused; if none does, the call is made here. Calls are made one at a time, wherever; a machine that is started
        meanwhile enters the guest after the one under way. Use it for state: ``vcpu.call(vcpu.read_state)``.

        Raises:
            LockError: The big lock is held, and another thread runs the vCPU or makes a call, which may be waiting for
                it. With lock validation on, the same for any other lock, and on the thread of another vCPU, which may
                want a call made here.
            Exception: Whatever `function` raised.
        """
        me = _thread.native_id
        if me in (self._runner, self._maker):
            return function()
        try:
            call = self._hand_over(function)
            if call is None:
                return function()
        finally:
            # In place, since an interrupt may come at each call: a maker that is left would be waited for in vain.
            if self._maker == me:
                self._maker = 0
                with self._calls_lock:
                    self._call_made.notify_all()
        call.done.wait()
        if call.error is not None:
            raise call.error
        return cast(T, call.value)

    def _hand_over(self, function: Callable[[], object]) -> _Call | None:
        """Give a call to the thread that runs this vCPU; without one make the calling thread the one that makes it."""
        with self._calls_lock:
            while self._wake is not None or self._maker:
                self.vm.big_lock.assert_not_held("the vCPU's thread may be waiting for it; call outside of it")
                waiting_for(VCPU_THREAD)
                if self._wake is not None:
                    wake, call = self._wake, _Call(function)
                    self._calls.append(call)
                    break
                self._call_made.wait()
            else:
                self._maker = _thread.native_id
                return None
        wake()
        return call

    def run_calls(self) -> None:
        """Make the calls that other threads asked for; on the vCPU's thread, outside of the guest."""
        while self._calls:
            self._calls.popleft().make()

    @property
    def has_calls(self) -> bool:
        """Whether a call waits to be made."""
        return bool(self._calls)

    def bind(self, wake: Callable[[], None]) -> None:
        """Note that the calling thread runs this vCPU in a loop that makes calls when `wake` was called.

        Before it does anything else with it, it calls `take_over`.
        """
        with self._calls_lock:
            self.gate.thread_id = self._runner = _thread.native_id
            self._wake = wake
        if validation_enabled():
            note_taken(self)

    def take_over(self) -> None:
        """Wait for the call that another thread began to make before `bind`, if there is one."""
        with self._calls_lock:
            while self._maker:
                self._call_made.wait()
            self.gate.thread_id = _thread.native_id

    def unbind(self) -> None:
        """Make the calls that are left, and note that the calling thread runs it no more."""
        while self._wake is not None:
            self.run_calls()
            with self._calls_lock:
                if not self._calls:  # who comes from now on makes its call itself, so this thread is through
                    self._wake = None
                    self._runner = 0
                    self._call_made.notify_all()
        note_released(self)

    def read_state(self) -> X86State:
        """Return registers and mode, after completing the access of the last exit; on the vCPU's thread.

        Raises:
            StateError: That access has another part, which `run` returns next.
        """

        def read() -> X86State:
            if self._held is None:
                kind = self.backend.finish()
                self._held = None if kind == ExitKind.INTERRUPTED else kind
            if self._held is not None:
                raise StateError("the last access needs one more exit before state can be read; call run first")
            return self.backend.read_state()

        return self._inside("read_state", read)

    def write_state(self, state: X86State) -> None:
        """Set registers and mode; on the vCPU's thread. What is left of the last exit's access is dropped."""
        self._inside("write_state", lambda: self.backend.write_state(state))
        self._held = None

    def load_program(self, program: GuestProgram) -> None:
        """Start a guest program, on an accelerator that executes those; on the vCPU's thread."""
        self._inside("load_program", lambda: self.backend.load_program(program))

    def close(self) -> None:
        """Bring the vCPU out of the guest and release it; any thread, may be called twice.

        A `run` in progress is kicked and returns what it came out with. Whoever calls into the vCPU after that gets
        ClosedError; if it is part of a machine that runs, that ends the run. Its index stays taken. Takes the big
        lock, and holds all vCPUs of the VM for the moment.

        Raises:
            InhibitTimeoutError: A vCPU did not come out; nothing is closed, and close may be retried.
        """
        vm = self.vm
        with vm.big_lock:
            if self.closed:
                return
            # Nobody is inside then: a thread in the guest could not be kicked once its gate is forgotten.
            with interrupts_held_back(), vm.blocker.inhibit(vm.inhibit_timeout):
                self.closed = True
                vm.blocker.remove_gate(self.gate)
                self.backend.close()

    def _enter(self) -> Exit:
        held, self._held = self._held, None
        # Read while inside: what it is read from may be gone as soon as the gate is left.
        return self._exit(self.backend.run() if held is None else held)

    def _inside(self, operation: str, call: Callable[[], T]) -> T:
        if self.closed:
            raise ClosedError(f"vCPU {self.index} is closed")
        gate = self.gate
        gate.operation = operation
        if gate.thread_id != _thread.native_id:
            gate.thread_id = _thread.native_id
            self.backend.prepare_thread()
        try:
            # Inside, since an interrupt may come between the mark and the look.
            gate.enter()
            if self.closed:
                # It was while this thread waited at the gate.
                raise ClosedError(f"vCPU {self.index} is closed")
            return call()
        finally:
            # Here too, where no interrupt comes in between: a gate left busy would be waited for in vain.
            gate.busy = False
            gate.leave()

    def _exit(self, kind: int) -> Exit:
        record = self.backend.record
        if kind == ExitKind.IO:
            is_out, size, port, count = unpack_io(record[0])
            io_data = self.backend.io_data
            if is_out:
                return IoOut(port, size, count, bytes(io_data[: size * count]))
            return IoIn(port, size, count, lambda value: io_data.__setitem__(slice(size * count), value))
        if kind == ExitKind.MMIO:
            size = record[2] & 0xFFFFFFFF
            if record[2] >> 32:
                return MmioWrite(record[0], size, record[1] & (1 << 8 * size) - 1)
            return MmioRead(record[0], size, lambda value: record.__setitem__(1, value))
        if kind == ExitKind.HALT:
            return Halt()
        if kind == ExitKind.INTERRUPTED:
            return Interrupted()
        if kind == ExitKind.DIRTY_RING_FULL:
            return DirtyRingFull()
        if kind in _DETAILED:
            return _DETAILED[kind](self.backend.describe())
        check_kind(kind)
        return OtherExit(record[0], self.backend.describe())

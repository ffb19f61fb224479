"""A run of a machine: its vCPU threads and housekeeper, from start to result.

Layer: between `vcpu_thread` and `machine`. `stop`, `pause` and `resume` work from any thread; on a vCPU thread, in
a device handler, they ask and do not wait, since the handler would wait for itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from accel.backend import Accelerator
from accel.backend_checks import check_report
from accel.errors import InhibitTimeoutError, StateError
from accel.housekeeper import Housekeeper
from accel.interrupts import interrupts_held_back
from accel.locks import VCPU_THREAD, waiting_for
from accel.plugin_calls import accelerator_failure
from accel.result import Outcome, RunResult
from accel.run_control import RunControl
from accel.vcpu_thread import VcpuThread
from accel.vm import Vm

#: Longest wait, in seconds, for vCPU threads that were told to stop or pause.
STOP_TIMEOUT = 10.0


class Run:
    """A started machine; made by `Machine.start`.

    Args:
        vm: What runs.
        accelerator: Its accelerator.
        flush: Hands on what devices buffer; takes the longest wait in seconds.
    """

    def __init__(self, vm: Vm, accelerator: Accelerator, flush: Callable[[float], None]) -> None:
        self._vm = vm
        self._accelerator = accelerator
        self._flush = flush
        self._control = RunControl(len(vm.vcpus))
        self._threads: Sequence[VcpuThread] = tuple(VcpuThread(vcpu, self._control, self.kick_all) for vcpu in vm.vcpus)
        self._housekeeper = Housekeeper(self._tick, self._fail)
        self._finish_lock = threading.Lock()
        self._finished: RunResult | BaseException | None = None
        # The thread that delivers what is left of a run that has ended; 0 while none does.
        self._settler = 0
        self._started = time.perf_counter()
        self._coalesced_before = vm.coalesced_writes
        self._unassigned_before = vm.memory.unassigned + vm.io.unassigned

    def start(self) -> None:
        """Start the threads; called once. An interrupt (Ctrl-C) meanwhile is raised once all of them are."""
        with interrupts_held_back():
            self._start_threads()

    def _start_threads(self) -> None:
        started = 0
        try:
            self._housekeeper.start()
            for thread in self._threads:
                thread.start()
                started += 1
        except BaseException:
            # The host has no more threads: those that are missing count as gone.
            self._control.request_stop()
            for thread in self._threads[started:]:
                self._control.leave(thread.vcpu.index)
            self.kick_all()
            raise

    # steering

    def kick_all(self) -> None:
        """Bring every vCPU out, so that it looks at what is wanted; all are kicked, whatever raises."""
        with ExitStack() as stack:
            for thread in reversed(self._threads):
                stack.callback(thread.vcpu.kick)

    def request_exit(self, status: int) -> None:
        """End the run with the guest's exit status; returns at once."""
        self._control.request_exit(status)
        self.kick_all()

    def request_stop(self, outcome: Outcome = Outcome.STOPPED) -> None:
        """End the run; returns at once, on any thread, and in device handlers and console outputs too."""
        self._control.request_stop(outcome)
        self.kick_all()

    def pause(self) -> None:
        """Hold the vCPUs outside of the guest until `resume`; returns once all are, in a device's handler at once.

        Raises:
            InhibitTimeoutError: One did not come out; it is paused as soon as it does.
            StateError: Called inside a transaction, which would wait for ever.
            LockError: With lock validation on, a lock is held; so for `stop` and `wait`.
        """
        waits = self._may_wait("pause")
        self._control.request_pause()
        self.kick_all()
        if waits:
            self._control.wait_parked(STOP_TIMEOUT)

    def resume(self) -> None:
        """Let paused vCPUs go on."""
        self._control.resume()

    def stop(self, outcome: Outcome = Outcome.STOPPED) -> None:
        """End the run; returns once the vCPUs' threads are done, in a device's handler at once.

        Raises:
            InhibitTimeoutError: One did not come out.
            StateError: Called inside a transaction, which would wait for ever.
        """
        waits = self._may_wait("stop")
        self.request_stop(outcome)
        if waits and not self._control.wait_done(STOP_TIMEOUT):
            raise self._stuck()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._control.done

    def spurious_faults_so_far(self) -> tuple[int, ...]:
        """Return each vCPU's spurious faults up to now, while it runs."""
        with self._vm.big_lock:
            return tuple(thread.spurious_count for thread in self._threads)

    def in_handler(self) -> bool:
        """Return whether the caller is on a thread of the run's own, or hands on a write to a device, or its output.

        Who waits there for the vCPUs' threads waits for itself, or for those that wait for its locks.
        """
        return (
            any(thread.is_current() for thread in self._threads)
            or self._housekeeper.is_current()
            or self._vm.delivering
            or self._settler == threading.get_ident()
        )

    def wait(self, timeout: float | None = None) -> RunResult:
        """Wait for the end and return the result; may be called again.

        Args:
            timeout: Seconds after which the guest is stopped, with the outcome ``timed-out``; None waits for
                as long as it runs. An interrupt (Ctrl-C) stops the guest and goes on up.

        Raises:
            DeviceError: A device handler raised, or a console could not be written.
            BackendError: The accelerator failed.
            PluginError: The accelerator raised something else than an AccelError, or returned what it must not.
            MapLostError: A memory change could not be undone.
            InhibitTimeoutError: A vCPU did not come out when it was told to.
            StateError: Called inside a transaction, or by a device's handler or output, which would wait for ever.
        """
        if not self._may_wait("wait"):
            raise StateError("wait in a device's handler would wait for itself; call stop there")
        try:
            if not self._control.wait_ending(timeout):
                self.stop(Outcome.TIMED_OUT)
            elif not self._control.wait_done(STOP_TIMEOUT):
                # Told to end, by whoever it was, and no kick has brought it out.
                raise self._stuck() from self._control.ending[3]
        except InhibitTimeoutError:
            raise  # to wait once more would not help
        except BaseException:
            self.request_stop()
            if self._control.wait_done(STOP_TIMEOUT):
                self.settle()
            raise
        finished = self.settle()
        if isinstance(finished, BaseException):
            raise finished
        return finished

    # ending

    def settle(self) -> RunResult | BaseException:
        """Join the threads of a run that has ended and hand on what is left; return what `wait` gives or raises."""
        with self._finish_lock:
            if self._finished is None:
                ended = time.perf_counter()
                for thread in self._threads:
                    thread.join()
                self._housekeeper.stop()
                self._settler = threading.get_ident()
                try:
                    self._hand_on_the_rest()
                finally:
                    self._settler = 0
                self._finished = self._outcome(ended)
            return self._finished

    def _hand_on_the_rest(self) -> None:
        for hand_on in (self._vm.drain, partial(self._flush, STOP_TIMEOUT)):
            try:
                hand_on()
            except Exception as error:  # noqa: BLE001 - a device may raise anything; `wait` raises it
                self._control.fail(error)

    def _outcome(self, ended: float) -> RunResult | BaseException:
        outcome, status, crash, error = self._control.ending
        if error is not None:
            return accelerator_failure(self._accelerator, error)
        vm, stats, changes = self._vm, self._vm.blocker.stats, self._vm.transactions
        try:
            host, figures = vm.backend.host(), vm.backend.memory_figures()
            check_report(host, figures)
        except BaseException as raised:  # noqa: BLE001 - an accelerator may raise anything; `wait` raises it
            return accelerator_failure(self._accelerator, raised)
        unassigned = vm.memory.unassigned + vm.io.unassigned
        return RunResult(
            outcome=outcome,
            exit_status=status,
            crash=crash,
            wall_time=ended - self._started,
            accelerator=self._accelerator.name,
            host=host,
            vcpus=tuple(thread.result() for thread in self._threads),
            coalesced_writes=vm.coalesced_writes - self._coalesced_before,
            unassigned=unassigned - self._unassigned_before,
            memory={
                "commits": changes.commits,
                "unheld": changes.unheld,
                "inhibits": stats.inhibits,
                "kicks": stats.kicks,
                "wait_seconds": stats.wait_seconds,
                "wait_seconds_max": stats.wait_seconds_max,
                "hold_seconds": stats.hold_seconds,
                "hold_seconds_max": stats.hold_seconds_max,
                **figures,
            },
        )

    def _tick(self) -> None:
        self._vm.drain()
        self._flush(0.0)

    def _fail(self, error: BaseException) -> None:
        self._control.fail(error)
        self.kick_all()

    def _may_wait(self, call: str) -> bool:
        """Return whether the caller can wait for the vCPUs' threads; raise if it could and holds what they need."""
        if self.in_handler():
            return False
        if self._vm.transactions.active:
            raise StateError(f"{call} inside a memory transaction would wait for ever; leave the `with` first")
        waiting_for(VCPU_THREAD)
        return True

    def _stuck(self) -> InhibitTimeoutError:
        inside = [(gate.name, gate.operation, STOP_TIMEOUT) for gate in self._vm.blocker.gates if gate.busy]
        return InhibitTimeoutError(STOP_TIMEOUT, inside)

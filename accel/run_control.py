"""What the threads of one run agree on: whether to go on, pause or stop, and why it ended.

One condition guards it all; it is a leaf: nobody takes another lock, or calls into a vCPU, while holding it.
Flags are set first and the vCPUs kicked next; a vCPU thread looks here after each kick, so no request is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from accel.errors import GuestCrashError, InhibitTimeoutError
from accel.result import Outcome


class RunControl:
    """Shared by the vCPU threads of one run and by whoever steers it.

    Args:
        vcpus: How many vCPU threads the run has.
    """

    def __init__(self, vcpus: int) -> None:
        self._changed = threading.Condition()
        # All of these are guarded by `_changed`.
        self._running = set(range(vcpus))
        self._parked: set[int] = set()
        self._pausing = False
        self._stopping = False
        self._outcome: Outcome | None = None
        self._exit_status: int | None = None
        self._crash: GuestCrashError | None = None
        self._error: BaseException | None = None

    # called by vCPU threads

    def attend(self, index: int, wanted: Callable[[], bool]) -> bool:
        """Do what is asked after a kick: wait while the run is paused; return whether to go on.

        Returns early, with True, when `wanted` says so after a `poke`; the vCPU counts as waiting all the same
        if the caller comes back before it enters the guest.
        """
        with self._changed:
            if self._pausing and not self._stopping:
                self._parked.add(index)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._stopping or not self._pausing or wanted())
                if not (self._pausing and wanted()):
                    self._parked.discard(index)
            return not self._stopping

    def poke(self) -> None:
        """Have waiting vCPU threads look at what is wanted of them."""
        with self._changed:
            self._changed.notify_all()

    def leave(self, index: int) -> None:
        """Note that a vCPU's thread is done; the run has halted if all are and nobody said otherwise."""
        with self._changed:
            self._running.discard(index)
            if not self._running:
                self._end(Outcome.HALTED)
            self._changed.notify_all()

    # called by anyone; the caller kicks the vCPUs next

    def request_exit(self, status: int) -> None:
        """End the run with the guest's exit status."""
        with self._changed:
            if self._end(Outcome.EXITED):
                self._exit_status = status

    def crash(self, crash: GuestCrashError) -> None:
        """End the run because a vCPU cannot go on."""
        with self._changed:
            if self._end(Outcome.CRASHED):
                self._crash = crash

    def fail(self, error: BaseException) -> None:
        """End the run because the host's side failed; `error` is raised to whoever waits."""
        with self._changed:
            if self._error is None:
                self._error = error
            self._end(Outcome.STOPPED)

    def request_stop(self, outcome: Outcome = Outcome.STOPPED) -> None:
        """End the run."""
        with self._changed:
            self._end(outcome)

    def request_pause(self) -> None:
        """Ask the vCPUs to wait."""
        with self._changed:
            self._pausing = True

    def resume(self) -> None:
        """Let the vCPUs go on."""
        with self._changed:
            self._pausing = False
            self._changed.notify_all()

    # waiting

    def wait_parked(self, timeout: float) -> None:
        """Wait until each vCPU waits or is done. Raises InhibitTimeoutError that names those that are not."""
        started = time.monotonic()
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._stopping or not self._pausing or self._running <= self._parked, timeout
            ):
                waited = time.monotonic() - started
                busy = sorted(self._running - self._parked)
                raise InhibitTimeoutError(timeout, [(f"vCPU {index}", "run", waited) for index in busy])

    def wait_done(self, timeout: float | None) -> bool:
        """Wait until every vCPU's thread is done; return False if `timeout` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, timeout)

    def wait_ending(self, timeout: float | None) -> bool:
        """Wait until the run is told to end, or has; return False if `timeout` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: self._stopping or not self._running, timeout)

    # how it ended

    @property
    def paused(self) -> bool:
        """Whether the vCPUs are asked to wait."""
        with self._changed:
            return self._pausing

    @property
    def done(self) -> bool:
        """Whether every vCPU's thread is done."""
        with self._changed:
            return not self._running

    @property
    def ending(self) -> tuple[Outcome, int | None, GuestCrashError | None, BaseException | None]:
        """How it ended: outcome, exit status, crash and the host's error."""
        with self._changed:
            outcome = self._outcome or Outcome.STOPPED
            return outcome, self._exit_status, self._crash, self._error

    def _end(self, outcome: Outcome) -> bool:
        """Stop the run; return whether this is the reason (the first one wins)."""
        self._stopping = True
        self._changed.notify_all()
        if self._outcome is None:
            self._outcome = outcome
            return True
        return False

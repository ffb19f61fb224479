"""A kick against a guest that spins: KVM_RUN comes out, each time, wherever the thread stands."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
import time

import pytest

from accel_kvm import abi, kick
from accel_kvm.ioctl import raw_ioctl

PATIENCE = 60.0  # seconds until a test gives up; nothing is judged by it otherwise


class Runner:
    """A thread that enters a guest again and again and clears the kick after EINTR, as a vCPU thread must."""

    def __init__(self, guest, kick_signal: int) -> None:
        self._guest = guest
        self._signal = kick_signal
        self._about_to_enter = threading.Semaphore(0)
        self._out = threading.Semaphore(0)
        self.outcome: tuple[int, int] | None = None
        self._rounds = 0
        self._thread: threading.Thread | None = None

    def start(self, rounds: int = 1) -> None:
        self._rounds = rounds
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        kick.unblock(self._signal)
        self.tid = threading.get_native_id()
        for _ in range(self._rounds):
            self._about_to_enter.release()
            result = raw_ioctl(self._guest.vcpu_fd, abi.KVM_RUN, 0)
            self.outcome = result, ctypes.get_errno()
            self._guest.run.immediate_exit = 0
            self._out.release()

    def wait_until_about_to_enter(self) -> None:
        assert self._about_to_enter.acquire(timeout=PATIENCE)

    def kick(self) -> None:
        self._guest.run.immediate_exit = 1
        kick.kick_thread(self.tid, self._signal)

    def wait_until_out(self) -> tuple[int, int] | None:
        assert self._out.acquire(timeout=PATIENCE), "the kick was lost"
        return self.outcome

    def join(self) -> None:
        assert self._thread is not None
        self._thread.join(PATIENCE)


def wait_until_counting(guest) -> None:
    """Return when the guest has been seen to execute: the word that it counts in moves."""
    deadline = time.monotonic() + PATIENCE
    start = guest.counter
    while guest.counter == start:
        assert time.monotonic() < deadline, "the guest does not run"
        os.sched_yield()


def check_kick_ends_run(guest, kick_signal: int) -> None:
    """Assert that a kick of a guest that is seen to execute ends its KVM_RUN with EINTR."""
    runner = Runner(guest, kick_signal)
    runner.start()
    runner.wait_until_about_to_enter()
    wait_until_counting(guest)
    runner.kick()
    assert runner.wait_until_out() == (-1, errno.EINTR)
    runner.join()


@pytest.mark.kvm
def test_kick_of_a_spinning_guest_ends_run_with_eintr(raw_guest, kick_signal: int) -> None:
    kick.install(kick_signal)
    check_kick_ends_run(raw_guest("count"), kick_signal)


@pytest.mark.kvm
@pytest.mark.parametrize("restarts", [False, True])
def test_kick_ends_run_under_a_handler_that_the_program_sets_later(raw_guest, kick_signal: int, restarts: bool) -> None:
    kick.install(kick_signal)
    signal.signal(kick_signal, lambda number, frame: None)
    signal.siginterrupt(kick_signal, not restarts)
    check_kick_ends_run(raw_guest("count"), kick_signal)


@pytest.mark.kvm
def test_kick_flag_set_before_entry_ends_run_before_the_first_instruction(raw_guest) -> None:
    guest = raw_guest("count")
    guest.run.immediate_exit = 1
    assert raw_ioctl(guest.vcpu_fd, abi.KVM_RUN, 0) == -1
    assert ctypes.get_errno() == errno.EINTR
    assert guest.counter == 0
    assert guest.regs().rip == 0x1000


@pytest.mark.kvm
def test_kick_once_per_entry_at_any_moment_is_never_lost(raw_guest, kick_signal: int) -> None:
    kick.install(kick_signal)
    guest = raw_guest("count")
    runner = Runner(guest, kick_signal)
    runner.start(rounds=500)
    for _ in range(500):
        runner.wait_until_about_to_enter()
        runner.kick()
        assert runner.wait_until_out() == (-1, errno.EINTR)
    runner.join()

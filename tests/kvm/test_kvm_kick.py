"""The kick signal: installing it, sending it, and what it interrupts."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from accel.errors import BackendError, OptionError
from accel_kvm import kick

SA_RESTART = 0x10000000  # asm-generic/signal-defs.h
PATIENCE = 60.0  # seconds until a test gives up; nothing is judged by it otherwise

libc = ctypes.CDLL(None, use_errno=True)
libc.read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
libc.read.restype = ctypes.c_ssize_t


def installed(signal_number: int) -> tuple[int, int]:
    """Return handler and flags as the kernel has them."""
    action = kick._Sigaction()
    assert kick._sigaction(signal_number, None, action) == 0
    return action.sa_handler or 0, action.sa_flags


def in_thread(function: Callable[[], object]) -> object:
    """Return what `function` returns on a thread of its own; its exception is raised here."""
    result: list[object] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert result, "the thread did not come out"
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def test_kick_install_off_the_main_thread_sets_the_native_handler(kick_signal: int) -> None:
    assert installed(kick_signal)[0] == signal.SIG_DFL
    in_thread(lambda: kick.install(kick_signal))
    handler, flags = installed(kick_signal)
    assert handler == ctypes.cast(libc.abs, ctypes.c_void_p).value
    assert not flags & SA_RESTART


def test_kick_install_over_an_ignored_signal_takes_it(kick_signal: int) -> None:
    signal.signal(kick_signal, signal.SIG_IGN)
    kick.install(kick_signal)
    assert installed(kick_signal)[0] == kick._HANDLER


def test_kick_install_by_many_threads_at_once_agrees(kick_signal: int) -> None:
    barrier = threading.Barrier(8)
    problems: list[BaseException] = []

    def install() -> None:
        try:
            barrier.wait(PATIENCE)
            for _ in range(50):
                kick.install(kick_signal)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=install) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert problems == []
    assert installed(kick_signal)[0] == kick._HANDLER


def test_kick_install_over_the_programs_handler_is_refused_and_leaves_it(kick_signal: int) -> None:
    seen: list[int] = []
    signal.signal(kick_signal, lambda number, frame: seen.append(number))
    with pytest.raises(OptionError, match=r"kvm\.kick_signal = .*handles SIG.*set kvm\.kick_signal") as caught:
        kick.install(kick_signal)
    assert caught.value.value == kick_signal
    signal.raise_signal(kick_signal)
    assert seen == [kick_signal]


@pytest.mark.parametrize(
    "number",
    [
        *(signal.SIGKILL, signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM),
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT),
        *(-1, 0, 32, 33, 65, 2**31, 2**64 + signal.SIGURG),
    ],
)
def test_kick_install_signal_that_cannot_serve_is_refused(number: int) -> None:
    before = installed(number) if 0 < number < 32 else None
    with pytest.raises(OptionError, match=r"kvm\.kick_signal .*SIGURG.*real-time"):
        kick.install(number)
    assert before is None or installed(number) == before


def test_kick_default_signal_can_serve() -> None:
    kick.check_signal(kick.DEFAULT_SIGNAL)


class BlockedReader:
    """A thread in read(2) on an empty pipe, called so that Python does not repeat it."""

    def __init__(self, prepare: Callable[[], object]) -> None:
        self._prepare = prepare
        self._reader, self._writer = os.pipe()
        self._buffer = ctypes.create_string_buffer(1)
        self._up = threading.Event()
        self.out = threading.Event()
        self.outcome: tuple[int, int] | None = None
        self.tid = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self._prepare()
        self.tid = threading.get_native_id()
        self._up.set()
        result = libc.read(self._reader, self._buffer, 1)
        self.outcome = result, ctypes.get_errno()
        self.out.set()

    def __enter__(self) -> BlockedReader:
        self._thread.start()
        assert self._up.wait(PATIENCE)
        return self

    def __exit__(self, *exc: object) -> None:
        os.write(self._writer, b"x")  # lets a reader go that no kick reached
        self._thread.join(PATIENCE)
        os.close(self._reader)
        os.close(self._writer)


def test_kick_thread_in_a_blocking_read_ends_it_with_eintr(kick_signal: int) -> None:
    kick.install(kick_signal)
    with BlockedReader(lambda: kick.unblock(kick_signal)) as reader:
        # Nobody can know when the thread is inside read, so the kick is repeated until it is out.
        deadline = time.monotonic() + PATIENCE
        while not reader.out.wait(0.001) and time.monotonic() < deadline:
            kick.kick_thread(reader.tid, kick_signal)
        assert reader.outcome == (-1, errno.EINTR)


def test_kick_unblock_on_a_thread_that_inherited_a_mask_lets_kicks_in(kick_signal: int) -> None:
    def masked_then_unblocked() -> set[int]:
        signal.pthread_sigmask(signal.SIG_BLOCK, {kick_signal, signal.SIGUSR1})
        kick.unblock(kick_signal)
        return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}

    mask = in_thread(masked_then_unblocked)
    assert isinstance(mask, set)
    assert kick_signal not in mask
    assert int(signal.SIGUSR1) in mask


def test_kick_thread_that_has_ended_is_harmless(kick_signal: int) -> None:
    kick.install(kick_signal)
    tid = in_thread(threading.get_native_id)
    assert isinstance(tid, int)
    kick.kick_thread(tid, kick_signal)


def test_kick_thread_of_another_process_reaches_nobody(kick_signal: int) -> None:
    kick.install(kick_signal)
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        kick.kick_thread(sleeper.pid, kick_signal)
    finally:
        sleeper.communicate(b"\n", timeout=PATIENCE)
    assert sleeper.returncode == 0


def test_kick_thread_with_a_malformed_id_raises(kick_signal: int) -> None:
    with pytest.raises(BackendError, match=r"tgkill failed: EINVAL .*thread 0, signal SIG"):
        kick.kick_thread(0, kick_signal)


def run_script(script: str) -> str:
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


FULL_QUEUE = """
import resource, signal, threading
from accel.errors import BackendError
from accel_kvm import kick

real_time = signal.SIGRTMIN + 7
for number in (real_time, kick.DEFAULT_SIGNAL):
    kick.install(number)
resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))
me = threading.get_native_id()
kick.kick_thread(me, kick.DEFAULT_SIGNAL)
try:
    kick.kick_thread(me, real_time)
except BackendError as error:
    print(error)
"""


def test_kick_thread_with_a_full_signal_queue_works_by_default_and_is_told_otherwise() -> None:
    output = run_script(FULL_QUEUE)
    assert "EAGAIN" in output
    assert f"set kvm.kick_signal to {kick.DEFAULT_SIGNAL}" in output


FORKED = """
import ctypes, os, threading
from accel_kvm import kick

libc = ctypes.CDLL(None, use_errno=True)
kick.install(kick.DEFAULT_SIGNAL)
parent = threading.get_native_id()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    for _ in range(2_000):
        kick.kick_thread(parent, kick.DEFAULT_SIGNAL)
    os.write(writer, b"x")
    os._exit(0)
print(libc.read(reader, ctypes.create_string_buffer(1), 1), ctypes.get_errno())
os.waitpid(child, 0)
"""


def test_kick_thread_in_a_forked_child_does_not_reach_the_parent() -> None:
    assert run_script(FORKED).split() == ["1", "0"]


def test_kick_thread_keeps_the_gil(kick_signal: int) -> None:
    kick.install(kick_signal)
    tid = in_thread(threading.get_native_id)
    assert isinstance(tid, int)
    go, ran = threading.Event(), threading.Event()

    def wait_for_the_gil() -> None:
        go.wait(PATIENCE)
        ran.set()

    waiter = threading.Thread(target=wait_for_the_gil)
    interval = sys.getswitchinterval()
    # The waiter gets the GIL only if a kick gives it up. Set before it starts: else it may wait for the GIL on its way
    # to `go`, by the interval of before, and take it from the kicks.
    sys.setswitchinterval(PATIENCE)
    try:
        waiter.start()
        go.set()
        for _ in range(20_000):
            kick.kick_thread(tid, kick_signal)
        handed_over = ran.is_set()
    finally:
        sys.setswitchinterval(interval)
    waiter.join(PATIENCE)
    assert ran.is_set()
    assert not handed_over

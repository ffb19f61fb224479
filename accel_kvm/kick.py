"""The kick signal: what brings a vCPU thread out of KVM_RUN, or out of any call that blocks.

Above `accel_kvm.ioctl`, beside the vCPU that uses it. Upstream: KVM api.rst on `immediate_exit`,
sigaction(2), tgkill(2), signal(7).

**The protocol.** Whoever kicks sets ``kvm_run.immediate_exit``, then calls `kick_thread`. The flag catches a
vCPU that is about to enter: KVM_RUN returns EINTR at once. The signal catches one that is inside: a pending
signal ends KVM_RUN with EINTR. So none is lost wherever the thread stands, if the vCPU thread clears the flag
only after it has seen EINTR, and looks at what it was kicked for only after that.

**Why a native handler.** The signal needs a handler, or it would be ignored or end the process. A ctypes
callback would have to take the GIL in signal context; `signal.signal` is refused off the main thread, which
an embedder may not own, and puts Python's own handler to work at each kick. So `install` gives sigaction the
address of libc's ``abs``: it takes an int, touches no memory and returns a value that nobody reads. Without
SA_RESTART, or the kernel would repeat the calls that the kick is meant to end.

**Why tgkill with a native thread id.** For a thread that has ended the kernel says ESRCH, and so it does if
the id is another process's by now; a new thread of this process that has got it sees a harmless EINTR.
`signal.pthread_kill` would read freed memory instead: undefined behaviour. The process id is asked for each
time, so that a forked child signals nobody in its parent. A VM belongs to the process that created it in any
case: after a fork, only the parent can run its vCPUs.

**Why SIGURG by default.** Its default action is to be ignored, so that a kick which comes after the handler
went away hurts nobody; debuggers pass it without stopping; kicks that pile up become one; it can be sent when
the user's queue of real-time signals is full, where those fail with EAGAIN; and hardly anybody handles it. A
program that does, such as one that embeds the Go runtime, picks another with ``kvm.kick_signal``.
"""

from __future__ import annotations

import ctypes
import errno as _errno
import os
import signal

from accel.errors import OptionError
from accel_kvm.ioctl import raise_errno

#: The signal that is used unless ``kvm.kick_signal`` names another.
DEFAULT_SIGNAL = int(signal.SIGURG)

# Signals that neither the kernel nor a terminal sends for a reason of its own that a program must not miss.
_ORDINARY = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGURG)

_SYS_TGKILL = 234  # asm/unistd_64.h (x86-64); libc's own tgkill is missing from musl and glibc before 2.30
_SIGSET_WORDS = 1024 // 64  # signal.h: a sigset_t of libc, wider than the kernel's


class _Sigaction(ctypes.Structure):
    """``struct sigaction`` of signal.h, as glibc and musl lay it out on x86-64."""

    _fields_ = [
        ("sa_handler", ctypes.c_void_p),
        ("sa_mask", ctypes.c_uint64 * _SIGSET_WORDS),
        ("sa_flags", ctypes.c_int),
        ("sa_restorer", ctypes.c_void_p),
    ]


# PyDLL keeps the GIL during the call. These calls never block, and one that gave the GIL up could wait a
# whole switch interval, 5 ms, behind a busy Python thread before it gets it back.
_libc = ctypes.PyDLL(None, use_errno=True)

_sigaction = _libc.sigaction
_sigaction.argtypes = (ctypes.c_int, ctypes.POINTER(_Sigaction), ctypes.POINTER(_Sigaction))
_sigaction.restype = ctypes.c_int

# Without argtypes: to convert four arguments to declared types takes longer than the call. All are numbers that fit an
# int, which ctypes passes sign-extended, and so is the result.
_syscall = _libc.syscall

# The address holds as long as libc is loaded, which is as long as the process lives.
_HANDLER = ctypes.cast(_libc.abs, ctypes.c_void_p).value


def check_signal(signal_number: int) -> None:
    """Check that a signal can serve as the kick: SIGUSR1, SIGUSR2, SIGURG or a real-time signal.

    Raises:
        OptionError: Another one, or no signal at all.
    """
    if signal_number in _ORDINARY or signal.SIGRTMIN <= signal_number <= signal.SIGRTMAX:
        return
    ordinary = ", ".join(f"{one:d} ({one.name})" for one in _ORDINARY)
    raise OptionError(
        "kvm",
        "kick_signal",
        signal_number,
        f"must be {ordinary} or a real-time signal, {signal.SIGRTMIN:d} to {signal.SIGRTMAX:d}",
    )


def install(signal_number: int) -> None:
    """Make a signal interrupt blocking calls and do nothing else, in the whole process.

    From any thread, as often as one likes. A handler that the program itself gives this signal later stays in
    force, and kicks go on ending KVM_RUN. But if it lets the signal be ignored (SIG_IGN, for SIGURG SIG_DFL too), or
    blocks it on the vCPU's thread, a kick does not reach a vCPU that is inside.

    Raises:
        OptionError: The signal cannot serve (`check_signal`), or the program has a handler for it.
    """
    check_signal(signal_number)
    # Asked first, then set: the program's own handler must not be missing for a moment. Two threads that
    # install at once set the same, so there is nothing to lock.
    handler = _handler(signal_number)
    if handler not in (signal.SIG_DFL, signal.SIG_IGN, _HANDLER):
        raise OptionError(
            "kvm",
            "kick_signal",
            signal_number,
            f"the program handles {_name(signal_number)} itself; set kvm.kick_signal to another one",
        )
    if _sigaction(signal_number, _Sigaction(sa_handler=_HANDLER, sa_flags=0), None) < 0:
        raise_errno("sigaction", ctypes.get_errno(), f"signal {signal_number}")


def unblock(signal_number: int) -> None:
    """Let kicks reach the calling thread; a thread inherits its mask from the one that started it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal_number})


def kick_thread(native_tid: int, signal_number: int) -> None:
    """Send the signal to one thread of this process; one that has ended is no error. Never blocks.

    Args:
        native_tid: As `threading.get_native_id` gave it on that thread.
        signal_number: One that was installed.

    Raises:
        BackendError: The signal could not be sent: EAGAIN, the user's queue of real-time signals is full.
    """
    if _syscall(_SYS_TGKILL, os.getpid(), native_tid, signal_number) == 0:
        return
    errno = ctypes.get_errno()
    if errno != _errno.ESRCH:
        raise_errno("tgkill", errno, _tgkill_detail(native_tid, signal_number, errno))


def _handler(signal_number: int) -> int:
    """Return the address of a signal's handler, SIG_DFL or SIG_IGN."""
    current = _Sigaction()
    if _sigaction(signal_number, None, current) < 0:
        raise_errno("sigaction", ctypes.get_errno(), f"signal {signal_number}")
    return current.sa_handler or 0


def _tgkill_detail(native_tid: int, signal_number: int, errno: int) -> str:
    detail = f"thread {native_tid}, signal {_name(signal_number)}"
    if errno == _errno.EAGAIN:
        detail += f"; raise RLIMIT_SIGPENDING or set kvm.kick_signal to {DEFAULT_SIGNAL}, which is not queued"
    return detail


def _name(signal_number: int) -> str:
    try:
        return signal.Signals(signal_number).name
    except ValueError:  # the real-time signals between the first and the last have no name
        return f"SIGRTMIN+{signal_number - signal.SIGRTMIN}"

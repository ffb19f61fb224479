"""Calling ioctl and mapping what a vCPU shares, and the one place where errno becomes an exception.

Above `accel_kvm.abi`, below everything else of the plugin. Upstream: ioctl(2), KVM api.rst.

Why libc's function through ctypes and never `fcntl.ioctl`: from Python 3.14 that one repeats a call that
returned EINTR by itself. A signal handler runs on the main thread only, so a kicked vCPU thread would enter
the guest again and again and never come out. It also takes an int as 32 signed bits, which neither a pointer
nor KVM_SET_TSS_ADDR's address fits. And why `ctypes.CDLL`, never `ctypes.PyDLL`: KVM_RUN lasts as long as the
guest likes, and a call that kept the GIL would keep everybody from kicking it.

A VM belongs to the process that created it: in a forked child each ioctl on it fails with EIO. Create VMs
after the fork, not before.

The escape hatch: what this plugin does not wrap can be called with `ioctl` too. Any structure of your own and
`accel_kvm.abi._IOW` and its sisters do; nothing else here needs to know it. Call it where the VM's other
ioctls are called, inside the gate, or a memory change cannot know of it::

    class KvmInterrupt(ctypes.Structure):
        _fields_ = [("irq", ctypes.c_uint32)]

    ioctl(vcpu_fd, abi._IOW(0x86, KvmInterrupt), KvmInterrupt(32), "KVM_INTERRUPT")
"""

from __future__ import annotations

import ctypes
import errno as _errno
import mmap
from typing import Any, NoReturn

from accel.errors import BackendError
from accel_kvm import abi

#: What the kernel may take as the third argument: a number, or the object whose address is passed.
Argument = int | ctypes.Structure | ctypes.Union | ctypes.Array[Any] | ctypes.c_uint64

_ADVICE = {
    _errno.EIO: "the VM is another process's (create it after the fork, not before) or KVM gave it up",
    _errno.EMFILE: "this process has as many files open as it may; raise RLIMIT_NOFILE (ulimit -n). A vCPU takes two "
    "descriptors, three with a dirty ring",
    _errno.ENOTTY: "this kernel's KVM does not know the request, or the descriptor is not of its kind",
}

# A CDLL of its own: argtypes belong to the function object, and nobody else's `CDLL(None)` shares it.
_libc = ctypes.CDLL(None, use_errno=True)

#: libc's ioctl: `raw_ioctl(fd, request, number_or_address)` returns -1 on error, and `ctypes.get_errno()`
#: right behind it says which. No exception, no repeat: KVM_RUN's hot path. Releases the GIL.
raw_ioctl = _libc.ioctl
raw_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
raw_ioctl.restype = ctypes.c_int


def ioctl(fd: int, request: int, arg: Argument, operation: str) -> int:
    """Call ioctl and return its result; a call that a signal interrupted is repeated, but for KVM_RUN.

    Args:
        fd: Of ``/dev/kvm``, a VM or a vCPU.
        request: A request number of `accel_kvm.abi`.
        arg: A number is passed as it is; of a ctypes object its address is passed. The object lives until the
            call returns because the caller's argument holds it; memory that it points at is the caller's.
        operation: The request's name, for errors.

    Raises:
        BackendError: The call failed; for KVM_RUN with EINTR if it was kicked.
    """
    value = arg if isinstance(arg, int) else ctypes.addressof(arg)
    while True:
        result: int = raw_ioctl(fd, request, value)
        if result >= 0:
            return result
        # Before anything else: ctypes keeps one errno per thread, and the next call replaces it.
        errno = ctypes.get_errno()
        if errno != _errno.EINTR or request == abi.KVM_RUN:
            raise_errno(operation, errno)


def map_shared(fd: int, size: int, page_number: int, operation: str) -> mmap.mmap:
    """Map what a vCPU shares with its process; the mapping keeps a descriptor of its own of the vCPU.

    Args:
        fd: The vCPU.
        size: Bytes.
        page_number: Where it begins.
        operation: What it is, for errors.

    Raises:
        BackendError: It could not be mapped: EMFILE, there is no descriptor left; ENOMEM.
    """
    try:
        return mmap.mmap(fd, size, offset=page_number * mmap.PAGESIZE)
    except OSError as error:
        raise_errno(operation, error.errno or _errno.EIO)


def raise_errno(operation: str, errno: int, detail: str = "") -> NoReturn:
    """Raise the error that `errno` of a call of this plugin stands for.

    Args:
        operation: The call, such as ``KVM_CREATE_VCPU``.
        errno: Saved right after the call.
        detail: Its values and the next step; without it, the advice that goes with the number, if any.

    Raises:
        BackendError: Always.
    """
    raise BackendError(operation, errno, detail or _ADVICE.get(errno, ""))

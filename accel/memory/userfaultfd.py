"""The userfaultfd system call: who touches a page that is not there waits until this process puts one there.

Owns one file descriptor and the range that it is registered for; `accel.memory.user_fault` decides what the pages hold.
Layer: below `user_fault`. Sources: userfaultfd(2), ioctl_userfaultfd(2), mincore(2); include/uapi/linux/userfaultfd.h
and asm-generic/ioctl.h for the numbers.

Every call here goes through `ctypes.CDLL` or `os`, so it gives up the interpreter's lock while it is in the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct

from accel.errors import BackendError, CapabilityError

#: __NR_userfaultfd, by machine.
_SYSCALL = {"x86_64": 323, "aarch64": 282, "riscv64": 282}

_UFFD_API = 0xAA
_REGISTER_MODE_MISSING = 1
_EVENT_PAGEFAULT = 0x12
#: The bits of `uffdio_register.ioctls` for UFFDIO_WAKE and UFFDIO_COPY.
_NEEDED_IOCTLS = 1 << 0x02 | 1 << 0x03
#: Messages that one read takes, of 32 bytes each.
_MESSAGES = 16
#: Pages that one call of mincore tells of, a byte each.
_MINCORE_PAGES = 1 << 16


def _request(direction: int, number: int, size: int) -> int:
    """Return an ioctl number of type 0xAA; direction 1 is _IOW, 2 _IOR, 3 _IOWR, as the header has it."""
    return direction << 30 | size << 16 | 0xAA << 8 | number


_USERFAULTFD_IOC_NEW = 0xAA << 8
_UFFDIO_REGISTER = _request(3, 0x00, 32)
_UFFDIO_UNREGISTER = _request(2, 0x01, 16)
_UFFDIO_WAKE = _request(2, 0x02, 16)
_UFFDIO_COPY = _request(3, 0x03, 40)
_UFFDIO_ZEROPAGE = _request(3, 0x04, 32)
_UFFDIO_API = _request(3, 0x3F, 24)

# A CDLL of its own: argtypes belong to the function object.
_libc = ctypes.CDLL(None, use_errno=True)
_ioctl = _libc.ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_mincore = _libc.mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def missing_pages(address: int, size: int, page_size: int) -> list[int]:
    """Return the addresses of the pages in a mapped range that are not in host memory, ascending.

    A page that was swapped out may be among them.

    Args:
        address: Of the range, a multiple of `page_size`.
        size: Of the range, a multiple of `page_size`.
        page_size: The size of its pages, a multiple of the host's ordinary one.
    """
    step = page_size // mmap.PAGESIZE
    found: list[int] = []
    # mincore writes a byte for each ordinary page of the call, and only during the call.
    present = (ctypes.c_ubyte * min(_MINCORE_PAGES, size // mmap.PAGESIZE))()
    for start in range(address, address + size, _MINCORE_PAGES * mmap.PAGESIZE):
        length = min(_MINCORE_PAGES * mmap.PAGESIZE, address + size - start)
        if _mincore(start, length, present):
            raise BackendError("mincore", ctypes.get_errno())
        if length == mmap.PAGESIZE:
            # The usual case, and the last round of the others.
            return found if present[0] & 1 else [*found, start]
        known = bytes(present)
        found += [start + at * mmap.PAGESIZE for at in range(0, length // mmap.PAGESIZE, step) if not known[at] & 1]
    return found


class UserFaultFd:
    """A userfaultfd for one range of host addresses.

    Args:
        address: Of the range, a multiple of `page_size`.
        size: Of the range, a multiple of `page_size`.
        page_size: The size of its pages.

    Attributes:
        fd: The descriptor, non-blocking; -1 once it is closed.

    Raises:
        CapabilityError: This host, or this user, has no userfaultfd; nothing is left open.
    """

    def __init__(self, address: int, size: int, page_size: int) -> None:
        self._address = address
        self._size = size
        self._page_size = page_size
        self._zeros = bytes(page_size) if page_size != mmap.PAGESIZE else b""
        self.fd = _open()
        try:
            # struct uffdio_api: api, features, ioctls.
            self._call("UFFDIO_API", _UFFDIO_API, _UFFD_API, 0, 0)
        except BackendError as error:
            self.close()
            raise CapabilityError(f"this kernel's userfaultfd is not of the kind that is known ({error})") from error

    def register(self) -> None:
        """Let whoever touches a missing page of the range wait, from now on.

        Raises:
            BackendError: The kernel refuses; with EBUSY, another userfaultfd has the range.
            CapabilityError: It cannot do it for this kind of memory.
        """
        try:
            # struct uffdio_register: start, len, mode, ioctls.
            done = self._call("UFFDIO_REGISTER", _UFFDIO_REGISTER, self._address, self._size, _REGISTER_MODE_MISSING, 0)
        except BackendError as error:
            if error.errno != errno.EINVAL:
                raise
            raise CapabilityError("this kernel has no user faults for this kind of memory") from error
        if done[3] & _NEEDED_IOCTLS != _NEEDED_IOCTLS:
            self.unregister()
            raise CapabilityError("this kernel cannot put pages into this kind of memory")

    def unregister(self) -> None:
        """Let everybody who waits go on: missing pages are zeros from now on. Raises BackendError."""
        self._call("UFFDIO_UNREGISTER", _UFFDIO_UNREGISTER, self._address, self._size)

    def read(self) -> list[int]:
        """Return the addresses of pages that somebody began to wait for since the last time; never waits itself."""
        try:
            found = os.read(self.fd, 32 * _MESSAGES)
        except BlockingIOError:
            return []
        # struct uffd_msg: event; then for a page fault flags, address, and the thread's id, which was not asked for.
        messages = struct.iter_unpack("=B7xQQ8x", found)
        return [address & -self._page_size for event, _, address in messages if event == _EVENT_PAGEFAULT]

    def copy(self, address: int, data: bytes) -> None:
        """Put `data`, whole pages, at `address` and wake who waits there; pages that are there stay as they are.

        Raises:
            BackendError: The host has no memory for them, or the range is not registered any more (ENOENT).
        """
        # The kernel reads the bytes object during the call only.
        source = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
        at = 0
        while at < len(data):
            # struct uffdio_copy: dst, src, len, mode, copy.
            at += self._place("UFFDIO_COPY", _UFFDIO_COPY, address + at, source + at, len(data) - at, 0, 0)
        self.wake(address, len(data))

    def zero(self, address: int) -> None:
        """Put a page of zeros at `address` and wake who waits there; as `copy`."""
        if self._zeros:
            # Huge pages have no page of zeros to share.
            self.copy(address, self._zeros)
            return
        # struct uffdio_zeropage: start, len, mode, zeropage.
        while not self._place("UFFDIO_ZEROPAGE", _UFFDIO_ZEROPAGE, address, self._page_size, 0, 0):
            pass
        self.wake(address, self._page_size)

    def wake(self, address: int, size: int) -> None:
        """Let who waits in the range look again. Raises BackendError as `copy` does."""
        self._call("UFFDIO_WAKE", _UFFDIO_WAKE, address, size)

    def close(self) -> None:
        """Close the descriptor, which unregisters the range; may be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _place(self, name: str, request: int, *values: int) -> int:
        """Make a call whose last field comes back as bytes done, or an error; return how far that gets it."""
        fields = (ctypes.c_uint64 * len(values))(*values)
        if _ioctl(self.fd, request, fields) == 0:
            return int(fields[-1])
        number = ctypes.get_errno()
        done = ctypes.c_int64(fields[-1]).value
        if done > 0:
            return done
        if number == errno.EEXIST:
            return self._page_size
        if number == errno.EAGAIN:
            return 0
        raise BackendError(name, number)

    def _call(self, name: str, request: int, *values: int) -> list[int]:
        fields = (ctypes.c_uint64 * len(values))(*values)
        if _ioctl(self.fd, request, fields):
            raise BackendError(name, ctypes.get_errno())
        return list(fields)


def _open() -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise CapabilityError(f"userfaultfd: its call number on {platform.machine()} is not known")
    # Not UFFD_USER_MODE_ONLY: an accelerator touches guest memory inside the kernel.
    fd: int = _syscall(number, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd >= 0:
        return fd
    reason = ctypes.get_errno()
    if reason == errno.EPERM and (fd := _open_device()) >= 0:
        return fd
    if reason == errno.EPERM:
        raise CapabilityError(
            "userfaultfd is not for this user (EPERM): as root, sysctl vm.unprivileged_userfaultfd=1, or let the user "
            "open /dev/userfaultfd; in a container, allow the call in its seccomp profile"
        )
    if reason == errno.ENOSYS:
        raise CapabilityError("this kernel is built without userfaultfd (ENOSYS); it needs CONFIG_USERFAULTFD")
    raise BackendError("userfaultfd", reason)


def _open_device() -> int:
    """Return a userfaultfd by way of the device, which who may open it needs no other right for, or -1."""
    try:
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        # The argument is not a pointer here but the flags.
        return int(_ioctl(device, _USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK))
    finally:
        os.close(device)

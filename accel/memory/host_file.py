"""Opening regular files for mapping: what can be RAM is opened, what cannot is refused with the reason.

Owns no state. Layer: below `backing`. Sources: open(2), statfs(2).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat

from accel.errors import AddressError

#: linux/magic.h
_HUGETLBFS_MAGIC = 0x958458F6

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def open_regular(path: str, what: str, *, write: bool, create: bool) -> int:
    """Open a regular file and return its fd, which no child inherits, as for all that Python opens.

    Args:
        path: The file.
        what: How messages begin, such as ``RAM 'x': file 'y'``.
        write: For writing, too.
        create: Make it, with mode 0600, where there is none.

    Raises:
        AddressError: It is not there, is no regular file, or cannot be opened so.
    """
    # Opening a device can do things and opening a FIFO can wait, so the kind is looked at first and, since the path
    # may lead elsewhere a moment later, O_NONBLOCK and a second look follow.
    flags = os.O_NONBLOCK | os.O_NOCTTY | (os.O_RDWR if write else os.O_RDONLY)
    try:
        if os.path.exists(path):
            _check_kind(os.stat(path), what)
        fd = os.open(path, flags | (os.O_CREAT if create else 0), 0o600)
    except OSError as error:
        raise AddressError(f"{what} {_problem(error, write, create)} ({error.strerror})") from error
    try:
        _check_kind(os.fstat(fd), what)
    except AddressError:
        os.close(fd)
        raise
    return fd


def _check_kind(found: os.stat_result, what: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "a special file")
        raise AddressError(f"{what} is {kind}; use a regular file, which may be in /dev/shm or on hugetlbfs")


def _problem(error: OSError, write: bool, create: bool) -> str:
    if error.errno == errno.ENOENT:
        return "has no directory to be in; make that first" if create else "is not there; make it, or use create=True"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY):
        if write:
            return "cannot be written; use readonly=True or shared=False, or change its permissions"
        return "cannot be read; change its permissions"
    return "cannot be opened; check its path, and the limits of this process"


def file_page_size(fd: int) -> int:
    """Return the bytes of a page of the file: those of its hugetlbfs, or the host's."""
    # struct statfs begins with two longs, f_type and f_bsize, and has 120 bytes on 64-bit hosts; the kernel writes
    # it into these 512 bytes during the call only.
    buffer = (ctypes.c_long * 64)()
    if ctypes.CDLL(None).fstatfs(fd, buffer) == 0 and buffer[0] & 0xFFFFFFFF == _HUGETLBFS_MAGIC:
        return buffer[1]
    return mmap.PAGESIZE

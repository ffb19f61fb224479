"""What memory the host has left, for errors that come before a page is missing and not as a signal after.

And what Python's mmap module has no call for: where a mapping is, touching its pages, counting them. Owns nothing.
Layer: below `backing`. Sources: proc(5), MemAvailable; the kernel's admin-guide/mm/hugetlbpage.rst,
admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst; madvise(2), mincore(2).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from pathlib import Path

from accel.address import format_size

_POOLS = Path("/sys/kernel/mm/hugepages")

#: asm-generic/mman-common.h, since Linux 5.14; Python's mmap module does not name them.
_MADV_POPULATE_READ = 22
_MADV_POPULATE_WRITE = 23
#: Bytes that are prefaulted in one call: some 10 ms, in which no other thread runs and no Ctrl-C comes through.
_PREFAULT_CHUNK = 16 << 20
#: Pages that one call of mincore tells of, a byte each.
_RESIDENT_CHUNK = 1 << 16


def huge_page_problem(page_size: int, size: int, pools: Path = _POOLS) -> str:
    """Return why the host has no huge pages for `size` bytes, with the next step; empty if it should have them."""
    pool = pools / f"hugepages-{page_size >> 10}kB"
    if not pool.is_dir():
        known = sorted(int(one.name[10:-2]) << 10 for one in pools.glob("hugepages-*kB"))
        sizes = ", ".join(map(format_size, known)) or "no size"
        return f"this kernel knows huge pages of {sizes}, not of {format_size(page_size)}; use another huge_pages"
    counts = [_number(pool / f"{name}_hugepages") or 0 for name in ("nr", "free", "resv", "nr_overcommit", "surplus")]
    total, free, reserved, overcommit, surplus = counts
    needed, available = -(-size // page_size), free - reserved + max(overcommit - surplus, 0)
    if needed <= available:
        return ""
    return (
        f"it takes {needed} huge pages of {format_size(page_size)}, and {available} are free; "
        f"as root, echo {total + needed - available} > {pool}/nr_hugepages, or leave huge_pages out"
    )


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that this process can still touch without swap, of the host and of its control groups.

    A group's file cache counts as free where it is inactive. What cannot be read sets no limit.
    """
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    available = _fields(proc / "meminfo").get("MemAvailable:")
    if available is not None:
        found.append(available << 10)
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        groups = ["", *_prefixes(path)]
        if not controllers:
            found += [_left(cgroups / one, "max", "current", "inactive_file") for one in groups]
        elif "memory" in controllers.split(","):
            names = ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")
            found += [_left(cgroups / "memory" / one, *names) for one in groups]
    return max(min(found), 0)


def _prefixes(path: str) -> list[str]:
    """Return ``["a", "a/b"]`` for ``/a/b``: a group and all those it is in."""
    parts = [part for part in path.split("/") if part]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _left(group: Path, limit: str, usage: str, cache: str) -> int:
    """Return what a control group may still use; without a limit, more than any host has."""
    most, used = _number(group / f"memory.{limit}"), _number(group / f"memory.{usage}")
    if most is None or used is None:
        return 1 << 64
    return most - used + _fields(group / "memory.stat").get(cache, 0)


def _number(path: Path) -> int | None:
    """Return the number that a file of the kernel holds, or None where there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _fields(path: Path) -> dict[str, int]:
    """Return the lines of a kernel file whose second word is a number, by their first word."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}


# mappings


class _PyBuffer(ctypes.Structure):
    """Python's Py_buffer (in the stable ABI since 3.11), 80 bytes on 64-bit hosts."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


def address_of(mapping: mmap.mmap) -> int:
    """Return where `mapping` is, also of a read-only one, which ctypes' own `from_buffer` refuses."""
    # Python fills the struct here and gives back its hold here; that the address stays good is up to the caller.
    found = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(mapping), ctypes.byref(found), 0)
    address: int = found.buf
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(found))
    return address


def prefault(mapping: mmap.mmap, size: int, page_size: int, writable: bool, file: tuple[int, int] | None) -> None:
    """Touch every page of the first `size` bytes of `mapping`, which changes none of them.

    Args:
        mapping: A mapping that other processes may be writing to.
        size: Bytes from its start.
        page_size: The size of its pages.
        writable: Whether it may be written.
        file: The fd, and where the mapping begins in it, of a file that writes go to.

    Raises:
        OSError: The host, or the file system, has no room.
    """
    advice = _MADV_POPULATE_WRITE if writable else _MADV_POPULATE_READ
    step = max(_PREFAULT_CHUNK, page_size)
    for start in range(0, size, step):
        length = min(step, size - start)
        try:
            mapping.madvise(advice, start, length)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # The kernel is older than the advice.
            if file is not None:
                # A page that the file system has no room for would be a SIGBUS. With room, reading is enough, and
                # unlike writing back what was read it cannot undo a write of another process.
                os.posix_fallocate(file[0], file[1] + start, length)
            with memoryview(mapping) as whole, whole[start : start + length : page_size] as pages:
                found = bytes(pages)
                if writable and file is None:
                    pages[:] = found


def resident_bytes(address: int, size: int) -> int:
    """Return how many bytes from the page at `address` on have a page in host memory.

    The caller keeps them mapped during the call. Raises OSError where they are not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # mincore(2) writes a byte for each page of a call, 65536 at most, and only during the call.
    pages = (ctypes.c_ubyte * _RESIDENT_CHUNK)()
    step, count = _RESIDENT_CHUNK * mmap.PAGESIZE, 0
    for start in range(0, size, step):
        length = min(step, size - start)
        if libc.mincore(ctypes.c_void_p(address + start), ctypes.c_size_t(length), pages):
            raise OSError(ctypes.get_errno(), "mincore")
        count += bytes(pages)[: -(-length // mmap.PAGESIZE)].count(1)
    return count * mmap.PAGESIZE

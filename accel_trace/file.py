"""The file of a trace: opened once in a process, shared by its machines, written line by line, never in the way.

**Appended to.** Each write adds whole lines at the end (``O_APPEND``), so that processes may share a file, and one that
is started again goes on where the last one ended.

**Never in the way.** `TraceFile.write` raises nothing. What cannot be written ends the trace of all machines that use
the file, with one warning (logger ``accel.trace``) that names the file and the reason; a process warns once of each. A
pipe is written without waiting: what its reader has not taken yet is kept, up to `MAX_UNREAD` bytes.

**Fork.** A child writes nothing for the machines that it inherited, since the parent does. For its own it opens the
file anew.

Layer: below `accel_trace.listener`.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import select
import threading

from accel.errors import UsageError

#: Bytes that wait for the reader of a pipe at most.
MAX_UNREAD = 16 << 20
#: Milliseconds that the last machine's end waits for a reader that takes nothing.
_PATIENCE_MS = 1000

_log = logging.getLogger("accel.trace")

#: The files that are open, by path; guarded by `_files_lock`.
_files: dict[str, TraceFile] = {}
_files_lock = threading.Lock()
#: Numbers for machines, and what the process has warned of.
_numbers = itertools.count(1)
_warned: set[tuple[str, str]] = set()


class TraceFile:
    """One open file; made by `open_trace`.

    Attributes:
        path: The file.
        stopped: Whether nothing is written any more; read without a lock.
    """

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self.stopped = False
        self._descriptor = descriptor
        # How many machines use it; guarded by `_files_lock`.
        self._users = 0
        # What the file has not taken; guarded by `_lock`, which is taken last.
        self._left = bytearray()
        self._lock = threading.Lock()

    def add_machine(self) -> str:
        """Return a name for one more machine, which none of this process has had, nor has one of another."""
        self._users += 1
        return f"{os.getpid()}.{next(_numbers)}"

    def write(self, lines: bytes) -> None:
        """Append `lines`, which are whole; raises nothing. O(bytes), one system call where the file takes them."""
        with self._lock:
            if not self.stopped:
                self._left += lines
                self._write_left()

    def release(self) -> None:
        """Let go of it for one machine; the last one closes it, and waits a moment for the reader of a pipe."""
        with _files_lock:
            if self._descriptor < 0:
                return  # it was the parent's
            self._users -= 1
            if self._users:
                return
            if _files.get(self.path) is self:
                del _files[self.path]
        with self._lock:
            self._write_last()
            descriptor, self._descriptor = self._descriptor, -1
            try:
                os.close(descriptor)
            except OSError as error:
                self._stop(os.strerror(error.errno or 0))
            self.stopped = True

    def _write_left(self) -> None:
        try:
            while self._left:
                written = os.write(self._descriptor, self._left)
                del self._left[:written]
        except BlockingIOError:
            if len(self._left) > MAX_UNREAD:
                self._stop("whoever reads it does not keep up")
        except OSError as error:
            self._stop("whoever read it has gone" if error.errno == errno.EPIPE else os.strerror(error.errno or 0))

    def _write_last(self) -> None:
        """Wait for a reader as long as it takes something."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while self._left and not self.stopped:
            if not poll.poll(_PATIENCE_MS):
                self._stop("whoever reads it has not taken its last lines")
            else:
                self._write_left()

    def _stop(self, reason: str) -> None:
        if not self.stopped:
            self.stopped = True
            self._left.clear()
            if (self.path, reason) in _warned:
                return
            _warned.add((self.path, reason))
            _log.warning("the trace in '%s' ends early: %s; the machines run on without it", self.path, reason)

    def drop_inherited(self) -> None:
        """Leave it to the parent; for a child right after a fork, whatever the parent's threads held."""
        self.stopped = True
        self._lock = threading.Lock()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def open_trace(path: str) -> tuple[TraceFile, str]:
    """Return the open file at `path` and the name of one more machine in it.

    Raises:
        UsageError: It cannot be opened for writing.
    """
    path = os.path.abspath(path)
    with _files_lock:
        file = _files.get(path)
        if file is None:
            file = _files[path] = TraceFile(path, _open(path))
        return file, file.add_machine()


def _open(path: str) -> int:
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its reader, and a full one would stop the machine.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY
        return os.open(path, flags, 0o666)
    except OSError as error:
        reason = "nobody reads the pipe" if error.errno == errno.ENXIO else os.strerror(error.errno or 0)
        raise UsageError(f"ACCEL_TRACE={path}: cannot be written: {reason}; name another file or unset it") from error


def _after_fork() -> None:
    """Begin anew in a child."""
    global _files_lock
    _files_lock = threading.Lock()
    for file in _files.values():
        file.drop_inherited()
    _files.clear()


os.register_at_fork(after_in_child=_after_fork)

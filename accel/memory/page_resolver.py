"""The thread that puts pages into guest memory when they are first touched, by a function of the user's.

Owns the userfaultfd, the requests of host accesses, and the pages that did not come; `accel.memory.user_fault` says
what it is for. Layer: below `user_fault`, above `userfaultfd`. It takes no lock of the project but the leaf here.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from accel.address import AddressRange, format_size
from accel.errors import BackendError, StateError, UserFaultError
from accel.memory.userfaultfd import UserFaultFd, missing_pages

_log = logging.getLogger("accel.memory")

Resolve = Callable[[int], bytes | bytearray | memoryview | None]


class _Request:
    """Pages that a host access waits for. Written by the resolver, but for `given_up`."""

    def __init__(self, offsets: list[int]) -> None:
        self.offsets = offsets
        self.done = threading.Event()
        self.came = 0
        self.error: UserFaultError | None = None
        # Set by who waits, once it does not any more.
        self.given_up = False


class PageResolver:
    """Serves the missing pages of one part of one block.

    Args:
        name: Of the memory, for messages.
        base: Host address of offset 0.
        part: What is served, as offsets.
        page_size: Of the memory.
        resolve: The user's function; see `accel.memory.user_fault.UserFaults`.
        timeout: As there.

    Attributes:
        ended: Whether nothing is missing any more, as the range is not registered. Written under the lock here.

    Raises:
        CapabilityError: This host, or this user, has no userfaultfd.
        BackendError: There are no descriptors left.
    """

    def __init__(
        self, name: str, base: int, part: AddressRange, page_size: int, resolve: Resolve, timeout: float
    ) -> None:
        self.ended = False
        self._name = name
        self._base = base
        self._part = part
        self._page_size = page_size
        self._resolve = resolve
        self._timeout = timeout
        # What host accesses ask for; any thread appends, the resolver takes.
        self._requests: deque[_Request] = deque()
        # The one that it works on, or did last.
        self._current = _Request([])
        # Offsets of pages that somebody in the kernel waits for, and why they did not come. Owned by the resolver.
        self._failed: dict[int, UserFaultError] = {}
        self._retry = False
        # Where `resolve` is. Owned by the resolver.
        self._resolving: int | None = None
        # A leaf, held for the lifetime of the descriptors only and never while waiting for anyone.
        self._lock = threading.Lock()
        self._fd = UserFaultFd(base + part.start, part.size, page_size)
        try:
            self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            self._fd.close()
            raise BackendError("eventfd", error.errno or errno.EMFILE) from error
        self._thread = threading.Thread(target=self._run, name=f"user-faults-{name}", daemon=True)

    # its life

    def start(self) -> None:
        """Serve pages from now on. Raises CapabilityError or BackendError; `shut` it then."""
        self._fd.register()
        self._thread.start()

    def stop(self) -> None:
        """Serve no more: missing pages are zeros, and who waits goes on; may be called twice.

        Raises:
            StateError: Called by the user's function.
            BackendError: The kernel refused; nothing has changed.
        """
        if threading.current_thread() is self._thread:
            raise StateError("resolve cannot close its handler, which would wait for itself; do it on another thread")
        with self._lock:
            if not self.ended:
                self._fd.unregister()
                self.ended = True
        for request in [*self._requests, self._current]:
            request.done.set()
        self._wake()

    def join(self) -> None:
        """Wait until the thread has ended. Raises StateError if the user's function does not return."""
        self._thread.join(self._timeout)
        if self._thread.is_alive():
            raise StateError(
                f"{self._running()}of '{self._name}' did not return within {self._timeout:g} s; "
                "missing pages are zeros now; let it return, and close again"
            )

    def shut(self) -> None:
        """Close the descriptors, which lets everybody who still waits for a page go on."""
        with self._lock:
            self.ended = True
            self._fd.close()
            if self._wake_fd >= 0:
                os.close(self._wake_fd)
                self._wake_fd = -1
        while self._requests:
            self._requests.popleft().done.set()

    # what others ask

    @property
    def failed(self) -> dict[int, UserFaultError]:
        """See `accel.memory.user_fault.UserFaults`."""
        return dict(self._failed)

    def retry(self) -> None:
        """Ask again for the pages in `failed`; returns at once."""
        self._retry = True
        self._wake()

    def ask(self, offsets: list[int]) -> None:
        """Wait until these pages are there. Raises UserFaultError."""
        if threading.current_thread() is self._thread:
            raise self._error(offsets[0], "is asked for by its own resolve, which would wait for itself")
        request = _Request(offsets)
        self._requests.append(request)
        self._wake()
        if self.ended:
            # Nothing is missing any more, and perhaps nobody is left to say so. Who ends it later finds the request.
            request.done.set()
        came = 0
        while not request.done.wait(self._timeout):
            if request.came == came:
                request.given_up = True
                raise self._error(
                    offsets[came],
                    f"did not come within {self._timeout:g} s; {self._running()}has not returned, and must not wait "
                    "for a lock of who reads",
                )
            came = request.came
        if request.error is not None:
            raise request.error

    def _wake(self) -> None:
        with self._lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _running(self) -> str:
        at = self._resolving
        return "resolve " if at is None else f"resolve({at:#x}) "

    def _error(self, offset: int, problem: str) -> UserFaultError:
        return UserFaultError(self._name, offset, problem)

    # the resolver

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._fd.fd, select.POLLIN)
        poll.register(self._wake_fd, select.POLLIN)
        try:
            while not self.ended:
                poll.poll()
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake_fd)
                waiting = [address - self._base for address in self._fd.read()]
                if self._retry:
                    self._retry = False
                    waiting += self._failed
                for offset in waiting:
                    self._serve_guest(offset)
                while self._requests:
                    self._serve_host(self._requests.popleft())
        finally:
            self.shut()

    def _serve_guest(self, offset: int) -> None:
        try:
            self._serve(offset)
        except UserFaultError as error:
            self._failed[offset] = error
            _log.exception("a guest waits for a page that did not come")

    def _serve_host(self, request: _Request) -> None:
        self._current = request
        try:
            for offset in request.offsets:
                if request.given_up:
                    break
                self._serve(offset)
                request.came += 1
        except UserFaultError as error:
            request.error = error
        finally:
            request.done.set()

    def _serve(self, offset: int) -> None:
        """See that the page at `offset` is there. Raises UserFaultError."""
        if self.ended:
            return
        address = self._base + offset
        pages: bytes | None = None
        try:
            if missing_pages(address, self._page_size, self._page_size):
                pages = self._ask_user(offset)
                if pages is None:
                    self._fd.zero(address)
                else:
                    self._fd.copy(address, pages)
            else:
                self._fd.wake(address, self._page_size)
        except BackendError as error:
            # Once it is closed there is nothing to put pages into any more; `stop` may be just between the two.
            with self._lock:
                ended = self.ended
            if not ended:
                raise self._error(
                    offset, f"could not be put in place ({error}); free some memory, and retry"
                ) from error
        size = self._page_size if pages is None else len(pages)
        for at in [at for at in self._failed if offset <= at < offset + size]:
            del self._failed[at]

    def _ask_user(self, offset: int) -> bytes | None:
        """Return the pages from `offset` on, or None for one of zeros. Raises UserFaultError."""
        self._resolving = offset
        try:
            found = self._resolve(offset)
            if found is None:
                return None
            pages = bytes(memoryview(found))
        except BaseException as error:
            # Whatever it is, the resolver goes on for the other pages.
            raise self._error(offset, f"did not come, as resolve raised {type(error).__name__}: {error}") from error
        finally:
            self._resolving = None
        if not pages or len(pages) % self._page_size or len(pages) > self._part.end - offset:
            raise self._error(
                offset,
                f"did not come, as resolve gave {len(pages):#x} bytes; it must give whole pages of "
                f"{format_size(self._page_size)}, at most {self._part.end - offset:#x} bytes here",
            )
        return pages

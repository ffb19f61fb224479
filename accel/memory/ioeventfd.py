"""ioeventfds: guest writes that ring a file descriptor instead of reaching a handler.

Source: KVM_IOEVENTFD in KVM api.rst and QEMU's memory_region_add_eventfd, the rules only. Layer: below `region`.
"""

from __future__ import annotations

import os

from attrs import frozen

from accel.errors import UsageError

SIZES = (0, 1, 2, 4, 8)


@frozen
class IoEventFd:
    """A doorbell: a write at one place, of one size and perhaps one value, adds 1 to an eventfd.

    Attributes:
        offset: Where in its region; where a listener is told of it, the address in the space.
        size: Bytes of the write, 1, 2, 4 or 8; 0 for a write of any size.
        match: The value that rings, or None for any; with a size of 0 there is none.
        fd: The eventfd. It belongs to whoever added it, and must stay open until it is removed.

    Raises:
        UsageError: The size is another, the value does not fit into it, or the fd is negative.
    """

    offset: int
    size: int = 0
    match: int | None = None
    fd: int = -1

    def __attrs_post_init__(self) -> None:
        if self.size not in SIZES:
            raise UsageError(f"ioeventfd at {self.offset:#x}: size {self.size} is none of 0 (any), 1, 2, 4 and 8")
        if self.match is not None and not self.size:
            raise UsageError(
                f"ioeventfd at {self.offset:#x}: value {self.match:#x} needs the size of the write that it is part of"
            )
        if self.match is not None and not 0 <= self.match < 1 << 8 * self.size:
            raise UsageError(
                f"ioeventfd at {self.offset:#x}: value {self.match:#x} does not fit into a write of {self.size} bytes"
            )
        if self.fd < 0:
            raise UsageError(f"ioeventfd at {self.offset:#x}: fd {self.fd} is none; give an open eventfd")

    @property
    def key(self) -> tuple[int, int, bool, int]:
        """By what those of one region are ordered: place, size, then those with a value before one without."""
        return self.offset, self.size, self.match is None, self.match or 0

    def collides(self, other: IoEventFd) -> bool:
        """Return whether one write could ring both, which accelerators refuse (KVM: EEXIST)."""
        return (
            self.offset == other.offset
            and (self.size == other.size or not self.size or not other.size)
            and (self.match == other.match or self.match is None or other.match is None)
        )

    def check_fd(self) -> None:
        """Refuse an fd that cannot be rung.

        Raises:
            UsageError: It is not open, or something else than an eventfd.
        """
        try:
            os.fstat(self.fd)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"ioeventfd at {self.offset:#x}: fd {self.fd} is not open; give an eventfd and keep it open"
            ) from error
        try:
            what = os.readlink(f"/proc/self/fd/{self.fd}")
        except OSError:
            # Without /proc the accelerator finds out.
            return
        if what != "anon_inode:[eventfd]":
            raise UsageError(
                f"ioeventfd at {self.offset:#x}: fd {self.fd} is {what}, no eventfd; make one with os.eventfd"
            )

    def rings(self, offset: int, value: int, size: int) -> bool:
        """Return whether a write of `value` at `offset` rings it."""
        return offset == self.offset and self.size in (0, size) and self.match in (None, value)

    def ring(self) -> None:
        """Add 1 to the eventfd, for an accelerator that does not do it by itself; a full one stays as it is.

        Raises:
            UsageError: The fd was closed before the doorbell was removed.
        """
        try:
            os.eventfd_write(self.fd, 1)
        except BlockingIOError:
            # The counter is at its limit, so whoever waits for it is awake.
            pass
        except OSError as error:
            raise UsageError(
                f"ioeventfd at {self.offset:#x}: fd {self.fd} cannot be rung ({error}); keep it open until the "
                "doorbell is removed"
            ) from error

"""ioeventfds: guest writes that ring a file descriptor instead of reaching a handler.

Source: KVM_IOEVENTFD in KVM api.rst and QEMU's memory_region_add_eventfd, the rules only. Layer: below `region`.
"""

from __future__ import annotations

import os

from attrs import field, frozen

from accel.errors import UsageError

SIZES = (0, 1, 2, 4, 8)


@frozen(order=True)
class IoEventFd:
    """A doorbell: a write at one place, of one size and perhaps one value, adds 1 to an eventfd.

    Attributes:
        offset: Where in its region; where a listener is told of it, the address in the space.
        size: Bytes of the write, 1, 2, 4 or 8; 0 for a write of any size.
        match: The value that rings, or None for any; with a size of 0 there is none.
        fd: The eventfd. It belongs to whoever added it, and must stay open until it is removed.

    Raises:
        UsageError: The size is another, or the value does not fit into it.
    """

    offset: int
    size: int = field(default=0)
    match: int | None = None
    fd: int = -1

    def __attrs_post_init__(self) -> None:
        if self.size not in SIZES:
            raise UsageError(f"ioeventfd at {self.offset:#x}: size {self.size} is none of 0 (any), 1, 2, 4 and 8")
        if self.match is not None and not (self.size and 0 <= self.match < 1 << 8 * self.size):
            raise UsageError(
                f"ioeventfd at {self.offset:#x}: value {self.match:#x} does not fit into a write of {self.size} bytes"
            )
        if self.fd < 0:
            raise UsageError(f"ioeventfd at {self.offset:#x}: fd {self.fd} is none; give an open eventfd")

    @property
    def key(self) -> tuple[int, int, bool, int]:
        """What two of one region must not share: place, size and value."""
        return self.offset, self.size, self.match is None, self.match or 0

    def rings(self, offset: int, value: int, size: int) -> bool:
        """Return whether a write of `value` at `offset` rings it."""
        return offset == self.offset and self.size in (0, size) and self.match in (None, value)

    def ring(self) -> None:
        """Add 1 to the eventfd, for an accelerator that does not do it by itself; a full one stays as it is."""
        try:
            os.eventfd_write(self.fd, 1)
        except BlockingIOError:
            # The counter is at its limit, so whoever waits for it is awake.
            pass

"""The dirty ring of a vCPU: pages that it wrote, one entry for each write fault, until somebody takes them.

Source: KVM_CAP_DIRTY_LOG_RING and KVM_RESET_DIRTY_RINGS in KVM api.rst. An entry is written by the vCPU, taken by
whoever empties the ring, and free again once the rings are reset, which write-protects its page first. Some entries are
kept for what one stay in the guest writes before the vCPU looks: when no others are free, it comes out.
"""

from __future__ import annotations

from accel_mock.kvm.atomic import atomically

#: Entries that are kept; KVM keeps as many.
RESERVED = 64


class DirtyRing:
    """The ring of one vCPU. Each method is one step.

    Args:
        size: Its entries, more than `reserved`.
        reserved: How many are kept.
    """

    def __init__(self, size: int, reserved: int = RESERVED) -> None:
        self._size = size
        self._room = size - reserved
        # Entries in use, oldest first, of which so many were taken.
        self._entries: list[tuple[int, int]] = []
        self._taken = 0

    @property
    def is_full(self) -> bool:
        """Whether the vCPU has to come out, and to stay out until the rings are reset."""
        return len(self._entries) >= self._room

    @atomically
    def push(self, number: int, page: int) -> None:
        """Note a page of the slot with this number."""
        assert len(self._entries) < self._size, "a vCPU went on with its dirty ring full"
        self._entries.append((number, page))

    @atomically
    def take(self) -> list[tuple[int, int]]:
        """Return slot number and page of each entry that is in use, and mark them as taken.

        If they could not be reset the last time, they come again: those pages were written without a note.
        """
        self._taken = len(self._entries)
        return list(self._entries)

    @atomically
    def reset(self) -> list[tuple[int, int]]:
        """Have the entries that were taken free again; return them, whose pages are to be write-protected."""
        taken, self._entries, self._taken = self._entries[: self._taken], self._entries[self._taken :], 0
        return taken

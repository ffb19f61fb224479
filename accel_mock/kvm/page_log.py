"""Which pages of a slot the guest wrote since somebody asked: one bit a page, handed out once.

Source: KVM_GET_DIRTY_LOG in KVM api.rst. As in KVM's plain log, a bit goes as it is handed out, and the whole bitmap
with its slot: what was not asked for by then is lost.
"""

from __future__ import annotations

from accel.address import PAGE_SIZE
from accel_mock.kvm.atomic import atomically


class PageLog:
    """The bitmap of one slot that logs. Each method is one step.

    Args:
        size: Bytes of the slot, whole pages.
    """

    __slots__ = ("_bits",)

    def __init__(self, size: int) -> None:
        self._bits = bytearray(-(-size // (8 * PAGE_SIZE)))

    @atomically
    def note(self, offset: int) -> None:
        """Note that the page of the byte at `offset` is written from now on."""
        page = offset // PAGE_SIZE
        self._bits[page >> 3] |= 1 << (page & 7)

    @atomically
    def take(self) -> bytearray:
        """Return the bitmap, page n being bit n % 8 of byte n // 8, and go on with an empty one."""
        taken, self._bits = self._bits, bytearray(len(self._bits))
        return taken

"""The host's side of guest memory: which of its pages lies behind an address, and what KVM tells it of their use.

Lowest layer. Addresses and pages are numbers of 4 KiB units. Unless somebody moves it, the page behind an address has
the address's number, so an ordinary run keeps nothing here but the last of what was reported.

A page that is pinned is not given to another address. A page that several addresses share (KSM) is read-only; who
wants to write gets one of its own.
"""

from __future__ import annotations

from collections import Counter

from accel_mock.kvm.atomic import atomically

#: Pages whose use is remembered. As many, and the host has written them back, and looks anew.
KEPT = 1 << 14
#: Pages from here on are behind no address at first.
_FRESH = 1 << 40


class HostPages:
    """The host's pages under one VM. Each method is one step.

    Attributes:
        accessed: Pages that KVM reported as used, by `kvm_set_pfn_accessed`; the last ones, `KEPT` at most.
        dirty: Pages that it reported as written, by `kvm_set_pfn_dirty`; the same.
    """

    def __init__(self) -> None:
        self.accessed: set[int] = set()
        self.dirty: set[int] = set()
        self._behind: dict[int, int | None] = {}
        self._shared: set[int] = set()
        self._pins: Counter[int] = Counter()
        self._fresh = _FRESH

    @atomically
    def fault_in(self, address: int, *, write: bool) -> tuple[int, bool]:
        """Return the page behind `address`, found anew if there is none, and whether it may be written."""
        page = self._behind.get(address, address)
        shared = page is not None and page in self._shared
        if page is None or (shared and write):
            page = self._behind[address] = self._fresh
            self._fresh += 1
            shared = False
        return page, not shared

    @atomically
    def report(self, page: int, *, accessed: bool, dirty: bool) -> None:
        """Hear how a page was used."""
        for used, pages in ((accessed, self.accessed), (dirty, self.dirty)):
            if used:
                if len(pages) >= KEPT:
                    pages.clear()
                pages.add(page)

    # what the host does

    @atomically
    def unmap(self, address: int) -> int | None:
        """Have nothing behind `address`; return what was. Inside a pair of MMU notifiers."""
        page = self._behind.get(address, address)
        self._behind[address] = None
        return page

    @atomically
    def give(self, address: int, page: int) -> None:
        """Put a page behind `address`, where none is."""
        self._behind[address] = page

    @atomically
    def share(self, address: int) -> None:
        """Have the page behind `address` be read-only from now on, since others have it too."""
        page = self._behind.get(address, address)
        if page is not None:
            self._shared.add(page)

    @atomically
    def is_shared(self, page: int) -> bool:
        """Return whether several addresses have this page."""
        return page in self._shared

    @atomically
    def is_free(self, page: int) -> bool:
        """Return whether a page that was unmapped may be given to another address: nobody has it pinned."""
        return not self._pins[page]

    # pins

    @atomically
    def pin(self, address: int) -> int | None:
        """Keep the page behind `address` from being given away, and return it; None if none is there for writing."""
        page = self._behind.get(address, address)
        if page is None or page in self._shared:
            return None
        self._pins[page] += 1
        return page

    @atomically
    def unpin(self, page: int) -> None:
        """End one pin."""
        self._pins[page] -= 1

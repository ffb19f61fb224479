"""Which addresses RAM served, generation by generation: what tells a spurious fault from a rightful one.

A **spurious fault** is an exit at an address that was served for that kind of access in every generation of the
map from the vCPU's entry to its exit, before and after a change alike. After a change that failed is what was before
it, so the map that it would have made counts for nobody: who met a gap then has met one in memory that never went. The
judge keeps the views that a running vCPU may still be measured against, and forgets the rest. It judges under the big
lock, which a change holds to its end, so it knows what came of each change that an exit fell into.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from accel.address import align_down
from accel.memory.flat_view import EMPTY_VIEW, FlatView

#: Views and sections kept at most; a vCPU that stays inside for longer is given the benefit of the doubt.
MAX_VIEWS = 4096
MAX_SECTIONS = 1_000_000


def serves(view: FlatView, address: int, size: int, *, is_write: bool, page_size: int) -> bool:
    """Return whether an accelerator that maps whole pages of RAM serves this access in `view` by itself."""
    for byte in (address, address + size - 1):
        section = view.find(byte)
        if section is None or not section.is_ram or (is_write and section.maps_readonly):
            return False
        page = align_down(byte, page_size)
        if page < section.range.start or page + page_size > section.range.end:
            return False
        if (section.host_address + page - section.range.start) % page_size:
            # Askew to the host's pages, so no accelerator can be asked to map it.
            return False
    return True


class ServedHistory:
    """The generations of one space's map.

    `start`, `take_back` and `complete` are called under the big lock. `completed` and `started` are read by vCPU
    threads without a lock, the first after entering a gate, the second before leaving it.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.completed = 0
        self.started = 0
        self._views: deque[tuple[int, FlatView]] = deque([(0, EMPTY_VIEW)])
        self._section_count = 0

    def start(self, view: FlatView) -> None:
        """Note that the map is about to become `view`."""
        self._views.append((self.started + 1, view))
        self._section_count += len(view)
        self.started += 1

    def take_back(self) -> None:
        """Note that the change that was started last failed: what was in force before it was so all the time."""
        generation, view = self._views.pop()
        before = self._views[-1][1]
        self._views.append((generation, before))
        self._section_count += len(before) - len(view)

    def complete(self, entered: Iterable[int]) -> None:
        """Note that the map is what was started last; forget views older than all generations in `entered`."""
        self.completed = self.started
        oldest = min((self.completed, *entered))
        while len(self._views) > 1 and (
            self._views[0][0] < oldest or len(self._views) > MAX_VIEWS or self._section_count > MAX_SECTIONS
        ):
            self._section_count -= len(self._views.popleft()[1])

    def is_spurious(self, entered: int, exited: int, address: int, size: int, *, is_write: bool) -> bool:
        """Return whether an exit at `address` should not have happened; needs the big lock.

        Args:
            entered: `completed` when the vCPU entered.
            exited: `started` when it came out.
            address: Guest-physical address of the access.
            size: Bytes.
            is_write: Whether it was a write.
        """
        if self._views[0][0] > entered:
            return False
        return all(
            serves(view, address, size, is_write=is_write, page_size=self.page_size)
            for generation, view in self._views
            if entered <= generation <= exited
        )

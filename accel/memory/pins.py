"""Pins: which host memory the published views show, so that nobody unmaps what an accelerator may have mapped.

A block is retained once for each section that shows it, from before the section's view is made real until after it
is gone from the accelerator. Layer: below `transaction`; above `flat_view`. Guarded by the big lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from accel.memory.flat_view import MemoryRegionSection
from accel.memory.ram_block import RamBlock
from accel.memory.user_fault import handled_blocks


class Pins:
    """How many sections show each block."""

    def __init__(self) -> None:
        self._counts: Counter[RamBlock] = Counter()

    def take(self, sections: Iterable[MemoryRegionSection]) -> None:
        """Retain what `sections` show.

        Raises:
            ClosedError: The memory of one is released; nothing has changed.
        """
        taken = []
        try:
            for section in sections:
                if section.region.block is not None:
                    section.region.block.retain()
                    self._counts[section.region.block] += 1
                    taken.append(section)
        except BaseException:
            self.drop(taken)
            raise

    def drop(self, sections: Iterable[MemoryRegionSection]) -> None:
        """Take back one `take` of the same sections."""
        for section in sections:
            block = section.region.block
            if block is not None:
                block.release()
                self._counts[block] -= 1
                if not self._counts[block]:
                    del self._counts[block]

    def clear(self) -> None:
        """Take everything back: the accelerator's side is gone."""
        for block in self._counts.elements():
            block.release()
        self._counts.clear()

    @property
    def user_faults(self) -> bool:
        """Whether one of the blocks has a user-fault handler. O(handlers in the process)."""
        return any(block in self._counts for block in handled_blocks())

    def __getitem__(self, block: RamBlock) -> int:
        """Return how many sections show `block`."""
        return self._counts[block]

"""Four ways to take what the shadow page table has of a memslot that goes, as KVM has had them, with what each costs.

- `ZapSlot`: only the entries of the slot (4e103134b8623, reverted in d012a06ab1d23 for a regression with assigned
  devices that was never explained).
- `ZapAll`, yielding: everything, giving the lock up for who waits and beginning again. vCPUs make new pages meanwhile,
  so with enough of them it never ends: the livelock that 002c5f73c5 reports.
- `ZapAll`, not yielding: ends, but holds the lock for as long as there are pages.
- `FastInvalidate`: makes all pages obsolete by one number, then frees those of the old generation, giving the lock up.
  Pages made meanwhile are of the new one, so it ends (002c5f73c5).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from attrs import define

from accel_mock.kvm.running import HANDOVER_SECONDS
from accel_mock.kvm.spte import Spte

if TYPE_CHECKING:
    from accel_mock.kvm.mmu import ShadowMmu
    from accel_mock.kvm.slot_map import MemSlot


class ShadowPage:
    """The entries of 2 MiB of guest memory, made in one generation; by guest page. Changed under the MMU lock."""

    __slots__ = ("entries", "generation")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.entries: dict[int, Spte] = {}


@define
class ZapCost:
    """What zapping has cost so far.

    Attributes:
        zaps: Slots that went.
        entries: Entries that were zapped.
        holds: Times that the MMU lock was taken.
        longest: Most entries that were zapped in one hold.
        restarts: Times that it began again after giving way.
    """

    zaps: int = 0
    entries: int = 0
    holds: int = 0
    longest: int = 0
    restarts: int = 0


class ZapStrategy(Protocol):
    """A way to zap.

    Attributes:
        cost: What it has cost.
    """

    cost: ZapCost

    def zap(self, mmu: ShadowMmu, slot: MemSlot) -> None:
        """Zap at least the entries of `slot`."""


class _Hold:
    """One hold of the MMU lock, which counts."""

    def __init__(self, mmu: ShadowMmu, cost: ZapCost) -> None:
        self._mmu = mmu
        self._cost = cost
        self._entries = 0

    def __enter__(self) -> _Hold:
        self._mmu.lock.acquire()
        self._cost.holds += 1
        return self

    def page(self, key: tuple[int, int]) -> None:
        """Zap a whole page."""
        self.count(self._mmu.drop_page(key))

    def count(self, entries: int) -> None:
        """Count what was zapped."""
        self._entries += entries
        self._cost.entries += entries
        self._cost.longest = max(self._cost.longest, self._entries)

    def __exit__(self, *what: object) -> None:
        self._mmu.lock.release()


def _give_way(cost: ZapCost) -> None:
    """Let who waits for the lock have it; it was released."""
    cost.restarts += 1
    time.sleep(HANDOVER_SECONDS)


class ZapSlot:
    """Zap the slot's own entries."""

    def __init__(self) -> None:
        self.cost = ZapCost()

    def zap(self, mmu: ShadowMmu, slot: MemSlot) -> None:
        """See `ZapStrategy`; one hold, as long as the slot has entries."""
        self.cost.zaps += 1
        with _Hold(mmu, self.cost) as hold:
            hold.count(mmu.drop_slot(slot))


class ZapAll:
    """Zap everything.

    Args:
        yields: Whether it gives the lock up for who waits, and begins again.
    """

    def __init__(self, *, yields: bool) -> None:
        self.cost = ZapCost()
        self._yields = yields

    def zap(self, mmu: ShadowMmu, slot: MemSlot) -> None:
        """See `ZapStrategy`."""
        self.cost.zaps += 1
        while not self._some(mmu):
            _give_way(self.cost)

    def _some(self, mmu: ShadowMmu) -> bool:
        """Zap until nothing is left, or somebody waits; return whether nothing is."""
        with _Hold(mmu, self.cost) as hold:
            while mmu.pages:
                hold.page(next(iter(mmu.pages)))
                if self._yields and mmu.waiting and mmu.pages:
                    return False
        return True


class FastInvalidate:
    """Make everything obsolete, then zap it page by page."""

    def __init__(self) -> None:
        self.cost = ZapCost()

    def zap(self, mmu: ShadowMmu, slot: MemSlot) -> None:
        """See `ZapStrategy`."""
        self.cost.zaps += 1
        with _Hold(mmu, self.cost):
            mmu.generation += 1
        while not self._some(mmu):
            _give_way(self.cost)

    def _some(self, mmu: ShadowMmu) -> bool:
        """Zap obsolete pages until none is left or somebody waits; return whether none is."""
        with _Hold(mmu, self.cost) as hold:
            while mmu.pages:
                # Pages made since the generation began stand behind all that are obsolete.
                oldest = next(iter(mmu.pages))
                if mmu.pages[oldest].generation == mmu.generation:
                    break
                hold.page(oldest)
                if mmu.waiting and mmu.pages:
                    return False
        return True

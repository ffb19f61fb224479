"""Scenarios of the four ways to zap a memslot that goes, while a vCPU faults: does it end, and is the slot gone?

The lock is as fair as can be: between two holds of who zaps, whoever waits gets it once, and nobody gets it twice. So
what does not end here does not end although everybody gets his turn: it is a fair adversary and no unfair schedule. The
one preemption that the endless way takes is for somebody to wait in the first hold. A vCPU that makes pages as fast as
they go is enough; on a real machine, where a page fault takes longer than a zap, it takes several.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from accel.address import PAGE_SIZE
from accel.testing.explore.scenario import require, scenario
from accel.testing.explore.world import Patch
from accel_mock.kvm.zap import FastInvalidate, ZapAll, ZapSlot, ZapStrategy
from accel_mock.scenarios.hall import LOW, OLD, Hall
from accel_mock.scenarios.pages import MMU

_ZAP = "accel_mock.kvm.zap"
#: A shadow page has one entry, so that a few pages of memory are many; and who gives way sleeps for the others' sake in
#: an interpreter that lets one thread go at a time, which this lock does better.
_SMALL = (
    Patch("accel_mock.kvm.mmu", "_ENTRIES_SHIFT = 9", "_ENTRIES_SHIFT = 0"),
    Patch(_ZAP, "    time.sleep(HANDOVER_SECONDS)", "    pass"),
)
#: Where what the vCPUs fault on is, and how many pages: more than they get to.
_CROWD, _PAGES = 0x10_0000, 256


class _Turns:
    """The MMU lock, with turns: whoever wants it gets it once between two holds of `first`, and nobody gets it twice.

    Attributes:
        first: The thread that zaps; 0 if nobody does any more, and there are no turns.
    """

    def __init__(self) -> None:
        self.first = 0
        self._changed = threading.Condition()
        self._held = False
        self._wanted: set[int] = set()
        self._served: set[int] = set()

    def acquire(self) -> bool:
        me = threading.get_ident()
        with self._changed:
            self._wanted.add(me)
            self._changed.wait_for(lambda: not self._held and self._is_turn(me))
            self._wanted.remove(me)
            self._held = True
            if me == self.first:
                self._served.clear()
            elif self.first:
                self._served.add(me)
        return True

    def _is_turn(self, me: int) -> bool:
        if me == self.first:
            return self._wanted <= self._served | {me}
        return not self.first or me not in self._served

    def release(self) -> None:
        with self._changed:
            self._held = False
            self._changed.notify_all()

    def end(self) -> None:
        """Have no turns any more."""
        with self._changed:
            self.first = 0
            self._changed.notify_all()

    __enter__ = acquire

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class _Zap:
    """A slot of two pages that are mapped, and vCPUs that fault on page after page of another one meanwhile."""

    vcpus = 1

    def __init__(self) -> None:
        self.hall = Hall()
        self.memslots = self.hall.memslots
        self.mmu = self.memslots.mmu
        self.slot = self.hall.map(0, LOW, OLD, pages=2)
        self.hall.map(1, _CROWD, OLD, pages=_PAGES)
        for page in range(2):
            self.mmu.fault(LOW + page * PAGE_SIZE, write=False)
        self.mmu.strategy = self.way()
        self.lock = _Turns()
        self.mmu.lock = self.lock  # type: ignore[assignment]
        self.begun = threading.Event()
        self.over = False

    def way(self) -> ZapStrategy:
        raise NotImplementedError

    def threads(self) -> dict[str, Callable[[], object]]:
        crowd = {f"vCPU {n}": (lambda n=n: self.fault(n)) for n in range(self.vcpus)}
        return {"zapper": self.zap, **crowd}

    def zap(self) -> None:
        self.lock.first = threading.get_ident()
        self.begun.set()
        gone = self.memslots.table.find(LOW)
        assert gone is not None
        self.mmu.zap(gone)
        self.over = True
        self.lock.end()

    def fault(self, number: int) -> None:
        """Fault on one page after the other as long as somebody zaps."""
        self.begun.wait()
        for page in range(number, _PAGES, self.vcpus):
            if self.over:
                return
            self.mmu.fault(_CROWD + page * PAGE_SIZE, write=False)

    def check(self) -> None:
        left = [page for page in range(2) if self.mmu.entry(LOW // PAGE_SIZE + page) is not None]
        require(not left, f"pages {left} of the slot are still mapped")
        gone = self.memslots.table.find(LOW)
        assert gone is not None
        require(not self.mmu.entries_of(gone), "an obsolete entry of the slot was left behind")


@scenario("mock/zap-slot", instrument=MMU, patches=_SMALL)
class ZapOfSlot(_Zap):
    """One thread zaps a slot's own entries while a vCPU faults: it ends, and the slot is gone."""

    def way(self) -> ZapStrategy:
        return ZapSlot()


@scenario("mock/zap-fast", instrument=MMU, bound=1, patches=_SMALL)
class ZapFast(_Zap):
    """One thread makes all pages obsolete, then zaps those, giving way to a vCPU that faults: it ends."""

    def way(self) -> ZapStrategy:
        return FastInvalidate()


@scenario("mock/zap-all", instrument=MMU, patches=_SMALL)
class ZapOfAll(_Zap):
    """One thread zaps everything in one hold while a vCPU faults: it ends, and the vCPU waits for all of it."""

    def way(self) -> ZapStrategy:
        return ZapAll(yields=False)


@scenario("mock/zap-all-wrong-yields", instrument=MMU, limit=1500, wrong="livelock", patches=_SMALL)
class ZapOfAllYields(_Zap):
    """The same giving way to who waits, and beginning again: new pages come as fast as old ones go, for ever."""

    def way(self) -> ZapStrategy:
        return ZapAll(yields=True)

"""Scenarios of changes that take several slot calls: two slots become one, or give way to two others, under each hold.

A merge is DELETE m1, DELETE m2, CREATE m1+m2. Nothing of its memory changes, so a guest must see nothing of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from accel.address import PAGE_SIZE, AddressRange
from accel.blocker import AccelBlocker
from accel.exits import ExitKind
from accel.locks import BIG_LOCK, Lock
from accel.testing.explore.scenario import require, scenario
from accel_mock.kvm.memslots import Region
from accel_mock.scenarios.hall import BLOCKER, HIGH, HOLE, LOW, MODEL, NEW, OLD, PROMPT, Hall, slot_of


class _Merge:
    """A vCPU that looks at the second of two slots, and a thread that merges them."""

    looks: tuple[int, ...] = (HIGH, HIGH)

    def __init__(self) -> None:
        self.hall = Hall()
        self.memslots = self.hall.memslots
        self.merged = slot_of(LOW, OLD, pages=2)
        self.parts = [self.merged.part(AddressRange.sized(at, PAGE_SIZE)) for at in (LOW, HIGH)]
        for number, part in enumerate(self.parts):
            self.memslots.create(number, part)
        self.guest = self.hall.vcpu(*self.looks)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"updater": self.update, "vCPU": self.run}

    def update(self) -> None:
        raise NotImplementedError

    def merge(self) -> None:
        """Make the three calls."""
        for number, part in enumerate(self.parts):
            self.memslots.delete(number, part)
        self.memslots.create(0, self.merged)

    def run(self) -> None:
        self.guest.run()

    def check(self) -> None:
        require(self.guest.seen == [OLD] * len(self.looks), "the guest met the gap of a merge")
        require([one.slot for one in self.memslots.table.slots] == [self.merged], "the slots are not merged")


@scenario("mock/merge-wrong-unsafe", instrument=MODEL, wrong="invariant", patches=PROMPT)
class MergeUnsafe(_Merge):
    """Two slots are merged under a vCPU that nobody holds: it finds a hole where memory was all the time."""

    def update(self) -> None:
        self.merge()


@scenario("mock/merge-region-list", instrument=MODEL, patches=PROMPT)
class MergeRegionList(_Merge):
    """Two slots are merged by one list of changes under a vCPU that nobody holds: it sees memory all the time."""

    def update(self) -> None:
        self.memslots.apply_list([Region(0, None), Region(1, None), Region(0, self.merged)])


@scenario("mock/merge-inhibit", instrument=(*MODEL, *BLOCKER), patches=PROMPT)
class MergeInhibit(_Merge):
    """Two slots are merged while the accel-blocker holds the vCPU outside: it sees memory all the time."""

    looks = (HIGH, HIGH)

    def __init__(self) -> None:
        super().__init__()
        self.big_lock = Lock(BIG_LOCK)
        self.blocker = AccelBlocker(self.big_lock)
        self.gate = self.blocker.add_gate("vCPU 0", self.guest.vcpu.kick)

    def update(self) -> None:
        with self.big_lock, self.blocker.inhibit(10.0):
            self.merge()

    def run(self) -> None:
        gate = self.gate
        gate.thread_id = threading.get_native_id()
        kind = ExitKind.INTERRUPTED
        while kind != ExitKind.HALT:
            gate.enter()
            kind = self.guest.enter()
            if kind == ExitKind.INTERRUPTED:
                gate.step_out()
            else:
                gate.leave()


@scenario("mock/merge-kick-all", instrument=MODEL, patches=PROMPT)
class MergeKickAll(_Merge):
    """Two slots are merged while all vCPUs are kicked and kept out by the kernel: the vCPU sees memory all the time."""

    def update(self) -> None:
        require(not self.hall.running.kick_all(10.0), "a vCPU did not come out")
        self.merge()
        self.hall.running.resume_all()


@scenario("mock/region-list", instrument=MODEL, patches=PROMPT)
class RegionList(_Merge):
    """A list of changes puts two other slots in the place of two: a vCPU that sees one of them new finds both new."""

    # The first look leaves a translation of the second slot, which must not outlive it.
    looks = (HIGH, LOW, HIGH)

    def __init__(self) -> None:
        super().__init__()
        self.others = [slot_of(LOW, NEW), slot_of(HIGH, NEW)]

    def update(self) -> None:
        gone = [Region(number, None) for number in range(2)]
        self.memslots.apply_list([*gone, *(Region(number, slot) for number, slot in enumerate(self.others))])

    def check(self) -> None:
        require(HOLE not in self.guest.seen, "the guest met a gap")
        require(self.guest.seen == sorted(self.guest.seen), "the guest saw half of a list")


@scenario("mock/region-list-wrong-one-by-one", instrument=MODEL, wrong="invariant", patches=PROMPT)
class RegionListOneByOne(RegionList):
    """The same with a list for each of the two places: the vCPU sees one of them new, and then the other old."""

    def update(self) -> None:
        for number, slot in enumerate(self.others):
            self.memslots.apply_list([Region(number, None), Region(number, slot)])

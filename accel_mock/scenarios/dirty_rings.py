"""Scenarios of dirty rings: the order in which pages are taken, reset and read, and a ring that is full."""

from __future__ import annotations

from collections.abc import Callable

from accel.exits import ExitKind
from accel.testing.explore.scenario import require, scenario
from accel.testing.explore.world import Patch
from accel_mock.kvm.dirty_ring import DirtyRing
from accel_mock.scenarios.hall import HIGH, LOW, OLD, Hall, logged, slot_of
from accel_mock.scenarios.pages import MMU, QUICK, Page

RING = (*MMU, "accel_mock.kvm.dirty_ring")


class _Ringed(Page):
    """A page of a VM whose one vCPU has a dirty ring, and writes two bytes to it."""

    logs = True

    def __init__(self) -> None:
        super().__init__()
        self.ring = DirtyRing(8, 2)
        self.memslots.rings.append(self.ring)
        self.guest = self.writer(1, 2)
        self.guest.vcpu.dirty_ring = self.ring


@scenario("mock/dirty-ring-reset", instrument=RING, patches=QUICK)
class DirtyRingReset(_Ringed):
    """A page is copied as the ring tells while a vCPU writes it: taken, reset, read. The copy is what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.copy = self.byte()

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"vCPU": self.guest.run, "copier": self.collect}

    def collect(self) -> None:
        written = self.ring.take()
        self.memslots.reset_rings()
        if written:
            self.copy = self.byte()

    def check(self) -> None:
        self.collect()
        require(
            self.copy == self.byte(), f"the copy has {self.copy}, the guest wrote {self.byte()} and no ring says so"
        )


@scenario("mock/dirty-ring-reset-wrong-read-first", instrument=RING, wrong="invariant", patches=QUICK)
class DirtyRingReadFirst(DirtyRingReset):
    """The same where the page is read before the reset: what is written in between is in no ring."""

    def collect(self) -> None:
        if self.ring.take():
            self.copy = self.byte()
        self.memslots.reset_rings()


@scenario("mock/dirty-ring-full", instrument=RING, patches=QUICK)
class DirtyRingFull:
    """A vCPU writes two pages with room for one in its ring, while another thread empties it: it comes out in time."""

    def __init__(self) -> None:
        self.hall = Hall()
        self.slot = logged(slot_of(LOW, OLD, 2))
        self.hall.memslots.create(0, self.slot)
        self.ring = DirtyRing(1, 0)
        self.hall.memslots.rings.append(self.ring)
        self.guest = self.hall.vcpu(LOW, HIGH, write=True)
        self.guest.vcpu.dirty_ring = self.ring
        self.noted: list[tuple[int, int]] = []

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"vCPU": self.run, "emptier": self.empty}

    def run(self) -> None:
        while (kind := self.guest.enter()) != ExitKind.HALT:
            require(kind == ExitKind.DIRTY_RING_FULL, f"the vCPU comes out with {kind.name}")
            self.empty()

    def empty(self) -> None:
        self.noted += self.ring.take()
        self.hall.memslots.reset_rings()

    def check(self) -> None:
        self.empty()
        require(
            {page for _, page in self.noted} == {0, 1}, f"the guest wrote both pages, and the ring had {self.noted}"
        )


@scenario(
    "mock/dirty-ring-full-wrong-goes-on",
    instrument=RING,
    wrong="invariant",
    patches=(
        *QUICK,
        Patch(
            "accel_mock.kvm.dirty_ring",
            '        assert len(self._entries) < self._size, "a vCPU went on with its dirty ring full"\n',
            "        if len(self._entries) == self._size:\n            self._entries.pop(0)\n",
        ),
        Patch(
            "accel_mock.vcpu",
            "if self._ring_is_full():\n            self.attention = True",
            "pass",
        ),
    ),
)
class DirtyRingGoesOn(DirtyRingFull):
    """The same where the vCPU does not look at its ring: an entry is written over."""

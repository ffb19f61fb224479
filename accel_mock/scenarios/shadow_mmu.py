"""Scenarios of the shadow MMU: TLB, entry, slot, host page; nobody uses a page that is gone, no write is missed."""

from __future__ import annotations

from collections.abc import Callable

from accel.testing.explore.scenario import require, scenario
from accel.testing.explore.world import Patch
from accel_mock.scenarios.hall import LOW, OLD
from accel_mock.scenarios.pages import MMU, NO_FLUSH, NO_ZAP, QUICK, Page

_MEMSLOTS = "accel_mock.kvm.memslots"


@scenario("mock/tlb", instrument=MMU, bound=1, patches=QUICK)
class Tlb(Page):
    """The host takes a page away that two vCPUs use: neither uses it until it is back."""

    def __init__(self) -> None:
        super().__init__()
        self.touch(write=True)
        self.guests = [self.reader(2), self.writer(OLD)]

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"host": self.take, "vCPU 0": self.guests[0].run, "vCPU 1": self.guests[1].run}

    def take(self) -> None:
        with self.taken_away():
            pass

    def check(self) -> None:
        seen = {byte for guest in self.guests for byte in guest.seen}
        require(seen <= {OLD}, f"the guests saw {seen}")


@scenario("mock/tlb-wrong-no-flush", instrument=MMU, wrong="invariant", patches=(*QUICK, NO_FLUSH))
class TlbNoFlush(Tlb):
    """The same where the notifier leaves TLBs alone: a vCPU uses the page by a translation that it still has."""


@scenario("mock/tlb-wrong-no-zap", instrument=MMU, wrong="invariant", patches=(*QUICK, NO_ZAP))
class TlbNoZap(Tlb):
    """The same where it leaves the entry alone: a vCPU whose TLB was flushed walks to the page again."""


@scenario("mock/tlb-delete", instrument=MMU, bound=1, patches=QUICK)
class TlbDelete(Page):
    """A slot that two vCPUs use is deleted and its memory freed: both see memory, then a hole, and nothing freed."""

    def __init__(self) -> None:
        super().__init__()
        self.touch(write=True)
        self.guests = [self.reader(2), self.writer(OLD)]

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"updater": self.delete, "vCPU 0": self.guests[0].run, "vCPU 1": self.guests[1].run}

    def delete(self) -> None:
        self.memslots.delete(0, self.slot)
        self.hall.released.add(LOW)

    def check(self) -> None:
        for guest in self.guests:
            require(guest.seen == sorted(guest.seen, reverse=True), f"a guest saw {guest.seen}")


@scenario(
    "mock/tlb-delete-wrong-no-zap",
    instrument=MMU,
    wrong="invariant",
    patches=(*QUICK, Patch(_MEMSLOTS, "            self.mmu.zap(old)", "            pass")),
)
class TlbDeleteNoZap(TlbDelete):
    """The same where entries stay: the processor walks to the freed page, and looks at no slot on the way."""


@scenario("mock/write-protect", instrument=MMU, patches=QUICK)
class WriteProtect(Page):
    """Pages are copied as the log tells while a vCPU writes: at the end the copy is what the guest wrote."""

    logs = True
    vcpus = 1

    def __init__(self) -> None:
        super().__init__()
        self.guests = [self.writer(1 + 2 * n, 2 + 2 * n) for n in range(self.vcpus)]
        self.copy = self.byte()

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"copier": self.collect, **{f"vCPU {n}": guest.run for n, guest in enumerate(self.guests)}}

    def collect(self) -> None:
        if self.memslots.take_dirty(0, self.slot)[0]:
            self.copy = self.byte()

    def check(self) -> None:
        self.collect()
        require(self.copy == self.byte(), f"the copy has {self.copy}, the guest wrote {self.byte()} and no log says so")


@scenario(
    "mock/write-protect-wrong-no-flush",
    instrument=MMU,
    wrong="invariant",
    patches=(
        *QUICK,
        Patch(
            _MEMSLOTS,
            "                self.mmu.write_protect(found, taken)\n                self._running.flush()",
            "                self.mmu.write_protect(found, taken)",
        ),
    ),
)
class WriteProtectNoFlush(WriteProtect):
    """The same where entries become read-only and TLBs are not flushed: a write by a stale one is in no log."""

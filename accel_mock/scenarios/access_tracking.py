"""Scenarios of access tracking without Accessed bits: an entry is not present until the page is used again.

R and X wait in bits that the processor ignores, and come back on the fast path. W does not: it comes back with a write,
which dirty tracking sees.
"""

from __future__ import annotations

from collections.abc import Callable

from accel.testing.explore.scenario import require, scenario
from accel.testing.explore.world import Patch
from accel_mock.scenarios.pages import MMU, QUICK, Page

_SPTE = "accel_mock.kvm.spte"
_MMU = "accel_mock.kvm.mmu"
_FAST = "accel_mock.kvm.fast_fault"
#: A bit more for W, kept with R and X and given back with them.
_KEEPS_W = (
    Patch(
        _SPTE,
        "saved = SAVED_READ | (SAVED_EXECUTE if word & EXECUTABLE else 0)",
        "saved = SAVED_READ | (SAVED_EXECUTE if word & EXECUTABLE else 0) | (1 << 10 if word & WRITABLE else 0)",
    ),
    Patch(
        _SPTE,
        "back = PRESENT | (EXECUTABLE if word & SAVED_EXECUTE else 0)",
        "back = PRESENT | (EXECUTABLE if word & SAVED_EXECUTE else 0) | (WRITABLE if word & 1 << 10 else 0)",
    ),
)


class _Tracked(Page):
    """A page of a VM whose processors set no Accessed and no Dirty bits."""

    def __init__(self) -> None:
        super().__init__()
        self.mmu.no_ad = True

    def age(self) -> bool:
        """Return whether the page was used since this was asked, as the host's notifier does."""
        return self.mmu.age_host(*self.range)


@scenario("mock/access-tracking", instrument=MMU, patches=QUICK)
class AccessTracking(_Tracked):
    """The host asks whether a page was used while a vCPU uses it: no use after that goes unseen."""

    def __init__(self) -> None:
        super().__init__()
        self.touch()
        self.guest = self.reader(2)
        self.guest.found = self.found
        self.asked = False
        self.used = False

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"vCPU": self.guest.run, "host": self.ask}

    def ask(self) -> None:
        self.age()
        self.asked = True

    def found(self) -> None:
        self.used = self.used or self.asked

    def check(self) -> None:
        require(self.age() or not self.used, "the guest used a page since the host asked, and no entry tells")


@scenario(
    "mock/access-tracking-wrong-no-flush",
    instrument=MMU,
    wrong="invariant",
    patches=(
        *QUICK,
        Patch(_MMU, "        self._running.flush()\n        return any(aged)", "        return any(aged)"),
    ),
)
class AccessTrackingNoFlush(AccessTracking):
    """The same where TLBs are left alone: the vCPU uses the page by a translation, and no entry tells."""


@scenario("mock/access-tracking-log", instrument=MMU, patches=QUICK)
class AccessTrackingLog(_Tracked):
    """A watched page is copied as the log tells while a vCPU reads and writes it: the copy is what was written."""

    logs = True

    def __init__(self) -> None:
        super().__init__()
        self.touch(write=True)
        self.age()
        self.copy = self.byte()
        self.guest = self.user(None, 1)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"vCPU": self.guest.run, "copier": self.collect}

    def collect(self) -> None:
        if self.memslots.take_dirty(0, self.slot)[0]:
            self.copy = self.byte()

    def check(self) -> None:
        self.collect()
        require(self.copy == self.byte(), f"the copy has {self.copy}, the guest wrote {self.byte()} and no log says so")


@scenario(
    "mock/access-tracking-log-wrong-keeps-w",
    instrument=MMU,
    wrong="invariant",
    patches=(*QUICK, *_KEEPS_W, Patch(_FAST, "if new & ~old & WRITABLE:", "if write and new & ~old & WRITABLE:")),
)
class AccessTrackingKeepsW(AccessTrackingLog):
    """The same where W is kept with R and X, and a read gives it back: the write after that is in no log."""


@scenario("mock/access-tracking-watched", instrument=MMU, patches=QUICK)
class AccessTrackingWatched(_Tracked):
    """KVM begins to shadow a page table while a vCPU reads and writes it, tracked before: then KVM sees each write."""

    def __init__(self) -> None:
        super().__init__()
        self.touch(write=True)
        self.age()
        self.guest = self.user(None, 1)
        self.guest.found = self.found
        self.shadowed = False
        self.reads = True

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"vCPU": self.guest.run, "watcher": self.watch}

    def watch(self) -> None:
        self.mmu.watch(self.number)
        self.shadowed = True

    def found(self) -> None:
        require(self.reads or not self.shadowed, "the guest writes to a page table that KVM shadows, unseen")
        self.reads = False

    def check(self) -> None:
        pass


@scenario("mock/access-tracking-watched-wrong-keeps-w", instrument=MMU, wrong="invariant", patches=(*QUICK, *_KEEPS_W))
class AccessTrackingWatchedKeepsW(AccessTrackingWatched):
    """The same where W is kept with R and X, and a read gives it back to an entry that must not have it any more."""


@scenario("mock/access-tracking-restore", instrument=MMU, patches=QUICK)
class AccessTrackingRestore(_Tracked):
    """The host takes a watched page away while a vCPU gets R and X back on the fast path: the page is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.touch()
        self.age()
        self.guest = self.reader(2)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"vCPU": self.guest.run, "host": self.take}

    def take(self) -> None:
        with self.taken_away():
            pass

    def check(self) -> None:
        pass


@scenario(
    "mock/access-tracking-restore-wrong-store",
    instrument=MMU,
    wrong="invariant",
    patches=(
        *QUICK,
        Patch(
            _FAST,
            "        return spte.compare_exchange(old, new)",
            "        spte.word = new\n        return True",
        ),
    ),
)
class AccessTrackingStore(AccessTrackingRestore):
    """The same where they are stored back: an entry that was zapped meanwhile is there again."""


@scenario("mock/access-tracking-dirty", instrument=MMU, patches=QUICK)
class AccessTrackingDirty(_Tracked):
    """The host asks whether a page was used while a vCPU writes it, and W goes: it hears that the page is dirty."""

    logs = True

    def __init__(self) -> None:
        super().__init__()
        self.touch()
        self.guest = self.writer(1)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"vCPU": self.guest.run, "host": self.age}

    def check(self) -> None:
        with self.memslots.notifiers.invalidating(*self.range):
            pass
        require(self.mmu.host.dirty, "the guest wrote the page, and the host was never told")


@scenario(
    "mock/access-tracking-dirty-wrong-not-told",
    instrument=MMU,
    wrong="invariant",
    patches=(
        *QUICK,
        Patch(_MMU, "                if word & NO_AD and was_written(word):", "                if False:"),
    ),
)
class AccessTrackingNotTold(AccessTrackingDirty):
    """The same where nobody tells the host of W as it goes, and that was all that told of a write."""


@scenario(
    "mock/access-tracking-dirty-wrong-not-atomic",
    instrument=MMU,
    wrong="invariant",
    patches=(
        *QUICK,
        Patch(
            _MMU,
            "            if spte.compare_exchange(word, tracked(word) if word & NO_AD else word & ~ACCESSED):",
            "            spte.word = tracked(word) if word & NO_AD else word & ~ACCESSED\n            if True:",
        ),
    ),
)
class AccessTrackingNotAtomic(AccessTrackingDirty):
    """The same where the entry is read and then stored: W that a vCPU got in between goes, and nobody is told."""

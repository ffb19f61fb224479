"""Scenarios of the fast path of page faults: what it may change without the MMU lock, and what goes wrong otherwise.

The tables of the kernel's locking page are here: ABA is `mock/fast-fault-indirect-wrong-aba`, and the lost Dirty bit is
`mock/dirty-bit-wrong-not-atomic`.
"""

from __future__ import annotations

from collections.abc import Callable

from accel.address import PAGE_SIZE
from accel.testing.explore.scenario import require, scenario
from accel.testing.explore.world import Patch
from accel_mock.kvm.fast_fault import FastPath, PinnedPath
from accel_mock.kvm.indirect import IndirectPage
from accel_mock.kvm.spte import DIRTY, HOST_WRITABLE, MMU_WRITABLE, WRITABLE, pfn_of, was_written
from accel_mock.scenarios.hall import LOW, OLD, Hall, logged, slot_of
from accel_mock.scenarios.pages import MMU, QUICK, Page, User
from accel_mock.scenarios.shadow_mmu import WriteProtect

_FAST = "accel_mock.kvm.fast_fault"


class Protected(Page):
    """A page that is mapped read-only for the log, and a vCPU that writes it."""

    logs = True
    writes: tuple[int, ...] = (1, 2)

    def __init__(self) -> None:
        super().__init__()
        self.touch()
        self.guest: User = self.writer(*self.writes)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"vCPU": self.guest.run, "host": self.act}

    def act(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        pass


@scenario("mock/fast-fault", instrument=MMU, patches=QUICK)
class FastFault(Protected):
    """The host takes a page away while a vCPU makes its entry writable on the fast path: the page is not used."""

    def act(self) -> None:
        with self.taken_away():
            pass


@scenario(
    "mock/fast-fault-wrong-store",
    instrument=MMU,
    wrong="invariant",
    patches=(
        *QUICK,
        Patch(_FAST, "        return spte.compare_exchange(old, new)", "        spte.word = new\n        return True"),
    ),
)
class FastFaultStore(FastFault):
    """The same where the entry is stored, not compared and exchanged: one that was zapped meanwhile is there again."""


@scenario("mock/fast-fault-log", instrument=MMU, bound=1, patches=QUICK)
class FastFaultLog(WriteProtect):
    """Two vCPUs make an entry writable on the fast path while pages are copied as the log tells: no write is missed."""

    vcpus = 2

    def __init__(self) -> None:
        super().__init__()
        self.touch()


@scenario(
    "mock/fast-fault-log-wrong-no-note",
    instrument=MMU,
    wrong="invariant",
    patches=(*QUICK, Patch(_FAST, "        if new & ~old & WRITABLE:\n            written()\n", "")),
)
class FastFaultNoNote(FastFaultLog):
    """The same where who gives W does not note the page as written."""


@scenario("mock/fast-fault-shared", instrument=MMU, patches=QUICK)
class FastFaultShared(Page):
    """The host lets others share a page while a vCPU reads and writes it: no writable entry leads to a shared page."""

    needs = HOST_WRITABLE | MMU_WRITABLE

    def __init__(self) -> None:
        super().__init__()
        self.mmu.fast.needs = self.needs
        self.guest = self.user(None, 1)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"vCPU": self.guest.run, "host": self.share}

    def share(self) -> None:
        with self.memslots.notifiers.invalidating(*self.range):
            self.mmu.host.share(self.slot.hva // PAGE_SIZE)

    def check(self) -> None:
        entry = self.mmu.entry(self.number)
        word = 0 if entry is None else entry.word
        shared = word & WRITABLE and self.mmu.host.is_shared(pfn_of(word))
        require(not shared, "the guest can write a page that others share")


@scenario("mock/fast-fault-shared-wrong-host-writable", instrument=MMU, wrong="invariant", patches=QUICK)
class FastFaultHostWritable(FastFaultShared):
    """The same where the fast path does not look at the host-writable bit."""

    needs = MMU_WRITABLE


@scenario("mock/fast-fault-watched", instrument=MMU, patches=QUICK)
class FastFaultWatched(Protected):
    """KVM begins to shadow a guest's page table while a vCPU writes it: from then on KVM sees each write."""

    needs = HOST_WRITABLE | MMU_WRITABLE

    def __init__(self) -> None:
        super().__init__()
        self.mmu.fast.needs = self.needs
        self.shadowed = False
        self.guest.found = self.found

    def act(self) -> None:
        self.mmu.watch(self.number)
        self.shadowed = True

    def found(self) -> None:
        require(not self.shadowed, "the guest writes to a page table that KVM shadows, and KVM does not see it")


@scenario("mock/fast-fault-watched-wrong-mmu-writable", instrument=MMU, wrong="invariant", patches=QUICK)
class FastFaultMmuWritable(FastFaultWatched):
    """The same where the fast path does not look at the MMU-writable bit."""

    needs = HOST_WRITABLE


class _Aba:
    """An entry of an indirect shadow page, for a table of the guest that names one guest page and then another.

    The host takes the first guest page's memory away and gives it to the second one.
    """

    fast: FastPath

    def __init__(self) -> None:
        self.hall = Hall()
        self.memslots = self.hall.memslots
        self.slot = logged(slot_of(LOW, OLD, pages=2))
        self.memslots.create(0, self.slot)
        self.first, self.second = LOW // PAGE_SIZE, LOW // PAGE_SIZE + 1
        self.host = self.memslots.mmu.host
        self.memslots.mmu.fast = self.fast
        self.address = self.slot.hva // PAGE_SIZE
        self.host.unmap(self.address + 1)
        self.page = IndirectPage(self.memslots, {0: self.first})
        self.page.fault(0, write=False)
        self.written: int | None = None

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"CPU 0": self.write, "CPU 1": self.reuse}

    def write(self) -> None:
        # It gives up where the host keeps the page for longer.
        for _ in range(4):
            self.written = self.page.access(0, write=True)
            if self.written is not None:
                break

    def reuse(self) -> None:
        with self.memslots.notifiers.invalidating(self.slot.hva, self.slot.hva + PAGE_SIZE):
            taken = self.host.unmap(self.address)
        if taken is None:
            return
        if not self.host.is_free(taken):
            self.host.give(self.address, taken)
            return
        self.host.give(self.address + 1, taken)
        self.page.write_gpte(0, self.second)
        self.page.fault(0, write=False)

    def check(self) -> None:
        logs = self.memslots.take_dirty(0, self.slot)[0]
        if self.written is not None:
            page = self.written - self.first
            require(logs >> page & 1, f"the guest wrote its page {page}, and the log has {logs:#04b}")
        require(not self.page.stale(), "the entry is for another guest page than the guest's table says")


class _AlsoIndirect(FastPath):
    """The fast path where it must not be taken."""

    for_indirect = True


@scenario("mock/fast-fault-indirect", instrument=MMU, patches=QUICK)
class FastFaultIndirect(_Aba):
    """An indirect entry moves to another guest page on the same host page while a vCPU writes: the log has the page."""

    fast = FastPath()


@scenario("mock/fast-fault-indirect-wrong-aba", instrument=MMU, wrong="invariant", patches=QUICK)
class FastFaultAba(_Aba):
    """The same on the fast path: the entry is what it was and means another page, so the wrong one is in the log."""

    fast = _AlsoIndirect()


@scenario("mock/fast-fault-pinned", instrument=MMU, patches=QUICK)
class FastFaultPinned(_Aba):
    """The same on the fast path with the host page pinned: no other guest page gets it, and the log has the page."""

    fast = PinnedPath()


@scenario("mock/dirty-bit", instrument=MMU, patches=QUICK)
class DirtyBit(Protected):
    """The host takes a page away while a vCPU writes it: it hears that it is dirty, or the entry still says so."""

    writes = (1,)

    def act(self) -> None:
        with self.memslots.notifiers.invalidating(*self.range):
            pass

    def check(self) -> None:
        entry = self.mmu.entry(self.number)
        known = self.slot.hva // PAGE_SIZE in self.mmu.host.dirty or (entry is not None and was_written(entry.word))
        require(known or not self.guest.seen, "the guest wrote the page, and the Dirty bit is lost")


@scenario(
    "mock/dirty-bit-wrong-not-atomic",
    instrument=MMU,
    wrong="invariant",
    patches=(
        *QUICK,
        Patch(
            "accel_mock.kvm.mmu",
            "        return spte.exchange(0)",
            "        old = spte.word\n"
            "        if was_accessed(old) and not old & WRITABLE:\n"
            "            spte.word = 0\n"
            "            return old\n"
            "        return spte.exchange(0)",
        ),
    ),
)
class DirtyBitNotAtomic(DirtyBit):
    """The same where a read-only entry is cleared by a read and a write: what comes in between is lost."""


@scenario("mock/dirty-bit-protect", instrument=MMU, patches=QUICK)
class DirtyBitProtect(DirtyBit):
    """The log is taken, and W with it, while a vCPU writes the page: the entry says that it is dirty."""

    def __init__(self) -> None:
        super().__init__()
        self.mmu.fault(LOW, write=True)
        self.mmu.host.dirty.clear()
        # As if the host had been told of all that was.
        self.entry.word &= ~DIRTY

    def act(self) -> None:
        self.memslots.take_dirty(0, self.slot)


@scenario(
    "mock/dirty-bit-protect-wrong-not-atomic",
    instrument=MMU,
    wrong="invariant",
    patches=(
        *QUICK,
        Patch(
            "accel_mock.kvm.mmu",
            "        while not spte.compare_exchange(word := spte.word, word & ~bits):\n            pass",
            "        word = spte.word\n        spte.word = word & ~bits",
        ),
    ),
)
class DirtyBitProtectNotAtomic(DirtyBitProtect):
    """The same where W is taken by a read and a write: the Dirty bit that a processor sets in between is lost."""

"""What scenarios of the shadow page table share: which modules are visible, a guest that writes, the host's part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accel.address import PAGE_SIZE
from accel.exits import ExitKind
from accel.memory.slot_plan import Slot
from accel.testing.explore.scenario import require
from accel.testing.explore.world import Patch
from accel_mock.kvm.mmu import Fault, ShadowMmu
from accel_mock.kvm.spte import Spte
from accel_mock.scenarios.hall import HOLE, LOW, MODEL, OLD, PROMPT, Hall, logged, slot_of
from accel_mock.vcpu import EXIT, Step

#: The modules whose accesses matter here.
MMU = (*MODEL, "accel_mock.kvm.indirect", "accel_mock.scenarios.pages")
_MMU = "accel_mock.kvm.mmu"
#: What is left out where all orders are tried: the waits at the end of a slot call, and who counts as waiting for the
#: MMU lock, which only a zap that gives way looks at.
QUICK = (
    *PROMPT,
    Patch(_MMU, "        self._want(1)\n", ""),
    Patch(_MMU, "            self._want(-1)\n", ""),
)
_RANGE = "self.rmap.of_host(start >> _PAGE_SHIFT, -(-end // PAGE_SIZE))"
#: A notifier that leaves TLBs alone, and one that leaves entries alone.
NO_FLUSH = Patch(
    _MMU, "                self.drop(spte)\n        self._running.flush()", "                self.drop(spte)"
)
NO_ZAP = Patch(
    _MMU,
    "                self.drop(spte)\n        self._running.flush()",
    "                pass\n        self._running.flush()",
)


class Page:
    """A slot of one page at `LOW`, which logs if wanted, and who uses it.

    Attributes:
        hall: The VM.
        slot: The slot.
        number: Of its guest page.
    """

    logs = False

    def __init__(self) -> None:
        self.hall = Hall()
        self.memslots = self.hall.memslots
        slot = slot_of(LOW, OLD)
        self.slot: Slot = logged(slot) if self.logs else slot
        self.memslots.create(0, self.slot)
        self.number = LOW // PAGE_SIZE
        self.range = self.slot.hva, self.slot.hva + PAGE_SIZE

    @property
    def mmu(self) -> ShadowMmu:
        return self.memslots.mmu

    @property
    def entry(self) -> Spte:
        """The page's entry, which there is."""
        found = self.mmu.entry(self.number)
        assert found is not None
        return found

    @contextmanager
    def taken_away(self) -> Iterator[None]:
        """Have the host take the page away, and give it back in the end; nobody may use it meanwhile."""
        with self.memslots.notifiers.invalidating(*self.range):
            self.hall.released.add(LOW)
            # It has it for so long that everybody else comes to a stop.
            time.sleep(1.0)
            yield
            self.hall.released.discard(LOW)

    def touch(self, *, write: bool = False) -> None:
        """Have an entry of the page be there before anybody runs."""
        require(self.mmu.fault(LOW, write=write) is Fault.FIXED, "the page cannot be mapped")

    def user(self, *values: int | None) -> User:
        """Return a vCPU; see `User`."""
        return User(self.hall, *values)

    def reader(self, count: int = 1) -> User:
        """Return a vCPU whose guest reads the page so many times and halts."""
        return self.user(*(None,) * count)

    def writer(self, *values: int) -> User:
        """Return a vCPU whose guest writes these bytes to the page, one after the other, and halts."""
        return self.user(*values)

    def byte(self) -> int:
        """Return what is in the page now."""
        found = self.memslots.table.find(LOW)
        assert found is not None
        return found.bytes[0]


class User:
    """A vCPU whose guest reads and writes the first byte of `LOW`.

    It halts when it has been told to try again too often: while a page is being taken away two vCPUs could do so for
    ever, in turns that no real clock would give them.

    Args:
        hall: The VM.
        values: What it writes; None for a read.

    Attributes:
        vcpu: The vCPU.
        seen: What it read, and for a write what it wrote; `HOLE` for either where no memory was.
        found: Called as it has found memory, before it is used.
    """

    def __init__(self, hall: Hall, *values: int | None) -> None:
        self.vcpu = hall.vcpu().vcpu
        self.seen: list[int] = []
        self.found: Callable[[], None] = lambda: None
        self._hall = hall
        self._patience = 1
        self._end = len(values)
        self.vcpu._steps = [*(self._use(place, value) for place, value in enumerate(values)), _halt]

    def run(self) -> None:
        """Enter the guest until it has halted; a hole is an exit, after which it is entered again."""
        while self.vcpu.run() != ExitKind.HALT:
            pass

    def _use(self, place: int, value: int | None) -> Step:
        vcpu, hall = self.vcpu, self._hall
        known = vcpu.readable if value is None else vcpu.writable
        find = vcpu.find_to_read if value is None else vcpu.find_to_write

        def step() -> int:
            where = known.get(LOW) or find(LOW)
            if where is None:
                return vcpu.start_access(self._miss(), place)
            if not where:  # to be tried again
                self._patience -= 1
                return place if self._patience >= 0 else self._end
            require(LOW not in hall.released, "the guest uses a page that is not its own any more")
            self.found()
            memory, offset = where
            if value is not None:
                memory[offset] = value
            self.seen.append(memory[offset] if value is None else value)
            return place + 1

        return step

    def _miss(self) -> Iterator[int]:
        self.seen.append(HOLE)
        yield int(ExitKind.MMIO)


def _halt() -> int:
    return EXIT - ExitKind.HALT

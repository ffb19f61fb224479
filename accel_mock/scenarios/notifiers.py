"""Scenarios of MMU notifiers: pairs of a start and an end, beside page faults and beside slot calls.

The kernel's first attempt to keep slots in place during a pair was a fair reader/writer lock (`RwsemNotifiers`); what
it has is a count of open pairs, which a slot call waits for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accel.address import PAGE_SIZE
from accel.locks import Lock, LockClass
from accel.read_locks import RwLock
from accel.testing.explore.scenario import require, scenario
from accel.testing.explore.world import Patch
from accel_mock.kvm.notifier import MmuNotifiers
from accel_mock.scenarios.hall import HIGH, LOW, MODEL, NEW, OLD, PROMPT, Hall, slot_of, unvalidated

_NOTIFIER = "accel_mock.kvm.notifier"
_RETRY = "return self.sequence != sequence or any(start <= address < end for start, end in self._ranges)"
_WAIT = "            self._none.wait_for(lambda: not self._active)"

#: What callbacks of notifiers may wait for, as the kernel's validator has it.
RANGE_START = LockClass(
    "mmu_notifier_invalidate_range_start", None, "nothing: it stands for what callbacks may wait for", type="a mark"
)
#: What the first attempt held from the start of a pair to its end.
NOTIFIER_SLOTS = LockClass("kvm->mmu_notifier_slots_lock", None, "the slots, while a pair is open", type="rwsem")


class RwsemNotifiers(MmuNotifiers):
    """Notifiers whose pairs are readers of a lock that slot calls take for writing.

    Args:
        unmap: See `MmuNotifiers`.
        fair: Whether a pair that begins waits behind a slot call that waits.
    """

    def __init__(self, unmap: Callable[[int, int], None], *, fair: bool) -> None:
        super().__init__(unmap)
        self._range_start = Lock(RANGE_START)
        self._slots = RwLock(NOTIFIER_SLOTS, fair=fair)

    def invalidate_range_start(self, start: int, end: int) -> None:
        """Begin a pair."""
        with self._range_start:
            self._slots.acquire_read()
            super().invalidate_range_start(start, end)

    def invalidate_range_end(self, start: int, end: int) -> None:
        """End it."""
        with self._range_start:
            super().invalidate_range_end(start, end)
            self._slots.release_read()

    @contextmanager
    def none_active(self) -> Iterator[None]:
        """Wait until no pair is open, and keep new ones from opening."""
        with self._slots.write():
            yield


class _Slot:
    """A slot, and a slot call that adds another.

    Attributes:
        notifiers: The VM's.
        range: The host addresses of the slot.
    """

    def __init__(self) -> None:
        self.hall = Hall()
        self.memslots = self.hall.memslots
        self.slot = self.hall.map(0, LOW, OLD)
        self.range = self.slot.hva, self.slot.hva + PAGE_SIZE

    @property
    def notifiers(self) -> MmuNotifiers:
        return self.memslots.notifiers

    def create(self) -> None:
        self.memslots.create(1, slot_of(HIGH, NEW))

    def pair(self) -> None:
        with self.notifiers.invalidating(*self.range):
            pass

    def check(self) -> None:
        require(not self.notifiers._active, "a pair is still open")


@scenario("mock/notifier-fault", instrument=MODEL, patches=PROMPT)
class NotifierFault(_Slot):
    """The host unmaps a page while a vCPU looks at it: nobody has a translation of it until the pair ends."""

    def __init__(self) -> None:
        super().__init__()
        self.guest = self.hall.vcpu(LOW, LOW)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"host": self.unmap, "vCPU": self.guest.run}

    def unmap(self) -> None:
        with self.notifiers.invalidating(*self.range):
            self.hall.released.add(LOW)
            self.hall.step()
            self.hall.released.discard(LOW)

    def check(self) -> None:
        super().check()
        require(self.guest.seen == [OLD, OLD], f"the guest saw {self.guest.seen}")


@scenario(
    "mock/notifier-fault-wrong-no-retry",
    instrument=MODEL,
    wrong="invariant",
    patches=(*PROMPT, Patch(_NOTIFIER, _RETRY, "return False")),
)
class NotifierFaultNoRetry(NotifierFault):
    """The same where a page fault does not look whether a pair is open: it maps the page that is being unmapped."""


@scenario("mock/notifier-pair", instrument=MODEL, patches=PROMPT)
class NotifierPair(_Slot):
    """A slot is created beside a notifier's pair: the pair ends with the set of slots that it began with."""

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"updater": self.create, "notifier": self.pair}

    def pair(self) -> None:
        with self.notifiers.invalidating(*self.range):
            before = self.memslots.table
            self.hall.step()
            require(self.memslots.table is before, "a pair began with one set of slots and ends with another")


@scenario(
    "mock/notifier-pair-wrong-no-wait",
    instrument=MODEL,
    wrong="invariant",
    patches=(*PROMPT, Patch(_NOTIFIER, _WAIT, "            pass")),
)
class NotifierPairNoWait(NotifierPair):
    """The same where the slot call does not wait for open pairs."""


@scenario("mock/notifier-overlap", instrument=MODEL, patches=PROMPT)
class NotifierOverlap(_Slot):
    """Two notifiers take turns, each beginning before the other has ended, a few times; a slot call gets through then.

    Attributes:
        pairs: How many pairs in all; None for ever.
    """

    pairs: int | None = 2

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self.changed = threading.Condition()

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"updater": self.create, "notifier a": lambda: self.relay(0), "notifier b": lambda: self.relay(1)}

    def relay(self, first: int) -> None:
        """Open every other pair once the one before is open, and end it once the next one is."""
        number = first
        while number != self.pairs and number - 1 != self.pairs:
            self.wait_for(number)
            self.notifiers.invalidate_range_start(*self.range)
            with self.changed:
                self.begun += 1
                self.changed.notify_all()
            if number + 1 != self.pairs:
                self.wait_for(number + 2)
            self.notifiers.invalidate_range_end(*self.range)
            number += 2

    def wait_for(self, begun: int) -> None:
        """Wait until so many pairs have begun."""
        with self.changed:
            self.changed.wait_for(lambda: self.begun >= begun)

    def check(self) -> None:
        super().check()
        require(self.memslots.table.find(HIGH) is not None, "the slot call did not get through")


@scenario("mock/notifier-overlap-wrong-endless", instrument=MODEL, limit=2000, wrong="livelock", patches=PROMPT)
class NotifierOverlapEndless(NotifierOverlap):
    """The same for ever: one pair is always open, and the slot call never gets through; the kernel accepts that."""

    pairs = None


class _Rwsem(_Slot):
    """Two notifiers and a slot call, with the lock of the first attempt."""

    validated = False
    fair = True

    def __init__(self) -> None:
        if self.validated:
            self.set_up()
        else:
            with unvalidated():
                self.set_up()

    def set_up(self) -> None:
        super().__init__()
        self.memslots.notifiers = RwsemNotifiers(lambda start, end: None, fair=self.fair)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"updater": self.create, "notifier a": self.pair, "notifier b": self.pair}


@scenario("mock/notifier-rwsem", instrument=MODEL, patches=PROMPT)
class NotifierRwsem(_Rwsem):
    """Pairs read a lock that slot calls take for writing, and pass those that wait, as with the count: all end."""

    fair = False


@scenario("mock/notifier-rwsem-wrong-fair", instrument=MODEL, wrong="deadlock", patches=PROMPT)
class NotifierRwsemFair(_Rwsem):
    """The same with a fair lock: an end waits for a start, which waits behind a slot call, which waits for the end."""


@scenario("mock/notifier-rwsem-wrong-reported", instrument=MODEL, wrong="exception", patches=PROMPT)
class NotifierRwsemReported(_Rwsem):
    """The same with locks that check their order: it is reported by a notifier that meets nobody."""

    validated = True

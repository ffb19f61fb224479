"""Scenarios of slot calls under a vCPU: what it sees of a slot that comes, goes, moves or begins to log."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import nullcontext

from attrs import evolve

from accel.errors import MemorySlotError
from accel.memory.slot_plan import Slot
from accel.testing.explore.scenario import require, scenario
from accel.testing.explore.world import Patch
from accel_mock.scenarios.hall import ELSEWHERE, HIGH, HOLE, LOW, MODEL, NEW, OLD, PROMPT, Hall, logged, slot_of

_MEMSLOTS = "accel_mock.kvm.memslots"
_NO_INVALID = Patch(_MEMSLOTS, "invalid = evolve(old, invalid=True)", "invalid = old")
_CREATE = "            self._install(self.table.with_slot(_mapped(number, slot)))\n"


def _in_two(first: str) -> Patch:
    """Return a patch by which a slot that is created is in force as `first` says, and as it should be after that."""
    return Patch(
        _MEMSLOTS,
        _CREATE,
        f"            first = {first}\n"
        "            self._install(self.table.with_slot(first))\n"
        "            self._install(self.table.replaced(first, _mapped(number, slot)))\n",
    )


class _Change:
    """A thread that makes a slot call, and a vCPU."""

    looks: tuple[int, ...] = ()
    writes = False

    def __init__(self) -> None:
        self.hall = Hall()
        self.memslots = self.hall.memslots
        self.slot = self.hall.map(0, LOW, OLD)
        self.guest = self.hall.vcpu(*self.looks, write=self.writes)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"updater": self.update, "vCPU": self.guest.run}

    def update(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        raise NotImplementedError


@scenario("mock/delete", instrument=MODEL, patches=PROMPT)
class Delete(_Change):
    """A slot is deleted, then its memory freed, under a vCPU that looks there: memory, then a hole, nothing freed."""

    looks = (LOW, LOW)

    def __init__(self) -> None:
        super().__init__()
        self.guest.found = self.found

    def update(self) -> None:
        self.memslots.delete(0, self.slot)
        self.hall.released.add(LOW)

    def found(self, address: int, byte: int) -> None:
        gone = self.memslots.table.find(LOW) is None
        require(byte != HOLE or gone, "the guest comes out as if nothing were there, and a slot still is")

    def check(self) -> None:
        require(self.guest.seen in ([OLD, OLD], [OLD, HOLE], [HOLE, HOLE]), f"the guest saw {self.guest.seen}")


@scenario("mock/delete-wrong-no-invalid", instrument=MODEL, wrong="invariant", patches=(*PROMPT, _NO_INVALID))
class DeleteNoInvalid(Delete):
    """The same without the invalid slot: a page fault maps the slot again after the zap, and that outlives the slot."""


@scenario(
    "mock/delete-wrong-no-flush",
    instrument=MODEL,
    wrong="invariant",
    patches=(
        *PROMPT,
        Patch(_MEMSLOTS, "        self._running.flush()\n        return without", "        return without"),
    ),
)
class DeleteNoFlush(Delete):
    """The same where no TLB is flushed: the vCPU goes on with a translation of the slot that is gone."""


@scenario(
    "mock/delete-wrong-no-retry",
    instrument=MODEL,
    wrong="invariant",
    patches=(
        *PROMPT,
        Patch(
            "accel_mock.kvm.mmu",
            "if slot is None or (write and",
            "if slot is None or slot.invalid or (write and",
        ),
    ),
)
class DeleteNoRetry(Delete):
    """The same where a page fault takes an invalid slot for a hole: the guest exits for a deletion that is not done."""


@scenario("mock/move", instrument=MODEL, patches=PROMPT)
class Move(_Change):
    """A slot moves under a vCPU that looks at both places: once it is seen at the new one, the old one is a hole."""

    looks = (LOW, ELSEWHERE, LOW)

    def update(self) -> None:
        self.memslots.move(0, self.moved())
        self.hall.released.add(LOW)

    def moved(self) -> Slot:
        return evolve(self.slot, gpa=ELSEWHERE)

    def check(self) -> None:
        before, there, after = self.guest.seen
        require(there == HOLE or after == HOLE, "the guest saw the slot at both places")
        require(before == OLD or after == HOLE, "the guest saw the slot come back to where it was")


@scenario("mock/move-wrong-no-invalid", instrument=MODEL, wrong="invariant", patches=(*PROMPT, _NO_INVALID))
class MoveNoInvalid(Move):
    """The same without the invalid slot: the guest goes on at the old place too."""


@scenario("mock/create", instrument=MODEL, patches=PROMPT)
class Create(_Change):
    """A slot is created beside another under a vCPU that looks at both: a hole, then memory; the other all the time."""

    looks = (HIGH, LOW, HIGH)

    def update(self) -> None:
        self.memslots.create(1, slot_of(HIGH, NEW))

    def check(self) -> None:
        first, low, second = self.guest.seen
        require(low == OLD, "the guest missed a slot that was there all the time")
        require({first, second} <= {HOLE, NEW}, "the guest saw memory that is not the new slot's")
        require((first, second) != (NEW, HOLE), "the guest saw the new slot go again")


@scenario(
    "mock/create-wrong-incomplete",
    instrument=MODEL,
    wrong="invariant",
    patches=(*PROMPT, _in_two("MemSlot(number, slot, memoryview(bytearray(slot.size)))")),
)
class CreateIncomplete(Create):
    """The same where the slot is in force before its host address is known: a page fault maps what is at another."""


@scenario("mock/create-log", instrument=MODEL, patches=PROMPT)
class CreateLog(_Change):
    """A slot that logs is created under a vCPU that writes there: each write that finds memory is in the log."""

    looks = (HIGH, HIGH)
    writes = True

    def update(self) -> None:
        self.created = logged(slot_of(HIGH, NEW))
        self.memslots.create(1, self.created)

    def check(self) -> None:
        noted = any(self.memslots.take_dirty(1, self.created))
        require(noted or NEW not in self.guest.seen, "the guest wrote a page that is not in the log")


@scenario(
    "mock/create-log-wrong-late",
    instrument=MODEL,
    wrong="invariant",
    patches=(*PROMPT, _in_two("_mapped(number, slot.with_log(None))")),
)
class CreateLogLate(CreateLog):
    """The same where the slot is in force before it has its log: who writes in between may write on, unseen."""


@scenario("mock/create-twice", instrument=MODEL, patches=PROMPT)
class CreateTwice(_Change):
    """Two threads create slots that overlap: one of them is refused."""

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"first": lambda: self.create(1), "second": lambda: self.create(2)}

    def create(self, number: int) -> None:
        try:
            self.memslots.create(number, slot_of(HIGH, NEW))
        except MemorySlotError as error:
            require(error.errno == errno.EEXIST, f"refused with {error}")

    def check(self) -> None:
        count = sum(one.slot.gpa == HIGH for one in self.memslots.table.slots)
        require(count == 1, f"{count} slots at one address")


@scenario("mock/create-twice-wrong-no-slots-lock", instrument=MODEL, wrong="invariant", patches=PROMPT)
class CreateTwiceUnlocked(CreateTwice):
    """The same without slots_lock: both look before either has changed the set."""

    def __init__(self) -> None:
        super().__init__()
        self.memslots._slots_lock = nullcontext()  # type: ignore[assignment]


@scenario("mock/flags", instrument=MODEL, patches=PROMPT)
class Flags(_Change):
    """A slot begins to log under a vCPU that writes: what it writes from then on is in the log."""

    looks = (LOW, LOW)
    writes = True

    def __init__(self) -> None:
        super().__init__()
        self.logs = False
        self.owed = False
        self.guest.found = self.found

    def update(self) -> None:
        self.logged = logged(self.slot)
        self.memslots.toggle(0, self.logged)
        self.logs = True

    def found(self, address: int, byte: int) -> None:
        require(byte == OLD, "the guest missed a slot whose flags change")
        self.owed = self.owed or self.logs

    def check(self) -> None:
        noted = any(self.memslots.take_dirty(0, self.logged))
        require(noted or not self.owed, "the guest wrote a page that is not in the log")


@scenario(
    "mock/flags-wrong-no-write-protect",
    instrument=MODEL,
    wrong="invariant",
    patches=(*PROMPT, Patch(_MEMSLOTS, "self.mmu.write_protect(one)", "pass")),
)
class FlagsNoWriteProtect(Flags):
    """The same where entries stay writable: the guest writes, no page fault comes, nothing is noted."""

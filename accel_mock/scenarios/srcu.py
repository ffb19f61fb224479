"""Scenarios of memslots under SRCU: who reads a set may keep it until the section ends, and whoever waits for that
holds nothing that is wanted inside.
"""

from __future__ import annotations

from collections.abc import Callable

from accel.testing.explore.scenario import require, scenario
from accel.testing.explore.world import Patch
from accel_mock.scenarios.hall import LOW, MODEL, OLD, PROMPT, Hall, unvalidated

_MEMSLOTS = "accel_mock.kvm.memslots"
_KEPT = Patch(
    _MEMSLOTS,
    "            self.table = table\n        self.srcu.synchronize()",
    "            self.table = table\n            self.srcu.synchronize()",
)
_IN_PLACE = Patch(
    _MEMSLOTS,
    "            self.table = table\n",
    "".join(f"            self.table.{name} = table.{name}\n" for name in ("_count", "_rows", "_starts", "_chunks")),
)


class _Update:
    """A reader in a section, and a thread that deletes the slot.

    Attributes:
        validated: Whether locks check their order.
        freed: Whether the memory behind the slot is freed.
    """

    validated = True

    def __init__(self) -> None:
        if self.validated:
            self.hall = Hall()
        else:
            with unvalidated():
                self.hall = Hall()
        self.memslots = self.hall.memslots
        self.slot = self.hall.map(0, LOW, OLD)
        self.freed = False

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"updater": self.update, "reader": self.read}

    def update(self) -> None:
        self.memslots.delete(0, self.slot)
        self.freed = True

    def read(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        require(self.memslots.table.find(LOW) is None, "the slot is still there")


@scenario("mock/srcu", instrument=MODEL, patches=PROMPT)
class Srcu(_Update):
    """A slot is deleted and its memory freed while a reader uses the set that it found: not before its section ends."""

    def read(self) -> None:
        with self.memslots.srcu.read():
            found = self.memslots.table.find(LOW)
            require(found is None or not self.freed, "a slot's memory is freed while a reader uses it")


@scenario(
    "mock/srcu-wrong-no-synchronize",
    instrument=MODEL,
    wrong="invariant",
    patches=(*PROMPT, Patch(_MEMSLOTS, "        self.srcu.synchronize()", "        pass")),
)
class SrcuNoSynchronize(Srcu):
    """The same where nobody waits for the readers of the old set: memory is freed under one of them."""


@scenario("mock/srcu-set", instrument=(*MODEL, "accel_mock.kvm.slot_map"), patches=PROMPT)
class SrcuSet(_Update):
    """A reader looks twice into the set that it found while a slot is deleted: it finds the same both times."""

    def read(self) -> None:
        with self.memslots.srcu.read():
            table = self.memslots.table
            first, second = table.find(LOW), table.find(LOW)
            require(first is second, "a set changes in a reader's hands")


@scenario(
    "mock/srcu-set-wrong-in-place",
    instrument=(*MODEL, "accel_mock.kvm.slot_map"),
    wrong="invariant",
    patches=(*PROMPT, _IN_PLACE),
)
class SrcuInPlace(SrcuSet):
    """The same where the set is changed in place: the reader finds the slot, and then does not."""


@scenario("mock/slots-lock", instrument=MODEL, patches=PROMPT)
class SlotsLock(_Update):
    """A reader takes slots_lock once its section has ended while a slot is deleted: both come to an end."""

    validated = False

    def read(self) -> None:
        with self.memslots.srcu.read():
            pass
        with self.memslots._slots_lock:
            pass


class _SlotsLockInside(_Update):
    def read(self) -> None:
        with self.memslots.srcu.read(), self.memslots._slots_lock:
            pass


@scenario("mock/slots-lock-wrong-in-section", instrument=MODEL, wrong="deadlock", patches=PROMPT)
class SlotsLockInside(_SlotsLockInside):
    """A reader takes slots_lock inside its section: the deletion, which holds it, waits for the section."""

    validated = False


@scenario("mock/slots-lock-wrong-reported", instrument=MODEL, wrong="exception", patches=PROMPT)
class SlotsLockReported(_SlotsLockInside):
    """The same with locks that check their order: it is reported where nobody need have met anybody."""


@scenario("mock/slots-arch-lock", instrument=MODEL, patches=PROMPT)
class SlotsArchLock(_Update):
    """A reader takes slots_arch_lock inside its section while a slot is deleted: both come to an end."""

    validated = False

    def read(self) -> None:
        with self.memslots.srcu.read(), self.memslots._slots_arch_lock:
            pass


@scenario("mock/slots-arch-lock-wrong-kept", instrument=MODEL, wrong="deadlock", patches=(*PROMPT, _KEPT))
class SlotsArchLockKept(SlotsArchLock):
    """The same where slots_arch_lock is held while readers are waited for, one of which wants it."""


@scenario("mock/slots-arch-lock-wrong-reported", instrument=MODEL, wrong="exception", patches=(*PROMPT, _KEPT))
class SlotsArchLockReported(SlotsArchLock):
    """The same with locks that check their order: it is reported."""

    validated = True

"""Each order of the kernel's table of KVM's locks, kept and broken; and a notifier that takes what it must not.

The orders are threads to be played (`accel.testing.lock_scenarios`): nobody waits for anybody, and the validator says
what would happen if they met. The notifier is the model's own, and is explored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial

from accel.address import PAGE_SIZE
from accel.locks import Lock, LockClass, completing, waiting_for
from accel.read_locks import RwLock, SrcuDomain
from accel.testing.explore.scenario import require, scenario
from accel.testing.lock_scenarios import SCENARIOS, Actor, LockScenario
from accel_mock.kvm.lock_classes import MN_ACTIVE, SRCU
from accel_mock.kvm.lock_table import CPU_HOTPLUG, ORDERS, Order, Rule
from accel_mock.kvm.notifier import MmuNotifiers
from accel_mock.scenarios.hall import HIGH, LOW, MODEL, NEW, OLD, PROMPT, Hall, slot_of, unvalidated


class _Locks:
    """One lock of each class that is asked for, as what it is."""

    def __init__(self) -> None:
        self._made: dict[LockClass, Lock | RwLock | SrcuDomain] = {}

    def hold(self, lock_class: LockClass) -> AbstractContextManager[object]:
        """Return a context that holds it: to read it, if it is one for readers; as a duty, if others wait for it."""
        if lock_class is MN_ACTIVE:
            return completing(lock_class)
        made = self._of(lock_class)
        return made if isinstance(made, Lock) else made.read()

    def wait(self, lock_class: LockClass) -> None:
        """Wait for who holds it so."""
        made = self._of(lock_class)
        if isinstance(made, SrcuDomain):
            made.synchronize()
        else:
            waiting_for(lock_class)

    def _of(self, lock_class: LockClass) -> Lock | RwLock | SrcuDomain:
        if lock_class not in self._made:
            kind = {CPU_HOTPLUG: RwLock, SRCU: SrcuDomain}.get(lock_class, Lock)
            self._made[lock_class] = kind(lock_class)
        return self._made[lock_class]


def _actors(order: Order, *, broken: bool) -> Sequence[Actor]:
    """Return one thread that keeps an order, and one that keeps or breaks it."""
    locks = _Locks()
    outer, inner = order.outer, order.inner

    def nest(*classes: LockClass, then: Callable[[], None] = lambda: None) -> None:
        with ExitStack() as held:
            for one in classes:
                held.enter_context(locks.hold(one))
            then()

    waiter = partial(nest, outer, then=lambda: locks.wait(inner))
    keeps, also, breaks = {
        Rule.NESTS: (partial(nest, outer, inner), partial(nest, inner), partial(nest, inner, outer)),
        Rule.WAITS: (waiter, partial(nest, inner), partial(nest, inner, outer)),
        Rule.READS: (
            partial(nest, outer, inner),
            partial(nest, then=lambda: locks.wait(outer)),
            partial(nest, inner, then=lambda: locks.wait(outer)),
        ),
    }[order.rule]
    return ("first", keeps), ("second", breaks if broken else also)


#: Each order of the table, kept and then broken.
ORDER_SCENARIOS = tuple(
    LockScenario(
        f"{order.name}{': broken' if broken else ''}",
        f"{order.name}; {'a second thread does it the other way round' if broken else 'two threads keep to that'}",
        partial(_actors, order, broken=broken),
        broken,
    )
    for order in ORDERS
    for broken in (False, True)
)

#: How a vendor's module is set up: under kvm_lock, and under a lock of its own.
MODULE_SCENARIOS = tuple(one for one in SCENARIOS if one.name.startswith("vendor-module"))


class _Pair:
    """A notifier's pair beside a slot call.

    Attributes:
        validated: Whether locks check their order.
        takes: Whether the notifier takes slots_lock.
    """

    validated = False
    takes = False

    def __init__(self) -> None:
        if self.validated:
            self.set_up()
        else:
            with unvalidated():
                self.set_up()

    def set_up(self) -> None:
        self.hall = Hall()
        self.memslots = self.hall.memslots
        self.slot = self.hall.map(0, LOW, OLD)
        self.memslots.notifiers = MmuNotifiers(self.unmap)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"updater": self.create, "notifier": self.pair}

    def create(self) -> None:
        self.memslots.create(1, slot_of(HIGH, NEW))

    def pair(self) -> None:
        with self.memslots.notifiers.invalidating(self.slot.hva, self.slot.hva + PAGE_SIZE):
            pass

    def unmap(self, start: int, end: int) -> None:
        with ExitStack() as held:
            if self.takes:
                held.enter_context(self.memslots._slots_lock)
            self.memslots.mmu.unmap_host(start, end)

    def check(self) -> None:
        require(self.memslots.table.find(HIGH) is not None, "the slot call did not get through")


@scenario("mock/notifier-locks", instrument=MODEL, patches=PROMPT)
class NotifierLocks(_Pair):
    """A notifier unmaps under the MMU lock only, beside a slot call that waits for it: both come to an end."""


@scenario("mock/notifier-locks-wrong-slots-lock", instrument=MODEL, wrong="deadlock", patches=PROMPT)
class NotifierSlotsLock(_Pair):
    """The same where the notifier takes slots_lock, which the slot call holds while it waits for the pair to end."""

    takes = True


@scenario("mock/notifier-locks-wrong-reported", instrument=MODEL, wrong="exception", patches=PROMPT)
class NotifierReported(_Pair):
    """The same with locks that check their order: it is reported, whether or not the two meet."""

    validated = True
    takes = True

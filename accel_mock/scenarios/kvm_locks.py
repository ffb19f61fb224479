"""Each order of the kernel's table of KVM's locks, kept and broken; how a vendor's module is set up; and a notifier
that takes what it must not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial

from accel.address import PAGE_SIZE
from accel.locks import Lock, LockClass, completing, waiting_for
from accel.read_locks import RwLock, SrcuDomain
from accel.testing.explore.scenario import require, scenario
from accel_mock.kvm.lock_classes import MN_ACTIVE, SRCU
from accel_mock.kvm.lock_table import CPU_HOTPLUG, KVM_LOCK, ORDERS, VENDOR_MODULE, Order, Rule
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


class _Order:
    """A thread that keeps an order of the table, and one that keeps or breaks it.

    Nobody need wait for anybody: the validator says what would happen if they met.

    Attributes:
        order: Which.
        broken: Whether the second thread breaks it.
    """

    order: Order
    broken = False

    def __init__(self) -> None:
        self._locks = _Locks()

    def threads(self) -> dict[str, Callable[[], object]]:
        locks, outer, inner = self._locks, self.order.outer, self.order.inner
        nest = self._nest
        waiter = partial(nest, outer, then=lambda: locks.wait(inner))
        keeps, also, breaks = {
            Rule.NESTS: (partial(nest, outer, inner), partial(nest, inner), partial(nest, inner, outer)),
            Rule.WAITS: (waiter, partial(nest, inner), partial(nest, inner, outer)),
            Rule.READS: (
                partial(nest, outer, inner),
                partial(nest, then=lambda: locks.wait(outer)),
                partial(nest, inner, then=lambda: locks.wait(outer)),
            ),
        }[self.order.rule]
        return {"first": keeps, "second": breaks if self.broken else also}

    def _nest(self, *classes: LockClass, then: Callable[[], None] = lambda: None) -> None:
        with ExitStack() as held:
            for one in classes:
                held.enter_context(self._locks.hold(one))
            then()

    def check(self) -> None:
        pass


def _make(order: Order, *, broken: bool) -> None:
    """Make the scenario in which an order is kept, or broken, a class of this module."""
    does = "a second thread does not keep to it: it is reported" if broken else "two threads keep to it"
    fields = {"__module__": __name__, "__doc__": f"{order.name}; {does}.", "order": order, "broken": broken}
    name = f"{'Broken' if broken else 'Kept'}{ORDERS.index(order)}"
    named = scenario(order.broken_by if broken else order.scenario, instrument=(), wrong="exception" if broken else "")
    globals()[name] = named(type(name, (_Order,), fields))


for _order in ORDERS:
    _make(_order, broken=False)
    _make(_order, broken=True)


class _ModuleInit:
    """A vendor's module is loaded and somebody opens the first VM, while a CPU comes or goes.

    Attributes:
        init: The lock under which the module sets itself up.
        validated: Whether locks check their order.
    """

    init = VENDOR_MODULE
    validated = False

    def __init__(self) -> None:
        with nullcontext() if self.validated else unvalidated():
            self.kvm_lock = Lock(KVM_LOCK)
            self.init_lock = self.kvm_lock if self.init is KVM_LOCK else Lock(self.init)
            # Fair: a reader waits behind a CPU that waits to come or go.
            self.cpu_hotplug_lock = RwLock(CPU_HOTPLUG, fair=True)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"loader": self.load, "opener": self.open_first_vm, "hotplug": self.hotplug}

    def load(self) -> None:
        # Setting up registers callbacks for CPUs that come and go.
        with self.init_lock, self.cpu_hotplug_lock.read():
            pass

    def open_first_vm(self) -> None:
        with self.cpu_hotplug_lock.read(), self.kvm_lock:
            pass

    def hotplug(self) -> None:
        with self.cpu_hotplug_lock.write():
            pass

    def check(self) -> None:
        pass


@scenario("mock/module-init", instrument=())
class ModuleInit(_ModuleInit):
    """A vendor's module is set up under a lock of its own, beside the first VM and a CPU that comes: all end."""


@scenario("mock/module-init-wrong-kvm-lock", instrument=(), wrong="deadlock")
class ModuleInitKvmLock(_ModuleInit):
    """The same under kvm_lock: it waits behind the CPU, which waits for who opens a VM, who waits for kvm_lock."""

    init = KVM_LOCK


@scenario("mock/module-init-wrong-reported", instrument=(), wrong="exception")
class ModuleInitReported(ModuleInitKvmLock):
    """The same with locks that check their order: it is reported, whether or not they meet."""

    validated = True


class _Pair:
    """A notifier's pair beside a slot call.

    Attributes:
        validated: Whether locks check their order.
        takes: Whether the notifier takes slots_lock.
    """

    validated = False
    takes = False

    def __init__(self) -> None:
        with nullcontext() if self.validated else unvalidated():
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

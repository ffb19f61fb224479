"""Lock orders that the Linux kernel's KVM got wrong or had to get right, as threads that can be played.

Each scenario makes its locks anew and gives threads that take them. `play` runs the threads one after the other, in a
graph of their own: nobody ever waits for anybody, and the validator reports what would happen if they met. Each mistake
stands beside what was done about it.

Layer: testing, above `accel.locks` and `accel.read_locks`. Source: the kernel's page on KVM's locks
(virt/kvm/locking) and the reports in its history, for commits about vendor_module_lock and mn_active_invalidate_count.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from attrs import frozen

from accel.errors import LockError
from accel.locks import Lock, LockClass, LockGraph, completing, waiting_for
from accel.read_locks import RwLock, SrcuDomain

KVM_LOCK = LockClass("kvm_lock", None, "the list of VMs, and whether virtualization is on", type="mutex")
CPU_HOTPLUG_LOCK = LockClass("cpu_hotplug_lock", None, "which CPUs are online", type="fair reader/writer lock")
VENDOR_MODULE_LOCK = LockClass("vendor_module_lock", None, "loading a vendor's module", type="mutex")
INVALIDATE_RANGE_START = LockClass(
    "mmu_notifier_invalidate_range_start", None, "nothing: it stands for what callbacks may wait for", type="a mark"
)
NOTIFIER_SLOTS_LOCK = LockClass(
    "kvm->mmu_notifier_slots_lock",
    None,
    "the slots between the start and the end of an invalidation",
    type="rwsem or count",
)
KVM_SRCU = LockClass("kvm->srcu", None, "the slots, and the devices at addresses", type="SRCU")
KVM_SLOTS_LOCK = LockClass("kvm->slots_lock", None, "changes of the slots", type="mutex")
KVM_SLOTS_ARCH_LOCK = LockClass("kvm->slots_arch_lock", None, "what an architecture keeps with a slot", type="mutex")
WORK = LockClass("work", None, "nothing: it stands for waiting for the worker", type="a wait")

#: A thread's name and what it does.
Actor = tuple[str, Callable[[], None]]


@frozen
class LockScenario:
    """Threads that take locks.

    Attributes:
        name: What to ask for it by.
        summary: What it shows, in a line.
        threads: Makes the locks, and returns the threads in the order in which `play` runs them.
        deadlocks: Whether they could wait for each other.
    """

    name: str
    summary: str
    threads: Callable[[], Sequence[Actor]]
    deadlocks: bool


def play(scenario: LockScenario) -> LockError | None:
    """Run a scenario's threads one after the other, validated; return the first mistake that is found.

    Must not run beside other threads that take locks, since they would be validated against its graph meanwhile.
    """
    found: list[LockError] = []

    def act(work: Callable[[], None]) -> None:
        try:
            work()
        except LockError as error:
            found.append(error)

    with LockGraph():
        for name, work in scenario.threads():
            thread = threading.Thread(target=act, args=(work,), name=name)
            thread.start()
            thread.join()
    return found[0] if found else None


def _vendor_module(init_class: LockClass) -> Sequence[Actor]:
    """A vendor's module sets itself up under one lock, and someone else opens the first VM."""
    init_lock = Lock(init_class)
    kvm_lock = init_lock if init_class is KVM_LOCK else Lock(KVM_LOCK)
    cpu_hotplug_lock = RwLock(CPU_HOTPLUG_LOCK)

    def vendor_init() -> None:
        with init_lock:
            setup_cpu_callbacks()

    def setup_cpu_callbacks() -> None:
        with cpu_hotplug_lock.read():
            pass

    def open_first_vm() -> None:
        hardware_enable_all()

    def hardware_enable_all() -> None:
        with cpu_hotplug_lock.read(), kvm_lock:
            pass

    return ("loader", vendor_init), ("opener", open_first_vm)


def _mmu_notifier(*, fair: bool) -> Sequence[Actor]:
    """Slots must not change between the start and the end of an invalidation, so both sides of it are readers."""
    range_start = Lock(INVALIDATE_RANGE_START)
    slots = RwLock(NOTIFIER_SLOTS_LOCK, fair=fair)

    def invalidate_range_start() -> None:
        with range_start:
            slots.acquire_read()

    def invalidate_range_end() -> None:
        with range_start:
            pass
        slots.release_read()

    def invalidate() -> None:
        invalidate_range_start()
        try:
            invalidate_range_end()
        except LockError:
            slots.release_read()
            raise

    def install_new_memslots() -> None:
        with slots.write():
            pass

    return ("notifier", invalidate), ("updater", install_new_memslots)


def _srcu(reader_class: LockClass) -> Sequence[Actor]:
    """A change of the slots waits for the readers; a vCPU that handles an exit is one, and takes a lock."""
    slots_lock, slots_arch_lock, srcu = Lock(KVM_SLOTS_LOCK), Lock(KVM_SLOTS_ARCH_LOCK), SrcuDomain(KVM_SRCU)
    inner = slots_lock if reader_class is KVM_SLOTS_LOCK else slots_arch_lock

    def set_memory_region() -> None:
        with slots_lock:
            with slots_arch_lock:
                pass
            srcu.synchronize()

    def handle_exit() -> None:
        with srcu.read(), inner:
            pass

    return ("setter", set_memory_region), ("vcpu", handle_exit)


def _work(*, holding: bool) -> Sequence[Actor]:
    """A thread waits for a worker, which takes a lock before it is done."""
    slots_lock = Lock(KVM_SLOTS_LOCK)
    done = threading.Event()

    def worker() -> None:
        with completing(WORK):
            with slots_lock:
                pass
            done.set()

    def flush() -> None:
        waiting_for(WORK)
        done.wait()

    def flush_holding() -> None:
        with slots_lock:
            flush()

    return ("worker", worker), ("flusher", flush_holding if holding else flush)


SCENARIOS = (
    LockScenario(
        "vendor-module",
        "set up a module under kvm_lock, which others take while CPUs must not come and go",
        lambda: _vendor_module(KVM_LOCK),
        True,
    ),
    LockScenario(
        "vendor-module-lock",
        "the same under a lock of its own, vendor_module_lock",
        lambda: _vendor_module(VENDOR_MODULE_LOCK),
        False,
    ),
    LockScenario(
        "mmu-notifier-rwsem",
        "keep slots in place during an invalidation by a fair reader/writer lock",
        lambda: _mmu_notifier(fair=True),
        True,
    ),
    LockScenario(
        "mmu-notifier-count",
        "the same by a count of readers, who wait for no writer that waits",
        lambda: _mmu_notifier(fair=False),
        False,
    ),
    LockScenario(
        "srcu-slots-lock",
        "take slots_lock in a read section that others wait for while holding it",
        lambda: _srcu(KVM_SLOTS_LOCK),
        True,
    ),
    LockScenario(
        "srcu-slots-arch-lock",
        "take slots_arch_lock there, which is released before anybody waits",
        lambda: _srcu(KVM_SLOTS_ARCH_LOCK),
        False,
    ),
    LockScenario(
        "wait-holding", "wait for a worker while holding what the worker takes", lambda: _work(holding=True), True
    ),
    LockScenario("wait-holding-nothing", "wait for it without", lambda: _work(holding=False), False),
)

"""A stage for the memory core: locks, blocker, transactions and one space, with a slot-like listener in miniature.

`SlotTable` is a real accelerator's listener but for the accelerator: it keeps a table of slots, refuses what KVM
refuses, and fails where a test tells it to.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from accel import locks
from accel.address import ADDRESS_SPACE_SIZE, PAGE_SIZE
from accel.blocker import AccelBlocker
from accel.errors import MemorySlotError
from accel.locks import BIG_LOCK, SLOTS_LOCK, Lock
from accel.memory.address_space import AddressSpace
from accel.memory.flat_view import FlatView
from accel.memory.listener import PRIORITY_ACCEL, MemoryListener, Update
from accel.memory.region import MemoryRegion
from accel.memory.served import ServedHistory
from accel.memory.slot_plan import Policy, Slot, SlotUpdate, plan_slots, section_slots
from accel.memory.transaction import Transactions

# No test asserts a time, also not by Hypothesis's limit for an example; a failure prints how to repeat it.
settings.register_profile("accel", deadline=None, print_blob=True)
settings.load_profile("accel")

#: How long a test waits for what must happen; only a failing test ever waits so long.
PATIENCE = 20


@pytest.fixture(autouse=True)
def _nothing_stays_held() -> Iterator[None]:
    """Whatever a test takes on its own thread it lets go of, as lock validation sees it."""
    yield
    left = list(locks._held.what)
    locks._held.what.clear()
    assert left == []


class SlotTable(MemoryListener):
    """Keeps slots as an accelerator would.

    Attributes:
        slots: What is mapped, by guest-physical address.
        calls: Every slot call since `reset`, such as ``("create", slot)``.
        fail_at: Numbers of calls, counted from 0 since `reset`, that fail.
        before_call: Called with each call's number before it is made.
    """

    name = "slot-table"
    priority = PRIORITY_ACCEL

    def __init__(self, policy: Policy = "least", slot_count: int = 1 << 30) -> None:
        self.slots: dict[int, Slot] = {}
        self.lock = Lock(SLOTS_LOCK)
        self.slot_count = slot_count
        self._policy: Policy = policy
        self.reset()
        self.begin()

    def reset(self, fail_at: set[int] | None = None) -> None:
        self.calls: list[tuple[str, Slot]] = []
        self.fail_at = fail_at or set()
        self.before_call: Callable[[int], None] = lambda number: None

    def begin(self) -> None:
        self._deletes = []
        self._adds = []

    def region_del(self, section) -> None:
        self._deletes.append(section)

    def region_add(self, section) -> None:
        self._adds.append(section)

    def commit(self) -> None:
        self.begin()

    def abort(self) -> None:
        self.begin()

    def prepare(self) -> Update | None:
        windows = [section.range for section in self._deletes if section.is_ram]
        present = [
            slot for _, slot in sorted(self.slots.items()) if any(window.covers(slot.range) for window in windows)
        ]
        wanted = [slot for section in self._adds for slot in section_slots(section, PAGE_SIZE)]
        plan = plan_slots(present, wanted, self._policy)
        if len(self.slots) - len(plan.deletes) + len(plan.creates) > self.slot_count:
            raise self._error(errno.ENOSPC, wanted[-1])
        if not plan.deletes and not plan.creates:
            return None
        return SlotUpdate(plan, self._create, self._delete, lambda: list(self.slots.values()), self.lock)

    def _create(self, slot: Slot) -> None:
        self._call("create", slot)
        if any(other.range.overlaps(slot.range) for other in self.slots.values()):
            raise self._error(errno.EEXIST, slot)
        self.slots[slot.gpa] = slot

    def _delete(self, slot: Slot) -> None:
        self._call("delete", slot)
        assert self.slots[slot.gpa] == slot
        del self.slots[slot.gpa]

    def _call(self, kind: str, slot: Slot) -> None:
        number = len(self.calls)
        self.calls.append((kind, slot))
        self.before_call(number)
        if number in self.fail_at:
            raise self._error(errno.ENOMEM, slot)

    def _error(self, number: int, slot: Slot) -> MemorySlotError:
        return MemorySlotError(
            "slot call", number, slot=0, gpa=slot.gpa, hva=slot.hva, size=slot.size, flags=int(slot.readonly)
        )

    def pages(self) -> dict[int, tuple[int, bool]]:
        """Return guest page → (host page, read-only)."""
        return {
            slot.gpa + at: (slot.hva + at, slot.readonly)
            for slot in self.slots.values()
            for at in range(0, slot.size, PAGE_SIZE)
        }


def mapped_pages(view: FlatView) -> dict[int, tuple[int, bool]]:
    """Return the pages that `view` shows whole and page aligned: guest page → (host page, read-only)."""
    found = {}
    for section in view:
        if section.is_ram:
            first = section.range.start // PAGE_SIZE * PAGE_SIZE
            for page in range(first, section.range.end, PAGE_SIZE):
                if section.range.start <= page <= section.range.end - PAGE_SIZE:
                    host = section.region.block.address + section.offset + page - section.range.start
                    if host % PAGE_SIZE == 0:
                        found[page] = (host, section.readonly)
    return found


class Stage:
    """One VM's memory without the VM."""

    def __init__(self, hold: str = "inhibit", timeout: float = PATIENCE, policy: Policy = "least") -> None:
        self.drains: list[None] = []
        self.big_lock = Lock(BIG_LOCK)
        self.blocker = AccelBlocker(self.big_lock)
        self.history = ServedHistory(PAGE_SIZE)
        self.before_commit: Callable[[], None] = lambda: None
        self.transactions = Transactions(
            self.big_lock,
            self.blocker,
            hold=hold,
            inhibit_timeout=timeout,
            before_commit=lambda: self.before_commit(),  # noqa: PLW0108 - tests replace it
        )
        self.memory = AddressSpace(
            "memory", self.transactions, MemoryRegion.container("memory", ADDRESS_SPACE_SIZE), self.history
        )
        self.io = AddressSpace("io", self.transactions, MemoryRegion.container("io", 1 << 16))
        self.slots = SlotTable(policy)
        self.memory.add_listener(self.slots)

    def transaction(self, atomic="address"):
        return self.transactions.transaction(atomic)

    def check(self) -> None:
        """Assert that nothing is open or held, and that tree, view and slots say the same."""
        assert not self.big_lock.held()
        assert not self.slots.lock.held()
        assert not self.transactions.active
        assert not self.blocker.inhibited
        assert self.slots.pages() == mapped_pages(self.memory.view)


@pytest.fixture(scope="session")
def make_stage() -> type[Stage]:
    """Make stages with other options."""
    return Stage


@pytest.fixture
def stage() -> Stage:
    """A stage with an empty memory."""
    return Stage()


@pytest.fixture(scope="session")
def slot_table() -> type[SlotTable]:
    """Make slot tables."""
    return SlotTable


class Worker:
    """A thread whose exception the test gets at `join`."""

    def __init__(self, target: Callable[[], object]) -> None:
        self._target = target
        self.result: object = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            self.result = self._target()
        except BaseException as error:
            self.error = error

    def join(self) -> object:
        """Wait for its end; return its result or raise its exception."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the thread is stuck"
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture(scope="session")
def spawn() -> type[Worker]:
    """Start a function on a thread."""
    return Worker

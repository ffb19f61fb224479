"""A stage for the memory core: locks, blocker, transactions and one space, with a slot-like listener in miniature.

`SlotTable` is a real accelerator's listener but for the accelerator: it keeps a table of slots, refuses what KVM
refuses, and fails where a test tells it to.
"""

from __future__ import annotations

import errno
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from accel import locks
from accel.address import ADDRESS_SPACE_SIZE, PAGE_SIZE, AddressRange
from accel.blocker import AccelBlocker
from accel.errors import MemorySlotError
from accel.locks import BIG_LOCK, SLOTS_LOCK, Lock
from accel.memory.address_space import AddressSpace
from accel.memory.dirty_sync import DirtySync
from accel.memory.flat_view import FlatView
from accel.memory.listener import PRIORITY_ACCEL, MemoryListener, Update
from accel.memory.region import MemoryRegion
from accel.memory.render import render
from accel.memory.served import ServedHistory
from accel.memory.slot_plan import (
    Policy,
    Slot,
    SlotPlan,
    plan_slots,
    section_slots,
    section_toggles,
)
from accel.memory.slot_update import SlotUpdate
from accel.memory.transaction import Transactions

# Modules that several test files share (`memory_world` and what it uses) lie beside this file.
sys.path.append(str(Path(__file__).parent))

#: How long a test waits for what must happen; only a failing test ever waits so long.
PATIENCE = 60


@pytest.fixture(autouse=True)
def _nothing_stays_held() -> Iterator[None]:
    """Whatever a test takes on its own thread it lets go of, as lock validation sees it."""
    yield
    left = list(locks._held.what)
    locks._held.what.clear()
    assert left == []


class SlotTable(MemoryListener):
    """Keeps slots as an accelerator would, and notes the pages that its guest writes where a slot logs.

    Attributes:
        slots: What is mapped, by guest-physical address.
        noted: The pages that the guest wrote, by the address of their slot, as offsets in its block.
        calls: Every slot call since `reset`, such as ``("create", slot)``.
        fail_at: Numbers of calls, counted from 0 since `reset`, that fail.
        before_call: Called with each call's number before it is made.
    """

    name = "slot-table"
    priority = PRIORITY_ACCEL

    def __init__(self, policy: Policy = "least", slot_count: int = 1 << 30) -> None:
        self.slots: dict[int, Slot] = {}
        self.noted: dict[int, set[int]] = {}
        self.lock = Lock(SLOTS_LOCK)
        self.slot_count = slot_count
        self._policy: Policy = policy
        # Noted pages that a log has; and what makes a store and its note one step, as a page fault would.
        self._merged: dict[int, set[int]] = {}
        self._notes_lock = threading.Lock()
        self.reset()
        self.begin()

    def reset(self, fail_at: set[int] | None = None) -> None:
        self.calls: list[tuple[str, Slot]] = []
        self.fail_at = fail_at or set()
        self.before_call: Callable[[int], None] = lambda number: None

    # what it is told

    def begin(self) -> None:
        self._deletes = []
        self._adds = []
        self._toggled = {}

    def region_del(self, section) -> None:
        self._deletes.append(section)

    def region_add(self, section) -> None:
        self._adds.append(section)

    def log_start(self, section, old, new) -> None:
        self._toggled[section.range.start] = section

    def log_stop(self, section, old, new) -> None:
        self._toggled[section.range.start] = section

    def commit(self) -> None:
        self.begin()

    def abort(self) -> None:
        self.begin()

    def prepare(self) -> Update | None:
        present = [slot for section in self._deletes for slot in self._slots_of(section)]
        wanted = [slot for section in self._adds for slot in section_slots(section, PAGE_SIZE)]
        toggles = [
            toggle for section in self._toggled.values() for toggle in section_toggles(self._slots_of(section), section)
        ]
        plan = plan_slots(present, wanted, self._policy, toggles, free=self.slot_count - len(self.slots))
        if len(self.slots) - len(plan.deletes) + len(plan.creates) > self.slot_count:
            raise self._error(errno.ENOSPC, wanted[-1])
        return self.update(plan) if plan else None

    def update(self, plan: SlotPlan) -> Update:
        return SlotUpdate(
            plan,
            self._create,
            self._delete,
            lambda: list(self.slots.values()),
            self.lock,
            toggle=self._toggle,
            collect=self._collect,
        )

    def log_sync(self, section) -> None:
        for slot in self._slots_of(section):
            if slot.log is not None:
                self._merge(slot)

    def log_clear(self, section) -> None:
        for slot in self.slots.values():
            if slot.log is not None and slot.range.overlaps(section.range):
                shift = slot.offset - slot.gpa
                window = range(section.range.start + shift, section.range.end + shift)
                with self._notes_lock:
                    done = {page for page in self._merged[slot.gpa] if page in window}
                    self.noted[slot.gpa] -= done
                    self._merged[slot.gpa] -= done

    def _slots_of(self, section) -> list[Slot]:
        if not section.is_ram:
            return []
        return [slot for _, slot in sorted(self.slots.items()) if section.range.covers(slot.range)]

    # the slots

    def _create(self, slot: Slot) -> None:
        self._call("create", slot)
        if any(other.range.overlaps(slot.range) for other in self.slots.values()):
            raise self._error(errno.EEXIST, slot)
        self.slots[slot.gpa] = slot
        self.noted[slot.gpa], self._merged[slot.gpa] = set(), set()

    def _delete(self, slot: Slot) -> None:
        self._call("delete", slot)
        assert self.slots[slot.gpa] == slot
        del self.slots[slot.gpa], self.noted[slot.gpa], self._merged[slot.gpa]

    def _toggle(self, old: Slot, new: Slot) -> None:
        self._call("toggle", new)
        assert self.slots[old.gpa] == old
        self.slots[old.gpa] = new
        self.noted[old.gpa], self._merged[old.gpa] = set(), set()

    def _collect(self, slot: Slot) -> None:
        self._call("collect", slot)
        self._merge(slot)

    def _merge(self, slot: Slot) -> None:
        with self._notes_lock:
            pages = set(self.noted[slot.gpa])
            self._merged[slot.gpa] |= pages
        bitmap = sum(1 << (page - slot.offset) // PAGE_SIZE for page in pages)
        slot.log.merge(slot.offset, bitmap.to_bytes(-(-slot.size // PAGE_SIZE // 8) + 1, "little"))

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

    # its guest

    def guest_write(self, address: int, byte: int) -> bool:
        """Store one byte as a guest would; return False where no writable slot maps it."""
        slot = next(
            (slot for slot in list(self.slots.values()) if slot.range.covers(AddressRange.sized(address, 1))), None
        )
        if slot is None or slot.readonly:
            return False
        at = slot.offset + address - slot.gpa
        with self._notes_lock:
            slot.block.view[at] = byte
            if slot.log is not None:
                self.noted[slot.gpa].add(at // PAGE_SIZE * PAGE_SIZE)
        return True

    def pages(self) -> dict[int, tuple[int, bool]]:
        """Return guest page → (host page, read-only)."""
        return {
            slot.gpa + at: (slot.hva + at, slot.readonly)
            for slot in self.slots.values()
            for at in range(0, slot.size, PAGE_SIZE)
        }

    def logged_pages(self) -> set[int]:
        """Return the guest pages whose writes are noted."""
        return {
            slot.gpa + at
            for slot in self.slots.values()
            if slot.log is not None
            for at in range(0, slot.size, PAGE_SIZE)
        }


def mapped_pages(view: FlatView) -> dict[int, tuple[int, bool, bool]]:
    """Return the pages that `view` shows whole and page aligned: guest page → (host page, read-only, logged)."""
    found = {}
    for section in view:
        if section.is_ram:
            readonly = section.readonly or section.romd
            first = section.range.start // PAGE_SIZE * PAGE_SIZE
            for page in range(first, section.range.end, PAGE_SIZE):
                if section.range.start <= page <= section.range.end - PAGE_SIZE:
                    host = section.region.block.address + section.offset + page - section.range.start
                    if host % PAGE_SIZE == 0:
                        found[page] = (host, readonly, bool(section.log_mask) and not readonly)
    return found


def exact(view: FlatView) -> list[tuple]:
    """Return all that `view` says, also what does not count where two sections are compared."""
    return [(section, section.log_mask, section.coalesced, section.eventfds) for section in view]


class Stage:
    """One VM's memory without the VM."""

    def __init__(self, hold: str = "inhibit", timeout: float = PATIENCE, policy: Policy = "least") -> None:
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
        self.dirty_log = DirtySync(self.transactions)
        self.memory = AddressSpace(
            "memory", self.transactions, MemoryRegion.container("memory", ADDRESS_SPACE_SIZE), self.history
        )
        self.io = AddressSpace("io", self.transactions, MemoryRegion.container("io", 1 << 16))
        self.slots = SlotTable(policy)
        self.memory.add_listener(self.slots)

    def transaction(self, atomic="address"):
        return self.transactions.transaction(atomic)

    def check(self) -> None:
        """Assert that nothing is open or held or left over, and that tree, views, slots and pins say the same."""
        transactions = self.transactions
        assert not self.big_lock.held()
        assert not self.slots.lock.held()
        assert not transactions._depth
        assert not transactions._telling
        assert not transactions._whole_map
        assert not self.blocker.inhibited
        assert len(transactions._journal) == 0
        assert transactions._journal.savepoint == (0, 0)
        assert transactions._journal.torn is None
        assert transactions._damage._windows == {}
        assert self.history.started == self.history.completed
        for space in transactions.spaces:
            assert exact(space.view) == exact(render(space.root, log_mask=transactions.log_mask))
        self.check_slots(self.slots)
        self.check_pins()

    def check_slots(self, table: SlotTable) -> None:
        """Assert that `table` maps, and logs, what the view shows."""
        shown = mapped_pages(self.memory.view)
        assert table.pages() == {page: place[:2] for page, place in shown.items()}
        assert table.logged_pages() == {page for page, place in shown.items() if place[2]}

    def check_pins(self) -> None:
        """Assert that each block is pinned once for each section that shows it."""
        shown = Counter(
            section.region.block
            for space in self.transactions.spaces
            for section in space.view
            if section.region.block is not None
        )
        assert self.transactions._pins._counts == shown
        for block, count in shown.items():
            assert block.pins == count


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

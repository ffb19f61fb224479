"""Slot calls on the model: their rules, the order of their steps, what readers see in between, and lists of them."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.address import PAGE_SIZE
from accel.errors import BackendError, MemorySlotError
from accel.exits import ExitKind
from accel.memory.dirty import DirtyLog
from accel.memory.ram_block import RamBlock
from accel.memory.slot_plan import Slot
from accel.program import GuestProgram, Load, Loop, Store
from accel_mock.coalesced import MockCoalescedRing
from accel_mock.kvm.memslots import MemSlots, Region
from accel_mock.kvm.mmu import Fault
from accel_mock.kvm.running import Running
from accel_mock.vcpu import MockVcpu

PATIENCE = 60
PAGES = 10
BLOCK = RamBlock("block", PAGES * PAGE_SIZE)
LOG = DirtyLog(BLOCK.max_size)
for _page in range(PAGES):
    BLOCK.view[_page * PAGE_SIZE] = _page


def _slot(page: int, pages: int = 1, *, at: int = 0, readonly: bool = False, logs: bool = False) -> Slot:
    """Return a slot at a guest page, whose bytes begin at the page `at` of the block; each begins with its number."""
    hva = BLOCK.address + at * PAGE_SIZE
    return Slot(page * PAGE_SIZE, pages * PAGE_SIZE, hva, readonly, BLOCK, LOG if logs else None)


def _memslots(*slots: Slot) -> MemSlots:
    memslots = MemSlots(8, Running())
    for number, slot in enumerate(slots):
        memslots.create(number, slot)
    return memslots


def _look(memslots: MemSlots, page: int, *, write: bool = False) -> int | None:
    """Return the first byte of a guest page as a guest finds it; None if it comes out."""
    mmu, address = memslots.mmu, page * PAGE_SIZE
    if mmu.walk(address, write=write) is None and mmu.fault(address, write=write) is Fault.MMIO:
        return None
    found = mmu.walk(address, write=write)
    assert found is not None
    return int(found[0][found[1]])


@contextmanager
def _calling(call: Callable[[], object]) -> Iterator[threading.Thread]:
    """Make a call on a thread, which is to be over after the block."""
    errors: list[BaseException] = []

    def main() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    yield thread
    thread.join(PATIENCE)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


# one call


def test_memslots_move_leaves_a_hole_and_takes_bytes_and_flags_along() -> None:
    memslots = _memslots(_slot(2, 2, at=3, logs=True))
    assert _look(memslots, 2, write=True) == 3
    memslots.move(0, _slot(5, 2, at=3, logs=True))
    assert [_look(memslots, page) for page in (2, 3, 5, 6)] == [None, None, 3, 4]
    assert _look(memslots, 6, write=True) == 4
    assert memslots.take_dirty(0, _slot(5)) == b"\3", "as on KVM, the log comes along"
    assert memslots.take_dirty(0, _slot(5)) == b"\0"


def test_memslots_move_onto_its_own_range_is_allowed() -> None:
    memslots = _memslots(_slot(2, 3))
    memslots.move(0, _slot(3, 3))
    assert [_look(memslots, page) for page in range(2, 7)] == [None, 0, 1, 2, None]


@pytest.mark.parametrize(
    ("number", "slot", "code"),
    [
        (2, _slot(5, 2), errno.EINVAL),  # maps nothing
        (0, _slot(5, 1), errno.EINVAL),  # another size
        (0, _slot(5, 2, at=1), errno.EINVAL),  # other memory
        (0, _slot(5, 2, readonly=True), errno.EINVAL),
        (0, attrs.evolve(_slot(5, 2), gpa=5 * PAGE_SIZE + 1), errno.EINVAL),
        (0, _slot(7, 2), errno.EEXIST),
    ],
)
def test_memslots_move_that_breaks_a_rule_is_refused(number: int, slot: Slot, code: int) -> None:
    memslots = _memslots(_slot(2, 2), _slot(8))
    before = memslots.table
    with pytest.raises(MemorySlotError) as caught:
        memslots.move(number, slot)
    assert (caught.value.errno, caught.value.slot) == (code, number)
    assert memslots.table is before


# the order of steps


def test_memslots_deletion_goes_by_an_invalid_slot_while_readers_of_the_old_set_are_there() -> None:
    """Who reads has the slot; who looks again finds it invalid; nobody finds a hole before all readers have gone."""
    memslots = _memslots(_slot(2))
    seen: list[object] = []
    with _calling(lambda: (memslots.delete(0, _slot(2)), seen.append("deleted"))), memslots.srcu.read():
        # A section that began before the deletion, or inside it: either way it has to end first.
        while (slot := memslots.table.numbered(0)) is not None and not slot.invalid:
            pass
        seen.append(memslots.mmu.fault(2 * PAGE_SIZE, write=False) if slot is not None else "gone")
    assert seen in ([Fault.RETRY, "deleted"], ["gone", "deleted"], ["deleted", "gone"])
    assert _look(memslots, 2) is None


def test_memslots_call_waits_for_a_reader_of_the_set_before() -> None:
    memslots = _memslots(_slot(2))
    order: list[str] = []
    reads, installed = threading.Event(), threading.Event()

    def reader() -> None:
        with memslots.srcu.read():
            slot = memslots.table.find(2 * PAGE_SIZE)
            reads.set()
            assert installed.wait(PATIENCE)
            assert slot is not None
            order.append("read")

    with _calling(reader):
        assert reads.wait(PATIENCE)
        with _calling(lambda: (memslots.delete(0, _slot(2)), order.append("deleted"))) as deleting:
            while not memslots.table.slots[0].invalid and deleting.is_alive():
                pass
            installed.set()
    assert order == ["read", "deleted"]


def test_memslots_call_takes_slots_arch_lock_for_the_exchange_only() -> None:
    """A reader may take it, so it is not held while readers are waited for."""
    memslots = _memslots(_slot(2))
    held: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memslots.srcu, "synchronize", lambda: held.append(memslots._slots_arch_lock.held()))
        memslots.create(1, _slot(4))
    assert held == [False]


def test_memslots_set_is_not_exchanged_while_a_pair_of_a_notifier_is_open() -> None:
    memslots = _memslots(_slot(2))
    notifiers, order = memslots.notifiers, list[str]()
    notifiers.invalidate_range_start(BLOCK.address, BLOCK.address + PAGE_SIZE)
    with _calling(lambda: (memslots.create(1, _slot(4)), order.append("created"))) as creating:
        while not notifiers._none._waiters and creating.is_alive():
            pass
        assert memslots.table.numbered(1) is None
        order.append("ended")
        notifiers.invalidate_range_end(BLOCK.address, BLOCK.address + PAGE_SIZE)
    assert order == ["ended", "created"]


def test_memslots_calls_are_made_one_after_the_other() -> None:
    memslots = MemSlots(8, Running())
    threads = [threading.Thread(target=lambda n=n: _plug(memslots, n)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [one.number for one in memslots.table] == list(range(6))


def _plug(memslots: MemSlots, number: int) -> None:
    for _ in range(10):
        memslots.create(number, _slot(number, at=number))
        memslots.delete(number, _slot(number))
    memslots.create(number, _slot(number, at=number))


# lists


def test_memslots_list_is_one_change() -> None:
    """The merge that takes three calls otherwise; with a number that is used again, and one that stays."""
    memslots = _memslots(_slot(2), _slot(3, at=1), _slot(6, at=6))
    memslots.apply_list([Region(0, None), Region(1, None), Region(1, _slot(2, 2)), Region(4, _slot(8, at=8))])
    assert [(one.number, one.slot.gpa // PAGE_SIZE) for one in memslots.table] == [(1, 2), (2, 6), (4, 8)]
    assert [_look(memslots, page) for page in range(1, 10)] == [None, 0, 1, None, None, 6, None, 8, None]


def test_memslots_list_begins_and_ends_logs_where_the_slots_stay() -> None:
    memslots = _memslots(_slot(2), _slot(4, at=4, logs=True))
    for page in (2, 4):
        _look(memslots, page, write=True)
    memslots.apply_list([Region(0, _slot(2, logs=True)), Region(1, _slot(4, at=4)), Region(2, _slot(6, at=6))])
    assert [one.log is not None for one in memslots.table] == [True, False, False]
    assert memslots.take_dirty(0, _slot(2)) == b"\0"
    _look(memslots, 2, write=True)
    assert memslots.take_dirty(0, _slot(2)) == b"\1", "the entry was writable before"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (Region(5, None), errno.EINVAL),
        (Region(1, _slot(7)), errno.EINVAL),  # in use, and not the same
        (Region(8, _slot(7)), errno.EINVAL),  # too high
        (Region(5, _slot(3)), errno.EEXIST),
        (Region(5, _slot(6)), errno.EEXIST),  # comes in the same list
    ],
)
def test_memslots_list_with_a_change_that_breaks_a_rule_does_nothing(change: Region, code: int) -> None:
    memslots = _memslots(_slot(2), _slot(3, at=1))
    before = memslots.table
    with pytest.raises(BackendError) as caught:
        memslots.apply_list([Region(0, None), Region(0, _slot(6)), change])
    assert caught.value.errno == code
    assert memslots.table is before
    assert [_look(memslots, page) for page in (2, 3, 6)] == [0, 1, None]


def test_memslots_list_shows_a_vcpu_no_hole_though_everything_is_deleted_and_added_back() -> None:
    """Neither in page faults nor where KVM's emulator makes an access, across the border of two pages."""
    running = Running()
    memslots = MemSlots(8, running)
    memslots.create(0, _slot(0, 2))
    vcpu = MockVcpu(memslots, running, threading.Lock(), MockCoalescedRing())
    border = PAGE_SIZE - 4
    vcpu.load_program(
        GuestProgram((Loop((Load(0, expect=0), Load(border, 8, expect=1 << 32), Store(border, 1 << 32, 8)), None),))
    )
    came_out: list[int] = []

    def main() -> None:
        came_out.append(vcpu.run())

    with _calling(main):
        while not running.any and not came_out:
            pass
        merged = [Region(0, None), Region(1, _slot(0)), Region(2, _slot(1, at=1))]
        split = [Region(1, None), Region(2, None), Region(0, _slot(0, 2))]
        for _ in range(50):
            memslots.apply_list(merged)
            memslots.apply_list(split)
        vcpu.kick(0)
    assert (came_out, vcpu.errors) == ([ExitKind.INTERRUPTED], 0)


def test_memslots_emulated_access_waits_for_a_list_and_holds_up_none_of_its_waits() -> None:
    running = Running()
    memslots = MemSlots(8, running)
    memslots.create(0, _slot(0, 2))
    vcpu = MockVcpu(memslots, running, threading.Lock(), MockCoalescedRing())
    vcpu.load_program(GuestProgram((Load(PAGE_SIZE - 4, 8, expect=1 << 32),)))
    came_out: list[int] = []
    with memslots.srcu.read():
        changes = [Region(0, None), Region(1, _slot(0, 2))]
        listing = threading.Thread(target=memslots.apply_list, args=(changes,), daemon=True)
        listing.start()
        while not memslots.table.slots[0].invalid:
            pass
        running_one = threading.Thread(target=lambda: came_out.append(vcpu.run()), daemon=True)
        running_one.start()
        while not running.any and running_one.is_alive():
            pass
        assert not came_out
    for thread in (listing, running_one):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert (came_out, vcpu.errors) == ([ExitKind.HALT], 0)


# all of it against pages


@attrs.define
class Pages:
    """What slots come to, page by page: number → (first guest page, pages, first page of the block, readonly, logs)."""

    slots: dict[int, tuple[int, int, int, bool, bool]] = attrs.Factory(dict)

    def owner(self, page: int, but: int = -1) -> int | None:
        return next((n for n, one in self.slots.items() if n != but and one[0] <= page < one[0] + one[1]), None)

    def free(self, page: int, pages: int, but: int = -1) -> bool:
        return all(self.owner(one, but) is None for one in range(page, page + pages))


_CHANGES = st.lists(
    st.tuples(
        st.sampled_from(("create", "create", "delete", "move", "toggle", "list")),
        st.integers(0, 4),
        st.integers(0, 11),
        st.integers(1, 3),
        st.booleans(),
        st.booleans(),
    ),
    max_size=20,
)


@given(_CHANGES)
@settings(max_examples=150)
def test_memslots_after_random_calls_agree_with_pages(changes: list[tuple[str, int, int, int, bool, bool]]) -> None:
    memslots, pages = MemSlots(5, Running()), Pages()
    for kind, number, page, count, readonly, logs in changes:
        have = pages.slots.get(number)
        if kind == "list":
            # The slot goes and another comes, in one step: what `create` would do had `delete` been before it.
            allowed = have is not None and pages.free(page, count, number)
            wanted = (page, count, page % 4, readonly, logs)
            slot = _slot(page, count, at=page % 4, readonly=readonly, logs=logs)
            call = [Region(number, None), Region(number, slot)]
            _try(allowed, memslots.apply_list, call)
        elif kind == "create":
            allowed = have is None and pages.free(page, count)
            wanted = (page, count, page % 4, readonly, logs)
            slot = _slot(page, count, at=page % 4, readonly=readonly, logs=logs)
            _try(allowed, memslots.create, number, slot)
        elif kind == "delete":
            allowed, wanted = have is not None, None
            _try(allowed, memslots.delete, number, _slot(page))
        elif kind == "move":
            first, size, at, ro, log = have or (page, count, 0, readonly, logs)
            allowed = have is not None and pages.free(page, size, number)
            wanted = (page, size, at, ro, log)
            _try(allowed, memslots.move, number, _slot(page, size, at=at, readonly=ro, logs=log))
        else:
            first, size, at, ro, log = have or (page, count, 0, readonly, logs)
            allowed, wanted = have is not None, (first, size, at, ro, logs)
            _try(allowed, memslots.toggle, number, _slot(first, size, at=at, readonly=ro, logs=logs))
        if allowed and wanted is None:
            del pages.slots[number]
        elif allowed and wanted is not None:
            pages.slots[number] = wanted
        _compare(memslots, pages, write=logs)


def _try(allowed: bool, call: Callable[..., None], *arguments: object) -> None:
    try:
        call(*arguments)
    except BackendError:
        assert not allowed
    else:
        assert allowed


def _compare(memslots: MemSlots, pages: Pages, *, write: bool) -> None:
    """Look at each page, writing or not, and take the logs: each page that was written is there, and no other."""
    written: dict[int, set[int]] = {number: set() for number in pages.slots}
    for page in range(16):
        owner = pages.owner(page)
        expected = None
        if owner is not None:
            first, _, at, readonly, _ = pages.slots[owner]
            if not (write and readonly):
                expected = at + page - first
                written[owner] |= {page - first} if write else set()
        assert _look(memslots, page, write=write) == expected
    for number, (_, size, _, _, logs) in pages.slots.items():
        if logs:
            taken = memslots.take_dirty(number, _slot(0))
            assert {page for page in range(size) if taken[0] >> page & 1} == written[number]
            assert not any(memslots.take_dirty(number, _slot(0)))

"""The parts of the shadow page table by themselves: entries, reverse map, host pages, what a fault leaves behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel import MemoryRegion
from accel.address import PAGE_SIZE
from accel.memory.slot_plan import Slot
from accel_mock.kvm.fast_fault import FastPath, PinnedPath
from accel_mock.kvm.host_pages import HostPages
from accel_mock.kvm.indirect import IndirectPage
from accel_mock.kvm.memslots import MemSlots
from accel_mock.kvm.mmu import Fault
from accel_mock.kvm.rmap import ReverseMap
from accel_mock.kvm.running import Running
from accel_mock.kvm.spte import (
    ACCESSED,
    DIRTY,
    EXECUTABLE,
    HOST_WRITABLE,
    MMU_WRITABLE,
    NO_AD,
    PRESENT,
    WRITABLE,
    Spte,
    is_tracked,
    pfn_of,
    restored,
    spte_word,
    tracked,
)
from accel_mock.kvm.zap import ZapSlot

BASE = 0x4000
BOTH = HOST_WRITABLE | MMU_WRITABLE

words = st.builds(spte_word, st.integers(0, 1 << 40), st.integers(0, 0x3FF).map(lambda bits: bits & ~0xC0 | PRESENT))


@given(words)
def test_spte_tracked_and_restored_loses_w_and_nothing_else(word: int) -> None:
    hidden = tracked(word)
    assert is_tracked(hidden)
    assert not hidden & (PRESENT | WRITABLE | EXECUTABLE)
    assert pfn_of(hidden) == pfn_of(word)
    assert restored(hidden) == word & ~WRITABLE
    assert not is_tracked(word)


@given(words, st.booleans())
def test_spte_walk_is_allowed_by_w_and_sets_what_the_processor_sets(word: int, write: bool) -> None:
    spte = Spte(0, 0, word)
    found = spte.walk(write=write)
    if write and not word & WRITABLE:
        assert (found, spte.word) == (0, word)
    elif word & NO_AD:
        assert found == spte.word == word
    else:
        assert found == spte.word == word | ACCESSED | (DIRTY if write else 0)
    assert Spte(0, 0, tracked(word)).walk(write=False) == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(0, 12)), max_size=60))
def test_rmap_agrees_with_a_list_of_entries(changes: list[tuple[bool, int, int]]) -> None:
    rmap, there = ReverseMap(), list[Spte]()
    for adds, gfn, address in changes:
        if adds:
            there.append(Spte(gfn, address))
            rmap.add(there[-1])
        elif there:
            rmap.remove(there.pop(gfn % len(there)))
        for first, last in ((0, 13), (gfn, gfn + 1), (min(gfn, address), max(gfn, address))):
            assert set(rmap.of_guest(first, last)) == {one for one in there if first <= one.gfn < last}
            assert set(rmap.of_host(first, last)) == {one for one in there if first <= one.address < last}
        assert len(rmap) == len({one.gfn for one in there})


def test_rmap_remove_of_an_entry_that_is_not_there_is_nothing() -> None:
    rmap, spte = ReverseMap(), Spte(1, 2)
    rmap.add(spte)
    rmap.remove(Spte(1, 2))
    rmap.remove(Spte(3, 4))
    assert rmap.of_guest(0, 9) == [spte]


def test_host_pages_page_that_is_pinned_is_not_free_until_it_is_unpinned() -> None:
    host = HostPages()
    assert host.pin(5) == 5
    assert host.unmap(5) == 5
    assert not host.is_free(5)
    host.unpin(5)
    assert host.is_free(5)
    assert host.pin(5) is None
    host.give(6, 5)
    assert host.fault_in(6, write=False) == (5, True)


def test_host_pages_shared_page_is_read_only_and_who_writes_gets_another() -> None:
    host = HostPages()
    host.share(5)
    assert host.fault_in(5, write=False) == (5, False)
    assert host.pin(5) is None
    page, writable = host.fault_in(5, write=True)
    assert page != 5
    assert writable
    assert not host.is_shared(page)
    assert host.fault_in(5, write=False) == (page, True)


def test_host_pages_each_page_found_anew_is_another() -> None:
    host = HostPages()
    for address in (1, 2):
        host.unmap(address)
    assert host.fault_in(1, write=False)[0] != host.fault_in(2, write=False)[0]


@pytest.mark.parametrize(
    ("bits", "write", "after"),
    [
        (PRESENT | BOTH, True, PRESENT | BOTH | WRITABLE),
        (PRESENT | HOST_WRITABLE, True, None),
        (PRESENT | MMU_WRITABLE, True, None),
        (PRESENT | BOTH | NO_AD, True, PRESENT | BOTH | WRITABLE | NO_AD),
        (tracked(PRESENT | EXECUTABLE | BOTH | NO_AD), False, PRESENT | EXECUTABLE | BOTH | NO_AD),
        (tracked(PRESENT | BOTH | WRITABLE | NO_AD), False, PRESENT | BOTH | NO_AD),
        (tracked(PRESENT | BOTH | NO_AD), True, PRESENT | BOTH | WRITABLE | NO_AD),
        (0, False, None),
    ],
)
def test_fast_path_repairs_what_it_may_and_notes_who_gets_w(bits: int, write: bool, after: int | None) -> None:
    spte, noted = Spte(0, 0, spte_word(7, bits)), list[int]()
    allowed = FastPath().fix(spte, write=write, written=lambda: noted.append(1))
    assert allowed is (after is not None)
    assert spte.word == spte_word(7, bits if after is None else after)
    assert bool(noted) is (allowed and write)


def test_fast_path_is_not_for_indirect_entries_unless_the_page_is_pinned_and_the_same() -> None:
    host, spte = HostPages(), Spte(0, 0, spte_word(7, PRESENT | BOTH))
    fix = {"write": True, "written": lambda: None}
    assert not FastPath().fix_indirect(spte, host, 7, **fix)
    assert not PinnedPath().fix_indirect(spte, host, 8, **fix)
    assert spte.word == spte_word(7, PRESENT | BOTH)
    assert PinnedPath().fix_indirect(spte, host, 7, **fix)
    assert spte.word & WRITABLE
    assert host.is_free(7)
    assert host.is_free(8)


@pytest.fixture
def memslots() -> Iterator[MemSlots]:
    """Slot 0 of four pages at `BASE`, which logs; slot 1 of as many after that, which does not."""
    made = MemSlots(4, Running())
    region = MemoryRegion.ram("ram", 8 * PAGE_SIZE)
    block = region.block
    assert block is not None
    size = 4 * PAGE_SIZE
    made.create(0, Slot(BASE, size, block.address, False, block).with_log(region.dirty_log()))
    made.create(1, Slot(BASE + size, size, block.address + size, False, block))
    yield made
    made.clear()


def word(memslots: MemSlots, address: int) -> int:
    """Return the entry of an address; 0 if there is none."""
    spte = memslots.mmu.entry(address // PAGE_SIZE)
    return 0 if spte is None else spte.word


def test_mmu_fault_makes_an_entry_with_w_where_no_log_is_or_the_access_is_a_write(memslots: MemSlots) -> None:
    mmu, other = memslots.mmu, BASE + 4 * PAGE_SIZE
    mmu.fault(BASE, write=False)
    mmu.fault(BASE + PAGE_SIZE, write=True)
    mmu.fault(other, write=False)
    assert word(memslots, BASE) & 0x3F == PRESENT | ACCESSED | BOTH
    assert word(memslots, BASE + PAGE_SIZE) & 0x3F == PRESENT | ACCESSED | DIRTY | BOTH | WRITABLE
    assert word(memslots, other) & 0x3F == PRESENT | ACCESSED | BOTH | WRITABLE
    found = memslots.table.find(BASE)
    assert found is not None
    assert memslots.take_dirty(0, found.slot)[0] == 0b10


def test_mmu_walk_finds_the_byte_by_the_entry_alone(memslots: MemSlots) -> None:
    memslots.mmu.fault(BASE, write=False)
    memslots.table = memslots.table.without(memslots.table.slots[0])
    found = memslots.mmu.walk(BASE + 5, write=False)
    assert found is not None
    assert found[1] == 5
    assert memslots.mmu.walk(BASE + PAGE_SIZE, write=False) is None
    assert memslots.mmu.fault(BASE + PAGE_SIZE, write=False) is Fault.MMIO


def test_mmu_zap_tells_the_host_what_was_used_and_what_was_written(memslots: MemSlots) -> None:
    mmu, first = memslots.mmu, memslots.table.slots[0].slot
    page = first.hva // PAGE_SIZE
    mmu.fault(BASE, write=False)
    mmu.fault(BASE + PAGE_SIZE, write=True)
    assert not mmu.host.accessed
    memslots.delete(0, first)
    assert mmu.host.accessed == {page, page + 1}
    assert mmu.host.dirty == {page + 1}
    assert len(mmu.rmap) == 0


def test_mmu_unmap_host_zaps_what_leads_there_and_no_more(memslots: MemSlots) -> None:
    mmu, hva = memslots.mmu, memslots.table.slots[0].slot.hva
    for page in range(3):
        mmu.fault(BASE + page * PAGE_SIZE, write=False)
    mmu.unmap_host(hva + PAGE_SIZE, hva + PAGE_SIZE + 1)
    assert [bool(word(memslots, BASE + page * PAGE_SIZE)) for page in range(3)] == [True, False, True]


def test_mmu_unmap_host_leaves_the_bytes_to_a_fault_that_has_them(memslots: MemSlots) -> None:
    mmu, hva = memslots.mmu, memslots.table.slots[0].slot.hva
    mmu.unmap_host(hva, hva + PAGE_SIZE)
    mmu.fault(BASE, write=False)
    mmu.unmap_host(hva, hva + PAGE_SIZE)
    mmu.fault(BASE, write=False)
    assert len(mmu.rmap.of_guest(BASE // PAGE_SIZE, BASE // PAGE_SIZE + 1)) == 1


def test_mmu_zap_of_the_slot_only_lets_its_bytes_go(memslots: MemSlots) -> None:
    mmu, first, second = memslots.mmu, memslots.table.slots[0].slot, memslots.table.slots[1].slot
    mmu.strategy = ZapSlot()
    mmu.fault(first.gpa, write=False)
    mmu.fault(second.gpa, write=False)
    memslots.delete(0, first)
    assert mmu.entry(first.gpa // PAGE_SIZE) is None
    assert word(memslots, second.gpa)


def test_mmu_watched_page_is_written_by_the_emulator_only(memslots: MemSlots) -> None:
    mmu = memslots.mmu
    mmu.fault(BASE, write=True)
    mmu.watch(BASE // PAGE_SIZE)
    assert not word(memslots, BASE) & (WRITABLE | MMU_WRITABLE)
    assert mmu.walk(BASE, write=False) is not None
    assert mmu.walk(BASE, write=True) is None
    assert mmu.fault(BASE, write=True) is Fault.MMIO
    assert mmu.fault(BASE + PAGE_SIZE, write=True) is Fault.FIXED


def test_mmu_make_for_a_write_to_a_page_that_is_watched_by_then_makes_nothing(memslots: MemSlots) -> None:
    mmu = memslots.mmu
    mmu.watch(BASE // PAGE_SIZE)
    assert mmu._make(memslots.table.slots[0], BASE // PAGE_SIZE, None, write=True) is Fault.RETRY
    assert mmu.entry(BASE // PAGE_SIZE) is None


@pytest.mark.parametrize("no_ad", [False, True])
def test_mmu_age_host_says_once_that_a_page_was_used(memslots: MemSlots, no_ad: bool) -> None:
    mmu, hva = memslots.mmu, memslots.table.slots[1].slot.hva
    gpa = BASE + 4 * PAGE_SIZE
    mmu.no_ad = no_ad
    assert not mmu.age_host(hva, hva + PAGE_SIZE)
    mmu.fault(gpa, write=False)
    assert mmu.age_host(hva, hva + PAGE_SIZE)
    assert not mmu.age_host(hva, hva + PAGE_SIZE)
    assert is_tracked(word(memslots, gpa)) is no_ad
    if no_ad:
        assert mmu.fault(gpa, write=False) is Fault.FIXED
    assert mmu.walk(gpa, write=False) is not None
    assert mmu.age_host(hva, hva + PAGE_SIZE)


def test_mmu_age_host_without_dirty_bits_tells_the_host_before_w_goes(memslots: MemSlots) -> None:
    mmu, hva = memslots.mmu, memslots.table.slots[0].slot.hva
    mmu.no_ad = True
    mmu.fault(BASE, write=True)
    mmu.age_host(hva, hva + PAGE_SIZE)
    assert mmu.host.dirty == {hva // PAGE_SIZE}


def test_indirect_entry_follows_the_table_of_the_guest(memslots: MemSlots) -> None:
    first = BASE // PAGE_SIZE
    page = IndirectPage(memslots, {9: first})
    assert page.access(9, write=False) is None
    assert page.access(9, write=False) == first
    assert page.access(9, write=True) is None
    assert page.access(9, write=True) == first
    page.write_gpte(9, first + 1)
    assert page.stale() == []
    assert page.access(9, write=False) is None
    assert page.access(9, write=False) == first + 1
    # A notifier finds it by the host's address.
    hva = memslots.table.slots[0].slot.hva + PAGE_SIZE
    memslots.mmu.unmap_host(hva, hva + PAGE_SIZE)
    assert page.access(9, write=False) is None
    page.write_gpte(9, 0)
    for _ in range(2):
        assert page.access(9, write=False) is None

"""Page faults on the model: what entry they make, who tries again, and how an entry loses W or goes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from accel.address import PAGE_SIZE
from accel.memory.dirty import DirtyLog
from accel.memory.ram_block import RamBlock
from accel.memory.slot_plan import Slot
from accel_mock.kvm.memslots import MemSlots
from accel_mock.kvm.mmu import Fault, ShadowMmu
from accel_mock.kvm.running import Running
from accel_mock.kvm.spte import ACCESSED, DIRTY, PRESENT, WRITABLE, pfn_of

PATIENCE = 60
GFN = 0x200
GPA = GFN * PAGE_SIZE


class Stage:
    """Memslots without vCPUs; slot 0 has four pages at `GPA`."""

    def __init__(self, *, logs: bool = False, readonly: bool = False) -> None:
        self.block = RamBlock("block", 4 * PAGE_SIZE)
        self.memslots = MemSlots(4, Running())
        log = DirtyLog(self.block.max_size) if logs else None
        self.slot = Slot(GPA, 4 * PAGE_SIZE, self.block.address, readonly, self.block, log)
        self.memslots.create(0, self.slot)

    @property
    def mmu(self) -> ShadowMmu:
        return self.memslots.mmu

    def fault(self, page: int, *, write: bool = False) -> int | Fault:
        """Walk, and if that is a page fault walk again; return the offset in the slot, or what the fault gave."""
        address = GPA + page * PAGE_SIZE + 7
        found = self.mmu.walk(address, write=write)
        if found is None:
            fault = self.mmu.fault(address, write=write)
            if fault is not Fault.FIXED:
                return fault
            found = self.mmu.walk(address, write=write)
            # Somebody else came between the two.
            return Fault.RETRY if found is None else found[1]
        return found[1]

    def bits(self, page: int) -> int:
        """Return of an entry what the processor looks at, and what it sets."""
        spte = self.mmu.entry(GFN + page)
        return 0 if spte is None else spte.word & (PRESENT | WRITABLE | ACCESSED | DIRTY)

    def dirty(self) -> list[int]:
        """Take the log."""
        bits = self.memslots.take_dirty(0, self.slot)
        return [page for page in range(4) if bits[page >> 3] >> (page & 7) & 1]


def _on_a_thread(call: Callable[[], object]) -> object:
    """Return what a call gives on another thread."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    return found[0]


# entries


def test_mmu_read_fault_makes_an_entry_that_may_be_written_where_nobody_logs() -> None:
    stage = Stage()
    assert stage.fault(2) == 2 * PAGE_SIZE + 7
    assert stage.bits(2) == PRESENT | WRITABLE | ACCESSED
    assert stage.bits(1) == 0
    spte = stage.mmu.entry(GFN + 2)
    assert spte is not None
    assert pfn_of(spte.word) == stage.block.address // PAGE_SIZE + 2


def test_mmu_write_fault_marks_the_entry_dirty() -> None:
    stage = Stage()
    stage.fault(0, write=True)
    assert stage.bits(0) == PRESENT | WRITABLE | ACCESSED | DIRTY


def test_mmu_fault_in_a_hole_and_a_write_to_a_read_only_slot_come_out() -> None:
    stage = Stage(readonly=True)
    assert stage.fault(4) is Fault.MMIO
    assert stage.fault(-1) is Fault.MMIO
    assert stage.fault(0, write=True) is Fault.MMIO
    assert stage.fault(0) == 7
    assert stage.bits(0) == PRESENT | ACCESSED
    assert stage.fault(0, write=True) is Fault.MMIO


def test_mmu_read_fault_under_a_log_makes_an_entry_whose_first_write_is_noted() -> None:
    stage = Stage(logs=True)
    stage.fault(1)
    assert stage.bits(1) == PRESENT | ACCESSED
    assert stage.dirty() == []
    stage.fault(1, write=True)
    assert stage.bits(1) == PRESENT | WRITABLE | ACCESSED | DIRTY
    assert stage.dirty() == [1]


def test_mmu_entry_that_a_log_took_away_is_write_protected_and_the_others_are_not() -> None:
    stage = Stage(logs=True)
    for page in (0, 3):
        stage.fault(page, write=True)
    assert stage.dirty() == [0, 3]
    stage.fault(3, write=True)
    assert not stage.bits(0) & WRITABLE
    assert stage.bits(3) & WRITABLE
    assert stage.dirty() == [3]
    stage.fault(0, write=True)
    assert stage.dirty() == [0]


def test_mmu_toggle_write_protects_what_the_slot_has_and_nothing_else() -> None:
    stage = Stage()
    other = RamBlock("other", PAGE_SIZE)
    stage.memslots.create(1, Slot(GPA + 4 * PAGE_SIZE, PAGE_SIZE, other.address, False, other))
    for page in range(5):
        stage.fault(page, write=True)
    logged = stage.slot.with_log(DirtyLog(stage.block.max_size))
    stage.memslots.toggle(0, logged)
    assert [bool(stage.bits(page) & WRITABLE) for page in range(5)] == [False] * 4 + [True]
    stage.memslots.toggle(0, stage.slot)
    stage.fault(2, write=True)
    assert stage.bits(2) & WRITABLE


# without and with the lock


def test_mmu_write_protected_entry_is_repaired_without_the_lock() -> None:
    stage = Stage(logs=True)
    stage.fault(1)
    with stage.mmu.lock:
        assert _on_a_thread(lambda: stage.fault(1, write=True)) == PAGE_SIZE + 7
        assert _on_a_thread(lambda: stage.fault(1)) == PAGE_SIZE + 7
    assert stage.dirty() == [1]


def test_mmu_fault_that_makes_an_entry_waits_for_the_lock_and_says_so() -> None:
    stage = Stage()
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(stage.fault(1)), daemon=True) for _ in range(3)]
    with stage.mmu.lock:
        for thread in threads:
            thread.start()
        while stage.mmu.waiting < 3 and any(thread.is_alive() for thread in threads):
            pass
        assert not found
    for thread in threads:
        thread.join(PATIENCE)
    assert found == [PAGE_SIZE + 7] * 3
    assert stage.mmu.waiting == 0
    assert stage.bits(1)


def test_mmu_counts_who_waits_though_many_come_and_go_at_once() -> None:
    stage = Stage()
    pages = range(4)

    def vcpu() -> None:
        for _ in range(300):
            for page in pages:
                stage.fault(page)
            stage.mmu.zap_all()

    threads = [threading.Thread(target=vcpu) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert stage.mmu.waiting == 0
    stage.mmu.zap_all()
    assert (len(stage.mmu.rmap), stage.mmu.pages) == (0, {})


# what goes


def test_mmu_walks_what_is_mapped_of_a_slot_that_is_invalid_and_makes_nothing_new() -> None:
    """As on KVM: a slot that is to go is used until it is zapped, and the next fault waits for it to be gone."""
    stage = Stage()
    stage.fault(0)
    seen: list[tuple[object, object]] = []
    zap = stage.mmu.zap

    def zapping(slot: object) -> None:
        seen.append((stage.fault(0), stage.fault(1)))
        zap(slot)  # type: ignore[arg-type]
        seen.append((stage.fault(0), stage.fault(1)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage.mmu, "zap", zapping)
        stage.memslots.delete(0, stage.slot)
    assert seen == [(7, Fault.RETRY), (Fault.RETRY, Fault.RETRY)]
    assert stage.fault(0) is Fault.MMIO


def test_mmu_entries_of_an_older_generation_lead_nowhere() -> None:
    stage = Stage()
    stage.fault(0)
    with stage.mmu.lock:
        stage.mmu.generation += 1
    assert stage.bits(0) == 0
    assert stage.fault(1) == PAGE_SIZE + 7
    assert stage.bits(0) == 0
    assert stage.fault(0) == 7


def test_mmu_unmapped_host_pages_go_out_of_the_table_and_come_back_by_a_fault() -> None:
    stage = Stage()
    for page in range(4):
        stage.fault(page)
    start = stage.block.address + PAGE_SIZE
    stage.memslots.notifiers.invalidate_range_start(start, start + PAGE_SIZE + 1)
    assert [bool(stage.bits(page)) for page in range(4)] == [True, False, False, True]
    assert stage.fault(1) is Fault.RETRY
    assert stage.fault(0) == 7
    stage.memslots.notifiers.invalidate_range_end(start, start + PAGE_SIZE + 1)
    assert stage.fault(1) == PAGE_SIZE + 7


def test_mmu_fault_whose_host_page_was_unmapped_meanwhile_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole pair passes between looking the host's page up and taking the lock: what was found is old."""
    stage = Stage()
    new_word = stage.mmu.new_word

    def slowly(*args: object, **kwargs: object) -> int:
        word = new_word(*args, **kwargs)  # type: ignore[arg-type]
        with stage.memslots.notifiers.invalidating(stage.block.address, stage.block.address + PAGE_SIZE):
            pass
        return word

    with monkeypatch.context() as patch:
        patch.setattr(stage.mmu, "new_word", slowly)
        assert stage.fault(0) is Fault.RETRY
    assert stage.bits(0) == 0
    assert stage.fault(0) == 7

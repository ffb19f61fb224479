"""The mock's dirty log: exactly the pages that the guest wrote, however it wrote, each of them once."""

from __future__ import annotations

import threading

import pytest

from accel.address import PAGE_SIZE
from accel.memory.dirty import DirtyClient
from accel.memory.region import MemoryRegion
from accel.program import RETURN_BYTE, Add, Fetch, GuestProgram, Load, Op, Store
from accel_mock.kvm.page_log import PageLog

BASE = 0x20_0000
VGA, MIGRATION = DirtyClient.VGA, DirtyClient.MIGRATION


def _stores(*pages: int, at: int = BASE) -> list[Op]:
    """Return a store into each page, not all at the same place of it."""
    return [Store(at + page * PAGE_SIZE + page % PAGE_SIZE, 0x5A, 1) for page in pages]


# what is noted


@pytest.mark.parametrize("count", [1, 7, 8, 9, 65, 200])
def test_mock_dirty_log_has_exactly_the_pages_that_the_guest_wrote_and_has_them_once(boot, count) -> None:
    guest = boot()
    region = MemoryRegion.ram("ram", count * PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    assert guest.run(*_stores(*range(count))) == []  # before anybody logs
    region.start_log(VGA)
    assert guest.dirty_pages(region) == []
    written = sorted({0, count // 2, count - 1})
    assert guest.run(*_stores(*written)) == []
    assert guest.dirty_pages(region) == written
    assert guest.dirty_pages(region) == []
    guest.run(*_stores(count - 1))
    assert guest.dirty_pages(region) == [count - 1]


EDGE = BASE + PAGE_SIZE


@pytest.mark.parametrize(
    ("ops", "pages"),
    [
        ((Store(EDGE, 1, 1), Store(EDGE + 4, 1, 8)), [1]),
        ((Store(EDGE - 1, 0x2211, 2),), [0, 1]),
        ((Store(EDGE - 8, 1, 8), Store(EDGE + PAGE_SIZE, 1, 4)), [0, 2]),
        ((Add(EDGE + 8, 1, 8),), [1]),
        ((Add(EDGE - 4), Add(EDGE)), [0, 1]),
        ((Load(EDGE), Load(EDGE - 1, 2), Fetch(EDGE + 0x80)), []),
    ],
)
def test_mock_dirty_log_notes_every_way_to_write_and_no_way_to_read(boot, ops, pages) -> None:
    guest = boot()
    region = MemoryRegion.ram("ram", 4 * PAGE_SIZE)
    region.write(PAGE_SIZE + 0x80, bytes([RETURN_BYTE]))
    guest.vm.memory.add(region, at=BASE)
    region.start_log(VGA)
    assert guest.run(*ops) == []
    assert guest.dirty_pages(region) == pages


@pytest.mark.parametrize("op", [Store(BASE, 1), Add(BASE)])
def test_mock_dirty_log_that_has_a_page_is_returned_once_the_write_is_made(boot, op) -> None:
    """A page is noted before it is written. So taking the log waits for a vCPU that is between the two."""
    guest = boot()
    region = MemoryRegion.ram("ram", 4 * PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    region.start_log(VGA)
    backend, bus = guest.vcpu.backend, guest.vm.backend._bus
    taken: list[tuple[list[int], bytes]] = []
    taker = threading.Thread(target=lambda: taken.append((guest.dirty_pages(region), region.read(0, 1))))
    guest.vcpu.load_program(GuestProgram((op,)))
    writer = threading.Thread(target=guest.vcpu.run)
    with bus:
        writer.start()
        while BASE not in backend.writable and writer.is_alive():  # then the page fault is over, but not the write
            pass
        taker.start()
        while not backend.attention and taker.is_alive():
            pass
        assert not taken
    writer.join(60)
    taker.join(60)
    assert taken == [([0], b"\1")]


def test_mock_dirty_log_of_a_write_that_the_emulator_makes_is_noted_once_it_is_written(boot, monkeypatch) -> None:
    """Otherwise a log taken in between would have the page without its bytes, and nobody would note it again."""
    guest = boot()
    region = MemoryRegion.ram("ram", 4 * PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    region.start_log(VGA)
    noted: list[tuple[int, bytes]] = []
    note = PageLog.note

    def watched(log: PageLog, offset: int) -> None:
        noted.append((offset // PAGE_SIZE, region.read(PAGE_SIZE - 1, 2)))
        note(log, offset)

    monkeypatch.setattr(PageLog, "note", watched)
    guest.run(Store(EDGE - 1, 0x0101, 2))
    assert noted == [(0, b"\1\0"), (1, b"\1\1")]
    assert guest.dirty_pages(region) == [0, 1]


def test_mock_dirty_log_of_a_write_across_two_slots_is_in_both(boot) -> None:
    guest = boot()
    one, two = MemoryRegion.ram("one", PAGE_SIZE), MemoryRegion.ram("two", PAGE_SIZE)
    with guest.vm.transaction():
        guest.vm.memory.add(one, at=BASE)
        guest.vm.memory.add(two, at=EDGE)
        one.start_log(VGA)
        two.start_log(VGA)
    assert guest.run(Store(EDGE - 1, 0x2211, 2)) == []
    assert (guest.dirty_pages(one), guest.dirty_pages(two)) == ([0], [0])


def test_mock_dirty_log_of_the_end_of_an_access_that_began_with_an_exit_is_noted(boot) -> None:
    """A write across the border of a hole, and a read-modify-write whose memory came while it was outside."""
    guest = boot()
    region = MemoryRegion.ram("ram", PAGE_SIZE)
    region.start_log(VGA)
    guest.vm.memory.add(region, at=EDGE)
    assert len(guest.run(Store(EDGE - 1, 0x2211, 2))) == 1
    assert guest.dirty_pages(region) == [0]


def test_mock_dirty_log_keeps_clients_and_regions_apart(boot) -> None:
    guest = boot()
    one, two = MemoryRegion.ram("one", 2 * PAGE_SIZE), MemoryRegion.ram("two", 2 * PAGE_SIZE)
    with guest.vm.transaction():
        guest.vm.memory.add(one, at=BASE)
        guest.vm.memory.add(two, at=BASE + 2 * PAGE_SIZE)
        one.start_log(VGA)
        one.start_log(MIGRATION)
        two.start_log(VGA)
    guest.run(*_stores(1, 2))
    assert guest.dirty_pages(one) == [1]
    guest.run(*_stores(0))
    assert guest.dirty_pages(one, MIGRATION) == [0, 1]
    assert guest.dirty_pages(one) == [0]
    assert guest.dirty_pages(two) == [0]


def test_mock_dirty_log_of_windows_into_a_region_counts_from_the_start_of_the_region(boot) -> None:
    guest = boot()
    region = MemoryRegion.ram("ram", 12 * PAGE_SIZE)
    with guest.vm.transaction():
        guest.vm.memory.add(MemoryRegion.alias("far", region, 7 * PAGE_SIZE, 2 * PAGE_SIZE), at=2 * BASE)
        # Begins and ends inside pages: those get no slot.
        guest.vm.memory.add(MemoryRegion.alias("odd", region, 0x800, 4 * PAGE_SIZE), at=BASE + 0x800)
    region.start_log(VGA)
    assert guest.logged == {BASE + PAGE_SIZE: True, 2 * BASE: True}
    assert guest.run(Store(2 * BASE + PAGE_SIZE, 1, 1), Store(BASE + 3 * PAGE_SIZE, 1, 1)) == []
    assert guest.dirty_pages(region) == [3, 8]
    assert len(guest.run(Store(BASE + 0x800, 1, 1), Store(BASE + 4 * PAGE_SIZE + 4, 1, 1))) == 2
    assert guest.dirty_pages(region) == [0, 4]


def test_mock_dirty_log_of_memory_that_two_windows_show_has_what_came_through_either(boot) -> None:
    guest = boot()
    region = MemoryRegion.ram("ram", 4 * PAGE_SIZE)
    region.start_log(VGA)
    with guest.vm.transaction():
        guest.vm.memory.add(region, at=BASE)
        guest.vm.memory.add(MemoryRegion.alias("again", region), at=2 * BASE)
    guest.run(*_stores(0), *_stores(2, at=2 * BASE))
    assert guest.dirty_pages(region) == [0, 2]


def test_mock_dirty_log_is_not_kept_where_the_guest_cannot_write(boot) -> None:
    guest = boot()
    rom, ram = MemoryRegion.rom("rom", bytes(PAGE_SIZE)), MemoryRegion.ram("ram", PAGE_SIZE)
    flash = MemoryRegion.rom_device("flash", bytes(PAGE_SIZE))
    with guest.vm.transaction():
        for n, region in enumerate((rom, ram, flash)):
            guest.vm.memory.add(region, at=BASE + 2 * n * PAGE_SIZE)
            region.start_log(VGA)
    assert list(guest.logged.values()) == [False, True, False]
    guest.vm.memory.write(BASE, b"\x11")
    assert guest.dirty_pages(rom) == [0]
    assert guest.run(*_stores(2)) == []
    ram.set_readonly(True)
    assert len(guest.run(*_stores(2))) == 1
    assert guest.dirty_pages(ram) == [0], "written before it became read-only"
    assert guest.dirty_pages(ram) == []
    ram.set_readonly(False)
    assert guest.run(*_stores(2)) == []
    assert guest.dirty_pages(ram) == [0]


# slots


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_mock_dirty_log_that_starts_and_stops_toggles_its_slots_and_holds_at_its_end_only(
    boot, slot_calls, plan
) -> None:
    guest = boot(plan=plan)
    region = MemoryRegion.ram("ram", 10 * PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    slot_calls.clear()
    region.start_log(VGA)
    region.start_log(VGA)
    region.start_log(MIGRATION)
    assert [(call.kind, call.gpa, call.is_logged) for call in slot_calls] == [("toggle", BASE, True)]
    assert guest.vm.blocker.stats.inhibits == 0
    guest.run(*_stores(0, 3, 9))
    assert guest.dirty_pages(region) == [0, 3, 9]
    slot_calls.clear()
    for _ in range(2):
        region.stop_log(VGA)
    assert slot_calls == [], "there is a client left"
    guest.run(*_stores(4))
    region.stop_log(MIGRATION)
    assert [(call.kind, call.is_logged) for call in slot_calls] == [("take_dirty", True), ("toggle", False)]
    assert guest.vm.blocker.stats.inhibits == 1
    guest.run(*_stores(5))
    region.start_log(VGA)
    assert guest.dirty_pages(region) == [], "written while nobody logged"


def test_mock_dirty_log_of_memory_that_is_shown_otherwise_stays_with_its_slot(boot, slot_calls) -> None:
    guest = boot(plan="least")
    region = MemoryRegion.ram("ram", 2 * PAGE_SIZE, 4 * PAGE_SIZE)
    region.start_log(VGA)
    guest.vm.memory.add(region, at=BASE)
    guest.run(*_stores(1))
    slot_calls.clear()
    region.resize(4 * PAGE_SIZE)
    assert [(call.kind, call.gpa, call.is_logged) for call in slot_calls] == [("create", BASE + 2 * PAGE_SIZE, True)]
    assert guest.vm.blocker.stats.inhibits == 0
    guest.run(*_stores(3))
    assert guest.dirty_pages(region) == [1, 3]
    slot_calls.clear()
    with guest.vm.transaction():  # another section that maps the same, and the end of the log
        guest.vm.memory.remove(region)
        guest.vm.memory.add(MemoryRegion.alias("same", region, unmergeable=True), at=BASE)
        region.stop_log(VGA)
    assert [call.kind for call in slot_calls] == ["take_dirty", "toggle"] * 2
    assert guest.logged == {BASE: False, BASE + 2 * PAGE_SIZE: False}


@pytest.mark.parametrize("edit", ["remove", "readonly", "hide", "cover", "move"])
def test_mock_dirty_log_of_a_slot_that_goes_is_kept(boot, edit) -> None:
    guest = boot(plan="replace")
    region = MemoryRegion.ram("ram", 4 * PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    region.start_log(VGA)
    guest.run(*_stores(1, 3))
    match edit:
        case "remove":
            guest.vm.memory.remove(region)
        case "readonly":
            region.set_readonly(True)
        case "hide":
            region.set_enabled(False)
        case "cover":
            guest.vm.memory.add(MemoryRegion.mmio("over", 2 * PAGE_SIZE), at=BASE + PAGE_SIZE, priority=1)
        case _:
            region.move(2 * BASE)
    assert guest.vm.blocker.stats.inhibits == 1
    assert guest.dirty_pages(region) == [1, 3]


def test_mock_dirty_log_of_everything_covers_all_memory_and_what_comes_later(boot) -> None:
    guest = boot()
    region, later = MemoryRegion.ram("ram", 3 * PAGE_SIZE), MemoryRegion.ram("later", 2 * PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    guest.vm.dirty_log.start_global()
    assert guest.logged == {BASE: True}
    guest.dirty_pages(region, MIGRATION)
    guest.run(*_stores(2))
    assert guest.dirty_pages(region, MIGRATION) == [2]
    guest.vm.memory.add(later, at=BASE + 3 * PAGE_SIZE)
    assert guest.dirty_pages(later, MIGRATION) == [0, 1], "nobody has its contents yet"
    guest.run(*_stores(0, 4))
    guest.vm.dirty_log.sync()
    assert guest.dirty_pages(later, MIGRATION) == [1]
    assert guest.dirty_pages(region, MIGRATION) == [0]
    guest.vm.dirty_log.stop_global()
    assert guest.logged == {BASE: False, BASE + 3 * PAGE_SIZE: False}

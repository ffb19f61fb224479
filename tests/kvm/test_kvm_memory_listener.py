"""KvmMemoryListener on real KVM: which slots there are, and that the guest sees what the view shows."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accel
from accel import Halt, IoOut, MmioRead, MmioWrite
from accel.address import PAGE_SIZE
from accel.errors import AccelError, BackendError
from accel.memory.dirty import DirtyClient
from accel_kvm import slots

pytestmark = pytest.mark.kvm

BASE = 0x20_0000  # no RAM here unless a test adds some
PAGES = 16


def test_slot_numbers_are_used_again_lowest_first(boot, slot_calls, filled) -> None:
    guest = boot("f4")
    regions = [filled(f"ram{n}", n) for n in range(4)]
    with guest.vm.transaction():
        for n, region in enumerate(regions):
            guest.vm.memory.add(region, at=BASE + 2 * n * PAGE_SIZE)
    for region in (regions[2], regions[0], regions[3]):
        guest.vm.memory.remove(region)
    slot_calls.clear()
    for region in (regions[3], regions[0], regions[2]):
        guest.vm.memory.add(region, at=BASE + 0x10_0000 * (1 + regions.index(region)))
    assert [call.slot for call in slot_calls] == [1, 3, 4]  # 0 is the guest's own RAM, 2 is still there
    assert [guest.load(BASE + 0x10_0000 * (1 + n)) for n in (0, 2, 3)] == [0, 2, 3]


def test_slot_number_of_a_slot_that_did_not_come_is_used_again_whatever_was_raised(
    boot, filled, slot_calls, monkeypatch
) -> None:
    guest = boot("f4")
    for error in (MemoryError("torn"), BackendError("slot call", errno.ENOMEM)):

        def broken(fd: int, request: int, region: object, operation: str, error: Exception = error) -> int:
            raise error

        with monkeypatch.context() as patch, pytest.raises(AccelError, match=r"torn|ENOMEM"):
            patch.setattr(slots, "ioctl", broken)
            guest.vm.memory.add(filled("refused", 1), at=BASE)
    guest.vm.memory.add(filled("ram", 0x11), at=BASE)
    assert [call.slot for call in slot_calls] == [0, 1]
    assert guest.load(BASE) == 0x11


@pytest.mark.parametrize(
    ("plan", "growing", "shrinking"),
    [
        ("least", [(BASE + PAGE_SIZE, PAGE_SIZE)], [(BASE + PAGE_SIZE, 0)]),
        ("replace", [(BASE, 0), (BASE, 2 * PAGE_SIZE)], [(BASE, 0), (BASE, PAGE_SIZE)]),
    ],
)
def test_resize_makes_the_slot_calls_of_its_plan_and_no_more(
    boot, slot_calls, plan, growing, shrinking, filled
) -> None:
    guest = boot("f4", plan=plan)
    region = filled("ram", 0x11, max_size=2 * PAGE_SIZE)
    other = filled("other", 0x22)
    with guest.vm.transaction():
        guest.vm.memory.add(region, at=BASE)
        guest.vm.memory.add(other, at=2 * BASE)
    slot_calls.clear()
    region.resize(2 * PAGE_SIZE)
    assert [(call.gpa, call.size) for call in slot_calls] == growing
    assert guest.load(BASE + PAGE_SIZE) == 0x11
    slot_calls.clear()
    region.resize(PAGE_SIZE)
    assert [(call.gpa, call.size) for call in slot_calls] == shrinking
    assert [guest.load(at) for at in (BASE, BASE + PAGE_SIZE, 2 * BASE)] == [0x11, None, 0x22]


@pytest.mark.parametrize(("plan", "count"), [("least", 0), ("replace", 2)])
def test_edit_that_shows_the_same_memory_again_costs_what_its_plan_says(boot, slot_calls, plan, count, filled) -> None:
    guest = boot("f4", plan=plan)
    region = filled("ram", 0x11)
    guest.vm.memory.add(region, at=BASE)
    slot_calls.clear()
    with guest.vm.transaction():
        region.move(BASE + PAGE_SIZE)
        region.move(BASE)
    assert slot_calls == []
    with guest.vm.transaction():
        guest.vm.memory.remove(region)
        guest.vm.memory.add(accel.MemoryRegion.alias("same", region, unmergeable=True), at=BASE)
    assert len(slot_calls) == count
    assert guest.load(BASE) == 0x11


def test_less_than_a_page_gets_no_slot_and_is_served_by_exits(boot, slot_calls, filled) -> None:
    guest = boot("f4")
    guest.vm.memory.add(filled("small", 0x11, 0x800), at=BASE)
    assert slot_calls[1:] == []  # the first was the guest's own RAM
    guest.vm.memory.add(filled("odd", 0x22, 0x1800), at=2 * BASE)
    assert [(call.gpa, call.size) for call in slot_calls[1:]] == [(2 * BASE, PAGE_SIZE)]
    assert [guest.load(at) for at in (BASE, 2 * BASE, 2 * BASE + PAGE_SIZE)] == [None, 0x22, None]
    assert guest.vm.memory.load(2 * BASE + PAGE_SIZE, 1) == 0x22


def test_alias_whose_host_memory_is_not_aligned_is_served_by_exits(boot, filled) -> None:
    guest = boot("f4")
    region = filled("ram", 0x11, 3 * PAGE_SIZE)
    with guest.vm.transaction():
        guest.vm.memory.add(region, at=BASE)
        guest.vm.memory.add(accel.MemoryRegion.alias("shifted", region, 0x800, 2 * PAGE_SIZE), at=2 * BASE)
    assert guest.load(BASE) == 0x11
    assert guest.load(2 * BASE) is None
    assert not guest.store(2 * BASE, 0x22)
    guest.vm.memory.store(2 * BASE, 0x22, 1)  # as whoever serves the exit does
    assert guest.load(BASE + 0x800) == 0x22


def test_listener_removed_and_registered_again_unmaps_and_maps_everything(boot, slot_calls, filled) -> None:
    guest = boot("f4")
    guest.vm.memory.add(filled("ram", 0x11), at=BASE)
    listener = guest.listener
    slot_calls.clear()
    guest.vm.memory.remove_listener(listener)
    assert sorted((call.gpa, call.size) for call in slot_calls) == [(0, 0), (BASE, 0)]
    guest.vm.memory.add_listener(listener)
    assert [(call.gpa, call.size) for call in slot_calls[2:]] == [(0, 1 << 20), (BASE, PAGE_SIZE)]
    assert guest.load(BASE) == 0x11


# any edits

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["move", "resize", "hide", "show", "readonly", "writable", "log", "forget"]),
        st.integers(0, 3),
        st.integers(0, PAGES - 4),
    ),
    min_size=1,
    max_size=4,
)
# 1: mov (%ebx), %al; out %al, $0x60; mov %al, (%ebx); add $0x1000, %ebx; loop 1b; hlt
TOUCH_ALL = f"bb00002000 b9{PAGES:02x}000000 8a03 e660 8803 81c300100000 e2f2 f4"


def touch_all(guest) -> Iterator[tuple[int | None, bool]]:
    """Have the guest load and store back a byte of each page; yield what it loads and whether a slot took the store."""
    guest.restart(TOUCH_ALL)
    access = guest.vcpu.run()
    for _ in range(PAGES):
        read = access
        if isinstance(read, MmioRead):
            read.reply(0)
            access = guest.vcpu.run()
        assert isinstance(access, IoOut)
        loaded = None if isinstance(read, MmioRead) else access.data[0]
        access = guest.vcpu.run()
        trapped = isinstance(access, MmioWrite)
        if trapped:
            access = guest.vcpu.run()
        yield loaded, not trapped
    assert access == Halt()


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_guest_sees_what_the_view_shows_and_logs_what_it_writes_after_any_edits(boot, plan, filled) -> None:
    guest = boot("f4", plan=plan)
    regions = [filled(f"ram{n}", 0x11 * (n + 1), max_size=4 * PAGE_SIZE) for n in range(4)]
    with guest.vm.transaction():
        for n, region in enumerate(regions):
            guest.vm.memory.add(region, at=BASE + 3 * n * PAGE_SIZE, priority=n % 2)

    def shown(page: int) -> tuple[int | None, bool]:
        section = guest.vm.memory.view.find(BASE + page * PAGE_SIZE)
        if section is None:
            return None, False
        return 0x11 * (regions.index(section.region) + 1), not section.readonly

    def written(region: accel.MemoryRegion) -> list[int]:
        """Return the pages of `region` that the guest writes when it touches all."""
        return sorted(
            (section.offset + at - section.range.start) // PAGE_SIZE
            for section in guest.vm.memory.view
            if section.region is region and not section.readonly
            for at in range(section.range.start, section.range.end, PAGE_SIZE)
        )

    @settings(max_examples=60, deadline=None)
    @given(st.lists(EDITS, min_size=1, max_size=4))
    def edit(transactions: list[list[tuple[str, int, int]]]) -> None:
        for edits in transactions:
            with guest.vm.transaction():
                for what, which, value in edits:
                    region = regions[which]
                    match what:
                        case "move":
                            region.move(BASE + value * PAGE_SIZE)
                        case "resize":
                            region.resize((value % 4 + 1) * PAGE_SIZE)
                        case "hide" | "show":
                            region.set_enabled(what == "show")
                        case "log" | "forget":
                            if (region.log_mask == 0) == (what == "log"):
                                (region.start_log if what == "log" else region.stop_log)(DirtyClient.VGA)
                        case _:
                            region.set_readonly(what == "readonly")
            assert list(touch_all(guest)) == [shown(page) for page in range(PAGES)]
            for region in regions:
                if region.log_mask:
                    assert guest.dirty_pages(region) == written(region)

    edit()

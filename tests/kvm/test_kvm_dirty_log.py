"""The dirty log on real KVM: exactly the pages that the guest wrote, from whatever slots, and none lost."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

import accel
from accel import Halt, MmioWrite
from accel.address import PAGE_SIZE
from accel.errors import BackendError, CapabilityError
from accel.memory.dirty import DirtyClient
from accel_kvm import abi, memory_listener
from accel_kvm.dirty_log import take_dirty

pytestmark = pytest.mark.kvm

BASE = 0x20_0000  # no RAM here unless a test adds some
VGA, MIGRATION = DirtyClient.VGA, DirtyClient.MIGRATION
LOGGED = abi.KVM_MEM_LOG_DIRTY_PAGES


def stores(*addresses: int) -> str:
    """Return code that stores a byte at each address and halts."""
    return "".join(f"c605{address.to_bytes(4, 'little').hex()}5a" for address in addresses) + "f4"


@pytest.fixture
def write_pages() -> Callable[..., None]:
    """Have a guest store into some pages from `BASE` on, all of them served by slots."""

    def write(guest, *numbers: int) -> None:
        guest.restart(stores(*(BASE + number * PAGE_SIZE + number for number in numbers)))
        assert guest.vcpu.run() == Halt()

    return write


# what is noted


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_dirty_log_has_exactly_the_pages_that_the_guest_wrote_and_has_them_once(
    boot, filled, write_pages, count, ring_size
) -> None:
    guest = boot("f4", dirty_ring_size=ring_size)
    region = filled("ram", 0, count * PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    write_pages(guest, *range(count))  # before anybody logs
    region.start_log(VGA)
    assert guest.dirty_pages(region) == []
    written = sorted({0, count // 2, count - 1})
    write_pages(guest, *written)
    assert guest.dirty_pages(region) == written
    assert guest.dirty_pages(region) == []
    write_pages(guest, count - 1)
    assert guest.dirty_pages(region) == [count - 1]


def test_dirty_log_keeps_clients_and_regions_apart(boot, filled, write_pages, ring_size) -> None:
    guest = boot("f4", dirty_ring_size=ring_size)
    one, two = filled("one", 0, 2 * PAGE_SIZE), filled("two", 0, 2 * PAGE_SIZE)
    with guest.vm.transaction():
        guest.vm.memory.add(one, at=BASE)
        guest.vm.memory.add(two, at=BASE + 2 * PAGE_SIZE)
        one.start_log(VGA)
        one.start_log(MIGRATION)
        two.start_log(VGA)
    write_pages(guest, 1, 2)
    assert guest.dirty_pages(one) == [1]
    write_pages(guest, 0)
    assert guest.dirty_pages(one, MIGRATION) == [0, 1]
    assert guest.dirty_pages(one) == [0]
    assert guest.dirty_pages(two) == [0]


def test_dirty_log_of_a_window_into_a_region_counts_from_the_start_of_the_region(boot, filled, slot_calls) -> None:
    guest = boot("f4")
    region = filled("ram", 0, 12 * PAGE_SIZE)
    with guest.vm.transaction():
        guest.vm.memory.add(accel.MemoryRegion.alias("far", region, 7 * PAGE_SIZE, 2 * PAGE_SIZE), at=2 * BASE)
        # Begins and ends inside pages: those get no slot.
        odd = accel.MemoryRegion.alias("odd", region, 0x800, 4 * PAGE_SIZE)
        guest.vm.memory.add(odd, at=BASE + 0x800)
    region.start_log(VGA)
    assert [(call.gpa, call.size) for call in slot_calls if call.flags == LOGGED] == [
        (BASE + PAGE_SIZE, 3 * PAGE_SIZE),
        (2 * BASE, 2 * PAGE_SIZE),
    ]
    guest.restart(stores(2 * BASE + PAGE_SIZE, BASE + 3 * PAGE_SIZE))
    assert guest.vcpu.run() == Halt()
    assert guest.dirty_pages(region) == [3, 8]
    guest.restart(stores(BASE + 0x800, BASE + 4 * PAGE_SIZE + 4))
    while isinstance(access := guest.vcpu.run(), MmioWrite):
        guest.vm.memory.store(access.address, access.value, access.size)
    assert guest.dirty_pages(region) == [0, 4]


def test_dirty_log_of_memory_that_two_windows_show_has_what_came_through_either(boot, filled, ring_size) -> None:
    guest = boot("f4", dirty_ring_size=ring_size)
    region = filled("ram", 0, 4 * PAGE_SIZE)
    region.start_log(VGA)
    with guest.vm.transaction():
        guest.vm.memory.add(region, at=BASE)
        guest.vm.memory.add(accel.MemoryRegion.alias("again", region), at=2 * BASE)
    guest.restart(stores(BASE, 2 * BASE + 2 * PAGE_SIZE))
    assert guest.vcpu.run() == Halt()
    assert guest.dirty_pages(region) == [0, 2]


def test_dirty_log_of_memory_that_the_guest_cannot_write_takes_no_log_of_the_kernel(boot, filled, slot_calls) -> None:
    guest = boot("f4")
    rom, ram = accel.MemoryRegion.rom("rom", bytes(PAGE_SIZE)), filled("ram", 0)
    with guest.vm.transaction():
        guest.vm.memory.add(rom, at=BASE)
        guest.vm.memory.add(ram, at=2 * BASE)
        rom.start_log(VGA)
        ram.start_log(VGA)
    assert {call.gpa: call.flags for call in slot_calls if call.gpa} == {BASE: abi.KVM_MEM_READONLY, 2 * BASE: LOGGED}
    guest.vm.memory.write(BASE, b"\x11")
    assert guest.dirty_pages(rom) == [0]
    assert guest.store(2 * BASE, 0x22)
    ram.set_readonly(True)
    assert not guest.store(2 * BASE, 0x33)
    assert guest.dirty_pages(ram) == [0], "written before it became read-only"
    ram.set_readonly(False)
    assert guest.store(2 * BASE, 0x44)
    assert guest.dirty_pages(ram) == [0]


def test_take_dirty_of_a_slot_without_a_log_is_clean_and_of_whole_words(open_vm) -> None:
    fd = open_vm().backend._fd
    assert [len(take_dirty(fd, 7, count)) for count in (1, 64, 65, 128, 129)] == [8, 8, 16, 16, 24]
    assert not any(take_dirty(fd, 7, 1_000))
    with pytest.raises(BackendError, match="KVM_GET_DIRTY_LOG failed: EBADF"):
        take_dirty(-1, 0, 1)


# slots


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_log_that_starts_and_stops_costs_one_call_for_each_slot_and_holds_at_its_end_only(
    boot, filled, slot_calls, monkeypatch, write_pages, plan
) -> None:
    monkeypatch.setattr(memory_listener, "MAX_SLOT_SIZE", 3 * PAGE_SIZE)
    guest = boot("f4", plan=plan)
    region = filled("ram", 0, 10 * PAGE_SIZE)
    slot_calls.clear()
    guest.vm.memory.add(region, at=BASE)
    created = [(call.slot, call.gpa, call.size) for call in slot_calls]
    assert [size // PAGE_SIZE for *_, size in created] == [1, 3, 3, 3]  # BASE is 512 pages: 2 above a multiple of 3
    slot_calls.clear()
    region.start_log(VGA)
    assert [(call.slot, call.gpa, call.size, call.flags) for call in slot_calls] == [(*one, LOGGED) for one in created]
    region.start_log(VGA)
    region.start_log(MIGRATION)
    assert guest.vm.blocker.stats.inhibits == 0
    assert len(slot_calls) == len(created)
    write_pages(guest, 0, 3, 4, 9)
    assert guest.dirty_pages(region) == [0, 3, 4, 9]
    for _ in range(2):
        region.stop_log(VGA)
    assert len(slot_calls) == len(created), "there is a client left"
    slot_calls.clear()
    region.stop_log(MIGRATION)
    assert [(call.slot, call.gpa, call.size, call.flags) for call in slot_calls] == [(*one, 0) for one in created]
    assert guest.vm.blocker.stats.inhibits == 1
    slot_calls.clear()
    guest.vm.memory.remove(region)
    assert [(call.slot, call.gpa) for call in slot_calls] == [one[:2] for one in created]


def test_log_of_memory_that_is_shown_otherwise_stays_with_its_slot(
    boot, filled, slot_calls, write_pages, ring_size
) -> None:
    guest = boot("f4", plan="least", dirty_ring_size=ring_size)
    region = filled("ram", 0, 2 * PAGE_SIZE, 4 * PAGE_SIZE)
    region.start_log(VGA)
    guest.vm.memory.add(region, at=BASE)
    slot_calls.clear()
    write_pages(guest, 1)
    region.resize(4 * PAGE_SIZE)
    assert [(call.gpa, call.size, call.flags) for call in slot_calls] == [(BASE + 2 * PAGE_SIZE, 2 * PAGE_SIZE, LOGGED)]
    assert guest.vm.blocker.stats.inhibits == 0
    write_pages(guest, 3)
    assert guest.dirty_pages(region) == [1, 3]
    slot_calls.clear()
    with guest.vm.transaction():  # another section that maps the same, and the end of the log
        guest.vm.memory.remove(region)
        guest.vm.memory.add(accel.MemoryRegion.alias("same", region, unmergeable=True), at=BASE)
        region.stop_log(VGA)
    assert [(call.gpa, call.size, call.flags) for call in slot_calls] == [
        (BASE, 2 * PAGE_SIZE, 0),
        (BASE + 2 * PAGE_SIZE, 2 * PAGE_SIZE, 0),
    ]


def test_global_log_covers_all_memory_and_what_comes_later(boot, filled, slot_calls, write_pages, ring_size) -> None:
    guest = boot("f4", dirty_ring_size=ring_size)
    region, later = filled("ram", 0, 3 * PAGE_SIZE), filled("later", 0, 2 * PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    slot_calls.clear()
    guest.vm.dirty_log.start_global()
    assert [(call.gpa, call.flags) for call in slot_calls] == [(0, LOGGED), (BASE, LOGGED)]
    guest.dirty_pages(guest.ram, MIGRATION)
    write_pages(guest, 2)
    assert guest.dirty_pages(region, MIGRATION) == [2]
    assert 8 in guest.dirty_pages(guest.ram, MIGRATION), "the code, which the host wrote"
    guest.vm.memory.add(later, at=BASE + 3 * PAGE_SIZE)
    assert guest.dirty_pages(later, MIGRATION) == [0, 1], "nobody has its contents yet"
    write_pages(guest, 0, 4)
    assert guest.dirty_pages(later, MIGRATION) == [1]
    assert guest.dirty_pages(region, MIGRATION) == [0]
    slot_calls.clear()
    guest.vm.dirty_log.stop_global()
    assert [(call.gpa, call.flags) for call in slot_calls] == [(0, 0), (BASE, 0), (BASE + 3 * PAGE_SIZE, 0)]


# what is refused, and what fails


def test_vm_without_a_dirty_log_refuses_to_log_and_stays_as_it_was(boot, filled, faults, slot_calls) -> None:
    faults.reset({0: errno.ENOTTY})
    guest = boot("f4")
    region, logged = filled("ram", 0x11), filled("logged", 0x22)
    guest.vm.memory.add(region, at=BASE)
    logged.start_log(VGA)
    slot_calls.clear()
    with pytest.raises(CapabilityError, match="no log of written pages") as caught:
        guest.vm.dirty_log.start_global()
    assert (caught.value.listener, caught.value.step) == ("kvm-memory", "log_global_start")
    assert not guest.vm.dirty_log.is_global
    for refused, address in (
        (lambda: region.start_log(VGA), BASE),
        (lambda: guest.vm.memory.add(logged, at=2 * BASE), 2 * BASE),
    ):
        with pytest.raises(CapabilityError, match=f"which RAM at {address:#x} needs; do not log it") as caught:
            refused()
        assert (caught.value.listener, caught.value.step) == ("kvm-memory", "prepare")
    assert slot_calls == []
    assert region.log_mask == 0
    assert guest.load(BASE) == 0x11


def test_vm_of_a_kernel_that_does_not_know_dirty_logs_does_not_offer_them(open_vm, faults) -> None:
    assert accel.Capability.DIRTY_LOG in open_vm().backend.capabilities
    faults.reset({0: errno.ENOTTY})
    assert accel.Capability.DIRTY_LOG not in open_vm().backend.capabilities
    assert faults.calls == [abi.KVM_GET_DIRTY_LOG]


def test_dirty_log_that_cannot_be_read_keeps_its_pages_for_the_next_time(boot, filled, faults, write_pages) -> None:
    guest = boot("f4")
    region = filled("ram", 0, 3 * PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    region.start_log(VGA)
    write_pages(guest, 1)
    faults.reset({0: errno.ENOMEM})
    with pytest.raises(BackendError, match=rf"KVM_GET_DIRTY_LOG failed: ENOMEM .*slot 1, GPA {BASE:#x} .* rw logged"):
        guest.vm.dirty_log.collect(region, VGA)
    for change in (lambda: guest.vm.memory.remove(region), lambda: region.stop_log(VGA)):
        faults.reset({0: errno.ENOMEM})
        with pytest.raises(BackendError) as caught:
            change()
        assert (caught.value.listener, caught.value.step) == ("kvm-memory", "apply")
        assert faults.calls == [abi.KVM_GET_DIRTY_LOG]
    write_pages(guest, 2)
    assert guest.dirty_pages(region) == [1, 2]


def test_log_that_cannot_start_at_all_slots_starts_at_none(boot, filled, faults, monkeypatch, write_pages) -> None:
    monkeypatch.setattr(memory_listener, "MAX_SLOT_SIZE", PAGE_SIZE)
    guest = boot("f4")
    region = filled("ram", 0, 3 * PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    faults.reset({1: errno.ENOMEM})
    with pytest.raises(BackendError) as caught:
        region.start_log(VGA)
    assert (caught.value.gpa, caught.value.flags) == (BASE + PAGE_SIZE, LOGGED)
    assert len(faults.calls) == 3, "the first is taken back"
    assert all(slot.log is None for slot in guest.listener.slots)
    region.start_log(VGA)
    write_pages(guest, 0, 2)
    assert guest.dirty_pages(region) == [0, 2]

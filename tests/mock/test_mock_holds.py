"""Holds of the accelerator's own: kick-all, which keeps vCPUs out, and region-list, which changes all slots at once."""

from __future__ import annotations

import errno
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from accel.address import PAGE_SIZE
from accel.errors import BackendError, InhibitTimeoutError, MemorySlotError
from accel.exits import ExitKind, Halt, IoOut, MmioRead
from accel.memory.dirty import DirtyClient
from accel.memory.region import MemoryRegion
from accel.program import Add, GuestProgram, Load, Loop, Out, Store
from accel_mock.vcpu import MockVcpu
from accel_mock.vm import MockVm

PATIENCE = 60
AT = 0x1000_0000
READY = Out(0x80, 1)


class Kicked:
    """A VM with a vCPU that adds 1 to the byte at `AT` again and again."""

    def __init__(self, guest) -> None:
        self.ram = MemoryRegion.ram("ram", PAGE_SIZE)
        guest.vm.memory.add(self.ram, at=AT)
        self.vm: MockVm = guest.vm.backend
        self.vcpu: MockVcpu = guest.vcpu.backend
        self.vcpu.load_program(GuestProgram((Loop((Add(AT, 1, 8),), None),)))
        self.exits: list[int] = []
        self.came_out = threading.Event()

    @property
    def count(self) -> int:
        return int.from_bytes(self.ram.read(0, 8), "little")

    def wait_for_more(self) -> None:
        """Wait until the guest has executed on."""
        before = self.count
        while self.count == before and not self.came_out.is_set():
            pass

    @contextmanager
    def running(self, times: int) -> Iterator[None]:
        """Enter the guest so often, on a thread; end it after the block if it has not ended."""
        self.came_out.clear()

        def main() -> None:
            for _ in range(times):
                self.exits.append(self.vcpu.run())
            self.came_out.set()

        thread = threading.Thread(target=main, daemon=True)
        thread.start()
        try:
            yield
        finally:
            while not self.came_out.is_set():
                self.vcpu.kick(0)
                self.came_out.wait(0.01)
            thread.join(PATIENCE)


@pytest.fixture
def kicked(boot: Callable[..., object]) -> Kicked:
    return Kicked(boot(hold="kick-all"))


def test_kick_all_keeps_the_guest_still_until_all_are_resumed(kicked: Kicked) -> None:
    with kicked.running(2):
        kicked.wait_for_more()
        kicked.vm.kick_all(PATIENCE)
        still = kicked.count
        while not kicked.vm._running._sent_back and not kicked.came_out.is_set():
            pass
        assert kicked.count == still
        kicked.vm.resume_all()
        kicked.wait_for_more()
        assert kicked.count > still
    assert kicked.exits == [ExitKind.INTERRUPTED] * 2


def test_kick_all_lets_nobody_in_that_comes_meanwhile_and_a_kick_frees_it(
    kicked: Kicked, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, tries = kicked.vm._running, list[object]()
    enter = running.enter
    monkeypatch.setattr(running, "enter", lambda vcpu: (tries.append(vcpu), enter(vcpu))[1])
    kicked.vm.kick_all(PATIENCE)
    with kicked.running(1):
        while not running._sent_back:
            pass
        # Enough for who tries again and again to show it.
        kicked.came_out.wait(0.05)
        kicked.vcpu.kick(0)
        assert kicked.came_out.wait(PATIENCE)
    assert (kicked.exits, kicked.count) == ([ExitKind.INTERRUPTED], 0)
    assert len(tries) == 2, "it waits in between, and does not try again and again"
    kicked.vm.resume_all()
    with kicked.running(1):
        kicked.wait_for_more()
        assert len(kicked.exits) == 1, "the kick was taken back"
    assert kicked.count > 0


def test_kick_all_waits_for_a_vcpu_whose_kick_was_before(kicked: Kicked) -> None:
    """One kick in force is not taken for another's: the next entry comes out for the first, and waits after that."""
    kicked.vcpu.kick(0)
    kicked.vm.kick_all(PATIENCE)
    with kicked.running(2):
        while not kicked.exits:
            pass
        assert not kicked.came_out.is_set()
        kicked.vm.resume_all()
        kicked.wait_for_more()
    assert kicked.exits == [ExitKind.INTERRUPTED] * 2


def test_kick_all_that_a_vcpu_does_not_heed_gives_up_by_name_and_all_go_on(boot) -> None:
    kicked = Kicked(boot(hold="kick-all", faults=("vcpu0@1=stuck",)))
    with kicked.running(1):
        kicked.wait_for_more()
        with pytest.raises(InhibitTimeoutError) as caught:
            kicked.vm.kick_all(0.01)
        ((name, operation, seconds),) = caught.value.inside
        assert (name, operation) == ("vCPU 0", "run")
        assert seconds >= 0.01
        kicked.wait_for_more()
        assert kicked.exits == []
        assert not kicked.vm._running.stopped
        kicked.vm._faults.clear()


def test_kick_all_lets_an_access_be_completed_once_all_are_resumed(boot) -> None:
    """`finish` is no entry into the guest that could be given up halfway."""
    kicked = Kicked(boot(hold="kick-all"))
    kicked.vcpu.load_program(GuestProgram((Store(AT - 4, 0x1122_3344_5566_7788, 8),)))
    assert kicked.vcpu.run() == ExitKind.MMIO
    kicked.vm.kick_all(PATIENCE)
    finished: list[int] = []
    thread = threading.Thread(target=lambda: finished.append(kicked.vcpu.finish()), daemon=True)
    thread.start()
    while not kicked.vm._running._sent_back and thread.is_alive():
        pass
    assert kicked.count == 0
    kicked.vm.resume_all()
    thread.join(PATIENCE)
    assert finished == [ExitKind.INTERRUPTED]
    assert kicked.count == 0x1122_3344


def test_vcpu_that_is_closed_is_forgotten(boot) -> None:
    guest = boot()
    assert guest.run() == []
    vm = guest.vm.backend
    assert list(vm._running._left)
    guest.vcpu.close()
    gc.collect()
    assert not vm._running._left


# region-list


@pytest.fixture
def listed(boot: Callable[..., object]) -> Callable[..., object]:
    """Make guests of VMs that change all slots of a transaction at once."""
    return lambda **options: boot(hold="region-list", plan="replace", **options)


def test_region_list_gives_numbers_back_and_uses_those_of_what_goes(listed) -> None:
    guest = listed(slot_count=3)
    regions = [MemoryRegion.ram(f"ram{n}", 0x1000, 0x4000) for n in range(3)]
    with guest.vm.transaction():
        for n, region in enumerate(regions):
            guest.vm.memory.add(region, at=AT + n * 0x10000)
    for turn in range(12):
        with guest.vm.transaction():
            for region in regions:
                region.resize(0x1000 * (1 + turn % 4))
        if turn % 3 == 0:
            guest.vm.memory.remove(regions[1])
            assert len(guest.memslots.table) == 2
            guest.vm.memory.add(regions[1], at=AT + 0x10000)
        assert {one.number for one in guest.memslots.table} == {0, 1, 2}
        assert guest.run(*(Store(AT + n * 0x10000, turn, 1) for n in range(3))) == []
    assert guest.vm.blocker.stats.inhibits == 0


def test_region_list_that_fails_changes_nothing_and_keeps_no_number(listed) -> None:
    guest = listed(slot_count=3, faults=("list@2=ENOMEM", "list@3=ENOMEM"))
    region, other = MemoryRegion.ram("ram", 0x1000, 0x2000), MemoryRegion.ram("other", 0x1000)
    guest.vm.memory.add(region, at=AT)
    before = guest.memslots.table
    for _ in range(2):
        with pytest.raises(BackendError) as caught, guest.vm.transaction():
            region.resize(0x2000)
            guest.vm.memory.add(other, at=0)
        assert caught.value.errno == errno.ENOMEM
        assert guest.memslots.table is before
        assert region.size == 0x1000
    guest.run(Store(AT, 1, 1))
    with guest.vm.transaction():
        region.resize(0x2000)
        guest.vm.memory.add(other, at=0)
    assert sorted(one.number for one in guest.memslots.table) == [0, 1]


def test_region_list_that_needs_too_many_slots_is_refused(listed) -> None:
    guest = listed(slot_count=1)
    with pytest.raises(MemorySlotError) as caught, guest.vm.transaction():
        for n in range(2):
            guest.vm.memory.add(MemoryRegion.ram(f"ram{n}", 0x1000), at=n * 0x10000)
    assert caught.value.errno == errno.ENOSPC
    assert len(guest.memslots.table) == 0


def test_region_list_keeps_what_was_written_to_a_slot_that_logs_and_goes(listed) -> None:
    guest = listed()
    region = MemoryRegion.ram("ram", 4 * PAGE_SIZE, 8 * PAGE_SIZE)
    guest.vm.memory.add(region, at=AT)
    region.start_log(DirtyClient.VGA)
    guest.run(Store(AT + PAGE_SIZE, 1), Store(AT + 3 * PAGE_SIZE, 1))
    region.resize(8 * PAGE_SIZE)
    assert guest.vm.blocker.stats.inhibits == 1, "its bits are read by another call than the list"
    guest.run(Store(AT + 6 * PAGE_SIZE, 1))
    assert guest.dirty_pages(region) == [1, 3, 6]
    region.stop_log(DirtyClient.VGA)
    assert guest.logged == {AT: False}


def test_region_list_shows_a_hole_where_something_goes_for_good(listed) -> None:
    guest = listed()
    region = MemoryRegion.ram("ram", PAGE_SIZE)
    guest.vm.memory.add(region, at=AT)
    guest.run(Load(AT))
    guest.vm.memory.remove(region)
    guest.vcpu.load_program(GuestProgram((Load(AT), READY)))
    assert isinstance(guest.vcpu.run(), MmioRead)
    assert isinstance(guest.vcpu.run(), IoOut)
    assert guest.vcpu.run() == Halt()

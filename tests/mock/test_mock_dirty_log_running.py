"""The mock's dirty log under a guest that writes all the time: nothing is lost that is held, and the race is there."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from accel.address import PAGE_SIZE
from accel.exits import Halt, Interrupted, MmioRead, MmioWrite
from accel.memory.dirty import DirtyClient
from accel.memory.region import MemoryRegion
from accel.memory.slot_plan import Slot
from accel.program import Add, GuestProgram, Loop, Store

BASE = 0x1000_0000
PROGRESS = 0x1000
VGA = DirtyClient.VGA
#: More pages than a guest writes while another thread has its turn, if turns are short.
COUNT = 1024


@pytest.fixture(autouse=True)
def short_turns() -> Iterator[None]:
    """Let threads take turns often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


class Writer:
    """A guest that adds 1 to page after page, over and over: its write number n goes to page n % COUNT."""

    def __init__(self, guest) -> None:
        self.guest = guest
        self.low = MemoryRegion.ram("low", 0x10000)
        self.region = MemoryRegion.ram("ram", COUNT * PAGE_SIZE, (COUNT + 1) * PAGE_SIZE)
        guest.vm.memory.add(self.low, at=0)
        body = [op for n in range(COUNT) for op in (Add(BASE + n * PAGE_SIZE), Add(PROGRESS, 1, 8))]
        self._program = GuestProgram((Loop(tuple(body), None),))
        self.restart()

    def restart(self) -> None:
        """Begin anew with empty pages."""
        self.low.clear(0, PAGE_SIZE * 2)
        self.region.clear(0, self.region.size)
        self.guest.vcpu.load_program(self._program)

    @property
    def progress(self) -> int:
        """How many writes were made and counted; the next may have been made."""
        return int.from_bytes(self.low.read(PROGRESS, 8), "little")

    def wait_for(self, progress: int) -> int:
        """Wait until it has come so far; return how far it is."""
        while (now := self.progress) < progress:
            pass
        return now

    def collect(self) -> set[int]:
        """Return the pages that were written since the last time."""
        return set(self.guest.dirty_pages(self.region))

    def written_after(self, number: int) -> set[int]:
        """Return the pages that a write with a higher number went to; it must not run."""
        counts = self.region.view(0, COUNT * PAGE_SIZE).cast("I")[:: PAGE_SIZE // 4].tolist()
        return {page for page, count in enumerate(counts) if count and (count - 1) * COUNT + page > number}


def _pages(first: int, end: int) -> set[int]:
    return {number % COUNT for number in range(first, min(end, first + COUNT))}


def test_mock_dirty_log_toggled_under_a_guest_that_writes_has_all_pages_while_it_is_on(boot) -> None:
    guest = boot()
    writer = Writer(guest)
    guest.vm.memory.add(writer.region, at=BASE)
    with guest.running() as exits:
        for turn in range(30):
            writer.region.start_log(VGA)
            # The write with this number may have been made and not be counted yet.
            first = writer.progress + 1
            last = writer.wait_for(first + 7 * turn)
            assert writer.collect() >= _pages(first, last)
            writer.region.stop_log(VGA)
    assert set(exits) <= {Interrupted()}


def test_mock_dirty_log_collected_all_the_time_has_each_written_page_with_its_bytes(boot) -> None:
    """A page is noted by the fault before its write, as on KVM; if a log comes between the two, it is noted again."""
    sys.setswitchinterval(1e-6)
    guest = boot()
    region = MemoryRegion.ram("ram", 8 * COUNT * PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    region.start_log(VGA)
    guest.vcpu.load_program(GuestProgram(tuple(Store(BASE + n * PAGE_SIZE, 0x5A, 1) for n in range(8 * COUNT))))
    written: set[int] = set()
    owed: set[int] = set()

    def collect() -> None:
        for page in guest.dirty_pages(region):
            (written if region.read(page * PAGE_SIZE, 1) == b"\x5a" else owed).add(page)

    with guest.running() as exits:
        while not exits:
            collect()
    assert exits == [Halt()]
    collect()
    assert owed <= written == set(range(8 * COUNT))


def _lost_by_deletion(guest, rounds: int) -> int:
    """Delete the logged slot of a guest that writes, again and again; return how many written pages no log has."""
    writer = Writer(guest)
    writer.region.start_log(VGA)
    lost = 0
    for _ in range(rounds):
        writer.restart()
        guest.vm.memory.add(writer.region, at=BASE)
        with guest.running() as exits:
            writer.wait_for(3)
            # Until here the dirty pages are those of the clearing, too.
            writer.collect()
            before = writer.progress
            writer.wait_for(before + 5)
            guest.vm.memory.remove(writer.region)
        assert isinstance(exits[-1], MmioRead | MmioWrite | Interrupted)
        written = writer.written_after(before)
        assert len(written) >= 4
        lost += len(written - writer.collect())
    return lost


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_mock_dirty_log_of_a_slot_deleted_under_a_guest_that_writes_loses_no_page(boot, plan) -> None:
    assert _lost_by_deletion(boot(plan=plan, slot_latency_us=200), 20) == 0


def test_mock_dirty_log_of_a_slot_deleted_without_a_hold_loses_pages(boot) -> None:
    """As on KVM: what is written between taking the log and deleting the slot."""
    assert _lost_by_deletion(boot(hold="unsafe", slot_latency_us=200), 20) > 0


@pytest.mark.parametrize("edit", ["resize", "cover", "volatile"])
def test_mock_dirty_log_of_slots_replaced_under_a_guest_that_writes_loses_no_page(boot, edit) -> None:
    guest = boot(plan="replace")
    writer = Writer(guest)
    region, over = writer.region, MemoryRegion.ram("over", PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    region.start_log(VGA)
    with guest.running() as exits:
        writer.wait_for(2)
        for turn in range(30):
            writer.collect()
            first = writer.progress + 1
            for again in range(turn, turn + 3):
                match edit:
                    case "resize":
                        region.resize((COUNT + 1 - again % 2) * PAGE_SIZE)
                    case "cover":
                        if over.parent is None:
                            guest.vm.memory.add(over, at=BASE + (COUNT - 1) * PAGE_SIZE, priority=1)
                        else:
                            guest.vm.memory.remove(over)
                    case _:
                        region.set_nonvolatile(again % 2 == 0)
            last = writer.wait_for(first + 1)
            hidden = {COUNT - 1} if edit == "cover" else set()
            assert writer.collect() >= _pages(first, last) - hidden
    assert set(exits) <= {Interrupted()}


@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
def test_mock_dirty_log_that_goes_is_complete_only_if_the_guest_is_held(boot, monkeypatch, hold) -> None:
    """A guest that is about to write gets its chance right after the log was taken; where it is held, it waits."""
    guest = boot(hold=hold)
    region = MemoryRegion.ram("ram", PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    region.start_log(VGA)
    guest.vcpu.load_program(GuestProgram((Store(BASE, 0x5A, 1),)))
    taken, exits, written = threading.Event(), [], threading.Event()

    def write() -> None:
        assert taken.wait(60)
        exits.append(guest.vcpu.run())
        written.set()

    take = guest.memslots.take_dirty

    def take_and_let_write(number: int, slot: Slot) -> bytearray:
        bitmap = take(number, slot)
        taken.set()
        assert guest.vm.blocker.inhibited == (hold == "inhibit")
        if hold == "unsafe":
            assert written.wait(60)
        return bitmap

    monkeypatch.setattr(guest.memslots, "take_dirty", take_and_let_write)
    thread = threading.Thread(target=write)
    thread.start()
    guest.vm.memory.remove(region)
    thread.join(60)
    if hold == "unsafe":
        assert (exits, region.read(0, 1)) == ([Halt()], b"\x5a")
    else:
        assert (exits, region.read(0, 1)) == ([MmioWrite(BASE, 1, 0x5A)], b"\0")
    assert guest.dirty_pages(region) == []

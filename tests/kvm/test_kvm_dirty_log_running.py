"""The dirty log on real KVM under a guest that writes all the time: no page is lost, whatever becomes of the slots.

With bitmaps: a guest that never comes out overruns a ring on hosts that emulate guest code. Rings are tested in
`test_machine_dirty_log_kept.py`.
"""

from __future__ import annotations

import pytest

import accel
from accel import Interrupted, MmioWrite
from accel.address import PAGE_SIZE
from accel.memory.dirty import DirtyClient

pytestmark = pytest.mark.kvm

BASE = 0x20_0000  # no RAM here unless a test adds some
VGA = DirtyClient.VGA
PROGRESS = 0x9000
COUNT = 512
#: mov $1, %ebx; 1: mov %ebx, %eax; and $511, %eax; shl $12, %eax; mov %ebx, BASE(%eax); inc %ebx; mov %ebx, PROGRESS;
#: jmp 1b. So write number n goes to page n % 512, and `PROGRESS` is the number of the next.
WRITE_ON = "bb01000000 89d8 25ff010000 c1e00c 899800002000 43 891d00900000 ebe7"


def last_writes(region: accel.MemoryRegion) -> dict[int, int]:
    """Return the number of the last write to each page."""
    return {page: int.from_bytes(region.read(page * PAGE_SIZE, 4), "little") for page in range(COUNT)}


def wait_for(guest, progress: int) -> int:
    """Wait until the guest has come so far; return how far it is."""
    while (now := guest.word(PROGRESS)) < progress:
        pass
    return now


def test_log_toggled_under_a_guest_that_writes_loses_no_page_while_it_is_on(boot, filled) -> None:
    guest = boot(WRITE_ON)
    region = filled("ram", 0, COUNT * PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    with guest.running() as exits:
        for round_number in range(60):
            early = guest.word(PROGRESS)
            region.start_log(VGA)
            # The write with this number may have been made and not be counted yet.
            first = guest.word(PROGRESS) + 1
            last = wait_for(guest, first + 7 * round_number)
            dirty = set(guest.dirty_pages(region))
            late = guest.word(PROGRESS)
            assert dirty >= {number % COUNT for number in range(first, min(last, first + COUNT))}
            if late - early < COUNT - 1:
                assert dirty <= {number % COUNT for number in range(early, late + 1)}
            region.stop_log(VGA)
    assert set(exits) <= {Interrupted()}


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_logged_slot_deleted_under_a_guest_that_writes_loses_no_page(boot, filled, plan) -> None:
    guest = boot(WRITE_ON, plan=plan)
    region = filled("ram", 0, COUNT * PAGE_SIZE)
    region.start_log(VGA)
    seen = 0
    for _ in range(40):
        guest.vm.memory.add(region, at=BASE)
        assert not guest.dirty_pages(region)
        guest.restart()
        guest.ram.write(PROGRESS, bytes(4))
        region.clear(0, region.size)
        with guest.running(until=MmioWrite) as exits:
            wait_for(guest, 3)
            # Until here the dirty pages are those of the clearing, too.
            guest.vm.dirty_log.collect(region, VGA)
            before = guest.word(PROGRESS)
            wait_for(guest, before + 20)
            guest.vm.memory.remove(region)
        assert isinstance(exits[-1], MmioWrite)
        written = {page for page, number in last_writes(region).items() if number > before}
        dirty = set(guest.dirty_pages(region))
        assert written <= dirty
        seen += len(written)
    assert seen > 40 * 10


@pytest.mark.parametrize("edit", ["resize", "cover", "volatile"])
def test_logged_slot_replaced_again_and_again_under_a_guest_that_writes_loses_no_page(boot, filled, edit) -> None:
    guest = boot(WRITE_ON, plan="replace")
    region = filled("ram", 0, COUNT * PAGE_SIZE, (COUNT + 1) * PAGE_SIZE)
    over = filled("over", 0, PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    region.start_log(VGA)
    with guest.running() as exits:
        wait_for(guest, 2)
        for turn in range(60):
            guest.vm.dirty_log.collect(region, VGA)
            first = guest.word(PROGRESS) + 1
            for again in range(turn, turn + 3):
                match edit:
                    case "resize":
                        region.resize((COUNT + 1 - again % 2) * PAGE_SIZE)
                    case "cover":
                        with guest.vm.transaction():
                            if over.parent is None:
                                guest.vm.memory.add(over, at=BASE + (COUNT - 1) * PAGE_SIZE, priority=1)
                            else:
                                guest.vm.memory.remove(over)
                    case _:
                        region.set_nonvolatile(again % 2 == 0)
            last = wait_for(guest, first + 1)
            dirty = set(guest.dirty_pages(region))
            hidden = {COUNT - 1} if edit == "cover" else set()
            assert dirty >= {number % COUNT for number in range(first, min(last, first + COUNT))} - hidden
    assert set(exits) <= {Interrupted()}

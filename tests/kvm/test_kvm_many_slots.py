"""As many slots as KVM has, one more, and what the kernel offers for them; times are printed, never judged."""

from __future__ import annotations

import errno
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import accel
from accel import Halt, IoOut
from accel.address import PAGE_SIZE
from accel.errors import BackendError, CapabilityError, MemorySlotError
from accel_kvm import abi, system
from accel_kvm.ioctl import ioctl
from accel_kvm.memory_listener import KvmMemoryListener

pytestmark = pytest.mark.kvm

BASE = 0x1000_0000  # no RAM here unless a test adds some
STEP = 2 * PAGE_SIZE
FEW, MANY = 100, 3_000


class Crowd:
    """A VM with a slot of a page at every second page from `BASE` on, all showing one page of host memory."""

    def __init__(self, vm: accel.Vm) -> None:
        self.vm = vm
        self.page = accel.MemoryRegion.ram("page", PAGE_SIZE)
        self.page.write(0, b"\x5a" * PAGE_SIZE)
        self.shown: list[accel.MemoryRegion] = []
        self.shift = 0

    @property
    def listener(self) -> KvmMemoryListener:
        return next(one for one in self.vm.memory.listeners if isinstance(one, KvmMemoryListener))

    @property
    def limit(self) -> int:
        return self.listener._planner.slot_count

    def fill(self, count: int) -> None:
        """Have `count` slots, in one transaction."""
        with self.vm.transaction():
            for number in range(len(self.shown), count):
                self.add(number)

    def add(self, number: int) -> None:
        alias = accel.MemoryRegion.alias(f"page {number}", self.page)
        self.vm.memory.add(alias, at=BASE + number * STEP)
        self.shown.append(alias)

    def change_one(self) -> None:
        """Move the slot in the middle by a page, or back."""
        middle = len(self.shown) // 2
        self.shift ^= PAGE_SIZE
        self.shown[middle].move(BASE + middle * STEP + self.shift)

    def empty(self) -> None:
        """Delete all, in one transaction."""
        with self.vm.transaction():
            for alias in self.shown:
                self.vm.memory.remove(alias)
        self.shown.clear()


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line that shows whatever pytest captures."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", end="")

    return line


# all there are


def one_too_many(crowd: Crowd) -> MemorySlotError:
    """Add the slot after the last; return the error."""
    view, count = crowd.vm.memory.view, len(crowd.listener.slots)
    with pytest.raises(MemorySlotError) as caught:
        crowd.add(len(crowd.shown))
    assert (crowd.vm.memory.view, len(crowd.listener.slots)) == (view, count)
    error = caught.value
    assert (error.errno, error.slot) == (errno.ENOSPC, crowd.limit)
    assert (error.gpa, error.size, error.flags) == (BASE + len(crowd.shown) * STEP, PAGE_SIZE, 0)
    assert crowd.page.block is not None
    assert error.hva == crowd.page.block.address
    assert f"the VM has {crowd.limit} slots" in str(error)
    assert "map less" in str(error)
    return error


def fill_change_and_empty(crowd: Crowd, count: int, say: Callable[[str], None]) -> None:
    filling = seconds(lambda: crowd.fill(count))
    assert len(crowd.listener.slots) == count
    changes = [seconds(crowd.change_one) for _ in range(50)]
    assert len(crowd.listener.slots) == count
    if count == crowd.limit:
        one_too_many(crowd)
    emptying = seconds(crowd.empty)
    assert len(crowd.listener.slots) == 0
    say(
        f"{count} slots: fill {filling:.2f} s ({filling / count * 1e6:.0f} µs each), "
        f"change one {statistics.median(changes) * 1e6:.0f} µs, "
        f"delete all {emptying:.2f} s ({emptying / count * 1e6:.0f} µs each)"
    )


def test_slots_by_the_thousand_are_filled_changed_and_deleted(open_vm, say) -> None:
    crowd = Crowd(open_vm())
    for count in (FEW, MANY):
        fill_change_and_empty(crowd, count, say)


@pytest.mark.soak
@pytest.mark.parametrize("plan", ["least", "replace"])
def test_all_slots_of_the_host_are_filled_changed_and_deleted_and_one_more_is_refused(open_vm, plan, say) -> None:
    crowd = Crowd(open_vm(plan=plan))
    fill_change_and_empty(crowd, FEW, say)
    fill_change_and_empty(crowd, crowd.limit, say)


@pytest.mark.soak
def test_all_slots_of_the_host_filled_by_a_transaction_each(open_vm, say) -> None:
    crowd = Crowd(open_vm())
    taken = [seconds(lambda: crowd.add(len(crowd.shown))) for _ in range(crowd.limit)]
    one_too_many(crowd)
    first, last = statistics.median(taken[:1000]), statistics.median(taken[-1000:])
    say(
        f"{crowd.limit} transactions: {sum(taken):.1f} s; the first thousand {first * 1e6:.0f} µs each, "
        f"the last {last * 1e6:.0f} µs"
    )


def test_the_slot_after_the_last_is_one_that_the_kernel_refuses_too(open_vm) -> None:
    """The limit that the listener keeps is the kernel's own."""
    crowd = Crowd(open_vm())
    block = crowd.page.host_memory()
    for number, expected in ((crowd.limit - 1, 0), (crowd.limit, errno.EINVAL)):
        region = abi.KvmUserspaceMemoryRegion(number, 0, BASE, PAGE_SIZE, block.address)
        found = 0
        try:
            ioctl(crowd.vm.backend._fd, abi.KVM_SET_USER_MEMORY_REGION, region, "KVM_SET_USER_MEMORY_REGION")
        except BackendError as error:
            found = error.errno
        assert found == expected, f"slot {number}"


class _Lines:
    """Counts the lines of Python that run in a block, whoever wrote them; but not of what earlier tests left behind."""

    def __enter__(self) -> _Lines:
        self.count = 0
        gc.collect()
        gc.disable()
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        gc.enable()

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        self.count += event == "line"
        return self._trace


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_a_change_takes_no_more_steps_among_thousands_of_slots_than_among_a_hundred(open_vm, plan) -> None:
    crowd = Crowd(open_vm(plan=plan))
    grown = accel.MemoryRegion.ram("grown", PAGE_SIZE, 2 * PAGE_SIZE)
    crowd.vm.memory.add(grown, at=BASE - STEP)
    taken = []
    for count in (FEW, MANY):
        crowd.fill(count)
        crowd.change_one()
        with _Lines() as lines:
            crowd.change_one()
            grown.resize(2 * PAGE_SIZE)
            grown.resize(PAGE_SIZE)
        taken.append(lines.count)
    # Bisecting a list of lists takes a step more here and there.
    assert taken[1] < 1.2 * taken[0], taken


# when they run short

#: 1: mov $BASE, %esi; mov $0x4000, %ecx; xor %eax, %eax; xor %edx, %edx; 2: lodsb; add %eax, %edx; loop 2b;
#: mov %edx, 0x9000; incl 0x9004; jmp 1b: the sum of 4 pages from `SHOWN` on, and how often it was made.
SHOWN = 0x20_0000
SUM = "be00002000 b900400000 31c0 31d2 ac 01c2 e2fb 891500900000 ff0504900000 ebe4"


def test_growth_that_runs_short_of_slots_merges_them_under_a_running_guest(boot, filled, slot_calls) -> None:
    guest = boot(SUM)
    region = filled("ram", 3, 4 * PAGE_SIZE, 64 * PAGE_SIZE)
    guest.vm.memory.add(region, at=SHOWN)
    guest.listener._planner.slot_count = 6
    slot_calls.clear()
    with guest.running() as exits:
        for pages in range(5, 41):
            region.resize(pages * PAGE_SIZE)
            assert len(guest.listener.slots) <= 6
        enough = guest.word(0x9004) + 2
        while guest.word(0x9004) < enough:
            assert guest.word(0x9000) in (0, 3 * 4 * PAGE_SIZE)
    assert set(exits) <= {accel.Interrupted()}
    assert guest.word(0x9000) == 3 * 4 * PAGE_SIZE
    # Four grow beside the others; each of the rest takes one slot away and puts a larger one in its place.
    assert [len(slot_calls), guest.vm.blocker.stats.inhibits] == [4 + 2 * 32, 32]
    assert guest.vm.backend.memory_figures() == {"slots": 6, "fragments": 4, "slot_calls": 2 + 4 + 2 * 32}
    error = None
    try:
        with guest.vm.transaction():
            for number in range(5):
                guest.vm.memory.add(filled(f"more {number}", 7), at=2 * SHOWN + number * STEP)
    except MemorySlotError as caught:
        error = caught
    assert error is not None
    assert error.errno == errno.ENOSPC
    with guest.vm.transaction():
        for number in range(4):
            guest.vm.memory.add(filled(f"last {number}", 7), at=2 * SHOWN + number * STEP)
    assert (len(guest.listener.slots), guest.listener.figures["fragments"]) == (6, 0)
    assert [guest.load(SHOWN + 39 * PAGE_SIZE), guest.load(2 * SHOWN + 3 * STEP)] == [3, 7]


# what the kernel offers


@pytest.mark.parametrize(
    ("hold", "call"),
    [("kick-all", "KVM_KICK_ALL_RUNNING_VCPUS"), ("region-list", "KVM_SET_USER_MEMORY_REGION_LIST")],
)
def test_hold_that_no_kernel_has_is_refused_when_the_vm_is_created(open_vm, hold, call) -> None:
    with pytest.raises(CapabilityError, match=f"hold={hold} needs {call}, .*no released kernel.*use hold=inhibit"):
        open_vm(hold=hold)


@pytest.mark.parametrize(("quirks", "text"), [(0x600, "this kernel has no switch"), (0x680, "can be switched off")])
def test_probe_tells_of_slots_and_whether_a_deletion_can_be_narrow(monkeypatch, quirks, text) -> None:
    asked = system.extension
    monkeypatch.setattr(
        system, "extension", lambda fd, number: quirks if number == abi.KVM_CAP_DISABLE_QUIRKS2 else asked(fd, number)
    )
    details = accel.open_accelerator("kvm").accelerator.probe().details
    assert text in details["slot deletion"]
    assert int(details["slots"]) > 30
    assert details["slot call"].startswith("KVM_SET_USER_MEMORY_REGION")


def test_both_slot_calls_do_the_same(boot, filled) -> None:
    """Why the plugin makes do with the first: the second adds guest_memfd and nothing else."""
    guest = boot("f4")
    fd, block = guest.vm.backend._fd, filled("ram", 0x11).host_memory()
    first = abi.KVM_SET_USER_MEMORY_REGION, abi.KvmUserspaceMemoryRegion
    second = abi.KVM_SET_USER_MEMORY_REGION2, abi.KvmUserspaceMemoryRegion2
    offered = system.extension(fd, abi.KVM_CAP_USER_MEMORY2) > 0

    def call(way: tuple[int, type], size: int) -> None:
        request, kind = way
        ioctl(fd, request, kind(9, abi.KVM_MEM_READONLY, SHOWN, size, block.address), "slot")

    for create, delete in ((first, second), (second, first)):
        if offered:
            call(create, PAGE_SIZE)
            assert (guest.load(SHOWN), guest.store(SHOWN, 1)) == (0x11, False)
            call(delete, 0)
            assert guest.load(SHOWN) is None
        else:
            with pytest.raises(BackendError, match="ENOTTY"):
                call(second, PAGE_SIZE)


#: mov $0x10000, %esi; mov $224, %ecx; 1: mov (%esi), %al; add $0x1000, %esi; loop 1b; out %al, $0x60; hlt: touches
#: 224 pages.
TOUCH = "be00000100 b9e0000000 8a06 81c600100000 e2f6 e660 f4"


def _deletions(guest) -> Iterator[tuple[float, float]]:
    """Delete a slot of memory that the guest does not use; yield what that took, and what touching its own took."""
    block = accel.MemoryRegion.ram("apart", PAGE_SIZE).host_memory()
    slot = abi.KvmUserspaceMemoryRegion(9, 0, SHOWN, PAGE_SIZE, block.address)
    for _ in range(20):
        slot.memory_size = PAGE_SIZE
        ioctl(guest.vm.backend._fd, abi.KVM_SET_USER_MEMORY_REGION, slot, "create")
        slot.memory_size = 0
        gone = seconds(lambda: ioctl(guest.vm.backend._fd, abi.KVM_SET_USER_MEMORY_REGION, slot, "delete"))
        guest.restart(TOUCH)
        start = time.perf_counter()
        assert isinstance(guest.vcpu.run(), IoOut)
        touched = time.perf_counter() - start
        assert guest.vcpu.run() == Halt()
        yield gone, touched


def test_slot_deletion_measured_both_ways_leaves_the_guest_its_memory(boot, say) -> None:
    for narrow in (False, True):
        guest = boot(TOUCH)
        fd = guest.vm.backend._fd
        name = "the slot's page tables only" if narrow else "the page tables of all memory"
        if narrow and not system.can_zap_one_slot(fd):
            say("slot deletion: this kernel has no KVM_X86_QUIRK_SLOT_ZAP_ALL to switch off")
            continue
        if narrow:
            quirks = (abi.KVM_X86_QUIRK_SLOT_ZAP_ALL,)
            ioctl(fd, abi.KVM_ENABLE_CAP, abi.KvmEnableCap(abi.KVM_CAP_DISABLE_QUIRKS2, 0, quirks), "KVM_ENABLE_CAP")
        deletes, touches = zip(*_deletions(guest), strict=True)
        say(
            f"slot deletion drops {name}: {statistics.median(deletes) * 1e6:.0f} µs, "
            f"and the guest touches 224 pages in {statistics.median(touches) * 1e6:.0f} µs after it"
        )

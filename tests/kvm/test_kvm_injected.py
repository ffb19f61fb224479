"""Every call of a change fails once, below all that the plugin makes of an errno: the map before stays, or nothing."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator

import attrs
import pytest

import accel
from accel import Halt, IoOut, MmioWrite
from accel.address import PAGE_SIZE
from accel.errors import BackendError, MapLostError, MemorySlotError
from accel.memory.dirty import DirtyClient
from accel_kvm import abi

pytestmark = pytest.mark.kvm

BASE = 0x20_0000  # no RAM here unless a test adds some
DEVICE, NEXT_DEVICE = 0x30_0000, 0x40_0000
VGA = DirtyClient.VGA


@attrs.define(eq=False)
class Scene:
    """A guest with logged RAM at `BASE`, and a device at `DEVICE` with a doorbell at 0 and queued writes at 8.

    `change` is one transaction that makes a call of each kind and touches all three.
    """

    guest: object
    ram: accel.MemoryRegion
    other: accel.MemoryRegion
    device: accel.MemoryRegion
    fd: int

    def change(self) -> None:
        with self.guest.vm.transaction():
            self.ram.set_readonly(True)
            self.ram.resize(PAGE_SIZE)
            self.guest.vm.memory.add(self.other, at=BASE + PAGE_SIZE)
            self.guest.ram.start_log(VGA)
            self.device.move(NEXT_DEVICE)

    def doorbell_rings(self) -> int:
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0

    def device_answers_at(self, at: int) -> bool:
        """Have the guest ring and queue there; return whether it did both without an exit, or none of them."""
        guest = self.guest
        guest.restart("".join(f"c605{(at + offset).to_bytes(4, 'little').hex()}77" for offset in (0, 8)) + "f4")
        exits = []
        while not isinstance(access := guest.vcpu.run(), Halt):
            exits.append(access)
        queued = [address for address, *_ in guest.vm.backend.ring.pop()]
        if not exits:
            assert (self.doorbell_rings(), queued) == (1, [at + 8])
            return True
        assert exits == [MmioWrite(at, 1, 0x77), MmioWrite(at + 8, 1, 0x77)]
        assert (self.doorbell_rings(), queued) == (0, [])
        return False

    def check_before(self) -> None:
        """Assert that everything is as before `change`."""
        guest = self.guest
        assert self.device_answers_at(DEVICE)
        assert not self.device_answers_at(NEXT_DEVICE)
        assert (guest.load(BASE), guest.load(BASE + PAGE_SIZE)) == (0x11, 0x11)
        assert guest.store(BASE, 0x11)
        assert guest.store(BASE + PAGE_SIZE, 0x11)
        assert guest.dirty_pages(self.ram) == [0, 1]
        assert {slot.gpa: slot.log is not None for slot in guest.listener.slots} == {0: False, BASE: True}


@pytest.fixture
def scene(boot, filled) -> Iterator[Callable[[str], Scene]]:
    """Make scenes."""
    made: list[Scene] = []

    def make(plan: str) -> Scene:
        guest = boot("f4", plan=plan)
        ram, other = filled("ram", 0x11, 2 * PAGE_SIZE), filled("other", 0x22)
        device = accel.MemoryRegion.mmio("device", 16)
        made.append(Scene(guest, ram, other, device, os.eventfd(0, os.EFD_NONBLOCK)))
        with guest.vm.transaction():
            device.add_eventfd(0, made[-1].fd, size=1)
            device.add_coalescing(8, 8)
            guest.vm.memory.add(device, at=DEVICE)
            guest.vm.memory.add(ram, at=BASE)
            ram.start_log(VGA)
        return made[-1]

    yield make
    for one in made:
        os.close(one.fd)


#: What `Scene.change` asks of the kernel.
CALLS = {
    abi.KVM_IOEVENTFD: 2,
    abi.KVM_UNREGISTER_COALESCED_MMIO: 1,
    abi.KVM_REGISTER_COALESCED_MMIO: 1,
    abi.KVM_GET_DIRTY_LOG: 1,
    abi.KVM_SET_USER_MEMORY_REGION: 4,
}
COUNT = sum(CALLS.values())


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_change_whose_calls_all_succeed_is_made_by_as_many_as_it_needs(scene, faults, plan) -> None:
    stage = scene(plan)
    stage.check_before()
    faults.reset()
    vm, held = stage.guest.vm, set()
    faults.before_call = lambda _: held.add((stage.guest.listener.slots.lock.held(), vm.blocker.inhibited))
    stage.change()
    assert held == {(True, True)}
    assert vm.blocker.stats.inhibits == 1
    assert {request: faults.calls.count(request) for request in CALLS} == CALLS
    assert len(faults.calls) == COUNT
    assert not stage.device_answers_at(DEVICE)
    assert stage.device_answers_at(NEXT_DEVICE)
    assert (stage.guest.load(BASE), stage.guest.load(BASE + PAGE_SIZE)) == (0x11, 0x22)
    assert not stage.guest.store(BASE, 0x33)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EINVAL, errno.EEXIST, errno.ENOSPC])
@pytest.mark.parametrize("plan", ["least", "replace"])
def test_change_with_a_call_that_fails_is_undone_whichever_it_is(scene, faults, plan, number) -> None:
    stage = scene(plan)
    for failing in range(COUNT):
        assert stage.guest.store(BASE + PAGE_SIZE, 0x11)
        faults.reset({failing: number})
        with pytest.raises(BackendError) as caught:
            stage.change()
        assert caught.value.errno == number
        assert (caught.value.listener, caught.value.step) == ("kvm-memory", "apply")
        request = faults.calls[failing]
        assert isinstance(caught.value, MemorySlotError) == (request == abi.KVM_SET_USER_MEMORY_REGION)
        reads = faults.calls[:failing].count(abi.KVM_GET_DIRTY_LOG)
        assert len(faults.calls) == 2 * failing + 1 - reads, "each call that was made is taken back, once"
        assert 1 in stage.guest.dirty_pages(stage.ram)
        stage.check_before()
    stage.change()


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_change_whose_calls_are_interrupted_is_made_and_not_undone(scene, faults, plan) -> None:
    stage = scene(plan)
    # Every first and second try fails.
    faults.reset({call: errno.EINTR for call in range(3 * COUNT) if call % 3 != 2})
    stage.change()
    assert len(faults.calls) == 3 * COUNT
    assert all(len(set(faults.calls[at : at + 3])) == 1 for at in range(0, 3 * COUNT, 3))
    faults.reset()
    assert stage.device_answers_at(NEXT_DEVICE)
    assert stage.guest.load(BASE + PAGE_SIZE) == 0x22


@pytest.mark.parametrize("failing", range(1, COUNT))
def test_change_that_cannot_be_undone_stops_the_guest_for_good(scene, faults, failing) -> None:
    stage = scene("replace")
    faults.reset({failing: errno.ENOMEM, failing + 1: errno.EIO})
    with pytest.raises(MapLostError, match="EIO"):
        stage.change()
    with pytest.raises(MapLostError, match="EIO"):
        stage.guest.vcpu.run()


def test_ports_answered_by_the_kernel_stay_as_they_were_where_a_call_fails(boot, faults) -> None:
    guest = boot("f4")
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    device = accel.MemoryRegion.mmio("device", 16)
    device.add_eventfd(0, fd, size=1)
    device.add_coalescing(8, 8)
    guest.vm.io.add(device, at=0x600)
    for failing in range(4):
        faults.reset({failing: errno.ENOMEM})
        with pytest.raises(BackendError) as caught:
            device.move(0x700)
        assert (caught.value.listener, caught.value.step) == ("kvm-io", "apply")
        guest.restart("66ba0006 b001 ee 66ba0806 ee 66ba0007 ee f4")
        assert guest.vcpu.run() == IoOut(0x700, 1, 1, b"\1")
        assert guest.vcpu.run() == Halt()
        assert os.eventfd_read(fd) == 1
        assert [address for address, *_ in guest.vm.backend.ring.pop()] == [0x608]
    os.close(fd)


# while a guest runs

LOW, COUNT_AT, COUNTED = 0x9000, 0x9004, 0x21_0000
#: 1: mov $BASE, %esi; mov $192, %ecx; xor %edx, %edx; 2: add (%esi), %edx; add $64, %esi; loop 2b; mov %edx, LOW;
#: incl COUNTED; incl COUNT_AT; jmp 1b: a sum over three pages of RAM, and twice how often it was made.
SUMMING = "be00002000 b9c0000000 31d2 0316 83c640 e2f9 891500900000 ff0500002100 ff0504900000 ebd9"
SUM = 64 * (0x33333333 + 0x11111111 + 0x22222222) & 0xFFFF_FFFF


@attrs.define(eq=False)
class BusyScene:
    """A guest that sums up three pages of RAM and counts in a fourth, none of which is ever absent.

    `change` goes forth and back in turn. Each is one commit: a slot is replaced by one of the other mode, one grows or
    shrinks, one begins or ends to log, and a device with a doorbell and queued writes moves.
    """

    guest: object
    flipped: accel.MemoryRegion
    grown: accel.MemoryRegion
    counted: accel.MemoryRegion
    device: accel.MemoryRegion
    forth: bool = True

    def change(self) -> None:
        with self.guest.vm.transaction():
            self.flipped.set_readonly(self.forth)
            self.grown.resize((3 if self.forth else 2) * PAGE_SIZE)
            (self.counted.start_log if self.forth else self.counted.stop_log)(VGA)
            self.device.move(NEXT_DEVICE if self.forth else DEVICE)
        self.forth = not self.forth

    def check(self) -> None:
        """Wait until the guest has made a sum that it began after now, and compare it."""
        enough = self.guest.word(COUNT_AT) + 2
        deadline = time.monotonic() + 60
        while self.guest.word(COUNT_AT) < enough:
            assert time.monotonic() < deadline, "the guest does not go on"
        assert self.guest.word(LOW) == SUM

    def check_counts(self) -> None:
        """Compare the two counts, one of which went through slots that logged and did not; the guest stands still."""
        counted = int.from_bytes(self.counted.read(0, 4), "little")
        assert counted - self.guest.word(COUNT_AT) in (0, 1)

    @property
    def state(self) -> tuple[object, ...]:
        vm = self.guest.vm
        slots = {slot: slot.log is not None for slot in self.guest.listener.slots}
        return slots, vm.memory.view, str(vm.memory)


@pytest.fixture
def busy(boot, filled) -> Iterator[Callable[[str], BusyScene]]:
    """Make scenes with a guest that is about to sum up."""
    fds: list[int] = []

    def make(plan: str) -> BusyScene:
        guest = boot(SUMMING, plan=plan)
        flipped, counted = filled("flipped", 0x33), filled("counted", 0)
        grown = filled("grown", 0x22, 2 * PAGE_SIZE, 3 * PAGE_SIZE)
        grown.write(0, b"\x11" * PAGE_SIZE)
        device = accel.MemoryRegion.mmio("device", 16)
        fds.append(os.eventfd(0, os.EFD_NONBLOCK))
        with guest.vm.transaction():
            device.add_eventfd(0, fds[-1], size=1)
            device.add_coalescing(8, 8)
            guest.vm.memory.add(flipped, at=BASE)
            guest.vm.memory.add(grown, at=BASE + PAGE_SIZE)
            guest.vm.memory.add(counted, at=COUNTED)
            guest.vm.memory.add(device, at=DEVICE)
        return BusyScene(guest, flipped, grown, counted, device)

    yield make
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EINVAL, errno.EEXIST])
@pytest.mark.parametrize("plan", ["least", "replace"])
def test_busy_guest_goes_on_and_verifies_its_memory_whichever_call_of_a_commit_fails(
    busy, faults, plan, number
) -> None:
    stage = busy(plan)
    with stage.guest.running() as exits:
        for _ in range(2):
            before, position, failed = stage.state, 0, True
            while failed:
                faults.reset({position: number})
                try:
                    stage.change()
                except BackendError as error:
                    assert error.errno == number
                    assert stage.state == before
                    position += 1
                else:
                    failed = False
                stage.check()
            # Two doorbell and two queue calls, a toggle, a slot replaced, and one or two calls for growth; and
            # on the way back the bits of the log that ends.
            assert position == len(faults.calls) == {"least": 8, "replace": 9}[plan] + stage.forth
            assert stage.state != before
    assert set(exits) <= {accel.Interrupted()}
    stage.check_counts()


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_busy_guest_loses_no_written_page_whichever_call_fails(busy, faults, plan) -> None:
    stage = busy(plan)
    stage.change()
    with stage.guest.running():
        for position in range({"least": 9, "replace": 10}[plan]):
            stage.check()
            faults.reset({position: errno.ENOMEM})
            with pytest.raises(BackendError):
                stage.change()
            assert stage.guest.dirty_pages(stage.counted) == [0]


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_busy_guest_sees_changes_whose_calls_are_interrupted_as_if_they_were_not(busy, faults, plan) -> None:
    stage = busy(plan)
    with stage.guest.running() as exits:
        for _ in range(6):
            faults.reset({call: errno.EINTR for call in range(100) if call % 3 != 2})
            stage.change()
            assert len(faults.calls) == 3 * ({"least": 8, "replace": 9}[plan] + stage.forth)
            stage.check()
    assert set(exits) <= {accel.Interrupted()}
    stage.check_counts()


@pytest.mark.parametrize("position", range(1, 9))
def test_busy_guest_stops_for_good_where_a_change_cannot_be_undone(busy, faults, position) -> None:
    stage = busy("replace")
    ended: list[BaseException] = []

    def loop() -> None:
        try:
            while True:
                assert stage.guest.vcpu.run() == accel.Interrupted()
        except MapLostError as error:
            ended.append(error)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    stage.check()
    faults.reset({position: errno.ENOMEM, position + 1: errno.EIO})
    with pytest.raises(MapLostError, match="EIO"):
        stage.change()
    count = stage.guest.word(COUNT_AT)
    thread.join(60)
    assert "EIO" in str(ended[0])
    assert stage.guest.word(COUNT_AT) == count
    stage.check_counts()

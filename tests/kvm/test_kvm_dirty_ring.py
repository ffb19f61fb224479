"""Dirty rings on real KVM: what a failed call, a lost entry and a wrong size come to.

That they note what bitmaps note is tested beside those (`ring_size` in the other files), and what all accelerators with
rings promise in `test_machine_dirty_rings.py`.
"""

from __future__ import annotations

import errno
import signal

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.errors import BackendError, CapabilityError, OptionError
from accel.memory.dirty import DirtyClient
from accel.program import GuestProgram, Out, Store
from accel_kvm import abi, dirty_ring
from accel_kvm.dirty_ring import DirtyRingLost
from accel_kvm.ioctl import ioctl

pytestmark = pytest.mark.kvm

BASE = 0x40_0000
VGA = DirtyClient.VGA
PORT = 0x80
#: As few as a processor that logs by itself can do with.
SIZE = 1024
#: Fewer pages than the 64 entries that a full ring has left, for what one stay in the guest writes.
STRIDE = 50


def writes(pages: int, each: int) -> GuestProgram:
    """Return a program that writes to so many pages from `BASE` on, and leaves the guest after each few."""
    stores = [Store(BASE + page * PAGE_SIZE, page, 8) for page in range(pages)]
    return GuestProgram([op for at in range(0, pages, each) for op in (*stores[at : at + each], Out(PORT, 0))])


@pytest.fixture
def machine():
    """Make machines with rings of `SIZE` entries, and memory for `writes` that logs."""
    made = []

    def make(program: GuestProgram, pages: int, cpus: int = 1, size: int = SIZE):
        one = accel.Machine.create("kvm", memory="2M", cpus=cpus, options={"kvm": {"dirty_ring_size": size}})
        made.append(one)
        region = accel.MemoryRegion.ram("logged", pages * PAGE_SIZE)
        region.start_log(VGA)
        one.memory.add(region, at=BASE)
        one.load(program)
        return one, region

    yield make
    for one in made:
        one.close()


def dirty(one: accel.Machine, region: accel.MemoryRegion) -> set[int]:
    ranges = one.vm.dirty_log.collect(region, VGA).ranges()
    return {page for window in ranges for page in range(window.start // PAGE_SIZE, window.end // PAGE_SIZE)}


def test_rings_that_cannot_be_reset_give_their_pages_again_later(machine, faults) -> None:
    one, region = machine(writes(20, each=20), 100)
    one.run(timeout=60)
    faults.reset({0: errno.EIO})
    with pytest.raises(BackendError, match="KVM_RESET_DIRTY_RINGS failed: EIO"):
        dirty(one, region)
    assert faults.calls == [abi.KVM_RESET_DIRTY_RINGS]
    # The kernel notes nothing more of these pages, so they count as written until it does.
    assert dirty(one, region) == set(range(20))
    assert dirty(one, region) == set()
    assert faults.calls == [abi.KVM_RESET_DIRTY_RINGS] * 2, "nothing was taken the third time"


def test_rings_are_reset_whole_however_many_signals_end_the_call_early(machine) -> None:
    """Since Linux 6.16 a signal ends the call early, which tells of it only by how many entries it went over."""
    one, region = machine(writes(12000, each=STRIDE), 12000, size=1 << 15)
    one.run(timeout=60)
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
    try:
        assert dirty(one, region) == set(range(12000))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    left = ioctl(one.vm.backend._fd, abi.KVM_RESET_DIRTY_RINGS, 0, "KVM_RESET_DIRTY_RINGS")
    assert left == 0


def test_rings_that_are_emptied_while_ctrl_c_comes_are_emptied_whole(machine, monkeypatch) -> None:
    one, region = machine(writes(20, each=20), 100)
    one.run(timeout=60)
    take = dirty_ring.KvmDirtyRing.take

    def interrupted(ring: dirty_ring.KvmDirtyRing) -> list[tuple[int, int]]:
        found = take(ring)
        signal.raise_signal(signal.SIGINT)
        return found

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dirty_ring.KvmDirtyRing, "take", interrupted)
        one.vm.vcpus[0].empty_dirty_rings()
    assert dirty(one, region) == set(range(20))


def test_reset_that_never_does_anything_is_an_error_and_its_pages_come_again(machine, monkeypatch) -> None:
    one, region = machine(writes(20, each=20), 100)
    one.run(timeout=60)
    with monkeypatch.context() as patched:
        patched.setattr(dirty_ring, "ioctl", lambda *call: 0)
        with pytest.raises(BackendError, match=r"KVM_RESET_DIRTY_RINGS failed: EIO .* 20 entries of 20 are not reset"):
            dirty(one, region)
    assert dirty(one, region) == set(range(20))
    assert dirty(one, region) == set()


def test_guest_that_overruns_its_ring_ends_with_all_pages_written_or_is_stopped_in_time(machine) -> None:
    """Whichever this host's KVM does: those that emulate guest code inside of one entry do not look in time."""
    one, region = machine(writes(3000, each=3000), 3001)
    try:
        result = one.run(timeout=60)
    except DirtyRingLost as error:
        assert f"has entries ({SIZE})" in str(error)
        assert "dirty_ring_size" in str(error)
        with pytest.raises(DirtyRingLost):
            dirty(one, region)
        log = region.dirty_log()
        assert log.collect(VGA, 0, region.size).page_count == 3001
    else:
        assert result.outcome == accel.Outcome.HALTED
        assert dirty(one, region) == set(range(3000))


@pytest.mark.parametrize("size", [3, 128, 1000])
def test_ring_of_a_size_that_cannot_be_is_refused(open_vm, size) -> None:
    with pytest.raises(
        OptionError, match=rf"accelerator.kvm.dirty_ring_size = {size}: must be a power of two from 256"
    ):
        open_vm(dirty_ring_size=size)


def test_kvm_without_rings_says_so_and_offers_none(open_vm, monkeypatch) -> None:
    def without(fd: int, number: int) -> int:
        return 0

    monkeypatch.setattr(dirty_ring, "extension", without)
    with pytest.raises(CapabilityError, match=r"has no dirty rings .* leave out dirty_ring_size"):
        open_vm(dirty_ring_size=SIZE)


def test_vm_without_rings_has_none_to_empty(open_vm) -> None:
    assert accel.Capability.DIRTY_RING in open_vm().backend.capabilities
    with pytest.raises(CapabilityError):
        open_vm().backend.empty_dirty_rings()

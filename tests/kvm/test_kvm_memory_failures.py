"""Memory changes that real KVM refuses: named, undone, and the map before in force."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.errors import AccelError, BackendError, MapLostError, MemorySlotError
from accel.memory.listener import MemoryListener, Update
from accel.memory.ram_block import RamBlock
from accel_kvm import abi
from accel_kvm.ioctl import ioctl

pytestmark = pytest.mark.kvm

BASE = 0x20_0000  # no RAM here unless a test adds some


def failing(change: Callable[[], object], kind: type[AccelError]) -> pytest.ExceptionInfo[AccelError]:
    with pytest.raises(kind) as caught:
        change()
    return caught


class ForeignSlot:
    """A slot that somebody put into the VM behind the listener's back."""

    NUMBER = 1_000

    def __init__(self, vm: accel.Vm, gpa: int) -> None:
        self._fd = vm.backend._fd
        self._block = RamBlock("foreign", PAGE_SIZE)
        self._gpa = gpa
        self._set(PAGE_SIZE)

    def remove(self) -> None:
        self._set(0)

    def _set(self, size: int) -> None:
        region = abi.KvmUserspaceMemoryRegion(self.NUMBER, 0, self._gpa, size, self._block.address)
        ioctl(self._fd, abi.KVM_SET_USER_MEMORY_REGION, region, "KVM_SET_USER_MEMORY_REGION")


def test_more_slots_than_the_vm_can_have_are_refused_before_anything_changes(boot, slot_calls, filled) -> None:
    guest = boot("f4")
    guest.listener._planner.slot_count = 3
    old = filled("old", 0x11)
    guest.vm.memory.add(old, at=BASE)
    view, tree = guest.vm.memory.view, str(guest.vm.memory)
    slot_calls.clear()

    def change() -> None:
        with guest.vm.transaction():
            guest.vm.memory.remove(old)
            for n in range(3):
                guest.vm.memory.add(filled(f"new{n}", 0x22), at=BASE + 2 * n * PAGE_SIZE)

    error = failing(change, MemorySlotError).value
    assert (error.errno, error.gpa, error.size) == (errno.ENOSPC, BASE + 4 * PAGE_SIZE, PAGE_SIZE)
    assert slot_calls == []
    assert (guest.vm.memory.view, str(guest.vm.memory)) == (view, tree)
    assert guest.load(BASE) == 0x11
    guest.vm.memory.add(filled("fits", 0x33), at=2 * BASE)
    assert guest.load(2 * BASE) == 0x33


def test_slot_that_the_kernel_refuses_is_named_and_the_map_before_stays(boot, filled, slot_calls) -> None:
    guest = boot("f4")
    foreign = ForeignSlot(guest.vm, BASE)
    region = filled("ram", 0x11, 2 * PAGE_SIZE)
    view, tree = guest.vm.memory.view, str(guest.vm.memory)
    error = failing(lambda: guest.vm.memory.add(region, at=BASE - PAGE_SIZE), MemorySlotError).value
    assert (error.slot, error.gpa, error.size, error.flags) == (1, BASE - PAGE_SIZE, 2 * PAGE_SIZE, 0)
    assert region.block is not None
    assert (error.hva, error.errno) == (region.block.address, errno.EEXIST)
    assert str(error).startswith(
        "KVM_SET_USER_MEMORY_REGION failed: EEXIST (File exists); slot 1, GPA 0x1ff000, HVA 0x"
    )
    assert str(error).endswith("size 0x2000, flags 0x0 (memory listener 'kvm-memory', apply)")
    assert (guest.vm.memory.view, str(guest.vm.memory)) == (view, tree)
    assert [guest.load(at) for at in (BASE - PAGE_SIZE, BASE)] == [None, 0]
    foreign.remove()
    guest.vm.memory.add(region, at=BASE - PAGE_SIZE)
    assert slot_calls[-1].slot == 1
    assert [guest.load(at) for at in (BASE - PAGE_SIZE, BASE)] == [0x11, 0x11]


@pytest.mark.parametrize("own", [0xFEE0_0000, 0xFEFF_F000])
def test_slot_over_a_page_that_kvm_has_for_itself_says_so(boot, filled, own) -> None:
    guest = boot("f4")
    ForeignSlot(guest.vm, own)  # KVM's are as much in the way
    region = filled("ram", 0x11, 2 * PAGE_SIZE)
    error = failing(lambda: guest.vm.memory.add(region, at=own - PAGE_SIZE), MemorySlotError).value
    assert error.errno == errno.EEXIST
    assert "this KVM keeps pages of its own: at 0xfee00000" in str(error)


def test_address_beyond_what_the_processor_has_is_refused_with_einval(boot) -> None:
    guest = boot("f4")
    rom = accel.MemoryRegion.rom("far", b"\x5a" * PAGE_SIZE)
    error = failing(lambda: guest.vm.memory.add(rom, at=1 << 60), MemorySlotError).value
    assert (error.errno, error.gpa, error.flags) == (errno.EINVAL, 1 << 60, abi.KVM_MEM_READONLY)
    assert guest.load(BASE) is None


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_change_that_fails_at_its_last_step_is_undone_step_by_step(boot, slot_calls, plan, filled) -> None:
    guest = boot("f4", plan=plan)
    regions = [filled(f"ram{n}", 0x11 * (n + 1)) for n in range(3)]
    with guest.vm.transaction():
        for n, region in enumerate(regions):
            guest.vm.memory.add(region, at=BASE + 2 * n * PAGE_SIZE)
    foreign = ForeignSlot(guest.vm, 2 * BASE)
    view, tree = guest.vm.memory.view, str(guest.vm.memory)
    present = set(guest.listener.slots)
    slot_calls.clear()

    def change() -> None:
        with guest.vm.transaction():
            guest.vm.memory.remove(regions[0])
            regions[1].set_readonly(True)
            guest.vm.memory.add(filled("new", 0x77), at=BASE + PAGE_SIZE)
            guest.vm.memory.add(filled("last", 0x88), at=2 * BASE)

    error = failing(change, MemorySlotError).value
    assert (error.gpa, error.errno) == (2 * BASE, errno.EEXIST)
    done = [call.gpa for call in slot_calls if not call.errno]
    failed = [n for n, call in enumerate(slot_calls) if call.errno]
    assert failed == [len(done) // 2]
    assert done[failed[0] :] == done[: failed[0]][::-1]
    assert (guest.vm.memory.view, str(guest.vm.memory)) == (view, tree)
    assert set(guest.listener.slots) == present
    assert [guest.load(BASE + 2 * n * PAGE_SIZE) for n in range(3)] == [0x11, 0x22, 0x33]
    assert guest.load(BASE + PAGE_SIZE) is None
    assert guest.store(BASE + 2 * PAGE_SIZE, 0x44)
    foreign.remove()
    change()
    assert [guest.load(at) for at in (BASE, BASE + PAGE_SIZE, 2 * BASE)] == [None, 0x77, 0x88]
    assert not guest.store(BASE + 2 * PAGE_SIZE, 0x55)


def test_running_guest_notices_nothing_of_changes_that_fail(boot, filled) -> None:
    guest = boot("a100002000 ff0500900000 ebf3", plan="replace")  # 1: mov BASE, %eax; incl 0x9000; jmp 1b
    region = filled("ram", 0x11, max_size=2 * PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    foreign = ForeignSlot(guest.vm, BASE + PAGE_SIZE)
    errors = []
    with guest.running() as exits:
        while len(errors) < 100 or guest.word(0x9000) == 0:
            error = failing(lambda: region.resize(2 * PAGE_SIZE), MemorySlotError).value
            errors.append(error.errno)
    assert set(errors) == {errno.EEXIST}
    assert set(exits) == {accel.Interrupted()}
    assert guest.vm.blocker.stats.inhibits == len(errors)
    foreign.remove()
    region.resize(2 * PAGE_SIZE)
    assert guest.load(BASE + PAGE_SIZE) == 0x11


class Saboteur(MemoryListener):
    """Comes after the accelerator, puts a slot of its own where one was deleted, and fails."""

    priority = 20
    armed = False

    def __init__(self, vm: accel.Vm) -> None:
        self.vm = vm
        self.foreign: ForeignSlot | None = None

    def prepare(self) -> Update | None:
        return _Sabotage(self) if self.armed else None


class _Sabotage(Update):
    def __init__(self, saboteur: Saboteur) -> None:
        self._saboteur = saboteur

    def apply(self) -> None:
        self._saboteur.foreign = ForeignSlot(self._saboteur.vm, BASE)
        raise BackendError("saboteur", errno.EPERM)

    def undo(self) -> None:
        """Leaves its slot where it is."""


def test_change_that_cannot_be_undone_says_what_is_left_and_stops_the_guest_for_good(boot, filled) -> None:
    guest = boot("f4")
    region, saboteur = filled("ram", 0x11), Saboteur(guest.vm)
    guest.vm.memory.add(region, at=BASE)
    guest.vm.memory.add(filled("other", 0x22), at=2 * BASE)
    guest.vm.memory.add_listener(saboteur)
    saboteur.armed = True
    error = failing(lambda: guest.vm.memory.remove(region), MapLostError).value
    assert "EEXIST" in str(error)
    assert f"GPA {BASE:#x}" in str(error)
    assert [line.split(" HVA")[0] for line in error.slots] == [
        "GPA 0x0 size 0x100000",
        f"GPA {2 * BASE:#x} size 0x1000",
    ]
    saboteur.armed = False
    for attempt in (guest.vcpu.run, lambda: guest.vm.memory.remove(region)):
        assert failing(attempt, MapLostError).value.slots == error.slots

"""Every slot call of a change fails once: everything is as before, the zones and the pages that were noted too."""

from __future__ import annotations

import errno
from collections.abc import Callable

import attrs
import pytest

from accel.address import PAGE_SIZE
from accel.errors import BackendError, MapLostError
from accel.exits import MmioWrite
from accel.memory.dirty import DirtyClient
from accel.memory.region import MemoryRegion
from accel.memory.slot_plan import Slot
from accel.program import GuestProgram, Load, Store
from accel_mock.kvm.memslots import MemSlots
from accel_mock.kvm.slot_rules import slot_error
from accel_mock.listener import MockMemoryListener

BASE, DEVICE, NEXT_DEVICE = 0x20_0000, 0x30_0000, 0x40_0000
VGA = DirtyClient.VGA

#: What `Scene.change` asks of the slots.
CALLS = ["toggle", "take_dirty", "delete", "create", "create"]


@attrs.define(eq=False)
class Scene:
    """A guest with a page at 0, logged RAM of two pages at `BASE`, and a device with queued writes."""

    guest: object
    low: MemoryRegion
    ram: MemoryRegion
    other: MemoryRegion
    device: MemoryRegion

    def change(self) -> None:
        """Make a call of each kind, and move the queued writes, in one transaction."""
        with self.guest.vm.transaction():
            self.ram.set_readonly(True)
            self.ram.resize(PAGE_SIZE)
            self.guest.vm.memory.add(self.other, at=BASE + PAGE_SIZE)
            self.low.start_log(VGA)
            self.device.move(NEXT_DEVICE)

    def queued_at(self, at: int) -> bool:
        """Have the guest write to a device there; return whether that was queued."""
        exits = self.guest.run(Store(at, 7, 1))
        assert len(exits) + len(list(self.guest.vm.backend.ring.pop())) == 1
        return not exits

    def check_before(self) -> None:
        """Assert that everything is as before `change`."""
        guest = self.guest
        assert (self.queued_at(DEVICE), self.queued_at(NEXT_DEVICE)) == (True, False)
        assert [(one.number, one.slot.gpa, one.slot.size) for one in guest.memslots.table.slots] == [
            (0, 0, PAGE_SIZE),
            (1, BASE, 2 * PAGE_SIZE),
        ]
        assert guest.logged == {0: False, BASE: True}
        assert guest.run(Store(BASE, 1, 1), Store(BASE + PAGE_SIZE, 1, 1)) == []
        assert guest.dirty_pages(self.ram) == [0, 1]


@pytest.fixture
def scene(boot) -> Callable[[str], Scene]:
    """Make scenes."""

    def make(plan: str) -> Scene:
        guest = boot(plan=plan)
        ram = MemoryRegion.ram("ram", 2 * PAGE_SIZE)
        low, other = MemoryRegion.ram("low", PAGE_SIZE), MemoryRegion.ram("other", PAGE_SIZE)
        device = MemoryRegion.mmio("device", 16, coalesced=True)
        guest.vm.memory.add(low, at=0)
        with guest.vm.transaction():
            guest.vm.memory.add(device, at=DEVICE)
            guest.vm.memory.add(ram, at=BASE)
            ram.start_log(VGA)
        return Scene(guest, low, ram, other, device)

    return make


class Faults:
    """Lets slot calls fail without making them.

    Attributes:
        calls: Their kinds since `reset`, those that fail too.
        failing: The numbers, counted from 0, of those that fail.
        before_call: Called before each.
    """

    KINDS = ("create", "delete", "toggle", "take_dirty")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before_call: Callable[[], None] = lambda: None
        self.reset()
        for kind in self.KINDS:
            monkeypatch.setattr(MemSlots, kind, self._wrapped(kind, getattr(MemSlots, kind)))

    def reset(self, *failing: int) -> None:
        self.calls: list[str] = []
        self.failing = set(failing)

    def _wrapped(self, kind: str, call: Callable[[MemSlots, int, Slot], object]) -> object:
        def wrapped(memslots: MemSlots, number: int, slot: Slot) -> object:
            self.calls.append(kind)
            self.before_call()
            if len(self.calls) - 1 in self.failing:
                raise slot_error(errno.ENOMEM, number, slot)
            return call(memslots, number, slot)

        return wrapped


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """What to fail."""
    return Faults(monkeypatch)


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_mock_change_whose_calls_all_succeed_is_made_under_one_hold(scene, faults, plan) -> None:
    stage = scene(plan)
    stage.check_before()
    faults.reset()
    vm, held = stage.guest.vm, set()
    (listener,) = (one for one in vm.memory.listeners if isinstance(one, MockMemoryListener))
    faults.before_call = lambda: held.add((listener.slots.lock.held(), vm.blocker.inhibited))
    stage.change()
    assert faults.calls == CALLS
    assert held == {(True, True)}
    assert vm.blocker.stats.inhibits == 1
    assert (stage.queued_at(DEVICE), stage.queued_at(NEXT_DEVICE)) == (False, True)
    assert stage.guest.logged == {0: True, BASE: False, BASE + PAGE_SIZE: False}
    assert stage.guest.run(Store(BASE, 3, 1), Store(BASE + PAGE_SIZE, 3, 1)) == [MmioWrite(BASE, 1, 3)]


@pytest.mark.parametrize("plan", ["least", "replace"])
@pytest.mark.parametrize("failing", range(len(CALLS)))
def test_mock_change_with_a_call_that_fails_is_undone_whichever_it_is(scene, faults, plan, failing) -> None:
    stage = scene(plan)
    assert stage.guest.run(Store(BASE + PAGE_SIZE, 1, 1)) == []
    faults.reset(failing)
    with pytest.raises(BackendError, match="ENOMEM") as caught:
        stage.change()
    assert (caught.value.listener, caught.value.step) == ("mock-memory", "apply")
    assert faults.calls[: failing + 1] == CALLS[: failing + 1]
    assert len(faults.calls) == 2 * failing + 1 - CALLS[:failing].count("take_dirty"), "each is taken back, once"
    assert 1 in stage.guest.dirty_pages(stage.ram)
    stage.guest.vm.memory.add(MemoryRegion.mmio("another", 16), at=2 * NEXT_DEVICE)  # tells of no zone and no slot
    stage.check_before()
    stage.change()
    assert stage.queued_at(NEXT_DEVICE)


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_mock_change_that_cannot_be_undone_stops_the_guest_for_good(scene, faults, failing) -> None:
    stage = scene("least")
    stage.guest.vcpu.load_program(GuestProgram((Load(0),)))
    faults.reset(failing, failing + 1)
    with pytest.raises(MapLostError):
        stage.change()
    with pytest.raises(MapLostError):
        stage.guest.vcpu.run()


def test_mock_dirty_log_that_cannot_be_read_keeps_its_pages_for_the_next_time(scene, faults) -> None:
    stage = scene("least")
    assert stage.guest.run(Store(BASE, 1, 1)) == []
    for ask in (
        lambda: stage.guest.vm.dirty_log.collect(stage.ram, VGA),
        lambda: stage.guest.vm.memory.remove(stage.ram),
        lambda: stage.ram.stop_log(VGA),
    ):
        faults.reset(0)
        with pytest.raises(BackendError, match="ENOMEM"):
            ask()
        assert faults.calls == ["take_dirty"]
    assert stage.guest.dirty_pages(stage.ram) == [0]


def test_mock_log_that_cannot_start_at_all_slots_starts_at_none(boot, faults) -> None:
    guest = boot()
    region = MemoryRegion.ram("ram", 3 * PAGE_SIZE)
    for page in range(3):
        window = MemoryRegion.alias(f"window {page}", region, page * PAGE_SIZE, PAGE_SIZE)
        guest.vm.memory.add(window, at=BASE + 2 * page * PAGE_SIZE)
    faults.reset(1)
    with pytest.raises(BackendError) as caught:
        region.start_log(VGA)
    assert (caught.value.gpa, caught.value.flags) == (BASE + 2 * PAGE_SIZE, 1)
    assert faults.calls == ["toggle", "toggle", "toggle"], "the first is taken back"
    assert set(guest.logged.values()) == {False}
    region.start_log(VGA)
    assert guest.run(Store(BASE, 1, 1), Store(BASE + 4 * PAGE_SIZE, 1, 1)) == []
    assert guest.dirty_pages(region) == [0, 2]

"""Changes that fail under a running guest: it misses nothing that was there before, whether or not it was held.

The guest reads one address and counts its rounds in other memory, so it leaves only if that address is missing.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.errors import BackendError
from accel.exits import ExitKind
from accel.memory.listener import MemoryListener, Update
from accel.memory.slot_listener import SlotListener
from accel.program import Add, Load, Loop

PATIENCE = 60
LOW, HIGH, COUNT = 0x1000_0000, 0x2000_0000, 0x3000_0000


class Scene:
    """A machine whose guest reads `LOW` again and again.

    Attributes:
        missed: How often it came out because it found nothing.
    """

    def __init__(self, one: accel.Machine) -> None:
        self.machine = one
        self.missed = 0
        self.low, self.other = accel.MemoryRegion.ram("low", PAGE_SIZE), accel.MemoryRegion.ram("other", PAGE_SIZE)
        self._count = accel.MemoryRegion.ram("count", PAGE_SIZE)
        one.memory.add(self.low, at=LOW)
        one.memory.add(self._count, at=COUNT)
        (self.slots,) = (listener.slots for listener in one.memory.listeners if isinstance(listener, SlotListener))
        backend = one.vm.vcpus[0].backend
        enter = backend.run

        def run() -> int:
            kind = enter()
            self.missed += kind == ExitKind.MMIO
            return kind

        backend.run = run
        self._run = one.start()
        self.go_round()

    @property
    def held(self) -> int:
        return self.machine.vm.blocker.stats.inhibits

    def go_round(self) -> None:
        """Return once the guest has read all of a round after now, or missed something; at once if it is held."""
        before = self._rounds()
        if not self.machine.vm.blocker.inhibited:
            self.until(lambda: self._rounds() >= before + 2 or self.missed > 0)

    def until(self, wanted: Callable[[], bool]) -> None:
        """Wait until the guest has come to where nothing tells that it has."""
        waited = threading.Event()
        for _ in range(PATIENCE * 1_000):
            if wanted():
                return
            waited.wait(0.001)
        raise AssertionError("it does not come there")

    def fail(self, monkeypatch: pytest.MonkeyPatch, what: str, number: int = 1) -> None:
        """Let the call `what` of the slots fail when it is made for the time `number`, once the guest has looked."""
        call, calls = getattr(self.slots, what), []

        def failing(slot) -> None:
            calls.append(slot)
            self.go_round()
            if len(calls) == number:
                raise BackendError(f"slot {what}", errno.ENOMEM)
            call(slot)

        monkeypatch.setattr(self.slots, what, failing)

    def result(self) -> accel.RunResult:
        self.go_round()
        self.machine.stop()
        return self._run.wait()

    def _rounds(self) -> int:
        return int.from_bytes(self._count.read(0, 4), "little")


class Later(MemoryListener, Update):
    """Comes after the accelerator and fails; before that, it does `first`."""

    priority = 20

    def __init__(self, first: Callable[[], object]) -> None:
        self.armed = False
        self._first = first

    def prepare(self) -> Update | None:
        return self if self.armed else None

    def apply(self) -> None:
        self._first()
        raise BackendError("later", errno.EIO)

    def undo(self) -> None:
        """Nothing was done."""


@pytest.fixture
def scene(machine) -> Callable[..., Scene]:
    def make(**options: object) -> Scene:
        return Scene(machine(Loop((Load(LOW), Add(COUNT, 1, 4)), None), **options))

    return make


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_change_whose_create_fails_takes_away_nothing_that_the_guest_reads_and_holds_nobody(
    scene, monkeypatch, plan
) -> None:
    one = scene(plan=plan)

    def change() -> None:
        with one.machine.transaction():
            one.machine.memory.remove(one.low)
            one.machine.memory.add(one.other, at=HIGH)

    with monkeypatch.context() as patch:
        one.fail(patch, "create")
        with pytest.raises(BackendError, match="slot create"):
            change()
    assert (one.low.parent, one.other.parent) == (one.machine.memory.root, None)
    result = one.result()
    assert (one.missed, result.spurious_faults, one.held) == (0, 0, 0)


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_change_whose_second_delete_fails_is_made_and_undone_under_a_hold(scene, monkeypatch, plan) -> None:
    one = scene(plan=plan)
    one.machine.memory.add(one.other, at=HIGH)

    def change() -> None:
        with one.machine.transaction():
            one.machine.memory.remove(one.low)
            one.machine.memory.remove(one.other)

    with monkeypatch.context() as patch:
        one.fail(patch, "delete", 2)
        with pytest.raises(BackendError, match="slot delete"):
            change()
    result = one.result()
    assert (one.missed, result.spurious_faults, one.held) == (0, 0, 1)


@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
def test_change_that_a_later_listener_fails_is_held_or_its_gap_counts(scene, hold) -> None:
    one = scene(hold=hold)
    later = Later(one.go_round if hold == "inhibit" else lambda: one.until(lambda: one.missed > 0))
    one.machine.memory.add_listener(later)
    later.armed = True
    with pytest.raises(BackendError, match="later"):
        one.machine.memory.remove(one.low)
    later.armed = False
    result = one.result()
    assert one.held == (hold == "inhibit")
    assert one.missed == (hold == "unsafe")
    assert result.vcpus[0].spurious == ({LOW: 1} if hold == "unsafe" else {}), "it was there before and is after"

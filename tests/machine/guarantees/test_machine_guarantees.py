"""The two guarantees, apart: each address goes straight to its new meaning; and, on request, the whole map at once."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.program import Load, Loop, Out

PATIENCE = 60
LOW, HIGH = 0x1000_0000, 0x2000_0000
PORT = 0x80


class TwoPlaces:
    """Memory at two addresses, which comes and goes in one commit, and a guest that looks low, high and low again.

    The vCPU runs in a loop of the test's own: a machine's devices wait for the big lock, and so would what they tell.
    While there was no more than one change from before the first look until after the last, a guest that missed only
    the high memory has seen half of that change.

    Attributes:
        looks: How often the guest has looked.
        judged: How many of these were beside no more than one change.
        halves: How many of those saw half of it.
    """

    def __init__(self, machine, accelerator: str) -> None:
        looks = (Load(LOW), Load(HIGH), Load(LOW))
        # As long as two calls of KVM take, where the calls are none.
        options = {"slot_latency_us": 50} if accelerator == "mock" else {}
        self.machine = machine(Loop((Out(PORT, 0), *looks, Out(PORT, 1)), None), **options)
        self.looks = self.judged = self.halves = 0
        self._ram = [accel.MemoryRegion.ram(name, PAGE_SIZE) for name in ("low", "high")]
        self._began = threading.Semaphore(0)
        self._stopping = False
        self._thread = threading.Thread(target=self._main, daemon=True)

    def change(self, atomic: str) -> None:
        """Let both come, or both go, once the guest has begun to look again."""
        assert self._began.acquire(timeout=PATIENCE)
        while self._began.acquire(blocking=False):
            pass
        with self.machine.transaction(atomic):
            for region, at in zip(self._ram, (LOW, HIGH), strict=True):
                if region.parent is None:
                    self.machine.memory.add(region, at=at)
                else:
                    self.machine.memory.remove(region)

    def _main(self) -> None:
        vcpu, history = self.machine.vm.vcpus[0], self.machine.vm.history
        missed: list[int] = []
        began = 0
        while not self._stopping:
            match vcpu.run():
                case accel.MmioRead(address=address) as access:
                    missed.append(address)
                    access.reply(0)
                case accel.IoOut(data=b"\0"):
                    missed.clear()
                    began = history.completed
                    self._began.release()
                case accel.IoOut():
                    self.looks += 1
                    if history.started - began <= 1:
                        self.judged += 1
                        self.halves += missed == [HIGH]

    def __enter__(self) -> TwoPlaces:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping = True
        self.machine.vm.vcpus[0].kick()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture
def short_turns() -> Iterator[None]:
    """Let threads take turns often, so that a vCPU that came out does not wait for the whole change."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize("commits", [2_000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_change_of_two_addresses_is_seen_whole_under_atomic_map(machine, accelerator, commits) -> None:
    if accelerator == "mock":
        commits //= 4  # its slot calls take as long as they are told to
    made = 0
    with TwoPlaces(machine, accelerator) as stage:
        # On a busy host the guest often looks beside two changes, which says nothing.
        while made < commits or stage.judged <= commits // 10:
            stage.change("map")
            made += 1
    assert stage.halves == 0
    assert stage.machine.vm.blocker.stats.inhibits == made


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("short_turns")
def test_change_of_two_addresses_is_seen_by_halves_where_each_address_is_all_that_is_asked(
    machine, accelerator
) -> None:
    commits = 0
    with TwoPlaces(machine, accelerator) as stage:
        while stage.halves < 3 and commits < 20_000:
            stage.change("address")
            commits += 1
    print(f"{stage.halves} halves in {commits} commits, {stage.looks} looks, {stage.judged} judged")
    assert stage.halves >= 3
    # What comes holds nobody. Two slots that go do, since the first would come back if the second did not go.
    assert stage.machine.vm.blocker.stats.inhibits == commits // 2

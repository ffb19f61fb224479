"""Atomic updates: memory that is there before and after a change is there all the time, for guests that run meanwhile.

Two vCPUs, where there can be two, read, write, add and fetch in RAM whose map changes around and
under them. Under every hold that is claimed but ``unsafe``, of which nothing is demanded, they find nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from accel.backend import Capability
from accel.machine import Machine
from accel.memory.region import MemoryRegion
from accel.program import ERRORS, RETURN_BYTE, Add, Fetch, Load, Loop, Op, Out, Store
from accel.result import RunResult
from accel.testing.claims import Claims
from accel.testing.conformance.look import BASE
from accel.testing.conformance.pace import Pace
from accel.testing.conformance.plans import every_way, options_for
from accel.testing.conformance.verdict import expect
from accel.testing.machines import MachineFactory

pytestmark = pytest.mark.accelerators(executes=("program", "x86"))

#: Pages that guests touch.
TOUCHED = 6
COUNTER = 0x200
CODE = 0x300
#: Changes of each kind.
TURNS = 24


class Scene:
    """RAM of which the first pages are touched, and what changes around and under them.

    Args:
        one: The machine.
        page: Bytes of a page.
    """

    def __init__(self, one: Machine, page: int) -> None:
        self.one, self.page = one, page
        self.ram = MemoryRegion.ram("ram", 16 * page, max_size=16 * page)
        for number in range(TOUCHED):
            self.ram.write(number * page, (0x5A00 + number).to_bytes(4, "little"))
        self.ram.write(page + CODE, bytes((RETURN_BYTE,)))
        half = TOUCHED // 2 * page
        self.whole = MemoryRegion.alias("whole", self.ram, 0, 12 * page)
        self.low = MemoryRegion.alias("low", self.ram, 0, half, unmergeable=True)
        self.high = MemoryRegion.alias("high", self.ram, half, 12 * page - half, unmergeable=True)
        self.device = MemoryRegion.mmio("device", page)
        self.other = MemoryRegion.ram("other", 2 * page, max_size=8 * page)
        one.memory.add(self.whole, at=BASE)

    def body(self, port: int) -> tuple[Op, ...]:
        """Return what guests do in one turn: all of it in RAM but for a report of their errors."""
        ops: list[Op] = []
        for number in range(TOUCHED):
            at = BASE + number * self.page
            ops += [Load(at, 4, expect=0x5A00 + number), Store(at + 0x40, number, 4)]
        ops += [Fetch(BASE + self.page + CODE), Load(BASE + 0x40, 4, expect=0)]
        return (Loop(ops, 12), Add(BASE + COUNTER, 1, 8), Out(port, ERRORS, 4))

    def split_and_merge(self) -> Iterator[None]:
        """Show the touched pages as one piece, and as two."""
        memory = self.one.memory
        while True:
            with self.one.transaction():
                memory.remove(self.whole)
                memory.add(self.low, at=BASE)
                memory.add(self.high, at=BASE + self.low.size)
            yield
            with self.one.transaction():
                memory.remove(self.low)
                memory.remove(self.high)
                memory.add(self.whole, at=BASE)
            yield

    def grow_and_shrink(self) -> Iterator[None]:
        """Resize what shows the touched pages, behind them."""
        while True:
            for count in (16, TOUCHED, 9):
                self.whole.resize(count * self.page)
                yield

    def cut_and_close_holes(self) -> Iterator[None]:
        """Put a device over RAM right behind the touched pages, and take it away."""
        while True:
            self.one.memory.add(self.device, at=BASE + TOUCHED * self.page, priority=1)
            yield
            self.one.memory.remove(self.device)
            yield

    def come_and_go_beside(self) -> Iterator[None]:
        """Let other RAM come, move and go right beside the touched pages."""
        while True:
            self.one.memory.add(self.other, at=BASE - 2 * self.page)
            yield
            self.other.move(BASE - 3 * self.page)
            yield
            self.one.memory.remove(self.other)
            yield


def watch(
    claims: Claims, machine: MachineFactory, way: str, patience: float, kind: Callable[[Scene], Iterator[None]]
) -> RunResult:
    """Change memory under running guests, and judge what they saw."""
    cpus = min(2, claims.max_vcpus)
    one = machine(cpus=cpus, options=options_for(way, claims))
    scene = Scene(one, claims.page_size)
    pace = Pace(one, patience)
    pace.begin(Loop(scene.body(pace.port), None))
    changes = kind(scene)
    pace.wait(cpus)
    for turn in range(TURNS):
        next(changes)
        if turn % 3 == 2:  # two in a row, and then one that the guest has time for
            pace.wait()
    pace.wait(cpus)
    result = pace.end()
    missed = {at: n for vcpu in result.vcpus for at, n in vcpu.spurious.items()}
    where = f", first at {min(missed):#x}" if missed else ""
    expect(
        not result.spurious_faults,
        f"{result.spurious_faults} accesses came out at RAM that was there before and after {TURNS} changes{where}",
    )
    expect(
        not result.exits.get("mmio", 0),
        f"{result.exits.get('mmio', 0)} accesses of guests that touch only RAM came out as MMIO",
    )
    expect(not pace.most, f"a guest read {pace.most} times something else than RAM held, in {TURNS} changes")
    added = int.from_bytes(scene.ram.read(COUNTER, 8), "little")
    expect(
        pace.count <= added <= pace.count + cpus,
        f"guests made {pace.count} rounds with a locked addition each, and the sum in RAM is {added}",
    )
    return result


@every_way
@pytest.mark.parametrize(
    "kind",
    [Scene.split_and_merge, Scene.grow_and_shrink, Scene.cut_and_close_holes, Scene.come_and_go_beside],
    ids=lambda kind: kind.__name__,
)
def test_atomic_changes_are_not_seen_by_guests_that_run(
    machine: MachineFactory,
    claims: Claims,
    patience: float,
    way: str,
    kind: Callable[[Scene], Iterator[None]],
) -> None:
    """Guests that touch RAM while its map changes miss none of it, read nothing else, and go on."""
    watch(claims, machine, way, patience, kind)


@every_way
@pytest.mark.accelerators(capabilities=[Capability.READONLY_MEMORY])
def test_atomic_changes_of_readonly_are_not_seen_by_guests_that_read(
    machine: MachineFactory, claims: Claims, patience: float, way: str
) -> None:
    """Guests that read RAM while it becomes read-only and writable again miss none of it."""
    one, page = machine(cpus=min(2, claims.max_vcpus), options=options_for(way, claims)), claims.page_size
    ram = MemoryRegion.ram("ram", 4 * page)
    for number in range(4):
        ram.write(number * page, (0x5A00 + number).to_bytes(4, "little"))
    one.memory.add(ram, at=BASE)
    pace = Pace(one, patience)
    loads = [Load(BASE + n * page, 4, expect=0x5A00 + n) for n in range(4)]
    pace.begin(Loop([Loop(loads, 20), Out(pace.port, ERRORS, 4)], None))
    for turn in range(TURNS):
        ram.set_readonly(turn % 2 == 0)
        if turn % 3 == 2:
            pace.wait()
    result = pace.end()
    expect(not result.exits.get("mmio", 0), f"{result.exits.get('mmio', 0)} loads came out as MMIO")
    expect(not pace.most, f"a guest read {pace.most} times something else than RAM held")


@every_way
def test_atomic_changes_of_the_whole_map_go_on_under_running_guests(
    machine: MachineFactory, claims: Claims, patience: float, way: str
) -> None:
    """A transaction of the whole map holds the guests for the moment, and they go on after it."""
    one, page = machine(cpus=min(2, claims.max_vcpus), options=options_for(way, claims)), claims.page_size
    scene = Scene(one, page)
    pace = Pace(one, patience)
    pace.begin(Loop(scene.body(pace.port), None))
    for turn in range(TURNS):
        with one.transaction("map"):
            scene.whole.resize((TOUCHED + turn % 4) * page)
            scene.other.resize((1 + turn % 3) * page)
            if turn % 2 == 0:
                one.memory.add(scene.other, at=BASE + 32 * page)
            else:
                one.memory.remove(scene.other)
        if turn % 4 == 3:
            pace.wait()
    result = pace.end()
    expect(
        not result.spurious_faults and not result.exits.get("mmio", 0) and not pace.most,
        f"guests saw {result.spurious_faults} spurious faults, {result.exits.get('mmio', 0)} MMIO exits and "
        f"{pace.most} wrong values while the whole map changed",
    )

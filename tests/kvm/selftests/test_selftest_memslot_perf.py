"""memslot_perf: memory in many slots that is filled, given back, moved and read, under a guest that is at it.

Six runs as the kernel's, of 8 MiB and a page over 512 slots instead of 512 MiB over all there are; what each may see is
the same. Times are printed (`pytest -s`) and never judged. Where the kernel's guest and host agree through memory,
these agree by port accesses, so that guest programs can do it on every accelerator.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import attrs
import pytest

import accel
from accel.address import PAGE_SIZE
from accel.program import ERRORS, GuestProgram, Load, Loop, Op, Out, Store
from accel.result import Outcome

AT = 0x1000_0000
SLOTS = 512
PAGES = 4  # of each slot; the last has one more
SLOT_SIZE = PAGES * PAGE_SIZE
SIZE = SLOTS * SLOT_SIZE + PAGE_SIZE
HALF = 64 * PAGE_SIZE
TURNS = 5
PORT, ERROR_PORT = 0x80, 0x81
VALUE = 0x1122_3344_5566_7788


@attrs.define(eq=False)
class Field:
    """A machine whose memory at `AT` is of many slots over one block of host memory.

    Attributes:
        machine: The machine.
        block: The memory.
        slots: What shows it, ascending.
        at_port: Called with what the guest writes to `PORT`; the guest waits meanwhile.
        errors: What it said of its errors.
    """

    machine: accel.Machine
    block: accel.MemoryRegion
    slots: list[accel.MemoryRegion]
    at_port: Callable[[int], None] = lambda value: None
    errors: list[int] = attrs.Factory(list)
    seconds: float = 0.0

    @property
    def block_memory(self) -> accel.memory.ram_block.RamBlock:
        block = self.block.block
        assert block is not None
        return block

    def run(self) -> accel.RunResult:
        """Run the guest to its end."""
        started = time.perf_counter()
        result = self.machine.run(timeout=60)
        self.seconds = time.perf_counter() - started
        assert result.outcome is Outcome.HALTED
        assert set(self.errors) <= {0}
        return result


@pytest.fixture
def field(machine, request) -> Callable[..., Field]:
    """Make fields: `field(program, plan="replace")`."""

    def make(program: GuestProgram, **options: object) -> Field:
        one = machine(program, **options)
        block = accel.MemoryRegion.ram("block", SIZE)
        slots = []
        started = time.perf_counter()
        for number in range(SLOTS):
            size = SLOT_SIZE + (PAGE_SIZE if number == SLOTS - 1 else 0)
            slots.append(accel.MemoryRegion.alias(f"slot{number}", block, number * SLOT_SIZE, size, unmergeable=True))
        with one.transaction():
            for number, slot in enumerate(slots):
                one.memory.add(slot, at=AT + number * SLOT_SIZE)
        print(f"\n{one.accelerator}: {SLOTS} slots set up in {time.perf_counter() - started:.3f} s")
        made = Field(one, block, slots)
        one.port(PORT)(lambda access: made.at_port(access.value))
        one.port(ERROR_PORT, 4)(lambda access: made.errors.append(access.value))
        return made

    return make


def fill(start: int, size: int, value: int = VALUE) -> list[Op]:
    """Return stores of 8 bytes to each page."""
    return [Store(page, value, 8) for page in range(AT + start, AT + start + size, PAGE_SIZE)]


def check(start: int, size: int, value: int = VALUE) -> list[Op]:
    """Return loads of each page's first 8 bytes, which must be `value`."""
    return [Load(page, 8, expect=value) for page in range(AT + start, AT + start + size, PAGE_SIZE)]


def in_turns(*ops: Op) -> GuestProgram:
    """Return what does this `TURNS` times, and tells of errors each time."""
    return GuestProgram((Loop((*ops, Out(ERROR_PORT, ERRORS, 4)), TURNS),))


@pytest.mark.parametrize("chunk", [HALF, 16 * PAGE_SIZE, PAGE_SIZE], ids=["map", "unmap chunked", "unmap"])
def test_memory_given_back_to_the_host_is_mapped_again_when_it_is_touched(field, chunk) -> None:
    """map, unmap chunked and unmap by the page: a half is given back once the guest has filled it."""
    program = in_turns(
        *check(0, HALF, 0), *fill(0, HALF), *check(0, HALF), Out(PORT, 0),
        *check(HALF, HALF, 0), *fill(HALF, HALF), *check(HALF, HALF), Out(PORT, 1),
    )  # fmt: skip
    one = field(program)
    given_back = [0]

    def give_back(half: int) -> None:
        for start in range(half * HALF, (half + 1) * HALF, chunk):
            assert one.block.read(start, 8) == VALUE.to_bytes(8, "little")
            one.block_memory.discard(start, chunk)
            given_back[0] += chunk

    one.at_port = give_back
    result = one.run()
    assert given_back[0] == TURNS * 2 * HALF
    assert len(one.errors) == TURNS
    assert result.exits.get("mmio", 0) == 0
    print(f"{one.seconds:.3f} s for {TURNS} turns")


class Watch:
    """Stands behind the slots, and keeps what came out: it is answered as memory that is not there would be."""

    def __init__(self, one: Field) -> None:
        self.writes: set[tuple[int, int]] = set()
        self.reads = 0
        region = accel.MemoryRegion.mmio("behind", 2 * SIZE, read=self._read, write=self._write)
        one.machine.memory.add(region, at=AT, priority=-1)

    def _read(self, offset: int, size: int) -> int:
        self.reads += 1
        return 0

    def _write(self, offset: int, value: int, size: int) -> None:
        assert value == VALUE
        self.writes.add((offset, size))


WINDOW = 50 * PAGE_SIZE
LAST = (SLOTS - 1) * SLOT_SIZE


@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
@pytest.mark.parametrize("area", ["active", "inactive"])
def test_slot_moved_away_and_back_is_missed_only_where_it_was(field, area, hold) -> None:
    """move active: the guest writes to the last 50 pages, which reach into the slot; move inactive: to 50 others."""
    start = SIZE - WINDOW if area == "active" else 0
    rounds = [0]
    one = field(GuestProgram((Loop((*fill(start, WINDOW), Out(PORT, 0)), None),)), hold=hold, plan="replace")
    watch = Watch(one)
    one.at_port = lambda value: rounds.__setitem__(0, rounds[0] + 1)

    def enough() -> bool:
        return moves[0] >= 50 and rounds[0] >= 50 and (area == "inactive" or len(watch.writes) > 0)

    moves = [0]
    run = one.machine.start()
    while not run.done and not enough():
        one.slots[-1].move(AT + 4 * SIZE // PAGE_SIZE * PAGE_SIZE)
        one.slots[-1].move(AT + LAST)
        moves[0] += 1
    one.machine.stop()
    result = run.wait()
    moved = {(page, 8) for page in range(LAST, SIZE, PAGE_SIZE)}
    assert watch.reads == 0
    assert watch.writes <= moved
    assert bool(watch.writes) == (area == "active")
    assert result.spurious_faults == 0, "what stays is there all the time, held or not"
    assert result.exits.get("mmio", 0) == 0 or area == "active"
    print(f"{one.machine.accelerator}: {moves[0]} moves, {rounds[0]} rounds")


def test_memory_in_many_slots_shows_host_and_guest_what_the_other_wrote(field) -> None:
    """rw: in each turn the guest reads what the host wrote to every page and writes anew; the host does the same."""
    program = in_turns(*check(0, SIZE, 1), *fill(0, SIZE, 2), Out(PORT, 0))
    one = field(program)
    host = [(1).to_bytes(8, "little"), (2).to_bytes(8, "little")]

    def write_all() -> None:
        for page in range(0, SIZE, PAGE_SIZE):
            one.machine.memory.write(AT + page, host[0])

    def read_all(value: int) -> None:
        view = one.block.view()
        assert all(view[page : page + 8] == host[1] for page in range(0, SIZE, PAGE_SIZE))
        view.release()
        write_all()

    one.at_port = read_all
    write_all()
    result = one.run()
    assert len(one.errors) == TURNS
    assert result.exits.get("mmio", 0) == 0
    print(f"{one.seconds:.3f} s for {TURNS} turns")

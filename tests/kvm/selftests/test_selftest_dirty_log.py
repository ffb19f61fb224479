"""dirty_log: a guest writes the number of the iteration to random pages, and the log has to agree with what is there.

Modes: log and ring. The kernel's test also has clear-log; this project's accelerators offer the log that is read and
cleared at once. The guest counts iterations by itself and tells, since a guest program does not branch on memory.
"""

from __future__ import annotations

import random
import threading

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.memory.dirty import DirtyClient, DirtySnapshot
from accel.program import GuestProgram, Halt, Loop, Out, Store

AT = 0x4000_0000
PAGES = 64 * 32 + 3  # not a multiple of 64
WRITES = 1_024
ITERATIONS = 32
REPEATS = 4
#: Where vCPU 0 waits for a check: however fast the guest and slow the host, it is not done before there were some.
PAUSES = (8, 16, 24)
PORT = 0x80
CLIENT = DirtyClient.MIGRATION


def writer(seed: int, vcpu: int) -> GuestProgram:
    """Return what writes to `WRITES` random pages in each iteration, `REPEATS` times over."""
    pages = random.Random(seed + vcpu)
    ops: list[Loop | Out] = []
    for iteration in range(1, ITERATIONS + 1):
        stores = (Store(AT + pages.randrange(PAGES) * PAGE_SIZE + 8 * vcpu, iteration, 8) for _ in range(WRITES))
        ops += (Out(PORT + vcpu, iteration), Loop(tuple(stores), REPEATS))
    return GuestProgram((*ops, Halt()))


class Judge:
    """Compares what the log says with what the pages hold, and what it said before.

    Attributes:
        iteration: Of each vCPU; it may be at its end while the next is not told of yet.
        seen: How many dirty pages there were.
    """

    def __init__(self, region: accel.MemoryRegion, cpus: int) -> None:
        self.iteration = [0] * cpus
        self.seen = 0
        self._region = region
        self._last = [0] * cpus

    def check(self, *snapshots: DirtySnapshot) -> None:
        """Judge what was collected since the last check; nobody writes meanwhile."""
        dirty = int.from_bytes(snapshots[0].bitmap, "little")
        for more in snapshots[1:]:
            dirty |= int.from_bytes(more.bitmap, "little")
        view = self._region.view()
        words = view.cast("Q")
        unwritten = 0
        for page in range(PAGES):
            for vcpu, now in enumerate(self.iteration):
                value = words[page * PAGE_SIZE // 8 + vcpu]
                assert value <= now, f"page {page}: {value} is of an iteration to come"
                # A clear bit: nothing newer than what the last check had seen.
                assert dirty >> page & 1 or value <= self._last[vcpu], f"page {page}: the write of {value} is lost"
            if dirty >> page & 1:
                # A set bit: somebody wrote in this iteration or that of the last check, or between.
                written = any(words[page * PAGE_SIZE // 8 + vcpu] >= last for vcpu, last in enumerate(self._last))
                unwritten += not written
        # But for the page that a vCPU is about to write: it is noted first.
        assert unwritten <= len(self.iteration), f"{unwritten} pages are dirty without a write"
        words.release()
        view.release()
        assert dirty < 1 << PAGES
        self.seen += dirty.bit_count()
        self._last = list(self.iteration)


@pytest.mark.parametrize("turn", [0, *(pytest.param(turn, marks=pytest.mark.soak) for turn in range(1, 30))])
@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("ring_size", [0, 1 << 16], ids=["log", "ring"])
def test_log_has_each_page_that_was_written_in_the_iteration(machine, cpus, turn, ring_size) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    one = machine(*(writer(seed, vcpu) for vcpu in range(cpus)), dirty_ring_size=ring_size)
    region = accel.MemoryRegion.ram("logged", PAGES * PAGE_SIZE)
    one.memory.add(region, at=AT)
    judge = Judge(region, cpus)
    told = threading.Event()

    @one.port(PORT, cpus)
    def tell(access: accel.PortAccess) -> None:
        judge.iteration[access.port - PORT] = access.value
        if access.port == PORT and access.value in PAUSES:
            one.pause()
        told.set()

    region.start_log(CLIENT)
    run = one.start()
    checks = 0
    while min(judge.iteration) < ITERATIONS:
        assert told.wait(60)
        told.clear()
        # Once while it writes, and once more when it is held.
        running = one.vm.dirty_log.collect(region, CLIENT)
        one.pause()
        judge.check(running, one.vm.dirty_log.collect(region, CLIENT))
        checks += 1
        one.resume()
    result = run.wait(60)
    assert not {"mmio", "internal-error", "unknown-exit"} & result.exits.keys()
    judge.check(one.vm.dirty_log.collect(region, CLIENT))
    assert one.vm.dirty_log.collect(region, CLIENT).page_count == 0
    assert result.outcome is accel.Outcome.HALTED
    assert checks >= len(PAUSES)
    assert judge.seen > PAGES // 2


def test_log_of_a_slot_that_ends_in_the_middle_of_a_word_has_its_last_pages(machine) -> None:
    ends = (0, 63, 64, PAGES - 4, PAGES - 3, PAGES - 1)
    one = machine(GuestProgram((*(Store(AT + page * PAGE_SIZE, 1, 1) for page in ends), Halt())))
    region = accel.MemoryRegion.ram("logged", PAGES * PAGE_SIZE)
    one.memory.add(region, at=AT)
    region.start_log(CLIENT)
    one.run(60)
    snapshot = one.vm.dirty_log.collect(region, CLIENT)
    assert [page for page in range(PAGES) if snapshot.is_dirty(page * PAGE_SIZE)] == list(ends)

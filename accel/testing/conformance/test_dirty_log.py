"""Dirty log: exactly the pages that the guest wrote, each until it was collected, and none lost when memory changes."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from accel.backend import Capability
from accel.errors import BackendError, CapabilityError
from accel.machine import Machine
from accel.memory.dirty import DirtyClient
from accel.memory.region import MemoryRegion
from accel.program import Add, Load, Loop, Op, Out, Store
from accel.testing.claims import Claims
from accel.testing.conformance.lane import Lane, Lanes
from accel.testing.conformance.look import BASE, look, pages, perform, tagged
from accel.testing.conformance.pace import Pace
from accel.testing.conformance.plans import RING_SIZE, every_log, options_for
from accel.testing.conformance.verdict import Violation, expect, refused
from accel.testing.machines import MachineFactory

pytestmark = pytest.mark.accelerators(executes=("program", "x86"))
claimed = pytest.mark.accelerators(capabilities=[Capability.DIRTY_LOG])

VGA = DirtyClient.VGA
#: Not a multiple of 64, the pages of one word of a bitmap.
COUNT = 70


def dirty(one: Machine, region: MemoryRegion, page: int) -> list[int]:
    """Collect the log of a region; return the numbers of its dirty pages."""
    snapshot = one.vm.dirty_log.collect(region, VGA)
    return [number for number in range(region.size // page) if snapshot.is_dirty(number * page, page)]


def touch(one: Machine, vcpu: Lane, ops: Iterable[Op]) -> None:
    """Have the guest do some operations on RAM."""
    for found in perform(one, vcpu, list(ops)).exits:
        raise Violation(f"an access to RAM that logs came out: {found}")


def named(numbers: Iterable[int]) -> str:
    """Return pages for a message."""
    return f"pages {sorted(numbers)}" if numbers else "no page"


@claimed
@every_log
def test_dirty_log_has_exactly_the_pages_that_were_written(
    machine: MachineFactory, lane: Lanes, claims: Claims, way: str
) -> None:
    """The log has each page that the guest wrote since it was collected last, and no other."""
    one, page = machine(options=options_for(way, claims)), claims.page_size
    vcpu, region = lane(one), MemoryRegion.ram("ram", COUNT * page)
    one.memory.add(region, at=BASE)
    touch(one, vcpu, (Store(BASE + n * page, 1) for n in range(COUNT)))
    region.start_log(VGA)
    found = dirty(one, region, page)
    expect(not found, f"the log begins with {named(found)}, written before anybody logged")
    for written in ([0, 1, 63, 64, 69], [5], list(range(COUNT)), [], [33, 68]):
        touch(one, vcpu, (Store(BASE + n * page + n * 8, 3, 8) for n in written))
        found = dirty(one, region, page)
        expect(found == written, f"the guest wrote {named(written)}, and the log has {named(found)}")
        found = dirty(one, region, page)
        expect(not found, f"the log has {named(found)} again, collected before and not written since")
    region.stop_log(VGA)
    touch(one, vcpu, [Store(BASE, 1)])
    region.start_log(VGA)
    found = dirty(one, region, page)
    expect(not found, f"a log that begins anew has {named(found)}, written while nobody logged")


@claimed
def test_dirty_log_notes_every_kind_of_write_and_no_read(machine: MachineFactory, lane: Lanes, claims: Claims) -> None:
    """Stores of every size, locked additions, and both pages of a store that crosses are noted; loads are not."""
    one, page = machine(), claims.page_size
    vcpu, region = lane(one), MemoryRegion.ram("ram", 8 * page)
    region.start_log(VGA)
    one.memory.add(region, at=BASE)
    dirty(one, region, page)
    writes: list[tuple[Op, list[int]]] = [(Store(BASE + n * page, 1, 1 << n), [n]) for n in range(4)]
    writes += [(Add(BASE + 4 * page, 1, 4), [4]), (Store(BASE + 6 * page - 3, 0x0101_0101_0101_0101, 8), [5, 6])]
    writes += [(Store(BASE + 8 * page - 1, 1, 1), [7]), (Load(BASE + 2 * page, 8), [])]
    for op, written in writes:
        touch(one, vcpu, [op])
        found = dirty(one, region, page)
        expect(found == written, f"{op} writes {named(written)}, and the log has {named(found)}")


@claimed
def test_dirty_log_begins_with_the_mapping(machine: MachineFactory, lane: Lanes, claims: Claims) -> None:
    """Memory that comes with its log on is logged from the first moment; also in the place where it moves to."""
    one, page = machine(), claims.page_size
    vcpu, region = lane(one), MemoryRegion.ram("ram", 4 * page)
    region.start_log(VGA)
    one.memory.add(region, at=BASE)
    touch(one, vcpu, [Store(BASE + 2 * page, 1)])
    found = dirty(one, region, page)
    expect(found == [2], f"the guest wrote page 2 right after the memory came, and the log has {named(found)}")
    region.move(BASE + 16 * page)
    touch(one, vcpu, [Store(BASE + 17 * page, 1)])
    found = dirty(one, region, page)
    expect(found == [1], f"the guest wrote page 1 after the memory moved, and the log has {named(found)}")


def _remove(one: Machine, region: MemoryRegion, page: int) -> None:
    one.memory.remove(region)


def _move(one: Machine, region: MemoryRegion, page: int) -> None:
    region.move(BASE + 100 * page)


def _shrink(one: Machine, region: MemoryRegion, page: int) -> None:
    region.resize(page)


def _split(one: Machine, region: MemoryRegion, page: int) -> None:
    one.memory.add(MemoryRegion.mmio("device", 2 * page, read=lambda offset, size: 0), at=BASE + page, priority=1)


CHANGES = {"remove": _remove, "move": _move, "shrink": _shrink, "split": _split}


@claimed
@every_log
@pytest.mark.parametrize("change", CHANGES)
def test_dirty_log_survives_a_change_of_the_map(
    machine: MachineFactory, lane: Lanes, claims: Claims, way: str, change: str
) -> None:
    """Pages that were written and not collected are in the log after their mapping has gone."""
    one, page = machine(options=options_for(way, claims)), claims.page_size
    vcpu, region = lane(one), MemoryRegion.ram("ram", 6 * page)
    region.start_log(VGA)
    one.memory.add(region, at=BASE)
    dirty(one, region, page)
    touch(one, vcpu, (Store(BASE + n * page, 1) for n in (0, 2, 5)))
    CHANGES[change](one, region, page)
    snapshot = one.vm.dirty_log.collect(region, VGA)
    lost = [n for n in (0, 2, 5) if n * page < region.size and not snapshot.is_dirty(n * page)]
    expect(not lost, f"the guest wrote {named(lost)}, and after the change ({change}) the log does not have them")


@claimed
@every_log
def test_dirty_log_loses_nothing_while_memory_comes_and_goes_under_the_guest(
    machine: MachineFactory, claims: Claims, way: str, patience: float
) -> None:
    """While vCPUs write to memory that logs and that comes and goes, each page that changed is in the log."""
    page, count = claims.page_size, 24
    adds = tuple(Add(BASE + n * page, 1, 8) for n in range(count))
    cpus = min(2, claims.max_vcpus)
    one = machine(cpus=cpus, options=options_for(way, claims))
    region = MemoryRegion.ram("ram", count * page)
    region.start_log(VGA)
    one.memory.add(region, at=BASE)
    pace = Pace(one, patience)
    pace.begin(Loop((*adds, Out(pace.port, 0)), None))

    def contents() -> list[bytes]:
        return [region.read(n * page, 8) for n in range(count)]

    written = 0
    for turn in range(8):
        pace.wait()
        one.vm.dirty_log.collect(region, VGA)
        before = contents()
        # In the first turn so long that a guest has been all the way round.
        pace.wait(1 if turn else cpus + 1)
        one.memory.remove(region)
        one.pause()
        after = contents()
        changed = {n for n in range(count) if after[n] != before[n]}
        one.memory.add(region, at=BASE)
        snapshot = one.vm.dirty_log.collect(region, VGA)
        lost = {n for n in changed if not snapshot.is_dirty(n * page)}
        expect(not lost, f"in turn {turn + 1} of 8 the guest changed {named(lost)}, and the log does not have them")
        written += len(changed)
        one.resume()
    pace.end()
    expect(written, "a guest that writes all the time has changed no page in 8 turns")


@claimed
@pytest.mark.accelerators(capabilities=[Capability.DIRTY_RING])
def test_dirty_log_loses_nothing_when_a_ring_is_full(machine: MachineFactory, lane: Lanes, claims: Claims) -> None:
    """A guest that writes more pages than its ring has entries comes out in between, and all of them are in the log."""
    one, page, count = machine(options=options_for("rings", claims)), claims.page_size, 2 * RING_SIZE + 70
    vcpu, region = lane(one), MemoryRegion.ram("ram", count * page)
    region.start_log(VGA)
    one.memory.add(region, at=BASE)
    for turn in range(2):
        try:
            touch(one, vcpu, (Store(BASE + n * page, turn, 1) for n in range(count)))
            found = set(dirty(one, region, page))
        except BackendError as error:
            # Some hosts let a vCPU write on. Who notices and says so has lost nothing in silence.
            pytest.skip(f"{claims.name} says that a ring overflowed: {error}")
        lost = set(range(count)) - found
        expect(not lost, f"of {count} pages written with a ring of {RING_SIZE} entries, {len(lost)} are not in the log")


@claimed
def test_dirty_log_of_all_memory_has_what_was_written(machine: MachineFactory, lane: Lanes, claims: Claims) -> None:
    """Where all memory is logged, as for a migration, what the guest writes after a collection is in the log."""
    one, page = machine(), claims.page_size
    vcpu, region = lane(one), MemoryRegion.ram("ram", 8 * page)
    one.memory.add(region, at=BASE)
    one.vm.dirty_log.start_global()
    one.vm.dirty_log.collect(region, DirtyClient.MIGRATION)
    touch(one, vcpu, [Store(BASE + 3 * page, 1)])
    snapshot = one.vm.dirty_log.collect(region, DirtyClient.MIGRATION)
    found = [n for n in range(8) if snapshot.is_dirty(n * page, page)]
    expect(found == [3], f"with all memory logged the guest wrote page 3, and the log has {named(found)}")
    one.vm.dirty_log.stop_global()


def test_dirty_log_is_refused_where_it_is_not_claimed(machine: MachineFactory, lane: Lanes, claims: Claims) -> None:
    """An accelerator without dirty logs refuses one with a CapabilityError, and the map stays as it is."""
    if Capability.DIRTY_LOG in claims.capabilities:
        pytest.skip(f"{claims.name} claims {Capability.DIRTY_LOG}; this is about those that do not")
    one, page = machine(), claims.page_size
    vcpu, region = lane(one), tagged("ram", 1, 0x30, page)
    one.memory.add(region, at=BASE)
    with refused(CapabilityError, "logging memory on an accelerator that does not claim a dirty log"):
        region.start_log(VGA)
    with refused(CapabilityError, "logging all memory on an accelerator that does not claim a dirty log"):
        one.vm.dirty_log.start_global()
    look(one, vcpu, pages(BASE, [0x30, None], page), "after a dirty log was refused")

"""What each way to zap a memslot costs while vCPUs fault, counted: the same crowd for all, and no clock.

Layer: above `mmu`. A deterministic adversary stands for the vCPUs: all of them always wait for the MMU lock, and each
time that it is given up each gets it once and makes a shadow page of its own, as on a lock that serves in the order of
arrival. So nothing depends on threads, and what does not end is stopped after so many rounds.
"""

from __future__ import annotations

from types import TracebackType

from attrs import frozen

from accel import MemoryRegion
from accel.address import PAGE_SIZE
from accel.memory.slot_plan import Slot
from accel_mock.kvm.memslots import MemSlots
from accel_mock.kvm.running import Running
from accel_mock.kvm.slot_map import MemSlot, SlotMap
from accel_mock.kvm.zap import FastInvalidate, ZapAll, ZapCost, ZapSlot, ZapStrategy

#: Guest memory of one shadow page.
_SHADOWED = 512 * PAGE_SIZE


@frozen
class ZapRow:
    """What one way cost.

    Attributes:
        way: Its name.
        ends: Whether it came to an end, within the rounds it was given.
        cost: What it cost up to there.
        lost: Entries of the slot that stays which went with it, to be faulted in again.
    """

    way: str
    ends: bool
    cost: ZapCost
    lost: int


class _Endless(Exception):
    """The lock was given up too often."""


class _Crowd:
    """The MMU lock among vCPUs that always wait for it; stands in for a `Lock`.

    Args:
        memslots: The VM's.
        vcpus: How many.
        rounds: How often they get the lock before it counts as for ever.
    """

    def __init__(self, memslots: MemSlots, vcpus: int, rounds: int) -> None:
        self._mmu = memslots.mmu
        self._vcpus = vcpus
        self._rounds = rounds
        self._depth = 0
        self._next = _first_of_crowd()
        self._mmu.waiting = vcpus

    def acquire(self) -> bool:
        """Take the lock, which is free: nobody else runs."""
        self._depth += 1
        return True

    def release(self) -> None:
        """Give it to each vCPU once."""
        self._depth -= 1
        if self._depth:
            return
        if not self._rounds:
            raise _Endless
        self._rounds -= 1
        # A page fault takes this lock in turn, at a depth at which the crowd does not come again.
        self._depth += 1
        for _ in range(self._vcpus):
            self._mmu.fault(self._next, write=False)
            self._next += _SHADOWED
        self._depth -= 1

    __enter__ = acquire

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _first_of_crowd() -> int:
    return 1 << 40


def zap_costs(pages: int = 8, entries: int = 16, vcpus: int = 2, rounds: int = 100) -> tuple[ZapRow, ...]:
    """Return what each way costs where a slot goes and another stays.

    Args:
        pages: Shadow pages of each of the two slots.
        entries: Entries of each such page.
        vcpus: vCPUs that fault meanwhile, each in memory of its own.
        rounds: How often the lock may be given up before a way counts as one that does not end.
    """
    ways: tuple[tuple[str, ZapStrategy], ...] = (
        ("all, yielding", ZapAll(yields=True)),
        ("all, not yielding", ZapAll(yields=False)),
        ("the slot's only", ZapSlot()),
        ("fast invalidate", FastInvalidate()),
    )
    return tuple(_cost_of(name, way, pages, entries, vcpus, rounds) for name, way in ways)


def _cost_of(name: str, way: ZapStrategy, pages: int, entries: int, vcpus: int, rounds: int) -> ZapRow:
    memslots = MemSlots(1, Running())
    size = pages * _SHADOWED
    goes, stays = _slot(0, 0, size), _slot(1, size, size)
    # One page of memory is enough for the crowd, at as many addresses as it can come to.
    crowd = _slot(2, _first_of_crowd(), PAGE_SIZE)
    count = vcpus * (rounds + 1)
    others = [_again(crowd, 2 + n, _first_of_crowd() + n * _SHADOWED) for n in range(count)]
    memslots.table = SlotMap([goes, stays, *others])
    mmu = memslots.mmu
    mmu.strategy = way
    for slot in (goes, stays):
        for page in range(pages):
            for entry in range(entries):
                mmu.fault(slot.slot.gpa + page * _SHADOWED + entry * PAGE_SIZE, write=False)
    mmu.lock = _Crowd(memslots, vcpus, rounds)  # type: ignore[assignment]
    try:
        mmu.zap(goes)
        ends = True
    except _Endless:
        ends = False
    # What is obsolete is as good as gone, zapped or not.
    gfns = range(stays.slot.gpa // PAGE_SIZE, stays.slot.range.end // PAGE_SIZE)
    left = len([gfn for gfn in gfns if (found := mmu.entry(gfn)) is not None and found.word])
    return ZapRow(name, ends, way.cost, pages * entries - left)


def _slot(number: int, address: int, size: int) -> MemSlot:
    block = MemoryRegion.ram("ram", size).block
    assert block is not None
    return MemSlot(number, Slot(address, size, block.address, False, block), block.view)


def _again(one: MemSlot, number: int, address: int) -> MemSlot:
    slot = one.slot
    return MemSlot(number, Slot(address, slot.size, slot.hva, False, slot.block), one.bytes)


def zap_table(rows: tuple[ZapRow, ...]) -> str:
    """Return rows as a table in Markdown."""
    head = ("way", "ends", "entries zapped", "holds", "longest hold, entries", "began again", "others' entries lost")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cost = row.cost
        cells = (row.way, "yes" if row.ends else "no", cost.entries, cost.holds, cost.longest, cost.restarts, row.lost)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)

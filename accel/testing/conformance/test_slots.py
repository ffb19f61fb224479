"""Slots: maps of many pieces, long sequences of changes under each plan, and changes that fail."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from accel.errors import AccelError, BackendError, MemorySlotError
from accel.machine import Machine
from accel.memory.listener import PRIORITY_ACCEL, MemoryListener, Update
from accel.memory.region import MemoryRegion
from accel.testing.claims import Claims
from accel.testing.conformance.lane import Lanes
from accel.testing.conformance.look import BASE, look, pages, tagged, write
from accel.testing.conformance.plans import every_plan, every_way, options_for
from accel.testing.conformance.verdict import expect, refused
from accel.testing.machines import MachineFactory

pytestmark = pytest.mark.accelerators(executes=("program", "x86"))

SPAN = 16


class Pieces:
    """Regions that are changed at random, and by brute force what each page shows.

    Args:
        one: The machine.
        page: Bytes of a page.
        seed: Of the changes.
    """

    def __init__(self, one: Machine, page: int, seed: int) -> None:
        self.last = "nothing"
        self._one, self._page, self._random = one, page, random.Random(seed)
        self._regions = [tagged(f"piece{n}", 6, 0x100 * (n + 1), page, max_size=6 * page) for n in range(5)]
        # For each region its first page and its pages, while it shows; a later one covers those before it.
        self._places: dict[int, tuple[int, int]] = {}

    def change(self) -> None:
        """Make one change, or several in one transaction."""
        with self._one.transaction():
            said = [self._change_one() for _ in range(self._random.choice((1, 1, 1, 2, 3)))]
        self.last = ", ".join(said)

    def _change_one(self) -> str:
        number = self._random.randrange(len(self._regions))
        region, page = self._regions[number], self._page
        place = self._places.get(number)
        at, count = self._random.randrange(SPAN - 6), self._random.randint(1, 6)
        if place is None:
            region.resize(count * page)
            self._one.memory.add(region, at=BASE + at * page, priority=number)
            self._places[number] = at, count
            return f"adding {count} pages at page {at}"
        match self._random.randrange(3):
            case 0:
                self._one.memory.remove(region)
                del self._places[number]
                return f"removing {place[1]} pages at page {place[0]}"
            case 1:
                region.move(BASE + at * page)
                self._places[number] = at, place[1]
                return f"moving {place[1]} pages from page {place[0]} to page {at}"
            case _:
                region.resize(count * page)
                self._places[number] = place[0], count
                return f"resizing {place[1]} pages at page {place[0]} to {count}"

    def shown(self) -> dict[int, int | None]:
        """Return what a guest has to find: the page's number at its start, or None."""
        found: dict[int, int | None] = {BASE + n * self._page: None for n in range(SPAN)}
        for number in sorted(self._places):
            at, count = self._places[number]
            for n in range(count):
                found[BASE + (at + n) * self._page] = 0x100 * (number + 1) + n
        return found


@every_way
def test_slots_follow_a_long_sequence_of_changes(
    machine: MachineFactory, lane: Lanes, claims: Claims, way: str
) -> None:
    """After any sequence of additions, removals, moves and resizes, single or several in one transaction, each page is
    what the map says."""
    one = machine(options=options_for(way, claims))
    vcpu, pieces = lane(one), Pieces(one, claims.page_size, 7)
    for _ in range(25):
        pieces.change()
        look(one, vcpu, pieces.shown(), f"after {pieces.last}")


@every_plan
def test_slots_can_be_many(machine: MachineFactory, lane: Lanes, claims: Claims, way: str) -> None:
    """A map of 200 pieces with holes between them is as good as one; an accelerator with fewer slots refuses it and
    says so."""
    one, page = machine(options=options_for(way, claims)), claims.page_size
    vcpu, count = lane(one), 200
    regions = [tagged(f"piece{n}", 1, 0x1000 + n, page) for n in range(count)]
    try:
        with one.transaction():
            for number, region in enumerate(regions):
                one.memory.add(region, at=BASE + 2 * number * page)
    except MemorySlotError as error:
        pytest.skip(f"{claims.name} has fewer slots: {error}")
    tags = [0x1000 + n // 2 if n % 2 == 0 else None for n in range(2 * count)]
    look(one, vcpu, {BASE + n * page: tag for n, tag in enumerate(tags)}, f"in a map of {count} pieces")
    with one.transaction():
        for region in regions[::3]:
            one.memory.remove(region)
    tags = [None if n % 6 == 0 else tag for n, tag in enumerate(tags)]
    look(one, vcpu, {BASE + n * page: tag for n, tag in enumerate(tags)}, "after a third of 200 pieces went")


class Saboteur(MemoryListener, Update):
    """Fails a change, before or after the accelerator has made it.

    Args:
        step: ``prepare``, or ``apply`` after what comes before it.
        priority: Below the accelerator's, or above.
    """

    name = "saboteur"

    def __init__(self, step: str, priority: int) -> None:
        self.step_that_fails = step
        self.priority = priority
        self.armed = False

    def prepare(self) -> Update | None:
        """Refuse, or come along."""
        if self.armed and self.step_that_fails == "prepare":
            raise BackendError("sabotage", errno.EIO)
        return self if self.armed else None

    def apply(self) -> None:
        """Fail."""
        raise BackendError("sabotage", errno.EIO)

    def undo(self) -> None:
        """Nothing was done."""


CHANGES: dict[str, Callable[[Machine, dict[str, MemoryRegion], int], object]] = {
    "add": lambda one, regions, page: one.memory.add(regions["new"], at=BASE + 8 * page),
    "remove": lambda one, regions, page: one.memory.remove(regions["ram"]),
    "move": lambda one, regions, page: regions["ram"].move(BASE + 9 * page),
    "move by a page": lambda one, regions, page: regions["ram"].move(BASE + page),
    "grow": lambda one, regions, page: regions["ram"].resize(6 * page),
    "shrink": lambda one, regions, page: regions["ram"].resize(page),
    "split": lambda one, regions, page: one.memory.add(regions["device"], at=BASE + page, priority=1),
    "merge": lambda one, regions, page: one.memory.remove(regions["cover"]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("step", ["prepare", "apply before it", "apply after it"])
def test_slots_are_as_before_after_a_change_that_fails(
    machine: MachineFactory, lane: Lanes, claims: Claims, change: str, step: str
) -> None:
    """If a change fails at any step, the accelerator's own steps are taken back: the map before is in force."""
    one, page = machine(), claims.page_size
    vcpu = lane(one)
    regions = {
        "ram": tagged("ram", 4, 0x40, page, max_size=8 * page),
        "new": tagged("new", 2, 0x50, page),
        "other": tagged("other", 3, 0x60, page),
        "cover": MemoryRegion.mmio("cover", page, read=lambda offset, size: 0),
        "device": MemoryRegion.mmio("device", page, read=lambda offset, size: 0),
    }
    one.memory.add(regions["ram"], at=BASE)
    one.memory.add(regions["other"], at=BASE + 16 * page)
    one.memory.add(regions["cover"], at=BASE + 17 * page, priority=1)
    saboteur = Saboteur(step.split()[0], PRIORITY_ACCEL + (-1 if "before" in step else 1))
    one.memory.add_listener(saboteur)
    wanted: list[int | None] = [0x40, 0x41, 0x42, 0x43, *[None] * 12, 0x60, None, 0x62, None]
    look(one, vcpu, pages(BASE, wanted, page), "before any change")
    saboteur.armed = True
    with refused(AccelError, f"a change ({change}) that another listener refuses"):
        CHANGES[change](one, regions, page)
    saboteur.armed = False
    after = f"after a change ({change}) that failed in {step}"
    look(one, vcpu, pages(BASE, wanted, page), after)
    write(one, vcpu, {BASE + 2 * page + 64: 0x1234}, after)
    expect(regions["ram"].read(2 * page + 64, 2) == b"\x34\x12", f"{after} a store to RAM is not in its memory")
    CHANGES[change](one, regions, page)
    one.memory.add(tagged("more", 1, 0x70, page), at=BASE + 24 * page)
    look(one, vcpu, {BASE + 24 * page: 0x70}, f"{after}, and the same that went through,")

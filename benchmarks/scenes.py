"""The maps that are measured: trees of many regions, in a space with one kind of listener or none.

Every scene has regions of RAM that can grow, move and go without meeting their neighbours; they are what is
edited. What stands around them is the scene's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import frozen

import accel
from accel.address import PAGE_SIZE
from accel.blocker import AccelBlocker
from accel.locks import BIG_LOCK, Lock
from accel.memory.address_space import AddressSpace
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.listener import PRIORITY_ACCEL, MemoryListener, Update
from accel.memory.region import MemoryRegion
from accel.memory.render import render
from accel.memory.served import ServedHistory
from accel.memory.transaction import Transactions

#: Bytes of a region as it stands and grown, and from one to the next: a page is always left between them.
SIZE, GROWN, STRIDE = 2 * PAGE_SIZE, 3 * PAGE_SIZE, 5 * PAGE_SIZE
_BASE = 1 << 30


@frozen
class Scene:
    """A space with its map.

    Attributes:
        space: The space.
        transactions: Its VM's.
        home: The region that those in `ram` stand in.
        ram: The regions to edit.
    """

    space: AddressSpace
    transactions: Transactions
    home: MemoryRegion
    ram: list[MemoryRegion]

    def check(self) -> None:
        """Raise SystemExit if the view, or what a listener made of it, is not what rendering everything gives."""
        if self.space.view != render(self.space.root):
            raise SystemExit("the view is not what rendering the whole tree gives")
        for listener in self.space.listeners:
            if isinstance(listener, RecordedSlots) and listener.sections() != list(self.space.view):
                raise SystemExit("the recorded slots are not the view")


@contextmanager
def scene(kind: str, count: int, listener: str) -> Iterator[Scene]:
    """Make a scene, and check it in the end.

    Args:
        kind: ``ram``: `count` regions of RAM with gaps. ``aliases``: half of them, in a container that shows at two
            places. ``mixed``: RAM, devices, and devices over RAM in turn, all of it over a background of RAM.
        count: Regions, aliases not counted.
        listener: ``none``, ``slots`` for one that records slots, or ``kvm``.
    """
    with _space(listener) as (space, transactions):
        with transactions.transaction():
            home, ram = _KINDS[kind](space.root, count)
        made = Scene(space, transactions, home, ram)
        yield made
        made.check()


@contextmanager
def _space(listener: str) -> Iterator[tuple[AddressSpace, Transactions]]:
    if listener == "kvm":
        with accel.open_accelerator("kvm") as kvm, kvm.create_vm() as vm:
            yield vm.memory, vm.transactions
        return
    big_lock = Lock(BIG_LOCK)
    transactions = Transactions(big_lock, AccelBlocker(big_lock))
    root = MemoryRegion.container("memory")
    space = AddressSpace("memory", transactions, root, ServedHistory(PAGE_SIZE))
    if listener == "slots":
        space.add_listener(RecordedSlots())
    yield space, transactions


def _ram(root: MemoryRegion, count: int) -> tuple[MemoryRegion, list[MemoryRegion]]:
    return root, [_add_ram(root, index, index * STRIDE) for index in range(count)]


def _aliases(root: MemoryRegion, count: int) -> tuple[MemoryRegion, list[MemoryRegion]]:
    half = count // 2
    bank = MemoryRegion.container("bank", half * STRIDE + _BASE)
    ram = [_add_ram(bank, index, index * STRIDE) for index in range(half)]
    root.add(bank, at=0)
    root.add(MemoryRegion.alias("mirror", bank), at=1 << 40)
    return bank, ram


def _mixed(root: MemoryRegion, count: int) -> tuple[MemoryRegion, list[MemoryRegion]]:
    root.add(MemoryRegion.ram("background", count * STRIDE), at=_BASE, priority=-1)
    ram = []
    for index in range(0, count, 4):
        ram.append(_add_ram(root, index, index * STRIDE))
        root.add(_device(index), at=_BASE + (index + 1) * STRIDE)
        _add_ram(root, index + 2, (index + 2) * STRIDE)
        root.add(_device(index + 3), at=_BASE + (index + 2) * STRIDE + PAGE_SIZE // 2, priority=1)
    return root, ram


_KINDS: dict[str, Callable[[MemoryRegion, int], tuple[MemoryRegion, list[MemoryRegion]]]] = {
    "ram": _ram,
    "aliases": _aliases,
    "mixed": _mixed,
}


def _add_ram(parent: MemoryRegion, index: int, at: int) -> MemoryRegion:
    region = MemoryRegion.ram(f"ram{index}", SIZE, max_size=GROWN)
    parent.add(region, at=_BASE + at)
    return region


def _device(index: int) -> MemoryRegion:
    return MemoryRegion.mmio(f"device{index}", PAGE_SIZE, read=lambda offset, size: 0)


class RecordedSlots(MemoryListener):
    """Keeps what an accelerator would map, by address: changed in the apply phase, with a hold where one replaces."""

    name = "recorded-slots"
    priority = PRIORITY_ACCEL

    def __init__(self) -> None:
        self.slots: dict[int, MemoryRegionSection] = {}
        self._deletes: list[MemoryRegionSection] = []
        self._adds: list[MemoryRegionSection] = []

    def begin(self) -> None:
        """Start with empty lists."""
        self._deletes.clear()
        self._adds.clear()

    def region_del(self, section: MemoryRegionSection) -> None:
        """Note a section that goes."""
        self._deletes.append(section)

    def region_add(self, section: MemoryRegionSection) -> None:
        """Note a section that comes."""
        self._adds.append(section)

    def prepare(self) -> Update | None:
        """Return the change."""
        return _Record(self.slots, tuple(self._deletes), tuple(self._adds))

    def sections(self) -> list[MemoryRegionSection]:
        """Return what is recorded, ascending."""
        return [self.slots[start] for start in sorted(self.slots)]


class _Record(Update):
    def __init__(
        self,
        slots: dict[int, MemoryRegionSection],
        deletes: tuple[MemoryRegionSection, ...],
        adds: tuple[MemoryRegionSection, ...],
    ) -> None:
        self.needs_hold = bool(deletes and adds)
        self._slots, self._deletes, self._adds = slots, deletes, adds

    def apply(self) -> None:
        """Delete, then add."""
        for section in self._deletes:
            del self._slots[section.range.start]
        for section in self._adds:
            self._slots[section.range.start] = section

    def undo(self) -> None:
        """Take it back; nothing here can fail halfway."""
        for section in self._adds:
            del self._slots[section.range.start]
        for section in self._deletes:
            self._slots[section.range.start] = section

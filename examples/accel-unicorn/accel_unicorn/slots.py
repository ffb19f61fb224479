"""The slots of a VM: RAM and ROM by guest address, shown in the engine of every vCPU."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from sortedcontainers import SortedDict

from accel.address import ADDRESS_SPACE_SIZE, PAGE_SIZE, AddressRange
from accel.errors import MemorySlotError
from accel.locks import SLOTS_LOCK, Lock
from accel.memory.slot_plan import Slot
from accel_unicorn.engine import BUSY, Engine, UcError
from accel_unicorn.turn import Turn

#: Each slot is a region in each engine, which looks for one in a list.
MAX_SLOTS = 4096


class UnicornSlots:
    """A `SlotTable`. Guarded by the big lock; changes by `lock` too, and nobody is in an engine meanwhile.

    Args:
        turn: The VM's turns.

    Attributes:
        lock: Held while a change is applied.
        max_slots: Most slots.
    """

    max_slots = MAX_SLOTS

    def __init__(self, turn: Turn) -> None:
        self.lock = Lock(SLOTS_LOCK)
        self._turn = turn
        self._slots = SortedDict()
        self._engines: list[Engine] = []

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    def within(self, window: AddressRange) -> Iterator[Slot]:
        """Yield, ascending, the slots that begin in `window`. O(log n + slots found)."""
        for address in self._slots.irange(window.start, window.end, inclusive=(True, False)):
            yield self._slots[address]

    def create(self, slot: Slot) -> None:
        """Show `slot` in every engine, or in none. Raises MemorySlotError."""
        done: list[Engine] = []
        with self._turn.nobody_inside():
            try:
                for engine in self._engines:
                    engine.map(slot.gpa, slot.size, slot.hva, readonly=slot.readonly)
                    done.append(engine)
            except UcError as error:
                for engine in done:
                    engine.unmap(slot.gpa, slot.size)
                if error.errno == BUSY:
                    advice = "a vCPU is in the middle of a read there; change the map again once it has run on"
                    raise _error("uc_mem_map_ptr", errno.EBUSY, slot, advice) from error
                raise _error("uc_mem_map_ptr", errno.ENOMEM, slot, str(error)) from error
            self._slots[slot.gpa] = slot

    def delete(self, slot: Slot) -> None:
        """Show `slot` nowhere any more. Raises MemorySlotError."""
        done: list[Engine] = []
        with self._turn.nobody_inside():
            try:
                for engine in self._engines:
                    engine.unmap(slot.gpa, slot.size)
                    done.append(engine)
            except UcError as error:
                for engine in done:
                    engine.map(slot.gpa, slot.size, slot.hva, readonly=slot.readonly)
                raise _error("uc_mem_unmap", errno.EINVAL, slot, str(error)) from error
            del self._slots[slot.gpa]

    def toggle(self, old: Slot, new: Slot) -> None:
        """Not called: these slots keep no log."""
        self._slots[old.gpa] = new

    def collect(self, slot: Slot) -> None:
        """Not called either."""

    def full(self, slot: Slot, excess: int) -> MemorySlotError:
        """Return the error for a change that needs `excess` slots more than there can be."""
        advice = f"a VM has {MAX_SLOTS} slots and the map needs {excess} more; map less, or larger regions"
        return _error("uc_mem_map_ptr", errno.ENOSPC, slot, advice)

    # for the vCPUs

    def add(self, engine: Engine) -> None:
        """Show all slots in `engine`, and keep it up to date. Raises MemorySlotError."""
        with self._turn.nobody_inside():
            for slot in self:
                try:
                    engine.map(slot.gpa, slot.size, slot.hva, readonly=slot.readonly)
                except UcError as error:
                    raise _error("uc_mem_map_ptr", errno.ENOMEM, slot, str(error)) from error
            self._engines.append(engine)

    def remove(self, engine: Engine) -> None:
        """Forget `engine`."""
        with self._turn.nobody_inside():
            if engine in self._engines:
                self._engines.remove(engine)

    def find(self, address: int) -> Slot | None:
        """Return the slot that shows `address`; with a turn, or under the big lock. O(log n)."""
        at = self._slots.bisect_right(address) - 1
        if at < 0:
            return None
        slot: Slot = self._slots.values()[at]
        return slot if address < slot.range.end else None

    def hole(self, address: int) -> tuple[int, int]:
        """Return where the addresses without memory around `address` begin and end; with a turn. O(log n)."""
        after = self._slots.bisect_right(address)
        start = self._slots.values()[after - 1].range.end if after else 0
        end = self._slots.keys()[after] if after < len(self._slots) else ADDRESS_SPACE_SIZE - PAGE_SIZE
        return start, end


def _error(call: str, number: int, slot: Slot, advice: str) -> MemorySlotError:
    return MemorySlotError(
        call,
        number,
        slot=0,
        gpa=slot.gpa,
        hva=slot.hva,
        size=slot.size,
        flags=int(slot.readonly),
        advice=advice,
    )

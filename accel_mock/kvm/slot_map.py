"""A set of memslots at one moment: an immutable value, ordered by address, which each slot call replaces."""

from __future__ import annotations

from bisect import bisect_right

from attrs import define, field, frozen

from accel.address import AddressRange
from accel.memory.slot_plan import Slot
from accel_mock.kvm.page_log import PageLog


@frozen(eq=False)
class MemSlot:
    """A slot under its number, with the bytes it maps; holding it keeps them mapped.

    Attributes:
        number: Its number.
        slot: What it maps, and whether it logs.
        bytes: The bytes.
        log: The pages that were written, if it logs.
        invalid: Whether it is about to go: nobody may begin to use it, and who wants to tries again.
    """

    number: int
    slot: Slot
    bytes: memoryview = field(repr=False)
    log: PageLog | None = field(repr=False, default=None)
    invalid: bool = False


@define(eq=False)
class SlotMap:
    """All slots at one moment.

    Attributes:
        slots: In order of addresses.
    """

    slots: tuple[MemSlot, ...] = ()
    _starts: list[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._starts = [one.slot.gpa for one in self.slots]

    def find(self, address: int) -> MemSlot | None:
        """Return the slot of an address; None in a hole. O(log n)."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        one = self.slots[index]
        return one if address - one.slot.gpa < one.slot.size else None

    def overlapping(self, window: AddressRange) -> tuple[MemSlot, ...]:
        """Return the slots with an address in `window`, ascending."""
        first = max(0, bisect_right(self._starts, window.start) - 1)
        last = bisect_right(self._starts, window.end - 1)
        return tuple(one for one in self.slots[first:last] if one.slot.range.overlaps(window))

    def with_slot(self, new: MemSlot) -> SlotMap:
        """Return the set with one more."""
        index = bisect_right(self._starts, new.slot.gpa)
        return SlotMap((*self.slots[:index], new, *self.slots[index:]))

    def without(self, old: MemSlot) -> SlotMap:
        """Return the set without one."""
        return SlotMap(tuple(one for one in self.slots if one is not old))

    def replaced(self, old: MemSlot, new: MemSlot) -> SlotMap:
        """Return the set with `new`, at the same address, in place of `old`."""
        return SlotMap(tuple(new if one is old else one for one in self.slots))

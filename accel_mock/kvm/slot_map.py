"""A set of memslots at one moment: an immutable value, found by address and by number, which each slot call replaces.

It is two levels deep, so that a set made from another shares nearly all with it: no operation looks at every slot, or
copies every slot. KVM has a tree and a hash for the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain

from attrs import field, frozen

from accel.address import AddressRange
from accel.memory.slot_plan import Slot
from accel_mock.kvm.page_log import PageLog

#: Most slots of a chunk, after which it is cut in two; about the root of what a VM can have.
_CHUNK = 256
#: Numbers of a row, as a shift.
_ROW_SHIFT = 7


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


@frozen(eq=False)
class _Chunk:
    """Some slots, ascending, and where they start."""

    slots: tuple[MemSlot, ...]
    starts: tuple[int, ...] = field(init=False)

    @starts.default
    def _starts_of_slots(self) -> tuple[int, ...]:
        return tuple([one.slot.gpa for one in self.slots])

    def index(self, address: int) -> int:
        """Return the place of the last slot that starts at or before `address`; -1 if none does."""
        return bisect_right(self.starts, address) - 1


_Rows = tuple[tuple[MemSlot | None, ...], ...]
_EMPTY_ROW: tuple[None, ...] = (None,) * (1 << _ROW_SHIFT)


class SlotMap:
    """All slots at one moment. Iterating yields them in order of addresses.

    Args:
        slots: In any order; no two share an address or a number.
    """

    __slots__ = ("_chunks", "_count", "_rows", "_starts")

    def __init__(self, slots: Iterable[MemSlot] = ()) -> None:
        ordered = sorted(slots, key=_gpa)
        self._chunks = tuple(_Chunk(tuple(ordered[at : at + _CHUNK])) for at in range(0, len(ordered), _CHUNK))
        self._starts = tuple([one.starts[0] for one in self._chunks])
        self._count = len(ordered)
        self._rows: _Rows = ()
        for one in ordered:
            self._rows = _with_number(self._rows, one.number, one)

    @property
    def slots(self) -> tuple[MemSlot, ...]:
        """All of them, in order of addresses. O(n)."""
        return tuple(self)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[MemSlot]:
        return chain.from_iterable(one.slots for one in self._chunks)

    def find(self, address: int) -> MemSlot | None:
        """Return the slot of an address; None in a hole. O(log n)."""
        place = bisect_right(self._starts, address) - 1
        if place < 0:
            return None
        chunk = self._chunks[place]
        one = chunk.slots[chunk.index(address)]
        return one if address - one.slot.gpa < one.slot.size else None

    def numbered(self, number: int) -> MemSlot | None:
        """Return the slot with this number, if there is one. O(1)."""
        row = number >> _ROW_SHIFT
        if not 0 <= row < len(self._rows):
            return None
        return self._rows[row][number & len(_EMPTY_ROW) - 1]

    def overlapping(self, window: AddressRange) -> tuple[MemSlot, ...]:
        """Return the slots with an address in `window`, ascending. O(log n + slots found)."""
        found: list[MemSlot] = []
        first = max(0, bisect_right(self._starts, window.start) - 1)
        for chunk in self._chunks[first : bisect_right(self._starts, window.end - 1)]:
            there = slice(max(0, chunk.index(window.start)), chunk.index(window.end - 1) + 1)
            found += [one for one in chunk.slots[there] if one.slot.range.overlaps(window)]
        return tuple(found)

    def with_slot(self, new: MemSlot) -> SlotMap:
        """Return the set with one more, whose addresses and number are free. O(√n)."""
        place = max(0, bisect_right(self._starts, new.slot.gpa) - 1)
        if not self._chunks:
            return SlotMap((new,))
        chunk = self._chunks[place]
        index = chunk.index(new.slot.gpa) + 1
        return self._changed(place, (*chunk.slots[:index], new, *chunk.slots[index:]), new.number, new)

    def without(self, old: MemSlot) -> SlotMap:
        """Return the set without a slot that it has. O(√n)."""
        place, index = self._place(old)
        slots = self._chunks[place].slots
        return self._changed(place, slots[:index] + slots[index + 1 :], old.number, None)

    def replaced(self, old: MemSlot, new: MemSlot) -> SlotMap:
        """Return the set with `new`, at the same address and of the same number, in place of `old`. O(√n)."""
        place, index = self._place(old)
        slots = self._chunks[place].slots
        return self._changed(place, (*slots[:index], new, *slots[index + 1 :]), new.number, new)

    def _place(self, slot: MemSlot) -> tuple[int, int]:
        """Return the chunk of a slot that is there, and its index in it."""
        place = bisect_right(self._starts, slot.slot.gpa) - 1
        index = self._chunks[place].index(slot.slot.gpa)
        assert self._chunks[place].slots[index] is slot
        return place, index

    def _changed(self, place: int, slots: tuple[MemSlot, ...], number: int, numbered: MemSlot | None) -> SlotMap:
        """Return the set with other slots in one chunk, and another slot, or none, under one number."""
        half = len(slots) // 2
        parts = (slots[:half], slots[half:]) if len(slots) > _CHUNK else (slots,)
        made = SlotMap()
        chunks = tuple([_Chunk(part) for part in parts if part])
        made._chunks = self._chunks[:place] + chunks + self._chunks[place + 1 :]
        made._starts = self._starts[:place] + tuple([one.starts[0] for one in chunks]) + self._starts[place + 1 :]
        made._count = self._count + len(slots) - len(self._chunks[place].slots)
        made._rows = _with_number(self._rows, number, numbered)
        return made


def _with_number(rows: _Rows, number: int, slot: MemSlot | None) -> _Rows:
    """Return the rows with `slot` under `number`."""
    row, index = number >> _ROW_SHIFT, number & len(_EMPTY_ROW) - 1
    if row >= len(rows):
        rows += (_EMPTY_ROW,) * (row + 1 - len(rows))
    entries = rows[row]
    return (*rows[:row], (*entries[:index], slot, *entries[index + 1 :]), *rows[row + 1 :])


def _gpa(one: MemSlot) -> int:
    return one.slot.gpa

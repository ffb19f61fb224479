"""What a slot call of the model checks, and the error that it ends with.

Source: KVM_SET_USER_MEMORY_REGION in KVM api.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from accel.address import ADDRESS_SPACE_SIZE, PAGE_SIZE
from accel.errors import MemorySlotError
from accel.memory.slot_plan import Slot
from accel_mock.kvm.slot_map import MemSlot, SlotMap

#: As KVM numbers them, for messages.
_LOG_DIRTY_PAGES = 1
_READONLY = 2


def check_slot(table: SlotMap, slot_count: int, number: int, slot: Slot) -> None:
    """Raise MemorySlotError if `slot` cannot be mapped under `number` beside what `table` has."""
    in_block = 0 <= slot.hva - slot.block.address <= slot.block.max_size - slot.size
    aligned = not (slot.gpa % PAGE_SIZE or slot.size % PAGE_SIZE or slot.hva % PAGE_SIZE)
    fits = slot.size > 0 and slot.gpa + slot.size <= ADDRESS_SPACE_SIZE
    taken = table.numbered(number) is not None
    if taken or not (0 <= number < slot_count and aligned and fits and in_block):
        raise slot_error(errno.EINVAL, number, slot)
    if table.overlapping(slot.range):
        raise slot_error(errno.EEXIST, number, slot)


def differ_in_log(old: MemSlot, slot: Slot) -> bool:
    """Return whether `slot` is what `old` maps, but perhaps for its log."""
    return old.slot.with_log(slot.log) == slot


def page_bitmap(pages: Iterable[int], count: int) -> bytearray:
    """Return a bitmap of `count` pages, in which `pages` are set; those beyond it are not."""
    bits = bytearray(-(-count // 8))
    for page in pages:
        if page < count:
            bits[page >> 3] |= 1 << (page & 7)
    return bits


def slot_error(number: int, index: int, slot: Slot) -> MemorySlotError:
    """Return the error of a slot call: errno `number` for slot `index`."""
    return MemorySlotError(
        "mock slot call",
        number,
        slot=index,
        gpa=slot.gpa,
        hva=slot.hva,
        size=slot.size,
        flags=(_READONLY if slot.readonly else 0) | (_LOG_DIRTY_PAGES if slot.log is not None else 0),
    )

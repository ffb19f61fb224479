"""Guest RAM as the vCPU sees it: linear addresses through the guest's own page tables, for exceptions and reports.

Reads and writes where the host has the memory. It knows paging as far as it has to find an address: no accessed or
dirty bits are set, no protection is checked. Source: Intel SDM volume 3, chapter 4.
"""

from __future__ import annotations

import ctypes

from accel.address import PAGE_SIZE
from accel.arch.x86 import CR0_PG, CR4_PAE, EFER_LMA, X86State
from accel_unicorn.slots import UnicornSlots

_PRESENT, _LARGE = 1, 1 << 7
_CR4_PSE = 1 << 4
_FRAME = 0x000F_FFFF_FFFF_F000


class NoMemoryError(Exception):
    """Nothing is there, or it cannot be written.

    Attributes:
        address: The linear address.
    """

    def __init__(self, address: int) -> None:
        super().__init__(f"no memory at linear address {address:#x}")
        self.address = address


class GuestMemory:
    """The memory behind one VM's slots; used with a turn."""

    def __init__(self, slots: UnicornSlots) -> None:
        self._slots = slots

    def read(self, state: X86State, address: int, size: int) -> bytes:
        """Return bytes at a linear address. Raises NoMemoryError."""
        found = bytearray()
        for at, count in _by_page(address, size):
            found += ctypes.string_at(self._host(state, at, write=False), count)
        return bytes(found)

    def write(self, state: X86State, address: int, data: bytes) -> None:
        """Set bytes at a linear address. Raises NoMemoryError; what lies before is written."""
        done = 0
        for at, count in _by_page(address, len(data)):
            ctypes.memmove(self._host(state, at, write=True), data[done : done + count], count)
            done += count

    def fetched(self, state: X86State) -> int | None:
        """Return the physical address of the next instruction, or None without one."""
        linear = state.rip if state.cs.long else (state.cs.base + state.rip) & 0xFFFF_FFFF
        try:
            return self.translate(state, linear)
        except NoMemoryError:
            return None

    def _host(self, state: X86State, address: int, *, write: bool) -> int:
        physical = self.translate(state, address)
        slot = self._slots.find(physical)
        if slot is None or (write and slot.readonly):
            raise NoMemoryError(address)
        return slot.hva + physical - slot.gpa

    def translate(self, state: X86State, address: int) -> int:
        """Return the physical address of a linear one. Raises NoMemoryError."""
        if not state.cr0 & CR0_PG:
            return address
        if not state.cr4 & CR4_PAE:
            large = bool(state.cr4 & _CR4_PSE)
            return self._walk(state.cr3 & 0xFFFF_F000, address, ((22, large), (12, False)), 4, 10)
        if state.efer & EFER_LMA:
            levels = ((39, False), (30, True), (21, True), (12, False))
            return self._walk(state.cr3 & _FRAME, address, levels, 8, 9)
        return self._walk(state.cr3 & 0xFFFF_FFE0, address, ((30, False), (21, True), (12, False)), 8, 9)

    def _walk(self, table: int, address: int, levels: tuple[tuple[int, bool], ...], size: int, bits: int) -> int:
        for shift, may_be_large in levels:
            entry_at = table + (address >> shift & (1 << bits) - 1) * size
            slot = self._slots.find(entry_at)
            if slot is None:
                raise NoMemoryError(address)
            entry = int.from_bytes(ctypes.string_at(slot.hva + entry_at - slot.gpa, size), "little")
            if not entry & _PRESENT:
                raise NoMemoryError(address)
            table = entry & _FRAME
            if shift == 12 or (may_be_large and entry & _LARGE):
                offset = (1 << shift) - 1
                return table & ~offset | address & offset
        raise AssertionError("the last level is 12 bits")


def _by_page(address: int, size: int) -> list[tuple[int, int]]:
    """Return `(address, bytes)` for each page of a range."""
    parts = []
    while size:
        count = min(size, PAGE_SIZE - address % PAGE_SIZE)
        parts.append((address, count))
        address, size = address + count, size - count
    return parts

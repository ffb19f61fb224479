"""What a guest of Hypervisor.framework has mapped, and which calls are legal on it; for the recorder.

Layer: above `api`. One entry for each stretch of addresses that was mapped together and has the same flags, so that the
effect of any legal call on a part of a mapping can be told. O(log n + entries touched) for each call.

Rules, and where each is from:

- *Page aligned, in pages.* Apple's documentation of ``hv_vm_map``, ``hv_vm_unmap`` and ``hv_vm_protect``. A page of the
  guest has 16 KiB. A host address is aligned to a page of the process: the same on a Mac, and maybe less elsewhere.
- *Within the VM's address bits.* hv_vm_config.h.
- *READ, WRITE and EXECUTE only.* ``hv_memory_flags_t`` in Apple's documentation.
- *Nothing overlaps.* No page of Apple's says so. A guest-physical address has one translation, and VMMs for Apple
  silicon, QEMU's accel/hvf among them, unmap before they map. What macOS returns is not documented; here it is
  HV_ERROR, "the operation was unsuccessful", as each argument is well-formed.
- *Unmap and protect what is mapped, all of it, and a part is enough.* "Memory management" in Apple's documentation
  speaks of "the entire region or subregions". What a range that is not mapped gives is not documented either: it is
  HV_BAD_ARGUMENT here. macOS 26 was seen to end a process for such an ``hv_vm_unmap``.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from attrs import evolve, frozen
from sortedcontainers import SortedDict

from accel_hvf_stub.api import HvMemory, HvReturn
from accel_hvf_stub.limits import IPA_END, PAGE_SIZE

_ALL_FLAGS = int(HvMemory.READ | HvMemory.WRITE | HvMemory.EXEC)
_HOST_END = 1 << 64


@frozen
class Mapping:
    """A stretch of guest-physical addresses that is mapped.

    Attributes:
        ipa: The first address.
        size: Bytes.
        addr: Host-virtual address behind the first one.
        flags: What the guest may do.
    """

    ipa: int
    size: int
    addr: int
    flags: HvMemory

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.ipa + self.size

    def part(self, start: int, end: int) -> Mapping:
        """Return the stretch from `start` to `end` of it."""
        return evolve(self, ipa=start, size=end - start, addr=self.addr + start - self.ipa)


class GuestMap:
    """The mappings of one VM. Each change returns the code that the call gets; only HV_SUCCESS has changed anything."""

    def __init__(self) -> None:
        # First address → Mapping.
        self._table = SortedDict()

    def __iter__(self) -> Iterator[Mapping]:
        """Yield the mappings, ascending."""
        return iter(self._table.values())

    def map(self, addr: int, ipa: int, size: int, flags: int) -> HvReturn:
        """Do what hv_vm_map does."""
        if not _is_range(ipa, size) or not _is_flags(flags):
            return HvReturn.HV_BAD_ARGUMENT
        if addr % min(mmap.PAGESIZE, PAGE_SIZE) or not 0 < addr <= _HOST_END - size:
            return HvReturn.HV_BAD_ARGUMENT
        if self._touching(ipa, ipa + size):
            return HvReturn.HV_ERROR
        self._table[ipa] = Mapping(ipa, size, addr, HvMemory(flags))
        return HvReturn.HV_SUCCESS

    def unmap(self, ipa: int, size: int) -> HvReturn:
        """Do what hv_vm_unmap does."""
        if not _is_range(ipa, size) or not self._covers(ipa, ipa + size):
            return HvReturn.HV_BAD_ARGUMENT
        self._cut_out(ipa, ipa + size)
        return HvReturn.HV_SUCCESS

    def protect(self, ipa: int, size: int, flags: int) -> HvReturn:
        """Do what hv_vm_protect does."""
        if not _is_range(ipa, size) or not _is_flags(flags) or not self._covers(ipa, ipa + size):
            return HvReturn.HV_BAD_ARGUMENT
        for piece in self._cut_out(ipa, ipa + size):
            self._table[piece.ipa] = evolve(piece, flags=HvMemory(flags))
        return HvReturn.HV_SUCCESS

    def _touching(self, start: int, end: int) -> list[Mapping]:
        """Return the mappings that have an address in [start, end), ascending."""
        table = self._table
        first = max(0, table.bisect_right(start) - 1)
        found = (table[key] for key in table.islice(first, table.bisect_left(end)))
        return [one for one in found if one.end > start]

    def _covers(self, start: int, end: int) -> bool:
        at = start
        for one in self._touching(start, end):
            if one.ipa > at:
                return False
            at = one.end
        return at >= end

    def _cut_out(self, start: int, end: int) -> list[Mapping]:
        """Take out [start, end), which is mapped; return what was there, and leave what sticks out on either side."""
        pieces = []
        for one in self._touching(start, end):
            del self._table[one.ipa]
            if one.ipa < start:
                self._table[one.ipa] = one.part(one.ipa, start)
            if one.end > end:
                self._table[end] = one.part(end, one.end)
            pieces.append(one.part(max(one.ipa, start), min(one.end, end)))
        return pieces


def _is_range(ipa: int, size: int) -> bool:
    return ipa % PAGE_SIZE == 0 and size % PAGE_SIZE == 0 and size > 0 and 0 <= ipa <= IPA_END - size


def _is_flags(flags: int) -> bool:
    return not flags & ~_ALL_FLAGS

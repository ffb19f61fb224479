"""One entry of the shadow page table: a word that processors, page faults and updates change at the same time.

Source: the kernel's locking page, "Exception", on fast page faults, dirty tracking and access tracking.
"""

from __future__ import annotations

from accel_mock.kvm.atomic import atomically

PRESENT = 1 << 0
#: What the processor looks at before a write.
WRITABLE = 1 << 1
ACCESSED = 1 << 2
DIRTY = 1 << 3
#: Ignored by the processor: whether the host maps the page writable, and whether KVM lets the guest write it.
HOST_WRITABLE = 1 << 4
MMU_WRITABLE = 1 << 5
#: Where R and X are kept of an entry that is watched for accesses.
SAVED_READ = 1 << 6
SAVED_EXECUTE = 1 << 7
EXECUTABLE = 1 << 8
_PFN_SHIFT = 12


def spte_word(pfn: int, bits: int) -> int:
    """Return an entry for a host page, with these bits."""
    return pfn << _PFN_SHIFT | bits


def pfn_of(word: int) -> int:
    """Return the host page of an entry."""
    return word >> _PFN_SHIFT


class Spte:
    """One entry.

    Attributes:
        word: The host page's number and the bits; 0 if it leads nowhere. Read and written plainly by who may, and
            otherwise by the methods, each of which is one instruction.
    """

    __slots__ = ("word",)

    def __init__(self, word: int = 0) -> None:
        self.word = word

    @atomically
    def compare_exchange(self, old: int, new: int) -> bool:
        """Write `new` if it is `old`; return whether it was."""
        if self.word != old:
            return False
        self.word = new
        return True

    @atomically
    def exchange(self, new: int) -> int:
        """Write `new`; return what it was."""
        old, self.word = self.word, new
        return old

    @atomically
    def walk(self, *, write: bool) -> int:
        """Be walked by a processor: set Accessed, and for a write Dirty, if it is allowed; return the entry or 0."""
        word = self.word
        if not word & PRESENT or (write and not word & WRITABLE):
            return 0
        self.word = word | ACCESSED | (DIRTY if write else 0)
        return self.word

"""One entry of the shadow page table: a word that processors, page faults and updates change at the same time.

Source: the kernel's locking page, "Exception", on fast page faults, dirty tracking and access tracking.
"""

from __future__ import annotations

from accel_mock.kvm.atomic import atomically

#: May be read, and so present. What the processor looks at, with the next one before a write.
PRESENT = 1 << 0
WRITABLE = 1 << 1
#: Set by the processor.
ACCESSED = 1 << 2
DIRTY = 1 << 3
#: Ignored by the processor: whether the host maps the page writable, and whether KVM lets the guest write it.
HOST_WRITABLE = 1 << 4
MMU_WRITABLE = 1 << 5
#: Where R and X are kept of an entry that is watched for accesses. W is not kept.
SAVED_READ = 1 << 6
SAVED_EXECUTE = 1 << 7
EXECUTABLE = 1 << 8
#: The processor sets neither Accessed nor Dirty in this entry.
NO_AD = 1 << 9
_PFN_SHIFT = 12

#: A byte of guest memory: the slot's bytes, and the index in them.
Place = tuple[memoryview, int]


def spte_word(pfn: int, bits: int) -> int:
    """Return an entry for a host page, with these bits."""
    return pfn << _PFN_SHIFT | bits


def pfn_of(word: int) -> int:
    """Return the host page of an entry."""
    return word >> _PFN_SHIFT


def is_tracked(word: int) -> bool:
    """Return whether an entry is not present only because accesses are watched for."""
    return bool(word & SAVED_READ) and not word & PRESENT


def tracked(word: int) -> int:
    """Return a present entry so that the next access is a fault: R and X in the bits for them, W gone."""
    saved = SAVED_READ | (SAVED_EXECUTE if word & EXECUTABLE else 0)
    return word & ~(PRESENT | WRITABLE | EXECUTABLE) | saved


def restored(word: int) -> int:
    """Return an entry that was `tracked` as it was, but not writable."""
    back = PRESENT | (EXECUTABLE if word & SAVED_EXECUTE else 0)
    return word & ~(SAVED_READ | SAVED_EXECUTE) | back


def was_accessed(word: int) -> bool:
    """Return whether the page of an entry was used since it was last asked for."""
    return bool(word & (PRESENT if word & NO_AD else ACCESSED))


def was_written(word: int) -> bool:
    """Return whether the page of an entry was written, or may have been if no processor tells."""
    return bool(word & (WRITABLE if word & NO_AD else DIRTY))


class Spte:
    """One entry.

    Attributes:
        word: The host page's number and the bits; 0 if it leads nowhere. Read and written plainly by who may, and
            otherwise by the methods, each of which is one instruction.
        gfn: The guest page that it is for. For good in direct shadow pages; else changed under the MMU lock.
        address: The host's address of that, in pages; as `gfn`.
        page: The bytes that stand for the host page: where its first one lies.
    """

    __slots__ = ("address", "gfn", "page", "word")

    def __init__(self, gfn: int, address: int, word: int = 0, page: Place | None = None) -> None:
        self.gfn = gfn
        self.address = address
        self.word = word
        self.page = page

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
        if not word & NO_AD:
            self.word = word = word | ACCESSED | (DIRTY if write else 0)
        return word

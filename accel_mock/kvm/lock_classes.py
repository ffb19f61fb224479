"""The locks of KVM that the model takes, as classes of the lock validator; `lock_table` has all that the kernel names.

Lowest layer. None has a rank: their order is what the model is seen to do, as with the kernel's lockdep.
"""

from __future__ import annotations

from accel.locks import LockClass

SLOTS = LockClass(
    "kvm->slots_lock",
    protects="the choice of the next set of memslots; changes are made one after the other",
    comment="held over the whole change, waits for readers of the old set included; so never taken inside such a read",
    type="mutex",
)
SLOTS_ARCH = LockClass(
    "kvm->slots_arch_lock",
    protects="what the architecture keeps with each memslot, and which set is in force",
    comment="released before readers are waited for, so that they may take it",
    type="mutex",
)
SRCU = LockClass(
    "kvm->srcu",
    protects="the set of memslots that a reader has in its hands",
    comment="readers wait for nobody; a writer waits until those of the old set have gone",
    type="SRCU",
)
MMU = LockClass(
    "kvm->mmu_lock",
    protects="shadow pages and their entries, but for what the fast path of a page fault changes",
    comment="taken in page faults, by notifiers, and where memslots go",
    type="spinlock or rwlock",
)
MN_INVALIDATE = LockClass(
    "kvm->mn_invalidate_lock",
    protects="mn_active_invalidate_count, and who waits for it to be 0",
    comment="a leaf; a notifier's pair may be open while memslots are to change, which then waits",
    type="spinlock",
)
MN_ACTIVE = LockClass(
    "kvm->mn_active_invalidate_count",
    protects="the set of memslots from the start of a notifier's pair to its end",
    comment="no mutex: a change of the memslots waits until no pair is open, so who has one open takes nothing that is "
    "held meanwhile",
    type="a count that is waited for",
)

"""Dirty rings: the kernel notes each written page in the ring of the vCPU that wrote it.

Source: KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL and KVM_RESET_DIRTY_RINGS in KVM api.rst. What is common
to all accelerators with such rings, and the order that loses nothing, is in `accel.memory.dirty_rings`.

An entry goes from dirty, which the kernel sets, to taken, which we set, to free, by KVM_RESET_DIRTY_RINGS, which also
write-protects the page again. The kernel writes an entry before its flags, and we read the flags first: x86 keeps
both in order.

A ring is never quite full: some entries are kept for what one stay in the guest writes, so that a vCPU can be told in
time. There are hosts whose KVM does not look often enough (the PVM flavour, which emulates guest code inside of one
entry, where each store is an entry of the ring): entries are written over, and the ring's indices are wrong from then
on. A ring in which every entry is dirty tells of it. Nothing is lost then, since all that logs counts as written; but
the VM cannot go on (`DirtyRingLost`).
"""

from __future__ import annotations

import errno
import mmap
from ctypes import sizeof

from accel.errors import BackendError, CapabilityError, OptionError
from accel_kvm import abi
from accel_kvm.ioctl import ioctl, map_shared
from accel_kvm.system import extension

_ENTRY = sizeof(abi.KvmDirtyGfn)
#: Fewer entries than a page has cannot be mapped.
LEAST = mmap.PAGESIZE // _ENTRY
#: So often in a row a reset may be ended by a signal before it has done anything.
_IDLE_RESETS = 1000


class DirtyRingLost(BackendError):
    """Entries of a dirty ring were written over, so it cannot be used any more."""

    def __init__(self, size: int) -> None:
        advice = (
            f"this KVM let a vCPU write more pages than its dirty ring has entries ({size}) without leaving the guest; "
            "use a larger dirty_ring_size, or 0 for bitmaps"
        )
        super().__init__("dirty ring", errno.ENOBUFS, advice)


class KvmDirtyRing:
    """The ring of one vCPU; owned by whoever has the big lock.

    Args:
        vcpu_fd: The vCPU.
        size: Its entries, a power of two.

    Attributes:
        lost: Whether entries were written over before they were taken.

    Raises:
        BackendError: It could not be mapped.
    """

    def __init__(self, vcpu_fd: int, size: int) -> None:
        self._map = map_shared(vcpu_fd, size * _ENTRY, abi.KVM_DIRTY_LOG_PAGE_OFFSET, "mmap of a dirty ring")
        self._bytes = memoryview(self._map)
        # The same entries by halves of 32 bits, for the flags, and of 64 bits.
        self._flags = self._bytes.cast("I")
        self._words = self._bytes.cast("Q")
        self._mask = size - 1
        self._next = 0
        self.lost = False

    def take(self) -> list[tuple[int, int]]:
        """Return slot number and page of each entry that the kernel has written, and mark it as taken."""
        flags, words = self._flags, self._words
        found: list[tuple[int, int]] = []
        while len(found) <= self._mask:
            index = self._next & self._mask
            head = words[2 * index]
            if not head & abi.KVM_DIRTY_GFN_F_DIRTY:
                return found
            found.append((head >> 32, words[2 * index + 1]))
            flags[4 * index] = abi.KVM_DIRTY_GFN_F_RESET
            self._next += 1
        self.lost = True
        return found

    def close(self) -> None:
        """Unmap it; what was not taken is lost."""
        for view in (self._flags, self._words, self._bytes):
            view.release()
        self._map.close()


class KvmDirtyRings:
    """The rings of all vCPUs of a VM that has them. Guarded by the big lock.

    Args:
        vm_fd: The VM, without a vCPU yet.
        size: Entries of each ring.

    Raises:
        CapabilityError: This KVM has no dirty rings.
        OptionError: It has no rings of that size.
        BackendError: The call failed.
    """

    def __init__(self, vm_fd: int, size: int) -> None:
        self._vm_fd = vm_fd
        self._size = size
        self._rings: dict[int, KvmDirtyRing] = {}
        # What was taken and not reset: the kernel notes no write to these pages.
        self._taken: list[tuple[int, int]] = []
        capability, most = offered(vm_fd)
        if not most:
            raise CapabilityError("this KVM has no dirty rings (since Linux 5.11); leave out dirty_ring_size")
        if size & (size - 1) or not LEAST <= size <= most:
            problem = f"must be a power of two from {LEAST} to {most}, or 0 for none"
            raise OptionError("accelerator.kvm", "dirty_ring_size", size, problem)
        request = abi.KvmEnableCap(cap=capability)
        request.args[0] = size * _ENTRY
        try:
            ioctl(vm_fd, abi.KVM_ENABLE_CAP, request, "KVM_ENABLE_CAP(KVM_CAP_DIRTY_LOG_RING)")
        except BackendError as error:
            advice = f"rings of {size} entries; a processor that logs by itself needs 1024 or more"
            raise BackendError("KVM_ENABLE_CAP(KVM_CAP_DIRTY_LOG_RING)", error.errno or errno.EIO, advice) from error

    def add(self, vcpu_fd: int) -> None:
        """Map the ring of a new vCPU. Raises BackendError."""
        self._rings[vcpu_fd] = KvmDirtyRing(vcpu_fd, self._size)

    def remove(self, vcpu_fd: int) -> None:
        """Unmap the ring of a vCPU that is about to be closed; it has been taken."""
        ring = self._rings.pop(vcpu_fd, None)
        if ring is not None:
            ring.close()

    def take(self) -> list[tuple[int, int]]:
        """Return all entries, and mark them as taken; `reset` has to follow once they are merged.

        If it failed the last time, what was taken then comes again, since those pages were written without a note.
        """
        for ring in self._rings.values():
            self._taken += ring.take()
        return self._taken

    def check(self) -> None:
        """Raise DirtyRingLost if a ring has lost entries; all that logs has to count as written then."""
        if self._lost():
            raise DirtyRingLost(self._size)

    def _lost(self) -> bool:
        return any(ring.lost for ring in self._rings.values())

    def reset(self) -> None:
        """Have the kernel note the next write to each page that was taken, and use its entry again.

        Since Linux 6.16 the call ends early for a signal, and tells only by how many entries it went over: it is
        repeated until it has been over all. After a ring lost entries their count means nothing; it is called once.

        Raises:
            BackendError: The call failed, or did nothing time and again.
        """
        due, idle = len(self._taken), 0
        while due > 0 and idle < _IDLE_RESETS:
            done = ioctl(self._vm_fd, abi.KVM_RESET_DIRTY_RINGS, 0, "KVM_RESET_DIRTY_RINGS")
            idle = 0 if done else idle + 1
            due = 0 if self._lost() else due - done
        if due > 0:
            raise BackendError("KVM_RESET_DIRTY_RINGS", errno.EIO, f"{due} entries of {len(self._taken)} are not reset")
        self._taken = []


def offered(fd: int) -> tuple[int, int]:
    """Return the capability by which `fd`, /dev/kvm or a VM, has dirty rings, and their most entries; 0 for none."""
    for capability in (abi.KVM_CAP_DIRTY_LOG_RING_ACQ_REL, abi.KVM_CAP_DIRTY_LOG_RING):
        most = extension(fd, capability)
        if most:
            return capability, most // _ENTRY
    return 0, 0

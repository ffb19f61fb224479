"""Scenarios of TLB flushes beside a page fault: whoever flushes does not wait for a vCPU that is in KVM.

So such a vCPU may be there for as long as the host takes to find its page, and nobody who takes a log hangs behind it.
In exchange the vCPU looks on its way back to the guest whether its TLB was to be flushed, and takes no translation from
the fault itself: it walks the shadow page table once more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from accel.address import PAGE_SIZE
from accel.testing.explore.scenario import require, scenario
from accel.testing.explore.world import Patch
from accel_mock.kvm.mmu import Fault
from accel_mock.scenarios.hall import HIGH, LOW, OLD, Hall, logged, slot_of
from accel_mock.scenarios.pages import MMU, QUICK

_VCPU = "accel_mock.vcpu"


class _Slow:
    """A slot of two pages that logs, and a vCPU that looks at one, at the other, and at the first again.

    The host finds the other page once `found` is set.
    """

    def __init__(self) -> None:
        self.hall = Hall()
        self.memslots = self.hall.memslots
        self.slot = logged(slot_of(LOW, OLD, pages=2))
        self.memslots.create(0, self.slot)
        self.mmu = self.memslots.mmu
        self.guest = self.hall.vcpu(LOW, HIGH, LOW)
        self.found = threading.Event()
        fault_in = self.mmu.host.fault_in

        def slowly(address: int, *, write: bool) -> tuple[int, bool]:
            if address == self.slot.hva // PAGE_SIZE + 1:
                self.found.wait()
            return fault_in(address, write=write)

        self.mmu.host.fault_in = slowly  # type: ignore[method-assign]

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"vCPU": self.guest.run, "host": self.act}

    def act(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        require(set(self.guest.seen) <= {OLD}, f"the guest saw {self.guest.seen}")


@scenario("mock/flush-fault", instrument=MMU, patches=QUICK)
class FlushFault(_Slow):
    """A log is taken, which flushes, while a vCPU waits in a page fault for a page that comes after that: both end."""

    def __init__(self) -> None:
        super().__init__()
        # So that the log has something to flush for.
        require(self.mmu.fault(LOW, write=True) is Fault.FIXED, "the page cannot be mapped")

    def act(self) -> None:
        self.memslots.take_dirty(0, self.slot)
        self.found.set()


@scenario(
    "mock/flush-fault-wrong-waits",
    instrument=MMU,
    wrong="deadlock",
    patches=(
        *QUICK,
        Patch(_VCPU, "        self.running.leave_guest(self)\n", ""),
        Patch(_VCPU, "            self.running.enter_guest(self)", "            pass"),
    ),
)
class FlushFaultWaits(FlushFault):
    """The same where a vCPU in a page fault counts as in the guest: the flush waits for it, and it for its page."""


@scenario("mock/flush-return", instrument=MMU, patches=QUICK)
class FlushReturn(_Slow):
    """The host takes one page away while a vCPU has a page fault on another: it does not use what it had of the one."""

    def __init__(self) -> None:
        super().__init__()
        self.found.set()

    def act(self) -> None:
        with self.memslots.notifiers.invalidating(self.slot.hva, self.slot.hva + PAGE_SIZE):
            self.hall.released.add(LOW)
            self.hall.step()
            self.hall.released.discard(LOW)


@scenario(
    "mock/flush-return-wrong-no-look",
    instrument=MMU,
    wrong="invariant",
    patches=(
        *QUICK,
        Patch(
            "accel_mock.kvm.running",
            "            if self._left.pop(vcpu) < self._flush:\n                vcpu.drop_tlb()\n",
            "            del self._left[vcpu]\n",
        ),
    ),
)
class FlushReturnNoLook(FlushReturn):
    """The same where the vCPU does not look on its way back: it uses a page that is gone by what its TLB still has."""


@scenario(
    "mock/flush-return-wrong-no-walk",
    instrument=MMU,
    wrong="invariant",
    patches=(
        *QUICK,
        Patch(
            _VCPU,
            "        try:\n            fault = mmu.fault(address, write=write, ring=self.dirty_ring)\n        finally:",
            "        try:\n            fault = mmu.fault(address, write=write, ring=self.dirty_ring)\n"
            "            found = mmu.walk(address, write=write)\n        finally:",
        ),
        Patch(_VCPU, "return mmu.walk(address, write=write) or AGAIN", "return found or AGAIN"),
    ),
)
class FlushReturnNoWalk(FlushReturn):
    """The same where it takes its translation from the fault: the page may be gone before it is back."""

"""The vCPUs that run the guest, and waits for them: until their TLBs are empty, they have gone on, or all are out.

In KVM a remote TLB flush interrupts the processors that are in a guest and waits until they have seen it; a vCPU that
is in KVM, for a page fault, finds the request on its way back. Here a vCPU looks for requests between two operations.
It needs no lock for that which who waits holds, so the waits end.

Kicking all follows KVM_KICK_ALL_RUNNING_VCPUS and KVM_RESUME_ALL_KICKED_VCPUS as they were proposed ("KVM: API to block
and resume all running vcpus in a vm"): a vCPU that runs comes out, and one that wants to run until all are resumed is
sent back at once. There is one such state, which does not count: who resumes resumes everybody's.

One thing is added to that proposal: whoever was kept out may work for a moment before all are kicked again. Changes
that follow each other at once would otherwise leave the guest no time, and show nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

#: How long a thread stays off the GIL to let the others go on, which otherwise takes a whole switch interval.
HANDOVER_SECONDS = 20e-6
#: Longest wait for those who were kept out, before all are kicked again.
_FAIRNESS_SECONDS = 1e-3


class RunningVcpu(Protocol):
    """A vCPU as this module sees it.

    Attributes:
        name: For messages.
        attention: Set to have it look for requests before its next operation.
    """

    name: str
    attention: bool

    def drop_tlb(self) -> None:
        """Forget all translations; on the vCPU's thread."""

    def wake(self) -> None:
        """Try again to run, where it was sent back; from any thread, must not wait."""


class Running:
    """The vCPUs of one VM that run. All methods take a leaf lock.

    Attributes:
        stopped: Whether all are kicked and not yet resumed.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._changed = threading.Condition()
        # Requests made so far; and the last of them that empties TLBs.
        self._requests = 0
        self._flush = 0
        # Of each vCPU that runs, the request since which it has worked; and of those in the guest, not handling a page
        # fault, the last that it has heard of.
        self._worked: dict[RunningVcpu, int] = {}
        self._heard: dict[RunningVcpu, int] = {}
        # vCPUs outside: up to which request their TLB is right; and those that were sent back since all were kicked.
        self._left: dict[RunningVcpu, int] = {}
        self._sent_back: dict[RunningVcpu, None] = {}
        # Those who were kept out the last time and have not worked since.
        self._owed: dict[RunningVcpu, None] = {}
        # How many threads wait here.
        self._waiting = 0

    # who asks

    def flush(self) -> None:
        """Have every vCPU in the guest drop its TLB, and wait until all have; those outside do when they come."""
        with self._changed:
            self._flush = self._requests + 1
            self._ask(self._heard)

    def let_work(self) -> None:
        """Wait until every vCPU that runs has executed a few operations since now."""
        with self._changed:
            self._ask(self._worked)

    def kick_all(self, timeout: float) -> Sequence[RunningVcpu]:
        """Bring all vCPUs out and let none in until `resume_all`; wait at most `timeout` seconds.

        Returns:
            Who is still inside. If there is one, all are resumed.
        """
        with self._changed:
            if self._owed:
                self._let_owed_work(min(timeout, _FAIRNESS_SECONDS))
            self.stopped = True
            for vcpu in self._worked:
                vcpu.attention = True
                self._owed[vcpu] = None
            self._wait(lambda: not self._worked, timeout)
            inside = tuple(self._worked)
        if inside:
            self.resume_all()
        return inside

    def resume_all(self) -> None:
        """Let vCPUs run again."""
        with self._changed:
            self.stopped = False
            sent_back, self._sent_back = self._sent_back, {}
            self._owed |= sent_back
        for vcpu in sent_back:
            vcpu.wake()

    def _ask(self, done: dict[RunningVcpu, int]) -> None:
        """Make a request and wait until all who run have done it; under the lock."""
        self._requests += 1
        wanted = self._requests
        for vcpu in done:
            vcpu.attention = True
        self._wait(lambda: all(heard >= wanted for heard in done.values()))

    def _let_owed_work(self, timeout: float) -> None:
        """Wait for those who were kept out; under the lock. One that does not want to run is not waited for again."""
        self._requests += 1
        for vcpu in self._owed:
            vcpu.attention = True
        self._wait(lambda: not self._owed, timeout)
        self._owed.clear()

    def _wait(self, over: Callable[[], bool], timeout: float | None = None) -> None:
        """Wait for a vCPU to do something; under the lock."""
        self._waiting += 1
        try:
            self._changed.wait_for(over, timeout)
        finally:
            self._waiting -= 1

    @property
    def any(self) -> bool:
        """Whether a vCPU runs."""
        return bool(self._worked)

    # vCPUs, each on its thread

    def enter(self, vcpu: RunningVcpu) -> bool:
        """Begin to run; return False if all are kicked, and it is sent back."""
        with self._changed:
            if self.stopped:
                self._sent_back[vcpu] = None
                return False
            if self._left.pop(vcpu, -1) < self._flush:
                vcpu.drop_tlb()
            self._heard[vcpu] = self._worked[vcpu] = self._requests
            if vcpu in self._owed:
                vcpu.attention = True
            return True

    def leave(self, vcpu: RunningVcpu) -> None:
        """Run no more."""
        with self._changed:
            self._left[vcpu] = self._heard.pop(vcpu)
            del self._worked[vcpu]
            if not self.stopped:
                self._owed.pop(vcpu, None)
            self._tell()

    def leave_guest(self, vcpu: RunningVcpu) -> None:
        """Go on to run, but outside of the guest, for a page fault: it uses no TLB, so no flush waits for it."""
        with self._changed:
            self._left[vcpu] = self._heard.pop(vcpu)
            self._tell()

    def enter_guest(self, vcpu: RunningVcpu) -> None:
        """Go back, with the TLB as it was left or empty if it was to be flushed meanwhile."""
        with self._changed:
            if self._left.pop(vcpu) < self._flush:
                vcpu.drop_tlb()
            self._heard[vcpu] = self._requests

    def hear(self, vcpu: RunningVcpu) -> int:
        """Do what was asked; return the request up to which it has been."""
        with self._changed:
            if self._heard[vcpu] < self._flush:
                vcpu.drop_tlb()
            self._heard[vcpu] = heard = self._requests
            self._tell()
        return heard

    def has_worked(self, vcpu: RunningVcpu, heard: int) -> None:
        """Note that the vCPU has executed some operations since it heard of a request."""
        with self._changed:
            self._worked[vcpu] = heard
            self._owed.pop(vcpu, None)
            awaited = self._waiting > 0
            self._tell()
        if awaited:
            time.sleep(HANDOVER_SECONDS)

    def forget(self, vcpu: RunningVcpu) -> None:
        """Note that a vCPU, which is outside, will never run again."""
        with self._changed:
            self._left.pop(vcpu, None)
            self._sent_back.pop(vcpu, None)
            self._owed.pop(vcpu, None)

    def _tell(self) -> None:
        if self._waiting:
            self._changed.notify_all()

"""The vCPUs that run the guest, and waits for them: until their TLBs are empty, until they have gone on a little.

In KVM a remote TLB flush interrupts the processors that run vCPUs and waits until they have seen it. Here a vCPU looks
for requests between two operations. It needs no lock for that which who waits holds, so the waits end.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

#: How long a thread stays off the GIL to let the others go on, which otherwise takes a whole switch interval.
HANDOVER_SECONDS = 20e-6


class RunningVcpu(Protocol):
    """A vCPU as this module sees it.

    Attributes:
        attention: Set to have it look for requests before its next operation.
    """

    attention: bool

    def drop_tlb(self) -> None:
        """Forget all translations; on the vCPU's thread."""


class Running:
    """The vCPUs of one VM that run. All methods take a leaf lock."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        # Requests made so far; and of each vCPU inside, those that it has heard of, and since which it has worked.
        self._requests = 0
        self._heard: dict[RunningVcpu, int] = {}
        self._worked: dict[RunningVcpu, int] = {}
        # vCPUs outside: up to which request their TLB is right.
        self._left: dict[RunningVcpu, int] = {}
        self._awaited = False

    # who asks

    def flush(self) -> None:
        """Have every vCPU that runs drop its TLB, and wait until all have; those outside do when they come."""
        self._ask(self._heard)

    def let_work(self) -> None:
        """Wait until every vCPU that runs has executed a few operations since now."""
        self._ask(self._worked)

    def _ask(self, done: dict[RunningVcpu, int]) -> None:
        with self._changed:
            self._requests += 1
            wanted = self._requests
            self._awaited = bool(done)
            for vcpu in done:
                vcpu.attention = True
            self._changed.wait_for(lambda: all(heard >= wanted for heard in done.values()))
            self._awaited = False

    @property
    def any(self) -> bool:
        """Whether a vCPU runs."""
        return bool(self._heard)

    # vCPUs, each on its thread

    def enter(self, vcpu: RunningVcpu) -> None:
        """Begin to run."""
        with self._changed:
            if self._left.pop(vcpu, -1) < self._requests:
                vcpu.drop_tlb()
            self._heard[vcpu] = self._worked[vcpu] = self._requests

    def leave(self, vcpu: RunningVcpu) -> None:
        """Run no more."""
        with self._changed:
            self._left[vcpu] = self._heard.pop(vcpu)
            del self._worked[vcpu]
            if self._awaited:
                self._changed.notify_all()

    def hear(self, vcpu: RunningVcpu) -> int:
        """Do what was asked; return the request up to which it has been."""
        vcpu.drop_tlb()
        with self._changed:
            self._heard[vcpu] = heard = self._requests
            self._changed.notify_all()
        return heard

    def has_worked(self, vcpu: RunningVcpu, heard: int) -> None:
        """Note that the vCPU has executed some operations since it heard of a request."""
        with self._changed:
            self._worked[vcpu] = heard
            awaited = self._awaited
            if awaited:
                self._changed.notify_all()
        if awaited:
            time.sleep(HANDOVER_SECONDS)

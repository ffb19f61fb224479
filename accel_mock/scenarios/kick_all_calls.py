"""Scenarios of what kicking all vCPUs does not hold: calls that run no vCPU, each beside a change of several steps.

The review of KVM_KICK_ALL_RUNNING_VCPUS found it: whoever changes memory is alone with vCPUs that are kicked, and not
with the calls of other threads. Holding those takes something in userspace, which has every call pass it: the
accel-blocker, a VM's calls by `AccelBlocker.vm_call` and a vCPU's by its gate.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accel.blocker import AccelBlocker
from accel.errors import BackendError, MemorySlotError
from accel.locks import BIG_LOCK, Lock
from accel.testing.explore.scenario import require, scenario
from accel_mock.scenarios.hall import BLOCKER, LOW, MODEL, NEW, OLD, PROMPT, Hall, logged, slot_of

_INSTRUMENT = (*MODEL, *BLOCKER)
_HALF = "a call saw half of the change"


class _Call:
    """A slot, a thread that replaces it, and another one that makes a call meanwhile."""

    def __init__(self) -> None:
        self.hall = Hall()
        self.memslots, self.running = self.hall.memslots, self.hall.running
        self.slot = logged(slot_of(LOW, OLD))
        self.memslots.create(0, self.slot)
        self.big_lock = Lock(BIG_LOCK)
        self.blocker = AccelBlocker(self.big_lock)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"updater": self.update, "caller": self.call}

    def update(self) -> None:
        with self.held():
            self.change()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold all vCPUs and all calls."""
        with self.big_lock, self.blocker.inhibit(10.0):
            yield

    @contextmanager
    def kicked(self) -> Iterator[None]:
        """Kick all vCPUs instead, which holds no other call."""
        self.running.kick_all(10.0)
        yield
        self.running.resume_all()

    def change(self) -> None:
        """Delete the slot, and create it again."""
        self.memslots.delete(0, self.slot)
        self.memslots.create(0, self.slot)

    def call(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        found = self.memslots.table.find(LOW)
        require(found is not None and found.slot == self.slot, "the slot is gone")


@scenario("mock/kick-all-ioctl", instrument=_INSTRUMENT, patches=PROMPT)
class KickAllIoctl(_Call):
    """A slot is replaced beside a dirty-log call that the accel-blocker holds: the call finds the slot."""

    def call(self) -> None:
        with self.blocker.vm_call("KVM_GET_DIRTY_LOG"):
            try:
                self.memslots.take_dirty(0, self.slot)
            except BackendError as error:
                require(False, f"{_HALF}: {error}")


@scenario("mock/kick-all-ioctl-wrong-not-held", instrument=_INSTRUMENT, wrong="invariant", patches=PROMPT)
class KickAllIoctlNotHeld(KickAllIoctl):
    """The same where all vCPUs are kicked, which holds no other call: it comes between the two, and finds no slot."""

    held = _Call.kicked


@scenario("mock/kick-all-slot-call", instrument=_INSTRUMENT, patches=PROMPT)
class KickAllSlotCall(_Call):
    """A slot is replaced beside a thread that creates another one there, which the accel-blocker holds: refused."""

    def call(self) -> None:
        with self.blocker.vm_call("KVM_SET_USER_MEMORY_REGION"):
            try:
                self.memslots.create(1, slot_of(LOW, NEW))
            except MemorySlotError as error:
                require(error.errno == errno.EEXIST, f"refused with {error}")
                return
        require(False, f"{_HALF}: it created a slot where one was all the time")


@scenario("mock/kick-all-slot-call-wrong-not-held", instrument=_INSTRUMENT, wrong="invariant", patches=PROMPT)
class KickAllSlotCallNotHeld(KickAllSlotCall):
    """The same where all vCPUs are kicked: the other slot comes between the two, and the first cannot come back."""

    held = _Call.kicked

    def change(self) -> None:
        try:
            super().change()
        except MemorySlotError as error:
            require(False, f"half of the change is lost: {error}")


@scenario("mock/kick-all-vcpu-ioctl", instrument=_INSTRUMENT, patches=PROMPT)
class KickAllVcpuIoctl(_Call):
    """A slot is replaced beside a vCPU's call that reads guest memory, held at the vCPU's gate: it finds the memory.

    Such a one is KVM_SET_SREGS, which reads the page-directory pointers of a guest in PAE mode. KVM reads through the
    memslots, and takes an invalid one for a hole.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = self.blocker.add_gate("vCPU 0", lambda thread_id: None)

    def call(self) -> None:
        self.gate.enter()
        with self.memslots.srcu.read():
            found = self.memslots.table.find(LOW)
            require(found is not None and not found.invalid, f"{_HALF}: guest memory that it reads is not there")
        self.gate.leave()


@scenario("mock/kick-all-vcpu-ioctl-wrong-not-held", instrument=_INSTRUMENT, wrong="invariant", patches=PROMPT)
class KickAllVcpuIoctlNotHeld(KickAllVcpuIoctl):
    """The same where all vCPUs are kicked: this one does not run, so it is not kicked, and reads from a hole."""

    held = _Call.kicked


class _Bus:
    """What KVM_IOEVENTFD changes and looks at: who has the doorbell at an address. Under slots_lock, as there."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._rings: dict[int, str] = {}

    def assign(self, address: int, who: str) -> None:
        """Have writes to `address` ring for `who`. Raises FileExistsError if they ring already."""
        with self._lock:
            if address in self._rings:
                raise FileExistsError(errno.EEXIST, f"doorbell at {address:#x}, of {self._rings[address]}")
            self._rings[address] = who

    def deassign(self, address: int) -> None:
        """Have them ring no more."""
        with self._lock:
            del self._rings[address]


@scenario("mock/kick-all-ioeventfd", instrument=_INSTRUMENT, patches=PROMPT)
class KickAllIoeventfd(_Call):
    """A doorbell gets another eventfd beside a thread that wants one there too, which is held: it is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.bus = _Bus(self.memslots._slots_lock)
        self.bus.assign(LOW, "a device")

    def change(self) -> None:
        self.bus.deassign(LOW)
        try:
            self.bus.assign(LOW, "the same device, another eventfd")
        except FileExistsError as error:
            require(False, f"half of the change is lost: {error}")

    def call(self) -> None:
        with self.blocker.vm_call("KVM_IOEVENTFD"):
            try:
                self.bus.assign(LOW, "somebody else")
            except FileExistsError:
                return
        require(False, f"{_HALF}: it got a doorbell that was another's all the time")


@scenario("mock/kick-all-ioeventfd-wrong-not-held", instrument=_INSTRUMENT, wrong="invariant", patches=PROMPT)
class KickAllIoeventfdNotHeld(KickAllIoeventfd):
    """The same where all vCPUs are kicked: the other doorbell comes between the two calls."""

    held = _Call.kicked

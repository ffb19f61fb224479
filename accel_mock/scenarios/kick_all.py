"""Scenarios of KVM_KICK_ALL_RUNNING_VCPUS and KVM_RESUME_ALL_KICKED_VCPUS, as they were proposed, and of their holes.

Whoever wants to run while all are kicked is sent back at once, so userspace brings an event for it to wait on (in the
mock: `MockVcpu.run`). What the review of the proposal found, each has a scenario: resuming does not count who has
kicked, a vCPU that does not come out is waited for, and other calls are not held (`kick_all_calls`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from accel.locks import BIG_LOCK, Lock
from accel.testing.explore.scenario import require, scenario
from accel.testing.explore.world import Patch
from accel_mock.kvm.running import HANDOVER_SECONDS
from accel_mock.scenarios.hall import LOW, MODEL, OLD, PROMPT, Hall, logged, slot_of

#: As proposed: the kick waits for as long as it takes.
_NO_TIME_OUT = Patch("accel_mock.kvm.running", "lambda: not self._worked, timeout)", "lambda: not self._worked)")
_RETURN = "                return ExitKind.INTERRUPTED"


class _Kicked:
    """A slot, a vCPU that looks at it, and a thread that replaces it while all are kicked."""

    looks: tuple[int, ...] = (LOW, LOW)

    def __init__(self) -> None:
        self.hall = Hall()
        self.memslots, self.running = self.hall.memslots, self.hall.running
        self.slot = logged(slot_of(LOW, OLD))
        self.memslots.create(0, self.slot)
        self.guest = self.hall.vcpu(*self.looks)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"updater": self.update, "vCPU": self.guest.run}

    def update(self) -> None:
        with self.kicked():
            self.replace()

    @contextmanager
    def kicked(self) -> Iterator[None]:
        """Kick all, and resume them in the end."""
        self.running.kick_all(10.0)
        yield
        self.running.resume_all()

    def replace(self) -> None:
        """Delete the slot, and create it again."""
        self.memslots.delete(0, self.slot)
        self.memslots.create(0, self.slot)

    def check(self) -> None:
        require(set(self.guest.seen) == {OLD}, "the guest met the gap between two calls")


@scenario("mock/kick-all", instrument=MODEL, patches=(*PROMPT, _NO_TIME_OUT))
class KickAll(_Kicked):
    """A slot is deleted and created again while all vCPUs are kicked: who runs comes out, and waits until resumed."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.over = False
        self.guest.found = self.found
        self.guest.spins = self.spins

    @contextmanager
    def kicked(self) -> Iterator[None]:
        """Kick all, and judge that nobody executes anything."""
        with super().kicked():
            self.held = True
            yield
            self.held = False

    def update(self) -> None:
        super().update()
        self.over = True

    def found(self, address: int, byte: int) -> None:
        require(not self.held, "a vCPU executes while all are kicked")

    def spins(self) -> bool:
        """Return whether the guest is to look again: until all is over, so it does not come out by itself."""
        if not self.over:
            time.sleep(HANDOVER_SECONDS)
        return not self.over


@scenario(
    "mock/kick-all-wrong-busy-loop",
    instrument=MODEL,
    limit=1500,
    wrong="livelock",
    patches=(*PROMPT, _NO_TIME_OUT, Patch("accel_mock.vcpu", f"{_RETURN}\n            self._woken.wait()", _RETURN)),
)
class KickAllBusyLoop(KickAll):
    """The same without the event: KVM_RUN returns at once, again and again, until all are resumed."""


@scenario("mock/kick-all-users", instrument=MODEL, patches=PROMPT)
class KickAllUsers(_Kicked):
    """Two threads kick all and resume, one of them replaces a slot, in turn under a lock: the vCPU sees no gap."""

    looks = (LOW,)

    def __init__(self) -> None:
        super().__init__()
        self.lock: Lock | nullcontext[None] = Lock(BIG_LOCK)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {**super().threads(), "other user": self.other}

    def update(self) -> None:
        with self.lock:
            super().update()

    def other(self) -> None:
        with self.lock, self.kicked():
            pass


@scenario("mock/kick-all-users-wrong-nested", instrument=MODEL, wrong="invariant", patches=PROMPT)
class KickAllNested(KickAllUsers):
    """The same without the lock: kicks do not nest, and the first to resume lets all go on under the other."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = nullcontext()


@scenario("mock/kick-all-stuck", instrument=MODEL, patches=PROMPT)
class KickAllStuck(_Kicked):
    """A vCPU waits in the kernel for a page that comes after a change: the kick gives up, and all go on."""

    def __init__(self) -> None:
        super().__init__()
        self.page = threading.Event()
        self.guest.found = self.found

    def found(self, address: int, byte: int) -> None:
        self.page.wait()

    def update(self) -> None:
        if not self.running.kick_all(10.0):
            self.replace()
            self.running.resume_all()
        self.page.set()


@scenario(
    "mock/kick-all-stuck-wrong-no-time-out",
    instrument=MODEL,
    wrong="deadlock",
    patches=(*PROMPT, _NO_TIME_OUT),
)
class KickAllStuckForEver(KickAllStuck):
    """The same with a kick that waits for as long as it takes, as proposed: each waits for the other."""

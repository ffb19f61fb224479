"""Threads on which tests run vCPUs, so that no accelerator can keep the suite waiting for ever.

Layer: above `vcpu` and `verdict`. A test never enters a guest on its own thread: it hands the call to a `Lane` and
waits with a deadline. A call that does not come back is a `Stuck`, which says where the lane's thread stands; that is a
daemon and is left behind.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from types import FrameType

from accel.exits import DirtyRingFull, Exit, Halt, IoIn, IoOut, MmioRead, MmioWrite
from accel.testing.conformance.verdict import Stuck, Violation, shown
from accel.vcpu import Vcpu

#: Wait for what is lost anyway, in seconds.
_SHORT = 0.1

Answer = Callable[[IoIn | MmioRead], int]


class Lane:
    """A thread that runs one vCPU, a call at a time.

    Args:
        vcpu: What it runs.
        patience: Longest wait for a call, in seconds.

    Attributes:
        vcpu: As given.
    """

    def __init__(self, vcpu: Vcpu, patience: float) -> None:
        self.vcpu = vcpu
        self._patience = patience
        self._stuck = False
        # Whether a call is under way. Owned by the test's thread.
        self._busy = False
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[object, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name=f"lane of vCPU {vcpu.index}", daemon=True)
        self._thread.start()

    def run(self, when: str = "a run") -> Exit:
        """Run the vCPU until it comes out, and return the exit. Raises Stuck; `when` says what was due."""
        self.start()
        return self.exit(when)

    def start(self) -> None:
        """Let the vCPU run; `exit` has its exit."""
        self._put(self.vcpu.run)

    def exit(self, when: str) -> Exit:
        """Wait for the exit of a run that was started. Raises Stuck; `when` says what was due."""
        found = self.result(when)
        assert isinstance(found, Exit)
        return found

    def call(self, function: Callable[[], object], when: str) -> object:
        """Return what `function` returns on the lane's thread. Raises Stuck, or what it raises."""
        self._put(function)
        return self.result(when)

    def _put(self, call: Callable[[], object]) -> None:
        assert not self._busy, "one call at a time"
        self._busy = True
        self._calls.put(call)

    def result(self, when: str) -> object:
        """Wait for the result of a call that was started. Raises Stuck, or what it raised."""
        try:
            value, error = self._results.get(timeout=self._patience)
        except queue.Empty:
            self._stuck = True
            # Nobody needs to wait for it at length any more.
            self.vcpu.vm.inhibit_timeout = _SHORT
            raise Stuck(
                f"{when}: vCPU {self.vcpu.index} did not come out within {self._patience:g} s; {self._place()}"
            ) from None
        self._busy = False
        if error is not None:
            raise error
        return value

    @property
    def idle(self) -> bool:
        """Whether no call is under way whose result is not there."""
        return not self._results.empty()

    def close(self) -> None:
        """Bring the vCPU out if it is in the guest, and end the thread; one that is stuck is left behind."""
        self._calls.put(None)
        if self._busy and not self.vcpu.closed:
            self.vcpu.kick()
        self._thread.join(_SHORT if self._stuck else self._patience)

    def _main(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                self._results.put((call(), None))
            except BaseException as error:  # noqa: BLE001 - it is raised on the thread that waits
                self._results.put((None, error))

    def _place(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)
        return f"its thread stands in {_text(frame)}" if frame is not None else "its thread is gone"


#: Gives the lane of a vCPU of a machine, by default of the first.
Lanes = Callable[..., Lane]


def _text(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_name} ({os.path.basename(code.co_filename)}:{frame.f_lineno})"


def play(lane: Lane, answer: Answer | None = None, most: int = 500) -> list[Exit]:
    """Run a vCPU until it halts; return all exits but the last. Reads are answered with `answer`, or with 0.

    Raises:
        Violation: One is no access, or there are more than `most`.
        Stuck: One did not come.
    """
    exits: list[Exit] = []
    while len(exits) <= most:
        found = lane.run("a program that ends with HALT")
        if isinstance(found, Halt):
            return exits
        if isinstance(found, DirtyRingFull):
            continue
        if not isinstance(found, (IoIn, IoOut, MmioRead, MmioWrite)):
            raise Violation(f"a program that only makes accesses and halts came out with {shown(found)}")
        exits.append(found)
        if isinstance(found, (IoIn, MmioRead)):
            found.reply(answer(found) if answer is not None else 0)
    raise Violation(f"a program without so many accesses came out {most} times; the last was {shown(exits[-1])}")

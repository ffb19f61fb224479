"""Guests that run by themselves, on a machine's own threads, and say that they go on: for changes under running vCPUs.

Layer: above `look`. Each wait has a deadline, and an accelerator that keeps a vCPU inside is a `Stuck`.
"""

from __future__ import annotations

import threading

from accel.errors import InhibitTimeoutError
from accel.machine import Machine
from accel.program import GuestProgram, Op
from accel.result import RunResult
from accel.run import Run
from accel.testing.conformance.verdict import Stuck, Violation, expect


class Pace:
    """Follows the guests of a machine, which write to a port each time around: their errors, or 0.

    Args:
        one: The machine.
        patience: Longest wait, in seconds.

    Attributes:
        port: Where they write.
        count: How often they have.
        most: The greatest number that they wrote.
    """

    port = 0x86

    def __init__(self, one: Machine, patience: float) -> None:
        self.count = 0
        self.most = 0
        self._one, self._patience = one, patience
        self._changed = threading.Condition()
        self._run: Run | None = None
        one.port(self.port)(lambda access: self._tell(access.value))

    def _tell(self, errors: int) -> None:
        with self._changed:
            self.most = max(self.most, errors)
            self.count += 1
            self._changed.notify_all()

    def begin(self, *ops: Op) -> None:
        """Start the guests."""
        self._one.load(GuestProgram(ops))
        self._run = self._one.start()

    def wait(self, count: int = 2) -> None:
        """Wait until the guests have gone on: the first of two writes may be of something older.

        Raises:
            Violation: They do not, or have come to an end.
        """
        with self._changed:
            target = self.count + count
            if self._changed.wait_for(lambda: self.count >= target or self._done, self._patience) and not self._done:
                return
        if self._done:
            self.end()
            raise Violation("a guest that goes round for ever has come to an end")
        raise Violation(f"a guest that goes round for ever stands still, for {self._patience:g} s")

    @property
    def _done(self) -> bool:
        return self._run is None or self._run.done

    def end(self) -> RunResult:
        """Stop the guests; return what they came to.

        Raises:
            Stuck: One did not come out.
            Violation: One crashed.
        """
        assert self._run is not None
        try:
            if not self._run.done:
                self._run.stop()
            result = self._run.wait(self._patience)
        except InhibitTimeoutError as error:
            raise Stuck(f"a vCPU does not come out when its run is stopped: {error}") from error
        expect(result.crash is None, f"the guest crashed: {result.crash}")
        return result

"""How runs and machines end where something else is under way, or does not work."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

import pytest

import accel
from accel.devices import DebugConsole
from accel.errors import StateError
from accel.housekeeper import Housekeeper
from accel.program import GuestProgram, Loop, Out

_SPIN = GuestProgram((Loop(()),))


class CallingSink(io.RawIOBase):
    """A console's sink that calls something for each write."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self._call()
        return len(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["housekeeper", "vcpu-0", "vcpu-1"])
def test_start_without_threads_to_be_had_leaves_a_machine_that_starts_later_and_closes(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """As at the interpreter's end, or at a limit of the host."""
    start, threads = threading.Thread.start, set(threading.enumerate())

    def refuse(self: threading.Thread) -> None:
        if self.name == missing:
            raise RuntimeError("can't start new thread")
        start(self)

    with accel.Machine.create("mock", memory="1M", cpus=2) as machine:
        machine.load(_SPIN)
        for _ in range(2):
            monkeypatch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                machine.start()
            monkeypatch.undo()
            machine.stop()  # a vCPU that came before may be on its way out
        machine.start()
        machine.stop()
        assert machine.wait().outcome == "stopped"
    assert set(threading.enumerate()) <= threads


def test_output_handed_on_at_the_end_cannot_wait_for_its_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a run hands on what is left, and its sink may be anybody's code."""
    refused = []
    monkeypatch.setattr(Housekeeper, "start", lambda self: None)  # all is left for the end
    with accel.Machine.create("mock", memory="1M") as machine:

        def call() -> None:
            machine.stop()
            machine.pause()
            machine.request_stop()
            for refusing in (machine.wait, machine.start, machine.close):
                with pytest.raises(StateError, match="in a device's handler would wait for itself"):
                    refusing()
                refused.append(refusing)

        machine.attach(DebugConsole(output=CallingSink(call)))  # type: ignore[arg-type]
        machine.load(GuestProgram((Out(0xE9, 7),)))
        assert machine.run(timeout=60).outcome == "halted"
        assert len(refused) == 3

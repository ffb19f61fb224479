"""Ctrl-C while a machine starts: it is raised once all threads run, and the machine closes as ever."""

from __future__ import annotations

import signal
import threading

import pytest

import accel
from accel.housekeeper import Housekeeper
from accel.program import GuestProgram, Loop


def test_start_interrupted_leaves_a_machine_that_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Housekeeper.start

    def interrupted(self: Housekeeper) -> None:
        signal.raise_signal(signal.SIGINT)
        start(self)

    monkeypatch.setattr(Housekeeper, "start", interrupted)
    threads = set(threading.enumerate())
    with accel.Machine.create("mock", memory="1M", cpus=2) as machine:
        machine.load(GuestProgram((Loop(()),)))
        with pytest.raises(KeyboardInterrupt):
            machine.start()
        machine.stop()
        assert machine.wait().outcome == "stopped"
    assert set(threading.enumerate()) <= threads

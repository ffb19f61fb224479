"""Probes that hold up nobody: the limit, what is left behind, and what is asked again."""

from __future__ import annotations

import threading

import pytest

from accel import turns
from accel.backend import Accelerator, Availability
from accel.errors import UsageError
from accel.plugins import probe, probe_all

LATE = "its probe did not answer within 0.05 s; ACCEL_PROBE_TIMEOUT sets another limit"
YES = Availability(True)


class Slow(Accelerator):
    """An accelerator whose probe waits until it is let go."""

    executes = frozenset({"program"})

    def __init__(self, name: str = "slow") -> None:
        self.name = name
        self.threads: list[threading.Thread] = []
        self.asked, self.go = threading.Event(), threading.Event()

    def probe(self) -> Availability:
        self.threads.append(threading.current_thread())
        self.asked.set()
        self.go.wait()
        return YES

    def create_vm(self, config):
        raise AssertionError


@pytest.fixture
def slow():
    """Make slow accelerators; let go of all of them at the end."""
    made: list[Slow] = []

    def make(name: str = "slow") -> Slow:
        made.append(Slow(name))
        return made[-1]

    yield make
    for one in made:
        one.go.set()
        for thread in one.threads:
            if thread is not threading.current_thread():
                thread.join()


def test_probe_that_does_not_answer_is_left_behind_and_not_asked_again_until_it_has(slow, monkeypatch) -> None:
    monkeypatch.setenv("ACCEL_PROBE_TIMEOUT", "0.05")
    accelerator = slow()
    assert probe(accelerator) == Availability(False, LATE)
    assert probe(accelerator) == Availability(False, LATE)
    # A busy host may let the thread begin after the limit only.
    assert accelerator.asked.wait(60)
    (thread,) = accelerator.threads
    assert thread.daemon, "the process can end without it"
    accelerator.go.set()
    thread.join()
    monkeypatch.setenv("ACCEL_PROBE_TIMEOUT", "60")
    assert probe(accelerator) == YES
    assert len(accelerator.threads) == 2


def test_probe_that_answers_leaves_no_thread_behind(slow, monkeypatch) -> None:
    run = threading.Thread.run

    def run_and_linger(self: threading.Thread) -> None:
        run(self)
        threading.Event().wait(0.1)

    monkeypatch.setattr(threading.Thread, "run", run_and_linger)
    accelerator = slow()
    accelerator.go.set()
    assert probe(accelerator) == YES
    (thread,) = accelerator.threads
    assert not thread.is_alive()


def test_probes_are_asked_at_the_same_time(slow) -> None:
    first, second = slow("first"), slow("second")

    class Meeting(Slow):
        """Answers once both others were asked, which is never if they are asked one after the other."""

        def probe(self) -> Availability:
            assert first.asked.wait(60)
            assert second.asked.wait(60)
            first.go.set()
            second.go.set()
            return YES

    assert probe_all([first, Meeting("meeting"), second]) == [YES] * 3


def test_probe_where_runs_repeat_is_called_directly(slow, monkeypatch) -> None:
    monkeypatch.setattr(turns, "take", lambda done: 1)
    accelerator = slow()
    accelerator.go.set()
    assert probe(accelerator) == YES
    assert accelerator.threads == [threading.current_thread()]


def test_probe_without_threads_to_be_had_is_called_directly(slow, monkeypatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    accelerator = slow()
    accelerator.go.set()
    assert probe(accelerator) == YES
    assert accelerator.threads == [threading.current_thread()]


class Interrupting(Slow):
    def probe(self) -> Availability:
        raise KeyboardInterrupt


def test_probe_that_is_interrupted_on_the_main_thread_ends_what_goes_on(monkeypatch) -> None:
    found = probe(Interrupting())
    assert not found.ok
    assert found.reason.startswith("its probe failed: KeyboardInterrupt")
    monkeypatch.setattr(turns, "take", lambda done: 1)
    with pytest.raises(KeyboardInterrupt):
        probe(Interrupting())


def test_probe_that_says_no_without_a_reason_gets_one() -> None:
    class Mute(Slow):
        def probe(self) -> Availability:
            return Availability(False)

    assert probe(Mute()).reason == "its probe says that it cannot be used, and no reason"


@pytest.mark.parametrize("limit", ["x", "0", "-1", "nan", "inf", "1e10"])
def test_probe_limit_that_is_no_time_is_refused_before_anybody_is_asked(slow, monkeypatch, limit: str) -> None:
    monkeypatch.setenv("ACCEL_PROBE_TIMEOUT", limit)
    accelerator = slow()
    with pytest.raises(UsageError, match=f"ACCEL_PROBE_TIMEOUT = '{limit}': must be a number of seconds, above 0"):
        probe(accelerator)
    assert not accelerator.threads

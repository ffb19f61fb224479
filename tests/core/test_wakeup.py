"""The event of one waiter: set once or often, before or during the wait, and taken back by it."""

from __future__ import annotations

import threading

from accel.wakeup import Wakeup

PATIENCE = 60


def test_wakeup_that_was_set_is_taken_by_one_wait() -> None:
    event = Wakeup()
    for _ in range(2):
        event.set()
        event.set()
        assert event.wait(PATIENCE)
        assert not event.wait(0)


def test_wakeup_cleared_keeps_the_waiter_waiting() -> None:
    event = Wakeup()
    event.clear()
    event.set()
    event.clear()
    event.clear()
    assert not event.wait(0.001)


def test_wakeup_set_by_many_threads_during_waits_loses_none(spawn) -> None:
    """Each thread hands over only once the waiter has seen its last one, so that a lost one would stop everything."""
    event = Wakeup()
    handed = [threading.Semaphore(0) for _ in range(3)]
    posted, seen = [0] * 3, [0] * 3

    def hand(index: int) -> None:
        for _ in range(300):
            posted[index] += 1
            event.set()
            assert handed[index].acquire(timeout=PATIENCE)

    threads = [spawn(lambda index=index: hand(index)) for index in range(3)]
    while sum(seen) < 900:
        assert event.wait(PATIENCE)
        for index in range(3):
            if posted[index] > seen[index]:
                seen[index] += 1
                handed[index].release()
    for thread in threads:
        thread.join()
    assert posted == seen == [300] * 3

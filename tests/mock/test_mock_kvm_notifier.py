"""Pairs of MMU notifiers: what they take away, who waits for them, and whom they wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accel_mock.kvm.notifier import MmuNotifiers

PATIENCE = 60


@contextmanager
def _waiting(call: Callable[[], object]) -> Iterator[list[str]]:
    """Make a call on a thread, which is to be over after the block."""
    done: list[str] = []

    def main() -> None:
        call()
        done.append("done")

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    yield done
    thread.join(PATIENCE)
    assert not thread.is_alive()


def _update(notifiers: MmuNotifiers, order: list[str]) -> None:
    with notifiers.none_active():
        order.append("updated")


def test_notifier_pair_unmaps_its_range_once_with_the_pair_open() -> None:
    seen: list[tuple[int, int, bool]] = []
    notifiers = MmuNotifiers(lambda start, end: seen.append((start, end, notifiers.retry(notifiers.sequence, start))))
    with notifiers.invalidating(0x1000, 0x3000):
        assert seen == [(0x1000, 0x3000, True)]
    assert len(seen) == 1


def test_notifier_fault_is_to_try_again_inside_a_pair_and_if_one_ended_since_it_looked() -> None:
    notifiers = MmuNotifiers(lambda start, end: None)
    before = notifiers.sequence
    assert not notifiers.retry(before, 0x1000)
    notifiers.invalidate_range_start(0x1000, 0x2000)
    notifiers.invalidate_range_start(0x1000, 0x3000)
    within = [notifiers.retry(notifiers.sequence, address) for address in (0xFFF, 0x1000, 0x1FFF, 0x2FFF, 0x3000)]
    assert within == [False, True, True, True, False]
    notifiers.invalidate_range_end(0x1000, 0x3000)
    assert notifiers.retry(before, 0x5000), "the pair that ended may have been about anything"
    within = [notifiers.retry(notifiers.sequence, address) for address in (0x1000, 0x2000)]
    assert within == [True, False]
    notifiers.invalidate_range_end(0x1000, 0x2000)
    assert not notifiers.retry(notifiers.sequence, 0x1000)


def test_notifier_update_of_memslots_waits_until_the_last_pair_has_ended() -> None:
    notifiers = MmuNotifiers(lambda start, end: None)
    order: list[str] = []
    notifiers.invalidate_range_start(0, 0x1000)
    notifiers.invalidate_range_start(0, 0x1000)
    with _waiting(lambda: _update(notifiers, order)):
        while not notifiers._none._waiters and not order:
            pass
        notifiers.invalidate_range_end(0, 0x1000)
        order.append("one ended")
        notifiers.invalidate_range_start(0x5000, 0x6000)
        notifiers.invalidate_range_end(0, 0x1000)
        order.append("other ended")
        notifiers.invalidate_range_end(0x5000, 0x6000)
    assert order == ["one ended", "other ended", "updated"]


def test_notifier_pair_that_begins_during_an_update_waits_for_it() -> None:
    begun = threading.Event()
    order: list[str] = []
    notifiers = MmuNotifiers(lambda start, end: order.append("unmapped"))
    with notifiers.none_active():
        pair = threading.Thread(target=lambda: (begun.set(), notifiers.invalidate_range_start(0, 0x1000)), daemon=True)
        pair.start()
        assert begun.wait(PATIENCE)
        order.append("updated")
    pair.join(PATIENCE)
    assert order == ["updated", "unmapped"]


def test_notifier_pair_ends_though_what_it_is_about_fails() -> None:
    notifiers = MmuNotifiers(lambda start, end: None)
    try:
        with notifiers.invalidating(0, 0x1000):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    order: list[str] = []
    _update(notifiers, order)
    assert order == ["updated"]

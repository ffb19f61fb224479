"""Stress runs on the mock: as many changes as asked for, guests that crash are started anew, an interrupt ends it."""

from __future__ import annotations

import pytest

from accel.errors import CapabilityError, StateError
from accel.stress.figures import Combination, Figures
from accel.stress.pace import Pace
from accel.stress.runner import StressSpec, run_stress


def test_combinations_that_differ_in_hold_only_stand_beside_each_other() -> None:
    spec = StressSpec(accelerator="mock", touches=("read", "walk"), cpus=(1, 2), holds=("inhibit", "unsafe"))
    assert spec.combinations()[:3] == (
        Combination("read", 1, "inhibit", "replace"),
        Combination("read", 1, "unsafe", "replace"),
        Combination("read", 2, "inhibit", "replace"),
    )
    assert len(spec.combinations()) == 8


@pytest.mark.parametrize("touch", ["read", "write", "locked", "fetch", "mixed"])
def test_held_guests_see_nothing_of_the_changes(touch) -> None:
    (figures,) = run_stress(StressSpec(accelerator="mock", touches=(touch,), cpus=(1,), updates=30, seed=1))
    assert figures.clean, figures.first_error
    assert figures.complete
    assert (figures.updates, figures.inhibits, figures.unheld) == (30, 30, 0)
    assert figures.latencies.count == 30
    assert figures.slot_calls >= 60, "each deletes a slot and creates one"
    assert figures.guest_passes > 0


def test_least_plan_holds_for_fewer_changes() -> None:
    spec = StressSpec(accelerator="mock", touches=("read",), cpus=(1,), plans=("least",), updates=40, seed=1)
    (figures,) = run_stress(spec)
    assert figures.clean
    assert figures.inhibits + figures.unheld == 40
    assert 0 < figures.inhibits < 40


def test_guest_that_crashes_is_started_anew_until_all_changes_are_made() -> None:
    spec = StressSpec(
        accelerator="mock", touches=("fetch",), cpus=(1,), holds=("unsafe",), changes=("split",), seconds=100.0
    )
    seen: list[Figures] = []
    with pytest.raises(KeyboardInterrupt):
        for figures in run_stress(spec, lambda live: _interrupt_after_crashes(live, 2)):
            seen.append(figures)
    (figures,) = seen
    assert figures.crashes >= 2
    assert figures.unserved >= 2
    assert figures.unplaced == 0
    assert not figures.clean
    assert "no memory" in figures.first_error


def _interrupt_after_crashes(live: Figures, crashes: int) -> None:
    if live.crashes >= crashes:
        raise KeyboardInterrupt


def test_interrupt_yields_what_there_is_and_goes_on_up() -> None:
    def interrupt(live: Figures) -> None:
        raise KeyboardInterrupt

    spec = StressSpec(accelerator="mock", touches=("read", "write"), cpus=(1,), seconds=100.0)
    seen: list[Figures] = []
    with pytest.raises(KeyboardInterrupt):
        for figures in run_stress(spec, interrupt):
            seen.append(figures)
    (figures,) = seen
    assert not figures.complete
    assert figures.updates > 0
    assert figures.inhibits == figures.updates
    assert figures.guest_passes > 0
    assert figures.clean


def test_walk_on_an_accelerator_without_machine_code_is_refused() -> None:
    with pytest.raises(CapabilityError, match="walk no page tables"):
        list(run_stress(StressSpec(accelerator="mock", touches=("walk",), updates=1)))


class EndedRun:
    """A run that is over at once."""

    done = True


class EndlessRun:
    """A run that goes on."""

    done = False

    def spurious_faults_so_far(self) -> tuple[int, ...]:
        return (1, 2)


class Clock:
    """A clock that moves when somebody sleeps by it, and notes for how long."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def pace(**how) -> tuple[Figures, Pace, Clock, list[tuple[int, float]]]:
    """Return a pace and what it uses; `told` gets the updates and seconds that it tells of."""
    figures = Figures(Combination("read", 1, "inhibit", "replace"))
    clock = Clock()
    told: list[tuple[int, float]] = []
    given = {"seconds": None, "updates": None, "rate": None, **how}
    one = Pace(
        figures,
        live=lambda seen: told.append((seen.updates, seen.seconds)),
        now=lambda: clock.now,
        sleep=clock.sleep,
        **given,
    )
    return figures, one, clock, told


def test_pace_gives_up_on_guests_that_end_before_any_change() -> None:
    _, one, _, _ = pace(updates=1)
    with pytest.raises(StateError, match="ended 200 times before its memory could change"):
        for _ in range(1000):
            one.change(EndedRun(), lambda: 0.0)


def test_pace_makes_as_many_updates_as_asked_for() -> None:
    figures, one, clock, _ = pace(updates=7)
    one.change(EndlessRun(), lambda: 0.001)
    assert one.over
    assert (figures.updates, figures.latencies.count) == (7, 7)
    assert clock.slept == [], "without a rate they are made back to back"


def test_pace_keeps_the_rate() -> None:
    # Powers of two, so that the sums are exact.
    figures, one, clock, _ = pace(seconds=1.0, rate=128.0)
    takes = iter([1 / 512, 1 / 256] * 64)

    def change() -> float:
        clock.now += next(takes)
        return 0.0

    one.change(EndlessRun(), change)
    assert (figures.updates, figures.seconds) == (128, 1.0)
    assert clock.slept == [1 / 128 - 1 / 512, 1 / 128 - 1 / 256] * 64, "what a change takes is no part of the wait"


def test_pace_that_is_late_makes_no_burst() -> None:
    figures, one, clock, _ = pace(updates=5, rate=16.0)
    takes = iter([1.0, 0, 0, 0, 0])

    def change() -> float:
        clock.now += next(takes)
        return 0.0

    one.change(EndlessRun(), change)
    # After the late one, the next that is due is made at once, and no more of those that were missed.
    assert clock.slept == [1 / 16] * 3
    assert figures.seconds == 1.0 + 3 / 16


def test_pace_tells_of_faults_some_times_in_a_second() -> None:
    figures, one, _, told = pace(seconds=0.5, rate=128.0)
    figures.served = 10
    one.change(EndlessRun(), lambda: 0.0)
    # The first look after more than 0.05 s each time.
    assert told == [(number * 7, number * 7 / 128) for number in range(1, 10)]
    assert figures.timeline.points[-1] == (63 / 128, 63, 13)


def test_pace_goes_on_where_the_run_before_ended() -> None:
    figures, one, clock, _ = pace(seconds=1.0, rate=16.0)
    ended = EndlessRun()

    def crash() -> float:
        ended.done = figures.updates == 3
        return 0.0

    one.change(ended, crash)
    clock.now += 100.0
    assert (figures.updates, figures.seconds, one.over) == (4, 4 / 16, False)
    one.change(EndlessRun(), lambda: 0.0)
    assert (figures.updates, figures.seconds, one.over) == (16, 1.0, True), "time between two runs does not count"

"""Runs stress: every combination of touch, vCPUs, hold and plan, each in a machine of its own, one after the other.

Layer: the top of this package, for the built-in guests and changes; `workload` does the same with a workload file.
Runs that differ in hold or plan only make the same changes in the same order, as far as each comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from random import Random
from typing import cast

from attrs import frozen

from accel.errors import AccelError, GuestCrashError, StateError
from accel.machine import Machine
from accel.plugins import find_accelerator
from accel.result import Outcome, RunResult
from accel.run import Run
from accel.stress.changes import CHANGES, Change, ChangingMap, next_state
from accel.stress.figures import Combination, Figures, Hold, Plan
from accel.stress.guests import MEMORY, StressGuest, make_guest
from accel.stress.judgement import Judgement, Touch
from accel.stress.pace import Pace

#: Longest wait, in seconds, for a guest that is to begin or was told to end.
GRACE = 30.0

Live = Callable[[Figures], None]


@frozen(kw_only=True)
class StressSpec:
    """What to run.

    Attributes:
        accelerator: On which accelerator.
        touches: Kinds of touch.
        cpus: Numbers of vCPUs.
        holds: What keeps guests from seeing half of a change; the accelerator must offer each.
        plans: How changes are planned.
        changes: Kinds of change; each change is one of these at random.
        seconds: For how long each combination runs, or None.
        updates: How many changes each makes, or None; one of the two is given.
        rate: Changes in a second; None makes them back to back.
        seed: Of the changes.
    """

    accelerator: str
    touches: tuple[Touch, ...] = ("mixed",)
    cpus: tuple[int, ...] = (2,)
    holds: tuple[Hold, ...] = ("inhibit",)
    plans: tuple[Plan, ...] = ("replace",)
    changes: tuple[Change, ...] = CHANGES
    seconds: float | None = None
    updates: int | None = None
    rate: float | None = None
    seed: int = 0

    def combinations(self) -> tuple[Combination, ...]:
        """Return what is run, in order: those that differ in hold or plan only stand beside each other."""
        return tuple(
            Combination(touch, cpus, hold, plan)
            for touch in self.touches
            for cpus in self.cpus
            for plan in self.plans
            for hold in self.holds
        )


def run_stress(spec: StressSpec, live: Live = lambda figures: None) -> Iterator[Figures]:
    """Run all combinations and yield what came of each; an interrupt or error yields what there is, and is then raised.

    Raises:
        AccelError: The host's side failed; after the figures of the combination that it ended, if memory changed in it.
        KeyboardInterrupt: After the figures of the combination that it ended.
    """
    for one in spec.combinations():
        figures = Figures(one)
        try:
            _run_one(spec, one, figures, live)
        except KeyboardInterrupt:
            yield figures
            raise
        except AccelError:
            if figures.updates:
                yield figures
            raise
        figures.complete = True
        yield figures


def _run_one(spec: StressSpec, one: Combination, figures: Figures, live: Live) -> None:
    choose = Random(f"{spec.seed}/{one.touch}/{one.cpus}")
    pace = Pace(figures, spec.seconds, spec.updates, spec.rate, live)
    while not pace.over:
        # A guest that crashed gets a new machine, so that nothing of before can have a part in what follows.
        _run_machine(spec, one, figures, pace, choose)


def _run_machine(spec: StressSpec, one: Combination, figures: Figures, pace: Pace, choose: Random) -> None:
    """Run the guest in a machine of its own, until it is over or the guest has crashed."""
    options = {spec.accelerator: {"plan": one.plan, "hold": one.hold}}
    with Machine.create(spec.accelerator, memory=MEMORY, cpus=one.cpus, options=options) as machine:
        memory = ChangingMap(machine)
        guest = make_guest(machine, memory, cast(Touch, one.touch), find_accelerator(spec.accelerator).executes)
        guest.load()

        def change() -> float:
            return memory.become(next_state(memory.state, choose.choice(spec.changes), choose))

        _round(machine, guest, figures, pace, change)


def _round(machine: Machine, guest: StressGuest, figures: Figures, pace: Pace, change: Callable[[], float]) -> None:
    """Start the guest, change memory under it until it is over or the guest has crashed, and judge what came of it."""
    before = MemoryCounts.of(machine)
    run = machine.start()
    try:
        _await_begin(run, guest)
        pace.change(run, change)
    finally:
        # Also when interrupted: what there is belongs into the figures.
        if not run.done:
            guest.end()
        result = run.wait(GRACE)
        add_result(figures, result, MemoryCounts.of(machine) - before)
        add_judgement(figures, guest.judge(result))


def _await_begin(run: Run, guest: StressGuest) -> None:
    """Wait until the guest works, so that no change is made before there is somebody to see it."""
    deadline = time.monotonic() + GRACE
    while not guest.begun() and not run.done:
        if time.monotonic() > deadline:
            raise StateError(f"the stress guest made no pass within {GRACE:g} s; use fewer vCPUs")
        time.sleep(0.0005)


@frozen
class MemoryCounts:
    """What memory changes have cost a machine so far."""

    inhibits: int
    unheld: int
    kicks: int
    slot_calls: int
    held_seconds: float

    @classmethod
    def of(cls, machine: Machine) -> MemoryCounts:
        """Return those of a machine."""
        stats = machine.vm.blocker.stats
        held = stats.wait_seconds + stats.hold_seconds
        calls = int(machine.vm.backend.memory_figures().get("slot_calls", 0))
        return cls(stats.inhibits, machine.vm.transactions.unheld, stats.kicks, calls, held)

    def __sub__(self, other: MemoryCounts) -> MemoryCounts:
        return MemoryCounts(
            self.inhibits - other.inhibits,
            self.unheld - other.unheld,
            self.kicks - other.kicks,
            self.slot_calls - other.slot_calls,
            self.held_seconds - other.held_seconds,
        )


def add_result(figures: Figures, result: RunResult, counts: MemoryCounts, *, crash_expected: bool = False) -> None:
    """Add a run that has ended, and what its changes cost."""
    figures.inhibits += counts.inhibits
    figures.unheld += counts.unheld
    figures.kicks += counts.kicks
    figures.slot_calls += counts.slot_calls
    figures.fragments = max(figures.fragments, int(result.memory.get("fragments", 0)))
    figures.held_seconds += counts.held_seconds
    figures.unserved += result.unserved_faults
    figures.served += result.spurious_faults - result.unserved_faults
    if result.outcome is Outcome.CRASHED and not crash_expected:
        figures.crashes += 1
        figures.unplaced += not result.unserved_faults
        figures.note(_crash_text(result.crash))
    elif result.outcome is Outcome.TIMED_OUT:
        figures.guest_errors += 1
        figures.note(f"the guest did not end within {GRACE:g} s")
    figures.timeline.add(figures.seconds, figures.updates, figures.faults)


def _crash_text(crash: GuestCrashError | None) -> str:
    return "the guest crashed" if crash is None else str(crash)


def add_judgement(figures: Figures, found: Judgement) -> None:
    """Add what guest and host found."""
    figures.guest_passes += found.passes
    figures.guest_errors += found.errors
    figures.host_errors += found.host_errors
    if found.first_error:
        figures.note(found.first_error)

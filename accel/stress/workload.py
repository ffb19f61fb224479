"""Stress from a workload file: its own guest runs, and its ``[[change]]`` tables are made one after the other.

Layer: beside `runner`. When they are due, the tables say for ordinary runs; here `Pace` does. First each table is
made once, then those that repeat go back and forth, one after the other, as long as the guest runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from attrs import evolve

from accel.errors import AccelError, UsageError
from accel.result import Outcome, RunResult
from accel.stress.figures import Combination, Figures
from accel.stress.judgement import Judgement
from accel.stress.pace import Pace
from accel.stress.runner import GRACE, Live, MemoryCounts, StressSpec, add_judgement, add_result
from accel.workload.changes import asked, restored
from accel.workload.expect import judge
from accel.workload.schema import Accelerators, ChangeSpec, Workload
from accel.workload.session import Session


def workload_combinations(name: str, workload: Workload, spec: StressSpec) -> tuple[Combination, ...]:
    """Return what is run: the workload with each plan and hold of `spec`, whose touches and vCPUs do not count."""
    return tuple(Combination(name, workload.machine.cpus, hold, plan) for plan in spec.plans for hold in spec.holds)


def stress_workload(
    name: str, workload: Workload, spec: StressSpec, live: Live = lambda figures: None
) -> Iterator[Figures]:
    """Run all combinations and yield what came of each; see `run_stress`.

    Raises:
        UsageError: The workload has no change that repeats.
        AccelError: The host's side failed, or the workload cannot run; figures as with `run_stress`.
        KeyboardInterrupt: After the figures of the combination that it ended.
    """
    if all(spec.every is None for spec in workload.changes):
        raise UsageError(f"{name}: there is no [[change]] that repeats; give one an `every`")
    for one in workload_combinations(name, workload, spec):
        figures = Figures(one)
        pace = Pace(figures, spec.seconds, spec.updates, spec.rate, live)
        variant = _variant(workload, spec.accelerator, one)
        try:
            while not pace.over:
                _round(variant, name, figures, pace)
        except KeyboardInterrupt:
            yield figures
            raise
        except AccelError:
            if figures.updates:
                yield figures
            raise
        figures.complete = True
        yield figures


def _variant(workload: Workload, accelerator: str, one: Combination) -> Workload:
    """Return the workload on this accelerator, with these options, expecting only what the guest itself does."""
    options = {name: dict(values) for name, values in workload.accelerator_options.items()}
    options.setdefault(accelerator, {}).update(plan=one.plan, hold=one.hold)
    expect = evolve(workload.expect, accelerator=None, spurious_faults=None, min_spurious_faults=None, min_changes=None)
    machine = evolve(workload.machine, accelerators=Accelerators((accelerator,)))
    return evolve(workload, machine=machine, accelerator_options=options, expect=expect)


def _round(workload: Workload, name: str, figures: Figures, pace: Pace) -> None:
    """Run the workload once, to its end or until it is over."""
    with Session(workload, name) as session:
        before = MemoryCounts.of(session.machine)
        run = session.machine.start()
        try:
            pace.change(run, _changer(session, workload))
        finally:
            stopped = not run.done
            session.machine.stop()
            result = run.wait(GRACE)
            expected = result.outcome is workload.expect.outcome
            add_result(figures, result, MemoryCounts.of(session.machine) - before, crash_expected=expected)
            if not (stopped and result.outcome is Outcome.STOPPED):
                add_judgement(figures, _judgement(workload, session, result, figures.updates))


def _judgement(workload: Workload, session: Session, result: RunResult, changes: int) -> Judgement:
    console = session.console
    verdicts = judge(workload.expect, result, console.captured, truncated=console.truncated, changes=changes)
    failed = [verdict for verdict in verdicts if not verdict.passed]
    return Judgement(1, len(failed), 0, str(failed[0]) if failed else "")


def _changer(session: Session, workload: Workload) -> Callable[[], float]:
    """Return what makes the next change and returns the seconds that it took."""
    order = _in_order(workload.changes)

    def change() -> float:
        spec, back = next(order)
        mount = session.mounts[spec.region]
        state = restored(spec, mount) if back else asked(spec, mount)
        started = time.perf_counter()
        mount.become(state, spec.atomic)
        return time.perf_counter() - started

    return change


def _in_order(specs: Sequence[ChangeSpec]) -> Iterator[tuple[ChangeSpec, bool]]:
    """Yield changes without end, and whether each is to be taken back."""
    yield from ((spec, False) for spec in specs)
    repeated = [spec for spec in specs if spec.every is not None]
    while True:
        yield from ((spec, True) for spec in repeated)
        yield from ((spec, False) for spec in repeated)

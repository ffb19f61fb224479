"""That the accel-blocker holds in every interleaving of its scenarios, and that its plausible mistakes are found.

Each scenario is explored for both kinds of gate, all of it up to its bound of preemptions; each mutant is looked for in
the very run that the shipped source passes.
"""

from __future__ import annotations

from functools import cache

import pytest
from blocker_mutants import LOCKED, Mutant
from mutants_blocker_doors import MUTANTS as DOORS
from mutants_blocker_gates import MUTANTS as GATES
from mutants_blocker_wakeup import MUTANTS as WAKEUP

import accel.testing.scenarios.blocking
import accel.testing.scenarios.blocking_ends  # noqa: F401 - defines scenarios
from accel.testing.explore.report import step_table, summary
from accel.testing.explore.scenario import SCENARIOS
from accel.testing.explore.schedule import schedule_text
from accel.testing.explore.search import Exploration

MUTANTS = [*GATES, *WAKEUP, *DOORS]
KINDS = {"plain": (), "locked": (LOCKED,)}

#: The bound of each scenario, and fewer schedules than it has within that, with either kind of gate. The schedules of
#: lower bounds, which are tried first, are counted again.
FLOORS = {
    "inhibit": (1, 1000),
    "inhibit-vcpus": (2, 600),
    "two-spinning": (1, 120),
    "inhibit-nested": (3, 130),
    "vm-calls": (2, 400),
    "inhibit-in-a-row": (3, 400),
    "inhibit-in-a-hurry": (3, 200),
    "two-inhibitors": (2, 200),
    "two-inhibitors-kick": (2, 300),
    "vcpu-comes-and-goes": (2, 400),
    "inhibit-times-out": (2, 800),
    "poison": (2, 1000),
    "close": (3, 250),
}


@cache
def explored(name: str, kind: str, more: int = 0) -> Exploration:
    """Return what came of exploring a scenario of the shipped source, with `more` preemptions than its bound."""
    return SCENARIOS[name].explorer(KINDS[kind]).systematic(SCENARIOS[name].bound + more)


def passes(done: Exploration) -> None:
    """Print what was explored; fail with the reason if something was found or left out."""
    print(summary(done))
    assert done.found is None, summary(done)
    assert done.exhaustive


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FLOORS)
def test_explore_blocker_scenario_has_no_violation_within_its_bound(name: str, kind: str) -> None:
    bound, floor = FLOORS[name]
    done = explored(name, kind)
    passes(done)
    assert done.bound == bound
    # Far fewer would mean that accesses are no longer visible.
    assert done.counts.schedules >= floor


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FLOORS)
def test_explore_blocker_scenario_has_no_violation_within_one_preemption_more(name: str, kind: str) -> None:
    passes(explored(name, kind, 1))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_explore_blocker_mutant_is_found_and_its_schedule_repeats_it(mutant: Mutant) -> None:
    scenario = SCENARIOS[mutant.scenario]
    done = scenario.explorer(mutant.patches).systematic(scenario.bound)
    assert done.found is not None, summary(done)
    assert done.found.violation.kind == mutant.kind, summary(done)
    assert mutant.tells in str(done.found.violation)
    assert done.found.preemptions <= scenario.bound <= 3
    schedule = schedule_text(done.found.schedule)
    table = step_table(scenario.explorer(mutant.patches), schedule)
    print(f"{summary(done)}\n{schedule}\n{table}")
    assert table.outcome == f"{mutant.kind}: {done.found.violation}"
    assert not table.off


@pytest.mark.parametrize("name", sorted({mutant.scenario for mutant in MUTANTS}))
def test_explore_blocker_scenario_of_mutants_passes_without_them(name: str) -> None:
    """The same run, of the source as it is shipped, with each kind of gate that a mutant changes."""
    changed = {"locked" if LOCKED in one.patches else "plain" for one in MUTANTS if one.scenario == name}
    for kind in changed:
        passes(explored(name, kind))

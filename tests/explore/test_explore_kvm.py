"""The KVM plugin and the core around it, over all interleavings up to a bound; and mistakes in both, each found.

Also that the kernel which stands in for KVM does what the scenarios rely on.
"""

from __future__ import annotations

import pytest
from attrs import evolve
from mutants_kvm import MUTANTS, Mutant

import accel_kvm.scenarios.changes
import accel_kvm.scenarios.failures
import accel_kvm.scenarios.kicks  # noqa: F401 - they register their scenarios
from accel.testing.explore.report import step_table, summary
from accel.testing.explore.scenario import SCENARIOS, Scenario
from accel.testing.explore.schedule import schedule_text
from accel.testing.explore.world import Patch
from accel.testing.scenarios.stage import GUARDED

NAMES = sorted(name for name, one in SCENARIOS.items() if one.module.startswith("accel_kvm."))
RIGHT = [name for name in NAMES if not SCENARIOS[name].wrong]
WRONG = [name for name in NAMES if SCENARIOS[name].wrong]


def _holds(one: Scenario, bound: int, capsys) -> None:
    explored = one.explorer().systematic(bound)
    with capsys.disabled():
        print(f"\n{one.name}: {summary(explored)}", end=" ")
    assert explored.found is None, summary(explored)
    assert explored.exhaustive


@pytest.mark.timeout(600)  # seconds each on a quiet machine
@pytest.mark.parametrize("name", RIGHT)
def test_explore_kvm_scenario_holds_up_to_its_bound(name: str, capsys) -> None:
    _holds(SCENARIOS[name], SCENARIOS[name].bound, capsys)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", RIGHT)
def test_explore_kvm_scenario_holds_with_one_more_preemption(name: str, capsys) -> None:
    _holds(SCENARIOS[name], SCENARIOS[name].bound + 1, capsys)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", RIGHT)
def test_explore_kvm_scenario_holds_with_all_that_the_big_lock_guards_visible(name: str, capsys) -> None:
    one = SCENARIOS[name]
    _holds(evolve(one, instrumented=(*one.instrumented, *GUARDED, "accel_kvm.slots")), one.bound, capsys)


@pytest.mark.parametrize("name", WRONG)
def test_explore_kvm_scenario_that_shows_a_mistake_is_found_and_replays(name: str) -> None:
    one = SCENARIOS[name]
    explored = one.explorer().systematic(one.bound)
    assert explored.found is not None, summary(explored)
    assert explored.found.violation.kind == one.wrong
    table = step_table(one.explorer(), schedule_text(explored.found.schedule))
    assert (table.off, table.outcome) == ("", f"{one.wrong}: {explored.found.violation}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_explore_kvm_mutant_is_found_within_the_bound_and_replays(mutant: Mutant) -> None:
    one = SCENARIOS[mutant.scenario]
    explored = one.explorer([mutant.patch]).systematic(one.bound)
    assert explored.found is not None, summary(explored)
    violation = f"{explored.found.violation.kind}: {explored.found.violation}"
    assert violation.startswith(mutant.found)
    table = step_table(one.explorer([mutant.patch]), schedule_text(explored.found.schedule))
    assert (table.off, table.outcome) == ("", violation)


@pytest.mark.parametrize(
    ("name", "module", "old", "new"),
    [
        ("kvm-time-out", "failures", "            self.refused = True", "            raise"),
        (
            "kvm-undo",
            "scene",
            "    except MemorySlotError:\n        return",
            "    except MemorySlotError:\n        raise",
        ),
    ],
)
def test_explore_kvm_scenario_comes_to_the_failure_that_it_is_about(name: str, module: str, old: str, new: str) -> None:
    patch = Patch(f"accel_kvm.scenarios.{module}", old, new)
    explored = SCENARIOS[name].explorer([patch]).systematic(1)
    assert explored.found is not None
    assert explored.found.violation.kind == "exception"


@pytest.mark.parametrize(
    "condition", ["[OLD, NOTHING], ", ", [NOTHING, NOTHING])", "[NOTHING, NEW], ", ", [NEW, NEW])"]
)
def test_explore_kvm_hot_plug_comes_to_everything_that_it_allows(condition: str) -> None:
    without = Patch("accel_kvm.scenarios.changes", condition, "" if condition.endswith(" ") else ")")
    assert SCENARIOS["kvm-hot-plug"].explorer([without]).systematic(2).found is not None

"""What the tests of the mock's scenarios have in common: a right one holds, a mistake is found and repeats."""

from __future__ import annotations

from accel.testing.explore.report import step_table, summary
from accel.testing.explore.scenario import Scenario
from accel.testing.explore.schedule import schedule_text


def holds(scenario: Scenario, bound: int) -> None:
    """Explore all schedules up to a bound, and find nothing."""
    explored = scenario.explorer().systematic(bound)
    print(f"{scenario.name}: {summary(explored)}")
    assert explored.found is None, summary(explored)
    assert explored.exhaustive
    # Each has several orders even without a preemption; a scenario that does nothing has one.
    assert explored.counts.schedules > 2


def is_found_and_repeats(scenario: Scenario, text: str) -> None:
    """Explore up to the scenario's bound, find its mistake in these words, and repeat it from its schedule."""
    explorer = scenario.explorer()
    explored = explorer.systematic(scenario.bound)
    print(f"{scenario.name}: {summary(explored)}")
    found = explored.found
    assert found is not None, "nothing was found"
    assert found.violation.kind == scenario.wrong
    assert text in str(found.violation)
    table = step_table(explorer, schedule_text(found.schedule))
    assert not table.off
    assert table.outcome.startswith(scenario.wrong)

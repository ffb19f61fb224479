"""What the search finds, how it says it, and what it does with schedules and scenarios that do not fit."""

from __future__ import annotations

import pytest

from accel.errors import UsageError
from accel.testing.explore.report import step_table, summary
from accel.testing.explore.schedule import parse_schedule, schedule_text
from accel.testing.explore.search import Exploration, Explorer
from accel.testing.explore.world import Patch, World


def explorer(name: str, *patches: Patch, limit: int = 500, timeouts: bool = False) -> Explorer:
    """Return an explorer of a small run, in a world of its own."""
    world = World(("small_scenarios",), patches, copied=("small_scenarios",))
    return Explorer(world, getattr(world.load("small_scenarios"), name), limit=limit, timeouts=timeouts)


def violation(explored: Exploration) -> str:
    return "" if explored.found is None else f"{explored.found.violation.kind}: {explored.found.violation}"


FOUND = {
    "Counter": (1, "invariant: 1 of 2 counted"),
    "Crossed": (1, "deadlock: nobody can go on: left: acquire a lock; right: acquire a lock"),
    "LostWakeUp": (1, "deadlock: nobody can go on: waiter: wait for an event"),
    "Spins": (0, "livelock: not over after 500 steps; spinner: read Spins.ready"),
    "SpinsAlone": (0, "livelock: not over after 500 steps; left: read list[]"),
    "Raises": (1, "exception: reader: KeyError: 'a'"),
    "Judged": (0, "exception: at the end: KeyError: 'judged'"),
    "Starts": (2, "invariant: it counted, and lives"),
    "Endless": (0, "deadlock: nobody can go on: left: wait for an event; right: wait for an event"),
}


@pytest.mark.parametrize("name", FOUND)
def test_search_finds_with_as_few_preemptions_as_it_takes(name: str) -> None:
    preemptions, text = FOUND[name]
    explored = explorer(name).systematic(3)
    assert violation(explored) == text
    assert explored.found is not None
    assert explored.found.preemptions == preemptions
    assert not explored.exhaustive
    if preemptions:
        fewer = explorer(name).systematic(preemptions - 1)
        assert violation(fewer) == ""
        assert fewer.exhaustive


@pytest.mark.parametrize("name", FOUND)
def test_replay_in_another_world_shows_the_same(name: str) -> None:
    found = explorer(name).systematic(3).found
    assert found is not None
    schedule = schedule_text(found.schedule)
    first, second = (step_table(explorer(name), schedule) for _ in range(2))
    assert not first.off
    assert first.outcome.partition(";")[0] == f"{found.violation.kind}: {found.violation}".partition(";")[0]
    assert first.tasks[: len(found.tasks)] == found.tasks
    assert str(first) == str(second)


@pytest.mark.parametrize(("name", "schedules"), [("Guarded", 2), ("Daemon", 1)])
def test_search_of_what_is_right_covers_all(name: str, schedules: int) -> None:
    explored = explorer(name).systematic(5)
    assert violation(explored) == ""
    assert explored.exhaustive
    assert explored.unlimited
    assert explored.counts.schedules == schedules
    assert f"{schedules} schedules with any number of preemptions, all of them" in summary(explored)


def test_search_tells_who_watches_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    searching = explorer("Guarded", limit=500)
    searching.watch = lambda counts, preemptions: told.append((counts.schedules + counts.cut, preemptions))
    searching.systematic(3)
    assert told == []
    busy = explorer("Busy")
    busy.watch = lambda counts, preemptions: told.append((counts.schedules + counts.cut, preemptions))
    explored = busy.systematic(2)
    assert [done for done, _ in told] == list(range(100, explored.counts.schedules + explored.counts.cut + 1, 100))
    assert told[-1][1] == 2


def test_search_that_gives_up_says_that_there_was_more() -> None:
    explored = explorer("Counter").systematic(0)
    assert explored.exhaustive
    assert not explored.unlimited
    explored = explorer("Crossed").systematic(3, most=1)
    assert not explored.exhaustive
    assert explored.counts.schedules + explored.counts.cut == 1
    assert "1 schedule" in summary(explored)


def test_search_lets_waits_time_out_early_only_where_it_is_asked_to() -> None:
    assert violation(explorer("TimesOut").systematic(3)) == ""
    explored = explorer("TimesOut", timeouts=True).systematic(3)
    assert violation(explored) == "invariant: not told in 1 s"
    assert explored.found is not None
    assert schedule_text(explored.found.schedule) == "A!."
    assert explored.found.preemptions == 1


# at random


def test_search_at_random_with_a_seed_does_the_same_twice() -> None:
    results = [explorer("Counter").at_random(7, 200) for _ in range(2)]
    texts = [(schedule_text(one.found.schedule), one.counts) for one in results if one.found is not None]
    assert len(texts) == 2
    assert texts[0] == texts[1]
    assert not results[0].exhaustive
    assert results[0].bound is None


def test_search_at_random_of_what_is_right_tries_as_many_as_it_was_told() -> None:
    explored = explorer("Guarded").at_random(1, 50)
    assert violation(explored) == ""
    assert explored.counts.schedules == 50
    assert not explored.exhaustive


# schedules


def test_step_table_has_a_row_for_each_step_that_others_could_notice() -> None:
    table = step_table(explorer("Counter"), "A@2 B.")
    assert [(row.task, row.text) for row in table.rows] == [
        (0, "read Counter.count"),
        (1, "read Counter.count"),
        (1, "write Counter.count = 1"),
        (0, "write Counter.count = 1"),
    ]
    assert {row.place.split()[1] for row in table.rows} == {"add"}
    assert str(table).splitlines()[:3] == [
        "A = left",
        "B = right",
        f"   1  A  read Counter.count       {table.rows[0].place}",
    ]
    assert str(table).endswith("=>  invariant: 1 of 2 counted")


def test_step_table_of_a_schedule_that_does_not_fit_says_where() -> None:
    table = step_table(explorer("Counter"), "A@2 C.")
    assert table.off == "part 2, C.: that task cannot go on there"
    assert str(table).endswith("the schedule does not fit this scenario: part 2, C.: that task cannot go on there")
    assert step_table(explorer("Counter"), "A@2 B!.").off.startswith("part 2, B!.")


@pytest.mark.parametrize(("text", "part"), [("A@17 b.", "'b.'"), ("A", "'A'"), ("A@.", "'A@.'"), ("A@1, B.", "'A@1,'")])
def test_schedule_of_other_text_is_refused_with_the_part(text: str, part: str) -> None:
    with pytest.raises(UsageError, match=r"A@17, B\. or A!@23") as caught:
        parse_schedule(text)
    assert part in str(caught.value)


def test_schedule_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="it is empty"):
        parse_schedule(" ")


def test_schedule_text_is_read_back() -> None:
    text = "A@17 B. A!@23 C!."
    assert schedule_text(parse_schedule(text)) == text


# scenarios that are none


@pytest.mark.parametrize("name", ["Fickle", "FickleRight", "FickleEnd"])
def test_search_of_what_does_not_run_the_same_way_twice_says_so(name: str) -> None:
    with pytest.raises(UsageError, match="does not run the same way twice"):
        explorer(name).systematic(3)


def test_patch_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(UsageError, match="stands in it 0 times, not once"):
        explorer("Counter", Patch("small_scenarios", "no such text", ""))


def test_patch_changes_the_copy_only() -> None:
    patch = Patch(
        "small_scenarios",
        "with self.lock:\n            super().add()\n",
        "with self.lock:\n            pass\n        super().add()\n",
    )
    assert violation(explorer("Guarded", patch).systematic(1)) == "invariant: 1 of 2 counted"
    assert violation(explorer("Guarded").systematic(1)) == ""

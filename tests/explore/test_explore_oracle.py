"""The explorer against brute force: same outcomes, whatever it leaves out.

This is what shows that nothing is lost by cutting off known orders, by passing over data that one mutex guards, by not
stopping at releases, and by taking back no preemption that came to nothing.
"""

from __future__ import annotations

from random import Random

import pytest
from brute_force import DEADLOCK, BruteForce
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_programs import LOCKS, VARIABLES, Operation, Outcome, Program

from accel.testing.explore.search import Exploration, Explorer
from accel.testing.explore.world import World

#: More preemptions than any of these programs has places for.
ALL = 60

#: A few programs in a thousand have more states than this, and so many orders that one takes the explorer minutes.
FEW_STATES = 600

WORLD = World(("tiny_programs",), copied=("tiny_programs",))

variables = st.integers(0, VARIABLES - 1)
locks = st.integers(0, LOCKS - 1)
accesses = st.one_of(
    st.tuples(st.just("read"), variables),
    st.tuples(st.sampled_from(["write", "add"]), variables, st.integers(1, 3)),
)
signals = st.tuples(st.sampled_from(["set", "clear", "look"]), locks)
waits = st.tuples(st.sampled_from(["await_", "await_for", "wait", "wait_for", "notify", "notify_all"]), locks)
attempts = st.tuples(st.sampled_from(["try_", "within"]), locks)


def lists(one: st.SearchStrategy[Operation], most: int) -> st.SearchStrategy[tuple[Operation, ...]]:
    return st.lists(one, max_size=most).map(tuple)


def guarded(inside: st.SearchStrategy[tuple[Operation, ...]]) -> st.SearchStrategy[tuple[Operation, ...]]:
    return st.tuples(st.sampled_from([("take", "drop"), ("lock", "unlock")]), locks, inside).map(
        lambda one: ((one[0][0], one[1]), *one[2], (one[0][1], one[1]))
    )


def programs(one: st.SearchStrategy[Operation], *, most: int = 4, threads: int = 3) -> st.SearchStrategy[Program]:
    parts = st.recursive(lists(one, 2), lambda inside: st.one_of(guarded(inside), st.tuples(inside, inside).map(flat)))
    bodies = st.lists(parts, min_size=1, max_size=2).map(flat).filter(lambda body: len(body) <= most + 2)
    return st.lists(bodies, min_size=2, max_size=threads).map(tuple)


def flat(parts: tuple[tuple[Operation, ...], ...] | list[tuple[Operation, ...]]) -> tuple[Operation, ...]:
    return tuple(one for part in parts for one in part)


def explored(program: Program, bound: int, *, timeouts: bool) -> tuple[Exploration, set[Outcome]]:
    """Explore a program; return what came of it, and its outcomes."""
    seen: set[Outcome] = set()
    kind = WORLD.load("tiny_programs").Tiny
    explorer = Explorer(WORLD, lambda: kind(program, seen.add), timeouts=timeouts)
    # Once to learn what is shared: before all of it is visible, a preemption may count for more.
    explorer.systematic(bound)
    seen.clear()
    return explorer.systematic(bound), seen


@pytest.fixture(autouse=True)
def nothing_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learn from the search alone: what is tried at random before it would go beyond the bound."""
    monkeypatch.setattr("accel.testing.explore.search._LEARNING", 0)


def agree(program: Program, bound: int | None, *, timeouts: bool, most: int | None = None) -> None:
    """Compare the explorer with brute force; a drawn program with more than `most` states is passed over."""
    oracle = BruteForce(program, everywhere=bound is None, timeouts=timeouts)
    expected = oracle.outcomes(bound)
    if most is not None:
        assume(oracle.walked <= most)
    exploration, seen = explored(program, ALL if bound is None else bound, timeouts=timeouts)
    if exploration.found is None:
        assert seen == expected
        assert exploration.exhaustive
        assert bound is not None or exploration.unlimited
    else:
        assert exploration.found.violation.kind == "deadlock", exploration.found.violation
        assert DEADLOCK in expected
        assert seen <= expected
        if bound is not None:
            fewest = exploration.found.preemptions
            assert DEADLOCK in oracle.outcomes(fewest)
            assert fewest == 0 or DEADLOCK not in oracle.outcomes(fewest - 1)


#: Programs that told something apart once: what is left out, what a preemption costs, what is the same.
TOLD = [
    # What a preempted thread does next lets another go on: to take the preemption back is not in vain.
    (((("write", 0, 1), ("set", 0), ("write", 0, 2)), (("read", 0), ("write", 1, 1), ("await_", 0), ("write", 1, 2)),
      (("read", 1), ("read", 0))), 1, False),
    # The same for a lock that it holds.
    (((("take", 0), ("write", 0, 1), ("look", 1), ("drop", 0), ("write", 0, 2)),
      (("read", 0), ("set", 0), ("take", 0), ("clear", 0), ("drop", 0)), (("look", 0), ("read", 0))), 1, False),
    # What costs nothing is left out, so that a time-out that costs something comes first.
    (((("wait_for", 0), ("await_for", 0), ("await_for", 1)), (("set", 1), ("try_", 0), ("set", 1)),
      (("read", 0), ("wait_for", 1))), 2, True),
    # The release in a wait is to be seen by who tries.
    (((("add", 1, 1), ("notify", 1), ("await_", 0)), (("try_", 0),),
      (("wait_for", 0), ("set", 0), ("read", 1))), 2, False),
    # Time-outs are left out with no preemption left, and nothing else is.
    (((("write", 0, 3),), (("write", 1, 1),), (("await_for", 1), ("wait_for", 0), ("add", 1, 1))), 2, True),
    # Two readers change places: sums of hashes that are linear come to the same.
    (((("look", 0), ("write", 1, 2), ("read", 1)), (("read", 1), ("read", 1)),
      (("take", 1), ("write", 1, 1), ("wait_for", 1), ("drop", 1))), 1, False),
    # An order is come to with fewer preemptions only later.
    (((("read", 0), ("add", 0, 1), ("look", 0)), (("read", 1), ("write", 0, 1)),
      (("add", 0, 1), ("look", 0), ("set", 0))), 1, False),
]  # fmt: skip


@pytest.mark.parametrize(("program", "bound", "timeouts"), TOLD)
def test_search_of_programs_that_told_mistakes_apart(program: Program, bound: int, timeouts: bool) -> None:
    for preemptions in (bound, bound + 1):
        agree(program, preemptions, timeouts=timeouts)


@settings(deadline=None, max_examples=60)
@given(programs(st.one_of(accesses, accesses, signals)))
def test_search_of_reads_writes_and_locks_finds_every_outcome(program: Program) -> None:
    agree(program, None, timeouts=True, most=FEW_STATES)


@settings(deadline=None, max_examples=60)
@given(programs(st.one_of(accesses, signals, waits, attempts), most=3), st.booleans())
def test_search_of_everything_finds_every_outcome(program: Program, timeouts: bool) -> None:
    agree(program, None, timeouts=timeouts, most=FEW_STATES)


@settings(deadline=None, max_examples=100)
@given(programs(st.one_of(accesses, accesses, signals, waits, attempts)), st.integers(0, 3), st.booleans())
def test_search_with_a_bound_finds_what_so_many_preemptions_can_do(
    program: Program, bound: int, timeouts: bool
) -> None:
    agree(program, bound, timeouts=timeouts, most=FEW_STATES)


def drawn(random: Random, most: int) -> list[Operation]:
    """Return operations at random: unlike what Hypothesis makes, most of them are not small."""
    made: list[Operation] = []
    while len(made) < most:
        kind, number = random.random(), random.randrange(2)
        if kind < 0.5:
            what = random.choice(["read", "write", "add"])
            made.append((what, number) if what == "read" else (what, number, random.randint(1, 3)))
        elif kind < 0.7:
            made.append((random.choice(["set", "set", "look", "look", "clear", "await_"]), number))
        elif kind < 0.85:
            first, last = random.choice([("take", "drop"), ("take", "drop"), ("lock", "unlock")])
            made += [(first, number), *drawn(random, random.randint(1, 2)), (last, number)]
        else:
            made.append((random.choice(["try_", "within", "await_for", "wait_for", "notify", "notify_all"]), number))
    return made


def agree_at_random(seed: int, count: int) -> None:
    """Compare the explorer with brute force over so many programs of three threads."""
    random = Random(seed)
    for _ in range(count):
        program = tuple(tuple(drawn(random, random.randint(1, 3))) for _ in range(3))
        bound, timeouts = random.choice([0, 1, 1, 2, 2]), random.random() < 0.3
        if sum(map(len, program)) <= 11:
            print(seed, program, bound, timeouts)
            agree(program, bound, timeouts=timeouts)


@pytest.mark.parametrize("seed", range(5))
def test_search_of_random_programs_agrees_with_brute_force(seed: int) -> None:
    agree_at_random(seed, 100)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 110))
def test_search_of_many_random_programs_agrees_with_brute_force(seed: int) -> None:
    agree_at_random(seed, 2000)

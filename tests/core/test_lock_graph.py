"""The acquisition graph: what it remembers, what closes a cycle, and whom it tells what."""

from __future__ import annotations

import itertools
import sys
import threading
import traceback
from collections.abc import Iterator

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from accel import lock_graph, locks
from accel.errors import LockError
from accel.lock_classes import BIG_LOCK, DEVICE_LOCK, GATE, SLOTS_LOCK, VCPU_THREAD, LockClass, LockUse, Mode
from accel.lock_graph import LockGraph
from accel.locks import Lock, check_order, completing, note_released, note_taken, waiting_for
from accel.read_locks import RwLock


@pytest.fixture
def graph() -> Iterator[LockGraph]:
    """A graph of the test's own, so that its mistakes are nobody else's."""
    with LockGraph() as graph:
        yield graph


def classes(names: str) -> list[LockClass]:
    """Return a class without rank for each letter."""
    return [LockClass(name) for name in names]


def nest(*lock_classes: LockClass) -> None:
    """Take new locks of these classes, each inside the one before."""
    taken = [Lock(one) for one in lock_classes]
    for lock in taken:
        lock.acquire()
    for lock in reversed(taken):
        lock.release()


def refused(*lock_classes: LockClass) -> LockError:
    """Take locks of these classes, the last of which is refused; return the error."""
    *outer, last = [Lock(one) for one in lock_classes]
    for lock in outer:
        lock.acquire()
    try:
        with pytest.raises(LockError) as caught:
            last.acquire()
        assert not last.held()
        return caught.value
    finally:
        for lock in reversed(outer):
            lock.release()


def pairs(graph: LockGraph) -> set[str]:
    return {f"{edge.held.name}{edge.wanted.name}" for edge in graph.edges}


def test_graph_finds_a_cycle_of_two_classes_although_nobody_waited(graph: LockGraph) -> None:
    a, b = classes("ab")
    nest(a, b)
    assert str(refused(b, a)) == "a is taken while holding b; elsewhere the order is a → b"


def test_graph_finds_a_cycle_through_several_classes_and_several_threads(graph: LockGraph, spawn) -> None:
    a, b, c, d = classes("abcd")
    for outer, inner in ((a, b), (b, c), (c, d)):
        spawn(lambda outer=outer, inner=inner: nest(outer, inner)).join()
    assert (
        str(spawn(lambda: refused(d, a)).join()) == "a is taken while holding d; elsewhere the order is a → b → c → d"
    )


def test_graph_remembers_nothing_of_what_it_refused(graph: LockGraph) -> None:
    a, b, c = classes("abc")
    nest(a, b)
    # c → a is harmless, b → a is not: neither is remembered.
    refused(b, c, a)
    assert pairs(graph) == {"ab", "bc"}
    nest(a, c)


def test_graph_records_each_pair_once_with_the_stacks_of_the_first_time(graph: LockGraph) -> None:
    a, b = classes("ab")

    def first() -> None:
        with Lock(a):
            inner()

    def inner() -> None:
        with Lock(b):
            pass

    first()
    nest(a, b)
    (edge,) = graph.edges
    assert [call.split()[0] for call in edge.held_stack[:2]] == [
        "first",
        "test_graph_records_each_pair_once_with_the_stacks_of_the_first_time",
    ]
    assert [call.split()[0] for call in edge.wanted_stack[:2]] == ["inner", "first"]
    line = first.__code__.co_firstlineno
    assert edge.held_stack[0].endswith(f"test_lock_graph.py:{line + 1})")
    assert edge.wanted_stack[1].endswith(f"test_lock_graph.py:{line + 2})")


def test_graph_names_the_place_of_a_lock_whose_taker_has_returned(graph: LockGraph) -> None:
    a, b = classes("ab")
    lock = Lock(a)

    def take() -> None:
        lock.acquire()

    take()
    nest(b)
    lock.release()
    (edge,) = graph.edges
    assert len(edge.held_stack) == 1
    assert edge.held_stack[0].startswith("take ")


def test_graph_has_no_edge_for_a_lock_that_is_held_already(graph: LockGraph) -> None:
    a, b = classes("ab")
    outer, inner = Lock(a), Lock(b)
    with outer, outer, inner, outer:
        pass
    assert [f"{edge.held.name}{edge.wanted.name}" for edge in graph.edges] == ["ab"]


def test_graph_lets_locks_with_a_rank_come_in_order_only_however_far_apart(graph: LockGraph) -> None:
    (own,) = classes("o")
    nest(SLOTS_LOCK, own)
    error = refused(own, BIG_LOCK)
    assert str(error) == "big_lock is taken while holding o; elsewhere the order is big_lock → slots_lock → o"
    assert "declared: big_lock (rank 10) is taken before rank 40" in error.report
    nest(own, LockClass("later", 50))


def test_graph_of_ranks_alone_needs_no_witness(graph: LockGraph) -> None:
    error = refused(SLOTS_LOCK, DEVICE_LOCK)
    assert str(error) == "device_lock is taken while holding slots_lock; it must be taken before slots_lock"
    assert "declared: device_lock (rank 20) is taken before rank 40" in error.report


def test_graph_prefers_what_was_seen_to_what_is_declared(graph: LockGraph) -> None:
    nest(BIG_LOCK, SLOTS_LOCK)
    error = refused(SLOTS_LOCK, BIG_LOCK)
    assert "it must be taken before slots_lock" in str(error)
    assert "declared:" not in error.report


def test_graph_refuses_two_of_a_class_unless_they_nest(graph: LockGraph) -> None:
    (a,) = classes("a")
    error = refused(a, a)
    assert str(error) == "a is taken while holding a; one at a time"
    assert "possible recursive locking detected" in error.report
    nest(LockClass("n", nests=True), LockClass("m"))
    nests = LockClass("n", nests=True)
    nest(nests, nests)


def test_graph_judges_nesting_classes_of_one_rank_by_what_was_seen(graph: LockGraph) -> None:
    one, other = (LockClass(name, 7, nests=True) for name in "xy")
    nest(one, other)
    assert "elsewhere the order is x → y" in str(refused(other, one))


def test_graph_ignores_attempts_that_do_not_wait_but_not_what_they_took(graph: LockGraph) -> None:
    a, b = classes("ab")
    nest(a, b)
    lock = Lock(a)
    with Lock(b):
        assert lock.acquire(blocking=False)
        lock.release()
    assert pairs(graph) == {"ab"}
    c = LockClass("c")
    lock.acquire(blocking=False)
    nest(c)
    lock.release()
    assert "elsewhere the order is a → c" in str(refused(c, a))


def test_graph_holds_attempts_that_do_not_wait_to_the_ranks(graph: LockGraph) -> None:
    with Lock(SLOTS_LOCK):
        with pytest.raises(LockError, match="it must be taken before"):
            Lock(BIG_LOCK).acquire(blocking=False)
        free = Lock(LockClass("free"))
        assert free.acquire(blocking=False)
        free.release()


def test_graph_goes_on_through_a_class_that_was_reached_as_a_reader_before(graph: LockGraph) -> None:
    """The short way ends at readers who pass each other; the long way comes as a writer."""
    start, between, end = classes("sbe")
    middle = RwLock(LockClass("m"), fair=False)
    with Lock(start), middle.read():
        pass
    nest(start, between)
    with Lock(between), middle.write():
        pass
    with middle.read(), Lock(end):
        pass
    assert "elsewhere the order is s → b → m → e" in str(refused(end, start))


def test_graph_report_has_a_column_for_each_of_the_parties(graph: LockGraph) -> None:
    a, b, c = classes("abc")
    nest(a, b)
    nest(b, c)
    report = refused(c, a).report
    assert "Chain exists of:\n   a --> b --> c\n" in report
    table = report[report.index("       CPU0") : report.index(" *** DEADLOCK")]
    assert [line.split() for line in table.splitlines()[2:] if line] == [
        ["lock(c);"], ["lock(a);"], ["lock(b);"], ["lock(b);"], ["lock(c);"], ["lock(a);"],
    ]  # fmt: skip
    columns = [(len(line) - len(line.lstrip())) // 24 for line in table.splitlines()[2:] if line]
    assert columns == [0, 1, 2, 1, 2, 0]
    assert report.index("-> #2 (c)") < report.index("-> #1 (b)") < report.index("-> #0 (a)")


def test_graph_report_stands_in_the_traceback(graph: LockGraph) -> None:
    a, b = classes("ab")
    nest(a, b)
    error = refused(b, a)
    assert "possible circular locking dependency detected" in "".join(traceback.format_exception(error))
    assert "1 lock held by MainThread/" in error.report


def test_graph_that_is_left_gives_place_to_the_one_before() -> None:
    a, b = classes("ab")
    outer = lock_graph.current
    with LockGraph() as graph:
        assert lock_graph.current is graph
        nest(a, b)
    assert lock_graph.current is outer
    with LockGraph():
        nest(b, a)
    assert not any(edge.held.lock_class in (a, b) for edge in outer.edges)


def test_graph_validates_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCEL_LOCKDEP")
    assert not locks.validation_enabled()
    with LockGraph():
        assert locks.validation_enabled()
        refused(BIG_LOCK, BIG_LOCK)
    assert not locks.validation_enabled()


def test_graph_of_many_threads_at_once_loses_no_edge(graph: LockGraph, spawn) -> None:
    many = classes("abcdefghij")
    barrier = threading.Barrier(len(many))

    def work(index: int) -> None:
        barrier.wait(60)
        for inner in many[index + 1 :]:
            nest(many[index], inner)

    for thread in [spawn(lambda index=index: work(index)) for index in range(len(many))]:
        thread.join()
    assert pairs(graph) == {f"{outer.name}{inner.name}" for outer, inner in itertools.combinations(many, 2)}


# waits


def test_wait_for_who_takes_what_the_waiter_holds_is_refused(graph: LockGraph) -> None:
    work, lock = classes("wl")
    with completing(work):
        nest(lock)
    waiting_for(work)
    with Lock(lock), pytest.raises(LockError) as caught:
        waiting_for(work)
    assert str(caught.value) == "w is waited for while holding l; elsewhere the order is w → l"
    assert "MainThread" in caught.value.report
    assert "  completing(w);" in caught.value.report
    assert "  waiting_for(w);" in caught.value.report


def test_wait_that_was_seen_first_refuses_the_lock_to_who_completes(graph: LockGraph) -> None:
    work, lock = classes("wl")
    with Lock(lock):
        waiting_for(work)
    with completing(work):
        refusal = refused(lock)
    assert str(refusal) == "l is taken while holding w; elsewhere the order is l → w"


def test_wait_of_who_completes_is_a_wait_for_itself(graph: LockGraph) -> None:
    (work,) = classes("w")
    with completing(work), completing(work), pytest.raises(LockError, match="w is waited for while holding w → w"):
        waiting_for(work)
    waiting_for(work)


def test_wait_through_two_kinds_of_work_is_found(graph: LockGraph) -> None:
    first, second, lock = classes("fsl")
    with completing(first):
        waiting_for(second)
    with completing(second):
        nest(lock)
    with Lock(lock), pytest.raises(LockError, match="elsewhere the order is f → s → l"):
        waiting_for(first)


def test_wait_is_free_without_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCEL_LOCKDEP")
    (work,) = classes("w")
    with completing(work), Lock(BIG_LOCK):
        assert locks._held.what == []
        waiting_for(work)


def test_wait_for_a_vcpu_thread_holding_any_lock_is_refused() -> None:
    for held in (one for one in locks.LOCK_CLASSES if one.mode is Mode.EXCLUSIVE):
        with (
            Lock(held),
            pytest.raises(LockError, match=f"vcpu_thread is waited for while holding {held.name}; it must"),
        ):
            waiting_for(VCPU_THREAD)


def test_wait_for_the_gates_while_holding_what_is_taken_inside_is_refused(graph: LockGraph) -> None:
    """A plugin's own lock, which the core knows nothing of."""

    class Inside:
        lock_class = GATE

    (own,) = classes("o")
    inside = Inside()
    note_taken(inside)
    nest(own)
    note_released(inside)
    with Lock(own), pytest.raises(LockError, match="gate is waited for while holding o"):
        check_order(GATE, Mode.SYNC)


# against an oracle


@frozen
class Step:
    """What one of three threads does next.

    Attributes:
        which: Of the classes that it may take, the one to take; None to release what it took last.
        again: Whether classes that it holds are among them.
        blocking: Whether it would wait.
    """

    thread: int
    which: int | None
    again: bool
    mode: Mode
    blocking: bool


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[LockClass], list[Step]]:
    """Return a few classes, and what threads do with them."""
    rare = st.integers(0, 9).map(lambda number: number == 9)
    ranks = st.sampled_from([None, None, None, 1, 2, 3])
    made = [LockClass(chr(97 + index), draw(ranks), nests=draw(rare)) for index in range(draw(st.integers(2, 4)))]
    steps = st.builds(
        Step,
        thread=st.integers(0, 2),
        which=st.sampled_from([None, None, 0, 1, 2, 3]),
        again=rare,
        mode=st.sampled_from([Mode.EXCLUSIVE, Mode.EXCLUSIVE, *Mode]),
        blocking=rare.map(lambda not_blocking: not not_blocking),
    )
    return made, draw(st.lists(steps, min_size=5, max_size=40))


Fact = tuple[LockClass, Mode, LockClass, Mode]


def waits(wanted: Mode, held: Mode) -> bool:
    """Return the rule in the words of a reader: who reads without queueing passes those who read."""
    passes = wanted.name in {"RECURSIVE", "DUTY"} and held.name in {"SHARED", "RECURSIVE", "DUTY"}
    return not passes


def closes_a_cycle(new: Fact, facts: set[Fact], known: list[LockClass]) -> bool:
    """Try every order of every choice of classes, and every choice of facts along it."""
    declared = {
        (low, Mode.EXCLUSIVE, high, Mode.EXCLUSIVE)
        for low, high in itertools.permutations(known, 2)
        if low.rank is not None and high.rank is not None and low.rank < high.rank
    }
    others = [one for one in known if one not in (new[0], new[2])]
    for length in range(len(others) + 1):
        for between in itertools.permutations(others, length):
            way = [new[2], *between, new[0]]
            choices = [
                [fact for fact in facts | declared if fact[0] is here and fact[2] is there]
                for here, there in itertools.pairwise(way)
            ]
            for chosen in itertools.product(*choices):
                ring = [new, *chosen]
                if all(waits(one[3], after[1]) for one, after in zip(ring, [*ring[1:], ring[0]], strict=True)):
                    return True
    return False


def is_wrong(held: LockUse, wanted: LockUse, blocking: bool, facts: set[Fact], known: list[LockClass]) -> bool:
    first, then = held.lock_class, wanted.lock_class
    ranked = first.rank is not None and then.rank is not None
    if first is then:
        return not then.nests and waits(wanted.mode, held.mode) and (blocking or ranked)
    if ranked and first.rank == then.rank and not then.nests:
        return True
    if ranked and first.rank > then.rank:
        return True
    return blocking and closes_a_cycle((first, held.mode, then, wanted.mode), facts, known)


@given(histories())
def test_graph_refuses_what_closes_a_cycle_and_nothing_else(history) -> None:
    known, steps = history
    graph, facts = LockGraph(), set()
    threads = [[], [], []]
    frame = sys._getframe()
    for step in steps:
        held, mode = threads[step.thread], step.mode
        free = [one for one in known if step.again or all(entry[1].lock_class is not one for entry in held)]
        if step.which is None or not free:
            del held[-1:]
            continue
        wanted = free[step.which % len(free)].uses[mode]
        wrong = any(is_wrong(entry[1], wanted, step.blocking, facts, known) for entry in held)
        try:
            graph.admit(held, wanted, waits=step.blocking)
        except LockError as error:
            assert wrong, error.report
            continue
        assert not wrong
        if step.blocking:
            facts |= {(entry[1].lock_class, entry[1].mode, wanted.lock_class, mode) for entry in held}
        if mode not in (Mode.SYNC, Mode.WAIT):
            held.append((object(), wanted, frame.f_code, frame.f_lasti))
    assert {
        (one.held.lock_class, one.held.mode, one.wanted.lock_class, one.wanted.mode) for one in graph.edges
    } == facts

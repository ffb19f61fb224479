"""The cooperative stand-ins behave as `threading` does: each program comes to the same on both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from accel.testing.explore.choosers import RandomChooser
from accel.testing.explore.engine import Engine
from accel.testing.explore.primitives import modules
from accel.testing.explore.runtime import Runtime
from accel.testing.explore.task import Violation

Program = Callable[[Any, Any], object]


def explored(program: Program, seed: int) -> object:
    """Return what a program returns or raises on the stand-ins, as the first of an execution's tasks."""
    runtime = Runtime()
    stand_ins = modules(runtime)
    runtime.local_type = stand_ins["threading"].local
    result: list[object] = []
    # Time-outs come when nobody can go on: the threads of these programs are quick.
    engine = Engine(RandomChooser(seed), shared=set(), timeouts=False)
    engine.spawn("main", lambda: result.append(outcome(program, stand_ins["threading"], stand_ins["time"])))
    runtime.engine = engine
    engine.run()
    assert engine.violation is None, engine.violation
    return result[0]


def outcome(program: Program, threads: Any, clock: Any) -> object:
    """Return what a program returns, or the kind of what it raises; messages differ between versions of Python."""
    try:
        return program(threads, clock)
    except Exception as error:
        return type(error)


def started(threads: Any, *functions: Callable[[], object]) -> None:
    """Run functions on threads, to their end."""
    running = [threads.Thread(target=function) for function in functions]
    for one in running:
        one.start()
    for one in running:
        one.join()


# one thread


def lock_is_taken_once(threads: Any, clock: Any) -> object:
    lock = threads.Lock()
    seen = [lock.acquire(), lock.locked(), lock.acquire(False), lock.acquire(timeout=0.01)]
    lock.release()
    with lock as entered:
        seen += [entered, lock.locked()]
    return [*seen, lock.locked()]


def lock_released_twice(threads: Any, clock: Any) -> object:
    threads.Lock().release()
    return None


def lock_with_both_ways_to_wait(threads: Any, clock: Any) -> object:
    return threads.Lock().acquire(False, 1)


def lock_with_a_time_below_zero(threads: Any, clock: Any) -> object:
    return threads.RLock().acquire(timeout=-2)


def rlock_is_taken_again(threads: Any, clock: Any) -> object:
    lock = threads.RLock()
    seen = [lock.acquire(), lock.acquire(False), lock._is_owned()]
    lock.release()
    seen.append(lock._is_owned())
    lock.release()
    return [*seen, lock._is_owned()]


def rlock_of_nobody_released(threads: Any, clock: Any) -> object:
    threads.RLock().release()
    return None


def condition_waited_for_without_its_lock(threads: Any, clock: Any) -> object:
    threads.Condition().wait(0.01)
    return None


def condition_told_without_its_lock(threads: Any, clock: Any) -> object:
    threads.Condition(threads.Lock()).notify()
    return None


def condition_times_out(threads: Any, clock: Any) -> object:
    condition = threads.Condition(threads.Lock())
    with condition:
        return condition.wait(0.01), condition.wait_for(lambda: 0, 0.01), condition.wait_for(lambda: "yes", 0.01)


def condition_keeps_how_often_its_lock_is_held(threads: Any, clock: Any) -> object:
    lock = threads.RLock()
    condition = threads.Condition(lock)
    with lock, condition:
        condition.wait(0.01)
        seen = [lock._is_owned()]
    return [*seen, lock._is_owned()]


def event_is_set_and_cleared(threads: Any, clock: Any) -> object:
    event = threads.Event()
    seen = [event.is_set(), event.wait(0.01)]
    event.set()
    event.set()
    seen += [event.is_set(), event.wait(), event.wait(0)]
    event.clear()
    return [*seen, event.is_set()]


def thread_started_twice(threads: Any, clock: Any) -> object:
    thread = threads.Thread(target=int)
    thread.start()
    thread.join()
    thread.start()
    return None


def thread_joined_too_early(threads: Any, clock: Any) -> object:
    threads.Thread(target=int).join()
    return None


def thread_joins_itself(threads: Any, clock: Any) -> object:
    threads.current_thread().join()
    return None


def clock_goes_on_while_one_sleeps(threads: Any, clock: Any) -> object:
    before = clock.perf_counter(), clock.monotonic_ns()
    clock.sleep(0.01)
    return clock.perf_counter() - before[0] >= 0.0099, clock.monotonic_ns() - before[1] >= 9_900_000


# several threads


def thread_has_a_life(threads: Any, clock: Any) -> object:
    go = threads.Event()
    thread = threads.Thread(target=go.wait, name="one", daemon=True)
    seen = [thread.is_alive(), thread.ident is None, thread.name, thread.daemon]
    thread.start()
    seen += [thread.is_alive(), thread.ident is None]
    thread.join(0.01)
    seen.append(thread.is_alive())
    go.set()
    thread.join()
    return [*seen, thread.is_alive()]


def thread_of_a_class_of_its_own(threads: Any, clock: Any) -> object:
    class Worker(threads.Thread):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="worker")
            self.result = 0

        def run(self) -> None:
            self.result = 5
            self.same = threads.current_thread() is self
            self.known = threads.get_ident() == self.ident

    worker = Worker()
    worker.start()
    worker.join()
    return worker.result, worker.same, worker.known, worker.name


def threads_have_arguments_and_idents(threads: Any, clock: Any) -> object:
    seen: list[object] = []

    def run(a: int, b: int) -> None:
        seen.append((a, b))
        idents.add(threads.get_ident())

    idents = {threads.get_ident()}
    gone = threads.Event()

    def hold() -> None:
        idents.add(threads.get_ident())
        gone.wait()

    holder = threads.Thread(target=hold)
    holder.start()
    thread = threads.Thread(target=run, args=(1,), kwargs={"b": 2})
    thread.start()
    thread.join()
    gone.set()
    holder.join()
    return seen, len(idents), threads.main_thread().name


def counter_under_a_lock(threads: Any, clock: Any) -> object:
    lock, count = threads.Lock(), [0]

    def add() -> None:
        for _ in range(3):
            with lock:
                count[0] += 1

    started(threads, add, add, add)
    return count


def lock_released_by_another(threads: Any, clock: Any) -> object:
    lock = threads.Lock()
    lock.acquire()
    started(threads, lock.release)
    return lock.acquire(False)


def rlock_released_by_another(threads: Any, clock: Any) -> object:
    lock, seen = threads.RLock(), []
    lock.acquire()

    def other() -> None:
        seen.append(outcome(lambda *_: lock.release(), None, None))
        seen.append((lock.acquire(False), lock.acquire(timeout=0.01), lock._is_owned()))

    started(threads, other)
    return seen, lock._is_owned()


def queue_between_threads(threads: Any, clock: Any) -> object:
    condition, waiting, taken = threads.Condition(), [], []

    def produce() -> None:
        for one in range(3):
            with condition:
                waiting.append(one)
                condition.notify()

    def consume() -> None:
        while len(taken) < 3:
            with condition:
                condition.wait_for(lambda: waiting)
                taken.append(waiting.pop(0))

    started(threads, produce, consume)
    return taken, waiting


def all_are_told(threads: Any, clock: Any) -> object:
    condition, ready, woken = threads.Condition(), [False], []

    def wait() -> None:
        with condition:
            woken.append(condition.wait_for(lambda: ready[0]))

    def tell() -> None:
        with condition:
            ready[0] = True
            condition.notify_all()

    started(threads, wait, wait, tell, wait)
    return woken


def one_is_told_and_the_other_times_out(threads: Any, clock: Any) -> object:
    condition, both, inside, told = threads.Condition(), threads.Event(), [], []

    def wait() -> None:
        with condition:
            inside.append(1)
            if len(inside) == 2:
                both.set()
            # The first to wait is the one that is told, and does not time out before that on any host.
            told.append(condition.wait(60 if len(inside) == 1 else 0.01))

    def tell() -> None:
        both.wait()
        with condition:
            condition.notify(1)

    started(threads, wait, wait, tell)
    return sorted(told)


def locals_of_each_thread(threads: Any, clock: Any) -> object:
    class Mine(threads.local):  # type: ignore[misc]
        kind = "class"

        def __init__(self, first: int, *, second: int) -> None:
            self.values = [first, second]

    mine, seen = Mine(1, second=2), []
    mine.values.append(3)
    mine.extra = True

    def look() -> None:
        seen.append((list(mine.values), hasattr(mine, "extra"), mine.kind))
        mine.values = []
        del mine.values
        seen.append(hasattr(mine, "values"))

    started(threads, look)
    seen.append((mine.values, mine.extra, outcome(lambda *_: mine.missing, None, None)))
    return seen


PROGRAMS = [
    one
    for name, one in list(globals().items())
    if callable(one) and getattr(one, "__module__", "") == __name__ and "clock" in one.__code__.co_varnames[:2]
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_primitives_do_what_those_of_threads_do(program: Program) -> None:
    expected = outcome(program, threading, time)
    for seed in range(25):
        assert explored(program, seed) == expected, f"seed {seed}"


@pytest.mark.parametrize(("module", "name"), [("threading", "Barrier"), ("time", "ctime")])
def test_primitives_say_what_they_have_not(module: str, name: str) -> None:
    stand_in: ModuleType = modules(Runtime())[module]
    with pytest.raises(AttributeError, match=rf"the explorer has no {module}\.{name}"):
        getattr(stand_in, name)


def test_primitives_outside_of_an_execution_never_wait() -> None:
    threads = modules(Runtime())["threading"]
    lock = threads.Lock()
    with lock:
        assert lock.acquire(timeout=5) is False
        with pytest.raises(Violation, match="while set up or judged: acquire a lock"):
            lock.acquire()
    event = threads.Event()
    assert event.wait(1) is False
    with pytest.raises(Violation, match="outside of an execution"):
        threads.Thread(target=int).start()

"""Locks with readers: who passes, who waits for whom, and what the validator makes of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from accel.errors import LockError
from accel.lock_classes import LockClass
from accel.lock_graph import LockGraph
from accel.locks import Lock
from accel.read_locks import RwLock, SrcuDomain

PATIENCE = 60


@pytest.fixture(autouse=True, params=["validated", "not validated"])
def validated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Every test with and without validation, in a graph of its own."""
    if request.param == "validated":
        with LockGraph():
            yield True
    else:
        monkeypatch.delenv("ACCEL_LOCKDEP")
        yield False


def until(wanted: Callable[[], object]) -> None:
    """Wait until a thread has come to where nothing tells that it has."""
    waited = threading.Event()
    for _ in range(PATIENCE * 1_000):
        if wanted():
            return
        waited.wait(0.001)
    raise AssertionError("it does not come there")


def refused_if(validated: bool, call: Callable[[], object], match: str) -> None:
    if validated:
        with pytest.raises(LockError, match=match):
            call()
    else:
        call()


# RwLock


def reader(lock: RwLock, spawn) -> tuple[Callable[[], None], Callable[[], None]]:
    """Start a thread that reads; return what waits until it is inside, and what ends it."""
    inside, done = threading.Event(), threading.Event()

    def read() -> None:
        with lock.read():
            inside.set()
            assert done.wait(PATIENCE)

    thread = spawn(read)

    def end() -> None:
        done.set()
        thread.join()

    return lambda: inside.wait(PATIENCE), end


def test_rw_lock_lets_readers_in_together_and_keeps_writers_out(spawn) -> None:
    lock = RwLock(LockClass("rw"))
    readers = [reader(lock, spawn) for _ in range(3)]
    for inside, _ in readers:
        assert inside()
    assert not lock.acquire_write(timeout=0)
    for _, end in readers:
        end()
    assert lock.acquire_write(timeout=0)
    assert spawn(lambda: lock.acquire_read(timeout=0)).join() is False
    assert spawn(lambda: lock.acquire_write(timeout=0)).join() is False
    lock.release_write()


@pytest.mark.parametrize("fair", [True, False])
def test_rw_lock_reader_waits_behind_a_writer_only_if_it_is_fair(spawn, fair: bool) -> None:
    lock = RwLock(LockClass("rw"), fair=fair)
    inside, end = reader(lock, spawn)
    assert inside()

    def write() -> None:
        with lock.write():
            written.append(True)

    written: list[bool] = []
    writer = spawn(write)
    until(lambda: lock._queue)
    passed = lock.acquire_read(timeout=0)
    assert passed is not fair
    assert not written
    if passed:
        lock.release_read()
    end()
    writer.join()
    assert written
    assert not lock._queue


def test_rw_lock_serves_in_the_order_of_arrival(spawn) -> None:
    lock = RwLock(LockClass("rw"))
    order: list[str] = []

    def use(name: str, section: Callable[[], object]) -> None:
        with section():
            order.append(name)

    threads = []
    with lock.write():
        for name, section in (("r1", lock.read), ("w1", lock.write), ("r2", lock.read), ("w2", lock.write)):
            threads.append(spawn(lambda name=name, section=section: use(name, section)))
            until(lambda: len(lock._queue) == len(threads))
    for thread in threads:
        thread.join()
    assert order == ["r1", "w1", "r2", "w2"]


def test_rw_lock_whose_writer_gave_up_lets_readers_pass(spawn) -> None:
    lock = RwLock(LockClass("rw"))
    inside, end = reader(lock, spawn)
    assert inside()
    assert not lock.acquire_write(timeout=0.01)
    assert lock.acquire_read(timeout=0)
    lock.release_read()
    end()


def test_rw_lock_whose_waiting_writer_gives_up_wakes_the_readers_behind_it(spawn) -> None:
    lock = RwLock(LockClass("rw"))
    inside, end = reader(lock, spawn)
    assert inside()
    wait_for = lock._changed.wait_for

    def until_somebody_is_behind(passes: Callable[[], bool], timeout: float | None) -> bool:
        # A time-out that is over once a reader waits behind the writer, not before.
        if timeout is None:
            return wait_for(passes)
        while len(lock._queue) < 2:
            lock._changed.wait(0.001)
        return passes()

    lock._changed.wait_for = until_somebody_is_behind
    writer = spawn(lambda: lock.acquire_write(timeout=PATIENCE))
    until(lambda: len(lock._queue) == 1)
    behind, end_behind = reader(lock, spawn)
    assert writer.join() is False
    assert behind()
    end_behind()
    end()


@pytest.mark.parametrize("first", ["read", "write"])
@pytest.mark.parametrize("second", ["read", "write"])
def test_rw_lock_taken_twice_by_a_thread_raises_instead_of_waiting_for_itself(
    validated: bool, first: str, second: str
) -> None:
    lock = RwLock(LockClass("rw"))
    with getattr(lock, first)():
        if not validated and (first, second) == ("read", "read"):
            # A writer may come in between, but need not.
            with lock.read():
                pass
            return
        with pytest.raises(LockError, match=r"rw is (taken while holding rw; one at a time|wanted for)"):
            getattr(lock, f"acquire_{second}")()
    with lock.write():
        pass


def test_rw_lock_that_is_not_fair_may_be_read_twice() -> None:
    lock = RwLock(LockClass("rw"), fair=False)
    with lock.read(), lock.read():
        lock.assert_read()
    with pytest.raises(LockError, match="rw must be held here"):
        lock.assert_read()


def test_rw_lock_assertions_and_releases_tell_who_has_it(spawn) -> None:
    lock = RwLock(LockClass("rw"))
    for call in (lock.assert_read, lock.assert_write, lock.release_write, lock.release_read):
        with pytest.raises(LockError, match="rw"):
            call()
    with lock.read():
        lock.assert_read()
        with pytest.raises(LockError, match="for writing"):
            lock.assert_write()
    with lock.write():
        lock.assert_read()
        lock.assert_write()
        for call in (lock.assert_read, lock.assert_write, lock.release_write, lock.release_read):
            with pytest.raises(LockError, match="rw"):
                spawn(call).join()


def test_rw_lock_that_is_released_is_forgotten_by_the_validator() -> None:
    rw, other = RwLock(LockClass("rw")), Lock(LockClass("other"))
    with rw.read(), other:
        pass
    with other:
        pass
    with rw.write():
        pass


def test_rw_lock_cycle_of_fair_readers_is_one_and_of_recursive_readers_is_none(validated: bool) -> None:
    for fair in (True, False):
        rw, mark = RwLock(LockClass("rw"), fair=fair), Lock(LockClass("mark"))
        with mark, rw.read():
            pass

        def other_way(rw: RwLock = rw, mark: Lock = mark) -> None:
            with rw.read(), mark:
                pass

        refused_if(validated and fair, other_way, "mark is taken while holding rw; elsewhere the order is mark → rw")


def test_rw_lock_cycle_through_a_writer_is_one_for_recursive_readers_too(validated: bool) -> None:
    rw, mark = RwLock(LockClass("rw"), fair=False), Lock(LockClass("mark"))
    with mark, rw.read():
        pass

    def other_way() -> None:
        with rw.write(), mark:
            pass

    refused_if(validated, other_way, "mark is taken while holding rw; elsewhere the order is mark → rw")


def test_rw_lock_keeps_writers_apart_and_from_readers_under_load(spawn) -> None:
    lock = RwLock(LockClass("rw"))
    state = {"left": 0, "right": 0}
    barrier = threading.Barrier(4)

    def write() -> None:
        barrier.wait(PATIENCE)
        for _ in range(100):
            with lock.write():
                state["left"] += 1
                state["right"] += 1

    def read() -> None:
        barrier.wait(PATIENCE)
        for _ in range(100):
            with lock.read():
                assert state["left"] == state["right"]

    for thread in [spawn(one) for one in (write, write, read, read)]:
        thread.join()
    assert state == {"left": 200, "right": 200}


# SrcuDomain


def test_srcu_synchronize_waits_for_those_who_were_there_and_not_for_who_comes_later(spawn) -> None:
    domain = SrcuDomain(LockClass("srcu"))
    earlier = domain.enter()
    assert not domain.synchronize(timeout=0)
    waiter = spawn(lambda: domain.synchronize(PATIENCE))
    until(lambda: domain._epoch == 2)
    later = domain.enter()
    assert waiter._thread.is_alive()
    domain.leave(earlier)
    assert waiter.join() is True
    domain.leave(later)
    assert domain.synchronize(timeout=0)
    assert domain._readers == {}


def test_srcu_synchronize_waits_for_all_readers_of_an_epoch(spawn) -> None:
    domain = SrcuDomain(LockClass("srcu"))
    first, second = domain.enter(), domain.enter()
    domain.leave(first)
    assert not domain.synchronize(timeout=0)
    domain.leave(second)
    assert domain.synchronize(timeout=0)


def test_srcu_read_sections_nest_and_end_by_exceptions_too() -> None:
    domain = SrcuDomain(LockClass("srcu"))
    with pytest.raises(ZeroDivisionError), domain.read(), domain.read():
        raise ZeroDivisionError
    assert domain.synchronize(timeout=0)


def test_srcu_synchronize_in_a_section_waits_for_itself(validated: bool) -> None:
    domain = SrcuDomain(LockClass("srcu"))
    with domain.read():
        refused_if(validated, lambda: domain.synchronize(timeout=0), "srcu is waited for while holding srcu; one at a")


def test_srcu_lock_that_is_held_around_synchronize_is_refused_in_a_section(validated: bool) -> None:
    domain, slots = SrcuDomain(LockClass("srcu")), Lock(LockClass("slots"))
    with slots:
        domain.synchronize()

    def read() -> None:
        with domain.read(), slots:
            pass

    refused_if(validated, read, "slots is taken while holding srcu; elsewhere the order is slots → srcu")


def test_srcu_synchronize_while_holding_what_a_section_took_is_refused(validated: bool) -> None:
    domain, slots = SrcuDomain(LockClass("srcu")), Lock(LockClass("slots"))
    with domain.read(), slots:
        pass
    with slots:
        refused_if(validated, domain.synchronize, "srcu is waited for while holding slots; elsewhere the order is srcu")


def test_srcu_lock_that_is_released_before_synchronize_may_be_taken_in_a_section() -> None:
    domain, arch = SrcuDomain(LockClass("srcu")), Lock(LockClass("arch"))
    with arch:
        pass
    domain.synchronize()
    with domain.read(), arch:
        pass
    domain.synchronize()


def test_srcu_section_under_a_lock_that_sections_take_is_no_cycle() -> None:
    """Readers never wait, so there is nobody to wait for them."""
    domain, lock = SrcuDomain(LockClass("srcu")), Lock(LockClass("lock"))
    with domain.read(), lock:
        pass
    with lock, domain.read():
        pass


def test_srcu_reader_never_sees_what_was_given_back_after_synchronize(spawn) -> None:
    domain = SrcuDomain(LockClass("srcu"))
    current = [{"alive": True}]
    barrier = threading.Barrier(3)
    stop = threading.Event()

    def read() -> None:
        barrier.wait(PATIENCE)
        while not stop.is_set():
            with domain.read():
                assert current[0]["alive"]

    readers = [spawn(read) for _ in range(2)]
    barrier.wait(PATIENCE)
    for _ in range(200):
        old, current[0] = current[0], {"alive": True}
        assert domain.synchronize(PATIENCE)
        old["alive"] = False
    stop.set()
    for one in readers:
        one.join()

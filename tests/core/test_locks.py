"""Locks: the order is checked where it is violated, and costs nothing where it is not checked."""

from __future__ import annotations

import ast
import inspect
import itertools
import threading

import pytest

from accel import locks
from accel.errors import LockError
from accel.lock_classes import Mode
from accel.locks import (
    BIG_LOCK,
    DEVICE_LOCK,
    DIRTY_LOCK,
    GATE,
    GATES_LOCK,
    LOCK_CLASSES,
    RING_LOCK,
    SLOTS_LOCK,
    VCPU_THREAD,
    Lock,
    LockClass,
    check_order,
    note_released,
    note_taken,
)

MUTEXES = [one for one in LOCK_CLASSES if one.mode is Mode.EXCLUSIVE]


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation off for locks made in the test."""
    monkeypatch.delenv("ACCEL_LOCKDEP")


@pytest.mark.parametrize(("outer", "inner"), list(itertools.product(MUTEXES, MUTEXES)), ids=lambda one: one.name)
def test_lock_taken_while_holding_another_follows_the_ranks(outer: LockClass, inner: LockClass) -> None:
    lock = Lock(inner)
    with Lock(outer):
        if outer.rank < inner.rank or (outer is inner and outer.nests):
            with lock:
                assert lock.held()
        else:
            with pytest.raises(LockError, match=f"{inner.name} is taken while holding {outer.name}; "):
                lock.acquire()
            assert not lock.held()
    # Nothing of a refused attempt is left behind.
    with Lock(BIG_LOCK):
        pass


def test_lock_order_is_what_the_module_says() -> None:
    order = [VCPU_THREAD, BIG_LOCK, DEVICE_LOCK, RING_LOCK, SLOTS_LOCK, GATE, GATES_LOCK, DIRTY_LOCK]
    assert list(LOCK_CLASSES) == order
    assert [one.rank for one in order] == sorted({one.rank for one in order})
    assert all(one.protects and one.comment for one in order)


def test_lock_classes_lists_every_class_of_the_module() -> None:
    assert {one for one in vars(locks).values() if isinstance(one, LockClass)} == set(LOCK_CLASSES)


def test_lock_order_violation_names_the_whole_chain() -> None:
    with Lock(BIG_LOCK), Lock(SLOTS_LOCK), Lock(GATES_LOCK), pytest.raises(LockError) as caught:
        Lock(DEVICE_LOCK).acquire()
    assert str(caught.value) == (
        "device_lock is taken while holding big_lock → slots_lock → gates_lock; it must be taken before slots_lock"
    )


def test_lock_violation_is_found_without_anybody_waiting() -> None:
    """The other lock is free; the mistake is found all the same."""
    ring, big = Lock(RING_LOCK), Lock(BIG_LOCK)
    with ring, pytest.raises(LockError):
        big.acquire(blocking=False)


def test_lock_of_a_second_vm_does_not_nest() -> None:
    with Lock(BIG_LOCK), pytest.raises(LockError, match="one at a time"):
        Lock(BIG_LOCK).acquire()


def test_lock_is_reentrant_whatever_was_taken_in_between() -> None:
    big, slots = Lock(BIG_LOCK), Lock(SLOTS_LOCK)
    with big, slots, big:
        assert big.held()
    assert not big.held()
    with Lock(BIG_LOCK):
        pass


def test_lock_released_in_another_order_is_forgotten() -> None:
    big, slots, ring = Lock(BIG_LOCK), Lock(SLOTS_LOCK), Lock(RING_LOCK)
    big.acquire()
    slots.acquire()
    big.release()
    slots.release()
    with ring:
        assert ring.held()
    with big:
        pass


def test_lock_held_by_another_thread_is_not_held(spawn) -> None:
    lock = Lock(BIG_LOCK)
    with lock:
        assert lock.held()
        assert spawn(lock.held).join() is False
        assert spawn(lambda: lock.acquire(blocking=False)).join() is False
        assert spawn(lambda: lock.acquire(timeout=0.01)).join() is False
    assert not lock.held()


def test_lock_that_could_not_be_taken_leaves_no_trace(spawn) -> None:
    lock = Lock(GATES_LOCK)

    def attempt() -> None:
        assert not lock.acquire(blocking=False)
        with Lock(BIG_LOCK):
            pass

    with lock:
        spawn(attempt).join()


def test_lock_order_of_other_threads_is_their_own(spawn) -> None:
    def other() -> None:
        with Lock(BIG_LOCK):
            taken.append(True)

    taken: list[bool] = []
    with Lock(GATES_LOCK):
        spawn(other).join()
    assert taken == [True]


def test_lock_assertions_say_what_is_wrong() -> None:
    lock = Lock(SLOTS_LOCK)
    with pytest.raises(LockError, match="slots_lock must be held here and is not"):
        lock.assert_held()
    lock.assert_not_held("never")
    with lock:
        lock.assert_held()
        with pytest.raises(LockError, match="slots_lock is held: it would wait for itself"):
            lock.assert_not_held("it would wait for itself")


def test_lock_released_by_a_stranger_raises_and_stays_taken(spawn) -> None:
    lock = Lock(BIG_LOCK)
    with lock:
        with pytest.raises(RuntimeError):
            spawn(lock.release).join()
        assert lock.held()


def test_lock_inside_a_gate_counts_the_gate() -> None:
    class Inside:
        lock_class = GATE

    inside = Inside()
    with Lock(BIG_LOCK), Lock(SLOTS_LOCK):
        check_order(GATE)
    note_taken(inside)
    try:
        with Lock(GATES_LOCK):
            pass
        for forbidden in (BIG_LOCK, SLOTS_LOCK):
            with pytest.raises(LockError, match=f"{forbidden.name} is taken while holding gate"):
                Lock(forbidden).acquire()
        with pytest.raises(LockError, match="one at a time"):
            check_order(GATE)
    finally:
        note_released(inside)
    note_released(inside)
    check_order(BIG_LOCK)


@pytest.mark.usefixtures("unchecked")
def test_lock_without_validation_is_the_c_lock() -> None:
    """No Python function stands between the caller and the C methods, for `with` either."""
    c_class = type(threading.RLock())
    lock = Lock(BIG_LOCK)
    assert type(lock) is Lock
    assert isinstance(lock, c_class)
    for name in ("acquire", "release", "__enter__", "__exit__"):
        assert inspect.getattr_static(lock, name) is inspect.getattr_static(c_class, name), name
    assert inspect.isbuiltin(lock.acquire)


@pytest.mark.usefixtures("unchecked")
def test_lock_without_validation_checks_no_order() -> None:
    big = Lock(BIG_LOCK)
    with Lock(GATES_LOCK), big:
        assert big.held()


@pytest.mark.parametrize(("value", "on"), [("1", True), ("yes", True), ("0", False), ("", False), (None, False)])
def test_lock_validation_is_switched_by_the_environment(monkeypatch, value: str | None, on: bool) -> None:
    monkeypatch.delenv("ACCEL_LOCKDEP")
    if value is not None:
        monkeypatch.setenv("ACCEL_LOCKDEP", value)
    assert locks.validation_enabled() is on
    assert (type(Lock(BIG_LOCK)) is not Lock) is on


def test_lock_tests_run_with_validation_on() -> None:
    assert locks.validation_enabled()


def test_lock_users_name_only_classes_of_the_module() -> None:
    """Every `Lock(…)` in the package is made of a class that the module declares; the scenarios have their own."""
    from pathlib import Path

    known = {name for name, value in vars(locks).items() if isinstance(value, LockClass)}
    for path in Path(locks.__file__).parent.rglob("*.py"):
        if path.name == "lock_scenarios.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Lock":
                names = {arg.id for arg in node.args if isinstance(arg, ast.Name)}
                assert names <= known, f"{path.name}:{node.lineno}"

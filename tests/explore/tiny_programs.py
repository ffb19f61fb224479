"""Tiny programs of a few threads, as data, and a scenario that runs one with the explorer's locks and events.

An operation names a method of `Tiny` and the number of what it is about: variables, re-entrant locks, plain locks,
events, conditions over the re-entrant lock of the same number. `try_` and `within`, which waits with a time-out, note
whether they got the lock, and drop it again. `brute_force` says what may come of a program.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

Operation = tuple[Any, ...]
Program = tuple[tuple[Operation, ...], ...]
#: What each thread saw, and what the variables hold in the end.
Outcome = tuple[tuple[tuple[Any, ...], ...], tuple[int, ...]]

VARIABLES = 2
LOCKS = 2


class Cells:
    """The variables, each an attribute."""

    def __init__(self) -> None:
        self.v0 = 0
        self.v1 = 0


class Tiny:
    """A run of a program, which hands its outcome to `note`."""

    def __init__(self, program: Program, note: Callable[[Outcome], None]) -> None:
        self.program = program
        self.note = note
        self.cells = Cells()
        self.mutexes = tuple(threading.RLock() for _ in range(LOCKS))
        self.locks = tuple(threading.Lock() for _ in range(LOCKS))
        self.events = tuple(threading.Event() for _ in range(LOCKS))
        self.conditions = tuple(threading.Condition(mutex) for mutex in self.mutexes)
        self.seen: tuple[list[Any], ...] = tuple([] for _ in program)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {f"t{n}": partial(self.run, operations, self.seen[n]) for n, operations in enumerate(self.program)}

    def run(self, operations: tuple[Operation, ...], seen: list[Any]) -> None:
        for kind, number, *more in operations:
            getattr(self, kind)(number, seen, *more)

    def read(self, number: int, seen: list[Any]) -> None:
        seen.append(self.cells.v0 if number == 0 else self.cells.v1)

    def write(self, number: int, seen: list[Any], value: int) -> None:
        if number == 0:
            self.cells.v0 = value
        else:
            self.cells.v1 = value

    def add(self, number: int, seen: list[Any], value: int) -> None:
        if number == 0:
            self.cells.v0 += value
        else:
            self.cells.v1 += value

    def take(self, number: int, seen: list[Any]) -> None:
        self.mutexes[number].acquire()

    def drop(self, number: int, seen: list[Any]) -> None:
        self.mutexes[number].release()

    def try_(self, number: int, seen: list[Any]) -> None:
        taken = self.mutexes[number].acquire(blocking=False)
        seen.append(taken)
        if taken:
            self.mutexes[number].release()

    def within(self, number: int, seen: list[Any]) -> None:
        taken = self.mutexes[number].acquire(timeout=1)
        seen.append(taken)
        if taken:
            self.mutexes[number].release()

    def lock(self, number: int, seen: list[Any]) -> None:
        self.locks[number].acquire()

    def unlock(self, number: int, seen: list[Any]) -> None:
        self.locks[number].release()

    def set(self, number: int, seen: list[Any]) -> None:
        self.events[number].set()

    def clear(self, number: int, seen: list[Any]) -> None:
        self.events[number].clear()

    def look(self, number: int, seen: list[Any]) -> None:
        seen.append(self.events[number].is_set())

    def await_(self, number: int, seen: list[Any]) -> None:
        self.events[number].wait()

    def await_for(self, number: int, seen: list[Any]) -> None:
        seen.append(self.events[number].wait(1))

    def wait(self, number: int, seen: list[Any]) -> None:
        with self.conditions[number]:
            self.conditions[number].wait()

    def wait_for(self, number: int, seen: list[Any]) -> None:
        with self.conditions[number]:
            seen.append(self.conditions[number].wait(1))

    def notify(self, number: int, seen: list[Any]) -> None:
        with self.conditions[number]:
            self.conditions[number].notify()

    def notify_all(self, number: int, seen: list[Any]) -> None:
        with self.conditions[number]:
            self.conditions[number].notify_all()

    def check(self) -> None:
        self.note((tuple(map(tuple, self.seen)), (self.cells.v0, self.cells.v1)))

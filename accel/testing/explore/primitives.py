"""Cooperative stand-ins for what modules take from `threading` and `time`: every operation is a step of the engine.

Layer: above `runtime`. `modules` makes both for one `Runtime`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from accel.testing.explore.runtime import Runtime
from accel.testing.explore.task import CLOCK
from accel.testing.explore.threads import make_threads


def _limit(timeout: float) -> float | None:
    return None if timeout < 0 else timeout


def _check(blocking: bool, timeout: float) -> None:
    if timeout != -1:
        if not blocking:
            raise ValueError("can't specify a timeout for a non-blocking call")
        if timeout < 0:
            raise ValueError("timeout value must be a non-negative number")


def _make_locks(runtime: Runtime) -> dict[str, Any]:
    class Lock:
        """`threading.Lock`."""

        def __init__(self) -> None:
            self._locked = False

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            _check(blocking, timeout)
            if not blocking:
                runtime.sync(self, f"try {_name(self)}")
                if self._locked:
                    return False
            elif not runtime.sync(self, f"acquire {_name(self)}", lambda: not self._locked, _limit(timeout)):
                return False
            self._locked = True
            return True

        def release(self) -> None:
            runtime.sync(self, f"release {_name(self)}")
            if not self._locked and not _aborting(runtime):
                raise RuntimeError("release unlocked lock")
            self._locked = False

        def locked(self) -> bool:
            runtime.sync(self, f"look at {_name(self)}", write=False)
            return self._locked

        def _is_owned(self) -> bool:
            # As far as a condition can tell of a lock that has no owner.
            return self._locked

        def __enter__(self) -> bool:
            return self.acquire()

        def __exit__(self, *what: object) -> None:
            self.release()

    class RLock:
        """`threading.RLock`, to be derived from as well."""

        def __new__(cls, *_: object) -> RLock:
            self = object.__new__(cls)
            self._owner = 0
            self._count = 0
            return self

        _owner: int
        _count: int

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            _check(blocking, timeout)
            me = runtime.ident()
            if self._owner != me:
                if not runtime.acquire(self, _name(self), lambda: not self._owner, blocking=blocking, timeout=timeout):
                    return False
                self._owner = me
            self._count += 1
            return True

        def release(self) -> None:
            if self._owner != runtime.ident():
                if _aborting(runtime):
                    return
                raise RuntimeError("cannot release un-acquired lock")
            if self._count == 1:
                runtime.release(self, _name(self))
                self._owner = 0
            self._count -= 1

        def _is_owned(self) -> bool:
            return self._owner == runtime.ident()

        def __enter__(self) -> bool:
            return self.acquire()

        def __exit__(self, *what: object) -> None:
            self.release()

    return {"Lock": Lock, "RLock": RLock}


def _name(lock: object) -> str:
    lock_class = getattr(lock, "lock_class", None)
    return "a lock" if lock_class is None else str(lock_class.name)


def _aborting(runtime: Runtime) -> bool:
    return runtime.engine is not None and runtime.engine.aborting


class _Told:
    """Whether one who waits for a condition was notified."""

    def __init__(self) -> None:
        self.was = False


def _make_waits(runtime: Runtime, locks: dict[str, Any]) -> dict[str, Any]:
    class Condition:
        """`threading.Condition`."""

        def __init__(self, lock: Any = None) -> None:
            self._lock = locks["RLock"]() if lock is None else lock
            self._waiters: list[_Told] = []
            self.acquire, self.release = self._lock.acquire, self._lock.release

        def __enter__(self) -> bool:
            return bool(self._lock.__enter__())

        def __exit__(self, *what: object) -> None:
            self._lock.__exit__(*what)

        def wait(self, timeout: float | None = None) -> bool:
            self._check("wait on")
            told = _Told()
            self._waiters.append(told)
            depth = getattr(self._lock, "_count", 1)
            for _ in range(depth):
                self._lock.release()
            try:
                return runtime.sync(self, "wait for a condition", lambda: told.was, timeout)
            finally:
                if told in self._waiters:
                    self._waiters.remove(told)
                for _ in range(depth):
                    self._lock.acquire()

        def _check(self, what: str) -> None:
            if not self._lock._is_owned() and not _aborting(runtime):
                raise RuntimeError(f"cannot {what} un-acquired lock")

        def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
            result = predicate()
            while not result:
                if not self.wait(timeout) or _aborting(runtime):
                    return predicate()
                result = predicate()
            return result

        def notify(self, n: int = 1) -> None:
            self._check("notify on")
            runtime.sync(self, "notify a condition")
            for told in self._waiters[:n]:
                told.was = True
            del self._waiters[:n]

        def notify_all(self) -> None:
            self.notify(len(self._waiters))

    class Event:
        """`threading.Event`."""

        def __init__(self) -> None:
            self._flag = False

        def is_set(self) -> bool:
            runtime.sync(self, "look at an event", write=False)
            return self._flag

        def set(self) -> None:
            runtime.sync(self, "set an event")
            self._flag = True

        def clear(self) -> None:
            runtime.sync(self, "clear an event")
            self._flag = False

        def wait(self, timeout: float | None = None) -> bool:
            return runtime.sync(self, "wait for an event", lambda: self._flag, timeout, write=False)

    return {"Condition": Condition, "Event": Event}


class _Free:
    """A mutex of code that is no part of what is explored, and never stops inside: always free."""

    def __init__(self) -> None:
        pass

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return True

    def release(self) -> None:
        pass

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *what: object) -> None:
        pass


def quiet(stand_in: ModuleType) -> ModuleType:
    """Return what stands in for `threading` in code that watches, such as lock validation: its mutexes are no steps."""
    made = ModuleType("threading", threading.__doc__)
    made.__dict__.update(vars(stand_in), Lock=_Free, RLock=_Free)
    return made


class _StandIn(ModuleType):
    """A module that says what it has not."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the explorer has no {self.__name__}.{name} that could be explored", name=name, obj=self)


def modules(runtime: Runtime) -> dict[str, ModuleType]:
    """Return what stands in for `threading` and `time`."""
    locks = _make_locks(runtime)
    stand_in = _StandIn("threading", threading.__doc__)
    stand_in.__dict__.update(locks, **_make_waits(runtime, locks), **make_threads(runtime))
    stand_in.__dict__["TIMEOUT_MAX"] = threading.TIMEOUT_MAX
    clock = _StandIn("time", time.__doc__)

    def now() -> float:
        engine = runtime.engine
        if engine is None:
            return 0.0
        engine.access(engine, "now", CLOCK, write=False)
        return engine.now

    def sleep(seconds: float) -> None:
        runtime.sync(clock, f"sleep {seconds:g} s", lambda: False, seconds)

    clock.__dict__.update(
        perf_counter=now,
        monotonic=now,
        time=now,
        sleep=sleep,
        perf_counter_ns=lambda: int(now() * 1e9),
        monotonic_ns=lambda: int(now() * 1e9),
        time_ns=lambda: int(now() * 1e9),
    )
    return {"threading": stand_in, "time": clock}

"""Cooperative stand-ins for what modules take from `threading` and `time`: every operation is a step of the engine.

Layer: above `engine`. `modules` makes both for one `Runtime`; outside of an execution, while a scenario is set up and
judged, one thread does everything and nothing waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from accel.testing.explore.engine import CLOCK, Engine, Location, Task, Violation

_MAIN = 1


class Runtime:
    """What stand-ins and instrumented code ask for the execution that goes on.

    Attributes:
        engine: The execution, or None.
        local_type: What stands in for `threading.local`, whose attributes belong to one task each.
    """

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.local_type: type = threading.local

    @property
    def task(self) -> Task | None:
        """The task that goes now, or None."""
        return None if self.engine is None else self.engine.current

    def sync(
        self, owner: object, step: str, ready: Callable[[], bool] | None = None, timeout: float | None = None
    ) -> bool:
        """Make a step on `owner`; see `Engine.sync`. Outside of an execution, what is not ready never will be."""
        engine = self.engine
        if engine is None or engine.current is None:
            if ready is not None and not ready():
                if timeout is None:
                    raise Violation("deadlock", f"while set up or judged: {step}")
                return False
            return True
        place: Location = engine.place(owner, "sync", step)
        return engine.sync(place, step, ready, timeout) or engine.aborting

    def release(self, owner: object, step: str) -> None:
        """Make the step of a release; see `Engine.release`."""
        engine = self.engine
        if engine is not None and engine.current is not None:
            engine.release(owner, engine.place(owner, "sync", step), step)

    def ident(self) -> int:
        """Return the current task's number as a thread's."""
        task = self.task
        return _MAIN if task is None else _MAIN + 1 + task.index


def _limit(blocking: bool, timeout: float) -> float | None:
    return None if timeout < 0 else timeout


def _make_locks(runtime: Runtime) -> dict[str, Any]:
    class Lock:
        """`threading.Lock`."""

        def __init__(self) -> None:
            self._locked = False

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if not blocking:
                runtime.sync(self, f"try {_name(self)}")
                if self._locked:
                    return False
            elif not runtime.sync(self, f"acquire {_name(self)}", lambda: not self._locked, _limit(blocking, timeout)):
                return False
            self._locked = True
            return True

        def release(self) -> None:
            runtime.sync(self, f"release {_name(self)}")
            if not self._locked and not _aborting(runtime):
                raise RuntimeError("release unlocked lock")
            self._locked = False

        def locked(self) -> bool:
            runtime.sync(self, f"look at {_name(self)}")
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
            me = runtime.ident()
            if self._owner != me:
                if not blocking:
                    runtime.sync(self, f"try {_name(self)}")
                    if self._owner:
                        return False
                elif not runtime.sync(
                    self, f"acquire {_name(self)}", lambda: not self._owner, _limit(blocking, timeout)
                ):
                    return False
                self._owner = me
                if runtime.engine is not None:
                    runtime.engine.acquired(self)
            self._count += 1
            return True

        def release(self) -> None:
            if self._owner != runtime.ident():
                if _aborting(runtime):
                    return
                raise RuntimeError("cannot release un-acquired lock")
            if self._count == 1:
                runtime.release(self, f"release {_name(self)}")
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


def _make_waits(runtime: Runtime, locks: dict[str, Any]) -> dict[str, Any]:
    class Condition:
        """`threading.Condition`."""

        def __init__(self, lock: Any = None) -> None:
            self._lock = locks["RLock"]() if lock is None else lock
            self._waiters: list[list[bool]] = []
            self.acquire, self.release = self._lock.acquire, self._lock.release

        def __enter__(self) -> bool:
            return bool(self._lock.__enter__())

        def __exit__(self, *what: object) -> None:
            self._lock.__exit__(*what)

        def wait(self, timeout: float | None = None) -> bool:
            told = [False]
            self._waiters.append(told)
            depth = getattr(self._lock, "_count", 1)
            for _ in range(depth):
                self._lock.release()
            try:
                return runtime.sync(self, "wait for a condition", lambda: told[0], timeout)
            finally:
                if told in self._waiters:
                    self._waiters.remove(told)
                for _ in range(depth):
                    self._lock.acquire()

        def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
            result = predicate()
            while not result:
                if not self.wait(timeout) or _aborting(runtime):
                    return predicate()
                result = predicate()
            return result

        def notify(self, n: int = 1) -> None:
            runtime.sync(self, "notify a condition")
            for told in self._waiters[:n]:
                told[0] = True
            del self._waiters[:n]

        def notify_all(self) -> None:
            self.notify(len(self._waiters))

    class Event:
        """`threading.Event`."""

        def __init__(self) -> None:
            self._flag = False

        def is_set(self) -> bool:
            runtime.sync(self, "look at an event")
            return self._flag

        def set(self) -> None:
            runtime.sync(self, "set an event")
            self._flag = True

        def clear(self) -> None:
            runtime.sync(self, "clear an event")
            self._flag = False

        def wait(self, timeout: float | None = None) -> bool:
            return runtime.sync(self, "wait for an event", lambda: self._flag, timeout)

    return {"Condition": Condition, "Event": Event}


def _make_threads(runtime: Runtime) -> dict[str, Any]:
    class Thread:
        """`threading.Thread`, as another task of the execution that starts it."""

        def __init__(
            self,
            group: None = None,
            target: Callable[..., object] | None = None,
            name: str | None = None,
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
            *,
            daemon: bool | None = None,
        ) -> None:
            self.name = name or "thread"
            self.daemon = bool(daemon)
            self._target = target
            self._given = args, kwargs or {}
            self._task: Task | None = None

        def start(self) -> None:
            engine = runtime.engine
            if engine is None:
                raise Violation("exception", f"{self.name} is started outside of an execution")
            runtime.sync(self, f"start {self.name}")
            self._task = engine.spawn(self.name, self._run)
            _threads[_MAIN + 1 + self._task.index] = self

        def _run(self) -> None:
            if self._target is not None:
                self._target(*self._given[0], **self._given[1])

        def join(self, timeout: float | None = None) -> None:
            runtime.sync(self, f"join {self.name}", lambda: self._task is None or self._task.done, timeout)

        def is_alive(self) -> bool:
            runtime.sync(self, f"look at {self.name}")
            return self._task is not None and not self._task.done

        @property
        def ident(self) -> int | None:
            return None if self._task is None else _MAIN + 1 + self._task.index

        native_id = ident

    class local:
        """`threading.local`: attributes for each task."""

        def __new__(cls, *args: Any, **kwargs: Any) -> local:
            self = object.__new__(cls)
            object.__setattr__(self, "_explored", (args, kwargs, {}))
            return self

        def __getattribute__(self, name: str) -> Any:
            mine = _mine(self)
            if name in mine:
                return mine[name]
            return object.__getattribute__(self, name)

        def __setattr__(self, name: str, value: Any) -> None:
            _mine(self)[name] = value

        def __delattr__(self, name: str) -> None:
            try:
                del _mine(self)[name]
            except KeyError:
                raise AttributeError(name) from None

    def _mine(one: local) -> dict[str, Any]:
        args, kwargs, of_all = object.__getattribute__(one, "_explored")
        task = runtime.task
        # A task of one execution is none of another's.
        if task not in of_all:
            of_all[task] = {}
            type(one).__init__(one, *args, **kwargs)
        mine: dict[str, Any] = of_all[task]
        return mine

    main = Thread(name="MainThread")
    _threads: dict[int, Thread] = {}

    def current_thread() -> Thread:
        ident = runtime.ident()
        if ident == _MAIN:
            return main
        if ident not in _threads or _threads[ident]._task is not runtime.task:
            task = runtime.task
            assert task is not None
            _threads[ident] = Thread(name=task.name)
            _threads[ident]._task = task
        return _threads[ident]

    return {
        "Thread": Thread,
        "local": local,
        "current_thread": current_thread,
        "main_thread": lambda: main,
        "get_ident": runtime.ident,
        "get_native_id": runtime.ident,
    }


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


def modules(runtime: Runtime) -> dict[str, ModuleType]:
    """Return what stands in for `threading` and `time`."""
    locks = _make_locks(runtime)
    stand_in = ModuleType("threading", threading.__doc__)
    stand_in.__dict__.update(locks, **_make_waits(runtime, locks), **_make_threads(runtime))
    stand_in.__dict__["TIMEOUT_MAX"] = threading.TIMEOUT_MAX
    clock = ModuleType("time", time.__doc__)

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
    )
    return {"threading": stand_in, "time": clock}

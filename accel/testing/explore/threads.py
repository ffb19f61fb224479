"""Cooperative stand-ins for threads, what they own and who they are; the other half of `primitives`.

Layer: beside `primitives`, whose `Runtime` they are made for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accel.testing.explore.runtime import MAIN, Runtime
from accel.testing.explore.task import Task, Violation


def make_threads(runtime: Runtime) -> dict[str, Any]:
    """Return the names of `threading` that have to do with who runs."""

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
            if self._task is not None:
                raise RuntimeError("threads can only be started once")
            runtime.sync(self, f"start {self.name}")
            self._task = engine.spawn(self.name, self._run, daemon=self.daemon)
            _threads[MAIN + 1 + self._task.index] = self
            engine.begin(self._task)

        def run(self) -> None:
            if self._target is not None:
                self._target(*self._given[0], **self._given[1])

        def _run(self) -> None:
            try:
                self.run()
            finally:
                # A step, since `is_alive` tells of it.
                runtime.sync(self, f"end of {self.name}")

        def join(self, timeout: float | None = None) -> None:
            task = self._task
            if task is None:
                raise RuntimeError("cannot join thread before it is started")
            if task is runtime.task:
                raise RuntimeError("cannot join current thread")
            runtime.sync(self, f"join {self.name}", lambda: task.done, timeout)

        def is_alive(self) -> bool:
            runtime.sync(self, f"look at {self.name}", write=False)
            return self._task is not None and not self._task.done

        @property
        def ident(self) -> int | None:
            return None if self._task is None else MAIN + 1 + self._task.index

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
        if ident == MAIN:
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

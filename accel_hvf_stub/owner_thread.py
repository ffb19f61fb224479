"""A thread on which calls are made for others.

Layer: the bottom of the plugin. Hypervisor.framework binds a vCPU to the thread that created it; this project lets any
thread create, run and close one, one at a time. So each vCPU has a thread that owns it, and the others ask that one.
It costs two changes of threads for each call, which is nothing for creating and destroying; `docs/how-to` says what
whoever runs vCPUs may do instead.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class OwnerThread:
    """A thread that makes calls, one after the other, until it is closed."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], T]) -> T:
        """Return `function()`, made on the thread; raises what it raises. Any other thread, before `close`."""
        values: queue.SimpleQueue[T] = queue.SimpleQueue()
        errors: list[BaseException] = []
        done = threading.Event()

        def make() -> None:
            try:
                values.put(function())
            except BaseException as error:  # noqa: BLE001 - it is raised on the thread that asked
                errors.append(error)
            done.set()

        self._calls.put(make)
        done.wait()
        if errors:
            raise errors[0]
        return values.get()

    def close(self) -> None:
        """End the thread, after the calls that were asked for, and wait until it has."""
        self._calls.put(None)
        self._thread.join()

    def _main(self) -> None:
        while (make := self._calls.get()) is not None:
            make()

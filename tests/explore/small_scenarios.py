"""Small runs with one thing wrong, or nothing, for tests of the search and of its reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from accel.testing.explore.scenario import require


class Counter:
    """Two threads count without a lock."""

    def __init__(self) -> None:
        self.count = 0
        self.private = 0

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"left": self.add, "right": self.add}

    def add(self) -> None:
        self.count += 1

    def check(self) -> None:
        require(self.count == 2, f"{self.count} of 2 counted")


class Guarded(Counter):
    """The same with a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()

    def add(self) -> None:
        with self.lock:
            super().add()


class Busy(Counter):
    """Three threads count often, and nobody cares."""

    def threads(self) -> dict[str, Callable[[], object]]:
        return dict.fromkeys(("left", "middle", "right"), self.add)

    def add(self) -> None:
        for _ in range(3):
            super().add()

    def check(self) -> None:
        pass


class Crossed(Counter):
    """Two locks are taken in two orders."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = threading.Lock(), threading.Lock()

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"left": self.left, "right": self.right}

    def left(self) -> None:
        with self.first, self.second:
            self.count += 1

    def right(self) -> None:
        with self.second, self.first:
            self.count += 1


class LostWakeUp(Counter):
    """Somebody looks, is told, and then waits."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()
        self.ready = False

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"waiter": self.wait, "teller": self.tell}

    def wait(self) -> None:
        if not self.ready:
            self.told.clear()
            self.told.wait()
        self.count = 2

    def tell(self) -> None:
        self.ready = True
        self.told.set()


class Spins(Counter):
    """Somebody looks at a flag again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = False

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"spinner": self.spin, "teller": self.tell}

    def spin(self) -> None:
        while not self.ready:
            pass
        self.count = 2

    def tell(self) -> None:
        self.ready = True


class SpinsAlone(Counter):
    """Somebody looks at what nobody else uses."""

    def add(self) -> None:
        box = [1]
        while box:
            pass


class Raises(Counter):
    """Somebody finds what another took away."""

    def __init__(self) -> None:
        super().__init__()
        self.values = {"a": 2}

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"taker": self.take, "reader": self.read}

    def take(self) -> None:
        self.values.clear()

    def read(self) -> None:
        if "a" in self.values:
            self.count = self.values["a"]

    def check(self) -> None:
        pass


class Judged(Counter):
    """What judges it raises by itself."""

    def check(self) -> None:
        raise KeyError("judged")


class TimesOut(Counter):
    """Somebody waits for a second, and is told within it or not."""

    def __init__(self) -> None:
        super().__init__()
        self.event = threading.Event()

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"waiter": self.wait, "teller": self.event.set}

    def wait(self) -> None:
        before = time.monotonic()
        told = self.event.wait(1)
        require(told, f"not told in {time.monotonic() - before:g} s")

    def check(self) -> None:
        pass


class Starts(Counter):
    """Somebody starts a thread, and looks at what it does before it has ended."""

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"starter": self.start}

    def start(self) -> None:
        thread = threading.Thread(target=self.add, name="started")
        thread.start()
        if self.count:
            require(not thread.is_alive(), "it counted, and lives")
        thread.join()
        self.count += 1


class Daemon(Counter):
    """Somebody leaves a thread behind that waits for ever."""

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"starter": self.start}

    def start(self) -> None:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        self.count = 2


class Endless(Counter):
    """Somebody does not end when it is told to."""

    def add(self) -> None:
        event = threading.Event()
        try:
            event.wait()
        finally:
            while not event.is_set():
                event.wait()


#: How often a run was made.
made = 0


class Fickle(Counter):
    """What it does depends on how often it was made."""

    def __init__(self) -> None:
        global made
        super().__init__()
        made += 1
        self.lock = threading.Lock()
        self.times = self.number()

    def number(self) -> int:
        return 1 + made % 3

    def add(self) -> None:
        for _ in range(self.times):
            with self.lock:
                self.count += 1

    def check(self) -> None:
        pass


class FickleRight(Fickle):
    """One thread has ended sooner in every other run."""

    def number(self) -> int:
        return made % 2

    def add(self) -> None:
        if threading.current_thread().name == "left" and self.times:
            return
        with self.lock:
            self.count += 1


class FickleEnd(Counter):
    """Only what judges it differs."""

    def __init__(self) -> None:
        global made
        super().__init__()
        made += 1

    def check(self) -> None:
        require(made % 7, "the seventh")

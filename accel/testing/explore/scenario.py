"""Scenarios: a few threads over real code, and what must hold; by name, for the command line and for tests.

Layer: above `search`. A scenario is a class with `threads` and `check` (see `search.Run`), in a module that is copied
into the world; it is written with the ordinary `threading` and the project's own names, which are cooperative there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

from attrs import frozen

from accel.testing.explore.search import Explorer, Run
from accel.testing.explore.task import Violation
from accel.testing.explore.world import Patch, World


@frozen
class Scenario:
    """A scenario that can be explored.

    Attributes:
        name: On the command line.
        summary: A line that says who does what, and what must hold.
        module: Where its class is.
        class_name: Its class.
        instrumented: Modules whose accesses are visible, beside its own.
        bound: Preemptions up to which it is explored by default.
        limit: Visible steps after which an execution counts as a livelock.
        timeouts: Whether waits may time out while somebody could go on.
        wrong: What is to be found, for a scenario that shows a mistake: the kind of violation; else empty.
        tags: What it is about.
        patches: Changes of the sources that are part of it, such as the mistake that it shows.
    """

    name: str
    summary: str
    module: str
    class_name: str
    instrumented: tuple[str, ...]
    bound: int = 2
    limit: int = 20_000
    timeouts: bool = False
    wrong: str = ""
    tags: tuple[str, ...] = ()
    patches: tuple[Patch, ...] = ()

    def explorer(self, patches: Collection[Patch] = ()) -> Explorer:
        """Return an explorer of it, of sources with its patches and `patches`."""
        # An accelerator's scenarios are about its own modules too.
        tops = {name.partition(".")[0] for name in (self.module, *self.instrumented)}
        world = World((*self.instrumented, self.module), (*self.patches, *patches), copied=tops)
        kind: Callable[[], Run] = getattr(world.load(self.module), self.class_name)
        return Explorer(world, kind, limit=self.limit, timeouts=self.timeouts)


C = TypeVar("C", bound=Callable[[], Run])

#: All scenarios of modules that were imported, by name.
SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str,
    *,
    instrument: Collection[str],
    bound: int = 2,
    limit: int = 20_000,
    timeouts: bool = False,
    wrong: str = "",
    tags: Collection[str] = (),
    patches: Collection[Patch] = (),
) -> Callable[[C], C]:
    """Return a decorator that makes a class a scenario; the first line of its docstring is the summary."""

    def decorate(kind: C) -> C:
        summary = (kind.__doc__ or "").strip().partition("\n")[0]
        # A copy in a world says the same once more.
        SCENARIOS[name] = Scenario(
            name,
            summary,
            kind.__module__,
            kind.__name__,
            tuple(instrument),
            bound,
            limit,
            timeouts,
            wrong,
            tuple(tags),
            tuple(patches),
        )
        return kind

    return decorate


def require(condition: object, text: str) -> None:
    """Raise Violation with `text` unless `condition` holds; for the threads and checks of scenarios."""
    if not condition:
        raise Violation("invariant", text)

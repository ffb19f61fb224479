"""Runs a machine and everything around it so that it repeats exactly: one seed, one run, on a clock that is not real.

Layer: `accel.testing`, above `simulator` and `explore.world`, whose copies of modules with cooperative threads it uses.
Where the explorer goes through schedules and makes every access visible, a simulation is one long run at full speed:
who goes next, and how long, is drawn from a seed; threads change at waits, locks and every few operations of a guest.

Time. A step of a thread takes a moment, an operation of a guest a microsecond, a wait as long as it says. When nobody
can go on, the clock jumps to the first time at which somebody can. So a wait for a second takes no real time, and a
figure of time is as repeatable as any other.

What does not repeat: addresses of the host, which some messages name, and what code outside of `accel` does by the real
clock, real threads or the order of sets of texts. Accelerators that run in hardware are passed over (`accel.turns`).
"""

from __future__ import annotations

import gc
import importlib.metadata
import random
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from attrs import frozen

from accel.hookspecs import PROJECT
from accel.testing.explore.world import World
from accel.testing.simulator import Simulator, quick_lock

T = TypeVar("T")

#: Values, the same for all: who simulates can use them as they are.
VALUES = (
    "accel.address",
    "accel.options",
    "accel.exits",
    "accel.program",
    "accel.result",
    "accel.arch",
    "accel.memory.backing",
    "accel.workload.schema",
)


@frozen
class Simulated(Generic[T]):
    """What came of a simulation.

    Attributes:
        value: What the function returned.
        digest: Stands for the whole interleaving: equal if everything happened in the same order at the same times.
        seconds: Virtual time that it took.
        steps: Steps of all threads.
    """

    value: T
    digest: str
    seconds: float
    steps: int


class Simulation:
    """What a simulated function is given.

    Attributes:
        accel: The library, in a copy for this simulation. Classes of the ordinary one do not belong with it, but for
            errors, exits, results and the operations of guest programs.
        threading: What the function starts threads with.
        time: What it waits with.
        random: Chance that repeats.
        seed: As given.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self.seed = seed
        self.random = random.Random(f"function {seed}")
        self.accel: Any = world.load("accel")
        self.threading: Any = world.stand_in("threading")
        self.time: Any = world.stand_in("time")

    def load(self, name: str) -> Any:
        """Return a module in the copy that belongs to this simulation, such as ``accel.devices``."""
        return self._world.load(name)


def simulate(function: Callable[[Simulation], T], seed: int = 0, *, most_seconds: float | None = 60.0) -> Simulated[T]:
    """Call `function` in a simulation, and return what it returns with a digest of all that happened.

    The same function with the same seed does the same; another seed gives another interleaving. Threads that still run
    when the function returns are given up.

    Args:
        function: Takes a `Simulation`; may start machines and threads.
        seed: Any integer.
        most_seconds: Virtual time after which it is given up; None for no limit.

    Raises:
        Violation: Nobody can go on, the time is over, or a thread ended with an exception.
        Exception: What the function raises, with a note that says the seed.
    """
    simulator = Simulator(seed, most_seconds)
    world = World((), copied=_plugins(), shared=VALUES)
    result: list[T] = []
    errors: list[BaseException] = []

    def main() -> None:
        try:
            result.append(function(Simulation(world, seed)))
        except Exception as error:  # noqa: BLE001 - raised to the caller
            errors.append(error)
        simulator.finish()

    threading: Any = world.stand_in("threading")
    threading.Lock = quick_lock(threading.Lock, simulator)
    turns: Any = world.load("accel.turns")
    turns.take = simulator.take_turn
    simulator.spawn("main", main)
    world.runtime.engine = simulator
    collecting = gc.isenabled()
    # A collection could end objects anywhere, and begins at other places in a second run.
    gc.disable()
    try:
        simulator.run()
    finally:
        world.runtime.engine = None
        if collecting:
            gc.enable()
    # A function that is given up may raise something else on its way out.
    error = simulator.violation or next(iter(errors), None)
    if error is not None:
        error.add_note(f"simulated with seed={seed}, which repeats it")
        raise error
    return Simulated(result[0], simulator.digest, simulator.now - Simulator.START, simulator.steps)


def _plugins() -> set[str]:
    """Return the packages that bring plugins: they must find each other's copies."""
    return {point.module.partition(".")[0] for point in importlib.metadata.entry_points(group=PROJECT)}

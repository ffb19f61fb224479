"""Changes the memory map while the guest runs, as the ``[[change]]`` tables say.

Layer: above `regions`. One thread makes all changes of a workload, each in a transaction of its own, in the order
in which they are due. One that is late is made at once and the next is counted from then, so that a slow host
makes fewer changes and never a burst.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence

from attrs import evolve

from accel.machine import Machine
from accel.workload.regions import Mount, MountState
from accel.workload.schema import ChangeSpec
from accel.workload.worker import Worker

_US = 1e-6


class Changes(Worker):
    """Makes the changes of a workload.

    Attributes:
        made: How many were made. Owned by the thread; stable once `stop` has returned.
    """

    def __init__(self, machine: Machine, specs: Sequence[ChangeSpec], mounts: Mapping[str, Mount]) -> None:
        super().__init__("changes", machine)
        self.made = 0
        self._specs = specs
        self._mounts = mounts

    def work(self) -> None:
        """Make each change when it is due."""
        started = time.monotonic()
        done = [0] * len(self._specs)
        due = [(started + _first(spec), index) for index, spec in enumerate(self._specs)]
        heapq.heapify(due)
        while due:
            when, index = due[0]
            if self.stopping.wait(max(0.0, when - time.monotonic())):
                return
            spec = self._specs[index]
            self._make(spec, done[index])
            done[index] += 1
            if spec.every is None or done[index] == spec.times:
                heapq.heappop(due)
            else:
                heapq.heapreplace(due, (max(when + spec.every * _US, time.monotonic()), index))

    def _make(self, spec: ChangeSpec, number: int) -> None:
        mount = self._mounts[spec.region]
        state = asked(spec, mount)
        if number % 2:
            state = restored(spec, mount)
        mount.become(state, spec.atomic)
        self.made += 1


def _first(spec: ChangeSpec) -> float:
    return (spec.after or spec.every or 0) * _US


def asked(spec: ChangeSpec, mount: Mount) -> MountState:
    """Return the state that a change asks for, from the state that the region is in."""
    state, own = mount.state, mount.own
    match spec.do:
        case "resize":
            return evolve(state, size=spec.size or own.size, cut=None)
        case "move":
            return evolve(state, at=spec.at)
        case "priority":
            return evolve(state, priority=own.priority if spec.priority is None else spec.priority)
        case "retarget":
            return evolve(state, offset=own.offset if spec.offset is None else spec.offset)
        case "add":
            return evolve(state, at=own.at if spec.at is None else spec.at)
        case "remove":
            return evolve(state, at=None)
        case "enable" | "disable":
            return evolve(state, enabled=spec.do == "enable")
        case "readonly" | "writable":
            return evolve(state, readonly=spec.do == "readonly")
        case "replace":
            return evolve(state, cut=0 if state.cut is None else None)
        case "split":
            return evolve(state, cut=spec.size or mount.half())
        case "merge":
            return evolve(state, cut=None)


def restored(spec: ChangeSpec, mount: Mount) -> MountState:
    """Return the state in which what the change is about is as the file describes it."""
    state, own = mount.state, mount.own
    match spec.do:
        case "resize":
            return evolve(state, size=own.size, cut=None)
        case "move" | "add" | "remove":
            return evolve(state, at=own.at)
        case "priority":
            return evolve(state, priority=own.priority)
        case "retarget":
            return evolve(state, offset=own.offset)
        case "enable" | "disable":
            return evolve(state, enabled=own.enabled)
        case "readonly" | "writable":
            return evolve(state, readonly=own.readonly)
        case "replace" | "split" | "merge":
            return evolve(state, cut=None)

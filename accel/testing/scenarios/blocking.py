"""Scenarios of the accel-blocker: who inhibits, who is inside, who comes and goes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from accel.blocker import AccelBlocker
from accel.gate import VcpuGate
from accel.locks import BIG_LOCK, Lock
from accel.testing.explore.scenario import require, scenario

_BLOCKER = ("accel.blocker", "accel.gate", "accel.wakeup")


class Guest:
    """A vCPU that is inside until it is kicked or has had enough; the kick is sticky."""

    def __init__(self, inside: set[str], name: str) -> None:
        self.inside = inside
        self.name = name
        self.kicked = False

    def kick(self, thread_id: int) -> None:
        self.kicked = True


@scenario("inhibit", instrument=_BLOCKER)
class Inhibit:
    """One thread inhibits; two vCPUs and a VM call come and go: nobody is inside while it holds."""

    def __init__(self) -> None:
        self.big_lock = Lock(BIG_LOCK)
        self.blocker = AccelBlocker(self.big_lock)
        self.inside: set[str] = set()
        self.holding = False
        self.passed = 0
        self.gates = [self.blocker.add_gate(f"vCPU {n}", lambda thread: None) for n in range(2)]

    def threads(self) -> dict[str, Callable[[], object]]:
        return {
            "inhibitor": self.inhibit,
            "vCPU 0": partial(self.vcpu, self.gates[0]),
            "vCPU 1": partial(self.vcpu, self.gates[1]),
            "VM call": self.vm_call,
        }

    def inhibit(self) -> None:
        with self.big_lock, self.blocker.inhibit(10.0):
            self.holding = True
            require(not self.inside, f"{self.inside} inside while held")
            self.holding = False

    def vcpu(self, gate: VcpuGate) -> None:
        gate.thread_id = threading.get_native_id()
        for _ in range(1):
            gate.enter()
            require(not self.holding, f"{gate.name} entered while held")
            gate.leave()
            self.passed += 1

    def vm_call(self) -> None:
        with self.blocker.vm_call("an ioctl"):
            require(not self.holding, "the VM call began while held")
        self.passed += 1

    def check(self) -> None:
        require(not any(gate.busy for gate in self.gates), "somebody is still inside")

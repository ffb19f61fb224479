"""Machines on every accelerator here, with guests that show what they see of a memory change.

A guest says by its port writes and by the accesses that come out what it has seen; where an accelerator has to be
caught between two steps, the test goes on until it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

import accel
from accel.program import GuestProgram, Op

#: How long a test waits for what must happen; only a failing test ever waits so long.
PATIENCE = 60
#: Where `Pace` listens.
PORT = 0x80


@pytest.fixture(params=[pytest.param("kvm", marks=pytest.mark.kvm), "mock"])
def accelerator(request: pytest.FixtureRequest) -> str:
    """Each accelerator here in turn."""
    return str(request.param)


@pytest.fixture
def machine(bench, accelerator: str) -> Callable[..., accel.Machine]:
    """Make machines whose vCPUs do some operations: `machine(Load(0), cpus=2, hold="unsafe")`."""

    def make(*ops: Op, cpus: int = 1, **options: object) -> accel.Machine:
        return bench(
            GuestProgram(ops), accelerators=accelerator, cpus=cpus, options={accelerator: dict(options)}
        ).machine

    return make


class Pace:
    """What the guest tells with each write to `PORT`: that it goes on.

    Attributes:
        count: How often it has.
        before: Called on the vCPU's thread, as a device is, before that counts.
    """

    def __init__(self, one: accel.Machine) -> None:
        self.count = 0
        self.before: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        one.port(PORT)(lambda access: self._tell())

    def _tell(self) -> None:
        self.before()
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def wait(self, count: int = 2) -> None:
        """Wait until the guest has told so often; the first may be late."""
        with self._changed:
            target = self.count + count
            assert self._changed.wait_for(lambda: self.count >= target, PATIENCE), "the guest does not go on"


@pytest.fixture(scope="session")
def pace() -> type[Pace]:
    """Follow a machine's guest: `pace(machine)`."""
    return Pace

"""Who touches the area: machine code on real CPUs, guest programs where an accelerator interprets those.

Layer: above the two guests. Each guest is put into memory that the host fills anew, tells of itself while it runs, and
is judged when it has ended.
"""

from __future__ import annotations

from typing import Protocol

from accel.errors import CapabilityError, UsageError
from accel.machine import Machine
from accel.result import RunResult
from accel.stress.changes import ChangingMap
from accel.stress.image_guest import ImageGuest
from accel.stress.judgement import Judgement, Touch
from accel.stress.program_guest import ProgramGuest

#: Most vCPUs that the guests are made for.
MAX_CPUS = 16
#: What a stress machine needs.
MEMORY = 16 << 20


class StressGuest(Protocol):
    """A guest in a machine; `ChangingMap` shows the RAM that it touches."""

    def load(self) -> None:
        """Fill the memory and put the guest at its start."""

    def begun(self) -> bool:
        """Return whether its first vCPU has made a pass."""

    def end(self) -> None:
        """Tell it, while it runs, to end."""

    def judge(self, result: RunResult) -> Judgement:
        """Judge the run that has ended."""


def make_guest(machine: Machine, memory: ChangingMap, touch: Touch, executes: frozenset[str]) -> StressGuest:
    """Return the guest for a machine whose accelerator executes this.

    Raises:
        CapabilityError: The accelerator has no such touch.
        UsageError: There are more vCPUs than guests are made for.
    """
    if machine.cpus > MAX_CPUS:
        raise UsageError(f"{machine.cpus} vCPUs: the stress guests are made for up to {MAX_CPUS}")
    if "x86" in executes:
        return ImageGuest(machine, memory, touch)
    if touch == "walk":
        raise CapabilityError(
            f"{machine.accelerator} executes programs, which walk no page tables; use --touch without walk"
        )
    return ProgramGuest(machine, memory, touch)

"""What a run of a machine came to: a value for people and for scripts."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from accel.errors import GuestCrashError
from accel.exits import ExitKind


class Outcome(enum.StrEnum):
    """How a run ended.

    ``printed``: the guest printed the text that it was run until (`accel.workload`).
    """

    EXITED = "exited"
    HALTED = "halted"
    CRASHED = "crashed"
    STOPPED = "stopped"
    TIMED_OUT = "timed-out"
    PRINTED = "printed"


@frozen
class VcpuResult:
    """One vCPU's part.

    Attributes:
        index: Its number.
        exits: Exits by kind; kinds without any are left out.
        spurious: Spurious faults that the view served, by guest-physical address.
        unserved: Spurious faults that nothing could serve, by guest-physical address.
    """

    index: int
    exits: Mapping[str, int]
    spurious: Mapping[int, int]
    unserved: Mapping[int, int]


@frozen
class RunResult:
    """What a run came to.

    Attributes:
        outcome: How it ended.
        exit_status: What the guest wrote to the debug exit device, as that device encodes it, or None.
        crash: The first vCPU that could not go on, where the outcome is ``crashed``.
        wall_time: Seconds from start to end.
        accelerator: The name of the accelerator that ran it.
        host: Its flavour of host.
        vcpus: Each vCPU's part.
        coalesced_writes: Guest writes that came through the ring instead of as exits.
        unassigned: Guest accesses, to memory or ports, that nothing served.
        memory: Figures of memory changes since the machine was created: ``commits``; ``unheld``, those that held
            nobody; what `BlockerStats` counts, ``inhibits``, ``kicks``, ``wait_seconds``, ``wait_seconds_max``,
            ``hold_seconds`` and ``hold_seconds_max``; and what the accelerator adds, such as ``slots``,
            ``fragments`` and ``slot_calls``.
    """

    outcome: Outcome
    exit_status: int | None
    crash: GuestCrashError | None
    wall_time: float
    accelerator: str
    host: str
    vcpus: tuple[VcpuResult, ...]
    coalesced_writes: int = 0
    unassigned: int = 0
    memory: Mapping[str, float] = field(factory=dict)

    @property
    def exits(self) -> dict[str, int]:
        """Exits of all vCPUs by kind."""
        total: dict[str, int] = {}
        for vcpu in self.vcpus:
            for kind, count in vcpu.exits.items():
                total[kind] = total.get(kind, 0) + count
        return total

    @property
    def spurious_faults(self) -> int:
        """Exits at addresses that RAM served before and after each change: the figure that is to be zero."""
        return sum(sum(vcpu.spurious.values()) for vcpu in self.vcpus) + self.unserved_faults

    @property
    def unserved_faults(self) -> int:
        """Those of them that nothing could serve, so that the guest crashed."""
        return sum(sum(vcpu.unserved.values()) for vcpu in self.vcpus)

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data for JSON; addresses are hex strings."""
        return {
            "outcome": str(self.outcome),
            "exit_status": self.exit_status,
            "crash": str(self.crash) if self.crash else None,
            "wall_time": self.wall_time,
            "accelerator": self.accelerator,
            "host": self.host,
            "exits": self.exits,
            "spurious_faults": self.spurious_faults,
            "unserved_faults": self.unserved_faults,
            "coalesced_writes": self.coalesced_writes,
            "unassigned": self.unassigned,
            "memory": dict(self.memory),
            "vcpus": [
                {
                    "index": vcpu.index,
                    "exits": dict(vcpu.exits),
                    "spurious": {f"{address:#x}": n for address, n in sorted(vcpu.spurious.items())},
                    "unserved": {f"{address:#x}": n for address, n in sorted(vcpu.unserved.items())},
                }
                for vcpu in self.vcpus
            ],
        }


def exit_names(counts: list[int]) -> dict[str, int]:
    """Return exit counts, indexed by ExitKind, as a dict by name without zeros."""
    return {kind.name.lower().replace("_", "-"): counts[kind] for kind in ExitKind if counts[kind]}

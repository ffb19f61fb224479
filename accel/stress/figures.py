"""What is counted in a stress run: one `Figures` for each combination, in memory that does not grow with the run.

Layer: above `guests` for its names. One thread writes them.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from attrs import define, field, frozen

Hold = Literal["inhibit", "unsafe", "kick-all", "region-list"]
Plan = Literal["least", "replace"]

#: Buckets for each doubling; a bucket is 2.2 % wide.
_PER_OCTAVE = 32
#: Shortest time that is told apart, in seconds.
_SHORTEST = 1e-6
#: Points kept of what happened over time; beyond them every other one goes.
_MOST_POINTS = 512


@frozen
class Combination:
    """One row of the table.

    Attributes:
        touch: The kind of touch, or the name of the workload.
        cpus: Number of vCPUs.
        hold: Who keeps guests from seeing half of a change, if anybody does.
        plan: How changes are planned.
    """

    touch: str
    cpus: int
    hold: Hold
    plan: Plan

    def __str__(self) -> str:
        return f"{self.touch}, {self.cpus} vCPU{'s' if self.cpus > 1 else ''}, {self.hold}, {self.plan}"


class Latencies:
    """Times in buckets that are equally wide on a logarithmic scale.

    Attributes:
        buckets: How many times fell into each bucket, by number; see `lower`.
        count: How many there are in all.
        longest: The longest, in seconds, exactly.
    """

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one time. O(1)."""
        bucket = int(_PER_OCTAVE * math.log2(max(seconds, _SHORTEST) / _SHORTEST))
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.longest = max(self.longest, seconds)

    def merge(self, other: Latencies) -> None:
        """Count all times of another one too."""
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.count += other.count
        self.longest = max(self.longest, other.longest)

    def quantile(self, part: float) -> float:
        """Return the time in seconds that `part` of all, from 0 to 1, do not exceed: within 2.2 %; 0 without any."""
        rest = math.ceil(part * self.count)
        for bucket in sorted(self.buckets):
            rest -= self.buckets[bucket]
            if rest <= 0:
                return min(lower(bucket + 1), self.longest)
        return 0.0


def lower(bucket: int) -> float:
    """Return where a bucket of `Latencies` begins, in seconds."""
    return _SHORTEST * math.exp2(bucket / _PER_OCTAVE)


class Timeline:
    """Faults over time: points of seconds, updates and faults, cumulative; at most `_MOST_POINTS`."""

    def __init__(self) -> None:
        self.points: list[tuple[float, int, int]] = [(0.0, 0, 0)]

    def add(self, seconds: float, updates: int, faults: int) -> None:
        """Add a point; amortised O(1)."""
        self.points.append((seconds, updates, faults))
        if len(self.points) > _MOST_POINTS:
            del self.points[1:-1:2]


@define(eq=False)
class Figures:
    """What came of one combination.

    Attributes:
        updates: Changes of the map that were made.
        inhibits: Changes for which the blocker held the vCPUs; where the accelerator does it, that is no inhibit.
        unheld: Changes for which nobody was held.
        kicks: vCPUs that the blocker kicked out of the guest for them.
        slot_calls: Slots that were deleted, created or altered, each a call into the kernel; 0 where it is not counted.
        fragments: Most slots that a run has ended with beyond those that its mappings need; 0 likewise.
        served: Spurious faults that the host could serve.
        unserved: Spurious faults that crashed the guest.
        crashes: Times that the guest crashed, for whatever reason; it was started anew each time.
        unplaced: Those of them without an unserved fault, since there is no address, as after a page walk.
        guest_errors: Wrong values and sums, as the guest sees them; for a workload, expectations that failed.
        guest_passes: Passes that the guest completed; for a workload, runs that came to their end.
        host_errors: Words of memory that the host found wrong after a run.
        held_seconds: Time for which inhibits kept vCPUs out of the guest, waiting for them included.
        seconds: Time for which changes were made.
        first_error: The first thing that was wrong, for people, or an empty string.
        complete: Whether it ran for as long as it should.
    """

    combination: Combination
    updates: int = 0
    inhibits: int = 0
    unheld: int = 0
    kicks: int = 0
    slot_calls: int = 0
    fragments: int = 0
    served: int = 0
    unserved: int = 0
    crashes: int = 0
    unplaced: int = 0
    guest_errors: int = 0
    guest_passes: int = 0
    host_errors: int = 0
    held_seconds: float = 0.0
    seconds: float = 0.0
    first_error: str = ""
    complete: bool = False
    latencies: Latencies = field(factory=Latencies)
    timeline: Timeline = field(factory=Timeline)

    @property
    def faults(self) -> int:
        """All that went wrong in the accelerator: spurious faults, and crashes that there is no address for."""
        return self.served + self.unserved + self.unplaced

    @property
    def clean(self) -> bool:
        """Whether nothing at all was seen of the changes."""
        return not (self.faults or self.guest_errors or self.host_errors)

    def note(self, error: str) -> None:
        """Keep the first thing that was wrong."""
        self.first_error = self.first_error or error

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data for JSON; times in microseconds but where the name says seconds."""
        counts = (
            "updates inhibits unheld kicks slot_calls fragments served unserved crashes unplaced "
            "guest_errors guest_passes host_errors"
        )
        one, each = self.combination, self.latencies
        return {
            "touch": one.touch,
            "cpus": one.cpus,
            "hold": one.hold,
            "plan": one.plan,
            **{name: getattr(self, name) for name in counts.split()},
            "p50_us": each.quantile(0.5) * 1e6,
            "p99_us": each.quantile(0.99) * 1e6,
            "max_us": each.longest * 1e6,
            "held_seconds": self.held_seconds,
            "seconds": self.seconds,
            "clean": self.clean,
            "complete": self.complete,
            "first_error": self.first_error or None,
            "timeline": [list(point) for point in self.timeline.points],
            "latencies_us": [[lower(bucket) * 1e6, each.buckets[bucket]] for bucket in sorted(each.buckets)],
        }

"""What holding the vCPUs has cost: the counters of one blocker.

Layer: below `accel.blocker`, which writes them under the big lock.
"""

from __future__ import annotations

from attrs import define


@define
class BlockerStats:
    """What holding cost so far; times in seconds. Written under the big lock.

    Attributes:
        inhibits: How often everyone was held; nested inhibits count once.
        kicks: vCPUs that had to be brought out for it.
        wait_seconds: From the wish to hold until everyone was out.
        wait_seconds_max: The longest of these.
        hold_seconds: From then until everyone could go on.
        hold_seconds_max: The longest of these.
    """

    inhibits: int = 0
    kicks: int = 0
    wait_seconds: float = 0.0
    wait_seconds_max: float = 0.0
    hold_seconds: float = 0.0
    hold_seconds_max: float = 0.0

    def note_wait(self, seconds: float) -> None:
        """Count an inhibit that took so long to come into force."""
        self.inhibits += 1
        self.wait_seconds += seconds
        if seconds > self.wait_seconds_max:
            self.wait_seconds_max = seconds

    def note_hold(self, seconds: float) -> None:
        """Count how long it was in force."""
        self.hold_seconds += seconds
        if seconds > self.hold_seconds_max:
            self.hold_seconds_max = seconds

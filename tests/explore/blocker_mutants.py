"""What a plausible mistake in the accel-blocker, its gates or its wake-up is: a change of the shipped source.

Each names the scenario in which the explorer must find it, within that scenario's bound, and what it must come to.
"""

from __future__ import annotations

from attrs import frozen

from accel.testing.explore.world import Patch

BLOCKER, GATE, WAKEUP = "accel.blocker", "accel.gate", "accel.wakeup"

#: Makes the gates of Python builds without a GIL, with which every scenario must hold as well.
LOCKED = Patch(GATE, 'GIL_ENABLED: bool = getattr(sys, "_is_gil_enabled", lambda: True)()', "GIL_ENABLED = False")

# What mistakes come to: the kind of violation, and a part of what it says.
LOST = "invariant: a wake-up was lost"
INSIDE = "invariant: inside while everybody is held"
CAME_IN = "invariant: came in while everybody is held"
STUCK = "deadlock: nobody can go on"
LEAK = "invariant: still count as waiting"


@frozen
class Mutant:
    """One mistake.

    Attributes:
        name: What was done wrong.
        scenario: Where it shows.
        kind: The kind of violation.
        tells: What the violation says, in part.
        patches: The mistake.
    """

    name: str
    scenario: str
    kind: str
    tells: str
    patches: tuple[Patch, ...]


def mutant(name: str, scenario: str, found: str, *patches: tuple[str, str, str]) -> Mutant:
    """Return a mutant; `found` is a kind and what it says, each patch a module, a text in it, and what replaces it."""
    kind, _, tells = found.partition(": ")
    return Mutant(name, scenario, kind, tells, tuple(Patch(*one) for one in patches))

"""Which plans and holds of an accelerator a test runs under: those that it claims, the others skipped with the reason.

Layer: above `claims`. The choices are those of `accel.backend.MEMORY_OPTIONS`; an accelerator that declares none of
them is tested as it is.
"""

from __future__ import annotations

import pytest

from accel.backend import DIRTY_RING_OPTION, HOLD_NEEDS, Capability
from accel.testing.claims import Claims

#: How a test is run: as the accelerator does by itself, or with a plan or a hold that it claims to have. Not `unsafe`,
#: of which nothing is demanded.
WAYS = ("default", "replace", "kick-all", "region-list", "replace, kick-all", "replace, region-list")

#: How written pages are noted: by each plan, and in rings.
LOG_WAYS = ("default", "replace", "rings")
#: Entries of a ring.
RING_SIZE = 1024

every_way = pytest.mark.parametrize("way", WAYS)
#: The two plans, for what does not depend on who is held.
every_plan = pytest.mark.parametrize("way", WAYS[:2])
every_log = pytest.mark.parametrize("way", LOG_WAYS)


def options_for(way: str, claims: Claims) -> dict[str, object]:
    """Return the options for one of `WAYS` or `LOG_WAYS`; skips the test where the accelerator does not claim it."""
    options: dict[str, object] = {}
    for word in way.split(", "):
        if word == "default":
            continue
        if word == "rings":
            _need(Capability.DIRTY_RING, "noting written pages in rings", claims)
            options[DIRTY_RING_OPTION.name] = RING_SIZE
            continue
        option = "plan" if word == "replace" else "hold"
        if word not in claims.choices(option):
            pytest.skip(f"{claims.name} declares no option {option}={word}")
        needed = HOLD_NEEDS.get(word)
        if needed is not None:
            _need(needed, f"hold={word}", claims)
        options[option] = word
    return options


def _need(capability: Capability, who: str, claims: Claims) -> None:
    if capability not in claims.capabilities:
        pytest.skip(f"{claims.name} does not claim {capability}, which {who} needs")

"""Which plans and holds of an accelerator a test runs under: those that it claims, the others skipped with the reason.

Layer: above `claims`. The choices are those of `accel.backend.MEMORY_OPTIONS`; an accelerator that declares none of
them is tested as it is.
"""

from __future__ import annotations

import pytest

from accel.backend import HOLD_NEEDS
from accel.testing.claims import Claims

#: How a test is run: as the accelerator does by itself, or with a plan or a hold that it claims to have. Not `unsafe`,
#: of which nothing is demanded.
WAYS = ("default", "replace", "kick-all", "region-list", "replace, kick-all", "replace, region-list")

every_way = pytest.mark.parametrize("way", WAYS)
#: The two plans, for what does not depend on who is held.
every_plan = pytest.mark.parametrize("way", WAYS[:2])


def options_for(way: str, claims: Claims) -> dict[str, object]:
    """Return the options for one of `WAYS`; skips the test where the accelerator does not claim it."""
    options: dict[str, object] = {}
    for word in way.split(", "):
        if word == "default":
            continue
        option = "plan" if word == "replace" else "hold"
        if word not in claims.choices(option):
            pytest.skip(f"{claims.name} declares no option {option}={word}")
        needed = HOLD_NEEDS.get(word)
        if needed is not None and needed not in claims.capabilities:
            pytest.skip(f"{claims.name} does not claim {needed}, which hold={word} needs")
        options[option] = word
    return options

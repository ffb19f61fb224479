"""Whether the regions of a workload nest sensibly: none inside itself, not too deep, not in too many places.

Layer: above `schema`, below `check`. The memory core refuses the same, but only once the machine is there and the
region shows, and without a field to point at. Regions lead to what they hold and to what they show: a directed graph
of at most some thousand nodes, which is looked at once, from the leaves up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from accel.errors import WorkloadError
from accel.workload.schema import MACHINE_RAM, RegionSpec

#: Levels of regions and aliases inside each other: a quarter of what the core takes, as a split adds levels.
MAX_LEVELS = 64
#: Places at which a region and all that is in it show, each alias counted anew: aliases of aliases multiply.
MAX_PLACES = 1 << 16

#: The address space itself; no region has this name.
_SPACE = ""


def check_nesting(specs: Sequence[RegionSpec]) -> None:
    """Check regions whose parents and targets are known to stand above them.

    Raises:
        WorkloadError: One contains itself through an alias, or nests too deep or too often; names its field.
    """
    index = {spec.name: number for number, spec in enumerate(specs)}
    leads_to: dict[str, list[str]] = {_SPACE: [MACHINE_RAM], MACHINE_RAM: [], **{name: [] for name in index}}
    for spec in specs:
        leads_to[spec.parent or _SPACE].append(spec.name)
        if spec.target is not None:
            leads_to[spec.name].append(spec.target)
    try:
        order = list(TopologicalSorter(leads_to).static_order())
    except CycleError as error:
        raise _circle(set(error.args[1]), specs, index) from error
    levels, places = _measured(order, leads_to)
    for what, limit, found in (("levels", MAX_LEVELS, levels), ("places", MAX_PLACES, places)):
        if found[_SPACE] > limit:
            # The first that is too much by itself stands as high up in the file as can be.
            name = next((name for name in index if found[name] > limit), None)
            field = "region" if name is None else f"region[{index[name]}].name"
            problem = f"unfolds into more than {limit} {what}; nest fewer regions and aliases"
            raise WorkloadError("workload", field, name, problem)


def _measured(order: Sequence[str], leads_to: Mapping[str, Sequence[str]]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the levels and the places of each region; in `order`, what one leads to comes before it."""
    levels: dict[str, int] = {}
    places: dict[str, int] = {}
    for name in order:
        below = leads_to[name]
        levels[name] = 1 + max((levels[one] for one in below), default=0)
        # Nobody needs the number of places beyond the limit, and it can have hundreds of digits.
        places[name] = min(1 + sum(places[one] for one in below), MAX_PLACES + 1)
    return levels, places


def _circle(names: set[str], specs: Sequence[RegionSpec], index: Mapping[str, int]) -> WorkloadError:
    """Return the error about the lowest region of a circle: an alias, which shows what it stands in."""
    last = max((spec for spec in specs if spec.name in names), key=lambda spec: index[spec.name])
    return WorkloadError(
        "workload",
        f"region[{index[last.name]}].parent",
        last.parent,
        f"is shown by '{last.name}' through its target '{last.target}', so it would contain itself; use another parent",
    )

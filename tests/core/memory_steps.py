"""All kinds of steps of `memory_world` by name, and the mixes that runs are made of."""

from __future__ import annotations

from collections.abc import Callable

from memory_attributes import coalesce, log, ring, set_enabled, set_nonvolatile, set_readonly, set_romd
from memory_edits import add, alias, grow, move, remove, resize, set_priority, set_target_offset
from memory_frame import begin, end, listen, log_all, space, take_back

Step = Callable[..., None]

_PLACES = [grow] * 3 + [add] * 6 + [remove] * 4 + [move] * 8 + [resize] * 5 + [set_priority] * 4
_ALIASES = [alias] * 2 + [set_target_offset] * 5
_FLAGS = [set_enabled] * 4 + [set_readonly] * 3 + [set_nonvolatile] * 2 + [set_romd] * 2
_ATTRIBUTES = [log] * 3 + [coalesce] * 2 + [ring] * 2
_FRAME = [begin] * 3 + [end] * 5 + [take_back] * 1 + [listen, space, log_all]

STEPS: dict[str, Step] = {
    step.__name__: step for part in (_PLACES, _ALIASES, _FLAGS, _ATTRIBUTES, _FRAME) for step in part
}

#: What is put off until more shows.
PUT_OFF = {"remove", "resize", "set_priority", "set_target_offset", "set_enabled", "log", "coalesce", "ring"}


def _mix(*parts: list[Step]) -> list[str]:
    return [step.__name__ for part in parts for step in part]


#: What a run is made of; one of these.
MIXES = [
    _mix(_PLACES, _ALIASES, _FLAGS, _ATTRIBUTES, _FRAME),
    _mix(_PLACES * 2, _FRAME),
    _mix(_PLACES, _ALIASES * 3, _FLAGS, _FRAME),
    _mix(_PLACES, _ALIASES, _FLAGS, _ATTRIBUTES, _FRAME * 3),
    _mix(_PLACES, _FLAGS * 2, _ATTRIBUTES * 3, _FRAME),
]

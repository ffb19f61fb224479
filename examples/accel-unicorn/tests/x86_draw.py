"""Draws sequences: which forms, and which blocks around them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import x86_forms_data
import x86_forms_system
import x86_forms_vector
from x86_blocks import BLOCKS
from x86_encoding import STATUS, EncodingError, Instruction, UndefinedFlagError
from x86_faults import FAULTS
from x86_forms import FORMS, Form
from x86_forms_data import define_flags
from x86_modes import Mode, random_flags, random_memory, random_registers
from x86_operands import Operands
from x86_sequences import Block, Node, Sequence, Unit

#: Importing these registers their forms.
REGISTERED = (x86_forms_data, x86_forms_system, x86_forms_vector)
#: Units and blocks of a sequence, at most, and how deep blocks lie in each other.
MOST_NODES, _DEPTH = 12, 2
#: One node in so many is a block.
_BLOCK = 6
_TRIES = 500
_READ_TWICE = frozenset({"div", "idiv", "bsf", "bsr", "cmpxchg", "paddq"})


class NothingToDrawError(Exception):
    """What may be drawn is excluded."""


Excluded = Callable[[Mode, Instruction], bool]


def names_of(mode: Mode) -> list[str]:
    """Return the forms that exist in a mode."""
    return [one.name for one in FORMS.values() if one.exists(mode)]


def nothing(mode: Mode, instruction: Instruction) -> bool:
    """Exclude no instruction."""
    return False


def draw_sequence(mode: Mode, seed: str, excluded: Excluded = nothing, *, device: bool = False) -> Sequence:
    """Return the sequence of `seed`, the same each time, without the instructions that are `excluded`.

    With `device`, operands may lie in the device page; units that access memory more than once are left out, since a
    device answers something else each time.
    """
    source = random.Random(f"{mode.name} {seed}")
    operands = Operands(source, mode, device=device)
    names = [name for name in names_of(mode) if not device or name not in _READ_TWICE]
    count = source.randint(1, MOST_NODES)
    return _sequence(source, mode, _Drawer(names, excluded).nodes(operands, count, STATUS))


def draw_unit(mode: Mode, form: str, seed: str, excluded: Excluded = nothing, *, device: bool = False) -> Sequence:
    """Return a sequence that is one unit of `form`."""
    source = random.Random(f"{mode.name} {form} {seed}")
    operands = Operands(source, mode, device=device)
    return _sequence(source, mode, _Drawer([form], excluded, depth=_DEPTH).nodes(operands, 1, STATUS))


def draw_fault(mode: Mode, form: str, seed: str, excluded: Excluded = nothing) -> Sequence:
    """Return a sequence that ends with a unit of `FAULTS`."""
    source = random.Random(f"{mode.name} {form} {seed}")
    operands = Operands(source, mode)
    nodes = _Drawer(names_of(mode), excluded).nodes(operands, source.randrange(3), STATUS)
    define = Unit("define flags", (define_flags(operands),))
    fault = _Drawer([form], excluded, depth=_DEPTH, forms=FAULTS).nodes(operands, 1, STATUS)
    return _sequence(source, mode, (*nodes, define, *fault))


def _sequence(source: random.Random, mode: Mode, nodes: tuple[Node, ...]) -> Sequence:
    return Sequence(mode, nodes, random_registers(source, mode), random_flags(source), random_memory(source))


class _Drawer:
    """Draws nodes.

    Args:
        names: Of the forms.
        excluded: Tells of instructions that must not occur.
        depth: How deep in blocks it is.
        forms: Where the forms are.
    """

    def __init__(self, names: list[str], excluded: Excluded, depth: int = 0, forms: dict[str, Form] = FORMS) -> None:
        self._names = names
        self._excluded = excluded
        self._depth = depth
        self._forms = forms

    def nodes(self, o: Operands, count: int, defined: int) -> tuple[Node, ...]:
        """Return `count` nodes; `defined` are the flags that are defined before them."""
        found = []
        for _ in range(count):
            node, defined = self._node(o, defined)
            found.append(node)
        return tuple(found)

    def _node(self, o: Operands, defined: int) -> tuple[Node, int]:
        for _ in range(_TRIES):
            try:
                node = self._block(o, defined) if self._depth < _DEPTH and o.chance(_BLOCK) else self._unit(o)
                for _ in node.lines(0):
                    pass  # a jump may be too far
                return node, node.after(defined)
            except (EncodingError, UndefinedFlagError):
                continue
        raise NothingToDrawError(f"in {o.mode.name} of {self._names}")

    def _unit(self, o: Operands) -> Unit:
        one = self._forms[o.source.choice(self._names)]
        if self._depth and one.moves_stack and len(self._names) > 1:
            # A body may be executed several times, or return.
            raise EncodingError
        o.begin()
        drawn = one.draw(o)
        unit = Unit(one.name, (*o.setup, *drawn))
        if any(self._excluded(o.mode, instruction) for instruction in unit.instructions):
            raise EncodingError
        return unit

    def _block(self, o: Operands, defined: int) -> Block:
        def body(keep: Iterable[int], at_start: int) -> tuple[Node, ...]:
            inner = _Drawer(self._names, self._excluded, self._depth + 1)
            return inner.nodes(o.within(keep), o.source.randint(1, 4), at_start)

        block: Block = o.source.choice(BLOCKS)(o, defined, body)
        return block

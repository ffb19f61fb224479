"""Draws sequences: which forms, and which blocks around them."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable

import x86_forms_data
import x86_forms_system
from x86_blocks import BLOCKS
from x86_encoding import STATUS, EncodingError, UndefinedFlagError
from x86_forms import FORMS
from x86_modes import Mode, random_flags, random_memory, random_registers
from x86_operands import Operands
from x86_sequences import Block, Node, Sequence, Unit

#: Importing these registers their forms.
REGISTERED = (x86_forms_data, x86_forms_system)
#: Units and blocks of a sequence, at most, and how deep blocks lie in each other.
MOST_NODES, _DEPTH = 12, 2
#: One node in so many is a block.
_BLOCK = 6
_TRIES = 500


def names_of(mode: Mode) -> list[str]:
    """Return the forms that exist in a mode."""
    return [one.name for one in FORMS.values() if mode.bits in one.bits]


def draw_sequence(mode: Mode, seed: str, without: Collection[str] = ()) -> Sequence:
    """Return the sequence of `seed`, the same each time, with none of the forms in `without`."""
    source = random.Random(f"{mode.name} {seed}")
    names = [name for name in names_of(mode) if name not in without]
    count = source.randint(1, MOST_NODES)
    return _sequence(source, mode, _Drawer(names).nodes(Operands(source, mode), count, STATUS))


def draw_unit(mode: Mode, form: str, seed: str) -> Sequence:
    """Return a sequence that is one unit of `form`."""
    source = random.Random(f"{mode.name} {form} {seed}")
    return _sequence(source, mode, _Drawer([form], depth=_DEPTH).nodes(Operands(source, mode), 1, STATUS))


def _sequence(source: random.Random, mode: Mode, nodes: tuple[Node, ...]) -> Sequence:
    return Sequence(mode, nodes, random_registers(source, mode), random_flags(source), random_memory(source))


class _Drawer:
    """Draws nodes.

    Args:
        names: Of the forms.
        depth: How deep in blocks it is.
    """

    def __init__(self, names: list[str], depth: int = 0) -> None:
        self._names = names
        self._depth = depth

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
        raise AssertionError(f"nothing can be drawn in {o.mode.name} of {self._names}")

    def _unit(self, o: Operands) -> Unit:
        one = FORMS[o.source.choice(self._names)]
        if self._depth and one.moves_stack and len(self._names) > 1:
            # A body may be executed several times, or return.
            raise EncodingError
        o.begin()
        drawn = one.draw(o)
        return Unit(one.name, (*o.setup, *drawn))

    def _block(self, o: Operands, defined: int) -> Block:
        def body(keep: Iterable[int], at_start: int) -> tuple[Node, ...]:
            inner = _Drawer(self._names, self._depth + 1)
            return inner.nodes(o.within(keep), o.source.randint(1, 4), at_start)

        block: Block = o.source.choice(BLOCKS)(o, defined, body)
        return block

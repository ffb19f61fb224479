"""Sequences: units of instructions and blocks with jumps, placed at an address, printed, and made shorter.

A sequence is a tree of nodes. Each knows how many bytes it takes, so jumps find their targets wherever it lies, and a
node can be left out. What flags are defined is followed through it: `Sequence.defined` is what may be compared in the
end, and a sequence in which an instruction depends on an undefined flag is none.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from attrs import evolve, field, frozen
from x86_encoding import STATUS, Effect, EncodingError, Instruction, UndefinedFlagError
from x86_modes import CODE, Mode

HLT = b"\xf4"

Line = tuple[int, bytes, str]
_NONE = Effect()


@frozen
class Unit:
    """Instructions that belong together, of one form."""

    form: str
    instructions: tuple[Instruction, ...]

    @property
    def size(self) -> int:
        return sum(len(one.code) for one in self.instructions)

    def lines(self, address: int) -> Iterator[Line]:
        for one in self.instructions:
            yield address, one.encode(address), str(one)
            address += len(one.code)

    def after(self, defined: int) -> int:
        """Return the flags that are defined after it. Raises UndefinedFlagError."""
        for one in self.instructions:
            defined = one.effect.after(defined)
        return defined

    def smaller(self) -> Iterator[Node]:
        return iter(())

    @property
    def forms(self) -> set[str]:
        return {self.form}


class Flow(enum.Enum):
    """How often the body of a block is executed."""

    MAYBE, NEVER, ONCE, LOOP = range(4)


class Place(enum.Enum):
    """Where a jump of a block leads."""

    BODY, TAIL, END = range(3)


@frozen
class Jump:
    """A jump, or what needs an address: `code`, then `width` bytes that lead to `place`, absolute or not."""

    text: str
    code: bytes
    width: int
    place: Place
    effect: Effect = _NONE
    absolute: bool = False

    @property
    def size(self) -> int:
        return len(self.code) + self.width


Part = Instruction | Jump


@frozen
class Block:
    """A body with jumps around it."""

    form: str
    flow: Flow
    head: tuple[Part, ...]
    body: tuple[Node, ...]
    tail: tuple[Part, ...] = ()

    @property
    def size(self) -> int:
        return _size(self.head) + sum(node.size for node in self.body) + _size(self.tail)

    def lines(self, address: int) -> Iterator[Line]:
        body = address + _size(self.head)
        tail = body + sum(node.size for node in self.body)
        places = {Place.BODY: body, Place.TAIL: tail, Place.END: tail + _size(self.tail)}
        yield from _part_lines(self.head, address, places)
        for node in self.body:
            yield from node.lines(body)
            body += node.size
        yield from _part_lines(self.tail, tail, places)

    def after(self, defined: int) -> int:
        """Return the flags that are defined after it. Raises UndefinedFlagError."""
        defined = _parts_after(self.head, defined)
        if self.flow is Flow.NEVER:
            return defined
        found = self._body_after(defined)
        while self.flow is Flow.LOOP and found & defined != defined:
            # Of the next round.
            defined &= found
            found = self._body_after(defined)
        return found & defined if self.flow is Flow.MAYBE else found

    def _body_after(self, defined: int) -> int:
        for node in self.body:
            defined = node.after(defined)
        return _parts_after(self.tail, defined)

    def smaller(self) -> Iterator[Node]:
        """Yield the same with less in it."""
        for body in shorter(self.body):
            yield evolve(self, body=body)

    @property
    def forms(self) -> set[str]:
        return {self.form}.union(*(node.forms for node in self.body))


Node = Unit | Block


def _size(parts: tuple[Part, ...]) -> int:
    return sum(part.size if isinstance(part, Jump) else len(part.code) for part in parts)


def _part_lines(parts: tuple[Part, ...], address: int, places: dict[Place, int]) -> Iterator[Line]:
    for part in parts:
        if isinstance(part, Instruction):
            code, text = part.encode(address), str(part)
        else:
            target = places[part.place]
            value = target if part.absolute else target - address - part.size
            try:
                code = part.code + value.to_bytes(part.width, "little", signed=not part.absolute)
            except OverflowError as error:
                raise EncodingError from error
            text = f"{part.text} {target:#x}"
        yield address, code, text
        address += len(code)


def _parts_after(parts: tuple[Part, ...], defined: int) -> int:
    for part in parts:
        defined = part.effect.after(defined)
    return defined


def shorter(nodes: tuple[Node, ...]) -> Iterator[tuple[Node, ...]]:
    """Yield the same with less of it: halves left out, then single nodes, then what is in them."""
    count = len(nodes) // 2
    while count:
        for at in range(0, len(nodes), count):
            yield nodes[:at] + nodes[at + count :]
        count //= 2
    if len(nodes) == 1:
        yield ()
    for at, node in enumerate(nodes):
        if isinstance(node, Block):
            yield nodes[:at] + node.body + nodes[at + 1 :]
        for one in node.smaller():
            yield (*nodes[:at], one, *nodes[at + 1 :])


@frozen
class Sequence:
    """A sequence and the state in which it begins; it ends with HLT."""

    mode: Mode
    nodes: tuple[Node, ...]
    registers: tuple[int, ...] = field(repr=False)
    flags: int
    memory: bytes = field(repr=False)

    def lines(self) -> Iterator[Line]:
        """Yield address, bytes and text of each instruction."""
        address = CODE
        for node in self.nodes:
            yield from node.lines(address)
            address += node.size
        yield address, HLT, "hlt"

    @property
    def code(self) -> bytes:
        return b"".join(code for _, code, _ in self.lines())

    @property
    def defined(self) -> int:
        """The flags that are defined in the end. Raises UndefinedFlagError."""
        defined = STATUS
        for node in self.nodes:
            defined = node.after(defined)
        return defined

    @property
    def forms(self) -> set[str]:
        return set().union(*(node.forms for node in self.nodes))

    def smaller(self) -> Iterator[Sequence]:
        """Yield those with less in them that depend on no undefined flag."""
        for nodes in shorter(self.nodes):
            one = evolve(self, nodes=nodes)
            try:
                _ = one.defined, one.code
            except (UndefinedFlagError, EncodingError):
                continue
            yield one

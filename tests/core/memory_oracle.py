"""What a tree of regions shows, said cell by cell from a plain model that knows nothing of the real tree.

The model is a dict of dicts. A region shows a list of cells: what it is made of itself, then its children painted over
that from the lowest rank to the highest; an alias cuts its list out of its target's. The real rendering works the other
way round and on ranges: from the highest rank down, where whoever comes first keeps what it covers.

A cell is half a page, so that some regions do not begin at a page.
"""

from __future__ import annotations

from typing import Any, NamedTuple

PAGE = 4096
UNIT = PAGE // 2
MIGRATION = 4

Record = dict[str, Any]


class Piece(NamedTuple):
    """What a cell shows, but for the offset in the leaf."""

    leaf: str
    readonly: bool
    nonvolatile: bool
    unmergeable: bool
    #: The regions above, from the top down, as nested pairs.
    path: tuple[str, Any] | None


Cells = tuple[list[Piece | None], list[int]]


class Shown(NamedTuple):
    """One section, in bytes, with all its fields."""

    start: int
    end: int
    leaf: str
    offset: int
    readonly: bool
    romd: bool
    nonvolatile: bool
    unmergeable: bool
    log_mask: int
    coalesced: tuple[tuple[int, int], ...]
    eventfds: tuple[tuple[int, int, int | None, int], ...]

    def __str__(self) -> str:
        more = [f"{name}={value}" for name, value in zip(self._fields[4:], self[4:], strict=True) if value]
        return " ".join([f"[{self.start:#x}-{self.end:#x} {self.leaf} @{self.offset:#x}", *more]) + "]"


def new_record(kind: str, size: int, **values: Any) -> Record:
    """Return a region that is in no parent; sizes and offsets are in cells, but for `coalesced` and `eventfds`."""
    return {
        "kind": kind,
        "size": size,
        "max_size": size,
        "at": 0,
        "priority": 0,
        "rank": 0,
        "parent": None,
        "owned": False,
        "enabled": True,
        "readonly": kind == "rom",
        "nonvolatile": False,
        "unmergeable": False,
        "romd": kind == "romd",
        "target": None,
        "target_offset": 0,
        "logs": (),
        "coalesced": (),
        "eventfds": (),
        **values,
    }


class Model:
    """The regions by name; records are replaced, never changed, so that a shallow copy is a snapshot.

    Attributes:
        regions: Name → record.
        global_logs: How often all memory is logged.
    """

    def __init__(self) -> None:
        self.regions: dict[str, Record] = {}
        self.global_logs = 0
        self._forget()

    def _forget(self) -> None:
        self._cells: dict[str, Cells] = {}
        self._children: dict[str, list[str]] | None = None

    def change(self, name: str, **values: Any) -> None:
        """Set what is known of a region."""
        self.regions[name] = {**self.regions[name], **values}
        self._forget()

    def restore(self, regions: dict[str, Record]) -> None:
        """Go back to a snapshot."""
        self.regions = dict(regions)
        self._forget()

    def log_all(self, count: int) -> None:
        """Say how often all memory is logged."""
        self.global_logs = count

    # questions

    def children(self, name: str) -> list[str]:
        """Return the children, lowest rank first."""
        if self._children is None:
            self._children = {}
            for one, record in self.regions.items():
                if record["parent"] is not None:
                    self._children.setdefault(record["parent"], []).append(one)
            for names in self._children.values():
                names.sort(key=lambda one: (self.regions[one]["priority"], self.regions[one]["rank"]))
        return self._children.get(name, [])

    def leads_to(self, name: str, *, upward: bool = False) -> set[str]:
        """Return the region and all that it shows; with `upward`, also what those stand in, and what that shows."""
        found: set[str] = set()
        pending = [name]
        while pending:
            one = pending.pop()
            if one not in found:
                found.add(one)
                record = self.regions[one]
                pending += self.children(one)
                pending += [other for other in (record["target"], record["parent"] if upward else None) if other]
        return found

    def cells(self, name: str) -> Cells:
        """Return what each cell of a region shows, and the offset in the leaf of each."""
        if name not in self._cells:
            self._cells[name] = self._paint(name, self.regions[name])
        return self._cells[name]

    def _paint(self, name: str, record: Record) -> Cells:
        size = record["size"]
        pieces: list[Piece | None] = [None] * size
        offsets = list(range(size))
        if not record["enabled"]:
            return pieces, offsets
        if record["kind"] == "alias":
            at = record["target_offset"]
            there, where = self.cells(record["target"])
            pieces = (there[at : at + size] + pieces)[:size]
            offsets = (where[at : at + size] + offsets)[:size]
        elif record["kind"] != "container":
            pieces = [Piece(name, False, False, False, None)] * size
        for child in self.children(name):
            at = self.regions[child]["at"]
            there, where = self.cells(child)
            for number in range(min(len(there), size - at)):
                if there[number] is not None:
                    pieces[at + number], offsets[at + number] = there[number], where[number]
        seen = {one: one and self._through(one, name, record) for one in set(pieces)}
        return [seen[one] for one in pieces], offsets

    @staticmethod
    def _through(piece: Piece, name: str, record: Record) -> Piece:
        return Piece(
            piece.leaf,
            piece.readonly or record["readonly"],
            piece.nonvolatile or record["nonvolatile"],
            piece.unmergeable or record["unmergeable"],
            (name, piece.path),
        )

    def shown_names(self, root: str) -> set[str]:
        """Return the regions that are at work where `root` shows something, leaves and all above them."""
        names: set[str] = set()
        for piece in set(self.cells(root)[0]):
            path = piece and piece.path
            while path is not None:
                names.add(path[0])
                path = path[1]
        return names

    def sections(self, root: str) -> list[Shown]:
        """Return the sections that the cells of `root` mean."""
        found: list[Shown] = []
        first = 0
        pieces, offsets = self.cells(root)
        for at, piece in enumerate(pieces):
            if piece is None:
                first = at + 1
            elif at + 1 == len(pieces) or offsets[at] + 1 != offsets[at + 1] or not _continues(piece, pieces[at + 1]):
                found.append(self._section(first, at + 1, piece, offsets[first]))
                first = at + 1
        return found

    def _section(self, start: int, end: int, piece: Piece, offset: int) -> Shown:
        leaf = self.regions[piece.leaf]
        mask = sum(client for client, count in leaf["logs"] if count)
        if self.global_logs:
            mask |= MIGRATION
        return Shown(
            start * UNIT,
            end * UNIT,
            piece.leaf,
            offset * UNIT,
            piece.readonly,
            leaf["romd"],
            piece.nonvolatile,
            piece.unmergeable,
            mask if leaf["kind"] in ("ram", "rom", "romd") else 0,
            leaf["coalesced"],
            leaf["eventfds"],
        )


def _continues(piece: Piece, after: Piece | None) -> bool:
    """Return whether two neighbours with offsets that go on are parts of one section."""
    if piece is after or after is None:
        return after is not None
    # What must stay apart from others is still one piece with itself.
    return piece == after if piece.unmergeable else piece[:4] == after[:4]


def queued(sections: list[Shown]) -> set[tuple[int, int]]:
    """Return the addresses, in steps of a quarter of a cell, whose writes may be queued, each with its section."""
    step = UNIT // 4
    found = set()
    for one in sections:
        for start, end in one.coalesced:
            for offset in range(start, end, step):
                address = offset - one.offset + one.start
                if one.start <= address < one.end:
                    found.add((one.start, address))
    return found


def bells(sections: list[Shown]) -> set[tuple[int, int, int, int | None, int]]:
    """Return (section, address, size, match, fd) of the ioeventfds whose every byte one section shows."""
    found = set()
    for one in sections:
        for offset, size, match, fd in one.eventfds:
            touched = [offset - one.offset + one.start + byte for byte in range(size or 1)]
            if all(one.start <= address < one.end for address in touched):
                found.add((one.start, touched[0], size, match, fd))
    return found

"""Rebuilds a machine's flat view from its trace alone, and complains about what does not fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Line = dict[str, Any]
Map = dict[int, tuple[Line, set[tuple[int, int]], set[tuple[int, int, int | None, int]]]]

#: What a line says of its section, in its own words.
FIELDS = ("address", "size", "region", "kind", "offset", "readonly", "romd", "nonvolatile", "unmergeable")


class Replay:
    """The map of one machine as its lines tell it.

    Args:
        nops: Whether the lines also tell what stays.

    Attributes:
        map: By address: the section, its queued windows, and its ioeventfds.
        generation: The generation that the last line named.
        commits: How many changes came into force.
    """

    def __init__(self, *, nops: bool = False) -> None:
        self.map: Map = {}
        self.generation = 0
        self.commits = 0
        self._next: Map | None = None
        self._time = 0
        self._nops = nops
        # Where a section came or stayed.
        self._heard: set[int] = set()

    def feed(self, lines: Iterable[Line]) -> None:
        """Follow some lines."""
        for line in lines:
            assert line["time"] >= self._time, "time goes on"
            assert line["generation"] >= self.generation, "so do generations"
            self._time, self.generation = line["time"], line["generation"]
            self._event(line["event"], line)

    def _event(self, event: str, line: Line) -> None:
        if event == "begin":
            assert self._next is None
            self._heard.clear()
            self._next = {at: (dict(one), set(windows), set(bells)) for at, (one, windows, bells) in self.map.items()}
        elif event == "commit":
            assert self._next is not None
            self.map, self._next = self._next, None
            self.commits += 1
            assert not self._nops or self._heard == set(self.map)
        elif event == "abort":
            self._next = None
        elif event in ("open", "close", "log_sync", "log_clear") or event.startswith("log_global"):
            assert self._next is None, f"{event} inside a change"
        elif event not in ("prepare", "apply", "undo"):
            assert self._next is not None, f"{event} outside of a change"
            self._change(self._next, event, line)

    def _change(self, now: Map, event: str, line: Line) -> None:
        at = int(line.get("section", line["address"]), 16)
        if event in ("region_add", "region_nop"):
            self._heard.add(at)
        if event == "region_add":
            assert at not in now
            now[at] = ({name: line[name] for name in (*FIELDS, "log")}, set(), set())
        elif event == "region_del":
            section, windows, bells = now.pop(at)
            assert section == {name: line[name] for name in (*FIELDS, "log")}
            assert not windows
            assert not bells
        elif event in ("log_start", "log_stop"):
            assert all(now[at][0][name] == line[name] for name in FIELDS)
            now[at][0]["log"] = line["log"]
        elif event == "region_nop":
            assert all(now[at][0][name] == line[name] for name in FIELDS)
        else:
            assert now[at][0]["region"] == line["region"]
            self._io(now[at][1:], event, line)

    def _io(self, io: Any, event: str, line: Line) -> None:
        start, size = int(line["address"], 16), int(line["size"], 16)
        kept, item = io[0], (start, start + size)
        if event.startswith("eventfd"):
            match = None if line["match"] is None else int(line["match"], 16)
            kept, item = io[1], (start, size, match, line["fd"])
        assert (item in kept) == event.endswith("del"), f"{event} of {item}"
        (kept.remove if event.endswith("del") else kept.add)(item)

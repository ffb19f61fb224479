"""A listener that keeps a map of its own from what it is told alone, and complains about what it must not be told."""

from __future__ import annotations

from typing import Any

from accel.memory.listener import MemoryListener

#: The parts of a transaction, in order; callbacks of one part go upward by address.
PARTS = {
    "eventfd_del": 0,
    "coalesced_io_del": 0,
    "region_del": 1,
    "region_add": 2,
    "region_nop": 2,
    "log_start": 2,
    "log_stop": 2,
    "coalesced_io_add": 3,
    "eventfd_add": 3,
}
#: What comes first within one section.
RANKS = {"coalesced_io_del": 1, "eventfd_add": 1, "log_start": 1, "log_stop": 2}
#: What goes from high priority to low.
FALLING = ("eventfd_del", "coalesced_io_del", "region_del", "log_stop", "abort")


class Complaint(Exception):
    """Something is not as it must be."""


class Refusal(Exception):
    """A listener that was told to refuse does so."""


def require(true: object, what: str, *details: object) -> None:
    """Raise Complaint unless `true`."""
    if not true:
        raise Complaint(" ".join([what, *map(str, details)]))


class Replay(MemoryListener):
    """Replays what it hears.

    Args:
        name: For complaints.
        priority: Among listeners.
        heard: Where it writes down each callback, shared with the other listeners of the space.

    Attributes:
        map: The sections by start.
        queued: (section's start, first address, end) of ranges whose writes may be queued.
        bells: (section's start, address, size, match, fd) of ioeventfds.
        masks: The log mask by start.
        refuses: Whether it refuses the next change.
        told: Transactions that it heard of.
        logs_all: Whether all memory is logged.
        is_open: Whether it is inside a transaction.
    """

    def __init__(self, name: str, priority: int, heard: list[tuple[str, str, int]]) -> None:
        self.name = name
        self.priority = priority
        self.heard = heard
        self.map: dict[int, Any] = {}
        self.queued: set[tuple[int, int, int]] = set()
        self.bells: set[tuple[int, int, int, int | None, int]] = set()
        self.masks: dict[int, int] = {}
        self.refuses = False
        self.told = 0
        self.logs_all = False
        self.is_open = False

    def _note(self, callback: str, section: Any) -> None:
        where = (PARTS[callback], section.range.start, RANKS.get(callback, 0))
        require(self.is_open, self.name, callback, "outside of a transaction")
        require(where >= self._last, self.name, callback, section, "comes too late: after", self._last)
        if callback.startswith(("region", "log")):
            require(where > self._last, self.name, callback, section, "is told twice")
        if callback.startswith("log"):
            require(self._last[:2] == where[:2], self.name, callback, section, "does not follow its region_nop")
        self._last = where
        self.heard.append((self.name, callback, section.range.start))

    # a transaction

    def begin(self) -> None:
        require(not self.is_open, self.name, "begin inside a transaction")
        self.is_open = True
        self._last = (-1, 0, 0)
        self._before = (dict(self.map), set(self.queued), set(self.bells), dict(self.masks))
        self._gone: list[Any] = []
        self._stayed: set[int] = set()
        self._came: set[int] = set()
        self._seen = len(self.heard)
        self.heard.append((self.name, "begin", 0))

    def region_del(self, section: Any) -> None:
        self._note("region_del", section)
        start = section.range.start
        require(self.map.get(start) == section, self.name, "region_del of the unknown", section)
        require(self.masks[start] == section.log_mask, self.name, "region_del with another log mask", section)
        left = any(one[0] == start for one in (*self.queued, *self.bells))
        require(not left, self.name, "region_del before coalesced_io_del or eventfd_del", section)
        del self.map[start], self.masks[start]
        self._gone.append(section)

    def region_add(self, section: Any) -> None:
        self._note("region_add", section)
        for other in self.map.values():
            require(not other.range.overlaps(section.range), self.name, "region_add of", section, "over", other)
        require(section not in self._gone, self.name, "region_add of what region_del took away", section)
        self.map[section.range.start] = section
        self.masks[section.range.start] = section.log_mask
        self._came.add(section.range.start)

    def region_nop(self, section: Any) -> None:
        self._note("region_nop", section)
        start = section.range.start
        require(self.map.get(start) == section, self.name, "region_nop of the unknown", section)
        require(start not in self._came, self.name, "region_nop of what came just now", section)
        self._stayed.add(start)
        self.map[start] = section

    def log_start(self, section: Any, old: int, new: int) -> None:
        self._note("log_start", section)
        self._check_log(section, old, new, new & ~old)

    def log_stop(self, section: Any, old: int, new: int) -> None:
        self._note("log_stop", section)
        self._check_log(section, old, new, old & ~new)

    def _check_log(self, section: Any, old: int, new: int, gained: int) -> None:
        start = section.range.start
        require(start in self._stayed and self.map[start] is section, self.name, "log_* without region_nop", section)
        require(gained, self.name, "log_* that changes nothing", old, new)
        require(new == section.log_mask, self.name, "log_* tells mask", new, "of", section)
        require(self.masks[start] in (old, new), self.name, "log_* from another mask than", self.masks[start])
        self.masks[start] = new

    def coalesced_io_del(self, section: Any, window: Any) -> None:
        self._note("coalesced_io_del", section)
        item = (section.range.start, window.start, window.end)
        require(item in self.queued, self.name, "coalesced_io_del of the unknown", *item)
        require(self.map.get(item[0]) == section, self.name, "coalesced_io_del in the unknown", section)
        self.queued.remove(item)

    def coalesced_io_add(self, section: Any, window: Any) -> None:
        self._note("coalesced_io_add", section)
        item = (section.range.start, window.start, window.end)
        require(self.map.get(item[0]) == section, self.name, "coalesced_io_add in the unknown", section)
        require(window.size and section.range.covers(window), self.name, "coalesced_io_add outside of", section)
        for _, start, end in self.queued:
            require(end <= window.start or window.end <= start, self.name, "coalesced_io_add twice for", window)
        self.queued.add(item)

    def eventfd_del(self, section: Any, eventfd: Any) -> None:
        self._note("eventfd_del", section)
        item = (section.range.start, eventfd.offset, eventfd.size, eventfd.match, eventfd.fd)
        require(item in self.bells, self.name, "eventfd_del of the unknown", *item)
        require(self.map.get(item[0]) == section, self.name, "eventfd_del in the unknown", section)
        self.bells.remove(item)

    def eventfd_add(self, section: Any, eventfd: Any) -> None:
        self._note("eventfd_add", section)
        item = (section.range.start, eventfd.offset, eventfd.size, eventfd.match, eventfd.fd)
        require(self.map.get(item[0]) == section, self.name, "eventfd_add in the unknown", section)
        require(item not in self.bells, self.name, "eventfd_add twice for", *item)
        self.bells.add(item)

    def prepare(self) -> None:
        require(self.is_open, self.name, "prepare outside of a transaction")
        missed = set(self.map) - self._came - self._stayed
        require(not missed, self.name, "no region_nop for what stays at", *missed)
        for start, section in self.map.items():
            require(self.masks[start] == section.log_mask, self.name, "no log_* for the mask of", section)
        if self.refuses:
            raise Refusal

    def commit(self) -> None:
        self.is_open = False
        self.told += 1

    def abort(self) -> None:
        self.is_open = False
        self.map, self.queued, self.bells, self.masks = self._before
        del self.heard[self._seen :]

    # all memory

    def log_global_start(self) -> None:
        require(not self.logs_all, self.name, "log_global_start twice")
        self.logs_all = True

    def log_global_stop(self) -> None:
        require(self.logs_all, self.name, "log_global_stop of what was not started")
        self.logs_all = False


def check_order(heard: list[tuple[str, str, int]], listeners: list[Replay]) -> None:
    """Complain if the listeners of one space did not hear the same, each callback in their order by priority."""
    for one in listeners:
        mine = [entry[1:] for entry in heard if entry[0] == one.name]
        first = [entry[1:] for entry in heard if entry[0] == listeners[0].name]
        require(mine == first, one.name, "heard", mine, "and", listeners[0].name, first)
    rising = [one.name for one in sorted(listeners, key=lambda one: one.priority)]
    falling = [one.name for one in sorted(listeners, key=lambda one: -one.priority)]
    at = 0
    while at < len(heard):
        wanted = falling if heard[at][1] in FALLING else rising
        told = [entry[0] for entry in heard[at : at + len(wanted)]]
        require(told == wanted, heard[at][1], "was told to", told, "but must be to", wanted)
        at += len(wanted)

"""The memory listener of one machine: notes what it is told, and writes it as JSON lines once that is settled.

While a change is under way only the time and what was said are noted: a vCPU may be held then. Lines are made and
written at ``commit`` and ``abort``, when the vCPUs run again; what is told outside of a change is written at once.
``docs/how-to/trace-memory.md`` describes each line.

It is told first of what begins, comes and is applied (the lowest priority), so that the time from ``apply`` to
``commit`` is that of the accelerator's calls, and the time before it that of the plan and of waiting for the vCPUs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import accel
from accel import DirtyClient
from accel.memory.listener import PRIORITY_MIN, MemoryListener, Update
from accel_trace.file import TraceFile, open_trace

if TYPE_CHECKING:
    from accel.address import AddressRange
    from accel.memory.flat_view import MemoryRegionSection
    from accel.memory.ioeventfd import IoEventFd

#: The format of the lines. Fields may be added to it; it changes where one changes its meaning or goes.
FORMAT = 1

#: Names of dirty-log clients for each mask that there is.
_CLIENTS = {
    mask: [name.lower() for name, one in DirtyClient.__members__.items() if one & mask]
    for mask in range(sum(DirtyClient) + 1)
}

_to_json = json.JSONEncoder(separators=(",", ":")).encode


class _Watch(Update):
    """Notes when the change is applied, and when it is taken back."""

    watches = True

    def __init__(self, listener: TraceListener) -> None:
        self._listener = listener

    def apply(self) -> None:
        """Note it."""
        self._listener.note("apply")

    def undo(self) -> None:
        """Note it."""
        self._listener.note("undo")


class TraceListener(MemoryListener):
    """See the module's text; guarded by the machine's big lock, but for `close`.

    Args:
        machine: The machine.
        file: Where the lines go.
        name: The machine's, in the file.
    """

    name = "trace"
    priority = PRIORITY_MIN

    def __init__(self, machine: accel.Machine, file: TraceFile, name: str) -> None:
        self._file = file
        self._machine = name
        self._history = machine.vm.history
        self._watch = _Watch(self)
        # The number of the map that the change under way begins with.
        self._before = 0
        # What was told since `begin`: event, time, and what else was said.
        self._told: list[tuple[str, int, tuple[Any, ...]]] = []
        now = {"format": FORMAT, "accel": accel.__version__, "pid": os.getpid(), "date": datetime.now(UTC).isoformat()}
        self._write("open", **now, accelerator=machine.accelerator, cpus=machine.cpus)

    def close(self) -> None:
        """Write that the machine is closed, and let go of the file."""
        self._write("close")
        self._file.release()

    def note(self, event: str, *said: Any) -> None:
        """Note an event of the change that is under way."""
        if not self._file.stopped:
            self._told.append((event, monotonic_ns(), said))

    # a change

    def begin(self) -> None:
        """Note it."""
        self._before = self._history.completed
        self.note("begin")

    def region_del(self, section: MemoryRegionSection) -> None:
        """Note it."""
        self.note("region_del", section)

    def region_add(self, section: MemoryRegionSection) -> None:
        """Note it."""
        self.note("region_add", section)

    def log_start(self, section: MemoryRegionSection, old: int, new: int) -> None:
        """Note it."""
        self.note("log_start", section, old, new)

    def log_stop(self, section: MemoryRegionSection, old: int, new: int) -> None:
        """Note it."""
        self.note("log_stop", section, old, new)

    def coalesced_io_add(self, section: MemoryRegionSection, window: AddressRange) -> None:
        """Note it."""
        self.note("coalesced_io_add", section, window)

    def coalesced_io_del(self, section: MemoryRegionSection, window: AddressRange) -> None:
        """Note it."""
        self.note("coalesced_io_del", section, window)

    def eventfd_add(self, section: MemoryRegionSection, eventfd: IoEventFd) -> None:
        """Note it."""
        self.note("eventfd_add", section, eventfd)

    def eventfd_del(self, section: MemoryRegionSection, eventfd: IoEventFd) -> None:
        """Note it."""
        self.note("eventfd_del", section, eventfd)

    def prepare(self) -> Update | None:
        """Note it, and ask to be told when the change is applied."""
        if self._file.stopped:
            return None
        self.note("prepare")
        return self._watch

    def commit(self) -> None:
        """Write all that was told."""
        self._settle("commit")

    def abort(self) -> None:
        """Write all that was told."""
        self._settle("abort")

    # dirty logs

    def log_sync(self, section: MemoryRegionSection) -> None:
        """Write it."""
        self._write("log_sync", **_section(section))

    def log_clear(self, section: MemoryRegionSection) -> None:
        """Write it."""
        self._write("log_clear", **_section(section))

    def log_global_start(self) -> None:
        """Write it."""
        self._write("log_global_start")

    def log_global_stop(self) -> None:
        """Write it."""
        self._write("log_global_stop")

    def log_global_after_sync(self) -> None:
        """Write it."""
        self._write("log_global_after_sync")

    # lines

    def _settle(self, how: str) -> None:
        """Write what was told of a change, all of it in one piece, and how it ended."""
        self.note(how)
        told, self._told = self._told, []
        before, after, last = self._before, self._history.completed, len(told) - 1
        if not self._file.stopped:
            lines = [
                self._line(event, time, before if number < last else after, _FIELDS[event](*said) if said else {})
                for number, (event, time, said) in enumerate(told)
            ]
            self._file.write("".join(lines).encode())

    def _write(self, event: str, **fields: Any) -> None:
        """Write an event that is part of no change."""
        if not self._file.stopped:
            self._file.write(self._line(event, monotonic_ns(), self._history.completed, fields).encode())

    def _line(self, event: str, time: int, generation: int, fields: dict[str, Any]) -> str:
        head = {"machine": self._machine, "time": time, "generation": generation, "event": event}
        return _to_json({**head, **fields}) + "\n"


class NopTraceListener(TraceListener):
    """Notes also what stays, which makes each commit cost as much as the map has sections."""

    def region_nop(self, section: MemoryRegionSection) -> None:
        """Note it."""
        self.note("region_nop", section)


def make_listener(machine: accel.Machine, path: str, *, nops: bool = False) -> TraceListener:
    """Return a listener for `machine` that appends to the file at `path`.

    Raises:
        UsageError: The file cannot be opened for writing.
    """
    file, name = open_trace(path)
    return (NopTraceListener if nops else TraceListener)(machine, file, name)


# what is said, as plain data: addresses and sizes in hex, since readers of JSON may keep 53 bits of a number


def _section(section: MemoryRegionSection) -> dict[str, Any]:
    return {
        "address": hex(section.range.start),
        "size": hex(section.range.size),
        "region": section.region.name,
        "kind": section.region.kind.value,
        "offset": hex(section.offset),
        "readonly": section.readonly,
        "romd": section.romd,
        "nonvolatile": section.nonvolatile,
        "unmergeable": section.unmergeable,
        "log": _CLIENTS[section.log_mask],
    }


def _logged(section: MemoryRegionSection, old: int, new: int) -> dict[str, Any]:
    return {**_section(section), "log": _CLIENTS[new], "old_log": _CLIENTS[old]}


def _window(section: MemoryRegionSection, window: AddressRange) -> dict[str, Any]:
    return {
        "address": hex(window.start),
        "size": hex(window.size),
        "region": section.region.name,
        "section": hex(section.range.start),
    }


def _eventfd(section: MemoryRegionSection, eventfd: IoEventFd) -> dict[str, Any]:
    return {
        "address": hex(eventfd.offset),
        "size": hex(eventfd.size),
        "region": section.region.name,
        "section": hex(section.range.start),
        "match": None if eventfd.match is None else hex(eventfd.match),
        "fd": eventfd.fd,
    }


_FIELDS: dict[str, Callable[..., dict[str, Any]]] = {
    "region_del": _section,
    "region_add": _section,
    "region_nop": _section,
    "log_start": _logged,
    "log_stop": _logged,
    "coalesced_io_add": _window,
    "coalesced_io_del": _window,
    "eventfd_add": _eventfd,
    "eventfd_del": _eventfd,
}

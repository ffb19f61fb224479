"""A trace tells all that changed: replaying it rebuilds the machine's flat view, after any edits.

The oracle is the view itself, read out here. The edits are drawn: all kinds of region, aliases, overlaps, dirty logs,
queued windows and doorbells, in transactions that end well, are given up, or fail in the accelerator.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from trace_replay import Map, Replay

import accel
from accel.errors import AccelError, MemorySlotError

from .conftest import read_lines

PAGE = 0x1000
VGA, CODE = accel.DirtyClient.VGA, accel.DirtyClient.CODE


def view_of(machine: accel.Machine) -> Map:
    """Return the map in force in the words of a trace."""
    found: Map = {}
    for section in machine.memory.view:
        logged = [name for name, bit in (("vga", 1), ("code", 2), ("migration", 4)) if section.log_mask & bit]
        said = {
            "address": f"{section.range.start:#x}",
            "size": f"{section.range.end - section.range.start:#x}",
            "region": section.region.name,
            "kind": section.region.kind.value,
            "offset": f"{section.offset:#x}",
            "readonly": section.readonly,
            "romd": section.romd,
            "nonvolatile": section.nonvolatile,
            "unmergeable": section.unmergeable,
            "log": logged,
        }
        windows = {(one.start, one.end) for one in section.coalesced_ranges()}
        bells = {(one.offset, one.size, one.match, one.fd) for one in section.eventfds_at()}
        found[section.range.start] = (said, windows, bells)
    return found


class GivenUp(Exception):
    """Ends a transaction that is taken back."""


class Editor:
    """Makes edits of a machine's memory that numbers stand for; what is refused is left out."""

    def __init__(self, machine: accel.Machine, bell: int) -> None:
        self.machine = machine
        self.bell = bell
        self.regions = [machine.ram]
        for number in range(6):
            self.edit("grow", number, number + 1, 7 * number)

    def edit(self, kind: str, a: int, b: int, c: int) -> None:
        with suppress(AccelError):
            getattr(self, kind)(a, b, c)

    def _some(self, a: int) -> accel.MemoryRegion:
        return self.regions[a % len(self.regions)]

    def grow(self, a: int, b: int, c: int) -> None:
        name, size = f"r{len(self.regions)}", (b % 6 + 1) * PAGE
        if a % 6 == 0:
            region = accel.MemoryRegion.alias(name, self._some(c), b % 3 * PAGE, size)
        elif a % 6 == 1:
            region = accel.MemoryRegion.mmio(name, size)
        elif a % 6 == 2:
            region = accel.MemoryRegion.rom_device(name, b"", size)
        elif a % 6 == 3:
            region = accel.MemoryRegion.rom(name, b"", size)
        else:
            region = accel.MemoryRegion.ram(name, size, 8 * PAGE, nonvolatile=c % 4 == 0)
        self.regions.append(region)
        self.machine.memory.add(region, (c % 40) * PAGE // 2 * 2, b % 3 - 1)

    def remove(self, a: int, b: int, c: int) -> None:
        self.machine.memory.remove(self._some(a))

    def readd(self, a: int, b: int, c: int) -> None:
        self.machine.memory.add(self._some(a), b % 40 * PAGE, c % 3 - 1)

    def move(self, a: int, b: int, c: int) -> None:
        self._some(a).move(b % 40 * PAGE)

    def resize(self, a: int, b: int, c: int) -> None:
        self._some(a).resize((b % 8 + 1) * PAGE)

    def toggle(self, a: int, b: int, c: int) -> None:
        region = self._some(a)
        setters = (region.set_enabled, region.set_readonly, region.set_nonvolatile, region.set_romd)
        setters[b % 4](c % 2 == 0)

    def log(self, a: int, b: int, c: int) -> None:
        region, client = self._some(a), (VGA, CODE)[b % 2]
        (region.start_log if c % 2 else region.stop_log)(client)

    def _device(self, a: int) -> accel.MemoryRegion:
        devices = [region for region in self.regions if region.ops is not None]
        return devices[a % len(devices)]

    def queue(self, a: int, b: int, c: int) -> None:
        if c % 4 == 0:
            self._device(a).clear_coalescing()
        else:
            self._device(a).add_coalescing(b % 5 * 0x800, 0x400 * (c % 4))

    def ring(self, a: int, b: int, c: int) -> None:
        what = (b % 9 * 0x700, self.bell, (0, 4)[c % 2])
        (self._device(a).add_eventfd if c % 3 else self._device(a).remove_eventfd)(*what)


KINDS = ["grow", "grow", "remove", "readd", "move", "resize", "toggle", "log", "log", "queue", "ring", "ring"]
NUMBER = st.integers(0, 239)
EDIT = st.tuples(st.sampled_from(KINDS), NUMBER, NUMBER, NUMBER)
ENDINGS = ["good"] * 5 + ["given up", "all logged"]
CHANGE = st.tuples(st.sampled_from(ENDINGS), st.lists(EDIT, min_size=1, max_size=5))


@contextmanager
def traced_machine(**settings_of_mock: str) -> Any:
    """Give a machine with a trace, and the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        with mock.patch.dict(os.environ, {"ACCEL_TRACE": str(path)}):
            machine = accel.Machine.create("mock", memory="64K", options={"mock": settings_of_mock})
        with machine:
            yield machine, path
        (last,) = read_lines(path)[-1:]
        assert last["event"] == "close"


@settings(max_examples=60)
@given(
    changes=st.lists(CHANGE, min_size=8, max_size=16),
    fault=st.none() | st.tuples(st.sampled_from(["create", "delete"]), st.integers(2, 12)),
    nops=st.booleans(),
)
def test_trace_of_random_edits_rebuilds_the_view(changes, fault, nops) -> None:
    faults = {} if fault is None else {"faults": f"{fault[0]}@{fault[1]}=ENOMEM"}
    bell = os.eventfd(0)
    nop = {"ACCEL_TRACE_NOP": "1" if nops else "0"}
    try:
        with mock.patch.dict(os.environ, nop), traced_machine(**faults) as (machine, path):
            editor, replay, seen = Editor(machine, bell), Replay(nops=nops), 0
            log = machine.vm.dirty_log
            for ending, edits in changes:
                with suppress(GivenUp, MemorySlotError), machine.transaction():
                    for edit in edits:
                        editor.edit(*edit)
                    if ending == "given up":
                        raise GivenUp
                if ending == "all logged":
                    log.sync()
                    with suppress(MemorySlotError):
                        (log.stop_global if log.is_global else log.start_global)()
                told = read_lines(path)
                replay.feed(told[seen:])
                seen = len(told)
                assert replay.map == view_of(machine)
                assert replay.generation == machine.vm.history.completed
            assert {line["event"] for line in told} >= {"open", "begin", "region_add", "prepare", "apply", "commit"}
    finally:
        os.close(bell)


def test_trace_replay_complains_where_a_line_is_missing() -> None:
    """The replay that the test above trusts finds each line of a change that is left out, or it did not matter."""
    with traced_machine() as (machine, path):
        extra = accel.MemoryRegion.ram("extra", "16K")
        machine.memory.add(extra, 1 << 20)
        extra.start_log(VGA)
        extra.move(1 << 21)
        told, view = read_lines(path), view_of(machine)
        whole = Replay()
        whole.feed(told)
        assert whole.map == view
        for number, line in enumerate(told):
            if line["event"].startswith(("region", "log")):
                replay = Replay()
                try:
                    replay.feed([*told[:number], *told[number + 1 :]])
                except (AssertionError, KeyError):
                    continue
                assert replay.map != view, line

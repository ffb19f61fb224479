"""Memory listeners: what each hears, in which order, and that registering and removing replay the view."""

from __future__ import annotations

import logging

import pytest

from accel.errors import MemorySlotError, StateError
from accel.memory.listener import PRIORITY_ACCEL, PRIORITY_MIN, MemoryListener, Update
from accel.memory.region import MemoryRegion


class Recorder(MemoryListener):
    """Writes down each callback, with the sections' names and places, into a log that several share."""

    def __init__(self, log: list[str], name: str = "r", priority: int = PRIORITY_MIN) -> None:
        self.name = name
        self.priority = priority
        self._log = log

    def _note(self, callback: str, section=None) -> None:
        place = "" if section is None else f" {section.region.name}@{section.range.start:#x}+{section.range.size:#x}"
        self._log.append(f"{self.name}: {callback}{place}")

    def begin(self) -> None:
        self._note("begin")

    def region_del(self, section) -> None:
        self._note("del", section)

    def region_add(self, section) -> None:
        self._note("add", section)

    def region_nop(self, section) -> None:
        self._note("nop", section)

    def coalesced_io_add(self, section) -> None:
        self._note("coalesced_add", section)

    def coalesced_io_del(self, section) -> None:
        self._note("coalesced_del", section)

    def prepare(self) -> Update | None:
        self._note("prepare")
        return None

    def commit(self) -> None:
        self._note("commit")

    def abort(self) -> None:
        self._note("abort")


def mmio(name: str, size: int = 0x100, coalesced: bool = False) -> MemoryRegion:
    return MemoryRegion.mmio(name, size, coalesced=coalesced)


@pytest.fixture
def log() -> list[str]:
    return []


def test_listener_hears_deletes_downward_then_adds_and_nops_upward(stage, log) -> None:
    kept, gone_low, gone_high = mmio("kept"), mmio("gone-low"), mmio("gone-high")
    with stage.transaction():
        stage.memory.add(gone_low, 0x1000)
        stage.memory.add(kept, 0x2000)
        stage.memory.add(gone_high, 0x3000)
    stage.memory.add_listener(Recorder(log))
    log.clear()
    with stage.transaction():
        stage.memory.add(mmio("new-high"), 0x5000)
        stage.memory.add(mmio("new-low"), 0x100)
        stage.memory.remove(gone_low)
        stage.memory.remove(gone_high)
        assert log == []
    assert log == [
        "r: begin",
        "r: del gone-high@0x3000+0x100",
        "r: del gone-low@0x1000+0x100",
        "r: add new-low@0x100+0x100",
        "r: nop kept@0x2000+0x100",
        "r: add new-high@0x5000+0x100",
        "r: prepare",
        "r: commit",
    ]


def test_listeners_are_called_by_priority_and_equal_ones_by_registration(stage, log) -> None:
    for name, priority in [("b1", 5), ("a1", 1), ("b2", 5), ("c", 9), ("a2", 1)]:
        stage.memory.add_listener(Recorder(log, name, priority))
    region = mmio("m")
    stage.memory.add(region, 0)
    log.clear()
    with stage.transaction():
        stage.memory.remove(region)
        stage.memory.add(mmio("n"), 0x1000)
    order = {callback: [] for callback in ("begin", "del", "add", "prepare", "commit")}
    for line in log:
        name, _, rest = line.partition(": ")
        order[rest.split()[0]].append(name)
    assert order["begin"] == order["add"] == order["prepare"] == order["commit"] == ["a1", "a2", "b1", "b2", "c"]
    assert order["del"] == ["c", "b1", "b2", "a1", "a2"]
    callbacks = [line.partition(": ")[2].split()[0] for line in log]
    assert callbacks == sorted(callbacks, key=["begin", "del", "add", "prepare", "commit"].index)


def test_listeners_of_several_spaces_are_called_by_priority_too(stage, log) -> None:
    stage.memory.add_listener(Recorder(log, "memory", 5))
    stage.io.add_listener(Recorder(log, "io", 1))
    log.clear()
    with stage.transaction():
        stage.memory.add(mmio("m"), 0)
        stage.io.add(mmio("port", 8), 0)
    assert [line for line in log if "@" not in line] == [
        "io: begin", "memory: begin", "io: prepare", "memory: prepare", "io: commit", "memory: commit",
    ]  # fmt: skip


def test_listener_aborts_are_told_from_high_priority_to_low(stage, log) -> None:
    for name, priority in [("low", 0), ("mid", 3), ("mid2", 3), ("high", 20)]:
        stage.memory.add_listener(Recorder(log, name, priority))
    log.clear()
    stage.slots.reset(fail_at={0})
    with pytest.raises(MemorySlotError):
        stage.memory.add(MemoryRegion.ram("ram", 0x1000), 0)
    assert [line for line in log if line.endswith(("abort", "commit"))] == [
        "high: abort", "mid: abort", "mid2: abort", "low: abort",
    ]  # fmt: skip


def test_listener_that_raises_in_abort_is_logged_and_the_others_hear_it(stage, log, caplog) -> None:
    class Bad(Recorder):
        def abort(self) -> None:
            raise ValueError("not now")

    stage.memory.add_listener(Recorder(log, "low"))
    stage.memory.add_listener(Bad(log, "bad", 99))
    stage.slots.reset(fail_at={0})
    with caplog.at_level(logging.ERROR), pytest.raises(MemorySlotError):
        stage.memory.add(MemoryRegion.ram("ram", 0x1000), 0)
    assert log[-1] == "low: abort"
    assert "'bad' failed in abort" in caplog.text


def test_listener_registered_late_hears_the_whole_view(stage, log) -> None:
    stage.memory.add(mmio("a"), 0x1000)
    stage.memory.add(mmio("b"), 0)
    stage.memory.add_listener(Recorder(log))
    expected = ["r: begin", "r: add b@0x0+0x100", "r: add a@0x1000+0x100", "r: prepare", "r: commit"]
    assert log == expected


def test_listener_removed_hears_that_everything_goes(stage, log) -> None:
    listener = Recorder(log)
    stage.memory.add_listener(listener)
    with stage.transaction():
        stage.memory.add(mmio("a"), 0x1000)
        stage.memory.add(mmio("b"), 0)
    log.clear()
    stage.memory.remove_listener(listener)
    assert log == ["r: begin", "r: del a@0x1000+0x100", "r: del b@0x0+0x100", "r: prepare", "r: commit"]
    stage.memory.add(mmio("c"), 0x2000)
    assert len(log) == 5
    assert listener not in stage.memory.listeners


def test_listener_removed_and_registered_maps_the_same_again(stage) -> None:
    stage.memory.add(MemoryRegion.ram("ram", 0x3000), 0x1000)
    pages = stage.slots.pages()
    stage.memory.remove_listener(stage.slots)
    assert stage.slots.slots == {}
    stage.memory.add_listener(stage.slots)
    assert stage.slots.pages() == pages
    stage.check()


def test_listener_that_cannot_take_the_view_is_not_registered(stage, slot_table) -> None:
    stage.memory.add(MemoryRegion.ram("ram", 0x3000), 0x1000)
    late = slot_table()
    late.reset(fail_at={0})
    with pytest.raises(MemorySlotError):
        stage.memory.add_listener(late)
    assert stage.memory.listeners == (stage.slots,)
    assert late.slots == {}
    late.reset()
    stage.memory.add_listener(late)
    assert late.pages() == stage.slots.pages()


def test_listener_registered_twice_or_removed_twice_is_refused(stage, log) -> None:
    listener = Recorder(log)
    stage.memory.add_listener(listener)
    with pytest.raises(StateError, match="listener 'r' is registered with 'memory' already"):
        stage.memory.add_listener(listener)
    stage.memory.remove_listener(listener)
    with pytest.raises(StateError, match="listener 'r' is not registered with 'memory'"):
        stage.memory.remove_listener(listener)


def test_listener_registered_inside_a_transaction_is_refused(stage, log) -> None:
    with pytest.raises(StateError, match="outside of transactions"), stage.transaction():
        stage.memory.add_listener(Recorder(log))
    assert log == []
    stage.check()


def test_listener_of_two_spaces_is_told_of_both_in_one_transaction(stage, log) -> None:
    listener = Recorder(log)
    stage.memory.add_listener(listener)
    stage.io.add_listener(listener)
    log.clear()
    with stage.transaction():
        stage.io.add(mmio("port", 8), 0x3F8)
        stage.memory.add(mmio("m"), 0)
    assert log == ["r: begin", "r: add m@0x0+0x100", "r: add port@0x3f8+0x8", "r: prepare", "r: commit"]


def test_listener_of_a_space_that_stays_is_not_called(stage, log) -> None:
    stage.io.add_listener(Recorder(log))
    log.clear()
    stage.memory.add(mmio("m"), 0)
    assert log == []


def test_listener_hears_of_queued_writes_after_the_add_and_before_the_del(stage, log) -> None:
    region = mmio("port", 8, coalesced=True)
    stage.io.add_listener(Recorder(log))
    log.clear()
    stage.io.add(region, 0xE9)
    assert log[1:3] == ["r: add port@0xe9+0x8", "r: coalesced_add port@0xe9+0x8"]
    log.clear()
    stage.io.add(mmio("other", 8), 0x100)
    assert "r: nop port@0xe9+0x8" in log
    assert not any("coalesced" in line for line in log), "what stays is not told again"
    log.clear()
    stage.io.remove(region)
    assert log[1:3] == ["r: coalesced_del port@0xe9+0x8", "r: del port@0xe9+0x8"]


def test_listener_hears_of_each_part_of_a_queued_region_that_is_cut(stage, log) -> None:
    region = mmio("port", 8, coalesced=True)
    stage.io.add_listener(Recorder(log))
    stage.io.add(region, 0x10)
    log.clear()
    stage.io.add(mmio("over", 2), 0x13, 1)
    assert [line for line in log if "coalesced" in line] == [
        "r: coalesced_del port@0x10+0x8",
        "r: coalesced_add port@0x10+0x3",
        "r: coalesced_add port@0x15+0x3",
    ]


def test_listener_base_does_nothing(stage) -> None:
    stage.memory.add_listener(MemoryListener())
    stage.memory.add(mmio("m", coalesced=True), 0)
    stage.memory.remove(stage.memory.root.children[0])
    assert MemoryListener.priority == PRIORITY_MIN < PRIORITY_ACCEL

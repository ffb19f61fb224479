"""Memory listeners: what each hears, in which order, and that registering and removing replay the view."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from accel.address import PAGE_SIZE
from accel.errors import AccelError, ClosedError, ListenerError, MemorySlotError, StateError
from accel.memory.address_space import AddressSpace
from accel.memory.dirty import DirtyClient
from accel.memory.listener import PRIORITY_ACCEL, PRIORITY_DEV_BACKEND, PRIORITY_MIN, MemoryListener, Update
from accel.memory.region import MemoryRegion

VGA, CODE, MIGRATION = DirtyClient.VGA, DirtyClient.CODE, DirtyClient.MIGRATION


class Recorder(MemoryListener):
    """Writes down each callback, with the sections' names and places, into a log that several share.

    It does not override ``region_nop``.
    """

    def __init__(self, log: list[str], name: str = "r", priority: int = PRIORITY_MIN) -> None:
        self.name = name
        self.priority = priority
        self._log = log

    def _note(self, callback: str, section=None, *more: object) -> None:
        place = "" if section is None else f" {section.region.name}@{section.range.start:#x}+{section.range.size:#x}"
        self._log.append(" ".join((f"{self.name}: {callback}{place}", *map(str, more))))

    def begin(self) -> None:
        self._note("begin")

    def region_del(self, section) -> None:
        self._note("del", section)

    def region_add(self, section) -> None:
        self._note("add", section, *([f"mask {section.log_mask}"] if section.log_mask else []))

    def log_start(self, section, old, new) -> None:
        assert section.log_mask == new
        self._note("log_start", section, int(old), int(new))

    def log_stop(self, section, old, new) -> None:
        assert section.log_mask == new
        self._note("log_stop", section, int(old), int(new))

    def coalesced_io_add(self, section, window) -> None:
        assert section.range.covers(window)
        self._note("queue_add", section, f"{window.start:#x}+{window.size:#x}")

    def coalesced_io_del(self, section, window) -> None:
        assert section.range.covers(window)
        self._note("queue_del", section, f"{window.start:#x}+{window.size:#x}")

    def eventfd_add(self, section, eventfd) -> None:
        self._note("bell_add", section, f"{eventfd.offset:#x}")

    def eventfd_del(self, section, eventfd) -> None:
        self._note("bell_del", section, f"{eventfd.offset:#x}")

    def prepare(self) -> Update | None:
        self._note("prepare")
        return None

    def commit(self) -> None:
        self._note("commit")

    def abort(self) -> None:
        self._note("abort")

    def log_global_start(self) -> None:
        self._note("log_global_start")

    def log_global_stop(self) -> None:
        self._note("log_global_stop")


class Stays(Recorder):
    """One that also hears of what stays."""

    def region_nop(self, section) -> None:
        self._note("nop", section)


def mmio(name: str, size: int = 0x100, coalesced: bool = False) -> MemoryRegion:
    return MemoryRegion.mmio(name, size, coalesced=coalesced)


def ram(name: str = "ram", pages: int = 1) -> MemoryRegion:
    return MemoryRegion.ram(name, pages * PAGE_SIZE, 8 * PAGE_SIZE)


def between(log: list[str]) -> list[str]:
    """Return what was told between begin and prepare."""
    assert log[0].endswith("begin")
    assert [line.rpartition(" ")[2] for line in log[-2:]] == ["prepare", "commit"]
    return [line.partition(": ")[2] for line in log[1:-2]]


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def bell() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


# sections


def test_listener_hears_what_goes_then_what_comes_and_stays_all_upward(stage, log) -> None:
    kept, gone_low, gone_high = mmio("kept"), mmio("gone-low"), mmio("gone-high")
    with stage.transaction():
        stage.memory.add(gone_low, 0x1000)
        stage.memory.add(kept, 0x2000)
        stage.memory.add(gone_high, 0x3000)
    stage.memory.add_listener(Stays(log))
    log.clear()
    with stage.transaction():
        stage.memory.add(mmio("new-high"), 0x5000)
        stage.memory.add(mmio("new-low"), 0x100)
        stage.memory.remove(gone_high)
        stage.memory.remove(gone_low)
        assert log == []
    assert log == [
        "r: begin",
        "r: del gone-low@0x1000+0x100",
        "r: del gone-high@0x3000+0x100",
        "r: add new-low@0x100+0x100",
        "r: nop kept@0x2000+0x100",
        "r: add new-high@0x5000+0x100",
        "r: prepare",
        "r: commit",
    ]


def test_listener_without_a_callback_for_what_stays_hears_of_the_change_only(stage, log) -> None:
    stage.memory.add(mmio("kept"), 0x2000)
    plain, stays = Recorder(log, "plain"), Stays(log, "stays")
    stage.memory.add_listener(plain)
    stage.memory.add_listener(stays)
    log.clear()
    stage.memory.add(mmio("new"), 0)
    assert [line for line in log if "@" in line] == [
        "plain: add new@0x0+0x100",
        "stays: add new@0x0+0x100",
        "stays: nop kept@0x2000+0x100",
    ]


def test_listener_whose_callback_belongs_to_the_object_is_heard(stage, log) -> None:
    """Whether a callback is worth calling is asked of the object, not of its class."""
    listener = MemoryListener()
    listener.region_add = lambda section: log.append(f"add {section.region.name}")
    listener.region_nop = lambda section: log.append(f"nop {section.region.name}")
    stage.memory.add(mmio("old"), 0x1000)
    stage.memory.add_listener(listener)
    stage.memory.add(mmio("new"), 0)
    assert log == ["add old", "add new", "nop old"]


def test_listeners_are_called_by_priority_and_equal_ones_by_registration(stage, log, bell) -> None:
    for name, priority in [("b1", 5), ("a1", 1), ("b2", 5), ("c", 9), ("a2", 1)]:
        stage.memory.add_listener(Stays(log, name, priority))
    gone, logged, kept = mmio("gone", coalesced=True), ram("logged"), mmio("kept")
    gone.add_eventfd(0, bell)
    logged.start_log(VGA)
    with stage.transaction():
        stage.memory.add(gone, 0)
        stage.memory.add(logged, 0x10000)
        stage.memory.add(kept, 0x20000)
    log.clear()
    come = mmio("come", coalesced=True)
    come.add_eventfd(0, bell)
    with stage.transaction():
        stage.memory.remove(gone)
        stage.memory.add(come, 0x1000)
        logged.stop_log(VGA)
        logged.start_log(CODE)
    order: dict[str, list[str]] = {}
    for line in log:
        name, _, rest = line.partition(": ")
        order.setdefault(" ".join(rest.split("@")[0].split()), []).append(name)
    up, down = ["a1", "a2", "b1", "b2", "c"], ["c", "b1", "b2", "a1", "a2"]
    assert order == {
        "begin": up,
        "bell_del gone": down,
        "queue_del gone": down,
        "del gone": down,
        "add come": up,
        "nop logged": up,
        "log_start logged": up,
        "log_stop logged": down,
        "nop kept": up,
        "queue_add come": up,
        "bell_add come": up,
        "prepare": up,
        "commit": up,
    }
    assert list(order) == [
        "begin", "bell_del gone", "queue_del gone", "del gone", "add come", "nop logged", "log_start logged",
        "log_stop logged", "nop kept", "queue_add come", "bell_add come", "prepare", "commit",
    ]  # fmt: skip


def test_listeners_of_several_spaces_are_called_by_priority_then_by_registration(stage, log) -> None:
    """Also where the space that was registered with first is the later one."""
    stage.io.add_listener(Recorder(log, "io-5", 5))
    stage.memory.add_listener(Recorder(log, "memory-5", 5))
    stage.io.add_listener(Recorder(log, "io-1", 1))
    log.clear()
    with stage.transaction():
        stage.memory.add(mmio("m"), 0)
        stage.io.add(mmio("port", 8), 0)
    assert [line for line in log if "@" not in line] == [
        f"{name}: {step}" for step in ("begin", "prepare", "commit") for name in ("io-1", "io-5", "memory-5")
    ]


def test_listener_registered_anew_ranks_behind_its_equals(stage, log) -> None:
    first, second = Recorder(log, "first"), Recorder(log, "second")
    stage.io.add_listener(first)
    stage.memory.add_listener(second)
    stage.io.remove_listener(first)
    stage.io.add_listener(first)
    log.clear()
    with stage.transaction():
        stage.memory.add(mmio("m"), 0)
        stage.io.add(mmio("port", 8), 0)
    assert [line for line in log if "begin" in line] == ["second: begin", "first: begin"]


def test_listeners_hear_space_by_space_in_order_of_creation(stage, log) -> None:
    bus = AddressSpace("bus", stage.transactions, MemoryRegion.container("bus", 1 << 20))
    listener = Recorder(log)
    for space in (bus, stage.io, stage.memory):
        space.add_listener(listener)
    log.clear()
    with stage.transaction():
        for space in (bus, stage.io, stage.memory):
            space.add(mmio(space.name), 0)
    assert between(log) == ["add memory@0x0+0x100", "add io@0x0+0x100", "add bus@0x0+0x100"]


def test_listener_aborts_are_told_from_high_priority_to_low(stage, log) -> None:
    for name, priority in [("low", 0), ("mid", 3), ("mid2", 3), ("high", 20)]:
        stage.memory.add_listener(Recorder(log, name, priority))
    log.clear()
    stage.slots.reset(fail_at={0})
    with pytest.raises(MemorySlotError):
        stage.memory.add(ram(), 0)
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
        stage.memory.add(ram(), 0)
    assert log[-1] == "low: abort"
    assert "'bad' failed in abort" in caplog.text


@pytest.mark.parametrize("fails", [False, True], ids=["commit", "abort"])
def test_listener_that_exits_at_the_end_does_so_when_all_have_heard(stage, log, fails: bool) -> None:
    class Exits(Recorder):
        armed = False

        def commit(self) -> None:
            super().commit()
            if self.armed:
                raise SystemExit

        abort = commit

    exits = Exits(log, "b", 2)
    for listener in (Recorder(log, "a", 1), exits, Recorder(log, "c", 3)):
        stage.memory.add_listener(listener)
    exits.armed = True
    log.clear()
    stage.slots.reset(fail_at={0} if fails else set())
    with pytest.raises(SystemExit):
        stage.memory.add(ram(), 0)
    heard = [line[0] for line in log if line.endswith(("commit", "abort"))]
    assert heard == (["c", "b", "a"] if fails else ["a", "b", "c"])
    assert len(stage.memory.view) == (0 if fails else 1)
    stage.check()


def test_listener_that_refuses_to_begin_ends_it_for_those_who_began(stage, log) -> None:
    """Whoever's begin was called hears abort, and nobody else."""

    class Refuses(Recorder):
        armed = False

        def begin(self) -> None:
            super().begin()
            if self.armed:
                raise ValueError("no")

    listeners = [Recorder(log, "a", 0), Refuses(log, "b", 1), Recorder(log, "c", 2)]
    for listener in listeners:
        stage.memory.add_listener(listener)
    listeners[1].armed = True
    log.clear()
    with pytest.raises(ListenerError, match=r"ValueError: no \(memory listener 'b', begin\)") as caught:
        stage.memory.add(ram(), 0)
    assert (caught.value.listener, caught.value.step) == ("b", "begin")
    assert isinstance(caught.value.__cause__, ValueError)
    assert log == ["a: begin", "b: begin", "b: abort", "a: abort"]
    stage.check()


# replay and mirror


def test_listener_registered_late_hears_the_whole_view(stage, log, bell) -> None:
    port, logged = mmio("b", coalesced=True), ram("c")
    port.add_eventfd(0x10, bell)
    logged.start_log(VGA)
    stage.memory.add(mmio("a"), 0x1000)
    stage.memory.add(port, 0)
    stage.memory.add(logged, 0x2000)
    stage.memory.add_listener(Recorder(log))
    assert between(log) == [
        "add b@0x0+0x100",
        "add a@0x1000+0x100",
        "add c@0x2000+0x1000 mask 1",
        "queue_add b@0x0+0x100 0x0+0x100",
        "bell_add b@0x0+0x100 0x10",
    ]


def test_listener_removed_hears_that_everything_goes(stage, log, bell) -> None:
    listener = Recorder(log)
    stage.memory.add_listener(listener)
    port = mmio("b", coalesced=True)
    port.add_eventfd(0x10, bell)
    with stage.transaction():
        stage.memory.add(mmio("a"), 0x1000)
        stage.memory.add(port, 0)
    log.clear()
    stage.memory.remove_listener(listener)
    assert between(log) == [
        "bell_del b@0x0+0x100 0x10",
        "queue_del b@0x0+0x100 0x0+0x100",
        "del b@0x0+0x100",
        "del a@0x1000+0x100",
    ]
    log.clear()
    stage.memory.add(mmio("c"), 0x2000)
    assert log == []
    assert listener not in stage.memory.listeners
    assert listener not in stage.transactions.listeners


def test_listener_registered_while_all_memory_is_logged_hears_that_first_and_mirrored_last(stage, log) -> None:
    stage.memory.add(ram("a"), 0)
    stage.dirty_log.start_global()
    listener = Recorder(log)
    stage.memory.add_listener(listener)
    assert log[:3] == ["r: log_global_start", "r: begin", "r: add a@0x0+0x1000 mask 4"]
    assert log.count("r: log_global_start") == 1
    stage.io.add_listener(listener)
    assert log.count("r: log_global_start") == 1, "it was told with the first space"
    log.clear()
    stage.memory.remove_listener(listener)
    assert "r: log_global_stop" not in log, "it still listens to the other space"
    stage.io.remove_listener(listener)
    assert log[-2:] == ["r: commit", "r: log_global_stop"]


@pytest.mark.parametrize("step", ["log_global_start", "region_add", "prepare"])
def test_listener_that_refuses_at_registration_is_not_registered(stage, log, step: str) -> None:
    class Refuses(Recorder):
        def refuse(self, section=None) -> None:
            raise ValueError("no")

    setattr(Refuses, step, Refuses.refuse)
    stage.memory.add(ram("a"), 0)
    stage.dirty_log.start_global()
    with pytest.raises(ListenerError) as caught:
        stage.memory.add_listener(Refuses(log))
    assert (caught.value.listener, caught.value.step) == ("r", step)
    assert stage.memory.listeners == stage.transactions.listeners == (stage.slots,)
    assert log[-2:] == ([] if step == "log_global_start" else ["r: abort", "r: log_global_stop"])
    log.clear()
    stage.memory.add(ram("b"), 0x10000)
    assert log == []
    stage.check()


def test_listener_that_refuses_to_go_stays(stage, log) -> None:
    class Clings(Recorder):
        armed = True

        def region_del(self, section) -> None:
            if self.armed:
                raise AccelError("mine")

    clings = Clings(log)
    stage.memory.add_listener(clings)
    stage.memory.add(ram("a"), 0)
    with pytest.raises(AccelError, match=r"mine \(memory listener 'r', region_del\)"):
        stage.memory.remove_listener(clings)
    assert clings in stage.memory.listeners
    with pytest.raises(AccelError, match="mine"):
        stage.memory.close()
    assert stage.memory in stage.transactions.spaces
    assert len(stage.memory.view) == 1
    clings.armed = False
    stage.memory.close()
    assert stage.memory.listeners == stage.transactions.listeners == ()


def test_listener_removed_and_registered_maps_the_same_again(stage) -> None:
    stage.memory.add(ram(pages=3), 0x1000)
    pages = stage.slots.pages()
    stage.memory.remove_listener(stage.slots)
    assert stage.slots.slots == {}
    stage.memory.add_listener(stage.slots)
    assert stage.slots.pages() == pages
    stage.check()


def test_listener_that_cannot_take_the_view_is_not_registered(stage, slot_table) -> None:
    stage.memory.add(ram(pages=3), 0x1000)
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
    log.clear()
    with pytest.raises(StateError, match="listener 'r' is registered with 'memory' already"):
        stage.memory.add_listener(listener)
    assert log == []
    stage.memory.remove_listener(listener)
    log.clear()
    with pytest.raises(StateError, match="listener 'r' is not registered with 'memory'"):
        stage.memory.remove_listener(listener)
    assert log == []


@pytest.mark.parametrize("what", ["add", "remove", "close"])
def test_listener_that_comes_or_goes_inside_a_transaction_is_refused(stage, log, what: str) -> None:
    listener = Recorder(log)
    if what != "add":
        stage.memory.add_listener(listener)
    log.clear()
    before = stage.memory.listeners
    act = stage.memory.close if what == "close" else lambda: getattr(stage.memory, f"{what}_listener")(listener)
    message = "a transaction is open; listeners and spaces come and go outside of it"
    with pytest.raises(StateError, match=message), stage.transaction():
        act()
    assert log == []
    assert stage.memory.listeners == before
    stage.check()


def test_listener_of_a_closed_space_or_vm_is_refused(stage, log) -> None:
    bus = AddressSpace("bus", stage.transactions, MemoryRegion.container("bus", 1 << 20))
    bus.add(mmio("m"), 0)
    bus.add_listener(Recorder(log))
    log.clear()
    bus.close()
    assert between(log) == ["del m@0x0+0x100"]
    bus.close()
    assert bus not in stage.transactions.spaces
    with pytest.raises(ClosedError, match="address space 'bus' is closed"):
        bus.add_listener(Recorder(log))
    bus.root.add(mmio("later"), 0x1000)
    assert (len(bus.view), len(log)) == (0, 4)
    stage.transactions.close()
    with pytest.raises(ClosedError, match="the VM is closed"):
        stage.memory.add_listener(Recorder(log))
    with pytest.raises(ClosedError, match="the VM is closed"):
        stage.memory.remove_listener(stage.slots)


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


# dirty logs, as far as a transaction tells of them


def test_listener_hears_what_of_a_mask_starts_and_stops(stage, log) -> None:
    region = ram()
    stage.memory.add(region, 0)
    stage.memory.add_listener(Stays(log))

    def told(edit, *clients: DirtyClient) -> list[str]:
        log.clear()
        for client in clients:
            edit(client)
        return [] if not log else between(log)

    place = "ram@0x0+0x1000"
    assert told(region.start_log, VGA) == [f"nop {place}", f"log_start {place} 0 1"]
    assert told(region.start_log, VGA) == [], "counted, so nothing changes"
    assert told(region.start_log, CODE) == [f"nop {place}", f"log_start {place} 1 3"]
    assert told(region.stop_log, VGA) == []
    assert told(region.stop_log, VGA) == [f"nop {place}", f"log_stop {place} 3 2"]
    log.clear()
    with stage.transaction():
        region.start_log(MIGRATION)
        region.stop_log(CODE)
    assert between(log) == [f"nop {place}", f"log_start {place} 2 4", f"log_stop {place} 2 4"]


def test_listener_hears_no_start_or_stop_of_a_section_that_comes_or_goes(stage, log) -> None:
    """Its mask says all there is to say."""
    region = ram(pages=2)
    stage.memory.add_listener(Recorder(log))
    with stage.transaction():
        stage.memory.add(region, 0)
        region.start_log(VGA)
    assert between(log)[-1] == "add ram@0x0+0x2000 mask 1"
    log.clear()
    with stage.transaction():
        region.stop_log(VGA)
        region.start_log(CODE)
        region.resize(PAGE_SIZE)
    assert between(log) == ["del ram@0x0+0x2000", "add ram@0x0+0x1000 mask 2"]
    log.clear()
    with stage.transaction():
        region.stop_log(CODE)
        stage.memory.remove(region)
    assert between(log) == ["del ram@0x0+0x1000"]


def test_listener_hears_of_a_mask_at_each_place_that_shows_the_region(stage, log) -> None:
    region = ram(pages=2)
    stage.memory.add(region, 0)
    stage.memory.add(MemoryRegion.alias("high", region, PAGE_SIZE, PAGE_SIZE), 0x10000)
    stage.memory.add_listener(Recorder(log))
    log.clear()
    region.start_log(VGA)
    assert between(log) == ["log_start ram@0x0+0x2000 0 1", "log_start ram@0x10000+0x1000 0 1"]
    stage.check()


# queued writes and ioeventfds


def test_listener_hears_of_queued_writes_after_the_add_and_before_the_del(stage, log) -> None:
    region = mmio("port", 8, coalesced=True)
    stage.io.add_listener(Stays(log))
    log.clear()
    stage.io.add(region, 0xE9)
    assert between(log) == ["add port@0xe9+0x8", "queue_add port@0xe9+0x8 0xe9+0x8"]
    log.clear()
    stage.io.add(mmio("other", 8), 0x100)
    assert between(log) == ["nop port@0xe9+0x8", "add other@0x100+0x8"], "what stays is not told again"
    log.clear()
    stage.io.remove(region)
    assert between(log) == ["queue_del port@0xe9+0x8 0xe9+0x8", "del port@0xe9+0x8", "nop other@0x100+0x8"]


def test_listener_hears_of_each_part_of_a_queued_region_that_is_cut(stage, log) -> None:
    region = mmio("port", 8, coalesced=True)
    stage.io.add_listener(Recorder(log))
    stage.io.add(region, 0x10)
    log.clear()
    stage.io.add(mmio("over", 2), 0x13, 1)
    assert [line for line in log if "queue" in line] == [
        "r: queue_del port@0x10+0x8 0x10+0x8",
        "r: queue_add port@0x10+0x3 0x10+0x3",
        "r: queue_add port@0x15+0x3 0x15+0x3",
    ]


def test_listener_hears_of_the_queued_ranges_that_changed_only(stage, log) -> None:
    region = mmio("port", 0x40)
    region.add_coalescing(0, 8)
    stage.io.add(region, 0x100)
    stage.io.add_listener(Stays(log))
    log.clear()
    region.add_coalescing(0x10, 4)
    assert between(log) == ["nop port@0x100+0x40", "queue_add port@0x100+0x40 0x110+0x4"]
    log.clear()
    with stage.transaction():
        region.clear_coalescing()
        region.add_coalescing(0x10, 4)
        region.add_coalescing(0x20, 4)
    assert between(log) == [
        "queue_del port@0x100+0x40 0x100+0x8",
        "nop port@0x100+0x40",
        "queue_add port@0x100+0x40 0x120+0x4",
    ]


def test_listener_hears_of_the_ioeventfds_that_changed_only(stage, log, bell) -> None:
    region = mmio("doors", 0x40)
    region.add_eventfd(8, bell, 4, 7)
    stage.memory.add(region, 0x1000)
    stage.memory.add_listener(Stays(log))
    log.clear()
    region.add_eventfd(0, bell, 4)
    assert between(log) == ["nop doors@0x1000+0x40", "bell_add doors@0x1000+0x40 0x1000"]
    log.clear()
    with stage.transaction():
        region.remove_eventfd(8, bell, 4, 7)
        region.add_eventfd(8, bell, 4, 9)
    assert between(log) == [
        "bell_del doors@0x1000+0x40 0x1008",
        "nop doors@0x1000+0x40",
        "bell_add doors@0x1000+0x40 0x1008",
    ]
    log.clear()
    with stage.transaction():
        region.remove_eventfd(0, bell, 4)
        region.add_eventfd(0, bell, 4)
    assert log == [], "as it was"


def test_listener_hears_of_doorbells_of_a_section_that_moves_or_is_resized(stage, log, bell) -> None:
    region = mmio("doors", 0x40, coalesced=True)
    region.add_eventfd(8, bell)
    region.add_eventfd(0x38, bell, 8)
    stage.memory.add(region, 0x1000)
    stage.memory.add_listener(Recorder(log))
    log.clear()
    region.move(0x2000)
    assert between(log) == [
        "bell_del doors@0x1000+0x40 0x1008",
        "bell_del doors@0x1000+0x40 0x1038",
        "queue_del doors@0x1000+0x40 0x1000+0x40",
        "del doors@0x1000+0x40",
        "add doors@0x2000+0x40",
        "queue_add doors@0x2000+0x40 0x2000+0x40",
        "bell_add doors@0x2000+0x40 0x2008",
        "bell_add doors@0x2000+0x40 0x2038",
    ]
    log.clear()
    region.resize(0x3C)
    assert between(log)[-3:] == [
        "add doors@0x2000+0x3c",
        "queue_add doors@0x2000+0x3c 0x2000+0x3c",
        "bell_add doors@0x2000+0x3c 0x2008",
    ], "a doorbell that is not inside any more cannot ring"


def test_listener_hears_of_doorbells_whose_section_is_cut(stage, log, bell) -> None:
    region = mmio("doors", 0x40)
    for offset, size in ((0, 0), (0xE, 4), (0x10, 1), (0x20, 8)):
        region.add_eventfd(offset, bell, size)
    stage.memory.add(region, 0)
    stage.memory.add_listener(Recorder(log))
    log.clear()
    stage.memory.add(mmio("over", 8), 0x10, 1)
    assert [line for line in between(log) if "bell" in line] == [
        "bell_del doors@0x0+0x40 0x0",
        "bell_del doors@0x0+0x40 0xe",
        "bell_del doors@0x0+0x40 0x10",
        "bell_del doors@0x0+0x40 0x20",
        "bell_add doors@0x0+0x10 0x0",
        "bell_add doors@0x18+0x28 0x20",
    ], "one that is hidden, if only in part, does not ring"


def test_listener_hears_of_a_doorbell_at_each_place_that_shows_it(stage, log, bell) -> None:
    region = mmio("doors", 0x40)
    stage.memory.add(MemoryRegion.alias("low", region, 0, 0x20), 0x1000)
    stage.memory.add(MemoryRegion.alias("high", region, 0x10, 0x30), 0x2000)
    stage.memory.add_listener(Recorder(log))
    log.clear()
    with stage.transaction():
        region.add_eventfd(0x18, bell)
        region.add_eventfd(0x30, bell)
    assert between(log) == [
        "bell_add doors@0x1000+0x20 0x1018",
        "bell_add doors@0x2000+0x30 0x2008",
        "bell_add doors@0x2000+0x30 0x2020",
    ]
    log.clear()
    region.remove_eventfd(0x18, bell)
    assert between(log) == ["bell_del doors@0x1000+0x20 0x1018", "bell_del doors@0x2000+0x30 0x2008"]


def test_listener_that_refuses_a_doorbell_leaves_none(stage, bell) -> None:
    class Full(MemoryListener):
        name = "full"

        def eventfd_add(self, section, eventfd) -> None:
            raise AccelError("all doorbells are taken")

    region = mmio("doors", 0x40)
    stage.memory.add(region, 0)
    stage.memory.add_listener(Full())
    with pytest.raises(AccelError, match=r"taken \(memory listener 'full', eventfd_add\)"):
        region.add_eventfd(0, bell)
    assert region.eventfds == ()
    stage.check()


# the base


def test_listener_base_does_nothing(stage, bell) -> None:
    base = MemoryListener()
    stage.memory.add_listener(base)
    region, logged = mmio("m", coalesced=True), ram()
    stage.memory.add(region, 0)
    stage.memory.add(logged, 0x10000)
    region.add_eventfd(0, bell)
    logged.start_log(VGA)
    stage.dirty_log.start_global()
    stage.dirty_log.sync()
    stage.dirty_log.collect(logged, VGA)
    stage.dirty_log.stop_global()
    logged.stop_log(VGA)
    stage.memory.remove(region)
    stage.memory.remove_listener(base)
    assert MemoryListener.priority == PRIORITY_MIN < PRIORITY_ACCEL == PRIORITY_DEV_BACKEND
    stage.check()

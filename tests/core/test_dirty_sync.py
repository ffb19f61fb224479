"""Dirty logs across accelerators: who is asked, what is logged when, and that no written page is ever lost."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.address import PAGE_SIZE
from accel.errors import AccelError, AddressError, ClosedError, ListenerError, MemorySlotError, RegionError, StateError
from accel.memory.dirty import DirtyClient
from accel.memory.listener import MemoryListener
from accel.memory.region import MemoryRegion

VGA, CODE, MIGRATION = DirtyClient.VGA, DirtyClient.CODE, DirtyClient.MIGRATION


class Asked(MemoryListener):
    """Writes down what it is asked about dirty logs, and refuses where the test says so."""

    def __init__(self, log: list[str], name: str = "a", priority: int = 0, refuse: str = "") -> None:
        self.name = name
        self.priority = priority
        self.refuse = refuse
        self.log = log

    def _note(self, what: str, section=None) -> None:
        place = "" if section is None else f" {section.region.name}@{section.range.start:#x}+{section.range.size:#x}"
        self.log.append(f"{self.name}: {what}{place}")
        if what == self.refuse:
            raise ValueError("no")

    def log_sync(self, section) -> None:
        self._note("sync", section)

    def log_clear(self, section) -> None:
        self._note("clear", section)

    def log_global_start(self) -> None:
        self._note("start")

    def log_global_stop(self) -> None:
        self._note("stop")

    def log_global_after_sync(self) -> None:
        self._note("after")

    def log_start(self, section, old, new) -> None:
        self._note("log_start", section)
        if self.refuse == "log_start":
            raise ValueError("no")

    def log_stop(self, section, old, new) -> None:
        self._note("log_stop", section)
        if self.refuse == "log_stop":
            raise ValueError("no")


class AskedOnce(Asked):
    """One that is asked for everything at once, though it could be asked for a section."""

    def log_sync_global(self) -> None:
        self._note("sync_global")


def ram(name: str = "ram", pages: int = 4) -> MemoryRegion:
    return MemoryRegion.ram(name, pages * PAGE_SIZE, 16 * PAGE_SIZE)


def dirty(stage, region: MemoryRegion, client: DirtyClient = VGA) -> set[int]:
    """Collect and return the numbers of the dirty pages."""
    return pages_of(stage.dirty_log.collect(region, client))


def pages_of(snapshot) -> set[int]:
    return {page // PAGE_SIZE for one in snapshot.ranges() for page in range(one.start, one.end, PAGE_SIZE)}


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def region(stage) -> MemoryRegion:
    """Four pages at 0x10000, logged for VGA, and of at most 16."""
    one = ram()
    stage.memory.add(one, 0x10000)
    one.start_log(VGA)
    return one


# one region


def test_dirty_log_of_a_region_counts_its_starts_and_stops(stage, region) -> None:
    region.start_log(VGA)
    region.stop_log(VGA)
    region.write(0, b"x")
    assert dirty(stage, region) == {0}
    region.stop_log(VGA)
    region.write(PAGE_SIZE, b"x")
    with pytest.raises(StateError, match="VGA does not log this block; start it first"):
        dirty(stage, region)
    with pytest.raises(StateError, match="VGA does not log 'ram', so it cannot stop"):
        region.stop_log(VGA)
    stage.check()


def test_dirty_log_hears_of_the_guest_and_of_every_way_the_host_writes(stage, region) -> None:
    assert stage.slots.guest_write(0x10000, 1)
    stage.memory.write(0x11000, b"ab")
    region.write(2 * PAGE_SIZE - 1, b"ab")
    view = stage.memory.ram_view(0x13000, 16)
    view[0] = 1
    assert dirty(stage, region) == {0, 1, 2}
    stage.memory.mark_dirty(0x13000, 16)
    stage.memory.store(0x10FFC, 5, 8)
    assert dirty(stage, region) == {0, 1, 3}
    region.clear(0, 4 * PAGE_SIZE)
    assert dirty(stage, region) == {0, 1, 2, 3}
    assert dirty(stage, region) == set()


def test_dirty_log_gives_each_client_what_was_written_since_it_asked(stage, region) -> None:
    region.start_log(CODE)
    stage.slots.guest_write(0x10000, 1)
    assert dirty(stage, region, VGA) == {0}
    stage.slots.guest_write(0x11000, 1)
    assert dirty(stage, region, CODE) == {0, 1}
    assert dirty(stage, region, VGA) == {1}
    region.stop_log(VGA)
    stage.slots.guest_write(0x12000, 1)
    assert dirty(stage, region, CODE) == {2}
    stage.check()


def test_dirty_log_of_a_client_that_comes_begins_clean_and_costs_no_hold(stage) -> None:
    region = ram()
    stage.memory.add(region, 0x10000)
    stage.slots.guest_write(0x10000, 1)
    region.start_log(VGA)
    assert [kind for kind, _ in stage.slots.calls] == ["create", "toggle"]
    assert stage.blocker.stats.inhibits == 0
    assert dirty(stage, region) == set()
    stage.slots.guest_write(0x11000, 1)
    assert dirty(stage, region) == {1}


def test_dirty_log_collects_a_part_and_keeps_the_rest(stage, region) -> None:
    for page in range(4):
        stage.slots.guest_write(0x10000 + page * PAGE_SIZE, 1)
    part = stage.dirty_log.collect(region, VGA, PAGE_SIZE, 2 * PAGE_SIZE)
    assert (part.offset, part.size, pages_of(part)) == (PAGE_SIZE, 2 * PAGE_SIZE, {1, 2})
    stage.slots.guest_write(0x11000, 1)
    stage.slots.guest_write(0x13000, 1)
    assert dirty(stage, region) == {0, 1, 3}


def test_dirty_log_of_a_part_that_is_not_inside_is_refused_before_anybody_is_asked(stage, region, log) -> None:
    stage.memory.add_listener(Asked(log))
    log.clear()
    for offset, size in [(-1, 1), (0, 17 * PAGE_SIZE), (16 * PAGE_SIZE + 1, 0)]:
        with pytest.raises(AddressError):
            stage.dirty_log.collect(region, VGA, offset, size)
    with pytest.raises(StateError, match="CODE does not log"):
        stage.dirty_log.collect(region, CODE)
    with pytest.raises(RegionError, match="only RAM, ROM and ROM devices have"):
        stage.dirty_log.collect(MemoryRegion.mmio("m", 0x1000), VGA)
    assert log == []


def test_dirty_log_of_a_region_outside_of_the_map_works(stage) -> None:
    region = ram()
    region.start_log(VGA)
    region.write(0, b"x")
    assert dirty(stage, region) == {0}
    stage.memory.add(region, 0)
    stage.slots.guest_write(0x1000, 1)
    stage.memory.remove(region)
    assert dirty(stage, region) == {1}
    stage.check()


def test_dirty_log_taken_back_by_a_savepoint_keeps_the_bits(stage, region) -> None:
    region.write(0, b"x")
    with stage.transaction():
        with pytest.raises(ZeroDivisionError), stage.transaction():
            region.stop_log(VGA)
            region.start_log(CODE)
            assert region.log_mask == CODE
            raise ZeroDivisionError
        assert region.log_mask == VGA
        stage.memory.add(ram("other"), 0x80000)
    assert region.dirty.mask == VGA
    assert dirty(stage, region) == {0}
    stage.check()


def test_dirty_log_stopped_and_started_in_one_transaction_keeps_the_bits(stage, region) -> None:
    region.write(0, b"x")
    stage.slots.guest_write(0x11000, 1)
    with stage.transaction():
        region.stop_log(VGA)
        region.start_log(VGA)
    assert dirty(stage, region) == {0, 1}


def test_dirty_log_stopped_in_a_change_that_fails_keeps_the_bits(stage, region) -> None:
    region.write(0, b"x")
    stage.slots.guest_write(0x11000, 1)
    stage.slots.reset(fail_at={1})
    with pytest.raises(MemorySlotError):
        region.stop_log(VGA)
    assert stage.slots.calls[0][0] == "collect"
    assert stage.blocker.stats.inhibits == 1, "nobody may write between the collecting and the stop that is undone"
    stage.slots.guest_write(0x12000, 1)
    assert dirty(stage, region) == {0, 1, 2}
    stage.check()


# whom sync asks


def test_sync_asks_by_priority_for_each_logged_section_or_for_all_at_once(stage, region, log) -> None:
    port = ram("in-ports", 1)
    port.start_log(CODE)
    stage.io.add(port, 0x1000)
    unlogged = ram("unlogged")
    stage.memory.add(unlogged, 0x80000)
    stage.memory.add(MemoryRegion.alias("low", region, 0, PAGE_SIZE), 0)
    once = AskedOnce(log, "once", 1)
    stage.io.add_listener(once)
    stage.memory.add_listener(once)
    stage.io.add_listener(Asked(log, "ports", 3))
    stage.memory.add_listener(Asked(log, "memory", 2))
    log.clear()
    stage.dirty_log.sync()
    assert log == [
        "once: sync_global",
        "memory: sync ram@0x0+0x1000",
        "memory: sync ram@0x10000+0x4000",
        "ports: sync in-ports@0x1000+0x1000",
        "once: after",
        "memory: after",
        "ports: after",
    ]
    log.clear()
    stage.dirty_log.sync(port)
    assert log == ["once: sync_global", "ports: sync in-ports@0x1000+0x1000"]
    log.clear()
    stage.dirty_log.sync(ram("nowhere"))
    stage.dirty_log.sync(unlogged)
    assert log == ["once: sync_global"] * 2


def test_collect_lets_the_parts_be_noted_again_where_they_show(stage, region, log) -> None:
    stage.memory.add(MemoryRegion.alias("low", region, PAGE_SIZE, 2 * PAGE_SIZE), 0)
    stage.memory.add(MemoryRegion.mmio("over", PAGE_SIZE), 0x12000, 1)
    stage.memory.add_listener(Asked(log, "b", 2))
    stage.memory.add_listener(Asked(log, "a", 1))
    log.clear()
    stage.dirty_log.collect(region, VGA, 2 * PAGE_SIZE + 5, PAGE_SIZE)
    sections = ["ram@0x0+0x2000", "ram@0x10000+0x2000", "ram@0x13000+0x1000"]
    parts = ["ram@0x1000+0x1000", "ram@0x13000+0x1000"]
    assert log == [
        *[f"{name}: sync {section}" for name in "ab" for section in sections],
        *[f"{name}: clear {part}" for name in "ab" for part in parts],
    ]


@pytest.mark.parametrize("refuse", ["sync", "clear"])
def test_collect_that_a_listener_refuses_forgets_nothing(stage, region, log, refuse: str) -> None:
    asked = Asked(log, refuse=refuse)
    stage.memory.add_listener(asked)
    stage.slots.guest_write(0x10000, 1)
    region.write(3 * PAGE_SIZE, b"x")
    region.start_log(CODE)
    with pytest.raises(ListenerError, match="ValueError: no") as caught:
        stage.dirty_log.collect(region, VGA)
    assert (caught.value.listener, caught.value.step) == ("a", f"log_{refuse}")
    asked.refuse = ""
    assert dirty(stage, region, VGA) == {0, 3}
    assert dirty(stage, region, CODE) == {0}, "the other client has what it had"
    stage.check()


def test_dirty_log_inside_a_transaction_or_after_close_is_refused(stage, region) -> None:
    calls = [
        stage.dirty_log.start_global,
        stage.dirty_log.stop_global,
        stage.dirty_log.sync,
        lambda: stage.dirty_log.collect(region, VGA),
    ]
    for call in calls:
        with pytest.raises(StateError, match="dirty logs are read and cleared there"), stage.transaction():
            call()
    assert not stage.dirty_log.is_global
    stage.check()
    stage.transactions.close()
    for call in calls:
        with pytest.raises(ClosedError, match="the VM is closed"):
            call()


@pytest.mark.parametrize("callback", ["sync", "clear", "start", "stop", "after"])
def test_dirty_log_listener_that_edits_is_refused(stage, region, callback: str, caplog) -> None:
    names = {
        "sync": "log_sync",
        "clear": "log_clear",
        "start": "log_global_start",
        "stop": "log_global_stop",
        "after": "log_global_after_sync",
    }
    listener = MemoryListener()
    setattr(listener, names[callback], lambda section=None: stage.memory.add(ram("meddled"), 0x80000))
    stage.memory.add_listener(listener)
    acts = {
        "sync": stage.dirty_log.sync,
        "after": stage.dirty_log.sync,
        "clear": lambda: stage.dirty_log.collect(region, VGA),
        "start": stage.dirty_log.start_global,
        "stop": lambda: (stage.dirty_log.start_global(), stage.dirty_log.stop_global()),
    }
    if callback == "stop":
        acts["stop"]()
        assert "memory cannot be edited by a listener" in caplog.text
    else:
        with pytest.raises(StateError, match="memory cannot be edited by a listener"):
            acts[callback]()
    assert len(stage.memory.view) == 1
    assert not stage.dirty_log.is_global
    stage.check()


# all memory


def test_global_log_stop_that_ends_the_program_does_all_that_was_put_off_before(stage, region) -> None:
    """Else the bits of a client that stopped in the same change come back with its next start."""

    class Ending(MemoryListener):
        def log_global_stop(self) -> None:
            raise SystemExit(3)

    stage.memory.add_listener(Ending())
    stage.dirty_log.start_global()
    stops = [lambda: region.stop_log(VGA)]
    stage.before_commit = lambda: stops.pop()() if stops else None
    with pytest.raises(SystemExit):
        stage.dirty_log.stop_global()
    assert (region.log_mask, region.dirty.mask) == (0, 0)
    stage.check()


def test_global_log_listener_that_is_refused_cannot_edit_memory_as_it_hears_of_the_end(stage, region, caplog) -> None:
    class Editing(MemoryListener):
        def region_add(self, section) -> None:
            raise ValueError("no")

        def log_global_stop(self) -> None:
            stage.memory.add(ram("late", 1), 0x80000)

    stage.dirty_log.start_global()
    with pytest.raises(ListenerError, match="no"):
        stage.memory.add_listener(Editing())
    assert [section.region for section in stage.memory.view] == [region]
    assert "memory cannot be edited by a listener" in caplog.text
    stage.check()


def test_global_log_counts_and_tells_each_listener_once(stage, region, log) -> None:
    for name, priority in (("b", 2), ("a", 1), ("c", 2)):
        listener = Asked(log, name, priority)
        stage.memory.add_listener(listener)
        stage.io.add_listener(listener)
    other = ram("other", 1)
    stage.memory.add(other, 0x80000)
    log.clear()
    stage.dirty_log.start_global()
    assert log == [
        "a: start", "b: start", "c: start",
        *[f"{name}: log_start {place}" for place in ("ram@0x10000+0x4000", "other@0x80000+0x1000") for name in "abc"],
    ]  # fmt: skip
    log.clear()
    stage.dirty_log.start_global()
    stage.dirty_log.stop_global()
    assert (log, stage.dirty_log.is_global) == ([], True)
    stage.dirty_log.stop_global()
    assert log == [
        *[f"{name}: log_stop {place}" for place in ("ram@0x10000+0x4000", "other@0x80000+0x1000") for name in "bca"],
        "b: stop", "c: stop", "a: stop",
    ]  # fmt: skip
    assert (region.dirty.mask, other.dirty.mask) == (VGA, 0)
    with pytest.raises(StateError, match="not all memory is logged, so that cannot stop"):
        stage.dirty_log.stop_global()
    assert not stage.dirty_log.is_global
    stage.check()


def test_global_log_has_what_is_written_from_its_start_on(stage, region) -> None:
    rom = MemoryRegion.rom("rom", b"x", PAGE_SIZE)
    stage.memory.add(rom, 0)
    stage.slots.guest_write(0x10000, 1)
    stage.dirty_log.start_global()
    assert stage.slots.guest_write(0x11000, 1)
    rom.write(0, b"y")
    # What the accelerator had noted for the other client comes along; it is one too many at most.
    assert dirty(stage, region, MIGRATION) <= {0, 1}
    assert dirty(stage, rom, MIGRATION) == {0}
    stage.slots.guest_write(0x12000, 1)
    assert dirty(stage, region, MIGRATION) == {2}
    assert dirty(stage, region, VGA) == {0, 1, 2}
    stage.dirty_log.stop_global()
    assert stage.slots.logged_pages() == {0x10000, 0x11000, 0x12000, 0x13000}
    stage.check()


@pytest.mark.parametrize("refuses", ["a", "b", "c"])
def test_global_log_that_a_listener_cannot_start_is_rolled_back(stage, region, log, refuses: str) -> None:
    listeners = [Asked(log, name, number) for number, name in enumerate("abc")]
    for listener in listeners:
        stage.memory.add_listener(listener)
        listener.refuse = "start" if listener.name == refuses else ""
    region.write(0, b"x")
    log.clear()
    with pytest.raises(ListenerError, match=f"listener '{refuses}', log_global_start"):
        stage.dirty_log.start_global()
    before = "abc".partition(refuses)[0]
    assert log == [f"{name}: start" for name in before + refuses] + [f"{name}: stop" for name in reversed(before)]
    assert not stage.dirty_log.is_global
    assert region.dirty.mask == VGA
    stage.check()
    for listener in listeners:
        listener.refuse = ""
    stage.dirty_log.start_global()
    stage.check()


@pytest.mark.parametrize("how", ["log_start", "slot"])
def test_global_log_whose_change_fails_is_rolled_back(stage, region, log, how: str) -> None:
    other = ram("other")
    stage.memory.add(other, 0x80000)
    listener = Asked(log, refuse=how)
    stage.memory.add_listener(listener)
    log.clear()
    stage.slots.reset(fail_at={0} if how == "slot" else set())
    with pytest.raises(AccelError):
        stage.dirty_log.start_global()
    assert (log[0], log[-1]) == ("a: start", "a: stop")
    assert not stage.dirty_log.is_global
    assert stage.transactions.log_mask == 0
    assert (region.dirty.mask, other.dirty.mask) == (VGA, 0)
    assert [section.log_mask for section in stage.memory.view] == [VGA, 0]
    stage.slots.reset()
    stage.check()
    stage.memory.add(ram("later", 1), 0xA0000)
    assert stage.memory.view.find(0xA0000).log_mask == 0
    listener.refuse = ""
    stage.dirty_log.start_global()
    stage.check()


def test_global_log_that_cannot_stop_goes_on(stage, region, log) -> None:
    listener = Asked(log, refuse="log_stop")
    stage.memory.add_listener(listener)
    stage.dirty_log.start_global()
    stage.slots.guest_write(0x10000, 1)
    log.clear()
    with pytest.raises(ListenerError, match="log_stop"):
        stage.dirty_log.stop_global()
    assert "a: stop" not in log
    assert stage.dirty_log.is_global
    assert dirty(stage, region, MIGRATION) == {0}
    stage.check()
    listener.refuse = ""
    stage.dirty_log.stop_global()
    assert log[-1] == "a: stop"


def test_global_log_of_memory_that_comes_later_is_entirely_dirty(stage, region) -> None:
    stage.dirty_log.start_global()
    late = ram("late")
    late.start_log(CODE)
    stage.memory.add(late, 0x80000)
    assert dirty(stage, late, MIGRATION) == {0, 1, 2, 3}
    assert dirty(stage, late, CODE) == set(), "only the migration has never seen it"
    late.resize(5 * PAGE_SIZE)
    assert dirty(stage, late, MIGRATION) == {4}, "what it grows into was not sent either"
    stage.memory.remove(late)
    late.write(PAGE_SIZE, b"x")
    stage.memory.add(late, 0x90000)
    assert dirty(stage, late, MIGRATION) == {1}, "what it had was sent; it is logged outside of the map, too"
    stage.dirty_log.stop_global()
    assert late.dirty.mask == CODE
    stage.check()


def test_global_log_of_memory_that_does_not_come_is_as_before(stage, region) -> None:
    stage.dirty_log.start_global()
    late = ram("late")
    late.start_log(MIGRATION)
    late.write(0, b"x")
    stage.slots.reset(fail_at={0})
    with pytest.raises(MemorySlotError):
        stage.memory.add(late, 0x80000)
    stage.slots.reset()
    assert pages_of(late.dirty.collect(MIGRATION, 0, late.size)) == {0}
    late.stop_log(MIGRATION)
    assert late.dirty.mask == 0
    stage.check()
    stage.memory.add(late, 0x80000)
    assert dirty(stage, late, MIGRATION) == {0, 1, 2, 3}


# nothing is lost


EDITS = {
    "move": lambda stage, region: region.move(0x40000),
    "grow": lambda stage, region: region.resize(6 * PAGE_SIZE),
    "shrink": lambda stage, region: region.resize(3 * PAGE_SIZE),
    "remove": lambda stage, region: stage.memory.remove(region),
    "hide": lambda stage, region: region.set_enabled(False),
    "cut": lambda stage, region: stage.memory.add(MemoryRegion.mmio("hole", PAGE_SIZE), 0x11000, 1),
    "cover": lambda stage, region: stage.memory.add(ram("over", 8), 0x10000, 1),
    "protect": lambda stage, region: region.set_readonly(True),
    "close the space": lambda stage, region: stage.memory.close(),
    "remove the listener": lambda stage, region: stage.memory.remove_listener(stage.slots),
    "log for another": lambda stage, region: region.start_log(CODE),
    "log for all": lambda stage, region: stage.dirty_log.start_global(),
}


@pytest.mark.parametrize("policy", ["least", "replace"])
@pytest.mark.parametrize("what", EDITS)
def test_dirty_pages_survive_an_edit_that_takes_the_mapping_away(make_stage, what: str, policy: str) -> None:
    stage = make_stage(policy=policy)
    region = ram()
    stage.memory.add(region, 0x10000)
    region.start_log(VGA)
    stage.slots.guest_write(0x10000, 1)
    stage.slots.guest_write(0x12000, 1)
    EDITS[what](stage, region)
    assert dirty(stage, region) == {0, 2}


@pytest.mark.parametrize("policy", ["least", "replace"])
@pytest.mark.parametrize("what", EDITS)
def test_dirty_pages_survive_an_edit_that_fails_anywhere(make_stage, what: str, policy: str) -> None:
    stage = make_stage(policy=policy)
    region = ram()
    stage.memory.add(region, 0x10000)
    region.start_log(VGA)
    for step in range(100):
        stage.slots.guest_write(0x10000, 1)
        stage.slots.guest_write(0x12000, 1)
        stage.slots.reset(fail_at={step})
        try:
            EDITS[what](stage, region)
        except MemorySlotError:
            stage.slots.reset()
            stage.check()
            stage.slots.guest_write(0x13000, 1)
            assert dirty(stage, region) == {0, 2, 3}
        else:
            break
    assert dirty(stage, region) == {0, 2}
    assert step == len(stage.slots.calls)


def test_dirty_pages_noted_between_sync_and_clear_stay_noted(stage, region, log) -> None:
    """A listener forgets those pages only that it handed over."""

    class Writer(MemoryListener):
        def log_clear(self, section) -> None:
            stage.slots.guest_write(0x12000, 1)

    stage.memory.add_listener(Writer())
    stage.slots.guest_write(0x10000, 1)
    assert dirty(stage, region) == {0}
    assert dirty(stage, region) == {2}


@settings(max_examples=150)
@given(st.data())
def test_dirty_pages_of_random_writes_and_edits_are_each_collected_once(make_stage, data: st.DataObject) -> None:
    """A replica that copies what each collection says equals the memory, whatever moves, fails or is cut meanwhile."""
    stage = make_stage(policy=data.draw(st.sampled_from(["least", "replace"])))
    region, over = ram(pages=4), MemoryRegion.mmio("over", PAGE_SIZE)
    alias = MemoryRegion.alias("alias", region, PAGE_SIZE, 2 * PAGE_SIZE)
    stage.memory.add(region, 0x10000)
    client = data.draw(st.sampled_from([VGA, MIGRATION]))
    (stage.dirty_log.start_global if client is MIGRATION else lambda: region.start_log(VGA))()
    replica = bytearray(region.block.view)
    stamp = 0

    def collect() -> None:
        for one in stage.dirty_log.collect(region, client, 0, region.block.max_size).ranges():
            replica[one.start : one.end] = region.block.view[one.start : one.end]

    edits = [
        lambda: region.move(data.draw(st.sampled_from([0x10000, 0x12000, 0x40000]))),
        lambda: region.resize(data.draw(st.integers(1, 16)) * PAGE_SIZE),
        lambda: region.set_enabled(not region.enabled),
        lambda: region.set_readonly(not region.readonly),
        lambda: over.move(0x12000) if over.parent else stage.memory.add(over, 0x11000, 1),
        lambda: stage.memory.remove(alias) if alias.parent else stage.memory.add(alias, 0x80000),
        lambda: region.start_log(CODE),
        lambda: region.stop_log(CODE) if region.log_mask & CODE else None,
        lambda: stage.memory.remove(region) if region.parent else stage.memory.add(region, 0x10000),
        collect,
    ]
    for _ in range(data.draw(st.integers(1, 12))):
        for address in data.draw(st.lists(st.sampled_from([0x10000, 0x11800, 0x12000, 0x40000, 0x80000]), max_size=4)):
            stamp = stamp % 255 + 1
            stage.slots.guest_write(address, stamp)
        stage.slots.reset(fail_at=data.draw(st.sets(st.integers(0, 3), max_size=1)))
        try:
            data.draw(st.sampled_from(edits))()
        except (MemorySlotError, RegionError):
            pass
        stage.slots.reset()
        stage.check()
    collect()
    assert replica == region.block.view


def test_dirty_pages_of_writers_that_race_with_collecting_are_not_lost(stage, spawn) -> None:
    """Guest and host write while the main thread collects and copies; in the end the copy equals the memory."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    region = ram(pages=8)
    stage.memory.add(region, 0x10000)
    region.start_log(VGA)
    gate = stage.blocker.add_gate("vCPU 0", lambda thread: None)
    started, stop = threading.Barrier(3), threading.Event()

    def guest() -> None:
        choose = random.Random(seed)
        started.wait(60)
        for number in range(30_000):
            gate.enter()
            stage.slots.guest_write(0x10000 + choose.randrange(8 * PAGE_SIZE), number & 0xFF)
            gate.leave()
            if stop.is_set():
                return

    def host() -> None:
        choose = random.Random(seed + 1)
        started.wait(60)
        for number in range(30_000):
            stage.memory.write(0x10000 + choose.randrange(8 * PAGE_SIZE - 8), bytes([number & 0xFF]) * 8)
            if stop.is_set():
                return

    def collect() -> int:
        snapshot = stage.dirty_log.collect(region, VGA)
        for one in snapshot.ranges():
            replica[one.start : one.end] = region.block.view[one.start : one.end]
        return snapshot.page_count

    replica = bytearray(region.block.view[: region.size])
    workers = [spawn(guest), spawn(host)]
    started.wait(60)
    rounds = 0
    try:
        while any(worker._thread.is_alive() for worker in workers) and rounds < 2000:
            collect()
            rounds += 1
            if rounds % 10 == 0:
                # A doorbell-sized hole comes and goes, so that slots go and come with their notes.
                region.set_readonly(True)
                region.set_readonly(False)
    finally:
        stop.set()
    for worker in workers:
        worker.join()
    collect()
    assert replica == region.block.view[: region.size]
    assert collect() == 0
    stage.check()


@pytest.mark.parametrize("needs_hold", [False, True])
def test_dirty_log_is_asked_with_the_vcpus_held_if_a_listener_needs_that(stage, region, needs_hold) -> None:
    """A processor may keep what it noted to itself until its vCPU leaves the guest."""
    held: list[bool] = []

    class Ringed(MemoryListener):
        log_sync_needs_hold = needs_hold

        def log_sync(self, section) -> None:
            held.append(stage.blocker.inhibited)

    stage.memory.add_listener(Ringed())
    stage.dirty_log.sync()
    dirty(stage, region)
    assert held == [needs_hold] * 2
    assert not stage.blocker.inhibited

"""A fault at every step of a commit with three listeners: the outcome is the map before or the one after, in all.

Each scenario is run once to count its steps (each callback, each prepare, each slot call, each undo) and then once
for each step and each kind of exception, on a stage of its own. What counts as the state is written out by names, so
that stages can be compared: the tree, the views, the history, dirty bits, pins, and what each listener believes.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from accel.address import PAGE_SIZE
from accel.errors import AccelError, ClosedError, ListenerError, MapLostError, MemorySlotError, StateError
from accel.memory.address_space import AddressSpace
from accel.memory.dirty import DirtyClient
from accel.memory.listener import MemoryListener, Update
from accel.memory.region import MemoryRegion
from accel.memory.slot_plan import SlotPlan

from .conftest import SlotTable, Stage

VGA, CODE, MIGRATION = DirtyClient.VGA, DirtyClient.CODE, DirtyClient.MIGRATION

KINDS: dict[str, Callable[[], Exception]] = {
    "accel": lambda: AccelError("fault"),
    "errno": lambda: MemorySlotError("call", errno.EIO, slot=1, gpa=0, hva=0, size=0, flags=0),
    "plain": lambda: ValueError("fault"),
    # The core retries nothing by itself, and takes an interrupted call for any other failure.
    "EINTR": lambda: InterruptedError(errno.EINTR, "interrupted"),
}


class Faults:
    """Counts the steps of all listeners, and lets some of them fail."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str]] = []
        self.fail_at: set[int] = set()
        self.make = KINDS["accel"]

    def step(self, listener: MemoryListener, what: str) -> None:
        number = len(self.steps)
        self.steps.append((listener.name, what))
        if number in self.fail_at:
            raise self.make()


def _stepping(callback: str):
    def told(self, *arguments):
        self.faults.step(self, callback)
        return getattr(super(type(self), self), callback)(*arguments)

    return told


class Table(SlotTable):
    """A slot table whose every step may fail."""

    def __init__(self, name: str, priority: int, faults: Faults, policy) -> None:
        self.name, self.priority, self.faults = name, priority, faults
        self.heard: Counter[str] = Counter()
        self.undoing = False
        super().__init__(policy)

    def begin(self) -> None:
        super().begin()
        self.heard["begin"] += 1
        self.faults.step(self, "begin")

    def commit(self) -> None:
        super().begin()
        self.heard["end"] += 1
        self.faults.step(self, "commit")

    def abort(self) -> None:
        super().begin()
        self.heard["end"] += 1
        self.faults.step(self, "abort")

    region_del = _stepping("region_del")
    region_add = _stepping("region_add")
    log_start = _stepping("log_start")
    log_stop = _stepping("log_stop")
    prepare = _stepping("prepare")

    def update(self, plan: SlotPlan) -> Update:
        return TableUpdate(self, super().update(plan))

    def _call(self, kind: str, slot) -> None:
        self.faults.step(self, f"undo {kind}" if self.undoing else f"apply {kind}")


class TableUpdate(Update):
    def __init__(self, table: Table, inner: Update) -> None:
        self.needs_hold, self.lock = inner.needs_hold, inner.lock
        self.needs_hold_unless_last = inner.needs_hold_unless_last
        self._table, self._inner = table, inner

    def apply(self) -> None:
        self._inner.apply()

    def undo(self) -> None:
        self._table.undoing = True
        try:
            self._inner.undo()
        finally:
            self._table.undoing = False


class Observer(MemoryListener):
    """Keeps a map of its own from what it hears, real only once it is applied, and in force with commit."""

    def __init__(self, name: str, priority: int, faults: Faults) -> None:
        self.name, self.priority, self.faults = name, priority, faults
        self.heard: Counter[str] = Counter()
        self.logs_all = 0
        self.map: dict[object, object] = {}
        self.pending: dict[object, object] = {}

    def begin(self) -> None:
        self.pending = dict(self.map)
        self.heard["begin"] += 1
        self.faults.step(self, "begin")

    def region_del(self, section) -> None:
        self.faults.step(self, "region_del")
        del self.pending[section.region.name, section.range.start]

    def region_add(self, section) -> None:
        self.faults.step(self, "region_add")
        assert (section.region.name, section.range.start) not in self.pending
        self.pending[section.region.name, section.range.start] = [shown(section), section.log_mask]

    def region_nop(self, section) -> None:
        self.faults.step(self, "region_nop")
        assert self.pending[section.region.name, section.range.start][0] == shown(section)

    def log_start(self, section, old, new) -> None:
        self.faults.step(self, "log_start")
        self._mask(section, old, old | new)

    def log_stop(self, section, old, new) -> None:
        self.faults.step(self, "log_stop")
        self._mask(section, old, new)

    def _mask(self, section, old, new) -> None:
        place = section.region.name, section.range.start
        mapped, mask = self.pending[place]
        assert mask in (old, old | section.log_mask)
        self.pending[place] = [mapped, new]

    def coalesced_io_add(self, section, window) -> None:
        self.faults.step(self, "coalesced_io_add")
        self.pending["queue", section.region.name, window] = True

    def coalesced_io_del(self, section, window) -> None:
        self.faults.step(self, "coalesced_io_del")
        del self.pending["queue", section.region.name, window]

    def eventfd_add(self, section, eventfd) -> None:
        self.faults.step(self, "eventfd_add")
        self.pending["bell", section.region.name, eventfd.key] = True

    def eventfd_del(self, section, eventfd) -> None:
        self.faults.step(self, "eventfd_del")
        del self.pending["bell", section.region.name, eventfd.key]

    def prepare(self) -> Update:
        self.faults.step(self, "prepare")
        return ObserverUpdate(self)

    def commit(self) -> None:
        assert self.map == self.pending
        self.heard["end"] += 1
        self.faults.step(self, "commit")

    def abort(self) -> None:
        self.pending = {}
        self.heard["end"] += 1
        self.faults.step(self, "abort")

    def log_global_start(self) -> None:
        self.faults.step(self, "log_global_start")
        self.logs_all += 1

    def log_global_stop(self) -> None:
        self.logs_all -= 1


class ObserverUpdate(Update):
    """Makes the map that was heard the listener's own, in two steps between which it may fail."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._before: dict[object, object] | None = None

    def apply(self) -> None:
        self._observer.faults.step(self._observer, "apply")
        self._before, self._observer.map = self._observer.map, self._observer.pending
        self._observer.faults.step(self._observer, "apply")

    def undo(self) -> None:
        self._observer.faults.step(self._observer, "undo")
        if self._before is not None:
            self._observer.map = self._before


# the state by names


def shown(section) -> tuple:
    return (
        section.range.start, section.range.end, section.region.name, section.offset, section.readonly, section.romd,
        section.nonvolatile, section.unmergeable,
    )  # fmt: skip


def _bells(eventfds) -> list:
    return [one.key for one in eventfds]


def _view(view) -> list:
    return [(shown(one), one.log_mask, one.coalesced, _bells(one.eventfds)) for one in view]


def _region(region: MemoryRegion) -> dict[str, object]:
    siblings = list(region.parent._children) if region.parent else []
    assert (region in siblings) is (region.parent is not None)
    return {
        "parent": region.parent and region.parent.name,
        "place": (region.offset, region.size, region.priority) if region.parent else region.size,
        "rank": [one.name for one in region.parent.children] if region.parent else [],
        "children": [one.name for one in region.children],
        "index": sorted(one.name for one in region._children or ()),
        "aliases": sorted(one.name for one in region.aliases()),
        "mine": region._owner is not None,
        "flags": (region.enabled, region.readonly, region.romd, region.nonvolatile, region.unmergeable),
        "target": (region.target and region.target.name, region.target_offset),
        "io": (region.coalesced, _bells(region.eventfds)),
        "log": (region.log_mask, {one: times for one, times in region._log_counts.items() if times}),
        "memory": region.block and (region.block.size, region.block.pins),
    }


class Setup:
    """A stage with three listeners, and the regions that a scenario is about."""

    def __init__(self, policy: str) -> None:
        self.faults = Faults()
        self.stage = stage = Stage(policy=policy)
        stage.memory.remove_listener(stage.slots)
        self.observer = Observer("observer", 0, self.faults)
        self.tables = [Table("first", 10, self.faults, policy), Table("second", 20, self.faults, policy)]
        stage.slots = self.tables[0]
        for one in (self.tables[1], self.observer, self.tables[0]):
            stage.memory.add_listener(one)
        stage.io.add_listener(self.observer)
        self.listeners: list = [self.observer, *self.tables]
        self.bell = os.eventfd(0)
        self.ram = MemoryRegion.ram("ram", 4 * PAGE_SIZE, 8 * PAGE_SIZE)
        self.logged = MemoryRegion.ram("logged", 2 * PAGE_SIZE, 8 * PAGE_SIZE)
        self.flash = MemoryRegion.rom_device("flash", b"f" * 2 * PAGE_SIZE)
        self.device = MemoryRegion.mmio("device", PAGE_SIZE, coalesced=True)
        self.device.add_eventfd(0x10, self.bell, 4)
        self.alias = MemoryRegion.alias("alias", self.ram, PAGE_SIZE, 2 * PAGE_SIZE)
        self.port = MemoryRegion.mmio("port", 8)
        self.fresh = MemoryRegion.ram("fresh", 2 * PAGE_SIZE)
        self.regions = [
            stage.memory.root, stage.io.root, self.ram, self.logged, self.flash, self.device, self.alias, self.port,
            self.fresh,
        ]  # fmt: skip
        with stage.transaction():
            stage.memory.add(self.ram, 0)
            stage.memory.add(self.logged, 0x10000)
            stage.memory.add(self.flash, 0x20000)
            stage.memory.add(self.device, 0x30000)
            stage.memory.add(self.alias, 0x40000)
            stage.io.add(self.port, 0x100)
            self.logged.start_log(VGA)

    def close(self) -> None:
        os.close(self.bell)

    def arm(self) -> None:
        """Let the guests write, and count steps from now on."""
        self.tables[0].guest_write(0x10000, 1)
        self.tables[1].guest_write(0x11000, 1)
        for one in self.listeners:
            one.heard.clear()
        self.faults.steps.clear()

    def state(self) -> dict[str, object]:
        transactions = self.stage.transactions
        history = self.stage.history
        assert history.started == history.completed
        found: dict[str, object] = {
            "regions": {one.name: _region(one) for one in self.regions},
            "views": {one.name: _view(one.view) for one in transactions.spaces},
            "history": _view(history._views[-1][1]),
            "dirty": {one.name: self._dirty(one) for one in self.regions},
            "pins": {block.name: count for block, count in transactions._pins._counts.items()},
            "observer": {str(place): value for place, value in self.observer.map.items()},
            "global": (self.stage.dirty_log.is_global, len(self.stage.dirty_log._logs), transactions.log_mask),
            "listeners": [one.name for one in transactions.listeners],
        }
        for table in self.tables:
            found[table.name] = sorted(
                (one.gpa, one.size, one.block.name, one.offset, one.readonly, one.log is not None)
                for one in table.slots.values()
            )
        return found

    def _dirty(self, region: MemoryRegion) -> dict[int, set[int]]:
        """Return the dirty pages by client: those of its log, and those that a listener will hand over."""
        log = region.dirty
        if log is None:
            return {}
        noted = {
            page // PAGE_SIZE
            for table in self.tables
            for gpa, slot in table.slots.items()
            if slot.log is log
            for page in table.noted[gpa]
        }
        return {
            client: noted | {page for page in range(log.size // PAGE_SIZE) if log.is_dirty(client, page * PAGE_SIZE)}
            for client in DirtyClient
            if log.mask & client
        }

    def check(self) -> None:
        self.stage.check()
        for table in self.tables:
            self.stage.check_slots(table)
            assert not table.lock.held()
            assert not table.undoing
        assert self.observer.logs_all == self.stage.dirty_log.is_global
        wanted = {
            (section.region.name, section.range.start): [shown(section), section.log_mask]
            for space in (self.stage.memory, self.stage.io)
            for section in space.view
        }
        assert {place: value for place, value in self.observer.map.items() if len(place) == 2} == wanted


# scenarios: each returns the change to make


SCENARIOS: dict[str, Callable[[Setup], Callable[[], None]]] = {}


def scenario(make: Callable[[Setup], Callable[[], None]]) -> Callable[[Setup], Callable[[], None]]:
    SCENARIOS[make.__name__] = make
    return make


@scenario
def add(s: Setup) -> Callable[[], None]:
    def change() -> None:
        device = MemoryRegion.mmio("late", 0x100, coalesced=True)
        device.add_eventfd(0x10, s.bell, 2, 5)
        with s.stage.transaction():
            s.stage.memory.add(s.fresh, 0x50000)
            s.stage.memory.add(device, 0x60000)

    return change


@scenario
def remove(s: Setup) -> Callable[[], None]:
    def change() -> None:
        with s.stage.transaction():
            for one in (s.ram, s.logged, s.device):
                s.stage.memory.remove(one)

    return change


@scenario
def move_onto_itself_under_an_overlap(s: Setup) -> Callable[[], None]:
    def change() -> None:
        with s.stage.transaction():
            s.ram.move(PAGE_SIZE)
            s.device.move(2 * PAGE_SIZE)
            s.device.set_priority(1)
            s.logged.move(0x12000)

    return change


@scenario
def resize(s: Setup) -> Callable[[], None]:
    def change() -> None:
        with s.stage.transaction():
            s.ram.resize(6 * PAGE_SIZE)
            s.logged.resize(PAGE_SIZE)

    return change


@scenario
def log_start(s: Setup) -> Callable[[], None]:
    return lambda: s.ram.start_log(CODE)


@scenario
def log_stop(s: Setup) -> Callable[[], None]:
    return lambda: s.logged.stop_log(VGA)


@scenario
def log_for_another(s: Setup) -> Callable[[], None]:
    def change() -> None:
        with s.stage.transaction():
            s.logged.start_log(CODE)
            s.logged.stop_log(VGA)

    return change


@scenario
def romd(s: Setup) -> Callable[[], None]:
    return lambda: s.flash.set_romd(False)


@scenario
def readonly(s: Setup) -> Callable[[], None]:
    def change() -> None:
        with s.stage.transaction("map"):
            s.ram.set_readonly(True)
            s.logged.set_readonly(True)

    return change


@scenario
def several_spaces(s: Setup) -> Callable[[], None]:
    def change() -> None:
        with s.stage.transaction():
            s.stage.io.remove(s.port)
            s.port.resize(4)
            s.stage.memory.add(s.port, 0x70000)
            s.stage.io.add(MemoryRegion.alias("window", s.ram, 0, 0x10), 0x200)
            bus = AddressSpace("bus", s.stage.transactions, MemoryRegion.container("bus", 1 << 20))
            bus.add(s.fresh, 0x1000)

    return change


@scenario
def alias_and_rank(s: Setup) -> Callable[[], None]:
    def change() -> None:
        with s.stage.transaction():
            s.alias.set_target_offset(0)
            s.alias.move(0x10000)
            s.alias.set_priority(-1)
            s.flash.set_enabled(False)

    return change


@scenario
def doorbells_alone(s: Setup) -> Callable[[], None]:
    def change() -> None:
        with s.stage.transaction():
            s.device.remove_eventfd(0x10, s.bell, 4)
            s.device.add_eventfd(0x20, s.bell)
            s.device.clear_coalescing()
            s.device.add_coalescing(0, 8)

    return change


@scenario
def savepoints(s: Setup) -> Callable[[], None]:
    def change() -> None:
        with s.stage.transaction():
            s.ram.set_readonly(True)
            with pytest.raises(ZeroDivisionError), s.stage.transaction():
                s.logged.stop_log(VGA)
                s.stage.memory.remove(s.ram)
                s.stage.memory.add(s.fresh, 0)
                s.alias.set_enabled(False)
                raise ZeroDivisionError
            with s.stage.transaction():
                s.device.move(0x31000)

    return change


@scenario
def global_start(s: Setup) -> Callable[[], None]:
    return s.stage.dirty_log.start_global


@scenario
def global_stop_and_memory_that_comes_before(s: Setup) -> Callable[[], None]:
    s.stage.dirty_log.start_global()
    return s.stage.dirty_log.stop_global


@scenario
def memory_that_comes_while_all_is_logged(s: Setup) -> Callable[[], None]:
    s.stage.dirty_log.start_global()
    return lambda: s.stage.memory.add(s.fresh, 0x50000)


@pytest.fixture(params=["least", "replace"])
def policy(request) -> str:
    return request.param


@pytest.fixture
def make(policy: str) -> Iterator[Callable[[str], tuple[Setup, Callable[[], None]]]]:
    made = []

    def setup(name: str) -> tuple[Setup, Callable[[], None]]:
        one = Setup(policy)
        made.append(one)
        change = SCENARIOS[name](one)
        one.check()
        one.arm()
        return one, change

    yield setup
    for one in made:
        one.close()


@cache
def recorded(name: str, policy: str) -> tuple[list[tuple[str, str]], dict[str, object], dict[str, object]]:
    """Return the steps of a scenario, and the states before and after it."""
    one = Setup(policy)
    change = SCENARIOS[name](one)
    one.arm()
    old = one.state()
    change()
    new = one.state()
    one.check()
    assert old != new
    steps = list(one.faults.steps)
    one.close()
    return steps, old, new


def _heard_once(one: Setup) -> None:
    """Whoever's begin was called has heard one end."""
    for listener in one.listeners:
        assert listener.heard["begin"] == listener.heard["end"] <= 1, listener.name


@pytest.mark.parametrize("name", SCENARIOS)
def test_commit_counts_its_steps(name: str, policy: str) -> None:
    """The recording sees what it is meant to see: each listener begins, prepares and ends once."""
    steps, _, _ = recorded(name, policy)
    for listener in ("observer", "first", "second"):
        mine = [what for one, what in steps if one == listener]
        told = [what for what in mine if what in ("begin", "prepare", "commit", "abort")]
        assert told in (["begin", "prepare", "commit"], [])
        assert len(mine) > 2 or not mine
    assert [one for one, what in steps if what == "begin"] == sorted(
        {one for one, _ in steps}, key=["observer", "first", "second"].index
    )


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in SCENARIOS for kind in KINDS if kind != "EINTR" or name == "readonly"]
)
def test_commit_with_a_fault_at_any_step_is_the_old_or_the_new_state(make, policy: str, name: str, kind: str) -> None:
    steps, old, new = recorded(name, policy)
    for number, (listener, what) in enumerate(steps):
        one, change = make(name)
        assert one.state() == old
        one.faults.fail_at, one.faults.make = {number}, KINDS[kind]
        if what == "commit":
            change()
            assert one.state() == new
        else:
            expected = ListenerError if kind in ("plain", "EINTR") else AccelError
            with pytest.raises(expected, match=r"fault|EIO|interrupted") as caught:
                change()
            error = caught.value
            assert (error.listener, error.step) == (listener, what.split()[0])
            assert f"(memory listener '{listener}', {what.split()[0]})" in str(error)
            if expected is ListenerError:
                assert type(error.__cause__) is type(KINDS[kind]())
            assert one.state() == old
        _heard_once(one)
        one.check()
        # Nothing is left over that a later, unrelated change would make visible.
        one.faults.fail_at = set()
        one.stage.memory.add(MemoryRegion.mmio("unrelated", 0x100), 0x100000)
        one.check()
        one.stage.memory.remove(one.stage.memory.root.children_in(0x100000, 0x100001)[0])
        assert one.state() == (new if what == "commit" else old)
        if what != "commit":
            one.stage.slots.reset()
            change()
            assert one.state() == new
            one.check()


@pytest.mark.parametrize("name", SCENARIOS)
def test_commit_whose_undo_fails_anywhere_loses_the_map_and_says_so(make, policy: str, name: str) -> None:
    steps, old, new = recorded(name, policy)
    kind = "errno" if policy == "replace" else "plain"
    applied = [number for number, (_, what) in enumerate(steps) if what.startswith("apply")]
    assert applied
    for number in applied:
        one, change = make(name)
        one.faults.fail_at = {number}
        with pytest.raises(AccelError):
            change()
        undone = [at for at, (_, what) in enumerate(one.faults.steps) if what.startswith("undo")]
        for failing in undone:
            _lose(*make(name), {number, failing}, kind, old, new)


def _lose(one: Setup, change, fail_at: set[int], kind: str, old, new) -> None:
    stage, faults = one.stage, one.faults
    gate = stage.blocker.add_gate("vCPU 0", lambda thread: None)
    faults.fail_at, faults.make = fail_at, KINDS[kind]
    with pytest.raises(MapLostError, match="could not be undone") as caught:
        change()
    failed = faults.steps[max(fail_at)][0]
    assert (caught.value.listener, caught.value.step) == (failed, "undo")
    assert f"(memory listener '{failed}', undo)" in str(caught.value)
    _heard_once(one)
    state = one.state()
    for what in ("views", "history", "global", "listeners"):
        assert state[what] == old[what], what
    for name, region in state["regions"].items():
        before = old["regions"][name]
        assert {**region, "memory": None} == {**before, "memory": None}
    # Whose own undo did not fail is as it was.
    for listener in {"observer", "first", "second"} - {failed}:
        assert state[listener] == old[listener], listener
    # Any of these may be mapped: what was, and what was to be.
    for name in old["pins"].keys() | new["pins"].keys():
        assert state["pins"].get(name, 0) >= max(old["pins"].get(name, 0), new["pins"].get(name, 0))
    pins = dict(state["pins"])
    for _ in range(2):
        with pytest.raises(MapLostError, match=f"could not be undone.*listener '{failed}', undo"):
            gate.enter()
        assert not gate.busy
    faults.fail_at = set()
    count = len(faults.steps)
    with pytest.raises(MapLostError, match="could not be undone"):
        stage.memory.add(MemoryRegion.ram("more", PAGE_SIZE), 0x100000)
    assert len(faults.steps) == count, "nobody is told of a change that cannot be"
    assert one.state()["pins"] == pins
    with pytest.raises(StateError, match="is mapped"):
        one.ram.release()
    assert not stage.big_lock.held()
    stage.transactions.close()
    for region in one.regions:
        if region.block is not None:
            assert region.block.pins == 0
            region.release()


def test_commit_of_which_a_listener_says_that_its_map_is_lost_poisons_the_vm(stage) -> None:
    """Even if the undo, which it was asked for, raised nothing."""
    seen = []

    class Lost(MemoryListener, Update):
        name = "lost"

        def prepare(self) -> Update:
            return self

        def apply(self) -> None:
            raise MapLostError("half of a slot is gone", ["slot 3"])

        def undo(self) -> None:
            seen.append("undo")

    view = stage.memory.view
    listener = Lost()
    listener.prepare = lambda: None
    stage.memory.add_listener(listener)
    del listener.prepare
    with pytest.raises(MapLostError, match=r"half of a slot.*slot 3.*'lost', apply"):
        stage.memory.add(MemoryRegion.ram("ram", PAGE_SIZE), 0)
    assert seen == ["undo"]
    assert stage.memory.view is view
    with pytest.raises(MapLostError, match=r"half of a slot is gone; slots present: slot 3"):
        stage.blocker.check()


def test_commit_closed_by_a_listener_is_refused(stage) -> None:
    listener = MemoryListener()
    listener.region_add = lambda section: stage.memory.close()
    stage.memory.add_listener(listener)
    with pytest.raises(StateError, match="memory cannot be edited by a listener"):
        stage.memory.add(MemoryRegion.ram("ram", PAGE_SIZE), 0)
    stage.check()


def test_commit_of_a_vm_closed_inside_the_transaction_changes_nothing(stage) -> None:
    region = MemoryRegion.ram("ram", PAGE_SIZE)
    with pytest.raises(ClosedError, match="the VM was closed inside the transaction"), stage.transaction():
        stage.memory.add(region, 0)
        stage.transactions.close()
    assert (region.parent, region.block.pins, stage.slots.slots) == (None, 0, {})

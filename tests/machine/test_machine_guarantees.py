"""What a guest may see of a memory change, guarantee by guarantee, and that nothing keeps a change waiting.

On every accelerator here. A guest says by its port writes and by the accesses that come out what it has seen; where
an accelerator has to be caught between two steps, the test goes on until it was.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.errors import ClosedError
from accel.memory.dirty import DirtyClient
from accel.memory.listener import MemoryListener, Update
from accel.program import Add, GuestProgram, Load, Loop, Op, Out, Store

pytestmark = pytest.mark.parametrize("accelerator", [pytest.param("kvm", marks=pytest.mark.kvm), "mock"])

PATIENCE = 20
LOW, HIGH = 0x1000_0000, 0x2000_0000
PORT = 0x80


def machine(bench, accelerator: str, *ops: Op, cpus: int = 1, **options: object) -> accel.Machine:
    """Return a machine with a guest that does `ops`."""
    return bench(GuestProgram(ops), accelerators=accelerator, cpus=cpus, options={accelerator: dict(options)}).machine


class Pace:
    """What the guest tells with each write to `PORT`: that it goes on."""

    def __init__(self, one: accel.Machine) -> None:
        self.count = 0
        self._changed = threading.Condition()
        one.port(PORT)(lambda access: self._tell())

    def _tell(self) -> None:
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def wait(self, count: int = 2) -> None:
        """Wait until the guest has told so often; the first may be late."""
        with self._changed:
            target = self.count + count
            assert self._changed.wait_for(lambda: self.count >= target, PATIENCE), "the guest does not go on"


# two addresses


class TwoPlaces:
    """Memory at two addresses, which comes and goes in one commit, and a guest that looks low, high and low again.

    The vCPU runs in a loop of the test's own: a machine's devices wait for the big lock, and so would what they tell.
    While there was no more than one change from before the first look until after the last, a guest that missed only
    the high memory has seen half of that change.

    Attributes:
        looks: How often the guest has looked.
        judged: How many of these were beside no more than one change.
        halves: How many of those saw half of it.
    """

    def __init__(self, bench, accelerator: str) -> None:
        looks = (Load(LOW), Load(HIGH), Load(LOW))
        # As long as two calls of KVM take, where the calls are none.
        options = {"slot_latency_us": 50} if accelerator == "mock" else {}
        self.machine = machine(bench, accelerator, Loop((Out(PORT, 0), *looks, Out(PORT, 1)), None), **options)
        self.looks = self.judged = self.halves = 0
        self._ram = [accel.MemoryRegion.ram(name, PAGE_SIZE) for name in ("low", "high")]
        self._began = threading.Semaphore(0)
        self._stopping = False
        self._thread = threading.Thread(target=self._main, daemon=True)

    def change(self, atomic: str) -> None:
        """Let both come, or both go, once the guest has begun to look again."""
        assert self._began.acquire(timeout=PATIENCE)
        while self._began.acquire(blocking=False):
            pass
        with self.machine.transaction(atomic):
            for region, at in zip(self._ram, (LOW, HIGH), strict=True):
                if region.parent is None:
                    self.machine.memory.add(region, at=at)
                else:
                    self.machine.memory.remove(region)

    def _main(self) -> None:
        vcpu, history = self.machine.vm.vcpus[0], self.machine.vm.history
        missed: list[int] = []
        began = 0
        while not self._stopping:
            match vcpu.run():
                case accel.MmioRead(address=address) as access:
                    missed.append(address)
                    access.reply(0)
                case accel.IoOut(data=b"\0"):
                    missed.clear()
                    began = history.completed
                    self._began.release()
                case accel.IoOut():
                    self.looks += 1
                    if history.started - began <= 1:
                        self.judged += 1
                        self.halves += missed == [HIGH]

    def __enter__(self) -> TwoPlaces:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping = True
        self.machine.vm.vcpus[0].kick()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture
def short_turns() -> Iterator[None]:
    """Let threads take turns often, so that a vCPU that came out does not wait for the whole change."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("short_turns")
def test_change_of_two_addresses_is_seen_whole_under_atomic_map(bench, accelerator) -> None:
    with TwoPlaces(bench, accelerator) as stage:
        for _ in range(2_000):
            stage.change("map")
    assert stage.halves == 0
    assert stage.judged > 200
    assert stage.machine.vm.blocker.stats.inhibits == 2_000


@pytest.mark.usefixtures("short_turns")
def test_change_of_two_addresses_is_seen_by_halves_where_each_address_is_all_that_is_asked(bench, accelerator) -> None:
    commits = 0
    with TwoPlaces(bench, accelerator) as stage:
        while stage.halves < 3 and commits < 20_000:
            stage.change("address")
            commits += 1
    print(f"{stage.halves} halves in {commits} commits, {stage.looks} looks, {stage.judged} judged")
    assert stage.halves >= 3
    assert stage.machine.vm.blocker.stats.inhibits == 0


# what counts as a spurious fault


EDITS = 25


class Coming:
    """RAM, or ROM, at `LOW` that a running guest polls while it comes, goes or is replaced."""

    def __init__(self, bench, accelerator: str, *ops: Op, rom: bool = False, hold: str) -> None:
        self.machine = machine(bench, accelerator, Loop((*ops, Out(PORT, 0)), None), hold=hold, plan="replace")
        self.pace = Pace(self.machine)
        contents = b"\x5a" * PAGE_SIZE
        self.region = (
            accel.MemoryRegion.rom("rom", contents) if rom else accel.MemoryRegion.ram("ram", "64K", max_size="128K")
        )

    def add(self) -> None:
        self.machine.memory.add(self.region, at=LOW)

    def remove(self) -> None:
        self.machine.memory.remove(self.region)

    def edit(self, *edits: Callable[[], None], until_fault: bool = False) -> accel.RunResult:
        """Make the edits in turn under the guest, which goes a round after each; return what it came to."""
        run = self.machine.start()
        turns = 0
        while turns < EDITS or (until_fault and turns < 20_000 and not sum(run.spurious_faults_so_far())):
            for edit in edits:
                edit()
                if not until_fault:
                    self.pace.wait()
            turns += 1
        self.machine.stop()
        return run.wait()


@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
@pytest.mark.parametrize("access", [Load(LOW), Store(LOW, 1), Add(LOW, 1, 4)], ids=["read", "write", "locked"])
def test_polling_where_memory_comes_and_goes_counts_no_spurious_fault(bench, accelerator, access, hold) -> None:
    stage = Coming(bench, accelerator, *[access] * 20, hold=hold)
    result = stage.edit(stage.add, stage.remove)
    assert result.exits["mmio"] > EDITS, "it came out where there was nothing"
    assert result.spurious_faults == 0


@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
def test_writing_to_rom_and_polling_what_is_absent_count_no_spurious_fault_beside_changes(
    bench, accelerator, hold
) -> None:
    stage = Coming(bench, accelerator, *[Store(LOW, 1)] * 10, *[Load(HIGH)] * 10, rom=True, hold=hold)
    stage.add()
    near = accel.MemoryRegion.ram("near", PAGE_SIZE)
    result = stage.edit(
        lambda: stage.machine.memory.add(near, at=HIGH + PAGE_SIZE),
        lambda: stage.machine.memory.remove(near),
        # Deleted and added again: the writes were never served, however it is done.
        lambda: stage.region.set_nonvolatile(not stage.region.nonvolatile),
    )
    assert result.exits["mmio"] >= 20 * 3 * EDITS
    assert result.spurious_faults == 0


@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
def test_memory_that_becomes_read_only_and_back_counts_reads_that_came_out_and_no_writes(
    bench, accelerator, hold
) -> None:
    """A write that comes out was not served by one of the two maps; a read was by both."""
    stage = Coming(bench, accelerator, *[Store(LOW, 1)] * 20, hold=hold)
    stage.add()
    result = stage.edit(lambda: stage.region.set_readonly(True), lambda: stage.region.set_readonly(False))
    assert result.exits["mmio"] > 0
    assert result.spurious_faults == 0
    stage = Coming(bench, accelerator, *[Load(LOW)] * 2_000, hold=hold)
    stage.add()
    result = stage.edit(lambda: stage.region.set_readonly(not stage.region.readonly), until_fault=hold == "unsafe")
    assert (result.spurious_faults > 0) == (hold == "unsafe")
    assert result.exits.get("mmio", 0) == result.spurious_faults


@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
def test_memory_that_stays_and_is_replaced_counts_each_access_that_came_out(bench, accelerator, hold) -> None:
    stage = Coming(bench, accelerator, *[Load(LOW), Store(LOW + 8, 1)] * 1_000, hold=hold)
    stage.add()
    result = stage.edit(
        lambda: stage.region.resize("128K" if stage.region.size == 64 << 10 else "64K"), until_fault=hold == "unsafe"
    )
    assert (result.spurious_faults > 0) == (hold == "unsafe")
    assert result.exits.get("mmio", 0) == result.spurious_faults
    assert set(result.vcpus[0].spurious) <= {LOW, LOW + 8}


# dirty pages


PAGES = 64


@pytest.mark.parametrize("how", ["remove", "shrink", "cover", "replace all"])
@pytest.mark.parametrize("plan", ["least", "replace"])
def test_logged_memory_that_goes_under_two_writing_vcpus_loses_no_page(bench, accelerator, plan, how) -> None:
    adds = tuple(Add(LOW + page * PAGE_SIZE, 1, 8) for page in range(PAGES))
    one = machine(bench, accelerator, Loop((*adds, Out(PORT, 0)), None), cpus=2, plan=plan)
    pace = Pace(one)
    region = accel.MemoryRegion.ram("logged", PAGES * PAGE_SIZE, max_size=2 * PAGES * PAGE_SIZE)
    cover = accel.MemoryRegion.ram("cover", PAGES // 2 * PAGE_SIZE)
    region.start_log(DirtyClient.VGA)
    one.memory.add(region, at=LOW)

    assert region.block is not None
    memory = region.block.view

    def contents() -> list[bytes]:
        return [bytes(memory[page * PAGE_SIZE : page * PAGE_SIZE + 16]) for page in range(PAGES)]

    def go() -> None:
        match how:
            case "remove":
                one.memory.remove(region)
            case "shrink":
                region.resize(PAGES // 2 * PAGE_SIZE)
            case "cover":
                one.memory.add(cover, at=LOW, priority=1)
            case _:
                with one.transaction("map"):
                    region.move(HIGH)
                    one.memory.add(cover, at=LOW)

    def come() -> None:
        match how:
            case "remove":
                one.memory.add(region, at=LOW)
            case "shrink":
                region.resize(PAGES * PAGE_SIZE)
            case "cover":
                one.memory.remove(cover)
            case _:
                with one.transaction("map"):
                    one.memory.remove(cover)
                    region.move(LOW)

    run = one.start()
    written = 0
    for _ in range(15):
        pace.wait()
        one.vm.dirty_log.collect(region, DirtyClient.VGA)
        before = contents()
        pace.wait(1)
        go()
        one.pause()
        changed = {page for page, data in enumerate(contents()) if data != before[page]}
        come()
        snapshot = one.vm.dirty_log.collect(region, DirtyClient.VGA)
        assert all(snapshot.is_dirty(page * PAGE_SIZE) for page in changed)
        written += len(changed)
        one.resume()
    one.stop()
    run.wait()
    assert written > 15


# vCPUs that come, go and fail while they are held


class Arrival:
    """Runs a vCPU once on a thread of its own.

    Attributes:
        came: Set when it is about to pass its gate.
        held: Whether the VM was inhibited when it went into the accelerator, for each time.
        results: The exit, or what was raised.
    """

    def __init__(self, vcpu: accel.Vcpu, monkeypatch: pytest.MonkeyPatch) -> None:
        self.came = threading.Event()
        self.held: list[bool] = []
        self.results: list[object] = []
        self._vcpu = vcpu
        enter, run = type(vcpu.gate).enter, vcpu.backend.run

        def watched_enter(gate) -> None:
            if gate is vcpu.gate:
                self.came.set()
            enter(gate)

        def watched_run() -> int:
            self.held.append(vcpu.vm.blocker.inhibited)
            return run()

        monkeypatch.setattr(type(vcpu.gate), "enter", watched_enter)
        vcpu.backend.run = watched_run
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        assert self.came.wait(PATIENCE)

    def _main(self) -> None:
        try:
            self.results.append(self._vcpu.run())
        except accel.AccelError as error:
            self.results.append(error)

    def join(self) -> object:
        """Wait for its end; return the exit or the error."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.results[0]


def test_vcpu_that_is_made_and_run_while_the_others_are_held_waits_until_they_go_on(
    bench, accelerator, monkeypatch
) -> None:
    one = machine(bench, accelerator, Loop((Out(PORT, 0),), None))
    vm = one.vm
    for index in range(1, 5):
        with vm.big_lock, vm.blocker.inhibit(PATIENCE):
            vcpu = vm.create_vcpu(index)
            arrival = Arrival(vcpu, monkeypatch)
            one.memory.add(accel.MemoryRegion.ram(f"more{index}", PAGE_SIZE), at=HIGH + index * PAGE_SIZE)
        vcpu.kick()
        assert isinstance(arrival.join(), accel.exits.Exit)
        assert arrival.held == [False]


def test_vcpu_that_is_closed_while_all_are_held_is_waited_for_no_more(bench, accelerator) -> None:
    one = machine(bench, accelerator, Loop((Out(PORT, 0),), None))
    vcpu = one.vm.create_vcpu(1)
    with one.vm.big_lock, one.vm.blocker.inhibit(PATIENCE):
        vcpu.close()
    with pytest.raises(ClosedError):
        vcpu.run()
    assert vcpu.gate not in one.vm.blocker.gates
    with one.transaction("map"):
        one.memory.add(accel.MemoryRegion.ram("more", PAGE_SIZE), at=HIGH)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("cpus", [1, 3])
def test_vcpu_thread_that_dies_inside_its_gate_holds_up_no_change(bench, accelerator, kind, cpus) -> None:
    one = machine(bench, accelerator, Loop((Out(PORT, 0),), None), cpus=cpus)
    backend = one.vm.vcpus[0].backend
    enter, inside, die = backend.run, threading.Event(), threading.Event()

    def run() -> int:
        inside.set()
        assert die.wait(PATIENCE)
        raise kind("it broke")

    backend.run = run
    extra = accel.MemoryRegion.ram("extra", PAGE_SIZE)
    started = one.start()
    assert inside.wait(PATIENCE)

    def change() -> None:
        with one.transaction("map"):
            one.memory.add(extra, at=HIGH)

    changing = threading.Thread(target=change, daemon=True)
    changing.start()
    until_inhibited(one)
    die.set()
    changing.join(PATIENCE)
    assert not changing.is_alive(), "the change waits for a thread that is gone"
    with pytest.raises(kind, match="it broke"):
        started.wait(PATIENCE)
    backend.run = enter
    pace = Pace(one)
    again = one.start()
    pace.wait()
    with one.transaction("map"):
        one.memory.remove(extra)
    pace.wait()
    one.stop()
    again.wait()


def until_inhibited(one: accel.Machine) -> None:
    """Wait until a change holds whoever comes."""
    waited = threading.Event()
    for _ in range(PATIENCE * 1_000):
        if one.vm.blocker.inhibited:
            return
        waited.wait(0.001)
    raise AssertionError("nobody inhibits")


# kicks


class Points:
    """Stops a vCPU's thread at a point of its loop: ``enter``, ``entered``, ``came out``, ``left``, ``exit``."""

    INSIDE = ("entered", "came out")

    def __init__(self, one: accel.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.point = ""
        self.arrived = threading.Event()
        self.go = threading.Event()
        vcpu = one.vm.vcpus[0]
        kind = type(vcpu.gate)
        enter, leave, run = kind.enter, kind.leave, vcpu.backend.run

        def watched_enter(gate) -> None:
            self.at("enter")
            enter(gate)
            self.at("entered")

        def watched_run() -> int:
            result = run()
            self.at("came out")
            return result

        def watched_leave(gate) -> None:
            leave(gate)
            self.at("left")

        monkeypatch.setattr(kind, "enter", watched_enter)
        monkeypatch.setattr(kind, "leave", watched_leave)
        vcpu.backend.run = watched_run

    def at(self, point: str) -> None:
        """Stop here if this is the point."""
        if point == self.point:
            self.point = ""
            self.arrived.set()
            assert self.go.wait(PATIENCE)

    def arm(self, point: str) -> None:
        """Stop the thread when it comes there next."""
        self.arrived.clear()
        self.go.clear()
        self.point = point


class Inside(MemoryListener):
    """Notes whether the vCPU is in the guest while a change is applied."""

    def __init__(self, gate) -> None:
        self.seen: list[bool] = []
        self._gate = gate

    def prepare(self) -> Update:
        listener = self

        class Look(Update):
            def apply(self) -> None:
                listener.seen.append(listener._gate.busy)

            def undo(self) -> None:
                """Nothing was done."""

        return Look()


@pytest.mark.parametrize("point", ["enter", "entered", "inside", "came out", "left", "exit"])
def test_change_that_meets_the_vcpu_at_any_point_of_its_loop_is_made_without_it_and_lets_it_go_on(
    bench, accelerator, monkeypatch, point
) -> None:
    loop: tuple[Op, ...] = (Loop((Load(LOW),), 20), Out(PORT, 0))
    one = machine(bench, accelerator, Loop(loop, None))
    one.memory.add(accel.MemoryRegion.ram("ram", PAGE_SIZE), at=LOW)
    points = Points(one, monkeypatch)
    pace = Pace(one)
    tell = pace._tell
    pace._tell = lambda: (points.at("exit"), tell())
    watch = Inside(one.vm.vcpus[0].gate)
    one.memory.add_listener(watch)
    watch.seen.clear()
    extra = accel.MemoryRegion.ram("extra", PAGE_SIZE)

    def change() -> None:
        with one.transaction("map"):
            if extra.parent is None:
                one.memory.add(extra, at=HIGH)
            else:
                one.memory.remove(extra)

    run = one.start()
    for turn in range(20):
        if point == "inside":
            pace.wait()
            change()
        else:
            points.arm(point)
            assert points.arrived.wait(PATIENCE)
            changing = threading.Thread(target=change, daemon=True)
            changing.start()
            if point in Points.INSIDE:
                until_inhibited(one)
                assert len(watch.seen) == turn, "it was made although the vCPU is inside"
            elif point != "exit":
                changing.join(PATIENCE)
                assert len(watch.seen) == turn + 1, "it waits for who is outside"
            points.go.set()
            changing.join(PATIENCE)
            assert not changing.is_alive()
        pace.wait()
    one.stop()
    result = run.wait()
    assert watch.seen == [False] * 20
    assert result.exits.get("mmio", 0) == 0

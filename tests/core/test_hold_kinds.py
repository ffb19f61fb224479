"""hold=kick-all and hold=region-list: the seam by which an accelerator itself keeps guests from seeing half a change.

The accelerator of these tests has both. Its guests do one thing: look whether `AT` is mapped. A slot call returns
when each guest that runs has looked at what it left, so a gap that can be seen is seen.
"""

from __future__ import annotations

import errno
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from accel.address import PAGE_SIZE, AddressRange
from accel.backend import MEMORY_OPTIONS, Accelerator, Availability, Capability, VcpuBackend, VmBackend, VmConfig
from accel.errors import BackendError, CapabilityError, InhibitTimeoutError, MapLostError
from accel.exits import ExitKind
from accel.locks import SLOTS_LOCK, Lock
from accel.memory.dirty import DirtyClient
from accel.memory.listener import PRIORITY_ACCEL, MemoryListener, Update
from accel.memory.region import MemoryRegion
from accel.memory.slot_merge import SlotPlanner
from accel.memory.slot_plan import Slot, SlotPlan
from accel.memory.slot_update import SlotUpdate
from accel.vm import OpenAccelerator, Vm

AT = 0x1_0000
PATIENCE = 60
BOTH = frozenset({Capability.KICK_ALL_VCPUS, Capability.REGION_LIST})


class LookingVcpu(VcpuBackend):
    """A guest that looks and looks until it is kicked."""

    def __init__(self, vm: LookingVm) -> None:
        self.record = memoryview(array("Q", (0, 0, 0)))
        self.io_data = memoryview(bytearray(64))
        self.vm = vm
        self.looks = self.misses = 0
        self.runs = False
        self.kicked = False

    def run(self) -> int:
        vm = self.vm
        while True:
            with vm.changed:
                if vm.stopped and vm.waits_inside and not self.kicked:
                    vm.changed.wait(PATIENCE)
                    continue
                self.runs = not self.kicked and not vm.stopped
                if self.runs:
                    self.looks += 1
                    self.misses += not vm.maps(AT)
                self.kicked &= self.runs
                vm.changed.notify_all()
                if not self.runs:
                    return ExitKind.INTERRUPTED

    def kick(self, thread_id: int) -> None:
        with self.vm.changed:
            self.kicked = True
            self.vm.changed.notify_all()

    def close(self) -> None:
        """Nothing to release."""


class LookingVm(VmBackend):
    """Slots, and the calls that change them.

    Attributes:
        calls: The names of the calls that were made.
        fail: Names of calls that fail, each once, in any order.
    """

    max_vcpus = 2

    def __init__(self, config: VmConfig, capabilities: frozenset[Capability], waits_inside: bool) -> None:
        self.capabilities = capabilities
        self.config = config
        self.waits_inside = waits_inside
        self.changed = threading.Condition()
        self.stopped = False
        self.slots: dict[int, Slot] = {}
        self.calls: list[str] = []
        self.fail: list[str] = []
        self.vcpus: list[LookingVcpu] = []
        self.closed = 0

    def maps(self, address: int) -> bool:
        return any(slot.range.start <= address < slot.range.end for slot in self.slots.values())

    def create_vcpu(self, index: int) -> VcpuBackend:
        self.vcpus.append(LookingVcpu(self))
        return self.vcpus[-1]

    def memory_listener(self) -> MemoryListener:
        return Listener(self)

    def kick_all(self, timeout: float) -> None:
        self._note("kick_all", InhibitTimeoutError(timeout, [("vCPU 0", "run", timeout)]))
        with self.changed:
            assert not self.stopped
            self.stopped = True
            self.changed.notify_all()

    def resume_all(self) -> None:
        self._note("resume_all")
        with self.changed:
            assert self.stopped
            self.stopped = False
            self.changed.notify_all()

    def create(self, slot: Slot) -> None:
        self._note("create")
        self._replace({**self.slots, slot.gpa: slot})

    def delete(self, slot: Slot) -> None:
        self._note("delete")
        self._replace({gpa: one for gpa, one in self.slots.items() if gpa != slot.gpa})

    def toggle(self, old: Slot, new: Slot) -> None:
        self._note("toggle")
        self._replace({**self.slots, new.gpa: new})

    def collect(self, slot: Slot) -> None:
        self._note("collect")

    def apply_list(self, plan: SlotPlan) -> None:
        self._note("list")
        gone = {slot.gpa for slot in plan.deletes}
        left = {gpa: slot for gpa, slot in self.slots.items() if gpa not in gone}
        new = [*plan.creates, *(new for _, new in plan.toggles)]
        self._replace({**left, **{slot.gpa: slot for slot in new}})

    def close(self) -> None:
        self.closed += 1

    def _note(self, call: str, error: Exception | None = None) -> None:
        self.calls.append(call)
        if call in self.fail:
            self.fail.remove(call)
            raise error or BackendError(call, errno.ENOMEM)

    def _replace(self, slots: dict[int, Slot]) -> None:
        with self.changed:
            self.slots = slots
            before = {vcpu: vcpu.looks for vcpu in self.vcpus}
            seen = self.changed.wait_for(
                lambda: self.stopped or all(not one.runs or one.looks > looks for one, looks in before.items()),
                PATIENCE,
            )
            assert seen


class Listener(MemoryListener):
    """What an accelerator with a list call has to bring: `at_once`."""

    name = "looking"
    priority = PRIORITY_ACCEL

    def __init__(self, vm: LookingVm) -> None:
        self._vm = vm
        self._lock = Lock(SLOTS_LOCK)
        self._planner = SlotPlanner(
            self._within,
            lambda: len(vm.slots),
            policy=vm.config.options["plan"],
            page_size=PAGE_SIZE,
            slot_count=100,
        )
        self.begin()

    def begin(self) -> None:
        self._sections = [], [], []

    def region_del(self, section) -> None:
        self._sections[0].append(section)

    def region_add(self, section) -> None:
        self._sections[1].append(section)

    def log_start(self, section, old, new) -> None:
        self._sections[2].append(section)

    log_stop = log_start

    def prepare(self) -> Update | None:
        vm, plan = self._vm, self._planner.plan(*self._sections)
        as_list = vm.config.options["hold"] == "region-list"
        return SlotUpdate(
            plan,
            vm.create,
            vm.delete,
            vm.slots.values,
            self._lock,
            toggle=vm.toggle,
            collect=vm.collect,
            at_once=vm.apply_list if as_list else None,
        )

    def commit(self) -> None:
        self._planner.settle()
        self.begin()

    def _within(self, window: AddressRange) -> list[Slot]:
        return [slot for gpa, slot in sorted(self._vm.slots.items()) if window.start <= gpa < window.end]


class Looking(Accelerator):
    name = "looking"
    executes = frozenset({"program"})
    options = MEMORY_OPTIONS

    def __init__(self, capabilities: frozenset[Capability], waits_inside: bool) -> None:
        self.capabilities, self.waits_inside = capabilities, waits_inside
        self.made: list[LookingVm] = []

    def probe(self) -> Availability:
        return Availability(True, capabilities=self.capabilities)

    def create_vm(self, config: VmConfig) -> VmBackend:
        self.made.append(LookingVm(config, self.capabilities, self.waits_inside))
        return self.made[-1]


class Stage:
    """A VM with RAM at `AT` that changes its size, and what its guests came to."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.backend: LookingVm = vm.backend
        self.ram = MemoryRegion.ram("ram", PAGE_SIZE, 2 * PAGE_SIZE)
        vm.memory.add(self.ram, at=AT)
        self.backend.calls.clear()

    @property
    def misses(self) -> int:
        return sum(vcpu.misses for vcpu in self.backend.vcpus)

    def change(self, count: int = 1) -> None:
        for _ in range(count):
            self.ram.resize(3 * PAGE_SIZE - self.ram.size)

    @contextmanager
    def running(self, vcpus: int = 2) -> Iterator[None]:
        """Have guests look during the block; each has looked when it begins and looks again before it ends."""
        stop = threading.Event()
        made = [self.vm.create_vcpu(index) for index in range(vcpus)]

        def loop(vcpu) -> None:
            while not stop.is_set():
                vcpu.run()

        threads = [threading.Thread(target=loop, args=(vcpu,), daemon=True) for vcpu in made]
        for thread in threads:
            thread.start()
        try:
            self._look()
            yield
            self._look()
        finally:
            stop.set()
            for vcpu, thread in zip(made, threads, strict=True):
                vcpu.kick()
                thread.join(PATIENCE)
                assert not thread.is_alive()

    def _look(self) -> None:
        before = [vcpu.looks for vcpu in self.backend.vcpus]
        with self.backend.changed:
            assert self.backend.changed.wait_for(
                lambda: all(one.looks > looks for one, looks in zip(self.backend.vcpus, before, strict=True)), PATIENCE
            )


@pytest.fixture
def stage() -> Iterator[Callable[..., Stage]]:
    opened: list[OpenAccelerator] = []

    def make(hold: str, *, waits_inside: bool = True) -> Stage:
        opened.append(OpenAccelerator(Looking(BOTH, waits_inside), {"hold": hold, "plan": "replace"}))
        return Stage(opened[-1].create_vm())

    yield make
    for one in opened:
        one.close()


def test_unsafe_shows_the_gap_to_these_guests(stage) -> None:
    scene = stage("unsafe")
    with scene.running():
        scene.change()
    assert scene.misses > 0


# kick-all


@pytest.mark.parametrize("waits_inside", [True, False], ids=["run waits", "run returns"])
def test_kick_all_keeps_guests_from_every_gap_without_the_blocker(stage, waits_inside) -> None:
    scene = stage("kick-all", waits_inside=waits_inside)
    with scene.running():
        scene.change(50)
    assert scene.misses == 0
    assert scene.backend.calls == ["kick_all", "delete", "create", "resume_all"] * 50
    assert scene.vm.blocker.stats.inhibits == 0


def test_kick_all_is_called_where_the_change_needs_it_or_the_whole_map_is_asked_for(stage) -> None:
    scene = stage("kick-all")
    other = MemoryRegion.ram("other", PAGE_SIZE)
    scene.vm.memory.add(other, at=2 * AT)
    assert scene.backend.calls == ["create"]
    with scene.vm.transaction("map"):
        scene.vm.memory.remove(other)
    assert scene.backend.calls[1:] == ["kick_all", "delete", "resume_all"]


def test_kick_all_lets_guests_go_on_after_a_change_that_failed_was_undone(stage) -> None:
    scene = stage("kick-all")
    with scene.running():
        scene.backend.fail = ["create"]
        with pytest.raises(BackendError, match="create"):
            scene.change()
        assert scene.backend.calls == ["kick_all", "delete", "create", "create", "resume_all"]
    assert (scene.misses, scene.ram.size) == (0, PAGE_SIZE)


def test_kick_all_that_gives_up_changes_nothing(stage) -> None:
    scene = stage("kick-all")
    with scene.running():
        scene.backend.fail = ["kick_all"]
        with pytest.raises(InhibitTimeoutError):
            scene.change()
        assert scene.backend.calls == ["kick_all"]
        scene.change()
    assert (scene.misses, scene.ram.size) == (0, 2 * PAGE_SIZE)


@pytest.mark.parametrize("waits_inside", [True, False], ids=["run waits", "run returns"])
def test_kick_all_guests_never_execute_on_under_a_map_that_is_lost(stage, waits_inside) -> None:
    scene = stage("kick-all", waits_inside=waits_inside)
    vcpu = scene.vm.create_vcpu(0)
    caught: list[BaseException] = []

    def loop() -> None:
        try:
            while True:
                vcpu.run()
        except MapLostError as error:
            caught.append(error)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    scene._look()
    scene.backend.fail = ["create", "create"]
    with pytest.raises(MapLostError):
        scene.change()
    thread.join(PATIENCE)
    assert caught
    assert scene.misses == 0


# region-list


def test_region_list_changes_all_slots_in_one_call_that_holds_nobody(stage) -> None:
    scene = stage("region-list")
    with scene.running():
        scene.change(50)
    assert scene.misses == 0
    assert scene.backend.calls == ["list"] * 50
    assert scene.vm.blocker.stats.inhibits == 0


def test_region_list_that_fails_has_changed_nothing_and_needs_no_undo(stage) -> None:
    scene = stage("region-list")
    before = scene.backend.slots
    scene.backend.fail = ["list"]
    with pytest.raises(BackendError, match="list"):
        scene.change()
    assert scene.backend.calls == ["list"]
    assert scene.backend.slots is before


class Failing(MemoryListener, Update):
    """Comes after the accelerator and fails."""

    priority = PRIORITY_ACCEL + 1
    armed = False

    def prepare(self) -> Update | None:
        return self if self.armed else None

    def apply(self) -> None:
        raise BackendError("later", errno.EIO)

    def undo(self) -> None:
        """Nothing was done."""


def test_region_list_is_taken_back_by_one_call_where_another_listener_fails(stage) -> None:
    scene = stage("region-list")
    scene.ram.start_log(DirtyClient.VGA)
    before = dict(scene.backend.slots)
    failing = Failing()
    scene.vm.memory.add_listener(failing)
    failing.armed = True
    scene.backend.calls.clear()
    with scene.running(), pytest.raises(BackendError, match="later"):
        scene.change()
    assert scene.backend.calls == ["collect", "list", "list"]
    assert scene.backend.slots == before
    assert scene.misses == 0


def test_region_list_holds_the_guests_by_the_blocker_where_a_log_goes_or_the_whole_map_is_asked_for(stage) -> None:
    scene = stage("region-list")
    with scene.running():
        scene.ram.start_log(DirtyClient.VGA)
        assert scene.vm.blocker.stats.inhibits == 0
        scene.change()
        assert scene.vm.blocker.stats.inhibits == 1
        scene.ram.stop_log(DirtyClient.VGA)
        assert scene.vm.blocker.stats.inhibits == 2
        with scene.vm.transaction("map"):
            scene.change()
        assert scene.vm.blocker.stats.inhibits == 3
    assert scene.backend.calls == ["list", "collect", "list", "collect", "list", "list"]
    assert scene.misses == 0


# without the capability


@pytest.mark.parametrize(
    ("hold", "needed"), [("kick-all", Capability.KICK_ALL_VCPUS), ("region-list", Capability.REGION_LIST)]
)
def test_hold_that_the_accelerator_cannot_do_is_refused_when_the_vm_is_created(hold, needed) -> None:
    looking = Looking(BOTH - {needed}, True)
    refused = pytest.raises(CapabilityError, match=f"hold={hold} needs '{needed}'.*use hold=inhibit")
    with OpenAccelerator(looking, {"hold": hold}) as opened, refused:
        opened.create_vm()
    assert looking.made[-1].closed == 1


def test_backend_that_says_nothing_of_kicking_all_refuses_it() -> None:
    class Plain(LookingVm):
        kick_all, resume_all = VmBackend.kick_all, VmBackend.resume_all

    plain = Plain(VmConfig(), frozenset(), True)
    for call in (lambda: plain.kick_all(1), plain.resume_all):
        with pytest.raises(CapabilityError, match="hold=inhibit"):
            call()

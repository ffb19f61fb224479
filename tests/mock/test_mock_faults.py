"""Faults on demand: how they are written, and that each shows through the whole stack, after which all goes on."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import accel
from accel.devices import DebugExit
from accel.errors import (
    BackendError,
    InhibitTimeoutError,
    MapLostError,
    MemorySlotError,
    OptionError,
    WorkloadError,
)
from accel.exits import Interrupted, IoOut
from accel.memory.dirty import DirtyClient
from accel.memory.region import MemoryRegion
from accel.program import GuestProgram, Load, Loop, Op, Out, Store
from accel.result import Outcome
from accel.testing.simulate import Simulation, simulate
from accel.vcpu import Vcpu
from accel.workload.parse import parse_file
from accel_mock.faults import CallFails, ComesOutLate, EntryFails, Fault, Faults, parse_fault
from accel_mock.python_guest import PythonGuest

FAR = 0x1000_0000
SPIN = GuestProgram([Loop([Load(0)], None)])


@contextmanager
def machine(faults: object, **options: object) -> Iterator[accel.Machine]:
    """Make a machine of the mock with faults; it can be closed in any case."""
    handle = faults if isinstance(faults, Faults) else Faults(*([faults] if isinstance(faults, str) else faults))
    with accel.Machine.create("mock", memory="1M", options={"mock": {"faults": handle, **options}}) as made:
        try:
            yield made
        finally:
            handle.clear()


def add(made: accel.Machine, at: int = FAR) -> MemoryRegion:
    """Add 64 KiB of RAM, which is one slot call."""
    region = MemoryRegion.ram("more", "64K")
    made.memory.add(region, at=at)
    return region


def check_usable(made: accel.Machine) -> None:
    """Run a guest that halts, and that finds RAM everywhere."""
    region = add(made, 0x7000_0000)
    made.load(GuestProgram([Store(0x7000_0000, 5), Load(0x7000_0000, expect=5), Load(0), Out(0xF4, 3)]))
    made.attach(DebugExit(0xF4))
    result = made.run(timeout=60)
    assert (result.outcome, result.exit_status, result.spurious_faults) == (Outcome.EXITED, 3 << 1 | 1, 0)
    made.memory.remove(region)


# how faults are written

FAULTS = st.one_of(
    st.builds(
        CallFails,
        st.sampled_from(
            ["slot", "create", "delete", "move", "toggle", "list", "take-dirty", "reset-rings", "coalesce"]
        ),
        st.sampled_from([errno.ENOMEM, errno.EINVAL, errno.EEXIST]),
        st.integers(1, 1000),
        st.booleans(),
    ),
    st.builds(EntryFails, st.none() | st.integers(0, 63), st.just(errno.EIO), st.integers(1, 1000), st.booleans()),
    st.builds(
        ComesOutLate,
        st.none() | st.integers(0, 63),
        at=st.integers(1, 1000),
        onward=st.booleans(),
        operations=st.none() | st.integers(0, 10**6),
    ),
    st.builds(ComesOutLate, st.just(3), st.integers(0, 10**6).map(lambda us: us / 1e6)),
)


@given(FAULTS)
def test_fault_text_of_any_means_the_same_fault(fault: Fault) -> None:
    assert parse_fault(str(fault)) == parse_fault(fault) == fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("create=ENOMEM", CallFails("create", errno.ENOMEM, 1)),
        ("slot@3+=ENOSPC", CallFails("slot", errno.ENOSPC, 3, onward=True)),
        ("vcpu1@2=EIO", EntryFails(1, errno.EIO, 2)),
        ("vcpu=stuck", ComesOutLate(None)),
        ("vcpu0@2+=late:5ms", ComesOutLate(0, seconds=0.005, at=2, onward=True)),
        ("vcpu0=late:7ops", ComesOutLate(0, operations=7)),
        ("vcpu0=late:2s", ComesOutLate(0, seconds=2.0)),
    ],
)
def test_fault_text_means_a_fault(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("create@0=ENOMEM", "counted from 1; write @1 for the first"),
        ("crate@1=ENOMEM", "no call 'crate' of the mock; did you mean 'create'?"),
        ("create3=ENOMEM", "no call 'create3' of the mock"),
        ("create@1=ENOMEN", "'ENOMEN' is no errno; did you mean 'ENOMEM'?"),
        ("create@1=stuck", "'stuck' is no errno"),
        ("vcpu64=stuck", "numbers from 0 to 63"),
        ("vcpu0=slow", "write stuck, late:5ms, late:200ops or an errno such as EIO"),
        ("vcpu0=EWHAT", "'EWHAT' is no errno"),
        ("create", "is no fault; write it like create@2=ENOMEM"),
        ("create@" + "9" * 5000 + "=ENOMEM", "is no fault"),
        ({"call": "create"}, "is no fault"),
        (7, "is no fault"),
    ],
)
def test_fault_option_that_means_none_is_refused_with_what_to_write(text: object, problem: str) -> None:
    with pytest.raises(OptionError) as caught:
        accel.open_accelerator("mock", options={"mock": {"faults": [text]}})
    assert caught.value.option == "faults"
    assert problem in str(caught.value)


@pytest.mark.parametrize("given_as", ["text", "texts", "values", "faults"])
def test_fault_option_can_be_given_in_each_form(given_as: str) -> None:
    forms = {
        "text": "create@2=EIO, delete=EIO",
        "texts": ["create@2=EIO", "delete=EIO"],
        "values": [CallFails("create", errno.EIO, 2), CallFails("delete", errno.EIO)],
        "faults": Faults("create@2=EIO", "delete=EIO"),
    }
    with accel.Machine.create("mock", memory="1M", options={"mock": {"faults": forms[given_as]}}) as made:
        for _ in range(2):
            with pytest.raises(MemorySlotError) as caught:
                made.memory.remove(made.ram) if caught_already(made) else add(made)
            assert caught.value.errno == errno.EIO


def caught_already(made: accel.Machine) -> bool:
    """Return whether the second slot that was created has failed."""
    return made.vm.backend._faults.calls["create"] >= 2


def test_fault_option_none_takes_back_what_a_file_says() -> None:
    with accel.Machine.create("mock", memory="1M", options={"mock": {"faults": "none"}}) as made:
        add(made)


# calls that fail


@pytest.mark.parametrize("plan", ["least", "replace"])
@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EINVAL])
def test_fault_in_the_nth_create_fails_that_change_and_no_other(plan: str, code: int) -> None:
    faults = Faults(CallFails("create", code, at=3))
    with machine(faults, plan=plan) as made:
        add(made)
        view = made.memory.view
        with pytest.raises(MemorySlotError) as caught:
            add(made, FAR + 0x10_0000)
        assert (caught.value.errno, caught.value.gpa, caught.value.size) == (code, FAR + 0x10_0000, 0x1_0000)
        assert (caught.value.listener, caught.value.step) == ("mock-memory", "apply")
        assert made.memory.view is view
        assert faults.met == [CallFails("create", code, at=3)]
        check_usable(made)


def test_fault_in_any_slot_call_of_a_change_leaves_the_map_before() -> None:
    """A test of one's own rollback: whichever call fails, everything is as before."""

    def change(made: accel.Machine, more: MemoryRegion) -> None:
        with made.transaction():
            made.memory.remove(more)
            made.ram.set_readonly(True)
            add(made, FAR + 0x20_0000)

    clean = Faults()
    with machine(clean) as made:
        more = add(made)
        before = clean.calls["slot"]
        change(made, more)
        calls = clean.calls["slot"] - before
    assert calls == 4
    for number in range(before + 1, before + calls + 1):
        with machine(f"slot@{number}=EIO") as made:
            more = add(made)
            with pytest.raises(MemorySlotError, match="EIO"):
                change(made, more)
            assert [section.region.name for section in made.memory.view] == ["ram", "more"]
            check_usable(made)


def test_fault_that_goes_on_takes_the_undoing_too_and_the_map_is_lost() -> None:
    with machine("create@2+=ENOMEM", plan="replace") as made:
        with pytest.raises(MapLostError):
            made.ram.set_readonly(True)
        with pytest.raises(MapLostError):
            made.load(SPIN)


def test_faults_that_are_cleared_show_no_more() -> None:
    faults = Faults("create@2+=EIO")
    with machine(faults) as made:
        for _ in range(2):
            with pytest.raises(MemorySlotError):
                add(made)
        faults.clear()
        add(made)
        check_usable(made)


def test_fault_in_a_dirty_log_call_is_raised_to_who_collects() -> None:
    with machine("take-dirty=EFAULT") as made:
        region = add(made)
        region.start_log(DirtyClient.VGA)
        with pytest.raises(BackendError, match="mock dirty-log call failed: EFAULT"):
            made.vm.dirty_log.collect(region, DirtyClient.VGA)
        made.memory.write(FAR, b"x")
        assert list(made.vm.dirty_log.collect(region, DirtyClient.VGA).ranges())
        check_usable(made)


def test_fault_in_a_toggle_of_the_log_leaves_it_off() -> None:
    with machine("toggle=ENOMEM") as made:
        region = add(made)
        with pytest.raises(MemorySlotError, match="ENOMEM"):
            region.start_log(DirtyClient.VGA)
        check_usable(made)


def test_fault_in_a_coalescing_call_leaves_writes_to_exit() -> None:
    with machine("coalesce=ENOSPC") as made:
        device = MemoryRegion.mmio("device", 16, coalesced=True)
        with pytest.raises(BackendError, match="mock coalescing call failed: ENOSPC"):
            made.memory.add(device, at=FAR)
        assert len(made.memory.view) == 1
        check_usable(made)


def test_fault_in_the_creation_of_a_vcpu_creates_no_machine() -> None:
    options = {"mock": {"faults": "create-vcpu@2=EMFILE"}}
    with pytest.raises(BackendError, match=r"mock vCPU creation failed: EMFILE .*; vCPU 1"):
        accel.Machine.create("mock", cpus=2, options=options)
    with accel.Machine.create("mock", cpus=1, options=options) as made:
        check_usable(made)


def test_fault_in_a_list_of_slots_leaves_the_map_before() -> None:
    with machine("list@2=ENOMEM", hold="region-list", plan="replace") as made:
        with pytest.raises(BackendError, match="mock slot list failed: ENOMEM"):
            made.ram.set_readonly(True)
        assert not made.ram.readonly
        check_usable(made)


def test_fault_in_kicking_all_leaves_the_map_before() -> None:
    with machine("kick-all=EBUSY", hold="kick-all") as made:
        with pytest.raises(BackendError, match="mock kick-all call failed: EBUSY"), made.transaction(atomic="map"):
            add(made)
        assert len(made.memory.view) == 1
        with made.transaction(atomic="map"):
            add(made)
        check_usable(made)


def test_stuck_vcpu_is_named_by_kick_all_too() -> None:
    faults = Faults("vcpu0=stuck")
    with machine(faults, hold="kick-all", inhibit_timeout_ms=50) as made:
        made.load(SPIN)
        run = made.start()
        wait_until_inside(made)
        with pytest.raises(InhibitTimeoutError, match="vCPU 0 in run"), made.transaction(atomic="map"):
            add(made)
        faults.clear()
        wait_as_long_as_it_takes(made)
        with made.transaction(atomic="map"):
            add(made)
        made.stop()
        assert run.wait().outcome is Outcome.STOPPED


# vCPUs


def test_fault_in_an_entry_ends_the_run_with_the_backends_error() -> None:
    with machine("vcpu0@3=EFAULT") as made:
        made.load(GuestProgram([Out(0x80, 1), Out(0x80, 2), Out(0x80, 3)]))
        with pytest.raises(BackendError, match=r"mock vCPU entry failed: EFAULT .*; vCPU 0, entry 3") as caught:
            made.run(timeout=60)
        assert caught.value.errno == errno.EFAULT
        check_usable(made)


def test_fault_in_an_entry_of_one_vcpu_ends_the_others_too() -> None:
    options = {"mock": {"faults": "vcpu1=EIO"}}
    with accel.Machine.create("mock", memory="1M", cpus=2, options=options) as made:
        made.load(SPIN)
        with pytest.raises(BackendError, match="vCPU 1, entry 1"):
            made.run(timeout=60)


def test_stuck_vcpu_makes_a_change_give_up_and_is_named_and_all_go_on() -> None:
    faults = Faults("vcpu0@1=stuck")
    with machine(faults, inhibit_timeout_ms=50) as made:
        made.load(SPIN)
        run = made.start()
        wait_until_inside(made)
        with pytest.raises(InhibitTimeoutError) as caught, made.transaction(atomic="map"):
            add(made)
        assert [(name, call) for name, call, _ in caught.value.inside] == [("vCPU 0", "run")]
        assert len(made.memory.view) == 1
        faults.clear()
        wait_as_long_as_it_takes(made)
        with made.transaction(atomic="map"):
            add(made)
        made.stop()
        assert run.wait().outcome is Outcome.STOPPED
        check_usable(made)


def test_stuck_vcpu_stays_at_an_exit_of_its_own_too() -> None:
    def run(simulation: Simulation) -> None:
        exits: list[int] = []
        leaves = False
        faults = simulation.load("accel_mock.faults").Faults("vcpu0=stuck")

        def guest() -> Iterator[Op]:
            while not leaves:
                yield Load(0)
            yield Out(0x80, 1)

        with simulation.accel.Machine.create("mock", memory="1M", options={"mock": {"faults": faults}}) as made:
            made.port(0x80)(lambda access: exits.append(1))
            made.load(PythonGuest(guest))
            made.start()
            simulation.time.sleep(0.01)
            made.vm.vcpus[0].kick()
            leaves = True
            simulation.time.sleep(1)
            assert not exits
            faults.clear()
            simulation.time.sleep(1)
            assert exits == [1]

    simulate(run)


def test_late_vcpu_comes_out_with_an_exit_of_its_own_and_the_kick_is_for_the_next_entry(vcpu: Vcpu) -> None:
    vcpu.backend._faults = Faults("vcpu0=late:50ops").of_vcpu(0)
    vcpu.load_program(GuestProgram([Load(0), Load(0), Out(0x80, 1), Out(0x80, 2)]))
    vcpu.kick()
    assert [vcpu.run() for _ in range(3)] == [IoOut(0x80, 1, 1, b"\1"), Interrupted(), IoOut(0x80, 1, 1, b"\2")]


@pytest.mark.parametrize("late", ["late:30ms", "late:500ops"])
def test_late_vcpu_is_waited_for(late: str) -> None:
    with machine(f"vcpu0@1+={late}") as made:
        made.load(SPIN)
        run = made.start()
        wait_until_inside(made)
        with made.transaction(atomic="map"):
            add(made)
        made.stop()
        assert run.wait().memory["wait_seconds"] >= (0.03 if late.endswith("ms") else 500 * 20e-6)
        check_usable(made)


def test_late_vcpu_goes_on_in_the_guest_meanwhile() -> None:
    """What a guest does after the kick is seen: `late` is time in the guest, not time at its door."""
    with machine("vcpu0=late:300ops") as made:
        made.load(GuestProgram([Loop([Load(0x1000), Store(0x2000, 1)], None)]))
        run = made.start()
        wait_until_inside(made)
        with made.transaction(atomic="map"):
            made.memory.write(0x2000, b"\0")
        made.stop()
        run.wait()
        assert made.memory.read(0x2000, 1) == b"\1"


def wait_as_long_as_it_takes(made: accel.Machine) -> None:
    """Wait longer for vCPUs from now on than for the one that never came out."""
    made.vm.inhibit_timeout = 60


def wait_until_inside(made: accel.Machine) -> None:
    """Return once vCPU 0 is in the guest."""
    gate = made.vm.vcpus[0].gate
    while not gate.busy:
        pass


# from a workload file

WORKLOAD = """
format = 1
[machine]
accelerators = ["mock"]
memory = "1M"
[accelerator.mock]
faults = {faults}
inhibit_timeout_ms = 60000
[[image.program]]
op = "loop"
body = [{{op = "load", address = 0}}]
count = {count}
[[region]]
name = "more"
size = "64K"
max_size = "128K"
at = 0x10000000
[[change]]
region = "more"
do = "resize"
size = "128K"
after = "10ms"
atomic = "map"
"""


@pytest.fixture
def run_file(tmp_path: Path):
    """Run a workload with faults; return its exit code and its report, or the message."""

    def run(faults: str, count: int = 300_000_000, *more: str) -> tuple[int, Any]:
        path = tmp_path / "faulty.toml"
        text = WORKLOAD.format(faults=faults, count=count)
        path.write_text(text)
        command = [sys.executable, "-m", "accel", "run", "--json", "--timeout", "60", *more, str(path)]
        done = subprocess.run(command, capture_output=True, timeout=100, check=False)
        return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr.decode()

    return run


def test_workload_with_a_call_that_fails_exits_with_the_hosts_error(run_file) -> None:
    code, data = run_file('["create@3=ENOMEM"]')
    assert code == 5
    assert (data["error"]["type"], data["error"]["exit_code"]) == ("MemorySlotError", 5)
    assert "ENOMEM" in data["error"]["message"]


def test_workload_with_an_entry_that_fails_exits_with_the_hosts_error(run_file) -> None:
    code, data = run_file('"vcpu0@1=EIO"')
    assert (code, data["error"]["type"]) == (5, "BackendError")


def test_workload_with_a_late_vcpu_ends_well(run_file) -> None:
    code, data = run_file('["vcpu0@1=late:50ms"]', 200_000)
    assert (code, data["outcome"]) == (0, "halted")


def test_workload_option_on_the_command_line_takes_back_the_files(run_file) -> None:
    code, data = run_file('["create@1=ENOMEM"]', 1000, "-o", "mock.faults=none")
    assert (code, data["outcome"]) == (0, "halted")


@pytest.mark.parametrize("faults", ['["create@0=EIO"]', "3", '[["create=EIO"]]', '[{call = "create"}]'])
def test_workload_with_what_is_no_fault_names_file_field_and_what_to_write(run_file, tmp_path, faults: str) -> None:
    code, message = run_file(faults)
    assert code == 2
    assert "faulty.toml: accelerator.mock.faults = " in message
    with pytest.raises(WorkloadError):
        parse_file(tmp_path / "faulty.toml")

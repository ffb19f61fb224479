"""Runs that repeat: one seed, one interleaving, a virtual clock; the machine, its threads and the mock as they are."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import accel
from accel import turns
from accel.errors import InhibitTimeoutError, MemorySlotError, NoAcceleratorError
from accel.program import ERRORS, Add, GuestProgram, In, Load, Loop, Out, Store
from accel.testing.explore.task import Violation
from accel.testing.simulate import Simulation, simulate
from accel.testing.simulator import OPERATION_SECONDS
from accel_mock.plugin import MockAccelerator
from accel_mock.steps import in_turns

FAR = 0x1000_0000
SPIN = GuestProgram([Loop([Load(0)], None)])
SEEDS = range(12)


def record_of(simulation: Simulation) -> dict[str, Any]:
    """Run two vCPUs with ports, console, MMIO and memory that changes; return all that can be seen of it."""
    lib = simulation.accel
    seen: list[tuple[str, float]] = []
    console = bytearray()
    options = {"hold": "unsafe", "plan": "replace", "slot_latency_us": 50}
    with lib.Machine.create("mock", memory="1M", cpus=2, options={"mock": options}) as machine:

        @machine.port(0x10)
        def port(access: Any) -> None:
            seen.append((f"{access.is_write} {bytes(access.data).hex()}", simulation.time.monotonic()))

        machine.attach(simulation.load("accel.devices").DebugConsole(0xE9, output=_Writer(console)))
        more = lib.MemoryRegion.ram("more", "64K", max_size="128K")
        machine.memory.add(more, at=FAR)
        body = [Load(FAR, expect=0), Store(FAR, 0), Add(0x2000), Out(0xE9, 0x41), Out(0x10, 7), In(0x10), Load(FAR - 8)]
        machine.load(GuestProgram([Loop(body, 60), Out(0x10, ERRORS)]))
        run = machine.start()
        for size in ("128K", "64K") * 4:
            more.resize(size)
            simulation.time.sleep(5e-5)
        result = run.wait()
        return {
            "seen": seen,
            "console": bytes(console),
            "count": machine.memory.read(0x2000, 4),
            "vcpus": result.vcpus,
            "figures": (result.wall_time, result.memory, result.coalesced_writes, result.unassigned),
        }


class _Writer:
    def __init__(self, data: bytearray) -> None:
        self._data = data

    def write(self, data: bytes) -> None:
        self._data += data

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_simulate_same_seed_repeats_everything(seed: int) -> None:
    first, second = simulate(record_of, seed), simulate(record_of, seed)
    assert first == second
    assert len(first.value["seen"]) == 2 * (2 * 60 + 1)
    assert first.value["console"] == b"A" * 120
    assert first.value["count"] == (120).to_bytes(4, "little")


def test_simulate_other_seeds_give_other_interleavings() -> None:
    runs = [simulate(record_of, seed) for seed in SEEDS]
    assert len({run.digest for run in runs}) == len(runs)
    assert len({tuple(what for what, _ in run.value["seen"]) for run in runs}) > len(runs) // 2


def test_simulate_threads_that_only_take_a_lock_are_stopped_at_places_that_the_seed_says() -> None:
    def run(simulation: Simulation) -> str:
        lock, order = simulation.threading.Lock(), []

        def work(name: str) -> None:
            for _ in range(50):
                with lock:
                    order.append(name)

        threads = [simulation.threading.Thread(target=work, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return "".join(order)

    orders = [simulate(run, seed).value for seed in SEEDS]
    assert orders == [simulate(run, seed).value for seed in SEEDS]
    assert len(set(orders)) > len(orders) // 2
    assert sum(order.count("ab") for order in orders) > 2 * len(orders), "they take turns in the middle"


def test_simulate_loads_plugins_in_copies_too() -> None:
    def run(simulation: Simulation) -> bool:
        lib = simulation.load("accel.plugins")
        mock = lib.plugin_manager().accelerators()["mock"]
        return type(mock) is simulation.load("accel_mock.plugin").MockAccelerator is not MockAccelerator

    assert simulate(run).value


def race(hold: str) -> Callable[[Simulation], tuple[int, bytes]]:
    """Return a function that replaces RAM under a guest which reads it all the time: faults, and what the guest saw."""

    def run(simulation: Simulation) -> tuple[int, bytes]:
        lib = simulation.accel
        found = bytearray()
        options = {"mock": {"hold": hold, "plan": "replace"}}
        with lib.Machine.create("mock", memory="1M", options=options) as machine:

            @machine.port(0x10)
            def port(access: Any) -> None:
                found.extend(access.data)

            more = lib.MemoryRegion.ram("more", "64K", max_size="128K")
            machine.memory.add(more, at=FAR)
            machine.memory.write(FAR, b"\x11" * 4)
            machine.load(GuestProgram([Loop([Load(FAR, expect=0x1111_1111)], 500), Out(0x10, ERRORS)]))
            run = machine.start()
            simulation.time.sleep(simulation.random.random() * 500 * OPERATION_SECONDS)
            more.resize("128K")
            return run.wait().spurious_faults, bytes(found)

    return run


def test_simulate_race_that_a_seed_finds_repeats_with_it_and_is_not_there_when_held() -> None:
    found = {seed: simulate(race("unsafe"), seed) for seed in SEEDS}
    failing = [seed for seed, run in found.items() if run.value[0]]
    assert failing, "no seed comes between the two slot calls"
    for seed in failing[:3]:
        assert simulate(race("unsafe"), seed) == found[seed]
    assert {simulate(race("inhibit"), seed).value for seed in SEEDS} == {(0, b"\0")}


# time


def test_simulate_waits_take_no_real_time() -> None:
    """Three hours and more: slot calls of a second each, sleeps, time-outs; and nothing asks the host's clock."""

    def long(simulation: Simulation) -> float:
        lib = simulation.accel
        with lib.Machine.create("mock", memory="1M", options={"mock": {"slot_latency_us": 1_000_000}}) as machine:
            for number in range(100):
                region = lib.MemoryRegion.ram(f"more {number}", "64K")
                machine.memory.add(region, at=FAR)
                machine.memory.remove(region)
            simulation.time.sleep(10_000)
            assert not simulation.threading.Event().wait(1000)
        return float(simulation.time.monotonic())

    done = simulate(long, most_seconds=None)
    assert 11_200 <= done.value <= done.seconds < 11_210


@pytest.mark.parametrize("cpus", [1, 2])
def test_simulate_operations_take_their_time_on_each_vcpu_beside_the_others(cpus: int) -> None:
    def run(simulation: Simulation) -> float:
        with simulation.accel.Machine.create("mock", memory="1M", cpus=cpus) as machine:
            machine.load(GuestProgram([Loop([Load(0)], 10_000)]))
            return float(machine.run().wall_time)

    # 20,000 operations with those of the loop; locks and waits around them take a little.
    assert 20_000 * OPERATION_SECONDS <= simulate(run).value < 24_000 * OPERATION_SECONDS


def test_simulate_time_out_of_a_stuck_vcpu_is_exact_and_repeats() -> None:
    def stuck(simulation: Simulation) -> tuple[float, str]:
        lib = simulation.accel
        faults = simulation.load("accel_mock.faults").Faults("vcpu0=stuck")
        options = {"mock": {"faults": faults, "inhibit_timeout_ms": 100}}
        with lib.Machine.create("mock", memory="1M", options=options) as machine:
            machine.load(SPIN)
            machine.start()
            simulation.time.sleep(0.01)
            before = simulation.time.monotonic()
            with pytest.raises(InhibitTimeoutError) as caught, machine.transaction(atomic="map"):
                machine.memory.add(lib.MemoryRegion.ram("more", "64K"), at=FAR)
            waited = simulation.time.monotonic() - before
            faults.clear()
        return waited, str(caught.value)

    done = simulate(stuck, 3)
    assert done == simulate(stuck, 3)
    assert 0.1 <= done.value[0] < 0.11
    assert "vCPU 0 in run for 0.100 s" in done.value[1]


# how a simulation ends


def test_simulate_raises_what_the_function_raises_with_the_seed() -> None:
    def fails(simulation: Simulation) -> None:
        lib = simulation.accel
        with lib.Machine.create("mock", memory="1M", options={"mock": {"faults": "create@2=ENOMEM"}}) as machine:
            machine.memory.add(lib.MemoryRegion.ram("more", "64K"), at=FAR)

    with pytest.raises(MemorySlotError, match="ENOMEM") as caught:
        simulate(fails, 41)
    assert caught.value.__notes__ == ["simulated with seed=41, which repeats it"]


def test_simulate_deadlock_is_told_with_who_waits_for_what() -> None:
    def crossed(simulation: Simulation) -> None:
        one, two = simulation.threading.Lock(), simulation.threading.Lock()
        meet = simulation.threading.Event()

        def other() -> None:
            with two:
                meet.set()
                one.acquire()

        with one:
            thread = simulation.threading.Thread(target=other, name="other")
            thread.start()
            meet.wait()
            two.acquire()

    with pytest.raises(Violation, match=r"nobody can go on: main: acquire a lock; other: acquire a lock") as caught:
        simulate(crossed)
    assert caught.value.kind == "deadlock"


def test_simulate_run_without_end_is_given_up() -> None:
    def endless(simulation: Simulation) -> None:
        with simulation.accel.Machine.create("mock", memory="1M") as machine:
            machine.load(SPIN)
            machine.run()

    with pytest.raises(Violation, match=r"not over after 0.05 virtual seconds: .*vcpu-0: execute") as caught:
        simulate(endless, most_seconds=0.05)
    assert caught.value.kind == "livelock"


def test_simulate_exception_on_a_thread_of_the_function_ends_it() -> None:
    def broken(simulation: Simulation) -> None:
        thread = simulation.threading.Thread(target=lambda: 1 / 0, name="helper")
        thread.start()
        thread.join()

    with pytest.raises(Violation, match="helper: ZeroDivisionError"):
        simulate(broken)


def test_simulate_gives_up_threads_that_are_left() -> None:
    ended = []

    def leaves(simulation: Simulation) -> int:
        def wait() -> None:
            try:
                simulation.threading.Event().wait()
            finally:
                ended.append(True)

        simulation.threading.Thread(target=wait, daemon=True).start()
        simulation.time.sleep(1)
        return 5

    assert simulate(leaves).value == 5
    assert ended == [True]


def test_simulate_leaves_the_ordinary_library_alone() -> None:
    simulate(lambda simulation: simulation.accel.Machine.create("mock", memory="1M").close())
    assert turns.take is None
    assert gc.isenabled()
    with accel.Machine.create("mock", memory="1M") as machine:
        machine.load(GuestProgram([Load(0)]))
        assert machine.run(timeout=60).exits["halt"] == 1


def test_simulate_passes_over_accelerators_whose_runs_do_not_repeat() -> None:
    def on_kvm(simulation: Simulation) -> None:
        simulation.accel.Machine.create("kvm")

    with pytest.raises(NoAcceleratorError) as caught:
        simulate(on_kvm)
    assert caught.value.reasons == {"kvm": "cannot repeat a run, which a seed asks for"}


# turns


def test_in_turns_asks_after_as_many_steps_as_it_was_granted() -> None:
    asked: list[int] = []
    made: list[int] = []
    grants = iter([2, 3, 1, 100])

    def take(operations: int) -> int:
        asked.append(operations)
        return next(grants)

    steps = in_turns([lambda: made.append(0) or 1, lambda: made.append(1) or 0], take)
    place = 0
    for _ in range(8):
        place = steps[place]()
    assert made == [0, 1] * 4
    assert asked == [0, 2, 3, 1]


# from the command line

WORKLOAD = """
format = 1
[machine]
accelerators = {accelerators}
memory = "1M"
cpus = 2
[accelerator.mock]
hold = "unsafe"
plan = "replace"
slot_latency_us = 1000
[image]
program = [
  {{op = "loop", count = 20000, body = [{{op = "load", address = 0x10000000}}, {{op = "add", address = 0x2000}}]}},
  {{op = "out", port = 0xe9, value = 66}},
]
[[device]]
type = "debug-console"
[[region]]
name = "more"
size = "64K"
max_size = "128K"
at = 0x10000000
[[change]]
region = "more"
do = "resize"
size = "128K"
every = "20ms"
"""


def accelctl(folder: Path, *arguments: str, hash_seed: int = 0) -> subprocess.CompletedProcess[bytes]:
    """Run accelctl on a workload in a process of its own."""
    (folder / "race.toml").write_text(WORKLOAD.format(accelerators='["kvm", "mock"]'))
    return subprocess.run(
        [sys.executable, "-m", "accel", "run", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_run_with_a_seed_prints_the_same_to_the_byte(tmp_path: Path, form: list[str]) -> None:
    first = accelctl(tmp_path, "--seed", "3", *form, "race.toml", hash_seed=1)
    second = accelctl(tmp_path, "--seed", "3", *form, "race.toml", hash_seed=2)
    assert first.returncode == second.returncode == 0
    assert (first.stdout, first.stderr) == (second.stdout, second.stderr)
    assert b"BB" in first.stdout
    other = accelctl(tmp_path, "--seed", "4", *form, "race.toml", hash_seed=1)
    assert (other.stdout, other.stderr) != (first.stdout, first.stderr)
    if form:
        report = json.loads(first.stdout)
        assert report["accelerator"] == "mock"
    else:
        assert b"seed 3: " in first.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["--accel", "kvm", "race.toml"], 3, b"kvm: cannot repeat a run, which a seed asks for"),
        (["--input", "-", "race.toml"], 2, b"standard input is not the same twice; use --input FILE"),
        (["-o", "mock.faults=vcpu1=EIO", "race.toml"], 5, b"mock vCPU entry failed: EIO"),
        (["missing.toml"], 2, b"missing.toml"),
    ],
)
def test_run_with_a_seed_that_cannot_be_says_why(
    tmp_path: Path, arguments: list[str], code: int, problem: bytes
) -> None:
    done = accelctl(tmp_path, "--seed", "1", *arguments)
    assert done.returncode == code
    assert problem in done.stderr
    assert b"Traceback" not in done.stderr

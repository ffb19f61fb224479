"""What a trace says: the fields of each event, the phases of a change that works, is refused and is undone; and off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from trace_replay import FIELDS

import accel
from accel.errors import CapabilityError, MemorySlotError, UsageError
from accel.memory.listener import MemoryListener

from .conftest import Line, read_lines

COMMON = ["machine", "time", "generation", "event"]
SECTION = [*FIELDS, "log"]
#: Every event with its own fields, as the page says.
SCHEMA = {
    "open": ["format", "accel", "pid", "date", "accelerator", "cpus"],
    "region_add": SECTION,
    "region_del": SECTION,
    "region_nop": SECTION,
    "log_start": [*SECTION, "old_log"],
    "log_stop": [*SECTION, "old_log"],
    "log_sync": SECTION,
    "log_clear": SECTION,
    "coalesced_io_add": ["address", "size", "region", "section"],
    "coalesced_io_del": ["address", "size", "region", "section"],
    "eventfd_add": ["address", "size", "region", "section", "match", "fd"],
    "eventfd_del": ["address", "size", "region", "section", "match", "fd"],
    **dict.fromkeys(["begin", "prepare", "apply", "undo", "commit", "abort", "close"], ()),
    **dict.fromkeys(["log_global_start", "log_global_stop", "log_global_after_sync"], ()),
}


def create(**config: object) -> accel.Machine:
    return accel.Machine.create("mock", memory="64K", **config)


def events(lines: list[Line], *machines: str) -> list[str]:
    return [line["event"] for line in lines if not machines or line["machine"] in machines]


def test_trace_has_every_event_with_the_fields_of_the_schema(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCEL_TRACE_NOP", "1")
    bell = os.eventfd(0)
    with create(options={"mock": {"faults": "create@5=ENOMEM"}}) as machine:
        ram, device = accel.MemoryRegion.ram("ram2", "64K"), accel.MemoryRegion.mmio("device", "64K")
        device.add_coalescing(0x10, 0x20)
        device.add_eventfd(0x100, bell, 4, match=7)
        machine.memory.add(ram, 1 << 20)
        machine.memory.add(device, 1 << 21)
        ram.start_log(accel.DirtyClient.VGA)
        machine.vm.dirty_log.collect(ram, accel.DirtyClient.VGA)
        ram.stop_log(accel.DirtyClient.VGA)
        machine.vm.dirty_log.start_global()
        machine.vm.dirty_log.sync()
        machine.vm.dirty_log.stop_global()
        machine.memory.remove(device)
        with pytest.raises(MemorySlotError), machine.transaction():
            for number in range(5):
                machine.memory.add(accel.MemoryRegion.ram(f"more{number}", "4K"), (16 + number) << 20)
    os.close(bell)
    lines = read_lines(trace)
    assert set(events(lines)) == set(SCHEMA)
    for line in lines:
        assert list(line) == [*COMMON, *SCHEMA[line["event"]]]
    by_event = {line["event"]: line for line in lines}
    assert by_event["open"]["format"] == 1
    assert by_event["open"]["accel"] == accel.__version__
    assert by_event["open"]["accelerator"] == "mock"
    shown = {name: by_event["eventfd_add"][name] for name in SCHEMA["eventfd_add"]}
    assert shown == {
        "address": "0x200100", "size": "0x4", "region": "device", "section": "0x200000", "match": "0x7", "fd": bell
    }  # fmt: skip
    shown = {name: by_event["coalesced_io_del"][name] for name in SCHEMA["coalesced_io_del"]}
    assert shown == {"address": "0x200010", "size": "0x20", "region": "device", "section": "0x200000"}
    first = next(line for line in lines if line["event"] == "log_start")
    assert (first["region"], first["log"], first["old_log"]) == ("ram2", ["vga"], [])


def phases(lines: list[Line]) -> list[str]:
    """Return the events of the last change."""
    told = events(lines)
    return told[len(told) - told[::-1].index("begin") - 1 :]


def test_trace_of_a_change_that_works_has_its_phases_in_order(trace: Path) -> None:
    with create() as machine:
        machine.ram.move(0x10000)
        assert phases(read_lines(trace)) == ["begin", "region_del", "region_add", "prepare", "apply", "commit"]


def test_trace_is_in_the_file_when_the_commit_returns(trace: Path) -> None:
    with create() as machine:
        before = len(read_lines(trace))
        machine.ram.move(0x10000)
        assert len(read_lines(trace)) == before + 6


def test_trace_of_a_change_that_another_listener_refuses_ends_with_abort(trace: Path) -> None:
    class Refuses(MemoryListener):
        priority = 20

        def region_add(self, section):
            raise CapabilityError("no")

    with create() as machine:
        with pytest.raises(CapabilityError):
            machine.memory.add_listener(Refuses())
        refuses = Refuses()
        del Refuses.region_add
        machine.memory.add_listener(refuses)
        Refuses.prepare = lambda self: 1 // 0
        with pytest.raises(accel.errors.ListenerError):
            machine.ram.move(0x10000)
        assert phases(read_lines(trace)) == ["begin", "region_del", "region_add", "prepare", "abort"]
        del Refuses.prepare


def test_trace_of_a_change_that_fails_in_the_accelerator_tells_the_undo(trace: Path) -> None:
    with create(options={"mock": {"faults": "create@2=ENOMEM"}}) as machine:
        generation = machine.vm.history.completed
        with pytest.raises(MemorySlotError):
            machine.ram.move(0x10000)
        lines = read_lines(trace)
        assert phases(lines) == ["begin", "region_del", "region_add", "prepare", "apply", "undo", "abort"]
        assert [line["generation"] for line in lines[-7:-1]] == [generation] * 6


def test_trace_gives_the_generation_before_a_change_and_after_it(trace: Path) -> None:
    with create() as machine:
        before = machine.vm.history.completed
        machine.ram.move(0x10000)
        *told, committed = read_lines(trace)[-6:]
        assert {line["generation"] for line in told} == {before}
        assert committed["generation"] == machine.vm.history.completed == before + 1


@pytest.mark.kvm
def test_trace_on_kvm_says_the_same_as_on_the_mock(trace: Path) -> None:
    told = []
    for name in ("kvm", "mock"):
        with accel.Machine.create(name, memory="64K") as machine:
            machine.memory.add(accel.MemoryRegion.ram("more", "64K"), 1 << 20)
            machine.ram.start_log(accel.DirtyClient.VGA)
            machine.ram.move(0x10000)
        lines = [line for line in read_lines(trace) if line["event"] not in ("open", "close")]
        told.append([{name: line[name] for name in line if name not in ("machine", "time")} for line in lines])
        trace.unlink()
    assert told[0] == told[1]


# it changes nothing


def held(traced: bool, monkeypatch: pytest.MonkeyPatch, path: Path, **options: str) -> tuple[float, float]:
    """Return how many changes held the vCPUs, and how many did not, of some that differ."""
    monkeypatch.setenv("ACCEL_TRACE", str(path) if traced else "")
    with create(cpus=2, options={"mock": options}) as machine:
        extra = accel.MemoryRegion.ram("extra", "64K", "1M")
        machine.memory.add(extra, 1 << 20)
        extra.resize("128K")
        extra.start_log(accel.DirtyClient.VGA)
        extra.move(1 << 21)
        machine.memory.add(accel.MemoryRegion.mmio("device", "4K"), 1 << 30)
        with machine.transaction(atomic="map"):
            machine.memory.remove(extra)
        return machine.vm.blocker.stats.inhibits, machine.vm.transactions.unheld


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_trace_makes_no_change_hold_the_vcpus_that_would_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    without, traced = (held(on, monkeypatch, tmp_path / "trace", plan=plan) for on in (False, True))
    assert without == traced
    assert 0 not in without


def test_trace_makes_no_change_hold_the_vcpus_where_pages_are_served_by_a_handler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There every change holds them that anybody applies; to watch is not to apply."""
    counts = []
    for traced in (False, True):
        monkeypatch.setenv("ACCEL_TRACE", str(tmp_path / "trace") if traced else "")
        with create() as machine, monkeypatch.context() as patch:
            patch.setattr(type(machine.vm.transactions._pins), "user_faults", True, raising=False)
            machine.memory.add(accel.MemoryRegion.mmio("device", "4K"), 1 << 30)
            counts.append((machine.vm.blocker.stats.inhibits, machine.vm.transactions.unheld))
            machine.ram.move(0x10000)
            counts[-1] += (machine.vm.blocker.stats.inhibits,)
    assert counts[0] == counts[1]
    assert counts[0][2] > counts[0][0], "a change that is applied does hold them"


@pytest.mark.parametrize("value", [None, ""])
def test_trace_that_nobody_asked_for_costs_no_listener_and_no_import(value: str | None) -> None:
    script = """
        import sys
        import accel
        with accel.Machine.create("mock", memory="64K") as machine:
            print([one.name for one in machine.memory.listeners])
        print(sorted(name for name in sys.modules if name.startswith("accel_trace")))
    """
    env = {name: text for name, text in os.environ.items() if name != "ACCEL_TRACE"}
    env |= {} if value is None else {"ACCEL_TRACE": value}
    done = subprocess.run(
        [sys.executable, "-c", dedent(script)], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    listeners, modules = done.stdout.splitlines()
    assert "trace" not in listeners
    assert modules == "['accel_trace', 'accel_trace.plugin']"


def test_trace_holds_no_contents_no_host_addresses_and_no_environment(
    trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hush-hush")
    with create() as machine:
        machine.ram.write(0, b"a-secret-of-the-guest")
        machine.ram.move(0x10000)
        host = machine.ram.block.address
    text = trace.read_text()
    for secret in ("hush-hush", "a-secret-of-the-guest", hex(host)[2:], str(host)):
        assert secret not in text


def test_trace_of_a_region_with_an_odd_name_stays_one_line_of_json(trace: Path) -> None:
    name = 'a "b"\n\\ \ud800 é'
    with create() as machine:
        machine.memory.add(accel.MemoryRegion.mmio(name, "4K"), 1 << 20)
    assert name in [line.get("region") for line in read_lines(trace)]


def test_trace_of_a_huge_region_keeps_all_digits(trace: Path) -> None:
    with create() as machine:
        machine.memory.add(accel.MemoryRegion.mmio("all", (1 << 64) - 1), 1, priority=-1)
    sizes = [line["size"] for line in read_lines(trace) if line.get("region") == "all"]
    assert sizes == [hex((1 << 64) - (1 << 16))]


def test_trace_that_cannot_be_opened_refuses_the_machine_and_names_file_and_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "no" / "such"
    monkeypatch.setenv("ACCEL_TRACE", str(path))
    with pytest.raises(UsageError) as caught:
        create()
    assert str(caught.value).startswith(f"ACCEL_TRACE={path}: cannot be written: No such file or directory;")
    assert "accel_memory_listeners of plugin 'trace' from accel " in str(caught.value)
    assert "accelctl -p no:trace" in str(caught.value)


def test_trace_of_a_command_line_is_written_and_its_error_is_one_line(tmp_path: Path) -> None:
    root = Path(accel.__file__).parent.parent
    command = [sys.executable, "-m", "accel", "run", str(root / "examples" / "workloads" / "mock-program.toml")]
    env = dict(os.environ, ACCEL_TRACE=str(tmp_path / "trace"))
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "trace" not in done.stderr
    assert events(read_lines(tmp_path / "trace"))[-1] == "close"
    done = subprocess.run(
        command, env=env | {"ACCEL_TRACE": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"accelctl: ACCEL_TRACE={tmp_path}: cannot be written: Is a directory; ")


def test_trace_lines_are_compact_ascii(trace: Path) -> None:
    with create() as machine:
        machine.ram.move(0x10000)
    for line in trace.read_text(encoding="ascii").splitlines():
        assert line == json.dumps(json.loads(line), separators=(",", ":"))

"""accelctl stress: on real KVM and on the mock, its table, document and pictures, and how it ends."""

from __future__ import annotations

import io
import json
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import pytest
from rich.console import Console

from accel.cli import stress as command_module
from accel.cli.stress_show import passed
from accel.cli.stress_table import conclude, fitting_table, milliseconds
from accel.stress.changes import CHANGES
from accel.stress.figures import Combination, Figures, Hold
from accel.stress.guests import MAX_CPUS
from accel.stress.judgement import TOUCHES

Accelctl = Callable[..., "subprocess.CompletedProcess[bytes]"]
MOCK = ("stress", "--accel", "mock", "--cpus", "1", "--seed", "7")

WORKLOAD = """
format = 1
machine = {accelerators = ["mock"], memory = "2M"}
device = [{type = "debug-exit"}]
region = [{name = "window", kind = "ram", at = 0x1000_0000, size = "64K", max_size = "128K"}]
image = {program = [{op = "loop", body = [{op = "load", address = 0x1000_0000, expect = 0}]}]}
[[change]]
region = "window"
do = "resize"
size = "128K"
every = "1ms"
"""


def row(hold: Hold = "inhibit", **figures: int) -> Figures:
    return Figures(Combination("read", 1, hold, "replace"), complete=True, **figures)


def test_stress_flags_know_all_touches_changes_and_holds() -> None:
    assert get_args(Hold) == command_module.HOLDS
    assert command_module.TOUCHES == TOUCHES
    assert command_module.CHANGES == CHANGES
    assert command_module._MOST_CPUS == MAX_CPUS


@pytest.mark.kvm
def test_stress_on_kvm_prints_one_document_with_all_figures(accelctl: Accelctl) -> None:
    done = accelctl("stress", "--updates", "15", "--seed", "3", "--cpus", "1,2", "--touch", "read,walk", "--json")
    data = json.loads(done.stdout)
    assert done.returncode == 0, data
    assert done.stderr == b""
    assert (data["format"], data["accelerator"], data["seed"], data["passed"]) == (1, "kvm", 3, True)
    rows = data["rows"]
    assert [(one["touch"], one["cpus"], one["hold"]) for one in rows] == [
        (touch, cpus, hold) for touch in ("read", "walk") for cpus in (1, 2) for hold in ("inhibit", "unsafe")
    ]
    for one in rows:
        assert one["updates"] == 15
        assert one["inhibits"] == (15 if one["hold"] == "inhibit" else 0)
        assert 0 < one["p50_us"] <= one["p99_us"] <= one["max_us"]
        assert sum(count for _, count in one["latencies_us"]) == 15
        assert one["timeline"][-1][1] == 15
    assert all(one["clean"] for one in rows if one["hold"] == "inhibit")


def test_stress_for_people_prints_a_table_and_what_it_comes_to(accelctl: Accelctl) -> None:
    done = accelctl(*MOCK, "--updates", "10", "--touch", "read", "--hold", "inhibit", "--plan", "both")
    text = done.stdout.decode()
    assert done.returncode == 0, text
    assert done.stderr == b"", "the bar is for terminals"
    assert "2 combinations, 10 updates each, back to back; seed 7" in text
    lines = text.splitlines()
    head = next(line.split() for line in lines if line.startswith("touch"))
    assert head[:6] == ["touch", "plan", "hold", "vCPUs", "updates", "held"]
    assert [line.split()[:6] for line in lines if line.startswith("read")][1] == [
        "read", "replace", "inhibit", "1", "10", "10",
    ]  # fmt: skip
    assert lines[-1].split() == ["vCPUs", "held:", "20", "updates,", "0", "faults,", "0", "errors"]


def test_stress_of_one_seed_makes_the_same_changes(accelctl: Accelctl) -> None:
    flags = ("--updates", "25", "--touch", "read", "--plan", "least", "--hold", "inhibit", "--json")
    held = [json.loads(accelctl(*MOCK, *flags).stdout)["rows"][0]["inhibits"] for _ in range(2)]
    # By the least plan, how many holds there are depends on the changes.
    assert held[0] == held[1] > 0


def test_stress_on_the_mock_leaves_page_walks_out(accelctl: Accelctl) -> None:
    data = json.loads(accelctl(*MOCK, "--updates", "1", "--json").stdout)
    assert [one["touch"] for one in data["rows"]][::2] == ["read", "write", "locked", "fetch", "mixed"]


def test_stress_with_a_workload_file_runs_its_guest_and_changes(accelctl: Accelctl, tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(WORKLOAD)
    done = accelctl("stress", "w.toml", "--updates", "10", "--accel", "mock", "--hold", "inhibit", "--json")
    (one,) = json.loads(done.stdout)["rows"]
    assert done.returncode == 0
    assert (one["touch"], one["updates"], one["inhibits"], one["clean"]) == ("w.toml", 10, 10, True)


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--touch", "read,wriet"], 2, "'wriet' is none of read, write"),
        (["--touch", ""], 2, "'' is none of"),
        (["--change", "slip"], 2, "'slip' is none of split"),
        (["--cpus", "2,0"], 2, "'0' is no number of vCPUs from 1 to 16"),
        (["--cpus", "17"], 2, "'17' is no number of vCPUs"),
        (["--cpus", "²"], 2, "is no number of vCPUs"),
        (["--rate", "0"], 2, "0.0 is no number above zero"),
        (["--rate", "nan"], 2, "is no number above zero"),
        (["--seconds", "1", "--updates", "1"], 2, "give one of them"),
        (["--plot", "x.jpg"], 2, "must end in .png or .svg"),
        (["--plot", "nothere/x.png"], 2, "its folder is not there"),
        (["x.bin"], 2, "a workload file's name ends in .toml"),
        (["x.toml", "--cpus", "2"], 2, "--cpus is for the built-in guests"),
        (["x.toml"], 2, "x.toml"),
        (["--hold", "safe"], 2, "'safe' is not one of 'inhibit', 'unsafe', 'kick-all', 'region-list', 'both'"),
        (["--accel", "mock", "--touch", "walk"], 3, "walk no page tables"),
        (["--accel", "hvf"], 3, "accelctl stress --accel mock"),
    ],
)
def test_stress_bad_flags_are_refused_before_anything_runs(
    accelctl: Accelctl, flags: list[str], code: int, says: str
) -> None:
    done = accelctl("stress", *flags)
    assert done.returncode == code
    assert says in " ".join(done.stderr.decode().split())
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("hold", "call"),
    [("kick-all", "KVM_KICK_ALL_RUNNING_VCPUS"), ("region-list", "KVM_SET_USER_MEMORY_REGION_LIST")],
)
def test_stress_on_kvm_says_that_no_kernel_has_the_hold(accelctl: Accelctl, hold: str, call: str) -> None:
    done = accelctl("stress", "--accel", "kvm", "--hold", "both", "--hold", hold, "--updates", "3", "--json")
    assert done.returncode == 3
    assert f"accelctl: hold={hold} needs {call}, which was proposed in 2022 and which no released kernel has" in (
        done.stderr.decode()
    )
    assert done.stdout == b"", "nothing has run before"


@pytest.mark.parametrize(("hold", "needed"), [("kick-all", "kick-all-vcpus"), ("region-list", "region-list")])
def test_stress_refuses_a_hold_that_the_accelerator_lacks_before_anything_runs(
    accelctl_after: Accelctl, hold: str, needed: str
) -> None:
    without = f"from accel_mock.vm import MockVm\nMockVm.capabilities -= {{'{needed}'}}"
    done = accelctl_after(without, *MOCK, "--updates", "5", "--hold", "inhibit", "--hold", hold, "--json")
    assert (done.returncode, done.stdout) == (3, b"")
    assert f"hold={hold} needs '{needed}', which this accelerator does not offer" in done.stderr.decode()


def test_stress_compares_holds_in_the_order_they_are_named(accelctl: Accelctl) -> None:
    """None of them shows a fault, but for having nobody held."""
    named = [word for hold in ("kick-all", "both", "inhibit", "region-list") for word in ("--hold", hold)]
    done = accelctl(*MOCK, "--updates", "5", "--touch", "read", *named, "--json")
    rows = json.loads(done.stdout)["rows"]
    assert [(one["hold"], one["updates"], one["inhibits"], one["unheld"]) for one in rows] == [
        ("kick-all", 5, 0, 0), ("inhibit", 5, 5, 0), ("unsafe", 5, 0, 5), ("region-list", 5, 0, 5),
    ]  # fmt: skip
    assert not any(one["served"] or one["unserved"] for one in rows if one["hold"] != "unsafe")


def test_stress_interrupted_shows_what_there_is(tmp_path: Path) -> None:
    arguments = [*MOCK, "--seconds", "1000", "--json", "--plot", "x.svg"]
    script = (
        "import contextlib, sys\nfrom accel.cli import main\nimport accel.cli.stress_show as show\n"
        "@contextlib.contextmanager\n"
        "def bar(job, rows):\n"
        "    yield lambda figures: print('working', file=sys.stderr, flush=True)\n"
        f"show._bar = bar\nsys.exit(main({arguments!r}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"working\n"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    data = json.loads(output)
    assert process.returncode == 130
    assert (data["interrupted"], data["error"], data["passed"]) == (True, None, False)
    (one,) = data["rows"]
    assert (one["touch"], one["complete"]) == ("read", False)
    assert one["updates"] > 0
    assert (tmp_path / "x.svg").exists()


#: The first change of `WORKLOAD` needs no slot more; this one does.
TOO_FEW_SLOTS = """
[[change]]
region = "window"
do = "split"
every = "1ms"
[accelerator.mock]
slot_count = 2
"""


def test_stress_that_fails_shows_what_there_is_and_then_the_error(accelctl: Accelctl, tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(WORKLOAD + TOO_FEW_SLOTS)
    flags = ("stress", "w.toml", "--updates", "10", "--accel", "mock", "--hold", "inhibit")
    done = accelctl(*flags)
    text = done.stdout.decode()
    assert done.returncode == 5, done.stderr
    assert next(line.split()[:5] for line in text.splitlines() if line.startswith("w.toml ")) == [
        "w.toml", "replace", "inhibit", "1", "1",
    ]  # fmt: skip
    assert text.splitlines()[-1] == "w.toml, 1 vCPU, inhibit, replace: failed"
    says = "mock slot call failed: ENOSPC"
    assert done.stderr.startswith(f"accelctl: {says}".encode())
    data = json.loads(accelctl(*flags, "--json").stdout)
    assert (data["passed"], data["interrupted"]) == (False, False)
    assert (data["error"]["type"], data["error"]["exit_code"]) == ("MemorySlotError", 5)
    assert data["error"]["message"].startswith(says)
    assert [(one["updates"], one["complete"]) for one in data["rows"]] == [(1, False)]


#: Before `accelctl stress`: the nth change of the built-in ones fails; what shows at the start counts as one.
FAILING = """
from accel.errors import StateError
from accel.stress.changes import ChangingMap
become, left = ChangingMap.become, iter(range({}))
def fail(self, state):
    if next(left, None) is None:
        raise StateError("made to fail")
    return become(self, state)
ChangingMap.become = fail
"""


@pytest.mark.parametrize(("calls", "updates"), [(15, [10, 3]), (11, [10]), (1, [])])
def test_stress_that_fails_in_a_later_combination_keeps_the_rows_before(
    accelctl_after: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path, calls: int, updates: list[int]
) -> None:
    flags = (*MOCK, "--updates", "10", "--touch", "read,write", "--hold", "inhibit", "--plot", "x.svg")
    done = accelctl_after(FAILING.format(calls), *flags)
    assert done.returncode == 5
    assert done.stderr == b"accelctl: made to fail\n"
    lines = done.stdout.decode().splitlines()
    rows = [line.split() for line in lines if line.startswith(("read ", "write "))]
    assert [int(one[4]) for one in rows] == updates, "a combination in which nothing changed has no row"
    assert sum(line.endswith(": failed") for line in lines) == (len(updates) > 1)
    assert (tmp_path / "x.svg").exists() == bool(updates)


@pytest.mark.parametrize("name", ["served", "unserved", "unplaced", "guest_errors", "host_errors"])
def test_stress_passes_only_if_held_guests_saw_nothing(name: str) -> None:
    assert passed([row(), row("unsafe", **{name: 1})])
    assert not passed([row(**{name: 1}), row("unsafe")])
    assert not passed([row(), row("kick-all", **{name: 1})])


def test_stress_with_a_fault_in_a_held_guest_exits_with_1(accelctl_after: Callable[..., object]) -> None:
    spoilt = (
        "import accel.stress.runner as runner\nold = runner.add_result\n"
        "def add(figures, *rest, **names):\n    old(figures, *rest, **names)\n    figures.served += 1\n"
        "runner.add_result = add"
    )
    done = accelctl_after(spoilt, *MOCK, "--updates", "3", "--touch", "read")
    assert done.returncode == 1
    assert b"3 updates, 1 faults (33 for 100 updates), 0 errors" in done.stdout


@pytest.mark.parametrize("width", [60, 80, 100, 144])
def test_stress_table_fits_the_terminal_and_keeps_what_counts(width: int) -> None:
    rows = [row(updates=12_345, inhibits=12_345, kicks=99_999), row("unsafe", served=5_000, guest_passes=100_000)]
    console = Console(width=width, file=io.StringIO())
    table = fitting_table(console, rows)
    names = [column.header for column in table.columns]
    console.print(table)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 3, "no line is broken"
    assert ("…" in lines[1]) is (width == 60)
    assert {"touch", "hold", "vCPUs", "updates", "served", "unserved", "crashes", "errors"} <= set(names)
    assert ("passes" in names) is (width == 144)
    assert "host" not in names


def test_stress_adds_up_each_hold_in_a_line_of_its_own() -> None:
    console = Console(width=144, file=io.StringIO())
    conclude(console, [row(hold, updates=10, served=number) for number, hold in enumerate(get_args(Hold))], "failed")
    assert [" ".join(line.split()) for line in console.file.getvalue().splitlines() if line] == [
        "vCPUs not held: 10 updates, 1 faults (10 for 100 updates), 0 errors",
        "vCPUs held: 10 updates, 0 faults, 0 errors",
        "all kicked: 10 updates, 2 faults (20 for 100 updates), 0 errors",
        "all at once: 10 updates, 3 faults (30 for 100 updates), 0 errors",
    ]


def test_stress_table_has_a_column_for_what_the_host_found_if_it_did() -> None:
    table = fitting_table(Console(width=200, file=io.StringIO()), [row(host_errors=3)])
    assert table.columns[-1].header == "host"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.000123, "0.12"), (0.00999, "9.99"), (0.0123, "12.3"), (1.2345, "1,234")]
)
def test_milliseconds_have_digits_that_count(seconds: float, text: str) -> None:
    assert milliseconds(seconds) == text


# pictures


@pytest.fixture
def rows() -> list[Figures]:
    """Figures of both holds and two touches."""
    made = []
    for touch in ("read", "fetch"):
        for hold in ("inhibit", "unsafe"):
            one = Figures(Combination(touch, 2, hold, "replace"), updates=200, complete=True)
            for number in range(200):
                one.latencies.add(0.0002 + number * 1e-5)
            for number in range(1, 11):
                one.timeline.add(number / 10, number * 20, number if hold == "unsafe" else 0)
            one.served = 10 if hold == "unsafe" else 0
            made.append(one)
    return made


def test_plot_adds_up_faults_and_latencies_by_hold(rows: list[Figures]) -> None:
    pytest.importorskip("matplotlib")
    from accel.cli.stress_plot import _curves, plot_bytes

    unsafe, held = _curves(rows)
    assert (unsafe.hold, unsafe.faults[-1], unsafe.updates, unsafe.latencies.count) == ("unsafe", 20, 400, 400)
    assert (held.hold, max(held.faults), held.latencies.count) == ("inhibit", 0, 400)
    assert unsafe.at == sorted(unsafe.at)
    assert unsafe.bands == [("read", 0, 200), ("fetch", 200, 400)], "all made as many updates"
    rows[0].updates = 201
    assert _curves(rows)[0].bands == [("read", 0.0, 1.0), ("fetch", 1.0, 2.0)]
    rows[0].updates = 200
    svg = plot_bytes(rows, "kvm <x> $a_b$", "svg")
    texts = " ".join(
        "".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}text")
    )
    for words in ("kvm <x> $a_b$", "read", "fetch", "20 faults in 400 updates", "0 faults in 400 updates"):
        assert words in texts
    assert svg == plot_bytes(rows, "kvm <x> $a_b$", "svg"), "the same figures give the same file"


@pytest.mark.parametrize("most", [0.0009, 0.003, 0.4])
def test_plot_writes_milliseconds_as_plain_numbers(most: float) -> None:
    pytest.importorskip("matplotlib")
    from accel.cli.stress_plot import plot_bytes

    one = row(updates=2)
    one.latencies.add(0.0004)
    one.latencies.add(most)
    svg = plot_bytes([one], "mock", "svg").decode()
    assert "mathdefault" not in svg
    assert ">0.5<" in svg


def test_plot_draws_every_hold_in_a_colour_of_its_own() -> None:
    pytest.importorskip("matplotlib")
    from accel.cli.stress_plot import _COLOURS, plot_bytes

    svg = plot_bytes([row(hold, updates=2) for hold in get_args(Hold)], "mock", "svg").decode()
    for hold in get_args(Hold):
        assert f"hold={hold}, plan=replace" in svg
        assert _COLOURS[hold] in svg
    assert len(set(_COLOURS.values())) == len(get_args(Hold))


def test_plot_as_png_has_its_size(rows: list[Figures]) -> None:
    pytest.importorskip("matplotlib")
    from accel.cli.stress_plot import plot_bytes

    png = plot_bytes(rows, "mock", "png")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">2I", png[16:24]) == (1300, 560)


def test_plot_without_a_single_update_is_drawn_too() -> None:
    pytest.importorskip("matplotlib")
    from accel.cli.stress_plot import plot_bytes

    assert plot_bytes([row()], "mock", "png")
    assert plot_bytes([row("unsafe", served=1)], "mock", "svg")


def test_plot_without_matplotlib_is_refused_at_once(accelctl_after: Callable[..., object]) -> None:
    absent = (
        "import importlib.util\nold = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'matplotlib' else old(name, *rest)"
    )
    done = accelctl_after(absent, *MOCK, "--seconds", "100", "--plot", "x.png")
    assert done.returncode == 2
    assert b"--plot needs matplotlib: pip install 'accel[plot]'" in done.stderr

"""What ``accelctl demo`` runs and shows: text for people on stdout, or one JSON document."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from attrs import asdict, frozen
from rich.console import Console
from rich.padding import Padding
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

import accel
from accel.backend import Accelerator
from accel.cli.app import printable
from accel.cli.exit_codes import ExitCode
from accel.cli.race import Hold, Side, TouchImage, TouchProgram, race
from accel.errors import NoAcceleratorError, UsageError
from accel.plugins import default_accelerators, find_accelerator, parse_accelerators, probe
from accel.program import ERRORS, Add, GuestProgram, Load, Loop, Out, Store, text
from accel.testing.images import image_file
from accel.testing.programs import CONSOLE_PORT, EXIT_PORT
from accel.workload.report import Report
from accel.workload.schema import (
    Accelerators,
    DeviceSpec,
    Duration,
    ExpectSpec,
    FilePath,
    ImageSpec,
    MachineSpec,
    RunSpec,
    Texts,
    Workload,
)
from accel.workload.session import run_workload

_WIDTH = 96
_DEVICES = (DeviceSpec("serial"), DeviceSpec("debug-console"), DeviceSpec("debug-exit"))
_COUNTER = 0x1000
_COUNT = GuestProgram(
    (
        *text(CONSOLE_PORT, b"counting to 7000 by sevens\n"),
        Store(_COUNTER, 0),
        Loop((Add(_COUNTER, 7),), 1000),
        Load(_COUNTER, expect=7000),
        *text(CONSOLE_PORT, b"done\n"),
        Out(EXIT_PORT, ERRORS),
    )
)


@frozen
class Chosen:
    """The accelerator of the demo, and why those before it in the list were passed over."""

    accelerator: Accelerator
    host: str
    passed_over: dict[str, str]

    @property
    def runs_code(self) -> bool:
        """Whether it executes machine code, and no mere programs."""
        return "x86" in self.accelerator.executes


def run_demo(names: str | None, seconds: float, *, as_json: bool) -> int:
    """Run the demo and return its exit code."""
    chosen = choose(names)
    console = Console(highlight=False, quiet=as_json)
    console.width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
    _introduce(console, chosen)
    report = _compute(chosen)
    _show_guest(console, chosen, report)
    _explain_race(console, chosen)
    sides = _race(console, chosen, seconds)
    _show_race(console, *sides)
    passed = report.passed and verdict(*sides)
    _conclude(console, chosen, report, passed=passed)
    if as_json:
        data = {
            "format": 1,
            "accelerator": chosen.accelerator.name,
            "host": chosen.host,
            "passed_over": chosen.passed_over,
            "guest": report.to_data(),
            "race": {"unprotected": asdict(sides[0]), "protected": asdict(sides[1])},
            "passed": passed,
        }
        click.echo(json.dumps(data, indent=2))
    return ExitCode.SUCCESS if passed else ExitCode.EXPECTATION_FAILED


def choose(names: str | None, command: str = "demo") -> Chosen:
    """Return the first accelerator that can be used. Raises NoAcceleratorError with the reasons if none can."""
    reasons: dict[str, str] = {}
    for name in default_accelerators() if names is None else parse_accelerators(names):
        try:
            accelerator = find_accelerator(name)
        except UsageError as error:
            reasons[name] = str(error)
            continue
        found = probe(accelerator)
        if found.ok and accelerator.executes & {"x86", "program"}:
            return Chosen(accelerator, found.details.get("host", ""), reasons)
        reasons[name] = found.reason or f"executes {', '.join(sorted(accelerator.executes))}"
    raise NoAcceleratorError(reasons, f"the accelerator 'mock' runs anywhere: accelctl {command} --accel mock")


def verdict(unprotected: Side, protected: Side) -> bool:
    """Return whether the race showed what it is there to show."""
    clean = protected.faults == 0 and protected.errors == 0 and protected.crash is None
    return clean and unprotected.faults > 0


# what runs


def _compute(chosen: Chosen) -> Report:
    machine = MachineSpec(Accelerators((chosen.accelerator.name,)))
    run = RunSpec(Duration(30_000_000))
    if not chosen.runs_code:
        expect = ExpectSpec(exit_status=1, console_contains=Texts(("done\n",)))
        return run_workload(Workload(machine, ImageSpec(program=_COUNT), devices=_DEVICES, run=run, expect=expect))
    expect = ExpectSpec(exit_status=85, console_contains=Texts(("self-check: ok\n",)))
    with image_file("compute.elf") as path:
        image = ImageSpec(FilePath(path))
        return run_workload(Workload(machine, image, devices=_DEVICES, run=run, expect=expect))


def _race(console: Console, chosen: Chosen, seconds: float) -> tuple[Side, Side]:
    guest = TouchImage() if chosen.runs_code else TouchProgram()

    def side(hold: Hold, label: str) -> Side:
        with _progress(console, label, seconds) as told:
            return race(chosen.accelerator.name, guest, hold, seconds, told)

    return side("unsafe", "unprotected"), side("inhibit", "protected")


@contextmanager
def _progress(console: Console, label: str, seconds: float) -> Iterator[Callable[[float, int], None]]:
    """Show a line that moves, on a terminal; elsewhere, a line that says what runs."""
    if not console.is_terminal:
        console.print(f"   running {label}, {seconds:g} s …")
        yield lambda gone, changes: None
        return
    columns = (TextColumn("  "), SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"{label}: starting")
        yield lambda gone, changes: progress.update(
            task, description=f"{label}: {gone:.1f} of {seconds:g} s, {changes:,} changes of the map"
        )


# what is shown


def _introduce(console: Console, chosen: Chosen) -> None:
    host = f" ({chosen.host})" if chosen.host else ""
    console.print(Text(f"accel {accel.__version__} on {chosen.accelerator.name}{host}", style="bold"))
    if chosen.passed_over:
        names = " and ".join(chosen.passed_over)
        console.print(Text(f"{names} cannot be used here, so {chosen.accelerator.name} shows it", style="yellow"))
    console.print()


def _show_guest(console: Console, chosen: Chosen, report: Report) -> None:
    _headline(console, "1", "a guest that computes")
    if chosen.runs_code:
        what = "Machine code in 64-bit mode counts primes, hashes them, and compares with what is known."
    else:
        what = "A guest program adds up a number in memory and checks it; it needs no machine code."
    _say(console, Text(what))
    console.print(
        Padding(
            Text(printable(report.console.decode(errors="replace")).rstrip("\n"), style="cyan"),
            (1, 0, 1, 6),
            expand=False,
        )
    )
    result = report.result
    exits = sum(result.exits.values())
    ending = f"It ended with status {result.exit_status} after {result.wall_time:.2f} s and {exits:,} exits"
    if report.passed:
        _say(console, Text(f"{ending}, as it should."))
    for failure in report.failures:
        _say(console, Text(printable(str(failure)), style="red"))
    console.print()


def _explain_race(console: Console, chosen: Chosen) -> None:
    _headline(console, "2", "the race")
    who = "Two vCPUs work on 1 MiB of RAM and check every word" if chosen.runs_code else "A vCPU works on RAM"
    _say(
        console,
        Text(
            f"{who}, while the host keeps resizing the region. A memory slot cannot be resized, only deleted and "
            "added again: a guest that looks in between finds no memory where there always was some."
        ),
    )
    console.print()


def _show_race(console: Console, unprotected: Side, protected: Side) -> None:
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("")
    for header in ("map changes", "spurious faults", "errors the guest saw"):
        table.add_column(header, justify="right")
    for label, side in (("unprotected", unprotected), ("protected", protected)):
        style = "red" if side.faults or side.errors else "green"
        table.add_row(
            label, f"{side.changes:,}", Text(f"{side.faults:,}", style=style), Text(f"{side.errors:,}", style=style)
        )
    console.print(Padding(table, (0, 0, 1, 3), expand=False))
    for label, side in (("unprotected", unprotected), ("protected", protected)):
        if side.crash is not None:
            _say(console, Text(printable(f"{label}: {side.crash}"), style="red"))
    if unprotected.errors:
        _say(
            console,
            Text(
                f"Unprotected, {unprotected.faults:,} accesses fell into the gap. They were served one by one, which "
                f"an atomic addition does not survive: the guest counts {unprotected.errors:,} as wrong."
            ),
        )
    elif unprotected.faults:
        _say(console, Text(f"Unprotected, {unprotected.faults:,} accesses fell into the gap."))
    if verdict(unprotected, protected):
        _say(
            console,
            Text(
                "Protected, accel brought the vCPUs out of the guest for each change, "
                f"{protected.held_us / 1000:.2f} ms on average, and none has seen a gap."
            ),
        )
    console.print()


def _conclude(console: Console, chosen: Chosen, report: Report, *, passed: bool) -> None:
    if not chosen.runs_code:
        _tell_what_code_needs(console, chosen)
    if passed:
        console.print(Text("The same guest, the same changes: faults without protection, none with it.", style="green"))
    elif not report.passed:
        console.print(Text("The guest did not end as it should.", style="bold red"))
    else:
        console.print(Text("The race did not show faults without protection and none with it.", style="bold red"))


def _tell_what_code_needs(console: Console, chosen: Chosen) -> None:
    words = f"{chosen.accelerator.name} interprets programs, and models the gap. Machine code on a real processor needs"
    if not chosen.passed_over:
        _say(console, Text(f"{words} another accelerator; see accelctl list accelerators."))
    else:
        _say(console, Text(f"{words} one of these, which say here:"))
    for name, reason in chosen.passed_over.items():
        console.print(Padding(Text(printable(f"{name}: {reason}"), style="yellow"), (0, 0, 0, 6), expand=False))
    console.print()


def _headline(console: Console, number: str, words: str) -> None:
    console.print(Text(f"{number}  ", style="dim") + Text(words, style="bold not dim"))


def _say(console: Console, words: Text) -> None:
    console.print(Padding(words, (0, 0, 0, 3), expand=False))

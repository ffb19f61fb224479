"""``accelctl run --dry-run``: the calls that a guest's memory would make, without making them.

The machine is built as for ``accelctl mtree``, with its memory mapped by a dry VM of the accelerator
(`Accelerator.create_dry_vm`). Then the changes of the workload are made in the order in which they would be due, on a
clock of their own; each that repeats goes there and back once. (Later rounds may call less, where ``plan=least`` leaves
what the first one left.) Whatever each step calls is printed; no accelerator is opened, and nothing runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import click
from attrs import frozen

from accel.address import format_size
from accel.backend import Accelerator, RecordedCall
from accel.cli.flags import Flags, build_workload
from accel.cli.memory_map.names import in_data, shown
from accel.cli.memory_map.stage import staged_session
from accel.cli.runner import errors_as_json, print_json
from accel.errors import CapabilityError, NoAcceleratorError, UsageError
from accel.plugins import find_accelerator, plugin_manager, probe
from accel.workload.changes import asked, restored
from accel.workload.schema import ChangeSpec, Workload
from accel.workload.session import Session
from accel.workload.units import format_duration

#: The number under ``format``; it changes when a field of before goes or means something else.
FORMAT = 1

#: Flags that say how a guest runs, by their names in `Flags`.
_OF_RUNS = {
    "seed": "--seed",
    "input_name": "--input",
    "timeout": "--timeout",
    "until": "--until",
    "guest_status": "--guest-status",
    "quiet": "--quiet",
}


@frozen
class Step:
    """What one change of the memory map calls; the first is all that there is when the guest starts.

    Attributes:
        at: Microseconds from the start at which it is due; None for what is there before.
        change: The index of the ``[[change]]``, or None.
        what: What is done, for people.
        every: Microseconds after which the change is made again, or None.
        held: Whether vCPUs would be held.
        calls: In order.
    """

    at: int | None
    change: int | None
    what: str
    every: int | None
    held: bool
    calls: Sequence[RecordedCall]


def run_dry(flags: Flags) -> int:
    """Print what the workload of `flags` would call; returns the exit code.

    Raises:
        UsageError: The flags contradict each other, or the accelerator cannot map such memory.
        CapabilityError: The accelerators that were asked for cannot tell.
        NoAcceleratorError: Their plugin did not load.
    """
    with errors_as_json(flags.as_json):
        for name, flag in _OF_RUNS.items():
            value = getattr(flags, name)
            if value is not None and value is not False:
                raise UsageError(f"--dry-run runs no guest, so {flag} means nothing; leave it out")
        workload = build_workload(flags)
        accelerator = choose(workload.machine.accelerators)
        name = os.path.basename(str(flags.target or flags.firmware))
        with staged_session(workload, name, accelerator) as session:
            page_size = session.machine.vm.backend.page_size
            steps = dry_steps(session, workload)
            if flags.as_json:
                print_json(_data(name, accelerator.name, page_size, list(steps)))
            else:
                _print(name, accelerator.name, page_size, steps)
    return 0


def choose(names: Sequence[str]) -> Accelerator:
    """Return the first accelerator of these that can tell its calls.

    Raises:
        CapabilityError: None can.
        NoAcceleratorError: None can, and a plugin among them did not load.
    """
    known = plugin_manager().accelerators()
    wanted = [find_accelerator(name) for name in names]
    for accelerator in wanted:
        if accelerator.dry_run:
            return accelerator
    others = ", ".join(one.name for one in known.values() if one.dry_run)
    advice = f"use --accel with one that does: {others}" if others else "no accelerator that is installed does"
    if any(one.name not in known for one in wanted):
        reasons = {one.name: "offers no dry run" if one.name in known else probe(one).reason for one in wanted}
        raise NoAcceleratorError(reasons, advice)
    raise CapabilityError(f"{', '.join(names)}: no dry run is offered; {advice}")


def dry_steps(session: Session, workload: Workload) -> Iterator[Step]:
    """Yield the steps of `workload`, whose machine `session` has; each is made when it is asked for.

    Raises:
        AccelError: A change cannot be made; the guest would be stopped there.
    """
    vm = session.machine.vm
    yield Step(None, None, "when the guest starts", None, False, vm.backend.take_calls())
    for at, index, number in due(workload.changes):
        spec = workload.changes[index]
        mount = session.mounts[spec.region]
        held = vm.transactions.commits - vm.transactions.unheld
        state = restored(spec, mount) if number % 2 else asked(spec, mount)
        mount.become(state, spec.atomic)
        held = vm.transactions.commits - vm.transactions.unheld - held
        what = f"{spec.do} {spec.region}" + (", and back" if number % 2 else "")
        yield Step(at, index, what, spec.every, held > 0, vm.backend.take_calls())


def due(specs: Sequence[ChangeSpec]) -> list[tuple[int, int, int]]:
    """Return `(microseconds, index, how often before)` of each change that is shown, in the order of a run."""
    found = []
    for index, spec in enumerate(specs):
        first = spec.after or spec.every or 0
        times = 1 if spec.every is None else min(spec.times or 2, 2)
        found += [(first + number * (spec.every or 0), index, number) for number in range(times)]
    return sorted(found)


def _data(name: str, accelerator: str, page_size: int, steps: Sequence[Step]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": in_data(name),
        "accelerator": accelerator,
        "page_size": page_size,
        "steps": [
            {
                "at": one.at,
                "change": one.change,
                "what": in_data(one.what),
                "every": one.every,
                "held": one.held,
                "calls": [
                    {
                        "name": call.name,
                        "arguments": {key: _argument(value) for key, value in call.arguments.items()},
                        "result": call.result,
                    }
                    for call in one.calls
                ],
            }
            for one in steps
        ],
    }


def _argument(value: int | str) -> str:
    """Return an argument as text: addresses and sizes do not fit into every reader's numbers."""
    return f"{value:#x}" if isinstance(value, int) else in_data(value)


def _print(name: str, accelerator: str, page_size: int, steps: Iterator[Step]) -> None:
    click.echo(f"{shown(name)} on {accelerator}, in pages of {format_size(page_size)}; nothing runs")
    for step in steps:
        click.echo()
        click.echo(click.style(_heading(step), bold=True))
        for line in _lines(step.calls):
            click.echo(f"  {line}".rstrip())


def _heading(step: Step) -> str:
    if step.at is None:
        return step.what
    heading = f"after {format_duration(step.at)}, change[{step.change}]: {shown(step.what)}"
    if step.every is not None:
        heading += f", every {format_duration(step.every)}"
    return heading + (" (vCPUs held)" if step.held else "")


def _lines(calls: Sequence[RecordedCall]) -> Iterator[str]:
    """Yield a table of the calls, with a column for each argument that one of them has."""
    if not calls:
        yield "no calls"
        return
    columns = list(dict.fromkeys(key for call in calls for key in call.arguments))
    rows = [["call", *columns, "result"]]
    for call in calls:
        cells = (call.arguments.get(key, "") for key in columns)
        rows.append([call.name, *(cell if cell == "" else shown(_argument(cell)) for cell in cells), call.result])
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))

"""``accelctl mtree``: what stands where in a machine's memory when its guest starts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

from accel.cli.run import command as run_command

if TYPE_CHECKING:
    from accel.cli.memory_map.snapshot import MemoryMap
    from accel.workload.schema import Workload

#: The flags of ``accelctl run`` that say what machine there is.
_SHARED = ("memory", "cpus", "irqchip", "firmware")


@frozen(kw_only=True)
class MtreeFlags:
    """The flags as click gives them; None means not given."""

    target: str | None
    bare: bool
    memory: int | None
    cpus: int | None
    irqchip: bool | None
    firmware: str | None
    flat: bool
    overlaps: bool
    owners: bool
    space: str | None
    as_json: bool
    svg: str | None
    png: str | None


@click.command("mtree", short_help="Show the memory map of a workload or an image.")
@click.argument("target", metavar="[WORKLOAD.toml|IMAGE]", required=False)
@click.option("--machine", "bare", is_flag=True, help="The machine that an image gets, without an image.")
@click.option("-f", "--flat", is_flag=True, help="Print the flat views: what each address shows.")
@click.option("--overlaps", is_flag=True, help="Print where regions overlap: who wins, why, and who is hidden.")
@click.option("-o", "--owner", "owners", is_flag=True, help="Name each region's device in the trees too.")
@click.option("--space", metavar="NAME", help="Only this address space, such as memory or io.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with all of it.")
@click.option("--svg", metavar="FILE", help="Draw the map as SVG, for a browser.")
@click.option("--png", metavar="FILE", help="Draw the map as PNG; needs matplotlib.")
def command(**flags: Any) -> None:
    """Show the memory map of a workload or an image as it stands when the guest starts.

    Prints the region tree of each address space, or with -f and --overlaps those in its place. Nothing runs and no
    accelerator is opened, so it works everywhere.
    """
    show(MtreeFlags(**flags))


command.params[2:2] = [option for option in run_command.params if option.name in _SHARED]


def show(flags: MtreeFlags) -> None:
    """Build the machine, draw its map into the files asked for, and print it.

    Raises:
        UsageError: The flags contradict each other or ask for what is not there.
        WorkloadError: The workload file cannot be used.
    """
    from accel.cli.memory_map.snapshot import take_snapshot
    from accel.cli.memory_map.stage import staged

    if flags.png is not None:
        from accel.cli.memory_map.png import require_matplotlib

        require_matplotlib()
    workload = _workload(flags)
    name = os.path.basename(flags.target or flags.firmware or "machine")
    with staged(workload, name) as machine:
        memory_map = take_snapshot(machine, name, flags.space)
    _draw(memory_map, flags)
    if flags.as_json:
        from accel.cli.memory_map.data import map_data

        click.echo(json.dumps(map_data(memory_map), indent=2))
    else:
        click.echo("\n".join(_lines(memory_map, flags)).rstrip("\n"))


def _workload(flags: MtreeFlags) -> Workload:
    """Return what stands in the machine; without an image, a program that does nothing."""
    from accel.cli.flags import IMAGE_DEVICES, Flags, build_workload
    from accel.errors import UsageError
    from accel.program import GuestProgram
    from accel.workload.schema import ImageSpec, MachineSpec, Workload

    if flags.bare and flags.target is not None:
        raise UsageError("--machine shows a machine without an image; leave out either of them")
    if not (flags.bare or flags.target or flags.firmware):
        raise UsageError("nothing to show: name a workload file or an image, or --machine; see accelctl mtree --help")
    given = Flags(
        target=flags.target,
        memory=flags.memory,
        cpus=flags.cpus,
        irqchip=flags.irqchip,
        firmware=flags.firmware,
    )
    if flags.target or flags.firmware:
        return build_workload(given)
    machine = MachineSpec(**{name: getattr(flags, name) for name in _SHARED[:3] if getattr(flags, name) is not None})
    return Workload(machine=machine, image=ImageSpec(program=GuestProgram([])), devices=IMAGE_DEVICES)


def _draw(memory_map: MemoryMap, flags: MtreeFlags) -> None:
    if flags.svg is None and flags.png is None:
        return
    from accel.cli.memory_map.layout import draw_map

    scene = draw_map(memory_map)
    if flags.svg is not None:
        from accel.cli.memory_map.svg import svg_text

        _write("--svg", flags.svg, svg_text(scene).encode())
    if flags.png is not None:
        from accel.cli.memory_map.png import png_bytes

        _write("--png", flags.png, png_bytes(scene))


def _write(flag: str, name: str, data: bytes) -> None:
    from accel.errors import UsageError

    try:
        Path(name).write_bytes(data)
    except OSError as error:
        raise UsageError(f"{flag} {name}: cannot be written: {os.strerror(error.errno or 0)}") from error


def _lines(memory_map: MemoryMap, flags: MtreeFlags) -> Iterator[str]:
    from accel.cli.memory_map import text

    if not (flags.flat or flags.overlaps):
        yield from text.tree_lines(memory_map, owners=flags.owners)
    if flags.flat:
        yield from text.flat_lines(memory_map)
    if flags.overlaps:
        yield from text.overlap_lines(memory_map)

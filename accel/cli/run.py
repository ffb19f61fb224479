"""``accelctl run``: an image or a workload file, on the accelerator that was asked for and no other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from accel.memory.backing import Backing
    from accel.workload.schema import Workload

_MODES = ("real16", "protected32", "long64")


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    from accel.address import parse_size
    from accel.errors import AddressError

    if value is None:
        return None
    try:
        return parse_size(value)
    except AddressError as error:
        raise click.BadParameter(str(error)) from error


def _address(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        number = int(value, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 64:
        raise click.BadParameter(f"'{value}' is no address; write it like 0x100000")
    return number


def _seconds(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not (0 < value < math.inf):
        raise click.BadParameter(f"{value} is no number of seconds above zero")
    return value


def _until(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from accel.errors import WorkloadError
    from accel.workload.schema import RunSpec

    try:
        RunSpec(until=value)
    except WorkloadError as error:
        raise click.BadParameter(error.problem) from error
    return value


def _options(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, dict[str, str]]:
    options: dict[str, dict[str, str]] = {}
    for text in values:
        name, equals, value = text.partition("=")
        accelerator, dot, option = name.partition(".")
        if not (equals and dot and accelerator and option):
            raise click.BadParameter(f"'{text}' must be ACCELERATOR.OPTION=VALUE, such as kvm.hold=unsafe")
        options.setdefault(accelerator, {})[option] = value
    return options


def _backings(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Backing]:
    if not values:
        return {}
    from accel.cli.memory_backing import parse_backing
    from accel.errors import UsageError

    backings: dict[str, Backing] = {}
    for text in values:
        try:
            name, backing = parse_backing(text)
        except UsageError as error:
            raise click.BadParameter(str(error)) from error
        if name in backings:
            raise click.BadParameter(f"'{text}': '{name}' has a backing already; give it one")
        backings[name] = backing
    return backings


@click.command("run", short_help="Run a guest image or a workload file.")
@click.argument("target", metavar="[IMAGE|WORKLOAD.toml]", required=False)
@click.option(
    "--accel",
    metavar="NAMES",
    help="Accelerators to try, in order, such as kvm,mock.  [default: all, the preferred first]",
)
@click.option("--memory", metavar="SIZE", callback=_size, help="RAM, such as 512M.  [default: 64M]")
@click.option(
    "--memory-backing",
    multiple=True,
    metavar="[REGION=]KIND[,OPTION]...",
    callback=_backings,
    help="Host memory behind RAM, or behind a workload's region: anonymous, memfd or file, with options, such as "
    "memfd,huge_pages=2M,prefault or file,path=/dev/shm/guest,create.  [default: anonymous]",
)
@click.option("--cpus", type=int, metavar="N", help="Number of vCPUs.  [default: 1]")
@click.option(
    "--irqchip/--no-irqchip",
    default=None,
    help="Interrupt controllers and timer; the vCPUs but the first then wait for INIT and SIPI.  "
    "[default: only with firmware]",
)
@click.option("--firmware", metavar="FILE", help="Start in this firmware; the image is optional then.")
@click.option("--load-address", metavar="ADDRESS", callback=_address, help="Where a flat image goes.")
@click.option("--entry", metavar="ADDRESS", callback=_address, help="Where the image is entered.")
@click.option("--mode", type=click.Choice(_MODES), help="CPU mode at the entry.")
@click.option("--loader", metavar="NAME", help="Loader to use; see `accelctl list loaders`.")
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="ACCEL.OPTION=VALUE",
    callback=_options,
    help="Option that an accelerator declares, such as kvm.hold=unsafe; see `accelctl list accelerators NAME`.",
)
@click.option("--input", "input_name", metavar="FILE", help="Feed FILE to the serial line; - is standard input.")
@click.option("--timeout", type=float, metavar="SECONDS", callback=_seconds, help="Stop the guest after so long.")
@click.option(
    "--until", metavar="TEXT", callback=_until, help="Stop the guest as soon as it has printed TEXT; that is success."
)
@click.option(
    "--seed",
    type=int,
    metavar="N",
    help="Repeat exactly: threads take turns drawn from N, on a virtual clock. Only on accelerators that can, such as "
    "mock.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; the console's text is inside.")
@click.option("-q", "--quiet", is_flag=True, help="No report if the run went well.")
@click.option("--guest-status", is_flag=True, help="Exit with the guest's status if nothing else went wrong.")
@click.option("--save", metavar="FILE.toml", help="Write what the flags mean as a workload file, then run it.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Run nothing: print the calls that the memory of the guest would make, at the start and by the changes of a "
    "workload. Works on every host, for accelerators that can tell, such as hvf.",
)
def command(**flags: Any) -> int:
    """Run a guest image, or a workload file (its name ends in .toml).

    Flags come before what a workload file says. An image gets the usual devices: a serial port at 0x3f8 and debug
    consoles at 0xe9 and 0x402, all printing on standard output; debug exit at 0xf4; CMOS at 0x70. The guest's bytes go
    to standard output as they are, the report to standard error.

    A terminal on standard input is the serial line: keys go to the guest as they are typed. Ctrl-A x ends the run,
    Ctrl-A c sends Ctrl-C to the guest, Ctrl-A Ctrl-A sends Ctrl-A. Ctrl-C interrupts the run (exit code 130).
    """
    from accel.cli.flags import Flags, build_workload
    from accel.cli.runner import run_and_report

    given = Flags(**flags)
    if given.dry_run:
        from accel.cli.dry_run import run_dry

        return run_dry(given)
    if given.seed is not None:
        from accel.cli.repeat import run_with_seed

        return run_with_seed(given, given.seed)
    workload: Workload = build_workload(given)
    return run_and_report(workload, given)

"""From the flags of ``accelctl run`` to a workload, and from that to a file for ``--save``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from accel.arch.x86 import BootMode
from accel.errors import UsageError
from accel.plugins import find_accelerator, parse_accelerators
from accel.workload.schema import (
    Accelerators,
    Address,
    Count,
    DeviceSpec,
    Duration,
    FilePath,
    ImageSpec,
    Size,
    Workload,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from accel.memory.backing import Backing

#: What an image runs with; a workload file lists its devices itself.
IMAGE_DEVICES = (
    DeviceSpec("serial", {"port": 0x3F8}),
    DeviceSpec("debug-console", {"port": 0xE9}),
    DeviceSpec("debug-console", {"port": 0x402}),
    DeviceSpec("debug-exit", {"port": 0xF4}),
    DeviceSpec("cmos", {"port": 0x70}),
)
_STDIN = "-"


@frozen(kw_only=True)
class Flags:
    """The flags as click gives them; None means not given."""

    target: str | None = None
    accel: str | None = None
    memory: int | None = None
    memory_backing: Mapping[str, Backing] = {}
    cpus: int | None = None
    irqchip: bool | None = None
    firmware: str | None = None
    load_address: int | None = None
    entry: int | None = None
    mode: str | None = None
    loader: str | None = None
    options: Mapping[str, Mapping[str, str]] = {}
    input_name: str | None = None
    timeout: float | None = None
    until: str | None = None
    seed: int | None = None
    as_json: bool = False
    quiet: bool = False
    guest_status: bool = False
    save: str | None = None
    dry_run: bool = False

    @property
    def reads_stdin(self) -> bool:
        """Whether standard input is fed to the guest as it is."""
        return self.input_name == _STDIN


def is_workload_file(name: str) -> bool:
    """Return whether `name` is the name of a workload file."""
    return name.lower().endswith(".toml")


def build_workload(flags: Flags) -> Workload:
    """Return what to run; a workload file is read, an image is not yet.

    Raises:
        UsageError: The flags contradict each other.
        WorkloadError: The workload file cannot be used.
    """
    if flags.target is None and flags.firmware is None:
        raise UsageError(
            "nothing to run: name an image or a workload file, or --firmware FILE; see accelctl run --help"
        )
    if flags.target is not None and is_workload_file(flags.target):
        from accel.workload.parse import parse_file

        workload = parse_file(flags.target)
    else:
        image = ImageSpec(
            path=None if flags.target is None else _path(flags.target),
            firmware=None if flags.firmware is None else _path(flags.firmware),
        )
        workload = Workload(image=image, devices=IMAGE_DEVICES)
    workload = _overridden(workload, flags)
    if flags.save is not None:
        _save(workload, flags)
    return workload


def _path(name: str) -> FilePath:
    return FilePath(Path(name))


def _overridden(workload: Workload, flags: Flags) -> Workload:
    """Return `workload` with what the flags say in the place of what it says."""
    machine = evolve(
        workload.machine,
        **_given(
            accelerators=None if flags.accel is None else Accelerators(parse_accelerators(flags.accel)),
            memory=None if flags.memory is None else Size(flags.memory),
            cpus=None if flags.cpus is None else Count(flags.cpus),
            irqchip=flags.irqchip,
        ),
    )
    image = evolve(
        workload.image,
        **_given(
            firmware=None if flags.firmware is None else _path(flags.firmware),
            load_address=None if flags.load_address is None else Address(flags.load_address),
            entry=None if flags.entry is None else Address(flags.entry),
            mode=None if flags.mode is None else BootMode(flags.mode),
            loader=flags.loader,
        ),
    )
    run = workload.run
    if flags.timeout is not None:
        run = evolve(run, timeout=Duration(max(1, round(flags.timeout * 1e6))))
    if flags.until is not None:
        run = evolve(run, until=flags.until)
    if flags.input_name is not None:
        run = evolve(run, input=None, input_file=None if flags.reads_stdin else _path(flags.input_name))
    options = _merged(workload.accelerator_options, flags.options, machine.accelerators)
    changed = evolve(workload, machine=machine, image=image, run=run, accelerator_options=options)
    if flags.memory_backing:
        from accel.cli.memory_backing import with_backings

        changed = with_backings(changed, flags.memory_backing)
    return changed


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _merged(
    options: Mapping[str, Mapping[str, object]],
    flags: Mapping[str, Mapping[str, str]],
    accelerators: Iterable[str],
) -> dict[str, Mapping[str, object]]:
    merged = {name: dict(given) for name, given in options.items()}
    for name, given in flags.items():
        find_accelerator(name)
        if name not in accelerators:
            raise UsageError(f"-o {name}.{next(iter(given))}: the accelerators asked for are {', '.join(accelerators)}")
        merged.setdefault(name, {}).update(given)
    return dict(merged)


def _save(workload: Workload, flags: Flags) -> None:
    from accel.workload.dump import dump_workload

    path = Path(str(flags.save))
    if not is_workload_file(path.name):
        raise UsageError(f"--save {path}: a workload file's name ends in .toml, by which run knows it")
    if flags.reads_stdin:
        raise UsageError("--save cannot put standard input into a file; use --input FILE")
    try:
        path.write_text(dump_workload(workload, path.parent))
    except OSError as error:
        raise UsageError(f"--save {path}: {os.strerror(error.errno or 0)}") from error

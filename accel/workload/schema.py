"""What a workload file says, as values: one class for each of its tables.

One schema for everything that runs guests (run, stress, explore). It holds no code and reads no file: `parse`
makes these values from TOML, `dump` writes them, `session` runs them. Each class checks what its own fields mean
together; `check` does that across tables. ``docs/reference/workload-file.md`` describes every field.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NewType

from attrs import Factory, frozen

from accel.arch.x86 import BootMode
from accel.errors import WorkloadError
from accel.memory.backing import Backing
from accel.plugins import default_accelerators
from accel.program import GuestProgram
from accel.result import Outcome

#: The number after ``format =``; it changes when a file of before would mean something else.
FORMAT = 1

#: Bytes; written as 4096, 0x1000 or "64M".
Size = NewType("Size", int)
#: A guest-physical address or an offset in bytes.
Address = NewType("Address", int)
#: Microseconds; written as "5ms".
Duration = NewType("Duration", int)
#: A whole number from 1 up.
Count = NewType("Count", int)
#: A number from 0 to 255.
Byte = NewType("Byte", int)
#: A rank among siblings: a signed number of 32 bits.
Priority = NewType("Priority", int)
#: A file; a workload file's own are relative to its folder, and absolute here once they are known to lie in it.
FilePath = NewType("FilePath", Path)
#: Names of accelerators, in order of preference; written as a list or as "kvm,mock".
Accelerators = NewType("Accelerators", tuple[str, ...])
#: One text or several; written as text or as a list.
Texts = NewType("Texts", tuple[str, ...])

#: Bytes of the longest text that a guest can be run until it prints.
LONGEST_UNTIL = 1024
#: The machine's own RAM, where a region is named.
MACHINE_RAM = "ram"

RegionKind = Literal["ram", "rom", "alias", "container"]
Action = Literal[
    "resize",
    "move",
    "priority",
    "retarget",
    "replace",
    "split",
    "merge",
    "enable",
    "disable",
    "readonly",
    "writable",
    "add",
    "remove",
]


def _problem(field: str, value: object, problem: str) -> WorkloadError:
    """Return the error about a field of the table at hand; the parser puts file and table in front."""
    return WorkloadError("workload", field, value, problem)


@frozen
class MachineSpec:
    """``[machine]``.

    Attributes:
        accelerators: Which to try, in order; by default all that are installed, the preferred first.
        memory: Bytes of RAM.
        cpus: Number of vCPUs.
        irqchip: Interrupt controllers; None has them if there is firmware.
        pit: Interval timer; None has it if there are interrupt controllers.
        backing: What host memory the RAM is made of; anonymous memory where it is None. Files may be given here,
            but no workload file can.
    """

    accelerators: Accelerators = Factory(lambda: Accelerators(default_accelerators()))
    memory: Size = Size(64 << 20)
    cpus: Count = Count(1)
    irqchip: bool | None = None
    pit: bool | None = None
    backing: Backing | None = None


@frozen
class ImageSpec:
    """``[image]``: what runs. A path or a program, and firmware in front of it or alone."""

    path: FilePath | None = None
    program: GuestProgram | None = None
    firmware: FilePath | None = None
    load_address: Address | None = None
    entry: Address | None = None
    mode: BootMode | None = None
    loader: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.path is not None and self.program is not None:
            raise _problem("program", None, "there is a path too; run one of them")
        if self.firmware is not None and self.program is not None:
            raise _problem("firmware", None, "a program starts without firmware; leave one of them out")
        if self.path is None:
            for name in ("load_address", "entry", "mode", "loader"):
                value = getattr(self, name)
                if value is not None:
                    raise _problem(name, value, "only an image with a path has one")


@frozen
class DeviceSpec:
    """``[[device]]``: a type and its options as they were given."""

    type: str
    options: Mapping[str, object] = Factory(dict)


#: The kinds of region that have a field; those that are not here all have.
_OF_KINDS = {
    "max_size": ("ram",),
    "backing": ("ram",),
    "contents": ("ram", "rom"),
    "fill": ("ram", "rom"),
    "target": ("alias",),
    "offset": ("alias",),
}


@frozen
class RegionSpec:
    """``[[region]]``: a memory region beside the machine's RAM.

    Attributes:
        at: Where it stands in its parent; None leaves it out until a change adds it.
        parent: The region that it stands in, or ``ram``, the machine's own; None is the address space itself.
        size: Bytes; None takes them from the contents, or from an alias's target.
        nonvolatile: Whether memory here and below outlives power-off; listeners are told.
        unmergeable: Whether ranges here and below stay apart from equal neighbours.
        target: What an alias shows: another region, or ``ram``, the machine's own.
        offset: Where in the target an alias begins.
        backing: As in `MachineSpec`.
    """

    name: str
    kind: RegionKind = "ram"
    at: Address | None = None
    parent: str | None = None
    size: Size | None = None
    max_size: Size | None = None
    priority: Priority = Priority(0)
    enabled: bool = True
    readonly: bool = False
    nonvolatile: bool = False
    unmergeable: bool = False
    contents: FilePath | None = None
    fill: Byte | None = None
    target: str | None = None
    offset: Address | None = None
    backing: Backing | None = None

    def __attrs_post_init__(self) -> None:
        if not self.name or self.name == MACHINE_RAM:
            raise _problem("name", self.name, "must be another one; 'ram' is the machine's own RAM")
        if "\0" in self.name:
            raise _problem("name", self.name, "holds a NUL, which no name on the host can; leave it out")
        for name, kinds in _OF_KINDS.items():
            value = getattr(self, name)
            if value is not None and self.kind not in kinds:
                shown = value.kind if isinstance(value, Backing) else value
                raise _problem(name, shown, f"a region of kind {self.kind} has none")
        if self.kind == "alias":
            if self.target is None:
                raise _problem("target", None, "is missing: the name of the region that the alias shows, or 'ram'")
        elif self.size is None and self.contents is None:
            raise _problem("size", None, 'is missing, such as size = "1M"')
        if self.max_size is not None and self.size is not None and self.max_size < self.size:
            raise _problem("max_size", self.max_size, f"must be at least the size, {self.size:#x}")


_NEEDED = {"resize": "size", "move": "at", "priority": "priority", "retarget": "offset"}
_ALLOWED = {
    "resize": ("size",),
    "move": ("at",),
    "add": ("at",),
    "split": ("size",),
    "priority": ("priority",),
    "retarget": ("offset",),
}


@frozen
class ChangeSpec:
    """``[[change]]``: an edit of the memory map while the guest runs.

    With `every`, it alternates between what `do` asks for and the region as the file describes it.

    Attributes:
        after: Microseconds from the start to the first time; `every` where it is None.
        every: Microseconds from one time to the next; None does it once.
        times: How many times at most.
        atomic: ``map`` holds the vCPUs for each change, whatever it is.
    """

    region: str
    do: Action
    every: Duration | None = None
    after: Duration | None = None
    times: Count | None = None
    size: Size | None = None
    at: Address | None = None
    priority: Priority | None = None
    offset: Address | None = None
    atomic: Literal["address", "map"] = "address"

    def __attrs_post_init__(self) -> None:
        if self.every is None and self.after is None:
            raise _problem("every", None, 'is missing: say when, with every = "5ms" or after = "1s"')
        if self.every is None and self.times is not None:
            raise _problem("times", self.times, "goes with every; after alone is once")
        if self.every is not None and self.do == "merge":
            raise _problem("do", self.do, "undoes a split; use split, which with every merges again by itself")
        needed = _NEEDED.get(self.do)
        if needed is not None and getattr(self, needed) is None:
            raise _problem(needed, None, f"is missing; {self.do} needs it")
        for name in ("size", "at", "priority", "offset"):
            if getattr(self, name) is not None and name not in _ALLOWED.get(self.do, ()):
                raise _problem(name, getattr(self, name), f"means nothing for {self.do}; leave it out")


@frozen
class ExpectSpec:
    """``[expect]``: what must be true of the run; what is None or empty is not judged."""

    outcome: Outcome | None = None
    exit_status: int | None = None
    console_contains: Texts = Texts(())
    console_exact: str | None = None
    accelerator: str | None = None
    spurious_faults: int | None = None
    min_spurious_faults: int | None = None
    min_changes: int | None = None


@frozen
class RunSpec:
    """``[run]``: how long, and what comes in over the serial line.

    Attributes:
        timeout: Microseconds after which the guest is stopped.
        until: Text that the guest is run until it prints.
        input: Text for the first serial device.
        input_file: A file for it.
    """

    timeout: Duration | None = None
    until: str | None = None
    input: str | None = None
    input_file: FilePath | None = None

    def __attrs_post_init__(self) -> None:
        if self.input is not None and self.input_file is not None:
            raise _problem("input_file", None, "there is an input too; leave one of them out")
        if self.until is not None:
            length = len(self.until.encode(errors="surrogateescape"))
            if not 0 < length <= LONGEST_UNTIL:
                raise _problem("until", self.until, f"has {length:,} bytes; it must have 1 to {LONGEST_UNTIL:,}")


@frozen
class Workload:
    """A whole file; the attribute of a list of tables is the plural of the table's name.

    Attributes:
        accelerator_options: ``[accelerator.NAME]``: options by accelerator name.
    """

    machine: MachineSpec = Factory(MachineSpec)
    image: ImageSpec = ImageSpec()
    accelerator_options: Mapping[str, Mapping[str, object]] = Factory(dict)
    devices: tuple[DeviceSpec, ...] = ()
    regions: tuple[RegionSpec, ...] = ()
    changes: tuple[ChangeSpec, ...] = ()
    run: RunSpec = RunSpec()
    expect: ExpectSpec = ExpectSpec()


#: Attribute of `Workload` → its name in TOML, where they differ.
TABLE_NAMES = {
    "accelerator_options": "accelerator",
    "devices": "device",
    "regions": "region",
    "changes": "change",
}

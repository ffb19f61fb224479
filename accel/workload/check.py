"""Whether a workload makes sense as a whole: names that refer to each other, and what plugins declare.

Layer: above `schema` and the plugin manager. Errors are about fields of the whole file (``change[0].region``) and
carry no file name; `parse` adds it.
"""

from __future__ import annotations

from collections.abc import Mapping

from accel.address import ADDRESS_SPACE_SIZE, format_size
from accel.arch.x86 import ram_layout
from accel.errors import AddressError, OptionError, UsageError, WorkloadError
from accel.options import nearest, parse_options
from accel.plugins import check_options, find_accelerator, plugin_manager
from accel.workload.nesting import check_nesting
from accel.workload.schema import MACHINE_RAM, ChangeSpec, RegionSpec, Workload


def check(workload: Workload) -> None:
    """Raise WorkloadError or OptionError, with the field as its place, if something does not fit together."""
    if workload.image.path is None and workload.image.program is None and workload.image.firmware is None:
        raise _problem("image", None, "nothing to run; give it a path, a program or firmware")
    try:
        ram_layout(workload.machine.memory)
    except AddressError as error:
        raise _problem("machine.memory", workload.machine.memory, str(error)) from error
    if workload.machine.pit and workload.machine.irqchip is False:
        raise _problem("machine.pit", True, "needs the interrupt controllers; set irqchip = true")
    _check_accelerators(workload)
    _check_devices(workload)
    regions = _check_regions(workload.regions)
    for index, change in enumerate(workload.changes):
        _check_change(f"change[{index}]", change, regions)


def _problem(field: str, value: object, problem: str) -> WorkloadError:
    return WorkloadError("workload", field, value, problem)


def _check_accelerators(workload: Workload) -> None:
    for name in workload.machine.accelerators:
        try:
            find_accelerator(name)
        except UsageError as error:
            raise _problem("machine.accelerators", name, str(error)) from error
    for name, options in workload.accelerator_options.items():
        try:
            check_options(name, options)
        except OptionError:
            raise
        except UsageError as error:
            raise _problem(f"accelerator.{name}", None, str(error)) from error
    wanted = workload.expect.accelerator
    if wanted is not None and wanted not in workload.machine.accelerators:
        advice = nearest(wanted, workload.machine.accelerators)
        raise _problem("expect.accelerator", wanted, f"is not in machine.accelerators; {advice}")


def _check_devices(workload: Workload) -> None:
    known = plugin_manager().devices()
    for index, device in enumerate(workload.devices):
        place = f"device[{index}]"
        if device.type not in known:
            raise _problem(f"{place}.type", device.type, f"no such device; {nearest(device.type, known)}")
        try:
            parse_options(place, known[device.type].options, device.options)
        except OptionError as error:
            raise _problem(f"{place}.{error.option}", error.value, error.problem) from error


def _check_regions(specs: tuple[RegionSpec, ...]) -> dict[str, RegionSpec]:
    regions: dict[str, RegionSpec] = {}
    sizes: dict[str, int | None] = {MACHINE_RAM: None}
    for index, spec in enumerate(specs):
        place = f"region[{index}]"
        if spec.name in regions:
            raise _problem(f"{place}.name", spec.name, "is the name of another region too")
        # Only what stands above it, as it is made in this order.
        for field, name in (("target", spec.target), ("parent", spec.parent)):
            if name is not None and name != MACHINE_RAM and name not in regions:
                advice = nearest(name, [*regions, MACHINE_RAM])
                raise _problem(f"{place}.{field}", name, f"no such region above this one; {advice}")
        if spec.parent in regions and regions[spec.parent].kind == "alias":
            shown = regions[spec.parent].target
            raise _problem(f"{place}.parent", spec.parent, f"is an alias, which holds nothing itself; use '{shown}'")
        sizes[spec.name] = _check_place(place, spec, sizes)
        regions[spec.name] = spec
    check_nesting(specs)
    return regions


def _check_place(place: str, spec: RegionSpec, sizes: Mapping[str, int | None]) -> int | None:
    """Return the size of a region, as far as the file tells, having checked that it has one and ends by 2^64."""
    size: int | None = spec.size
    target = None if spec.target is None else sizes[spec.target]
    if size is None and target is not None:
        size = target - (spec.offset or 0)
        if size <= 0:
            raise _problem(f"{place}.offset", spec.offset, f"is beyond '{spec.target}' of size {target:#x}")
    if size is not None and spec.at is not None and spec.at + size > ADDRESS_SPACE_SIZE:
        raise _problem(f"{place}.at", spec.at, f"is too high for size {size:#x}, which ends beyond 2^64")
    return size


def _check_change(place: str, change: ChangeSpec, regions: dict[str, RegionSpec]) -> None:
    if change.region not in regions:
        raise _problem(f"{place}.region", change.region, f"no such region; {nearest(change.region, regions)}")
    region = regions[change.region]
    if change.do in ("readonly", "writable") and region.kind == "rom":
        raise _problem(f"{place}.do", change.do, f"'{region.name}' is ROM, which stays read-only; use kind = \"ram\"")
    if change.do == "retarget" and region.kind != "alias":
        raise _problem(
            f"{place}.do", change.do, f"'{region.name}' is of kind {region.kind}; only an alias shows a part of another"
        )
    if change.do == "add" and change.at is None and region.at is None:
        raise _problem(f"{place}.at", None, f"is missing; '{region.name}' has no place of its own")
    if change.do == "resize" and region.kind in ("ram", "rom"):
        limit = region.max_size or region.size
        if limit is not None and change.size is not None and change.size > limit:
            raise _problem(
                f"{place}.size",
                change.size,
                f"is more than '{region.name}' can have, {format_size(limit)}; give the region a larger max_size",
            )

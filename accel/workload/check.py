"""Whether a workload makes sense as a whole: names that refer to each other, and what plugins declare.

Layer: above `schema` and the plugin manager. Errors are about fields of the whole file (``change[0].region``) and
carry no file name; `parse` adds it.
"""

from __future__ import annotations

from accel.address import format_size
from accel.arch.x86 import ram_layout
from accel.errors import AddressError, OptionError, UsageError, WorkloadError
from accel.options import nearest, parse_options
from accel.plugins import check_options, find_accelerator, plugin_manager
from accel.workload.schema import ChangeSpec, RegionSpec, Workload

#: The name by which an alias shows the machine's own RAM.
MACHINE_RAM = "ram"


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
    for index, spec in enumerate(specs):
        if spec.name in regions:
            raise _problem(f"region[{index}].name", spec.name, "is the name of another region too")
        # Only what stands above it, so that aliases cannot show each other in a circle.
        if spec.target is not None and spec.target != MACHINE_RAM and spec.target not in regions:
            advice = nearest(spec.target, [*regions, MACHINE_RAM])
            raise _problem(f"region[{index}].target", spec.target, f"no such region above this one; {advice}")
        regions[spec.name] = spec
    return regions


def _check_change(place: str, change: ChangeSpec, regions: dict[str, RegionSpec]) -> None:
    if change.region not in regions:
        raise _problem(f"{place}.region", change.region, f"no such region; {nearest(change.region, regions)}")
    region = regions[change.region]
    if change.do in ("readonly", "writable") and region.kind == "rom":
        raise _problem(f"{place}.do", change.do, f"'{region.name}' is ROM, which stays read-only; use kind = \"ram\"")
    if change.do == "add" and change.at is None and region.at is None:
        raise _problem(f"{place}.at", None, f"is missing; '{region.name}' has no place of its own")
    if change.do == "resize" and region.kind != "alias":
        limit = region.max_size or region.size
        if limit is not None and change.size is not None and change.size > limit:
            raise _problem(
                f"{place}.size",
                change.size,
                f"is more than '{region.name}' can have, {format_size(limit)}; give the region a larger max_size",
            )

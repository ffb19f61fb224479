"""Regions inside regions: what contains itself is refused as the core would refuse it, and what unfolds is bounded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from accel.errors import RegionError, WorkloadError
from accel.memory.region import MemoryRegion
from accel.workload.nesting import MAX_LEVELS, MAX_PLACES, check_nesting
from accel.workload.schema import Address, RegionSpec, Size

PAGE = Size(4096)


@st.composite
def trees(draw: st.DrawFn) -> list[RegionSpec]:
    """Regions with parents and targets above them, or the machine's RAM."""
    specs: list[RegionSpec] = []
    for number in range(draw(st.integers(1, 8))):
        above = ["ram", *(spec.name for spec in specs)]
        holders = ["ram", *(spec.name for spec in specs if spec.kind == "container")]
        kind = draw(st.sampled_from(["container", "container", "alias", "alias", "ram"]))
        specs.append(
            RegionSpec(
                f"r{number}",
                kind=kind,  # type: ignore[arg-type]
                size=PAGE,
                parent=draw(st.none() | st.sampled_from(holders)),
                target=draw(st.sampled_from(above)) if kind == "alias" else None,
            )
        )
    return specs


def core_refuses(specs: list[RegionSpec]) -> str | None:
    """Return the region that the core does not add, building the tree as the file says it."""
    regions = {"ram": MemoryRegion.container("ram", PAGE)}
    for spec in specs:
        if spec.target is None:
            regions[spec.name] = MemoryRegion.container(spec.name, PAGE)
        else:
            regions[spec.name] = MemoryRegion.alias(spec.name, regions[spec.target], 0, PAGE)
        if spec.parent is not None:
            try:
                regions[spec.parent].add(regions[spec.name], 0)
            except RegionError as error:
                assert "contains" in str(error)
                return spec.name
    return None


@settings(max_examples=400, deadline=None)
@given(trees())
def test_check_nesting_refuses_the_circles_that_the_core_refuses(specs: list[RegionSpec]) -> None:
    refused = core_refuses(specs)
    if refused is None:
        check_nesting(specs)
        return
    with pytest.raises(WorkloadError, match="would contain itself") as caught:
        check_nesting(specs[: int(refused[1:]) + 1])
    assert caught.value.field == f"region[{refused[1:]}].parent"
    with pytest.raises(WorkloadError, match="would contain itself"):
        check_nesting(specs)


def walk(name: str, specs: list[RegionSpec], level: int = 1) -> Iterator[int]:
    """Yield the level of each place under `name`, one by one."""
    yield level
    for spec in specs:
        if (spec.parent or "") == name:
            yield from walk(spec.name, specs, level + 1)
        if spec.name == name and spec.target is not None:
            yield from walk(spec.target, specs, level + 1)
    if name == "":
        yield from walk("ram", specs, level + 1)


@settings(max_examples=200, deadline=None)
@given(trees(), st.sampled_from(["MAX_LEVELS", "MAX_PLACES"]), st.data())
def test_check_nesting_counts_as_walking_every_place_does(
    specs: list[RegionSpec], limit: str, data: st.DataObject
) -> None:
    assume(core_refuses(specs) is None)
    levels = list(walk("", specs))
    found = max(levels) if limit == "MAX_LEVELS" else len(levels)
    allowed = data.draw(st.integers(max(found - 2, 1), found + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"accel.workload.nesting.{limit}", allowed)
        if found <= allowed:
            check_nesting(specs)
        else:
            with pytest.raises(WorkloadError, match=f"unfolds into more than {allowed} "):
                check_nesting(specs)


def test_check_nesting_too_deep_names_the_region() -> None:
    specs = [RegionSpec("top", kind="container", size=PAGE)]
    for number in range(MAX_LEVELS):
        specs.append(RegionSpec(f"r{number}", kind="container", size=PAGE, parent=specs[-1].name))
    with pytest.raises(WorkloadError, match=r"region\[0\]\.name = 'top': unfolds into more than 64 levels"):
        check_nesting(specs)
    check_nesting(specs[: MAX_LEVELS - 1])


def test_check_nesting_aliases_that_multiply_are_refused_at_once() -> None:
    specs = [RegionSpec("r0", size=PAGE)]
    for number in range(1, MAX_LEVELS // 3):
        specs.append(RegionSpec(f"r{number}", kind="container", size=PAGE))
        for side in "ab":
            specs.append(
                RegionSpec(
                    f"{side}{number}",
                    kind="alias",
                    size=PAGE,
                    target=f"r{number - 1}",
                    parent=f"r{number}",
                    at=Address(0),
                )
            )
    with pytest.raises(WorkloadError, match=rf"unfolds into more than {MAX_PLACES} places") as caught:
        check_nesting(specs)
    assert caught.value.value == "r15"


def test_check_nesting_many_that_are_each_small_enough_are_too_many_together() -> None:
    specs = [RegionSpec("bank", kind="container", size=PAGE)]
    specs += [RegionSpec(f"r{number}", size=PAGE, parent="bank") for number in range(500)]
    specs += [RegionSpec(f"a{number}", kind="alias", target="bank", size=PAGE) for number in range(500)]
    with pytest.raises(WorkloadError, match="workload: region: unfolds into more than 65536 places"):
        check_nesting(specs)

"""Regions of a workload: how they are made, and what each change makes of them; on the mock, nothing runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.errors import AddressError, ImageError, RegionError
from accel.machine import Machine
from accel.memory.backing import Backing
from accel.workload.changes import Changes, asked
from accel.workload.regions import Mount, mount_regions
from accel.workload.schema import (
    Action,
    Address,
    Byte,
    ChangeSpec,
    Count,
    Duration,
    FilePath,
    Priority,
    RegionSpec,
    Size,
)

AT = Address(0x1000_0000)
ELSEWHERE = Address(0x2000_0000)
PAGE = Size(4096)
SOON = Duration(1)
EXTRA = RegionSpec("extra", at=AT, size=Size(4 * PAGE), max_size=Size(8 * PAGE))


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine.create("mock", memory="1M") as created:
        yield created


def shown(machine: Machine) -> list[tuple[int, int, bool]]:
    """Return `(start, size, readonly)` of each section above the machine's own RAM."""
    view = machine.memory.view
    return [(one.range.start, one.range.size, one.readonly) for one in view if one.range.start >= 1 << 20]


def mounted(machine: Machine, spec: RegionSpec = EXTRA) -> Mount:
    return mount_regions(machine, [spec])[spec.name]


def make(machine: Machine, mount: Mount, *specs: ChangeSpec) -> int:
    """Make the changes in this thread and return how many were made."""
    changes = Changes(machine, specs, {mount.name: mount})
    changes.work()
    return changes.made


# making regions


def test_mount_regions_ram_is_zero_and_writable(machine: Machine) -> None:
    mounted(machine)
    assert shown(machine) == [(AT, 4 * PAGE, False)]
    assert machine.memory.read(AT, 8) == bytes(8)


def test_mount_regions_contents_then_fill(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"abc")
    contents = FilePath(tmp_path / "data")
    mounted(machine, RegionSpec("r", at=AT, size=PAGE, contents=contents, fill=Byte(0xAA)))
    assert machine.memory.read(AT, 5) == b"abc\xaa\xaa"
    assert machine.memory.read(AT + PAGE - 1, 1) == b"\xaa"


def test_mount_regions_rom_takes_its_size_from_the_contents(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(5000))
    mounted(machine, RegionSpec("r", kind="rom", at=AT, contents=FilePath(tmp_path / "data")))
    assert shown(machine) == [(AT, 8192, True)]


def test_mount_regions_contents_too_large_are_refused(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(5000))
    with pytest.raises(RegionError, match="0x1388 bytes of contents do not fit into size 0x1000"):
        mounted(machine, RegionSpec("r", at=AT, size=PAGE, contents=FilePath(tmp_path / "data")))
    assert shown(machine) == []


def test_mount_regions_contents_missing_names_the_file(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nothere: no such file"):
        mounted(machine, RegionSpec("r", at=AT, contents=FilePath(tmp_path / "nothere")))


def test_mount_regions_alias_shows_the_machines_ram(machine: Machine) -> None:
    machine.memory.write(0x5000, b"here")
    mounted(machine, RegionSpec("r", kind="alias", target="ram", offset=Address(0x5000), size=PAGE, at=AT))
    assert machine.memory.read(AT, 4) == b"here"


def test_mount_regions_alias_shows_a_region_that_stands_nowhere(machine: Machine) -> None:
    mounts = mount_regions(
        machine,
        [RegionSpec("hidden", size=PAGE, fill=Byte(7)), RegionSpec("r", kind="alias", target="hidden", at=AT)],
    )
    assert machine.memory.read(AT, 1) == b"\x07"
    assert mounts["hidden"].state.at is None


def test_mount_regions_priority_and_enabled_and_readonly(machine: Machine) -> None:
    mount_regions(
        machine,
        [
            RegionSpec("below", at=AT, size=PAGE, fill=Byte(1)),
            RegionSpec("above", at=AT, size=PAGE, fill=Byte(2), priority=Priority(1), readonly=True),
            RegionSpec("off", at=AT, size=PAGE, fill=Byte(3), priority=Priority(2), enabled=False),
        ],
    )
    assert machine.memory.read(AT, 1) == b"\x02"
    assert shown(machine) == [(AT, PAGE, True)]


def test_mount_regions_more_than_the_host_has_is_refused(machine: Machine) -> None:
    huge = [RegionSpec(f"r{number}", at=AT, size=Size(1 << 40)) for number in range(64)]
    with pytest.raises(AddressError, match="are more than this host has"):
        mount_regions(machine, huge)


def test_mount_regions_backing_is_what_the_memory_is_made_of(machine: Machine) -> None:
    mount = mounted(machine, evolve(EXTRA, backing=Backing.memfd(prefault=True)))
    block = mount.region.block
    assert block is not None
    assert (block.backing.kind, block.max_size) == ("memfd", 8 * PAGE)
    assert block.resident_bytes() == 4 * PAGE
    machine.memory.write(AT, b"seen")
    with os.fdopen(os.dup(block.fd), "rb") as file:
        assert file.read(4) == b"seen"


def test_mount_regions_backing_that_the_host_lacks_is_refused(machine: Machine) -> None:
    with pytest.raises(AddressError, match="RAM 'extra': this kernel knows huge pages of"):
        mounted(machine, evolve(EXTRA, backing=Backing.anonymous(huge_pages="1T")))
    assert shown(machine) == []


def test_mount_regions_file_that_is_readonly_is_rom_to_the_guest(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"data" * (2 * PAGE))
    mount = mounted(machine, evolve(EXTRA, backing=Backing.file(tmp_path / "data", readonly=True)))
    assert shown(machine) == [(AT, 4 * PAGE, True)]
    assert machine.memory.read(AT, 4) == b"data"
    make(machine, mount, ChangeSpec("extra", "disable", every=SOON, times=Count(2)))
    assert shown(machine) == [(AT, 4 * PAGE, True)]


# trees


def test_mount_regions_child_stands_at_its_offset_and_ends_with_its_parent(machine: Machine) -> None:
    mount_regions(
        machine,
        [
            RegionSpec("bank", kind="container", at=AT, size=Size(2 * PAGE)),
            RegionSpec("inner", parent="bank", at=Address(PAGE), size=Size(4 * PAGE)),
        ],
    )
    assert shown(machine) == [(AT + PAGE, PAGE, False)]


def test_mount_regions_child_of_ram_lies_over_it(machine: Machine) -> None:
    mounts = mount_regions(
        machine,
        [
            RegionSpec("inner", parent="ram", at=Address(PAGE), size=PAGE, fill=Byte(7)),
            RegionSpec("again", kind="alias", target="ram", at=AT, size=Size(2 * PAGE)),
        ],
    )
    assert machine.memory.read(PAGE - 1, 3) == b"\x00\x07\x07"
    assert machine.memory.read(AT + PAGE, 1) == b"\x07"
    assert mounts["inner"].region.parent is machine.ram


def test_mount_regions_parent_gives_its_flags_to_what_is_in_it(machine: Machine) -> None:
    mount_regions(
        machine,
        [
            RegionSpec(
                "bank", kind="container", at=AT, size=Size(4 * PAGE), readonly=True, nonvolatile=True, unmergeable=True
            ),
            RegionSpec("inner", parent="bank", at=Address(0), size=PAGE),
        ],
    )
    section = machine.memory.view.find(AT)
    assert section is not None
    assert (section.readonly, section.nonvolatile, section.unmergeable) == (True, True, True)


@pytest.mark.parametrize("kind", ["ram", "rom", "alias"])
def test_mount_regions_flags_of_each_kind(machine: Machine, kind: str) -> None:
    target = "ram" if kind == "alias" else None
    spec = RegionSpec("r", kind=kind, at=AT, size=PAGE, target=target, unmergeable=True, nonvolatile=True)  # type: ignore[arg-type]
    mounted(machine, spec)
    section = machine.memory.view.find(AT)
    assert section is not None
    assert (section.readonly, section.nonvolatile, section.unmergeable) == (kind == "rom", True, True)


def test_mount_regions_alias_of_a_container_shows_what_is_in_it(machine: Machine) -> None:
    mount_regions(
        machine,
        [
            RegionSpec("bank", kind="container", size=Size(4 * PAGE)),
            RegionSpec("inner", parent="bank", at=Address(2 * PAGE), size=PAGE, fill=Byte(9)),
            RegionSpec("window", kind="alias", target="bank", offset=Address(PAGE), at=AT),
        ],
    )
    assert shown(machine) == [(AT + PAGE, PAGE, False)]
    assert machine.memory.read(AT + PAGE, 1) == b"\x09"


# single changes

ONCE: list[tuple[ChangeSpec, list[tuple[int, int, bool]]]] = [
    (ChangeSpec("extra", "resize", after=SOON, size=Size(8 * PAGE)), [(AT, 8 * PAGE, False)]),
    (ChangeSpec("extra", "move", after=SOON, at=ELSEWHERE), [(ELSEWHERE, 4 * PAGE, False)]),
    (ChangeSpec("extra", "replace", after=SOON), [(AT, 4 * PAGE, False)]),
    (ChangeSpec("extra", "split", after=SOON), [(AT, 2 * PAGE, False), (AT + 2 * PAGE, 2 * PAGE, False)]),
    (ChangeSpec("extra", "split", after=SOON, size=PAGE), [(AT, PAGE, False), (AT + PAGE, 3 * PAGE, False)]),
    (ChangeSpec("extra", "disable", after=SOON), []),
    (ChangeSpec("extra", "readonly", after=SOON), [(AT, 4 * PAGE, True)]),
    (ChangeSpec("extra", "remove", after=SOON), []),
    (ChangeSpec("extra", "priority", after=SOON, priority=Priority(-1)), [(AT, 4 * PAGE, False)]),
]


@pytest.mark.parametrize(("spec", "after"), ONCE, ids=lambda value: getattr(value, "do", ""))
def test_change_after_does_what_it_says(machine: Machine, spec: ChangeSpec, after: list[tuple[int, int, bool]]) -> None:
    mount = mounted(machine)
    machine.memory.write(AT, b"kept")
    assert make(machine, mount, spec) == 1
    assert shown(machine) == after
    if after:
        assert machine.memory.read(after[0][0], 4) == b"kept"


@pytest.mark.parametrize(("spec", "after"), ONCE, ids=lambda value: getattr(value, "do", ""))
def test_change_every_alternates_with_the_regions_own_state(
    machine: Machine, spec: ChangeSpec, after: list[tuple[int, int, bool]]
) -> None:
    mount = mounted(machine)
    own = shown(machine)
    odd = evolve(spec, after=None, every=SOON, times=Count(3))
    assert make(machine, mount, odd) == 3
    assert shown(machine) == after
    mount.become(mount.own)
    assert make(machine, mount, evolve(odd, times=Count(4))) == 4
    assert shown(machine) == own


@pytest.mark.parametrize(
    ("first", "back"),
    [("split", "merge"), ("disable", "enable"), ("readonly", "writable"), ("remove", "add"), ("replace", "replace")],
)
def test_change_and_its_way_back_leave_the_region_as_it_was(machine: Machine, first: Action, back: Action) -> None:
    mount = mounted(machine)
    own = shown(machine), mount.state
    make(machine, mount, ChangeSpec("extra", first, after=SOON), ChangeSpec("extra", back, after=Duration(2)))
    assert (shown(machine), mount.state) == own


def test_change_replace_makes_another_mapping_of_the_same_bytes(machine: Machine) -> None:
    mount = mounted(machine)
    before = machine.memory.view.find(AT)
    machine.memory.write(AT, b"kept")
    make(machine, mount, ChangeSpec("extra", "replace", after=SOON))
    after = machine.memory.view.find(AT)
    assert before is not None
    assert after is not None
    assert before != after
    assert before.host_address == after.host_address


def test_change_add_puts_a_region_where_it_says(machine: Machine) -> None:
    mount = mounted(machine, RegionSpec("extra", size=PAGE))
    assert shown(machine) == []
    make(machine, mount, ChangeSpec("extra", "add", after=SOON, at=ELSEWHERE))
    assert shown(machine) == [(ELSEWHERE, PAGE, False)]


def test_change_moves_what_is_split(machine: Machine) -> None:
    mount = mounted(machine)
    make(
        machine,
        mount,
        ChangeSpec("extra", "split", after=SOON, size=PAGE),
        ChangeSpec("extra", "move", after=Duration(2), at=ELSEWHERE),
    )
    assert shown(machine) == [(ELSEWHERE, PAGE, False), (ELSEWHERE + PAGE, 3 * PAGE, False)]


def two_banks(machine: Machine) -> dict[str, Mount]:
    """Mount a window on the first of two pages with different contents."""
    return mount_regions(
        machine,
        [
            RegionSpec("pages", kind="container", size=Size(2 * PAGE)),
            RegionSpec("one", parent="pages", at=Address(0), size=PAGE, fill=Byte(1)),
            RegionSpec("two", parent="pages", at=Address(PAGE), size=PAGE, fill=Byte(2)),
            RegionSpec("window", kind="alias", target="pages", size=PAGE, at=AT),
        ],
    )


def test_change_retarget_shows_another_part_and_with_every_goes_back(machine: Machine) -> None:
    mount = two_banks(machine)["window"]
    make(machine, mount, ChangeSpec("window", "retarget", after=SOON, offset=Address(PAGE)))
    assert machine.memory.read(AT, 1) == b"\x02"
    mount.become(mount.own)
    assert machine.memory.read(AT, 1) == b"\x01"
    make(machine, mount, ChangeSpec("window", "retarget", every=SOON, times=Count(2), offset=Address(PAGE)))
    assert machine.memory.read(AT, 1) == b"\x01"


def test_change_retarget_of_what_is_split_shows_another_part(machine: Machine) -> None:
    mount = two_banks(machine)["window"]
    make(
        machine,
        mount,
        ChangeSpec("window", "split", after=SOON, size=Size(2048)),
        ChangeSpec("window", "retarget", after=Duration(2), offset=Address(PAGE)),
    )
    assert machine.memory.read(AT + 2000, 100) == b"\x02" * 100


@pytest.mark.parametrize("split", [False, True])
def test_change_priority_brings_a_region_to_the_front_and_back(machine: Machine, split: bool) -> None:
    mounts = mount_regions(
        machine,
        [
            RegionSpec("extra", at=AT, size=Size(2 * PAGE), fill=Byte(1)),
            RegionSpec("later", at=AT, size=Size(2 * PAGE), fill=Byte(2)),
        ],
    )
    mount = mounts["extra"]
    if split:
        make(machine, mount, ChangeSpec("extra", "split", after=SOON))
    up = ChangeSpec("extra", "priority", every=SOON, times=Count(1), priority=Priority(5))
    make(machine, mount, up)
    assert machine.memory.read(AT, 1) == b"\x01"
    make(machine, mount, evolve(up, times=Count(2)))
    assert machine.memory.read(AT, 1) == (b"\x01" if split else b"\x02")


def test_change_of_a_child_stays_in_its_parent(machine: Machine) -> None:
    mounts = two_banks(machine)
    make(machine, mounts["one"], ChangeSpec("one", "move", after=SOON, at=Address(PAGE)))
    assert shown(machine) == []
    make(machine, mounts["two"], ChangeSpec("two", "remove", after=SOON))
    make(machine, mounts["one"], ChangeSpec("one", "split", after=SOON, size=Size(1024)))
    make(machine, mounts["window"], ChangeSpec("window", "retarget", after=SOON, offset=Address(PAGE)))
    assert machine.memory.read(AT, PAGE) == b"\x01" * PAGE
    assert [size for _, size, _ in shown(machine)] == [1024, PAGE - 1024]


def test_change_split_of_a_container_shows_what_is_in_it_twice_cut(machine: Machine) -> None:
    mounts = mount_regions(
        machine,
        [
            RegionSpec("bank", kind="container", at=AT, size=Size(2 * PAGE)),
            RegionSpec("inner", parent="bank", at=Address(0), size=Size(2 * PAGE), fill=Byte(3)),
        ],
    )
    make(machine, mounts["bank"], ChangeSpec("bank", "split", after=SOON))
    assert [size for _, size, _ in shown(machine)] == [PAGE, PAGE]
    assert machine.memory.read(AT, 2 * PAGE) == b"\x03" * 2 * PAGE


def test_change_split_of_one_page_is_refused_and_changes_nothing(machine: Machine) -> None:
    mount = mounted(machine, RegionSpec("extra", at=AT, size=PAGE))
    with pytest.raises(RegionError, match="cannot be split at 0x1000"):
        make(machine, mount, ChangeSpec("extra", "split", after=SOON))
    assert shown(machine) == [(AT, PAGE, False)]
    assert mount.state == mount.own


def test_change_resize_keeps_the_rank_among_equal_regions(machine: Machine) -> None:
    mounts = mount_regions(
        machine,
        [
            RegionSpec("extra", at=AT, size=PAGE, max_size=Size(2 * PAGE), fill=Byte(1)),
            RegionSpec("later", at=AT, size=PAGE, fill=Byte(2)),
        ],
    )
    make(machine, mounts["extra"], ChangeSpec("extra", "resize", after=SOON, size=Size(2 * PAGE)))
    assert machine.memory.read(AT, 1) == b"\x02"


def test_changes_stopped_before_they_are_due_make_none(machine: Machine) -> None:
    mount = mounted(machine)
    changes = Changes(machine, [ChangeSpec("extra", "disable", after=Duration(3_600_000_000))], {"extra": mount})
    changes.stopping.set()
    changes.work()
    assert changes.made == 0


_CHANGES = st.one_of(
    st.builds(
        ChangeSpec, st.just("extra"), st.just("resize"), after=st.just(SOON), size=st.sampled_from([PAGE, 8 * PAGE])
    ),
    st.builds(ChangeSpec, st.just("extra"), st.just("move"), after=st.just(SOON), at=st.sampled_from([AT, ELSEWHERE])),
    st.builds(ChangeSpec, st.just("extra"), st.just("split"), after=st.just(SOON), size=st.none() | st.just(PAGE)),
    st.builds(
        ChangeSpec,
        st.just("extra"),
        st.just("priority"),
        after=st.just(SOON),
        priority=st.sampled_from([Priority(-1), Priority(1)]),
    ),
    st.builds(
        ChangeSpec,
        st.just("extra"),
        st.sampled_from(["replace", "merge", "enable", "disable", "readonly", "writable", "add", "remove"]),
        after=st.just(SOON),
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_CHANGES, max_size=12))
def test_changes_in_any_order_show_what_the_state_says(specs: list[ChangeSpec]) -> None:
    with Machine.create("mock", memory="1M") as machine:
        mount = mounted(machine)
        for spec in specs:
            wanted = asked(spec, mount)
            if wanted.cut is not None and wanted.cut >= wanted.size:
                with pytest.raises(RegionError):
                    mount.become(wanted)
                continue
            mount.become(wanted)
            state = mount.state
            assert state == wanted
            visible = state.at is not None and state.enabled
            sections = shown(machine)
            assert sum(size for _, size, _ in sections) == (state.size if visible else 0)
            assert all(readonly == state.readonly for _, _, readonly in sections)
            assert len(sections) == (0 if not visible else 2 if state.cut else 1)

"""Writing workloads: the file that comes out means the same, whatever is in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accel.arch.x86 import BootMode
from accel.errors import WorkloadError
from accel.memory.backing import Backing
from accel.program import ERRORS, Add, Fetch, GuestProgram, Halt, In, Load, Loop, Op, Out, Store
from accel.result import Outcome
from accel.workload.dump import dump_workload, to_toml
from accel.workload.parse import parse_text
from accel.workload.schema import (
    Accelerators,
    Address,
    Byte,
    ChangeSpec,
    Count,
    DeviceSpec,
    Duration,
    ExpectSpec,
    FilePath,
    ImageSpec,
    MachineSpec,
    Priority,
    RegionSpec,
    RunSpec,
    Size,
    Texts,
    Workload,
)

FOLDER = Path("/workloads")

_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
_NUMBERS = st.integers(0, (1 << 63) - 1)
_DURATIONS = st.integers(1, 10**12).map(Duration)
_SIZES = st.integers(1, 1 << 40).map(Size)
_PAGES = st.integers(1, 1 << 20).map(lambda count: Size(count << 12))
_PATHS = st.text("abc ü.\\\"'", min_size=1, max_size=6).filter(lambda name: name.strip(".") != "").map(FOLDER.joinpath)
_FILES = _PATHS.map(FilePath)


def _maybe(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | inner


_LEAVES: st.SearchStrategy[Op] = st.one_of(
    st.builds(Load, st.integers(0, 1 << 40), st.sampled_from([1, 2, 4, 8]), _maybe(st.integers(0, 255))),
    st.builds(Store, st.integers(0, 1 << 40), st.integers(0, 255)),
    st.builds(Add, st.integers(0, 1 << 30).map(lambda n: n * 8), st.integers(0, 255)),
    st.builds(Fetch, st.integers(0, 1 << 40)),
    st.builds(In, st.integers(0, 0xFF00), st.just(1), _maybe(st.integers(0, 255))),
    st.builds(Out, st.integers(0, 0xFF00), st.integers(0, 255) | st.just(ERRORS)),
    st.just(Halt()),
)
_OPS = st.recursive(
    _LEAVES,
    lambda inner: st.builds(Loop, st.lists(inner, max_size=3), _maybe(st.integers(1, 9))),
    max_leaves=6,
)
_PROGRAMS = st.lists(_OPS, max_size=4).map(GuestProgram)

_IMAGES = st.one_of(
    st.builds(
        ImageSpec,
        path=_FILES,
        firmware=_maybe(_FILES),
        load_address=_maybe(_NUMBERS.map(Address)),
        entry=_maybe(_NUMBERS.map(Address)),
        mode=_maybe(st.sampled_from(BootMode)),
        loader=_maybe(_TEXT),
    ),
    st.builds(ImageSpec, program=_PROGRAMS),
    st.builds(ImageSpec, firmware=_FILES),
)
_BACKINGS = st.one_of(
    st.builds(
        Backing.memfd,
        huge_pages=st.sampled_from([None, "2M", "1G"]),
        prefault=st.booleans(),
        advice=st.sets(st.sampled_from(["dontdump", "dontfork", "random"])),
    ),
    st.builds(Backing.anonymous, prefault=st.booleans(), advice=st.sets(st.sampled_from(["hugepage", "sequential"]))),
)
_MACHINES = st.builds(
    MachineSpec,
    accelerators=st.sampled_from([("kvm",), ("mock",), ("kvm", "mock")]).map(Accelerators),
    memory=_PAGES,
    cpus=st.integers(1, 99).map(Count),
    irqchip=st.none() | st.just(True),
    pit=st.none() | st.booleans(),
    backing=_maybe(_BACKINGS),
)
_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "mock": st.fixed_dictionaries({}, optional={"hold": st.sampled_from(["inhibit", "unsafe"])}),
        "kvm": st.just({"plan": "replace"}),
    },
)
_DEVICES = st.sampled_from(
    [
        DeviceSpec("serial"),
        DeviceSpec("serial", {"port": 0x2F8, "irq": 3}),
        DeviceSpec("debug-exit", {"port": "0xf4"}),
    ]
)
_REGIONS = st.tuples(
    st.builds(
        RegionSpec,
        name=st.just("extra"),
        at=_maybe(_NUMBERS.map(Address)),
        size=_SIZES,
        max_size=st.none() | st.just(Size(1 << 41)),
        parent=st.none() | st.just("ram"),
        priority=st.integers(-9, 9).map(Priority),
        enabled=st.booleans(),
        readonly=st.booleans(),
        nonvolatile=st.booleans(),
        unmergeable=st.booleans(),
        backing=_maybe(_BACKINGS),
        contents=_maybe(_FILES),
        fill=_maybe(st.integers(0, 255).map(Byte)),
    ),
    st.builds(
        RegionSpec,
        name=_TEXT.filter(lambda one: one not in ("", "ram", "extra") and "\0" not in one),
        kind=st.sampled_from(["ram", "container"]),
        size=_SIZES,
    ),
    st.builds(
        RegionSpec,
        name=st.just("window"),
        kind=st.just("alias"),
        size=_SIZES,
        target=st.sampled_from(["extra", "ram"]),
        offset=_maybe(_NUMBERS.map(Address)),
    ),
).filter(lambda regions: regions[1].name != "window")
_CHANGES = st.sampled_from(
    [
        ChangeSpec("extra", "split", every=Duration(5000), times=Count(3)),
        ChangeSpec("extra", "resize", after=Duration(1), size=Size(1)),
        ChangeSpec("extra", "priority", every=Duration(7), priority=Priority(-1)),
        ChangeSpec("window", "retarget", after=Duration(7), offset=Address(0)),
        ChangeSpec("extra", "move", every=Duration(7), after=Duration(1), at=Address(0), atomic="map"),
    ]
)
_RUNS = st.one_of(
    st.builds(RunSpec, timeout=_maybe(_DURATIONS), input=_maybe(_TEXT)),
    st.builds(RunSpec, input_file=_FILES),
)
_EXPECTS = st.builds(
    ExpectSpec,
    outcome=_maybe(st.sampled_from(Outcome)),
    exit_status=_maybe(_NUMBERS),
    console_contains=st.lists(_TEXT, max_size=2).map(tuple).map(Texts),
    console_exact=_maybe(_TEXT),
    spurious_faults=_maybe(_NUMBERS),
    min_changes=_maybe(_NUMBERS),
)
_WORKLOADS = st.builds(
    Workload,
    machine=_MACHINES,
    image=_IMAGES,
    accelerator_options=_OPTIONS,
    devices=st.lists(_DEVICES, max_size=3).map(tuple),
    regions=_REGIONS,
    changes=st.lists(_CHANGES, max_size=3).map(tuple),
    run=_RUNS,
    expect=_EXPECTS,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(_WORKLOADS)
def test_dump_then_parse_gives_an_equal_workload(workload: Workload) -> None:
    text = dump_workload(workload, FOLDER)
    assert parse_text(text, "w.toml", FOLDER) == workload


def test_dump_reads_as_people_write_it() -> None:
    workload = Workload(
        machine=MachineSpec(accelerators=Accelerators(("kvm",)), cpus=Count(2)),
        accelerator_options={"kvm": {"hold": "unsafe"}},
        image=ImageSpec(path=FilePath(FOLDER / "guest.elf")),
        devices=(DeviceSpec("serial", {"port": 0x3F8}),),
        regions=(RegionSpec("extra", at=Address(0x1000_0000), size=Size(1 << 20)),),
        changes=(ChangeSpec("extra", "split", every=Duration(5000)),),
    )
    assert dump_workload(workload, FOLDER) == (
        'format = 1\n\n[machine]\naccelerators = ["kvm"]\nmemory = "64M"\ncpus = 2\n\n[accelerator.kvm]\n'
        'hold = "unsafe"\n\n[image]\npath = "guest.elf"\n\n[[device]]\ntype = "serial"\nport = 0x3f8\n\n'
        '[[region]]\nname = "extra"\nat = 0x1000_0000\nsize = "1M"\n\n'
        '[[change]]\nregion = "extra"\ndo = "split"\nevery = "5ms"\n'
    )


def test_dump_backings_are_tables_of_their_own() -> None:
    workload = Workload(
        machine=MachineSpec(accelerators=Accelerators(("kvm",)), backing=Backing.memfd(huge_pages="2M", prefault=True)),
        image=ImageSpec(path=FilePath(FOLDER / "guest.elf")),
        regions=(RegionSpec("extra", size=Size(1 << 20), backing=Backing.anonymous(advice={"random", "dontdump"})),),
    )
    assert dump_workload(workload, FOLDER) == (
        'format = 1\n\n[machine]\naccelerators = ["kvm"]\nmemory = "64M"\ncpus = 1\n\n'
        '[machine.backing]\nkind = "memfd"\nhuge_pages = "2M"\nprefault = true\n\n'
        '[image]\npath = "guest.elf"\n\n[[region]]\nname = "extra"\nsize = "1M"\n\n'
        '[region.backing]\nadvice = ["dontdump", "random"]\n'
    )


@pytest.mark.parametrize("backing", [Backing.file("/dev/shm/guest"), Backing.anonymous(advice=["mergeable"])])
def test_dump_backing_that_no_workload_file_can_ask_for_is_refused(backing: Backing) -> None:
    for workload in (
        Workload(machine=MachineSpec(backing=backing)),
        Workload(regions=(RegionSpec("extra", size=Size(4096), backing=backing),)),
    ):
        with pytest.raises(WorkloadError, match="cannot be in a workload file; save it without"):
            dump_workload(workload, FOLDER)


def test_dump_file_outside_of_the_folder_is_refused() -> None:
    workload = Workload(image=ImageSpec(path=FilePath(Path("/elsewhere/guest.elf"))))
    with pytest.raises(WorkloadError, match=r"/elsewhere/guest\.elf is not in this folder"):
        dump_workload(workload, FOLDER)


def test_dump_name_that_is_no_utf8_is_refused() -> None:
    workload = Workload(image=ImageSpec(path=FilePath(FOLDER / "guest\udcff")))
    with pytest.raises(WorkloadError, match="is no UTF-8"):
        dump_workload(workload, FOLDER)


def test_dump_leaves_its_workload_as_it_was() -> None:
    workload = Workload(machine=MachineSpec(memory=Size(1 << 20)), image=ImageSpec(path=FilePath(FOLDER / "x")))
    before = evolve(workload)
    dump_workload(workload, FOLDER)
    assert workload == before


def test_to_toml_of_a_value_without_a_place_in_toml_raises() -> None:
    with pytest.raises(TypeError, match="no place in a workload"):
        to_toml({"x": object()})

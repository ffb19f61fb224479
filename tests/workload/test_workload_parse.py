"""Workload files: what a good one means, and that a bad one names file, field, value and the next step."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accel.arch.x86 import BootMode
from accel.errors import WorkloadError
from accel.memory.backing import Backing
from accel.program import Halt, Load, Loop
from accel.result import Outcome
from accel.workload.parse import MAX_FILE_SIZE, parse_file, parse_text
from accel.workload.schema import ChangeSpec, DeviceSpec, RegionSpec, Workload

BASE = 'format = 1\n[image]\npath = "guest.elf"\n'
REGION = BASE + '[[region]]\nname = "extra"\nsize = "1M"\n'
CHANGE = REGION + '[[change]]\nregion = "extra"\n'


def parse(text: str, folder: Path = Path("/workloads")) -> Workload:
    return parse_text(text, "w.toml", folder)


def test_parse_example_of_every_table_gives_its_values(tmp_path: Path) -> None:
    workload = parse(
        """
        format = 1
        [machine]
        accelerators = "kvm, mock"
        memory = "64M"
        cpus = 2
        irqchip = true
        [accelerator.kvm]
        hold = "unsafe"
        [image]
        path = "sub/guest.bin"
        load_address = 0x10_0000
        mode = "long64"
        [[device]]
        type = "serial"
        port = 0x3f8
        [[region]]
        name = "extra"
        at = 0x1000_0000
        size = "1M"
        max_size = "2M"
        [[change]]
        every = "5ms"
        do = "resize"
        region = "extra"
        size = "2M"
        [run]
        timeout = "1.5s"
        input = "hi"
        [expect]
        outcome = "exited"
        console_contains = ["a", "b"]
        """,
        tmp_path,
    )
    assert workload.machine.accelerators == ("kvm", "mock")
    assert (workload.machine.memory, workload.machine.cpus, workload.machine.irqchip) == (64 << 20, 2, True)
    assert workload.accelerator_options == {"kvm": {"hold": "unsafe"}}
    assert workload.image.path == tmp_path.resolve() / "sub/guest.bin"
    assert (workload.image.load_address, workload.image.mode) == (0x10_0000, BootMode.LONG64)
    assert workload.devices == (DeviceSpec("serial", {"port": 0x3F8}),)
    assert workload.regions == (RegionSpec("extra", at=0x1000_0000, size=1 << 20, max_size=2 << 20),)
    assert workload.changes == (ChangeSpec("extra", "resize", every=5_000, size=2 << 20),)
    assert (workload.run.timeout, workload.run.input) == (1_500_000, "hi")
    assert (workload.expect.outcome, workload.expect.console_contains) == (Outcome.EXITED, ("a", "b"))


def test_parse_backing_of_the_machine_and_of_a_region_gives_backings() -> None:
    workload = parse(
        REGION
        + """
        [region.backing]
        advice = "hugepage"
        [machine.backing]
        kind = "memfd"
        huge_pages = "2M"
        prefault = true
        advice = ["dontdump", "dontfork"]
        """
    )
    assert workload.machine.backing == Backing.memfd(huge_pages="2M", prefault=True, advice=["dontfork", "dontdump"])
    assert workload.regions[0].backing == Backing.anonymous(advice=["hugepage"])


def test_parse_backing_left_out_is_none_and_an_empty_one_anonymous() -> None:
    assert parse(BASE).machine.backing is None
    assert parse(BASE + "[machine.backing]").machine.backing == Backing.anonymous()


def test_parse_tree_of_regions_gives_parents_and_flags() -> None:
    workload = parse(
        BASE
        + """
        [[region]]
        name = "bank"
        kind = "container"
        size = "1M"
        unmergeable = true
        [[region]]
        name = "inner"
        size = "4K"
        parent = "bank"
        priority = -2_147_483_648
        nonvolatile = true
        [[region]]
        name = "window"
        kind = "alias"
        target = "bank"
        parent = "ram"
        [[change]]
        region = "window"
        do = "retarget"
        offset = 0x1000
        after = "1s"
        [[change]]
        region = "inner"
        do = "priority"
        priority = -3
        after = "1s"
        """
    )
    assert workload.regions == (
        RegionSpec("bank", kind="container", size=1 << 20, unmergeable=True),
        RegionSpec("inner", size=4096, parent="bank", priority=-(1 << 31), nonvolatile=True),
        RegionSpec("window", kind="alias", target="bank", parent="ram"),
    )
    assert workload.changes[0] == ChangeSpec("window", "retarget", after=1_000_000, offset=0x1000)
    assert workload.changes[1] == ChangeSpec("inner", "priority", after=1_000_000, priority=-3)


def test_parse_program_gives_its_operations() -> None:
    workload = parse('format = 1\nimage.program = [{op = "loop", body = [{op = "load", address = 1}]}, {op = "halt"}]')
    assert workload.image.program is not None
    assert workload.image.program.ops == (Loop((Load(1),)), Halt())


#: Text, what stands before the problem, and the problem.
BAD = {
    "no format": ('[image]\npath = "x"', "w.toml: format:", "is missing; put format = 1"),
    "format of later": ("format = 2", "w.toml: format = 2:", "this version reads format 1"),
    "format as text": ('format = "1"', "w.toml: format = '1':", "reads format 1"),
    "no TOML": ("format = = 1", "w.toml:", "is no TOML: Invalid value (at line 1, column 10)"),
    "nothing to run": ("format = 1", "w.toml: image:", "nothing to run"),
    "unknown table": (BASE + "[mashine]\n", "w.toml: mashine:", "no such table; did you mean 'machine'?"),
    "unknown field": (BASE + "[machine]\nmemroy = 1", "w.toml: machine.memroy:", "did you mean 'memory'?"),
    "far field": (BASE + "[machine]\nzzz = 1", "w.toml: machine.zzz:", "known are: accelerators, backing, cpus,"),
    "table as number": ("format = 1\nimage = 3", "w.toml: image = 3:", "must be a table"),
    "table for a list": (BASE + '[device]\ntype = "serial"', "w.toml: device =", "such as [[device]]"),
    "list of numbers": (BASE + "[machine]\naccelerators = [1]", "machine.accelerators = [1]:", "must be text"),
    "no accelerator": (BASE + "[machine]\naccelerators = []", "machine.accelerators = []:", "no accelerator is named"),
    "unknown accelerator": (
        BASE + '[machine]\naccelerators = ["mokc"]',
        "machine.accelerators = 'mokc':",
        "did you mean 'mock'?",
    ),
    "unknown accelerator table": (BASE + "[accelerator.mokc]", "accelerator.mokc:", "did you mean 'mock'?"),
    "unknown option": (
        BASE + '[accelerator.mock]\nhodl = "unsafe"',
        "accelerator.mock.hodl = 'unsafe':",
        "no such option; did you mean 'hold'?",
    ),
    "option off": (BASE + '[accelerator.mock]\nhold = "no"', "accelerator.mock.hold = 'no':", "must be one of inhibit"),
    "memory none": (BASE + "[machine]\nmemory = 0", "machine.memory = 0:", "must be from 1 byte"),
    "memory unaligned": (BASE + "[machine]\nmemory = 5000", "machine.memory = 5000:", "try 8K"),
    "memory no size": (BASE + '[machine]\nmemory = "64Q"', "machine.memory = '64Q':", "is no size"),
    "memory as float": (BASE + "[machine]\nmemory = 1.5", "machine.memory = 1.5:", 'must be a size such as "64M"'),
    "memory huge": (BASE + f"[machine]\nmemory = 0x{'f' * 9000}", "machine.memory = a huge number:", "to 2^64"),
    "backing of files": (
        BASE + "[machine.backing]\nkind = 'file'\npath = '/etc/passwd'",
        "w.toml: machine.backing.kind = 'file':",
        "give it on the command line, if you trust the workload: accelctl run --memory-backing",
    ),
    "backing with a path": (
        BASE + "[machine.backing]\npath = '/etc/passwd'",
        "machine.backing.path = '/etc/passwd':",
        "which a workload file cannot have",
    ),
    "backing shared": (BASE + "[machine.backing]\nshared = true", "machine.backing.shared = True:", "about files"),
    "backing unknown": (
        BASE + "[machine.backing]\nkind = 'memdf'",
        "machine.backing.kind = 'memdf':",
        "must be one of anonymous, memfd",
    ),
    "backing field": (BASE + "[machine.backing]\nhuge_page = 1", "machine.backing.huge_page:", "'huge_pages'?"),
    "backing as text": (BASE + "[machine]\nbacking = 'memfd'", "machine.backing = 'memfd':", "must be a table"),
    "backing page": (
        BASE + "[machine.backing]\nhuge_pages='3M'",
        "machine.backing.huge_pages = 3145728:",
        "such as 2M",
    ),
    "backing page huge": (
        BASE + f"[machine.backing]\nhuge_pages = 0x{'f' * 9000}",
        "machine.backing.huge_pages = a huge number:",
        "to 2^64",
    ),
    "backing page beyond": (BASE + "[machine.backing]\nhuge_pages='16777216T'", "machine.backing.huge_pages", "power"),
    "backing prefault": (
        BASE + "[machine.backing]\nprefault = 'yes'",
        "machine.backing.prefault = 'yes':",
        "must be true or false",
    ),
    "backing advice": (
        BASE + "[machine.backing]\nadvice = ['hugpage']",
        "machine.backing.advice = 'hugpage':",
        "did you mean 'hugepage'?",
    ),
    "backing advice as number": (BASE + "[machine.backing]\nadvice = 3", "machine.backing.advice = 3:", "must be text"),
    "backing advice both": (
        BASE + "[machine.backing]\nadvice = ['random', 'sequential']",
        "machine.backing.advice = ['random', 'sequential']:",
        "contradict each other",
    ),
    "backing advice merging": (
        BASE + "[machine.backing]\nadvice = 'mergeable'",
        "machine.backing.advice = 'mergeable':",
        "--memory-backing [REGION=]anonymous,advice=mergeable",
    ),
    "region backing of files": (
        REGION + "backing = {kind = 'file', path = 'x'}",
        "region[0].backing.kind = 'file':",
        "--memory-backing [REGION=]file,path=FILE",
    ),
    "region backing": (
        REGION + "[region.backing]\nhuge_pages = 4096",
        "region[0].backing.huge_pages = 4096:",
        "power of two above 4K",
    ),
    "rom with backing": (
        BASE + "[[region]]\nname='r'\nkind='rom'\nsize=1\nbacking.kind='memfd'",
        "region[0].backing = 'memfd':",
        "kind rom has none",
    ),
    "cpus none": (BASE + "[machine]\ncpus = 0", "machine.cpus = 0:", "must be at least 1"),
    "cpus as text": (BASE + '[machine]\ncpus = "2"', "machine.cpus = '2':", "must be a whole number"),
    "cpus as bool": (BASE + "[machine]\ncpus = true", "machine.cpus = True:", "must be a whole number"),
    "irqchip as number": (BASE + "[machine]\nirqchip = 1", "machine.irqchip = 1:", "must be true or false"),
    "pit alone": (BASE + "[machine]\nirqchip = false\npit = true", "machine.pit = True:", "set irqchip = true"),
    "path and program": (BASE + "program = []", "w.toml: image.program:", "there is a path too"),
    "firmware and program": ('format=1\nimage = {firmware = "f", program = []}', "image.firmware:", "leave one"),
    "entry of program": ("format=1\nimage = {entry = 1, program = []}", "image.entry = 1:", "only an image"),
    "mode": (BASE + 'mode = "long46"', "image.mode = 'long46':", "must be one of real16, protected32, long64"),
    "mode as list": (BASE + "mode = [1]", "image.mode = [1]:", "must be one of"),
    "address negative": (BASE + "entry = -1", "image.entry = -1:", "must be from 0"),
    "path out": ("format = 1\nimage.path = '../x'", "image.path = '../x':", "leads out of the workload's folder"),
    "path absolute": ("format = 1\nimage.path = '/etc/passwd'", "image.path = '/etc/passwd':", "leads out"),
    "path with null": ('format = 1\nimage.path = "a\\u0000"', "image.path = 'a\\x00':", "is no path"),
    "program as text": ("format = 1\nimage.program = 'x'", "image.program = 'x':", "must be a list of operations"),
    "program operation": (
        "format = 1\nimage.program = [{op = 'halt'}, {op = 'laod', address = 1}]",
        "w.toml: image.program[1].op = 'laod':",
        "did you mean 'load'?",
    ),
    "program deep": (
        "format = 1\nimage.program = [{op = 'loop', body = [{op = 'load', address = 'x'}]}]",
        "w.toml: image.program[0].body[0].address = 'x':",
        "must be a whole number",
    ),
    "unknown device": (BASE + "[[device]]\ntype = 'serail'", "device[0].type = 'serail':", "did you mean 'serial'?"),
    "device without type": (BASE + "[[device]]\nport = 1", "device[0].type:", "is missing"),
    "device option": (
        BASE + "[[device]]\ntype = 'serial'\n[[device]]\ntype = 'serial'\nprot = 1",
        "device[1].prot = 1:",
        "no such option; did you mean 'port'?",
    ),
    "device option off": (BASE + "[[device]]\ntype = 'serial'\nport = 70000", "device[0].port = 70000:", "at most"),
    "region without name": (BASE + "[[region]]\nsize = '1M'", "region[0].name:", "is missing"),
    "region without size": (BASE + "[[region]]\nname = 'a'", "region[0].size:", "is missing, such as"),
    "region named ram": (BASE + "[[region]]\nname = 'ram'\nsize = 1", "region[0].name = 'ram':", "machine's own"),
    "region twice": (REGION + "[[region]]\nname = 'extra'\nsize = 1", "region[1].name = 'extra':", "another region"),
    "region kind": (
        BASE + "[[region]]\nname = 'a'\nkind = 'rma'",
        "region[0].kind = 'rma':",
        "must be one of ram, rom",
    ),
    "region shrunk": (
        BASE + "[[region]]\nname = 'a'\nsize = '2M'\nmax_size = '1M'",
        "region[0].max_size = 1048576:",
        "at least the size",
    ),
    "rom that grows": (
        BASE + "[[region]]\nname = 'a'\nkind = 'rom'\nsize = '1M'\nmax_size = '1M'",
        "region[0].max_size",
        "kind rom has none",
    ),
    "ram with target": (REGION + "target = 'ram'", "region[0].target = 'ram':", "kind ram has none"),
    "alias of nothing": (BASE + "[[region]]\nname = 'a'\nkind = 'alias'", "region[0].target:", "is missing"),
    "alias of one below": (
        BASE + "[[region]]\nname='a'\nkind='alias'\ntarget='b'\n[[region]]\nname='b'\nsize=1",
        "region[0].target = 'b':",
        "no such region above this one",
    ),
    "alias of itself": (
        BASE + "[[region]]\nname='abc'\nkind='alias'\ntarget='abc'",
        "region[0].target = 'abc':",
        "no such region above this one",
    ),
    "alias with fill": (
        BASE + "[[region]]\nname='a'\nkind='alias'\ntarget='ram'\nfill=1",
        "region[0].fill = 1:",
        "alias",
    ),
    "region with a NUL": (BASE + '[[region]]\nname = "a\\u0000"\nsize = 1', "region[0].name", "holds a NUL"),
    "priority huge": (REGION + "priority = 2_147_483_648", "region[0].priority = 2147483648:", "to 0x7fffffff"),
    "priority low": (REGION + "priority = -2_147_483_649", "region[0].priority = -2147483649:", "from -0x80000000"),
    "container without size": (BASE + "[[region]]\nname='a'\nkind='container'", "region[0].size:", "is missing"),
    "container with fill": (
        BASE + "[[region]]\nname='a'\nkind='container'\nsize=1\nfill=1",
        "region[0].fill = 1:",
        "kind container has none",
    ),
    "ROM device": (BASE + "[[region]]\nname='a'\nkind='romd'\nsize=1", "region[0].kind = 'romd':", "must be one of"),
    "parent of nothing": (REGION + "parent = 'bnak'", "region[0].parent = 'bnak':", "no such region above this one"),
    "parent below": (
        REGION + "parent = 'bank'\n[[region]]\nname = 'bank'\nkind = 'container'\nsize = 1",
        "region[0].parent = 'bank':",
        "no such region above this one",
    ),
    "parent itself": (REGION + "parent = 'extra'", "region[0].parent = 'extra':", "no such region above this one"),
    "parent alias": (
        REGION + "[[region]]\nname='a'\nkind='alias'\ntarget='extra'\n[[region]]\nname='b'\nsize=1\nparent='a'",
        "region[2].parent = 'a':",
        "is an alias, which holds nothing itself; use 'extra'",
    ),
    "circle": (
        REGION + "[[region]]\nname='a'\nkind='alias'\ntarget='extra'\nparent='extra'",
        "region[1].parent = 'extra':",
        "is shown by 'a' through its target 'extra', so it would contain itself",
    ),
    "circle in the machine's RAM": (
        BASE + "[[region]]\nname='a'\nkind='alias'\ntarget='ram'\nparent='ram'",
        "region[0].parent = 'ram':",
        "would contain itself",
    ),
    "circle of three": (
        REGION
        + "[[region]]\nname='b'\nsize=1\nparent='extra'\n"
        + "[[region]]\nname='c'\nkind='alias'\ntarget='extra'\nparent='b'",
        "region[2].parent = 'b':",
        "is shown by 'c' through its target 'extra'",
    ),
    "region too high": (REGION + "at = 0xffff_ffff_ffff_f000", "region[0].at = 184467", "ends beyond 2^64"),
    "alias beyond": (
        REGION + "[[region]]\nname='a'\nkind='alias'\ntarget='extra'\noffset=0x10_0000",
        "region[1].offset = 1048576:",
        "is beyond 'extra' of size 0x100000",
    ),
    "fill no byte": (REGION + "fill = 256", "region[0].fill = 256:", "must be from 0 to 255"),
    "change of nothing": (
        REGION + "[[change]]\nregion='extar'\ndo='split'\nevery='1s'",
        "change[0].region = 'extar':",
        "did you mean 'extra'?",
    ),
    "change unknown": (CHANGE + "do='resiez'\nevery='1s'", "change[0].do = 'resiez':", "must be one of resize, move"),
    "change never": (CHANGE + "do = 'split'", "change[0].every:", "say when"),
    "change as number": (CHANGE + "do = 'split'\nevery = 5", "change[0].every = 5:", "must be a duration"),
    "change at once": (CHANGE + "do = 'split'\nevery = '0s'", "change[0].every = '0s':", "above zero"),
    "change times after": (CHANGE + "do='split'\nafter='1s'\ntimes=2", "change[0].times = 2:", "goes with every"),
    "change to no size": (CHANGE + "do = 'resize'\nevery = '1s'", "change[0].size:", "resize needs it"),
    "change too large": (
        CHANGE + "do = 'resize'\nevery = '1s'\nsize = '2M'",
        "change[0].size = 2097152:",
        "give the region a larger max_size",
    ),
    "change with size": (
        CHANGE + "do='disable'\nafter='1s'\nsize=1",
        "change[0].size = 1:",
        "means nothing for disable",
    ),
    "change priority": (CHANGE + "do='priority'\nafter='1s'", "change[0].priority:", "priority needs it"),
    "change priority high": (
        CHANGE + f"do='priority'\nafter='1s'\npriority=0x{'f' * 9000}",
        "change[0].priority = a huge number:",
        "to 0x7fffffff",
    ),
    "change retarget": (CHANGE + "do='retarget'\nafter='1s'", "change[0].offset:", "retarget needs it"),
    "change retarget of RAM": (
        CHANGE + "do='retarget'\nafter='1s'\noffset=0",
        "change[0].do = 'retarget':",
        "'extra' is of kind ram; only an alias",
    ),
    "change with offset": (CHANGE + "do='split'\nafter='1s'\noffset=0", "change[0].offset = 0:", "means nothing"),
    "change with priority": (CHANGE + "do='move'\nafter='1s'\nat=0\npriority=0", "change[0].priority = 0:", "for move"),
    "change merge": (CHANGE + "do = 'merge'\nevery = '1s'", "change[0].do = 'merge':", "use split"),
    "change add": (CHANGE + "do = 'add'\nafter = '1s'", "change[0].at:", "has no place of its own"),
    "change rom": (
        BASE + "[[region]]\nname='r'\nkind='rom'\nsize='4K'\n[[change]]\nregion='r'\ndo='writable'\nafter='1s'",
        "change[0].do = 'writable':",
        "is ROM",
    ),
    "input twice": (BASE + "[run]\ninput = 'a'\ninput_file = 'b'", "run.input_file:", "leave one of them out"),
    "expect status": (BASE + "[expect]\nexit_status = 1.5", "expect.exit_status = 1.5:", "must be a whole number"),
    "expect outcome": (
        BASE + "[expect]\noutcome = 'exit'",
        "expect.outcome = 'exit':",
        "must be one of exited, halted",
    ),
    "expect console": (BASE + "[expect]\nconsole_contains = [1]", "expect.console_contains = [1]:", "must be text"),
    "expect accelerator": (
        BASE + "[machine]\naccelerators = ['kvm']\n[expect]\naccelerator = 'mock'",
        "expect.accelerator = 'mock':",
        "is not in machine",
    ),
    "deep arrays": ("x = " + "[" * 9000, "w.toml:", "is nested too deeply"),
    "deep keys": (f"format = 1\n{'.'.join('a' * 4000)} = 1", "w.toml: a:", "no such table"),
    "long number": (f"format = 1\nx = 1{'0' * 9000}", "w.toml:", "is no TOML"),
    "long key": (f"format = 1\n{'k' * 9000} = 1", "w.toml: kkk", "no such table"),
    "many tables": (BASE + "[[device]]\ntype='cmos'\n" * 1025, "w.toml: device:", "1025 tables are too many"),
}


@pytest.mark.parametrize("name", BAD)
def test_parse_bad_file_names_file_field_value_and_next_step(name: str) -> None:
    text, place, problem = BAD[name]
    with pytest.raises(WorkloadError) as caught:
        parse(text)
    message = str(caught.value)
    assert place in message
    assert problem in message
    assert len(message) < 1000
    assert caught.value.path == "w.toml"


# reading the file


def test_parse_file_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"nothere\.toml: no such file"):
        parse_file(tmp_path / "nothere.toml")


def test_parse_file_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="is no regular file"):
        parse_file(tmp_path)


def test_parse_file_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.toml")
    with pytest.raises(WorkloadError, match="is no regular file"):
        parse_file(tmp_path / "w.toml")


def test_parse_file_endless_device_is_refused() -> None:
    with pytest.raises(WorkloadError, match="is no regular file"):
        parse_file("/dev/zero")


def test_parse_file_with_null_in_its_name_is_refused() -> None:
    with pytest.raises(WorkloadError, match="is no path"):
        parse_file("a\0b.toml")


def test_parse_file_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_text(BASE + "#" * MAX_FILE_SIZE)
    with pytest.raises(WorkloadError, match="is larger than 1M"):
        parse_file(path)


def test_parse_file_largest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_text(BASE + "#" * (MAX_FILE_SIZE - len(BASE)))
    assert parse_file(path).image.path == tmp_path.resolve() / "guest.elf"


def test_parse_file_not_utf8_names_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_bytes(b"format = 1 # \xff")
    with pytest.raises(WorkloadError, match="is not UTF-8, at byte 0xd; save it as UTF-8"):
        parse_file(path)


# what it may read


def test_parse_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "workload"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "guest").symlink_to(tmp_path / "secret")
    with pytest.raises(WorkloadError, match=r"image\.path = 'guest': leads out"):
        parse('format = 1\nimage.path = "guest"', folder)


def test_parse_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "guest").symlink_to("real")
    assert parse('format = 1\nimage.path = "guest"', tmp_path).image.path == tmp_path.resolve() / "real"


def test_parse_folder_that_is_a_link_itself_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert parse(BASE, tmp_path / "link").image.path == tmp_path.resolve() / "real" / "guest.elf"


def test_parse_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "guest").symlink_to("guest")
    with pytest.raises(WorkloadError, match=r"image\.path = 'guest'"):
        parse('format = 1\nimage.path = "guest"', tmp_path)


@pytest.mark.parametrize("field", ["image.firmware", "run.input_file"])
def test_parse_every_path_is_confined(field: str) -> None:
    table, key = field.split(".")
    image = "" if table == "image" else "image.path = 'x'\n"
    with pytest.raises(WorkloadError, match=rf"{field} = '\.\./x': leads out"):
        parse(f"format = 1\n{image}[{table}]\n{key} = '../x'")


def test_parse_contents_path_is_confined() -> None:
    with pytest.raises(WorkloadError, match=r"region\[0\]\.contents = '\.\./x': leads out"):
        parse(BASE + "[[region]]\nname = 'a'\ncontents = '../x'")


# whatever it holds

_SCALARS = st.one_of(
    st.integers(-(1 << 70), 1 << 70), st.booleans(), st.floats(allow_nan=False), st.text(max_size=8), st.just("64M")
)
_WORDS = """
machine image device region change expect run accelerator kvm mock memory cpus path program op body type port name
kind at size every after do times timeout input console_contains accelerators backing huge_pages advice prefault
parent target offset priority
"""
_KEYS = st.sampled_from(_WORDS.split())
_DATA = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEYS, inner, max_size=4)),
    max_leaves=12,
)


def check_refusal(text: str) -> None:
    """Parse `text`; if it is refused, the error is of the right kind and names the file."""
    message = "w.toml: "
    try:
        parse(text)
    except WorkloadError as error:
        message = str(error)
    assert message.startswith("w.toml: ")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(one):08x}" for one in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + "}"
    return repr(value) if isinstance(value, int) else f"{value:f}"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_KEYS, _DATA, max_size=4))
def test_parse_any_data_is_a_workload_or_a_workload_error(data: dict[str, object]) -> None:
    text = "format = 1\n" + "\n".join(f"{key} = {_toml(value)}" for key, value in data.items())
    tomllib.loads(text)
    check_refusal(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_parse_any_text_is_a_workload_or_a_workload_error(text: str) -> None:
    check_refusal(BASE + text)


def test_parse_machine_without_accelerators_takes_all_with_the_preferred_first(tmp_path: Path) -> None:
    path = tmp_path / "workload.toml"
    path.write_text(BASE)
    names = parse_file(path).machine.accelerators
    assert names[0] == "kvm"
    assert set(names) >= {"kvm", "mock", "hvf"}

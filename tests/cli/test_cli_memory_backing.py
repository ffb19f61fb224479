"""accelctl run --memory-backing: what it means, what it refuses, and what the guest's memory then is."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.cli.memory_backing import OPTIONS, parse_backing, with_backings
from accel.errors import UsageError
from accel.memory.backing import ADVICE, Backing
from accel.workload.backing import FILE_ADVICE, BackingTable
from accel.workload.schema import MachineSpec, RegionSpec, Size, Workload

Accelctl = Callable[..., "subprocess.CompletedProcess[bytes]"]

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"

#: A guest that leaves a word in its RAM and one in a region.
STORES = """
format = 1
machine = {accelerators = ["mock"], memory = "2M"}
image = {program = [
  {op = "store", address = 0x1000, value = 0x2121_4948},
  {op = "store", address = 0x1000_0000, value = 0x2121_4f59},
  {op = "halt"},
]}
region = [{name = "extra", at = 0x1000_0000, size = "1M"}, {name = "flash", kind = "rom", size = "4K"}]
"""


@pytest.fixture
def stores(tmp_path: Path) -> str:
    (tmp_path / "stores.toml").write_text(STORES)
    return "stores.toml"


# what it means

MEANINGS = [
    ("anonymous", "ram", Backing.anonymous()),
    ("memfd,huge_pages=2M,prefault", "ram", Backing.memfd(huge_pages="2M", prefault=True)),
    ("memfd,prefault=off", "ram", Backing.memfd()),
    ("anonymous,advice=hugepage,advice=dontdump", "ram", Backing.anonymous(advice=["dontdump", "hugepage"])),
    ("anonymous,advice=mergeable", "ram", Backing.anonymous(advice=["mergeable"])),
    ("file,path=/dev/shm/guest,create", "ram", Backing.file("/dev/shm/guest", create=True)),
    ("file,path=x,offset=64K,shared=no", "ram", Backing.file("x", offset=0x10000, shared=False)),
    ("file,path=a,,b=c,create=True", "ram", Backing.file("a,b=c", create=True)),
    ("extra=file,path=x,readonly", "extra", Backing.file("x", readonly=True)),
    ("a=b=memfd", "a=b", Backing.memfd()),
    ("ram=memfd", "ram", Backing.memfd()),
]


@pytest.mark.parametrize(("text", "name", "backing"), MEANINGS)
def test_parse_backing_gives_region_and_backing(text: str, name: str, backing: Backing) -> None:
    assert parse_backing(text) == (name, backing)


REFUSED = [
    ("", "must begin with one of anonymous, memfd, file, or REGION="),
    ("fiel,path=x", "must begin with one of"),
    ("=memfd", "must begin with one of"),
    ("prefault", "must begin with one of"),
    ("memfd,", "no such option of memfd; known are: advice, huge_pages, prefault"),
    ("memfd,hugepages=2M", "hugepages: no such option of memfd; did you mean 'huge_pages'?"),
    ("memfd,path=x", "path: no such option of memfd"),
    ("memfd,huge_pages", "huge_pages: needs a value: huge_pages=…"),
    ("memfd,huge_pages=3M", "huge_pages: is no power of two above 4K"),
    ("memfd,huge_pages=lots", "huge_pages: must be a size"),
    ("memfd,huge_pages=2M,advice=hugepage", "advice: hugepage does not act on explicit huge pages"),
    ("memfd,prefault=maybe", "prefault: must be true or false"),
    ("memfd,prefault=no,prefault", "prefault: is given twice"),
    ("memfd,advice=hugpage", "advice: must be one of dontdump"),
    ("memfd,advice=mergeable", "advice: only private, writable pages are mergeable"),
    ("file", "path: is empty"),
    ("file,create", "path: is empty"),
    ("file,path=x,offset=1", "offset: is not a multiple of the page size 4K"),
    ("file,path=x,create,shared=off", "create: a private mapping writes nothing"),
]


@pytest.mark.parametrize(("text", "problem"), REFUSED)
def test_parse_backing_that_means_nothing_says_why(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_backing(text)
    assert problem in str(caught.value)
    assert str(caught.value).startswith(f"'{text}': ")


_WORDS = st.sampled_from(
    ["memfd", "file", "anonymous", "prefault", "path", "extra", "huge_pages", "advice", "2M", "=", ","]
)


@given(st.lists(_WORDS | st.text(max_size=3), max_size=8).map("".join))
def test_parse_backing_any_text_is_a_backing_or_a_usage_error(text: str) -> None:
    try:
        name, backing = parse_backing(text)
    except UsageError:
        return
    assert name
    assert backing.kind in text


def test_with_backings_takes_the_place_of_what_the_file_says() -> None:
    workload = Workload(
        machine=MachineSpec(backing=Backing.memfd()),
        regions=(
            RegionSpec("a", size=Size(1), backing=Backing.memfd()),
            RegionSpec("b", size=Size(1), backing=Backing.memfd()),
        ),
    )
    found = with_backings(workload, {"ram": Backing.anonymous(), "b": Backing.file("x")})
    assert found.machine.backing == Backing.anonymous()
    assert [one.backing for one in found.regions] == [Backing.memfd(), Backing.file("x")]


# what comes of it


def test_run_file_backing_holds_what_the_guest_wrote(accelctl: Accelctl, stores: str, tmp_path: Path) -> None:
    done = accelctl(
        "run", stores, "--memory-backing", "file,path=ram,create", "--memory-backing", "extra=file,path=extra,create"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ram").read_bytes()[0x1000:0x1004] == b"HI!!"
    assert (tmp_path / "extra").read_bytes()[:4] == b"YO!!"
    assert [(tmp_path / name).stat().st_size for name in ("ram", "extra")] == [2 << 20, 1 << 20]


def test_run_private_file_backing_is_not_written(accelctl: Accelctl, stores: str, tmp_path: Path) -> None:
    (tmp_path / "ram").write_bytes(bytes(2 << 20))
    done = accelctl("run", stores, "--memory-backing", "file,path=ram,shared=off")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ram").read_bytes() == bytes(2 << 20)


def test_run_report_names_the_backing_of_each(accelctl: Accelctl, stores: str) -> None:
    done = accelctl("run", stores, "--memory-backing", "memfd,prefault", "--json")
    assert json.loads(done.stdout)["ram"] == [
        {"name": "ram", "size": 2 << 20, "backing": "memfd", "page_size": 4096, "resident_bytes": 2 << 20},
        {"name": "extra", "size": 1 << 20, "backing": "anonymous", "page_size": 4096, "resident_bytes": 4096},
        {"name": "flash", "size": 4096, "backing": "anonymous", "page_size": 4096, "resident_bytes": 0},
    ]


@pytest.mark.kvm
@pytest.mark.parametrize("backing", ["memfd,prefault", "file,path=ram,create", "anonymous,advice=hugepage"])
def test_run_image_works_in_ram_of_each_kind(accelctl: Accelctl, guests: Path, backing: str) -> None:
    done = accelctl("run", guests / "compute.elf", "--memory-backing", backing, "--timeout", "60", "--json")
    data = json.loads(done.stdout)
    assert (done.returncode, data["exit_status"], data["accelerator"]) == (0, 85, "kvm")
    assert data["ram"][0]["backing"] == backing.partition(",")[0]


def test_run_save_keeps_the_backing(accelctl: Accelctl, stores: str, tmp_path: Path) -> None:
    done = accelctl("run", stores, "--memory-backing", "extra=memfd,advice=dontdump", "--save", "saved.toml")
    assert done.returncode == 0, done.stderr
    assert '[region.backing]\nkind = "memfd"\nadvice = ["dontdump"]\n' in (tmp_path / "saved.toml").read_text()
    assert json.loads(accelctl("run", "saved.toml", "--json").stdout)["ram"][1]["backing"] == "memfd"


BAD = [
    (["memfd,huge_pages=1T"], "RAM 'ram': this kernel knows huge pages of"),
    (["file,path=nothere"], "RAM 'ram': file 'nothere' is not there; make it, or use create=True"),
    (["file,path=/dev/zero"], "is a character device; use a regular file"),
    (["file,path=ram,readonly"], "images go into the machine's RAM; keep writes out of the file with shared=off"),
    (["flash=memfd"], "flash=…: no region of RAM has this name; known are: extra, ram"),
    (["extar=memfd"], "extar=…: no region of RAM has this name; did you mean 'extra'?"),
    (["memfd", "ram=memfd"], "'ram=memfd': 'ram' has a backing already"),
    (["fiel"], "Invalid value for '--memory-backing': 'fiel': must begin with one of"),
]


@pytest.mark.parametrize(("backings", "problem"), BAD)
def test_run_backing_that_cannot_be_is_one_message_and_exits_with_2(
    accelctl: Accelctl, stores: str, backings: list[str], problem: str
) -> None:
    done = accelctl("run", stores, *(word for one in backings for word in ("--memory-backing", one)))
    message = done.stderr.decode()
    assert (done.returncode, done.stdout) == (2, b"")
    assert problem in message
    assert "Traceback" not in message


def test_run_save_of_a_file_backing_is_refused_and_writes_nothing(
    accelctl: Accelctl, stores: str, tmp_path: Path
) -> None:
    done = accelctl("run", stores, "--memory-backing", "file,path=ram,create", "--save", "saved.toml")
    assert done.returncode == 2
    assert "file 'ram'\": cannot be in a workload file; save it without" in done.stderr.decode()
    assert not (tmp_path / "saved.toml").exists()
    assert not (tmp_path / "ram").exists()


def test_run_workload_file_cannot_write_to_files_of_the_host(accelctl: Accelctl, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(bytes(4096))
    (tmp_path / "w.toml").write_text(
        'format = 1\nmachine = {memory = "4K", backing = {kind = "file", path = "victim"}}\n'
        'image = {program = [{op = "store", address = 0, value = 1}]}\n'
    )
    done = accelctl("run", "w.toml", "--accel", "mock")
    assert done.returncode == 2
    assert "w.toml: machine.backing.kind = 'file': would let a workload file" in done.stderr.decode()
    assert "accelctl run --memory-backing [REGION=]file,path=FILE" in done.stderr.decode()
    assert (tmp_path / "victim").read_bytes() == bytes(4096)


# the reference pages


def first_cells(page: str, heading: str) -> set[str]:
    """Return what stands in backquotes in the first cells of the tables under a heading."""
    parts = re.split(r"^#+ (.*)$", (REFERENCE / page).read_text(), flags=re.MULTILINE)
    text = dict(zip(parts[1::2], parts[2::2], strict=True))[heading]
    return {word for row in re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE) for word in re.findall(r"`([^`]*)`", row)}


def test_workload_page_lists_every_field_and_advice_of_a_backing() -> None:
    fields = {field.name for field in attrs.fields(BackingTable)}
    assert first_cells("workload-file.md", "[machine.backing]") == fields | set(FILE_ADVICE)


def test_accelctl_page_lists_every_option_of_a_backing() -> None:
    options = {option.name for kind in OPTIONS.values() for option in kind}
    listed = first_cells("accelctl.md", "Memory backing")
    assert {word.split("=")[0] for word in listed} == options | OPTIONS.keys()
    text = (REFERENCE / "accelctl.md").read_text()
    assert all(f"`{name}`" in text for name in ADVICE)

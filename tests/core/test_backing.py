"""The value that says what RAM is made of: what goes together, and what is refused with field, value, next step."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
from attrs import evolve
from attrs.exceptions import FrozenInstanceError

from accel.errors import OptionError
from accel.memory.backing import ADVICE, Backing, open_backing
from accel.memory.host_file import file_page_size

PAGE = mmap.PAGESIZE
POOLS = Path("/sys/kernel/mm/hugepages")


def test_backing_anonymous_is_private_and_plain() -> None:
    found = Backing.anonymous()
    assert (found.kind, found.shared, found.writes_file, found.huge_pages) == ("anonymous", False, False, None)
    assert found == Backing.anonymous(advice=[])
    assert len({found, Backing.anonymous()}) == 1


def test_backing_memfd_is_shared() -> None:
    found = Backing.memfd(prefault=True)
    assert (found.kind, found.shared, found.writes_file, found.prefault) == ("memfd", True, True, True)


@pytest.mark.parametrize(("size", "meant"), [("2M", 2 << 20), ("1G", 1 << 30), (2 << 20, 2 << 20), ("0x10000", 65536)])
def test_backing_huge_pages_may_be_text_or_bytes(size: int | str, meant: int) -> None:
    assert Backing.anonymous(huge_pages=size).huge_pages == meant


def test_backing_file_takes_paths_and_offsets_as_people_write_them() -> None:
    found = Backing.file(Path("/some/where"), "64K", create=True, advice=["random"])
    assert (found.path, found.offset, found.create, found.advice) == ("/some/where", 65536, True, {"random"})
    assert found.writes_file


@pytest.mark.parametrize(("shared", "readonly"), [(False, False), (True, True), (False, True)])
def test_backing_file_that_is_private_or_readonly_is_not_written(shared: bool, readonly: bool) -> None:
    assert not Backing.file("x", shared=shared, readonly=readonly).writes_file


@pytest.mark.parametrize("name", sorted(ADVICE))
def test_backing_every_advice_is_possible_for_private_memory(name: str) -> None:
    assert Backing.anonymous(advice={name}).advice == {name}


def test_backing_value_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Backing.anonymous().prefault = True


REFUSED = [
    # field, value, next step, how it is made
    ("kind", "'disk'", "anonymous, memfd, file", lambda: Backing(kind="disk")),
    ("huge_pages", "4096", "power of two above 4K; write such as 2M", lambda: Backing.anonymous(huge_pages=PAGE)),
    ("huge_pages", "3145728", "write such as 2M", lambda: Backing.memfd(huge_pages="3M")),
    ("huge_pages", "0", "write such as 2M", lambda: Backing.memfd(huge_pages=0)),
    ("huge_pages", str(1 << 63), "write such as 2M", lambda: Backing.memfd(huge_pages=1 << 63)),
    ("huge_pages", "'big'", "is no size; write bytes or a unit", lambda: Backing.anonymous(huge_pages="big")),
    ("huge_pages", "True", "is no size", lambda: Backing.anonymous(huge_pages=True)),
    ("huge_pages", "2.5", "is no size", lambda: Backing.anonymous(huge_pages=2.5)),
    ("advice", "'fast'", "is none of dontdump, dontfork", lambda: Backing.anonymous(advice={"fast"})),
    ("advice", "3", "is none of dontdump", lambda: Backing.anonymous(advice=[3])),
    ("advice", "'random'", "write a set", lambda: Backing.anonymous(advice="random")),
    ("advice", "None", "write a set", lambda: Backing.anonymous(advice=None)),
    (
        "advice",
        "['hugepage', 'nohugepage']",
        "leave one out",
        lambda: Backing.memfd(advice={"nohugepage", "hugepage"}),
    ),
    ("advice", "['random', 'sequential']", "leave one out", lambda: Backing.memfd(advice={"random", "sequential"})),
    ("advice", "['mergeable']", "use Backing.anonymous", lambda: Backing.memfd(advice={"mergeable"})),
    ("advice", "['mergeable']", "private", lambda: Backing.file("x", advice={"mergeable"})),
    (
        "advice",
        "['mergeable']",
        "writable",
        lambda: Backing.file("x", shared=False, readonly=True, advice={"mergeable"}),
    ),
    *(
        (
            "advice",
            f"['{name}']",
            "leave out it or huge_pages",
            lambda name=name: Backing.anonymous(huge_pages="2M", advice={name}),
        )
        for name in ("hugepage", "nohugepage", "mergeable")
    ),
    ("path", "''", "write the path", lambda: Backing.file("")),
    ("path", r"'a\x00b'", "holds a NUL", lambda: Backing.file("a\0b")),
    ("path", "3", "is no path", lambda: Backing.file(3)),
    ("path", r"'\ud800'", "is no path", lambda: Backing.file("\ud800")),
    ("path", "'x'", "use Backing.file", lambda: evolve(Backing.memfd(), path="x")),
    ("offset", "100", "multiple of the page size 4K; align it", lambda: Backing.file("x", 100)),
    ("offset", "4096", "page size 2M; align it", lambda: Backing.file("x", PAGE, huge_pages="2M")),
    ("offset", "-4096", "is negative", lambda: Backing.file("x", -PAGE)),
    ("offset", "4096", "use Backing.file", lambda: evolve(Backing.anonymous(), offset=PAGE)),
    ("create", "True", "leave out create or readonly", lambda: Backing.file("x", readonly=True, create=True)),
    ("create", "True", "use shared=True", lambda: Backing.file("x", shared=False, create=True)),
    ("create", "True", "use Backing.file", lambda: evolve(Backing.memfd(), create=True)),
    ("readonly", "True", "use Backing.file", lambda: evolve(Backing.anonymous(), readonly=True)),
    ("shared", "True", "use Backing.memfd", lambda: evolve(Backing.anonymous(), shared=True)),
    ("shared", "False", "use Backing.anonymous", lambda: evolve(Backing.memfd(), shared=False)),
    ("shared", "'no'", "True or False", lambda: Backing.file("x", shared="no")),
    ("prefault", "1", "True or False", lambda: Backing.anonymous(prefault=1)),
]


@pytest.mark.parametrize(("field", "value", "step", "make"), REFUSED)
def test_backing_impossible_combination_names_field_value_and_next_step(field, value, step, make) -> None:
    with pytest.raises(OptionError) as caught:
        make()
    assert caught.value.option == field
    assert str(caught.value).startswith(f"backing.{field} = {value}: ")
    assert step in str(caught.value)


@pytest.mark.needs("/sys/kernel/mm/hugepages")
@pytest.mark.parametrize("size", [None, *(int(one.name[10:-2]) << 10 for one in POOLS.glob("hugepages-*kB"))])
def test_open_backing_memfd_has_pages_of_the_size_asked_for(size: int | None) -> None:
    fd, page_size = open_backing(Backing.memfd(huge_pages=size), "r")
    try:
        assert file_page_size(fd) == page_size == (size or PAGE)
    finally:
        os.close(fd)

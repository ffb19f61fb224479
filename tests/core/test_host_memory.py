"""What the host has left, read from kernel files: the real ones, and those of other hosts written out here."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from accel.memory import host_memory
from accel.memory.host_memory import address_of, available_memory, huge_page_problem, prefault, resident_bytes

PAGE = mmap.PAGESIZE
GIB = 1 << 30


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A host with 1 GiB available, whose process is in no control group."""
    return write(tmp_path / "proc", meminfo="MemTotal: 99 kB\nMemAvailable:    1048576 kB\nHugePages_Total: 0\n")


def test_available_memory_is_no_more_than_this_host_has() -> None:
    assert 0 < available_memory() <= os.sysconf("SC_PHYS_PAGES") * PAGE


def test_available_memory_without_groups_is_what_the_host_has_available(proc: Path, tmp_path: Path) -> None:
    assert available_memory(proc, tmp_path / "none") == GIB


def test_available_memory_without_proc_is_all_of_the_host(tmp_path: Path) -> None:
    assert available_memory(tmp_path, tmp_path) == os.sysconf("SC_PHYS_PAGES") * PAGE


@pytest.mark.parametrize("group", ["", "a", "a/b"])
def test_available_memory_counts_every_group_above_of_version_2(proc: Path, tmp_path: Path, group: str) -> None:
    write(proc, self__cgroup="0::/a/b\n")
    root = tmp_path / "cgroup"
    for one in ("", "a", "a/b"):
        (root / one).mkdir(parents=True, exist_ok=True)
        (root / one / "memory.max").write_text("max\n" if one != group else "500000\n")
        (root / one / "memory.current").write_text("300000\n")
        (root / one / "memory.stat").write_text("anon 7\ninactive_file 1000\nactive_file 5000\n")
    assert available_memory(proc, root) == 201000


def test_available_memory_counts_groups_of_version_1(proc: Path, tmp_path: Path) -> None:
    write(proc, self__cgroup="5:cpu,cpuacct:/other\n4:memory:/a\n0::/\n")
    root = tmp_path / "cgroup"
    for one, limit in (("memory", 9223372036854771712), ("memory/a", 500000), ("memory/other", 1)):
        (root / one).mkdir(parents=True, exist_ok=True)
        (root / one / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (root / one / "memory.usage_in_bytes").write_text("300000\n")
        (root / one / "memory.stat").write_text("inactive_file 5\ntotal_inactive_file 1000\n")
    assert available_memory(proc, root) == 201000


def test_available_memory_of_a_full_group_is_nothing(proc: Path, tmp_path: Path) -> None:
    write(proc, self__cgroup="0::/\n")
    root = tmp_path / "cgroup"
    root.mkdir()
    (root / "memory.max").write_text("1000\n")
    (root / "memory.current").write_text("5000\n")
    assert available_memory(proc, root) == 0


def pools(root: Path, **counts: int) -> Path:
    for kib in (2048, 1048576):
        for name in ("nr", "free", "resv", "nr_overcommit", "surplus"):
            path = root / f"hugepages-{kib}kB" / f"{name}_hugepages"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{counts.get(name, 0) if kib == 2048 else 0}\n")
    return root


@pytest.mark.parametrize(
    ("counts", "size", "needed", "available", "wanted"),
    [
        ({}, "1", 1, 0, 1),
        ({"nr": 8, "free": 6, "resv": 4}, 8 << 20, 4, 2, 10),
        ({"nr_overcommit": 3, "surplus": 1}, 6 << 20, 3, 2, 1),
        ({"nr_overcommit": 1, "surplus": 4, "nr": 4, "free": 1}, 4 << 20, 2, 1, 5),
    ],
)
def test_huge_page_problem_says_how_many_and_what_to_write(
    tmp_path: Path, counts: dict[str, int], size: int | str, needed: int, available: int, wanted: int
) -> None:
    found = huge_page_problem(2 << 20, int(size), pools(tmp_path, **counts))
    assert found.startswith(f"it takes {needed} huge pages of 2M, and {available} are free; as root, echo {wanted} > ")
    assert f"{tmp_path}/hugepages-2048kB/nr_hugepages" in found
    # Done as it says, there are enough.
    done = {**counts, "nr": wanted, "free": counts.get("free", 0) + wanted - counts.get("nr", 0)}
    assert huge_page_problem(2 << 20, int(size), pools(tmp_path, **done)) == ""


def test_huge_page_problem_of_an_unknown_size_names_the_known_ones(tmp_path: Path) -> None:
    assert "of 2M, 1G, not of 4M" in huge_page_problem(4 << 20, 1, pools(tmp_path))
    assert "of no size, not of 4M" in huge_page_problem(4 << 20, 1, tmp_path / "none")


def anonymous(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def test_resident_bytes_counts_touched_pages_across_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "_RESIDENT_CHUNK", 4)
    mapping = anonymous(11 * PAGE)
    # Transparent huge pages would make one touched page many.
    mapping.madvise(mmap.MADV_NOHUGEPAGE)
    address = address_of(mapping)
    assert resident_bytes(address, len(mapping)) == 0
    for page in (0, 3, 4, 7, 9, 10):
        mapping[page * PAGE] = 1
    assert resident_bytes(address, len(mapping)) == 6 * PAGE
    assert resident_bytes(address, 10 * PAGE) == 5 * PAGE
    assert resident_bytes(address, 9 * PAGE + 1) == 5 * PAGE
    assert resident_bytes(address, 9 * PAGE) == 4 * PAGE


def test_resident_bytes_of_what_is_not_mapped_is_an_error() -> None:
    with pytest.raises(OSError, match="mincore"):
        resident_bytes((1 << 64) - 2 * PAGE, PAGE)


@pytest.mark.parametrize("known", [True, False], ids=["new-kernel", "old-kernel"])
def test_prefault_touches_what_it_is_told_and_no_more(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    monkeypatch.setattr(host_memory, "_PREFAULT_CHUNK", 3 * PAGE)
    if not known:
        # To this kernel, as to one before 5.14, the number means nothing.
        monkeypatch.setattr(host_memory, "_MADV_POPULATE_WRITE", 9999)
    mapping = anonymous(12 * PAGE)
    mapping.madvise(mmap.MADV_NOHUGEPAGE)
    mapping[5 * PAGE] = 77
    prefault(mapping, 7 * PAGE + 1, PAGE, True, None)
    assert resident_bytes(address_of(mapping), len(mapping)) == 8 * PAGE
    assert mapping[5 * PAGE] == 77
    with open("/proc/self/smaps") as smaps:
        lines = smaps.read().partition(f"{address_of(mapping):x}-")[2].splitlines()
    dirty = next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))
    assert dirty << 10 >= 8 * PAGE


def test_prefault_of_a_shared_file_writes_nothing_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on an old kernel: to write back what was read could undo what another process wrote in between."""
    monkeypatch.setattr(host_memory, "_MADV_POPULATE_WRITE", 9999)
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(8 * PAGE)
        # Through this mapping a write is a TypeError.
        mapping = mmap.mmap(file.fileno(), 8 * PAGE, prot=mmap.PROT_READ)
        prefault(mapping, 8 * PAGE, PAGE, True, (file.fileno(), 0))
        assert resident_bytes(address_of(mapping), 8 * PAGE) == 8 * PAGE
        assert os.fstat(file.fileno()).st_blocks * 512 >= 8 * PAGE

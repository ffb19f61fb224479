"""Blocks of what the host offers: memfds, files, prefault, advice, huge pages; and what it refuses, with the reason."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import mmap
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import accel
from accel.errors import AddressError
from accel.memory import host_memory, ram_block
from accel.memory.backing import ADVICE, Backing
from accel.memory.ram_block import RamBlock

PAGE = mmap.PAGESIZE
HUGE = 2 << 20
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


def smaps_of(block: RamBlock) -> dict[str, str]:
    """Return what the kernel says of the mapping that begins at the block, by field."""
    lines = Path("/proc/self/smaps").read_text().partition(f"{block.address:x}-")[2].splitlines()[1:]
    end = next(number for number, line in enumerate(lines) if line.startswith("VmFlags:")) + 1
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines[:end])}


def in_child(code: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own; it must succeed."""
    env = {**os.environ, "PYTHONPATH": str(Path(accel.__file__).parent.parent)}
    command = [*options.pop("before", []), sys.executable, "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done


# memfds


def test_ram_block_memfd_is_shared_with_another_process() -> None:
    block = RamBlock("shared", 2 * PAGE, backing=Backing.memfd())
    code = """
        import mmap, sys
        with mmap.mmap(int(sys.argv[1]), 8192) as mine:
            assert mine[:6] == b"parent"
            mine[:5] = b"child"
            print("written", flush=True)
            sys.stdin.readline()
            assert mine[4096:4101] == b"later"
    """
    block.view[:6] = b"parent"
    command = [sys.executable, "-c", textwrap.dedent(code), str(block.fd)]
    with subprocess.Popen(
        command, pass_fds=[block.fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "written\n"
        assert bytes(block.view[:6]) == b"childt"
        block.view[4096:4101] = b"later"
        child.communicate("go\n", timeout=60)
    assert child.returncode == 0


def test_ram_block_memfd_cannot_be_cut_under_us() -> None:
    block = RamBlock("sealed", 5000, backing=Backing.memfd())
    assert os.fstat(block.fd).st_size == 2 * PAGE
    for size in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(block.fd, size)
    assert not os.get_inheritable(block.fd)


@pytest.mark.parametrize("name", ["n" * 1000, "\U0001f40d" * 1000, "\ud800", ""])
def test_ram_block_memfd_of_any_name_is_made(name: str) -> None:
    RamBlock(name, PAGE, backing=Backing.memfd()).view[0] = 1


# files


def test_ram_block_file_holds_what_is_written_from_its_offset_on(tmp_path: Path) -> None:
    file = tmp_path / "ram"
    file.write_bytes(b"before" + bytes(PAGE - 6) + b"inside")
    block = RamBlock("r", PAGE, backing=Backing.file(file, PAGE))
    assert bytes(block.view[:6]) == b"inside"
    block.view[:5] = b"later"
    assert file.read_bytes() == b"before" + bytes(PAGE - 6) + b"latere" + bytes(PAGE - 6)
    assert os.fstat(block.fd).st_ino == file.stat().st_ino


def test_ram_block_file_that_is_short_grows_sparse(tmp_path: Path) -> None:
    file = tmp_path / "ram"
    file.write_bytes(b"x")
    block = RamBlock("r", PAGE, 1 << 30, backing=Backing.file(file, PAGE))
    assert file.stat().st_size == PAGE + (1 << 30)
    assert file.stat().st_blocks * 512 < 1 << 20
    assert bytes(block.view[:2]) == b"\0\0"
    assert os.pread(block.fd, 2, 0) == b"x\0"


@pytest.mark.parametrize("more", [0, 1, 100 * PAGE])
def test_ram_block_file_that_is_long_enough_keeps_its_length(tmp_path: Path, more: int) -> None:
    file = tmp_path / "ram"
    file.write_bytes(b"z" * (PAGE + 5 + more))
    block = RamBlock("r", PAGE + 5, backing=Backing.file(file))
    block.view[:] = b"y" * (PAGE + 5)
    block.close()
    assert file.read_bytes() == b"y" * (PAGE + 5) + b"z" * more


def test_ram_block_file_that_grows_meanwhile_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ram"
    file.touch()
    grow = os.posix_fallocate

    def other_is_first(fd: int, offset: int, length: int) -> None:
        os.truncate(file, 1 << 20)
        grow(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", other_is_first)
    RamBlock("r", PAGE, backing=Backing.file(file))
    assert file.stat().st_size == 1 << 20


@pytest.mark.parametrize("shared", [True, False])
def test_ram_block_readonly_file_refuses_writes(tmp_path: Path, shared: bool) -> None:
    file = tmp_path / "ram"
    file.write_bytes(b"kept" + bytes(PAGE))
    block = RamBlock("r", PAGE, backing=Backing.file(file, shared=shared, readonly=True))
    assert bytes(block.view[:4]) == ctypes.string_at(block.address, 4) == b"kept"
    assert block.view.readonly
    with pytest.raises(TypeError):
        block.view[0] = 1
    assert "wr" not in smaps_of(block)["VmFlags"].split()


def test_ram_block_private_file_keeps_writes_to_itself(tmp_path: Path) -> None:
    file = tmp_path / "ram"
    file.write_bytes(b"kept" + bytes(PAGE))
    file.chmod(0o400)
    block = RamBlock("r", PAGE, backing=Backing.file(file, shared=False))
    block.view[:4] = b"mine"
    assert bytes(block.view[:4]) == b"mine"
    assert file.read_bytes()[:4] == b"kept"


@pytest.mark.parametrize("options", [{"readonly": True}, {"shared": False}])
def test_ram_block_file_that_is_short_and_not_written_is_refused(tmp_path: Path, options: dict[str, bool]) -> None:
    file = tmp_path / "ram"
    file.write_bytes(bytes(PAGE))
    with pytest.raises(AddressError, match=r"'.*ram' has 0x1000 bytes, but offset \+ max_size is 0x1001 .*; use less"):
        RamBlock("r", 1, PAGE + 1, backing=Backing.file(file, **options))
    assert file.stat().st_size == PAGE
    assert len(RamBlock("r", 1, PAGE, backing=Backing.file(file, **options)).view) == PAGE


def test_ram_block_file_in_use_as_a_program_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "sleep"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program, "60"]) as running:
        with pytest.raises(AddressError, match=r"RAM 'r': file '.*sleep' cannot be written; use readonly=True"):
            RamBlock("r", PAGE, backing=Backing.file(program))
        running.kill()


def test_ram_block_file_of_the_kernel_is_refused() -> None:
    with pytest.raises(
        AddressError, match=r"RAM 'r': (file '/proc/self/comm' cannot have 0x1000 bytes|it cannot be mapped)"
    ):
        RamBlock("r", PAGE, backing=Backing.file("/proc/self/comm"))


def test_ram_block_file_may_be_the_memfd_of_another_block() -> None:
    one = RamBlock("one", 4 * PAGE, backing=Backing.memfd())
    two = RamBlock("two", 3 * PAGE, backing=Backing.file(f"/proc/self/fd/{one.fd}", PAGE))
    one.view[PAGE] = 5
    assert two.view[0] == 5
    # It is sealed, so this one cannot make it longer.
    with pytest.raises(AddressError, match="cannot have 0x5000 bytes"):
        RamBlock("three", 4 * PAGE, backing=Backing.file(f"/proc/self/fd/{one.fd}", PAGE))


# prefault and advice


@pytest.mark.parametrize("known", [True, False], ids=["new-kernel", "old-kernel"])
@pytest.mark.parametrize("kind", ["anonymous", "memfd", "shared file", "private file", "readonly file"])
def test_ram_block_prefault_touches_all_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, known: bool
) -> None:
    if not known:
        monkeypatch.setattr(host_memory, "_MADV_POPULATE_WRITE", 9999)
        monkeypatch.setattr(host_memory, "_MADV_POPULATE_READ", 9999)
    file = tmp_path / "ram"
    file.write_bytes(b"x" * PAGE)
    os.truncate(file, 64 * PAGE)
    backing = {
        "anonymous": Backing.anonymous(prefault=True, advice={"nohugepage"}),
        "memfd": Backing.memfd(prefault=True, advice={"nohugepage"}),
        "shared file": Backing.file(file, prefault=True),
        "private file": Backing.file(file, shared=False, prefault=True),
        "readonly file": Backing.file(file, readonly=True, prefault=True),
    }[kind]
    block = RamBlock("r", 32 * PAGE, 64 * PAGE, backing=backing)
    assert int(smaps_of(block)["Rss"].split()[0]) << 10 >= 32 * PAGE
    if backing.kind != "file":
        assert block.resident_bytes() == 32 * PAGE
        assert not any(block.view)
    else:
        assert bytes(block.view) == b"x" * PAGE + bytes(63 * PAGE)
    if kind == "private file":
        # Each page is this process's own already.
        assert int(smaps_of(block)["Anonymous"].split()[0]) << 10 == 32 * PAGE
    if kind == "shared file":
        # The file system has given the room already.
        assert file.stat().st_blocks * 512 >= 32 * PAGE
    block.close()
    assert file.read_bytes() == b"x" * PAGE + bytes(63 * PAGE)


def test_ram_block_without_prefault_has_no_pages() -> None:
    block = RamBlock("r", 1 << 30)
    assert block.resident_bytes() == 0


@pytest.mark.parametrize("kind", ["anonymous", "memfd", "file"])
def test_ram_block_prefault_of_more_than_the_host_has_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "ram"
    backing = {
        "anonymous": Backing.anonymous(prefault=True),
        "memfd": Backing.memfd(prefault=True),
        "file": Backing.file(file, create=True, prefault=True),
    }[kind]
    host = os.sysconf("SC_PHYS_PAGES") * PAGE
    with pytest.raises(
        AddressError, match=r"RAM 'r': prefault would take .*, and \d+M are available .*; make it small"
    ):
        RamBlock("r", 2 * host, backing=backing)
    assert not file.exists() or file.stat().st_size == 0


def test_ram_block_prefault_asks_for_what_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ram"
    file.write_bytes(b"x" * 2 * PAGE)
    room = file.stat().st_blocks * 512
    monkeypatch.setattr(ram_block, "available_memory", lambda: 3 * PAGE)
    shared, private = (Backing.file(file, shared=shared, prefault=True) for shared in (True, False))
    RamBlock("r", 3 * PAGE, 99 * PAGE, backing=Backing.anonymous(prefault=True))
    with pytest.raises(AddressError, match="would take 16K"):
        RamBlock("r", 4 * PAGE, backing=Backing.anonymous(prefault=True))
    os.truncate(file, 1 << 20)
    RamBlock("r", room + 3 * PAGE, backing=shared)
    with pytest.raises(AddressError, match="would take"):
        RamBlock("r", file.stat().st_blocks * 512 + 4 * PAGE, backing=shared)
    with pytest.raises(AddressError, match="would take 16K"):
        RamBlock("r", 4 * PAGE, backing=private)


ADVICE_FLAGS = {
    "dontdump": "dd",
    "dontfork": "dc",
    "hugepage": "hg",
    "mergeable": "mg",
    "nohugepage": "nh",
    "random": "rr",
    "sequential": "sr",
}


@pytest.mark.parametrize("name", sorted(ADVICE))
def test_ram_block_advice_reaches_the_kernel(name: str) -> None:
    try:
        block = RamBlock("r", 8 * PAGE, backing=Backing.anonymous(advice={name}))
    except AddressError as error:
        # A kernel may be built without it; the error then says so.
        assert f"does not take the advice '{name}'" in str(error)
        pytest.skip(str(error))
    assert ADVICE_FLAGS[name] in smaps_of(block)["VmFlags"].split()


def test_ram_block_advice_that_the_kernel_does_not_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADVICE, "random", 9999)
    with pytest.raises(AddressError, match=r"RAM 'r': this host's kernel does not take the advice 'random' .*; leave"):
        RamBlock("r", PAGE, backing=Backing.anonymous(advice={"random"}))


# huge pages


@pytest.fixture
def pool_to_itself() -> Iterator[None]:
    """The host's pool of huge pages is one for all processes: those that run these tests take turns."""
    try:
        fd = os.open(POOL, os.O_RDONLY)
    except FileNotFoundError:
        # A kernel without such pages, which the tests say themselves.
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@pytest.fixture
def huge_pages(pool_to_itself: None) -> Iterator[Callable[[], int]]:
    """Four more huge pages of 2M in the host's pool; gives how many are free and not promised."""
    count = POOL / "nr_hugepages"
    try:
        before = int(count.read_text())
        count.write_text(f"{before + 4}")
    except OSError as error:
        pytest.skip(f"cannot reserve huge pages here: {error}")

    def free() -> int:
        return int((POOL / "free_hugepages").read_text()) - int((POOL / "resv_hugepages").read_text())

    try:
        if free() < 4:
            pytest.skip("this host has no four huge pages of 2M to reserve")
        yield free
    finally:
        gc.collect()
        count.write_text(f"{before}")


@pytest.mark.parametrize("make", [Backing.anonymous, Backing.memfd])
@pytest.mark.parametrize("fault", [True, False])
def test_ram_block_huge_pages_are_taken_for_all_of_max_size(
    huge_pages: Callable[[], int], make: Callable[..., Backing], fault: bool
) -> None:
    free = huge_pages()
    block = RamBlock("r", HUGE + 1, 3 * HUGE - 5, backing=make(huge_pages="2M", prefault=fault))
    assert free - huge_pages() == 3
    assert (block.page_size, block.address % HUGE, len(block.view)) == (HUGE, 0, 3 * HUGE - 5)
    assert smaps_of(block)["KernelPageSize"] == "2048 kB"
    assert block.resident_bytes() == (2 * HUGE if fault else 0)
    block.view[-1] = 9
    assert ctypes.string_at(block.address + 3 * HUGE - 6, 1) == b"\x09"
    block.close()
    assert huge_pages() == free


@pytest.mark.parametrize("make", [Backing.anonymous, Backing.memfd])
def test_ram_block_huge_pages_given_back_read_as_zero(
    huge_pages: Callable[[], int], make: Callable[..., Backing]
) -> None:
    block = RamBlock("r", 3 * HUGE, backing=make(huge_pages=HUGE, prefault=True))
    block.view[0] = block.view[HUGE] = block.view[2 * HUGE] = 1
    with pytest.raises(AddressError, match="whole pages of 2M"):
        block.discard(PAGE, HUGE)
    block.discard(HUGE, HUGE)
    assert block.resident_bytes() == 2 * HUGE
    assert [block.view[at * HUGE] for at in range(3)] == [1, 0, 1]


def test_ram_block_file_on_hugetlbfs_has_its_pages(huge_pages: Callable[[], int]) -> None:
    # A memfd of huge pages is a file on the kernel's own hugetlbfs; its link makes it a path.
    fd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    try:
        path = f"/proc/self/fd/{fd}"
        block = RamBlock("r", 1, backing=Backing.file(path, HUGE))
        assert (block.page_size, len(block.view), os.fstat(fd).st_size) == (HUGE, 1, 2 * HUGE)
        block.view[0] = 7
        assert RamBlock("s", HUGE + 1, backing=Backing.file(path, huge_pages="2M")).view[HUGE] == 7
        with pytest.raises(AddressError, match="has pages of 2M, not of 1G; use one on a hugetlbfs"):
            RamBlock("r", HUGE, backing=Backing.file(path, huge_pages="1G"))
        with pytest.raises(AddressError, match="has pages of 2M, so offset 0x1000 cannot begin one; align it"):
            RamBlock("r", HUGE, backing=Backing.file(path, PAGE))
    finally:
        os.close(fd)


def test_ram_block_huge_pages_of_a_file_with_ordinary_pages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="has pages of 4K, not of 2M; use one on a hugetlbfs"):
        RamBlock("r", HUGE, backing=Backing.file(tmp_path / "ram", create=True, huge_pages="2M"))


@pytest.mark.usefixtures("pool_to_itself")
@pytest.mark.needs("/sys/kernel/mm/hugepages/hugepages-2048kB")
@pytest.mark.parametrize("make", [Backing.anonymous, Backing.memfd])
def test_ram_block_huge_pages_that_are_not_reserved_are_refused(make: Callable[..., Backing]) -> None:
    counts = {name: int((POOL / f"{name}_hugepages").read_text()) for name in ("nr", "free", "resv", "nr_overcommit")}
    needed = counts["free"] + counts["nr_overcommit"] + 3
    with pytest.raises(AddressError) as caught:
        RamBlock("r", HUGE, needed * HUGE, backing=make(huge_pages="2M"))
    assert f"RAM 'r': it takes {needed} huge pages of 2M, and " in str(caught.value)
    assert "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages, or leave huge_pages out" in str(caught.value)
    assert caught.value.__cause__.errno == errno.ENOMEM


@pytest.mark.needs("/sys/kernel/mm/hugepages")
@pytest.mark.parametrize("make", [Backing.anonymous, Backing.memfd])
def test_ram_block_huge_pages_of_a_size_unknown_to_the_kernel_are_refused(make: Callable[..., Backing]) -> None:
    with pytest.raises(AddressError, match=r"RAM 'r': this kernel knows huge pages of .*, not of 128T; use another"):
        RamBlock("r", PAGE, backing=make(huge_pages="128T"))


# what a full file system and a poor one do, in a mount namespace of their own


@pytest.mark.needs("unshare", "mount")
@pytest.mark.parametrize("known", [True, False], ids=["new-kernel", "old-kernel"])
def test_ram_block_prefault_on_a_full_file_system_is_an_error_and_leaks_nothing(tmp_path: Path, known: bool) -> None:
    code = """
        import os, sys
        from accel.errors import AddressError
        from accel.memory import host_memory
        from accel.memory.backing import Backing
        from accel.memory.ram_block import RamBlock
        if sys.argv[2] == "False":
            host_memory._MADV_POPULATE_WRITE = 9999
        fds = os.listdir("/proc/self/fd")
        try:
            RamBlock("r", 4 << 20, backing=Backing.file(sys.argv[1] + "/ram", create=True, prefault=True))
        except AddressError as error:
            assert "prefault got no memory for all of 4M" in str(error), error
        else:
            raise AssertionError("it fits")
        assert os.listdir("/proc/self/fd") == fds
        assert "/ram" not in open("/proc/self/maps").read()
    """
    in_child(code, str(tmp_path), str(known), before=mounted("tmpfs", tmp_path, "size=1M"))


@pytest.mark.needs("unshare", "mount")
def test_ram_block_discard_on_a_file_system_that_cannot_is_refused(tmp_path: Path) -> None:
    code = """
        import sys
        from accel.errors import UsageError
        from accel.memory.backing import Backing
        from accel.memory.ram_block import RamBlock
        block = RamBlock("r", 8192, backing=Backing.file(sys.argv[1] + "/ram", create=True))
        block.view[0] = 1
        try:
            block.discard(0, 4096)
        except UsageError as error:
            assert "this host cannot give back parts of it" in str(error), error
        else:
            raise AssertionError("it can")
        assert block.view[0] == 1
    """
    in_child(code, str(tmp_path), before=mounted("ramfs", tmp_path))


def mounted(kind: str, path: Path, options: str = "mode=700") -> list[str]:
    """Return the beginning of a command that sees such a file system at `path`, alone."""
    script = f'mount -t {kind} -o {options} none {path} && exec "$@"'
    before = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    return before

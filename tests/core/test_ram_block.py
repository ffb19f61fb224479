"""Host memory of every make, on the real thing: what it holds, how long it lives, how pages go back."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.errors import AddressError, ClosedError, StateError, UsageError
from accel.memory.backing import ADVICE, Backing
from accel.memory.ram_block import RamBlock
from accel.memory.region import MemoryRegion

PAGE = mmap.PAGESIZE
#: More than any host has of address space, and less than a C long holds.
TOO_MUCH = 1 << 61


@pytest.fixture(params=["anonymous", "memfd", "file", "file at an offset"])
def backing(request: pytest.FixtureRequest, tmp_path: Path) -> Backing:
    """Each kind of writable memory whose writes go to it."""
    match request.param:
        case "anonymous":
            return Backing.anonymous()
        case "memfd":
            return Backing.memfd()
        case "file":
            return Backing.file(tmp_path / "ram", create=True)
        case _:
            return Backing.file(tmp_path / "ram", 3 * PAGE, create=True)


def mapped_lines(part: str) -> list[str]:
    """Return the lines of this process's memory map that name `part`."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if part in line]


# sizes, addresses, contents


def test_ram_block_keeps_address_and_contents_when_its_size_changes(backing: Backing) -> None:
    block = RamBlock("r", 2 * PAGE, 64 * PAGE, backing=backing)
    address = block.address
    assert (block.size, block.max_size, block.backing, block.page_size) == (2 * PAGE, 64 * PAGE, backing, PAGE)
    assert address % PAGE == 0
    block.view[:4] = b"here"
    block.view[64 * PAGE - 1] = 7
    for size in (64 * PAGE, PAGE, 64 * PAGE):
        block.size = size
        assert block.address == address
    assert len(block.view) == 64 * PAGE
    assert (bytes(block.view[:4]), block.view[64 * PAGE - 1]) == (b"here", 7)
    assert ctypes.string_at(address, 4) == b"here"
    assert not any(block.view[4 : 64 * PAGE - 1])


def test_ram_block_of_no_whole_pages_has_exactly_its_bytes(backing: Backing) -> None:
    block = RamBlock("r", 5, 2 * PAGE + 5, backing=backing)
    assert len(block.view) == 2 * PAGE + 5
    block.view[-1] = 9
    assert ctypes.string_at(block.address + 2 * PAGE + 4, 1) == b"\x09"


@pytest.mark.parametrize(("size", "limit"), [(0, None), (-1, None), (0, PAGE), (2 * PAGE, PAGE), (PAGE, 0), (PAGE, -1)])
def test_ram_block_size_that_is_not_positive_or_above_max_size_is_refused(size: int, limit: int | None) -> None:
    with pytest.raises(AddressError, match=r"RAM 'r' of size .*: 0 < size <= max_size must hold"):
        RamBlock("r", size, limit)


def test_ram_block_name_with_a_nul_is_refused() -> None:
    with pytest.raises(AddressError, match=r"RAM 'a\\x00b': its name holds a NUL.*; leave it out"):
        RamBlock("a\0b", PAGE, backing=Backing.memfd())


@pytest.mark.parametrize("size", [TOO_MUCH, 1 << 70])
def test_ram_block_more_than_the_address_space_is_refused(backing: Backing, size: int) -> None:
    with pytest.raises(AddressError, match=r"RAM 'r': .*(ask for less memory|use less)"):
        RamBlock("r", PAGE, size, backing=backing)


def test_ram_block_repr_says_how_much_is_in_use() -> None:
    assert repr(RamBlock("r", PAGE, 1 << 20)) == "<RamBlock r 4K of 1M>"


# lifetime


def test_ram_block_closed_under_a_reader_stays_until_the_reader_is_done(spawn) -> None:
    block = RamBlock("reader-inside", 2 * PAGE, backing=Backing.memfd())
    block.view[PAGE : PAGE + 4] = b"kept"
    holds, gone = threading.Event(), threading.Event()

    def read(view: list[memoryview]) -> bytes:
        with view.pop() as mine:
            holds.set()
            assert gone.wait(60)
            assert mapped_lines("memfd:reader-inside")
            return bytes(mine[PAGE : PAGE + 4])

    handed_over = [block.view]
    reader = spawn(lambda: read(handed_over))
    assert holds.wait(60)
    fd = block.fd
    block.close()
    with pytest.raises(OSError):
        os.fstat(fd)
    with pytest.raises(ClosedError, match="host memory of 'reader-inside' is released"):
        block.view  # noqa: B018
    del block
    gc.collect()
    gone.set()
    assert reader.join() == b"kept"
    assert not mapped_lines("memfd:reader-inside")


def test_ram_block_dropped_without_close_lets_go_of_all(backing: Backing) -> None:
    gc.collect()  # what earlier tests left
    before = os.listdir("/proc/self/fd")
    block = RamBlock("dropped", 1 << 30, backing=backing)
    address = f"{block.address:x}-"
    assert mapped_lines(address)
    del block
    gc.collect()
    assert os.listdir("/proc/self/fd") == before
    assert not mapped_lines(address)


def test_ram_block_slice_of_a_view_holds_it_too() -> None:
    block = RamBlock("slice", PAGE, backing=Backing.memfd())
    part = block.view[8:16].cast("H")
    block.close()
    part[0] = 7
    assert part[0] == 7
    assert mapped_lines("memfd:slice")
    part.release()
    assert not mapped_lines("memfd:slice")


def test_ram_block_that_is_mapped_by_an_accelerator_is_not_closed() -> None:
    block = RamBlock("pinned", PAGE, backing=Backing.memfd())
    block.retain()
    block.retain()
    for left in (2, 1):
        with pytest.raises(StateError, match=f"RAM 'pinned' is mapped {left} times; take its regions out of the VM"):
            block.close()
        assert block.pins == left
        assert mapped_lines("memfd:pinned")
        assert os.fstat(block.fd).st_size == PAGE
        block.view[0] = left
        block.release()
    block.close()
    block.close()
    assert not mapped_lines("memfd:pinned")
    assert block.fd == -1


@pytest.mark.parametrize("first", ["close", "retain"])
def test_ram_block_closed_while_another_thread_maps_it_is_unmapped_or_mapped_and_never_both(
    first: str, stage, spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host address under a slot would be the address of nothing, or of something else."""
    region = MemoryRegion.ram("r", PAGE, backing=Backing.memfd())
    fd, close = region.block.fd, os.close

    def closing(number: int) -> None:
        """Let another thread map it in the middle of `RamBlock.close`."""
        if number == fd:
            with pytest.raises(ClosedError, match="host memory of 'r' is released"):
                spawn(lambda: stage.memory.add(region, 0)).join()
        close(number)

    def mapping(number: int) -> None:
        """Let another thread close it in the middle of the commit that maps it."""
        with pytest.raises(StateError, match="'r' is mapped 1 times"):
            spawn(region.release).join()

    if first == "close":
        monkeypatch.setattr(os, "close", closing)
        region.release()
    else:
        stage.slots.before_call = mapping
        stage.memory.add(region, 0)
    assert (region.block.pins, len(stage.slots.slots)) == ((0, 0) if first == "close" else (1, 1))
    stage.check()


def test_ram_block_release_without_retain_is_refused() -> None:
    block = RamBlock("r", PAGE)
    with pytest.raises(StateError, match="RAM 'r' is released more often than it was retained"):
        block.release()
    block.retain()
    block.release()
    with pytest.raises(StateError):
        block.release()
    assert block.pins == 0


@pytest.mark.parametrize(
    "use",
    [
        lambda block: block.view,
        lambda block: block.retain(),
        lambda block: block.discard(0, PAGE),
        lambda block: block.resident_bytes(),
        lambda block: block.serve(NotImplemented),
    ],
)
def test_ram_block_used_after_close_says_so(backing: Backing, use: Callable[[RamBlock], object]) -> None:
    block = RamBlock("r", PAGE, backing=backing)
    with block.view:
        block.close()
        with pytest.raises(ClosedError, match="host memory of 'r' is released"):
            use(block)
    with pytest.raises(ClosedError, match="host memory of 'r' is released"):
        use(block)


@pytest.mark.needs("/sys/kernel/mm/hugepages/hugepages-2048kB")
@pytest.mark.parametrize(
    "make",
    [
        lambda path: RamBlock("r", PAGE, TOO_MUCH),
        lambda path: RamBlock("r", PAGE, TOO_MUCH, backing=Backing.memfd()),
        lambda path: RamBlock("r", PAGE, TOO_MUCH, backing=Backing.file(path / "new", create=True)),
        lambda path: RamBlock("r", 1 << 30, backing=Backing.anonymous(huge_pages="128T")),
        lambda path: RamBlock("r", 1 << 50, backing=Backing.memfd(huge_pages="2M")),
        lambda path: RamBlock("r", 1 << 30, backing=Backing.memfd(advice={"random"})),
        lambda path: RamBlock("r", 1 << 30, backing=Backing.anonymous(advice={"random"})),
        lambda path: RamBlock("r", 1 << 30, backing=Backing.file(path / "file", advice={"random"})),
        lambda path: RamBlock("r", 1 << 50, backing=Backing.file(path / "file", prefault=True)),
        lambda path: RamBlock("r", 1 << 50, backing=Backing.memfd(prefault=True)),
        lambda path: RamBlock("r", 1 << 30, backing=Backing.file(path / "file", readonly=True)),
        lambda path: RamBlock("r", 1 << 30, backing=Backing.file(path / "file", huge_pages="2M")),
        lambda path: RamBlock("r", 1 << 30, backing=Backing.file(path)),
        lambda path: RamBlock("r", 1 << 30, backing=Backing.file(path / "none")),
        lambda path: RamBlock("r", PAGE, backing=Backing.file("/proc/self/comm")),
        lambda path: RamBlock("r", 2 << 30, 1 << 30),
    ],
)
def test_ram_block_that_fails_leaves_no_fd_and_no_mapping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], RamBlock]
) -> None:
    monkeypatch.setitem(ADVICE, "random", 9999)
    (tmp_path / "file").touch()

    def used() -> tuple[list[str], int]:
        status = Path("/proc/self/status").read_text()
        return os.listdir("/proc/self/fd"), int(status.partition("VmSize:")[2].split()[0]) << 10

    gc.collect()  # what earlier tests left
    fds, size = used()
    for _ in range(2):
        with pytest.raises(AddressError) as caught:
            make(tmp_path)
        # The exception still holds the frames that failed, so nothing here was left to the garbage collector.
        assert caught.tb is not None
        assert used()[0] == fds
        assert used()[1] - size < 1 << 29


@pytest.mark.parametrize("room", [0, 1], ids=["memfd", "mapping"])
def test_ram_block_without_a_free_fd_is_refused(room: int) -> None:
    gc.collect()  # what earlier tests left could make room for one more
    fds = os.listdir("/proc/self/fd")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + room, limits[1]))
    try:
        with pytest.raises(AddressError, match=r"RAM 'r': it.* cannot be .*Too many open files"):
            RamBlock("r", PAGE, backing=Backing.memfd())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert os.listdir("/proc/self/fd") == fds


# giving pages back


def test_ram_block_discard_gives_pages_back_and_they_read_as_zero(backing: Backing) -> None:
    block = RamBlock("r", 2 * PAGE, 8 * PAGE, backing=backing)
    if backing.kind == "anonymous":
        block._map.madvise(mmap.MADV_NOHUGEPAGE)
    block.view[:] = b"x" * (8 * PAGE)
    assert block.resident_bytes() == 8 * PAGE
    room = os.fstat(block.fd).st_blocks if backing.kind == "file" else 0
    block.discard(PAGE, 5 * PAGE)
    assert bytes(block.view) == b"x" * PAGE + bytes(5 * PAGE) + b"x" * (2 * PAGE)
    if backing.kind != "file":
        block.discard(0, 8 * PAGE)
        assert block.resident_bytes() == 0
    else:
        assert Path(backing.path).stat().st_size == backing.offset + 8 * PAGE
        assert (room - Path(backing.path).stat().st_blocks) * 512 == 5 * PAGE


def test_ram_block_discard_shows_in_other_mappings() -> None:
    block = RamBlock("r", 2 * PAGE, backing=Backing.memfd())
    with mmap.mmap(block.fd, 2 * PAGE) as other:
        other[:] = b"x" * (2 * PAGE)
        block.discard(0, PAGE)
        assert other[:] == bytes(PAGE) + b"x" * PAGE


@pytest.mark.parametrize(
    ("offset", "size", "problem"),
    [
        (1, PAGE, "offset 0x1, size 0x1000 are not of whole pages of 4K; align both"),
        (0, PAGE - 1, "not of whole pages of 4K"),
        (0, 0, r"\[0x0, 0x0\) is empty or not inside 0x4000 bytes"),
        (0, 5 * PAGE, "not inside 0x4000 bytes"),
        (4 * PAGE, PAGE, "not inside 0x4000 bytes"),
        (-PAGE, PAGE, "not inside 0x4000 bytes"),
        (2 * PAGE, -PAGE, "not inside 0x4000 bytes"),
        (1 << 70, PAGE, "not inside 0x4000 bytes"),
    ],
)
def test_ram_block_discard_of_what_is_no_part_is_refused(
    backing: Backing, offset: int, size: int, problem: str
) -> None:
    block = RamBlock("r", PAGE, 4 * PAGE, backing=backing)
    block.view[:] = b"x" * (4 * PAGE)
    with pytest.raises(AddressError, match=problem):
        block.discard(offset, size)
    assert bytes(block.view) == b"x" * (4 * PAGE)


def test_ram_block_discard_leaves_a_last_part_page_and_what_is_behind_it_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "ram"
    file.write_bytes(b"x" * (2 * PAGE))
    block = RamBlock("r", PAGE + 5, backing=Backing.file(file))
    with pytest.raises(AddressError, match="is empty or not inside 0x1005 bytes"):
        block.discard(PAGE, PAGE)
    block.discard(0, PAGE)
    assert file.read_bytes() == bytes(PAGE) + b"x" * PAGE


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"readonly": True}, "is read-only; write zeros instead"),
        ({"shared": False}, "is private, so the file's own bytes would show again; write zeros instead"),
    ],
)
def test_ram_block_discard_of_a_file_that_is_not_written_is_refused(
    tmp_path: Path, options: dict[str, bool], problem: str
) -> None:
    file = tmp_path / "ram"
    file.write_bytes(b"x" * PAGE)
    block = RamBlock("r", PAGE, backing=Backing.file(file, **options))
    with pytest.raises(UsageError, match=f"RAM 'r': its file '.*ram' {problem}"):
        block.discard(0, PAGE)
    assert file.read_bytes() == bytes(block.view) == b"x" * PAGE


@given(
    st.booleans(),
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 8 * PAGE - 1), st.binary(min_size=1, max_size=20)),
            st.tuples(st.just("discard"), st.integers(0, 7), st.integers(1, 8)),
            st.tuples(st.just("size"), st.integers(0, 8 * PAGE), st.none()),
        ),
        max_size=12,
    ),
)
def test_ram_block_holds_what_a_list_of_pages_would(shared: bool, steps: list[tuple[str, int, object]]) -> None:
    """Writes and discards in any order, beside a list of pages that are there or not."""
    block = RamBlock("r", PAGE, 8 * PAGE, backing=Backing.memfd() if shared else Backing.anonymous())
    address = block.address
    pages: list[bytearray | None] = [None] * 8
    for step, at, value in steps:
        if step == "write":
            block.view[at : at + len(value)] = value[: 8 * PAGE - at]
            for place, one in enumerate(value[: 8 * PAGE - at], at):
                page = pages[place // PAGE] = pages[place // PAGE] or bytearray(PAGE)
                page[place % PAGE] = one
        elif step == "discard":
            count = min(value, 8 - at)
            block.discard(at * PAGE, count * PAGE)
            pages[at : at + count] = [None] * count
        else:
            block.size = at
    assert bytes(block.view) == b"".join(bytes(page or PAGE) for page in pages)
    assert block.address == address
    block.close()

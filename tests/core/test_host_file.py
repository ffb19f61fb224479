"""Which files can be RAM, on real files of every kind."""

from __future__ import annotations

import gc
import mmap
import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from accel.errors import AddressError
from accel.memory.host_file import file_page_size, open_regular


def opened(path: object, *, write: bool = True, create: bool = False) -> int:
    return open_regular(str(path), "RAM 'x'", write=write, create=create)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"here")
    return path


@pytest.mark.parametrize("write", [True, False])
def test_open_regular_opens_for_what_is_asked_and_for_no_child(file: Path, write: bool) -> None:
    fd = opened(file, write=write)
    try:
        assert os.read(fd, 4) == b"here"
        assert not os.get_inheritable(fd)
        if write:
            assert os.write(fd, b"!") == 1
        else:
            with pytest.raises(OSError):
                os.write(fd, b"!")
        assert file_page_size(fd) == mmap.PAGESIZE
    finally:
        os.close(fd)


def test_open_regular_makes_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    os.close(opened(tmp_path / "new", create=True))
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


def test_open_regular_with_create_leaves_what_is_there(file: Path) -> None:
    os.close(opened(file, create=True))
    assert file.read_bytes() == b"here"


def special(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / kind
    match kind:
        case "a directory":
            path.mkdir()
        case "a FIFO":
            os.mkfifo(path)
        case "a socket":
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(str(path))
        case "a character device":
            path.symlink_to("/dev/null")
    return path


@pytest.mark.parametrize("kind", ["a directory", "a FIFO", "a socket", "a character device"])
@pytest.mark.parametrize("write", [True, False])
def test_open_regular_refuses_special_files_with_the_reason(tmp_path: Path, kind: str, write: bool) -> None:
    with pytest.raises(AddressError, match=f"RAM 'x' is {kind}; use a regular file"):
        opened(special(tmp_path, kind), write=write)


def test_open_regular_block_device_is_refused_without_opening_it(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "disk", stat.S_IFBLK | 0o600, os.makedev(240, 77))
    except PermissionError as error:
        pytest.skip(f"makes no device here: {error}")
    # To open it would fail in another way: no driver has this number.
    with pytest.raises(AddressError, match="is a block device; use a regular file"):
        opened(tmp_path / "disk")


def test_open_regular_special_file_that_appears_after_the_look_is_refused(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = special(tmp_path, "a FIFO")
    look = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: look(file if path == str(fifo) else path, **options))
    gc.collect()  # what earlier tests left
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AddressError, match="is a FIFO"):
        opened(fifo, write=False)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("path", "create", "problem"),
    [
        ("none", False, "is not there; make it, or use create=True"),
        ("none/at/all", True, "has no directory to be in; make that first"),
        ("file/below", False, "cannot be opened; check its path"),
        ("loop", False, "cannot be opened; check its path"),
        ("x" * 300, True, "cannot be opened; check its path"),
    ],
)
def test_open_regular_problem_says_the_next_step(
    tmp_path: Path, file: Path, path: str, create: bool, problem: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(AddressError, match=problem) as caught:
        opened(tmp_path / path, create=create)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(("write", "step"), [(True, "readonly=True or shared=False"), (False, "read; change its perm")])
def test_open_regular_without_permission_says_the_next_step(write: bool, step: str) -> None:
    user = os.geteuid()
    # Others can come to /dev/shm, but not to pytest's own folder.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        file = Path(folder, "file")
        file.touch(mode=0)
        Path(folder).chmod(0o755)
        if user == 0:
            # Root may open anything, so this process is someone else for a moment.
            os.seteuid(65534)
        try:
            with pytest.raises(AddressError, match=step):
                opened(file, write=write)
        finally:
            os.seteuid(user)

"""The file of a trace, with real files, pipes and forks: whatever happens to it, machines run on and say it once."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

import accel
from accel.errors import UsageError
from accel_trace import file as trace_file

from .conftest import read_lines


def create() -> accel.Machine:
    return accel.Machine.create("mock", memory="64K")


def change(machine: accel.Machine, times: int = 1) -> None:
    """Change the map a few times; each must come into force."""
    for _ in range(times):
        at = 0x10000 if machine.memory.view[0].range.start == 0 else 0
        machine.ram.move(at)
        assert machine.memory.view[0].range.start == at


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(trace_file, "_warned", set())
    before = os.listdir("/proc/self/fd")
    yield
    assert trace_file._files == {}
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.fixture
def warnings_of() -> Iterator[list[str]]:
    """The warnings of the tracer, as they come."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    keep = Keep()
    logging.getLogger("accel.trace").addHandler(keep)
    yield found
    logging.getLogger("accel.trace").removeHandler(keep)


def test_file_is_appended_to(trace: Path) -> None:
    trace.write_text('{"before": 1}\n')
    create().close()
    create().close()
    first, *rest = read_lines(trace)
    assert first == {"before": 1}
    opened = [line["machine"] for line in rest if line["event"] == "open"]
    assert len(set(opened)) == 2, "no two machines of a process have one name"


def test_file_is_shared_by_the_machines_of_a_process(trace: Path) -> None:
    with create() as one, create() as other:
        fds = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
        assert fds.count(str(trace)) == 1
        barrier = threading.Barrier(2)

        def work(machine: accel.Machine) -> None:
            barrier.wait()
            change(machine, 100)

        threads = [threading.Thread(target=work, args=(machine,)) for machine in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = read_lines(trace)
    for name in {line["machine"] for line in lines}:
        mine = [line["event"] for line in lines if line["machine"] == name]
        assert mine.count("begin") == mine.count("commit") == 101
        assert mine[-1] == "close"


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_file_stays_open_for_the_machines_that_are_left(trace: Path) -> None:
    one, other = create(), create()
    one.close()
    change(other)
    other.close()
    assert [line["event"] for line in read_lines(trace)][-1] == "close"


def test_file_is_found_again_by_its_path_whatever_the_folder(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trace.parent)
    monkeypatch.setenv("ACCEL_TRACE", trace.name)
    with create():
        monkeypatch.setenv("ACCEL_TRACE", f"./{trace.name}")
        with create():
            assert list(trace_file._files) == [str(trace)]


def test_file_that_is_no_longer_wanted_gets_no_new_machines(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create():
        monkeypatch.delenv("ACCEL_TRACE")
        create().close()
    assert len({line["machine"] for line in read_lines(trace)}) == 1


def test_file_has_the_mode_that_the_umask_leaves(trace: Path) -> None:
    before = os.umask(0o077)
    try:
        create().close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(trace.stat().st_mode) == 0o600


# what cannot be opened


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.mkdir(), "Is a directory"),
        (os.mkfifo, "nobody reads the pipe"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)
def test_file_that_cannot_be_opened_refuses_the_machine_and_leaves_nothing(trace: Path, make, reason: str) -> None:
    make(trace)
    threads = threading.active_count()
    with pytest.raises(UsageError, match=f"cannot be written: {reason}; name another file or unset it"):
        create()
    assert threading.active_count() == threads


# what cannot be written later


def test_disk_that_is_full_ends_the_trace_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, warnings_of: list[str]
) -> None:
    monkeypatch.setenv("ACCEL_TRACE", "/dev/full")
    with create() as one, create() as other:
        change(one, 3)
        change(other, 3)
    create().close()
    assert warnings_of == [
        "the trace in '/dev/full' ends early: No space left on device; the machines run on without it"
    ]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_disk_that_fills_up_while_a_machine_runs_keeps_what_fitted(trace: Path, warnings_of: list[str]) -> None:
    with create() as machine:
        change(machine)
        good = trace.stat().st_size
        with file_size_limit(good + 100):
            change(machine, 3)
        change(machine, 3)
        assert machine.memory.view[0].range.start == 0x10000
    assert len(warnings_of) == 1
    assert os.strerror(errno.EFBIG) in warnings_of[0]
    assert str(trace) in warnings_of[0]
    whole, cut = trace.read_bytes()[:good], trace.read_bytes()[good:]
    assert len(cut) == 100
    for line in whole.decode().splitlines():
        json.loads(line)


@pytest.fixture
def pipe(trace: Path) -> Iterator[io.FileIO]:
    """A pipe in place of the file: the end that reads it."""
    os.mkfifo(trace)
    with open(os.open(trace, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as reader:
        yield reader


def test_pipe_gets_all_lines(pipe: io.FileIO, warnings_of: list[str]) -> None:
    with create() as machine:
        change(machine, 5)
    lines = [json.loads(line) for line in pipe.readall().splitlines()]
    assert lines[-1]["event"] == "close"
    assert warnings_of == []


def test_pipe_whose_reader_goes_ends_the_trace_with_one_warning(
    pipe: io.FileIO, trace: Path, warnings_of: list[str]
) -> None:
    with create() as machine:
        change(machine)
        pipe.close()
        change(machine, 3)
    assert warnings_of == [
        f"the trace in '{trace}' ends early: whoever read it has gone; the machines run on without it"
    ]


def test_pipe_that_is_full_holds_up_nobody_and_loses_nothing(pipe: io.FileIO, warnings_of: list[str]) -> None:
    found = []
    with create() as machine:
        change(machine, 300)  # some 300 KB, where a pipe takes 64 KB
        assert len(trace_file._files) == 1
        found.append(pipe.readall())
        assert b"open" in found[0]
        os.set_blocking(pipe.fileno(), True)
        reading = threading.Thread(target=lambda: found.append(pipe.readall()))
        reading.start()
    reading.join()
    lines = [json.loads(line) for line in b"".join(found).splitlines()]
    assert [line["event"] for line in lines].count("commit") == 301
    assert lines[-1]["event"] == "close"
    assert warnings_of == []


def test_pipe_whose_reader_sleeps_for_ever_ends_the_trace_at_the_limit(
    pipe: io.FileIO, trace: Path, warnings_of: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_file, "MAX_UNREAD", 1 << 17)
    with create() as machine:
        change(machine, 400)
        change(machine, 3)
    assert warnings_of == [
        f"the trace in '{trace}' ends early: whoever reads it does not keep up; the machines run on without it"
    ]


def test_pipe_whose_reader_sleeps_for_ever_does_not_hold_up_the_end(
    pipe: io.FileIO, warnings_of: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_file, "_PATIENCE_MS", 10)
    with create() as machine:
        change(machine, 100)
    assert len(warnings_of) == 1
    assert "whoever reads it has not taken its last lines" in warnings_of[0]


# fork


def test_fork_leaves_the_parent_s_machine_to_the_parent(trace: Path) -> None:
    """A process of its own, since other threads of a test run are none of this test's business."""
    script = """
        import os
        import accel
        machine = accel.Machine.create("mock", memory="64K")
        machine.ram.move(0x10000)
        child = os.fork()
        if not child:
            machine.ram.move(0)
            machine.close()
            with accel.Machine.create("mock", memory="64K") as own:
                own.ram.move(0x20000)
            assert not [fd for fd in os.listdir("/proc/self/fd") if _trace(fd)]
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        machine.ram.move(0x30000)
        machine.close()
        print(os.getpid(), child)
    """
    helper = """
        import os
        def _trace(fd):
            try:
                return os.readlink(f"/proc/self/fd/{fd}") == os.environ["ACCEL_TRACE"]
            except OSError:
                return False
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(helper) + dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    parent, child = done.stdout.split()
    lines = read_lines(trace)
    assert {line["machine"].partition(".")[0] for line in lines} == {parent, child}
    for pid, places in ((parent, ["0x0", "0x10000", "0x30000"]), (child, ["0x0", "0x20000"])):
        mine = [line for line in lines if line["machine"].startswith(f"{pid}.")]
        assert [line["address"] for line in mine if line["event"] == "region_add"] == places
        assert [line["event"] for line in mine].count("close") == 1


def test_fork_while_another_thread_writes_leaves_no_lock_behind(trace: Path) -> None:
    script = """
        import os, threading
        import accel
        from accel_trace import file
        with accel.Machine.create("mock", memory="64K") as machine:
            (one,) = file._files.values()
            with one._lock, file._files_lock:
                child = os.fork()
                if not child:
                    machine.ram.move(0x10000)
                    accel.Machine.create("mock", memory="64K").close()
                    os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(script)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len({line["machine"] for line in read_lines(trace)}) == 2


def test_file_is_not_inherited_by_programs_that_are_started(trace: Path) -> None:
    with create():
        done = subprocess.run(
            ["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True, timeout=30, check=True
        )
    assert str(trace) not in done.stdout


def test_processes_that_share_a_file_write_whole_lines(trace: Path) -> None:
    script = """
        import accel
        with accel.Machine.create("mock", memory="64K") as machine:
            for number in range(200):
                machine.ram.move(0x10000 if number % 2 == 0 else 0)
    """
    running = [subprocess.Popen([sys.executable, "-c", dedent(script)]) for _ in range(2)]
    assert [one.wait(60) for one in running] == [0, 0]
    lines = read_lines(trace)
    names = {line["machine"] for line in lines}
    assert len(names) == 2
    for name in names:
        assert sum(line["machine"] == name and line["event"] == "commit" for line in lines) == 201

"""Sinks that are full, slow, blocked, gone or unusual: nothing is lost silently, and nobody waits for ever."""

from __future__ import annotations

import fcntl
import io
import math
import os
import pty
import threading
import tty
from collections.abc import Iterator
from typing import BinaryIO, cast

import pytest

from accel.devices.console import ConsoleOutput


class Failing(io.BytesIO):
    """A file whose reader has gone."""

    def write(self, data: object, /) -> int:
        raise BrokenPipeError("reader has gone")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe that holds one page."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    for end in (reader, writer):
        try:
            os.close(end)
        except OSError:
            pass  # the test has closed it


@pytest.fixture
def full_sink(pipe: tuple[int, int]) -> Iterator[BinaryIO]:
    """A file on a pipe that takes no more bytes."""
    os.write(pipe[1], bytes(4096))
    with open(pipe[1], "wb", closefd=False, buffering=0) as sink:
        yield sink


def test_console_full_pipe_keeps_pending_without_error(full_sink: BinaryIO, pipe: tuple[int, int]) -> None:
    console = ConsoleOutput(full_sink)
    console.write(b"later")
    console.flush()
    assert bytes(console.pending) == b"later"
    os.read(pipe[0], 4096)
    console.flush()
    assert os.read(pipe[0], 100) == b"later"


def test_console_flush_with_wait_on_full_pipe_names_what_is_left(full_sink: BinaryIO) -> None:
    console = ConsoleOutput(full_sink)
    console.write(b"12345")
    with pytest.raises(TimeoutError, match=r"within 0\.01 s; 5 are left"):
        console.flush(wait=0.01)
    assert bytes(console.pending) == b"12345"


def test_console_flush_waiting_for_ever_delivers_to_slow_reader(pipe: tuple[int, int]) -> None:
    expected = bytes(i % 256 for i in range(50_000))
    got = bytearray()

    def read() -> None:
        while chunk := os.read(pipe[0], 1000):
            got.extend(chunk)

    thread = threading.Thread(target=read)
    with open(pipe[1], "wb", closefd=False) as sink:
        console = ConsoleOutput(sink)
        console.write(expected)
        thread.start()
        console.flush(wait=math.inf)
    os.close(pipe[1])
    thread.join()
    assert got == expected


@pytest.mark.parametrize("buffering", [0, -1])
def test_console_nonblocking_sink_takes_part_now_and_rest_later(pipe: tuple[int, int], buffering: int) -> None:
    os.set_blocking(pipe[1], False)
    expected = bytes(i % 256 for i in range(20_000))
    got = bytearray()
    with open(pipe[1], "wb", closefd=False, buffering=buffering) as sink:
        console = ConsoleOutput(sink)
        console.write(expected)
        while len(got) < len(expected):
            console.flush()
            got += os.read(pipe[0], 3000)
        assert not console.pending
    assert got == expected


class Unpolled(io.BufferedWriter):
    """Hides its descriptor, so that the console asks it although it would block."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


def test_console_blocking_pipe_takes_a_page_without_blocking_the_flusher(pipe: tuple[int, int]) -> None:
    with open(pipe[1], "wb", closefd=False) as sink:
        console = ConsoleOutput()
        console.sink = sink
        console.write(bytes(8192))
        console.flush()
        assert len(console.pending) == 4096
        os.read(pipe[0], 8192)
        console.flush()
        assert not console.pending


def test_console_buffered_nonblocking_sink_that_takes_a_part_gets_the_rest_later(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    os.write(pipe[1], bytes(4096))
    with open(pipe[1], "wb", closefd=False, buffering=0) as raw, Unpolled(raw, buffer_size=8) as sink:
        console = ConsoleOutput(sink)
        console.write(b"twenty-five bytes of text")
        console.flush()
        assert len(console.pending) == 17
        os.read(pipe[0], 4096)
        console.flush(wait=60)
        assert os.read(pipe[0], 100) == b"twenty-five bytes of text"


def test_console_buffered_nonblocking_sink_is_flushed_again_without_new_bytes(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    os.write(pipe[1], bytes(4096))
    with open(pipe[1], "wb", closefd=False, buffering=0) as raw, Unpolled(raw) as sink:
        console = ConsoleOutput(sink)
        console.write(b"held")
        console.flush()
        assert not console.pending  # in the sink's own buffer
        with pytest.raises(TimeoutError):
            console.flush(wait=0.005)
        os.read(pipe[0], 4096)
        console.flush()
        assert os.read(pipe[0], 100) == b"held"


def test_console_terminal_sink_delivers() -> None:
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    with open(theirs, "wb") as sink, open(ours, "rb", buffering=0) as reader:
        console = ConsoleOutput(sink)
        console.write(b"hello")
        console.flush()
        assert reader.read(100) == b"hello"


def test_console_flood_into_stuck_sink_ends_in_error_at_limit(full_sink: BinaryIO) -> None:
    console = ConsoleOutput(full_sink, bound=16, limit=64, patience=0)
    for _ in range(64):
        console.write(b"x")
    with pytest.raises(TimeoutError, match=r"takes no more bytes; 65 are waiting \(limit 64\)"):
        console.write(b"x")


def test_console_writer_waits_no_longer_than_patience_for_a_blocked_flusher() -> None:
    class Blocked(io.BytesIO):
        inside = threading.Event()
        go = threading.Event()

        def write(self, data: object, /) -> int:
            self.inside.set()
            self.go.wait()
            return super().write(cast(bytes, data))

    sink = Blocked()
    console = ConsoleOutput(sink, bound=4, patience=0.001)
    console.put(0x41)
    flusher = threading.Thread(target=console.flush)
    flusher.start()
    sink.inside.wait()
    console.write(b"BCDEFGH")  # returns although the flusher holds the lock
    assert len(console.pending) == 8
    sink.go.set()
    flusher.join()
    console.flush()
    assert sink.getvalue() == b"ABCDEFGH"


def test_console_failing_sink_raises_once_then_drops_but_captures() -> None:
    console = ConsoleOutput(Failing())
    console.write(b"one")
    with pytest.raises(BrokenPipeError, match="reader has gone"):
        console.flush()
    assert console.sink is None
    console.write(b"two")
    console.flush(wait=1)
    assert not console.pending
    assert console.captured() == b"onetwo"
    assert console.total == 6


def test_console_failing_sink_surfaces_from_writer_over_bound() -> None:
    console = ConsoleOutput(Failing(), bound=2)
    with pytest.raises(BrokenPipeError):
        console.write(b"abc")
    console.write(b"def")


def test_console_reader_gone_from_pipe_surfaces(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    with open(pipe[1], "wb", closefd=False, buffering=0) as sink:
        console = ConsoleOutput(sink)
        console.write(b"x")
        with pytest.raises(BrokenPipeError):
            console.flush()


def test_console_closed_sink_surfaces() -> None:
    sink = io.BytesIO()
    console = ConsoleOutput(sink)
    sink.close()
    console.write(b"x")
    with pytest.raises(ValueError, match="closed"):
        console.flush()


def test_console_sink_whose_write_returns_nothing_has_taken_all() -> None:
    class Plain:
        def __init__(self) -> None:
            self.data = b""

        def write(self, data: bytes) -> None:
            self.data += data

        def flush(self) -> None: ...

    sink = Plain()
    console = ConsoleOutput(cast(BinaryIO, sink))
    console.write(b"all")
    console.flush()
    assert sink.data == b"all"
    assert not console.pending


def test_console_new_sink_gets_what_is_pending() -> None:
    first, second = io.BytesIO(), io.BytesIO()
    console = ConsoleOutput(first)
    console.write(b"a")
    console.flush()
    console.write(b"b")
    console.sink = second
    console.flush()
    assert (first.getvalue(), second.getvalue()) == (b"a", b"b")

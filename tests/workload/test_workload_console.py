"""The console of a run: capture and sink, sinks that are slow, full or gone."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import pytest

from accel.workload.console import Console


@pytest.fixture
def pipe() -> Iterator[tuple[io.FileIO, io.FileIO]]:
    read, write = os.pipe()
    with io.FileIO(read, "rb") as reader, io.FileIO(write, "wb") as writer:
        yield reader, writer


def test_console_write_captures_and_passes_on() -> None:
    sink = io.BytesIO()
    console = Console(sink)
    assert console.write(b"one ") == 4
    assert console.write(b"two") == 3
    assert console.captured == sink.getvalue() == b"one two"
    assert console.total == 7


def test_console_without_sink_only_captures() -> None:
    console = Console()
    assert console.write(b"text") == 4
    assert console.captured == b"text"
    with pytest.raises(OSError, match="no file descriptor"):
        console.fileno()


def test_console_beyond_the_limit_keeps_start_and_end() -> None:
    console = Console(capture_limit=10)
    console.write(b"abcdefghijklmnopqrst")
    assert console.truncated
    assert console.total == 20
    assert console.captured.startswith(b"abcde\n[")
    assert console.captured.endswith(b"]\npqrst")


def test_console_with_a_pipe_has_its_descriptor(pipe: tuple[io.FileIO, io.FileIO]) -> None:
    assert Console(pipe[1]).fileno() == pipe[1].fileno()


def test_console_full_pipe_takes_nothing_and_does_not_block(pipe: tuple[io.FileIO, io.FileIO]) -> None:
    reader, writer = pipe
    console = Console(writer)
    written = 0
    while taken := console.write(bytes(10_000)):
        assert taken <= 4096
        written += taken
    assert console.total == written
    reader.read(4096)
    assert console.write(b"again") == 5


def test_console_sink_that_would_block_takes_nothing() -> None:
    class Blocking(io.RawIOBase):
        def write(self, data: object) -> None:
            return None

    console = Console(Blocking())  # type: ignore[arg-type]
    assert console.write(b"x") == 0
    assert console.captured == b""


def test_console_sink_that_raises_is_let_go_of(pipe: tuple[io.FileIO, io.FileIO]) -> None:
    reader, writer = pipe
    console = Console(writer)
    reader.close()
    with pytest.raises(BrokenPipeError):
        console.write(b"lost")
    assert console.write(b"kept") == 4
    assert console.captured == b"kept"

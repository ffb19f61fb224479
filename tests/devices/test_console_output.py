"""Console bytes reach the sink in order, memory stays bounded, and the capture says what it leaves out."""

from __future__ import annotations

import io
import threading
from typing import BinaryIO, cast

from hypothesis import given
from hypothesis import strategies as st

from accel.devices.console import Capture, ConsoleOutput


class ShortWriter(io.RawIOBase):
    """A raw file that takes at most `most` bytes at a time, and none (None) every other time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.taken = bytearray()
        self.calls = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int | None:
        self.calls += 1
        if self.calls % 2 == 0:
            return None
        part = bytes(memoryview(cast(bytes, data))[: self.most])
        self.taken += part
        return len(part)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 255)),
        st.tuples(st.just("write"), st.binary(max_size=40)),
        st.tuples(st.just("flush"), st.none()),
        st.tuples(st.just("captured"), st.none()),
    ),
    max_size=60,
)


@given(STEPS, st.booleans())
def test_console_any_sequence_delivers_bytes_in_order(steps: list[tuple[str, int | bytes | None]], short: bool) -> None:
    raw = ShortWriter(3)
    plain = io.BytesIO()
    console = ConsoleOutput(cast(BinaryIO, raw) if short else plain, bound=16, patience=60)
    written = bytearray()
    for kind, argument in steps:
        if kind == "put" and isinstance(argument, int):
            console.put(argument)
            written.append(argument)
            if len(console.pending) > console.bound:
                console.relieve()
        elif kind == "write" and isinstance(argument, bytes):
            console.write(argument)
            written += argument
        elif kind == "flush":
            console.flush()
        else:
            assert console.captured() == written
        assert len(console.pending) <= console.bound
    console.flush(wait=60)
    assert bytes(raw.taken if short else plain.getvalue()) == written
    assert console.captured() == written
    assert console.total == len(written)
    assert not console.truncated


def test_console_appending_while_flushing_loses_and_reorders_nothing() -> None:
    sink = io.BytesIO()
    console = ConsoleOutput(sink, bound=1 << 30)
    start = threading.Barrier(3)
    done = threading.Event()

    def flusher() -> None:
        start.wait()
        while not done.is_set():
            console.flush()

    threads = [threading.Thread(target=flusher) for _ in range(2)]
    for thread in threads:
        thread.start()
    start.wait()
    expected = bytes(i % 251 for i in range(200_000))
    for byte in expected:
        console.put(byte)
    done.set()
    for thread in threads:
        thread.join()
    console.flush()
    assert sink.getvalue() == expected
    assert console.captured() == expected


def test_console_writer_over_bound_hands_on_by_itself() -> None:
    sink = io.BytesIO()
    console = ConsoleOutput(sink, bound=100)
    console.write(bytes(100))
    assert len(sink.getvalue()) == 0
    console.write(b"x")
    assert sink.getvalue() == bytes(51)
    assert len(console.pending) == 50


def test_console_without_sink_captures_and_stays_bounded() -> None:
    console = ConsoleOutput(bound=10)
    for _ in range(100):
        console.write(b"abc")
        assert len(console.pending) <= 10
    assert console.captured() == b"abc" * 100


def test_console_capture_over_limit_keeps_first_and_last_and_says_so() -> None:
    console = ConsoleOutput(capture_limit=8)
    console.write(b"abcdefgh")
    before = console.truncated
    console.write(b"ijkl")
    assert (before, console.truncated) == (False, True)
    assert console.captured() == b"abcd\n[... 4 bytes left out ...]\nijkl"
    assert console.total == 12


@given(st.lists(st.binary(max_size=9), max_size=20), st.integers(0, 12))
def test_capture_any_split_keeps_first_and_last(parts: list[bytes], limit: int) -> None:
    capture = Capture(limit)
    for part in parts:
        capture.add(part)
    stream = b"".join(parts)
    assert capture.total == len(stream)
    assert capture.left_out == max(0, len(stream) - limit)
    if len(stream) <= limit:
        assert capture.value() == stream
    else:
        first, last = limit - limit // 2, limit // 2
        gap = b"\n[... %d bytes left out ...]\n" % capture.left_out
        assert capture.value() == stream[:first] + gap + stream[len(stream) - last :]

"""Input for the serial line: chunks from a descriptor, fed no faster than they are taken."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from accel.devices import Serial
from accel.errors import BackendError
from accel.machine import Machine
from accel.workload.line_input import DescriptorChunks, LineInput, TakesInput


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine.create("mock", memory="1M") as created:
        yield created


class Line:
    """A line that takes a few bytes at a time."""

    def __init__(self, room: int = 3) -> None:
        self.taken = b""
        self.done = False
        self._room = room

    def feed(self, data: bytes, timeout: float | None = 0.0) -> int:
        self.taken += data[: self._room]
        return len(data[: self._room])

    def input_done(self) -> None:
        self.done = True


def test_serial_is_a_device_that_takes_input() -> None:
    assert isinstance(Serial(), TakesInput)


def test_line_input_feeds_all_in_order_and_then_says_so(machine: Machine) -> None:
    line = Line()
    LineInput(machine, line, [b"abcdefgh", b"", b"ij"]).work()
    assert line.taken == b"abcdefghij"
    assert line.done


def test_line_input_stopped_feeds_no_more(machine: Machine) -> None:
    line = Line()
    feeder = LineInput(machine, line, [b"abcdefgh"])
    feeder.stopping.set()
    feeder.work()
    assert line.taken == b""
    assert not line.done


def test_line_input_stops_while_the_guest_reads_nothing(machine: Machine) -> None:
    serial = Serial(input_limit=4)
    machine.attach(serial)
    feeder = LineInput(machine, serial, [b"too much"])
    feeder.start()
    feeder.stop()
    assert feeder.error is None


def test_line_input_of_a_closed_device_just_ends(machine: Machine) -> None:
    serial = Serial()
    serial.close()
    feeder = LineInput(machine, serial, [b"x"])
    feeder.start()
    feeder.stop()
    assert feeder.error is None


def test_line_input_that_fails_keeps_the_error(machine: Machine) -> None:
    class Failing(Line):
        def feed(self, data: bytes, timeout: float | None = 0.0) -> int:
            raise BackendError("KVM_IRQ_LINE", 5)

    feeder = LineInput(machine, Failing(), [b"x"])
    feeder.start()
    feeder.stop()
    assert isinstance(feeder.error, BackendError)


def test_descriptor_chunks_end_where_the_file_ends() -> None:
    read, write = os.pipe()
    os.write(write, b"data")
    os.close(write)
    chunks = DescriptorChunks(read)
    assert b"".join(chunks) == b"data"
    chunks.close()
    os.close(read)


def test_descriptor_chunks_wake_ends_a_wait() -> None:
    read, write = os.pipe()
    chunks = DescriptorChunks(read)
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.extend(chunks))
    thread.start()
    chunks.wake()
    thread.join()
    assert got == []
    chunks.close()
    os.close(read)
    os.close(write)


def test_descriptor_chunks_read_error_is_the_end() -> None:
    leader, follower = os.openpty()
    os.close(follower)
    chunks = DescriptorChunks(leader)
    assert list(chunks) == []
    chunks.close()
    os.close(leader)

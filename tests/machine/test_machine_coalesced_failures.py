"""Coalesced writes behind one whose handler fails: the guest has made them, so nobody loses them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

import accel
from accel.devices import DebugConsole
from accel.errors import DeviceError
from accel.housekeeper import Housekeeper
from accel.program import GuestProgram, Out

#: Two devices by turns, so that no two writes come as one run.
_BY_TURNS = GuestProgram((Out(0x80, 1), Out(0xE9, 2), Out(0x80, 3), Out(0xE9, 4)))


@pytest.fixture(params=["mock", pytest.param("kvm", marks=pytest.mark.kvm)])
def machine(request: pytest.FixtureRequest) -> Iterator[accel.Machine]:
    with accel.Machine.create(request.param, memory="4M") as made:
        yield made


class Writes:
    """The writes that two coalesced ports got; the first one raises for them."""

    def __init__(self, machine: accel.Machine, error: type[BaseException]) -> None:
        self.seen: list[int] = []

        def refuse(offset: int, value: int, size: int) -> None:
            self.seen.append(value)
            raise error(f"no {value}")

        for name, port, write in (("refusing", 0x80, refuse), ("taking", 0xE9, self.take)):
            machine.io.add(accel.MemoryRegion.mmio(name, 1, write=write, coalesced=True), at=port)

    def take(self, offset: int, value: int, size: int) -> None:
        self.seen.append(value)


def run_here(machine: accel.Machine, program: GuestProgram) -> None:
    """Run a guest to its end on this thread, which delivers nothing."""
    machine.load(program)
    while not isinstance(machine.vm.vcpus[0].run(), accel.Halt):
        pass


def test_drain_with_a_handler_that_raises_delivers_the_rest_and_raises_the_first(machine: accel.Machine) -> None:
    writes = Writes(machine, ValueError)
    run_here(machine, _BY_TURNS)
    with pytest.raises(DeviceError, match="'refusing' raised ValueError at coalesced write to 0x80: no 1"):
        machine.vm.drain()
    assert writes.seen == [1, 2, 3, 4]


def test_drain_interrupted_leaves_the_rest_for_the_next(machine: accel.Machine) -> None:
    writes = Writes(machine, KeyboardInterrupt)
    run_here(machine, _BY_TURNS)
    for seen in ([1], [1, 2, 3]):
        with pytest.raises(KeyboardInterrupt):
            machine.vm.drain()
        assert writes.seen == seen
    with machine.transaction():  # a change is what delivers them too
        machine.memory.add(accel.MemoryRegion.ram("extra", "1M"), at=0x1000_0000)
    assert writes.seen == [1, 2, 3, 4]


class RefusingSink(io.RawIOBase):
    """A console's sink that raises."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raise OSError("the disk is full")


@pytest.mark.parametrize("first", ["handler", "sink"])
def test_end_of_a_run_that_fails_hands_on_what_the_others_hold(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    monkeypatch.setattr(Housekeeper, "start", lambda self: None)  # all is left for the end
    printed = io.BytesIO()
    with accel.Machine.create("mock", memory="1M") as machine:
        if first == "sink":
            machine.attach(DebugConsole(0x80, output=RefusingSink()))  # type: ignore[arg-type]
        else:
            region = accel.MemoryRegion.mmio("refusing", 1, write=lambda *access: 1 // 0, coalesced=True)
            machine.io.add(region, at=0x80)
        machine.attach(DebugConsole(0xE9, output=printed))  # type: ignore[arg-type]
        machine.load(_BY_TURNS)
        with pytest.raises(DeviceError, match="the disk is full" if first == "sink" else "ZeroDivisionError"):
            machine.run(timeout=60)
        assert printed.getvalue() == b"\2\4"

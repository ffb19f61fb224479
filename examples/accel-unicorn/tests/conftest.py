"""Machines on Unicorn with the devices that the example guests talk to, closed after the test whatever happened."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import accel
from accel.devices import DebugConsole, DebugExit, Serial

GUESTS = Path(__file__).resolve().parents[2] / "guests"


@attrs.define(eq=False)
class Bench:
    """A machine and what its guest printed."""

    machine: accel.Machine
    serial: Serial
    console: DebugConsole

    @property
    def printed(self) -> str:
        return (self.serial.console.captured() + self.console.console.captured()).decode()

    @property
    def vcpu(self) -> accel.Vcpu:
        return self.machine.vm.vcpus[0]

    def exits(self, answer: int = 0) -> list[accel.exits.Exit]:
        """Run the first vCPU by hand until it halts or crashes; answer its reads."""
        seen: list[accel.exits.Exit] = []
        while True:
            seen.append(self.vcpu.run())
            match seen[-1]:
                case accel.MmioRead() | accel.IoIn() as read:
                    read.reply(answer)
                case accel.Halt() | accel.Shutdown() | accel.InternalError():
                    return seen


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    """Make a bench: `bench("hello.bin", cpus=2)`, or `bench(code, mode="long64")`; code lies at 1 MiB."""
    made: list[accel.Machine] = []

    def make(image: Any = None, *, mode: str | None = None, **config: Any) -> Bench:
        config.setdefault("memory", "16M")
        machine = accel.Machine.create("unicorn", **config)
        made.append(machine)
        serial, console = Serial(0x3F8, output=io.BytesIO()), DebugConsole(0xE9)
        for device in (serial, console, DebugExit()):
            machine.attach(device)
        if isinstance(image, str):
            machine.load(GUESTS / image)
        elif image is not None:
            machine.load(image, mode=mode)
        return Bench(machine, serial, console)

    yield make
    for machine in made:
        machine.close()

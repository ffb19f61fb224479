"""A machine with the devices that the example guests talk to, closed after the test whatever happened."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import accel
from accel.devices import DebugConsole, DebugExit, Serial


@attrs.define(eq=False)
class Bench:
    """A machine and what its guest printed."""

    machine: accel.Machine
    serial: Serial
    console: DebugConsole

    @property
    def printed(self) -> str:
        return (self.serial.console.captured() + self.console.console.captured()).decode()


@pytest.fixture
def bench(guests: Path) -> Iterator[Callable[..., Bench]]:
    """Make a bench: `bench("hello.bin", cpus=2)`."""
    made: list[accel.Machine] = []

    def make(image: Any = None, *, sink: Any = None, **config: Any) -> Bench:
        config.setdefault("memory", "16M")
        machine = accel.Machine.create(config.pop("accelerators", "kvm"), **config)
        made.append(machine)
        serial, console = Serial(0x3F8, output=sink or io.BytesIO()), DebugConsole(0xE9, output=sink)
        for device in (serial, console, DebugExit()):
            machine.attach(device)
        if isinstance(image, str):
            machine.load(guests / image)
        elif image is not None:
            machine.load(image)
        return Bench(machine, serial, console)

    yield make
    for machine in made:
        machine.close()

"""Machines on Unicorn with the devices that the example guests talk to, closed after the test whatever happened.

And what makes this folder's tests run alone as well as with those of accel: the markers ``kvm`` and ``soak``.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import accel
from accel.devices import DebugConsole, DebugExit, Serial

# Modules that tests share lie beside them.
sys.path.append(str(Path(__file__).parent))

GUESTS = Path(__file__).resolve().parents[2] / "guests"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kvm: runs on real KVM as well; skipped with the reason where it is absent")
    config.addinivalue_line("markers", "soak: takes minutes; left out unless asked for")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Treat the markers as the tests of accel do, which may run in the same process, for tests in this folder."""
    here = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    if any(item.get_closest_marker("kvm") for item in here) and (reason := _why_no_kvm()):
        for item in here:
            if item.get_closest_marker("kvm"):
                item.add_marker(pytest.mark.skip(reason=f"needs KVM: {reason}"))
    if "soak" not in str(config.getoption("markexpr")):
        left_out = [item for item in here if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _why_no_kvm() -> str:
    from accel_kvm.plugin import KvmAccelerator

    found = KvmAccelerator().probe()
    return "" if found.ok else found.reason


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

"""What is measured of this library, in a process of its own: ``python -m benchmarks.worker JOB ARGUMENT...``.

Prints one line of JSON, as the C programs in ``baseline/`` do; with ``turns`` before the job, one for each turn (see
`benchmarks.turns`). Lock validation must be off.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import accel
from accel.devices.base import Device
from accel.devices.console import ConsoleOutput
from accel.devices.debug_console import DebugConsole
from accel.devices.debug_exit import DebugExit
from accel.devices.serial import Serial
from accel.locks import validation_enabled
from benchmarks import guests, micro_jobs, model_jobs, turn_jobs
from benchmarks.resident import peak_kib

_RUN_TIMEOUT = 200


def guest(device: str, image: str, count: str, sink: str) -> dict[str, float]:
    """Run a measuring guest on a machine whose `device` hands its bytes to the file `sink`."""
    contents = bytearray(Path(image).read_bytes())
    contents[guests.COUNT_OFFSET : guests.COUNT_OFFSET + 4] = int(count).to_bytes(4, "little")
    memory = guests.MMIO_ADDRESS if device == "mmio" else guests.MEMORY
    with open(sink, "wb", buffering=0) as output, accel.Machine.create("kvm", memory=memory) as machine:
        delivered, kind = _attach(machine, device, output)
        machine.attach(DebugExit())
        machine.load(bytes(contents), loader="flat")
        started = time.perf_counter()
        result = machine.run(timeout=_RUN_TIMEOUT)
        ended = time.perf_counter()
        if result.exit_status is None:
            raise SystemExit(f"the guest did not finish: {result.outcome}")
        return {
            "seconds": ended - started,
            "exits": result.exits.get(kind, 0) - (kind == "io"),  # the debug exit is a port's, too
            "coalesced": result.coalesced_writes,
            "guest_count": int.from_bytes(machine.memory.read(guests.WRITTEN_ADDRESS, 4), "little"),
            "delivered": delivered(),
        }


def _attach(machine: accel.Machine, device: str, output: BinaryIO) -> tuple[Callable[[], int], str]:
    """Add the device that takes the guest's bytes; return what tells their number, and the kind of its exits."""
    if device == "serial":
        serial = Serial(guests.SERIAL_PORT, output=output)
        machine.attach(serial)
        return lambda: serial.console.total, "io"
    if device == "console":
        console = DebugConsole(guests.CONSOLE_PORT, output=output)
        machine.attach(console)
        return lambda: console.console.total, "io"
    if device == "mmio":
        doorbell = _Doorbell(output)
        machine.attach(doorbell)
        return lambda: doorbell.console.total, "mmio"
    raise SystemExit(f"no such device: {device}")


class _Doorbell(Device):
    """A page of memory whose writes go to a file, a byte each, as the serial device's do."""

    name = "doorbell"

    def __init__(self, output: BinaryIO) -> None:
        self.console = ConsoleOutput(output)

    def memory_regions(self) -> Iterable[tuple[int, accel.MemoryRegion]]:
        return ((guests.MMIO_ADDRESS, accel.MemoryRegion.mmio(self.name, 0x1000, write=self.write)),)

    def write(self, offset: int, value: int, size: int) -> None:
        console = self.console
        console.put(value)
        if len(console.pending) > console.bound:
            console.relieve()

    def flush(self, wait: float = 0.0) -> None:
        self.console.flush(wait)


def main() -> None:
    """Do the job that the arguments name."""
    if validation_enabled():
        raise SystemExit("lock validation is on (ACCEL_LOCKDEP): figures would say nothing about the library")
    job, *arguments = sys.argv[1:]
    if job == "turns":
        turn_jobs.serve(*arguments)
        return
    if job == "guest":
        result = guest(*arguments)
    else:
        jobs = model_jobs if job.startswith("model") else micro_jobs
        result = jobs.run(job, int(arguments[0]))
    print(json.dumps({**result, "peak_kib": peak_kib()}))


if __name__ == "__main__":
    main()

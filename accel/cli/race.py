"""The race of ``accelctl demo``: a guest works on a region of RAM and checks it, while the host keeps resizing it.

With ``plan=replace`` each resize deletes the region's slot and adds another, as QEMU does; between the two the guest
finds no memory. ``hold=unsafe`` lets it look, ``hold=inhibit`` does not.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Literal, Protocol

from attrs import evolve, frozen

from accel.address import AddressRange
from accel.devices import DebugExit, Serial
from accel.machine import Machine
from accel.memory.region import MemoryRegion
from accel.result import Outcome, RunResult
from accel.testing.images import image_file
from accel.testing.programs import touch

Hold = Literal["unsafe", "inhibit"]

REGION_START = 0x1000_0000
_SIZE = 1 << 20
#: Seconds between two changes, so that the guest gets to look.
_PAUSE = 0.0005
#: Longest wait, in seconds, for a guest that was told to end.
_GRACE = 30.0
_PROGRESS_EVERY = 0.1


@frozen
class Side:
    """One side of the race.

    Attributes:
        changes: Changes of the memory map that were made while the guest ran.
        faults: Spurious faults: accesses to RAM that was there before and after the change.
        errors: What the guest itself found wrong.
        held_us: Mean time for which a change kept the vCPUs out of the guest, microseconds.
        crash: How the guest crashed, if it did.
    """

    hold: Hold
    changes: int = 0
    faults: int = 0
    errors: int = 0
    held_us: float = 0.0
    crash: str | None = None


class RaceGuest(Protocol):
    """A guest that works on the region and counts what it finds wrong."""

    cpus: int

    def load(self, machine: Machine) -> None:
        """Put it into the machine, ready to start."""

    def end(self, machine: Machine) -> None:
        """Tell it, while it runs, to come to its end."""

    def errors(self, machine: Machine, result: RunResult) -> int:
        """Return what it found wrong in the run that has ended."""


class TouchImage:
    """Machine code on two vCPUs, which also add to shared words; see ``examples/guests/README.md``."""

    cpus = 2
    # Words of the block that host and guest share.
    _ERRORS, _END, _ROUNDS, _LOCKED = 0x8008, 0x8010, 0x8030, 0x8038

    def load(self, machine: Machine) -> None:
        """Let it run until it is told to end, with locked additions."""
        with image_file("touch.elf") as path:
            machine.load(path)
        self._set(machine, self._ROUNDS, 0)
        self._set(machine, self._LOCKED, 1)

    def end(self, machine: Machine) -> None:
        """Set the word that ends it."""
        self._set(machine, self._END, 1)

    def errors(self, machine: Machine, result: RunResult) -> int:
        """Return its count."""
        count: int = struct.unpack("<Q", machine.memory.read(self._ERRORS, 8))[0]
        return count

    @staticmethod
    def _set(machine: Machine, address: int, value: int) -> None:
        machine.memory.write(address, struct.pack("<Q", value))


class TouchProgram:
    """A guest program on one vCPU, for accelerators that execute no machine code. It starts over until time is up."""

    cpus = 1
    _ROUNDS = 5_000
    _WINDOW = AddressRange.sized(REGION_START, 16 << 12)

    def load(self, machine: Machine) -> None:
        """Start the program."""
        machine.load(touch(self._WINDOW, self._ROUNDS))

    def end(self, machine: Machine) -> None:
        """Stop it where it is."""
        machine.stop()

    def errors(self, machine: Machine, result: RunResult) -> int:
        """Return its count, which its exit status holds; what is stopped has not told."""
        return 0 if result.exit_status is None else result.exit_status >> 1


def race(
    accelerator: str, guest: RaceGuest, hold: Hold, seconds: float, progress: Callable[[float, int], None]
) -> Side:
    """Run one side for about `seconds`.

    Args:
        accelerator: On which accelerator.
        guest: Who looks.
        hold: Whether the vCPUs are held.
        seconds: For how long.
        progress: Called now and then with the seconds gone and the changes made.

    Raises:
        AccelError: The host's side failed.
    """
    options = {accelerator: {"plan": "replace", "hold": hold}}
    side = Side(hold)
    with Machine.create(accelerator, memory="16M", cpus=guest.cpus, options=options) as machine:
        machine.attach(Serial())
        machine.attach(DebugExit())
        region = MemoryRegion.ram("region", _SIZE, max_size=2 * _SIZE)
        machine.memory.add(region, REGION_START)
        started = time.monotonic()
        while side.crash is None and time.monotonic() - started < seconds:
            side = _round(machine, guest, region, side, started, seconds, progress)
    return side


def _round(
    machine: Machine,
    guest: RaceGuest,
    region: MemoryRegion,
    side: Side,
    started: float,
    seconds: float,
    progress: Callable[[float, int], None],
) -> Side:
    """Run the guest once, to its end or until time is up, and add what came of it to `side`."""
    guest.load(machine)
    run = machine.start()
    changes, told = side.changes, 0.0
    while not run.done and (gone := time.monotonic() - started) < seconds:
        region.resize(_SIZE if region.size > _SIZE else 2 * _SIZE)
        changes += 1
        if gone - told > _PROGRESS_EVERY:
            progress(gone, changes)
            told = gone
        time.sleep(_PAUSE)
    if not run.done:
        guest.end(machine)
    result = run.wait(_GRACE)
    memory, held_us = result.memory, 0.0
    if memory["inhibits"]:
        held_us = (memory["wait_seconds"] + memory["hold_seconds"]) / memory["inhibits"] * 1e6
    return evolve(
        side,
        changes=changes,
        faults=side.faults + result.spurious_faults,
        errors=side.errors + guest.errors(machine, result),
        held_us=held_us,
        crash=_crash(result),
    )


def _crash(result: RunResult) -> str | None:
    if result.outcome is Outcome.TIMED_OUT:
        return f"the guest did not end within {_GRACE:g} s"
    return None if result.crash is None else str(result.crash)

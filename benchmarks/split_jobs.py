"""The job beside ``baseline/split.c``: RAM under running vCPUs is split in two and made one again, a commit each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import accel
from accel.memory.region import MemoryRegion

#: RAM of the machine's own, the part that changes behind it, and where the guest's code is.
_LOW, _PART, _CODE = 0x40000, 0x20000, 0x1000
#: mov ax, 0x4000; mov ds, ax; again: mov al, [0]; inc byte [0xffff]; jmp again
_GUEST = bytes.fromhex("b80040 8ed8 a00000 fe06ffff ebf7")
#: Updates before the first turn, a millisecond apart, so that all vCPUs have come to the loop.
_WARM_UP = 200


@contextmanager
def split(vcpus: str) -> Iterator[Mapping[str, Callable[[int], list[float]]]]:
    """Sides ``gap0`` and ``gap500`` make updates so many µs apart; the others tell of those.

    ``held`` gives, for each update of the last turn, how long it took from the wish to hold until all could go on;
    ``counts`` gives the kicks and the spurious faults so far. The vCPUs are paused between turns.
    """
    with accel.Machine.create("kvm", memory=_LOW, cpus=int(vcpus), options={"kvm": {"plan": "replace"}}) as machine:
        job = _Split(machine)
        machine.load(_GUEST, load_address=_CODE, entry=_CODE, loader="flat")
        run = machine.start()
        # As the program in C does: KVM waits for work on the kernel's first CPU, and where this thread runs would
        # decide what an update costs.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        job.updates(_WARM_UP, 0.001)
        before = machine.vm.blocker.stats.kicks
        machine.pause()

        def turn(count: int, gap: float) -> list[float]:
            machine.resume()
            try:
                return job.updates(count, gap)
            finally:
                machine.pause()

        def counts(_: int) -> list[float]:
            return [machine.vm.blocker.stats.kicks - before, sum(run.spurious_faults_so_far())]

        yield {
            "gap0": lambda count: turn(count, 0.0),
            "gap500": lambda count: turn(count, 0.0005),
            "held": lambda _: job.held,
            "counts": counts,
        }
        machine.stop()
        result = run.wait()
        if result.spurious_faults or result.crash is not None:
            raise SystemExit(f"{result.spurious_faults} spurious faults, {result.crash}")


class _Split:
    """The part of memory that is shown as one section and as two in turn.

    Attributes:
        held: Of each of the last updates, the seconds from the wish to hold until all could go on.
    """

    def __init__(self, machine: accel.Machine) -> None:
        self._machine = machine
        part = MemoryRegion.ram("part", _PART)
        half = _PART // 2
        self._whole = (MemoryRegion.alias("whole", part),)
        # Unmergeable, or they would be shown as the one section that they make up.
        self._halves = tuple(
            MemoryRegion.alias(f"half {at:#x}", part, offset=at, size=half, unmergeable=True) for at in (0, half)
        )
        self._shown: tuple[MemoryRegion, ...] = self._whole
        self.held: list[float] = []
        machine.memory.root.add(self._whole[0], at=_LOW)

    def updates(self, count: int, gap: float) -> list[float]:
        """Make `count` updates and return the seconds of each."""
        costs = []
        self.held.clear()
        machine, root, stats = self._machine, self._machine.memory.root, self._machine.vm.blocker.stats
        for _ in range(count):
            gone, come = self._shown, self._halves if self._shown is self._whole else self._whole
            before = stats.wait_seconds + stats.hold_seconds
            started = time.perf_counter()
            with machine.transaction():
                for region in gone:
                    root.remove(region)
                at = _LOW
                for region in come:
                    root.add(region, at=at)
                    at += region.size
            costs.append(time.perf_counter() - started)
            self.held.append(stats.wait_seconds + stats.hold_seconds - before)
            self._shown = come
            if gap:
                time.sleep(gap)
        return costs

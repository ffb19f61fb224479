"""The job beside ``baseline/split.c``: RAM under running vCPUs is split in two and made one again, a commit each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import accel
from accel.blocker import AccelBlocker
from accel.locks import BIG_LOCK, Lock
from accel.memory.region import MemoryRegion

#: RAM of the machine's own, the part that changes behind it, and where the guest's code is.
_LOW, _PART, _CODE = 0x40000, 0x20000, 0x1000
#: mov ax, 0x4000; mov ds, ax; again: mov al, [0]; inc byte [0xffff]; jmp again
_GUEST = bytes.fromhex("b80040 8ed8 a00000 fe06ffff ebf7")
#: Updates before the first turn, a millisecond apart, so that all vCPUs have come to the loop.
_WARM_UP = 200


@contextmanager
def split(vcpus: str) -> Iterator[Mapping[str, Callable[[int], list[float]]]]:
    """Sides ``gap0`` and ``gap500`` make updates so many µs apart; ``counts`` gives the kicks and faults of them all."""
    with accel.Machine.create("kvm", memory=_LOW, cpus=int(vcpus), options={"kvm": {"plan": "replace"}}) as machine:
        job = _Split(machine)
        machine.load(_GUEST, load_address=_CODE, entry=_CODE, loader="flat")
        run = machine.start()
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

        yield {"gap0": lambda count: turn(count, 0.0), "gap500": lambda count: turn(count, 0.0005), "counts": counts}
        machine.stop()
        result = run.wait()
        if result.spurious_faults or result.crash is not None:
            raise SystemExit(f"{result.spurious_faults} spurious faults, {result.crash}")


@contextmanager
def inhibit(_: str) -> Iterator[Mapping[str, Callable[[int], list[float]]]]:
    """Sides ``inhibit`` and ``lock``: holding nobody and letting go, beside two pairs of a lock; the mean."""
    big_lock = Lock(BIG_LOCK)
    blocker = AccelBlocker(big_lock)
    blocker.add_gate("vCPU 0", lambda thread_id: None)

    def hold(count: int) -> list[float]:
        begin, end = blocker.inhibit_begin, blocker.inhibit_end
        with big_lock:
            started = time.perf_counter()
            for _ in range(count):
                begin(1.0)
                end()
            return [(time.perf_counter() - started) / count]

    yield {"inhibit": hold}


class _Split:
    """The part of memory that is shown as one section and as two in turn."""

    def __init__(self, machine: accel.Machine) -> None:
        self._machine = machine
        part = MemoryRegion.ram("part", _PART)
        half = _PART // 2
        self._whole = (MemoryRegion.alias("whole", part),)
        # Unmergeable, or they would be shown as the one section that they make up.
        self._halves = tuple(
            MemoryRegion.alias(f"half {at:#x}", part, offset=at, size=half, unmergeable=True) for at in (0, half)
        )
        self._shown = self._whole
        machine.memory.root.add(self._whole[0], at=_LOW)

    def updates(self, count: int, gap: float) -> list[float]:
        costs = []
        machine, root = self._machine, self._machine.memory.root
        for _ in range(count):
            gone, come = self._shown, self._halves if self._shown is self._whole else self._whole
            started = time.perf_counter()
            with machine.transaction():
                for region in gone:
                    root.remove(region)
                at = _LOW
                for region in come:
                    root.add(region, at=at)
                    at += region.size
            costs.append(time.perf_counter() - started)
            self._shown = come
            if gap:
                time.sleep(gap)
        return costs

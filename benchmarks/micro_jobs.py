"""The small pieces that are measured in `benchmarks.worker`, each beside a peer in plain Python or the same calls in C.

A job returns the seconds that `count` repetitions took, by name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import accel
from accel.devices.serial import Serial
from accel.exits import pack_io
from accel.locks import DEVICE_LOCK, Lock
from accel.port_dispatch import PortDispatch
from benchmarks import guests

_EXTRA = 0x1000_0000


def run(job: str, count: int) -> dict[str, float]:
    """Do the job `count` times and return the seconds of each of its sides. Raises KeyError for an unknown job."""
    return _JOBS[job](count)


def _lock_pair(count: int) -> dict[str, float]:
    lock, peer = Lock(DEVICE_LOCK), threading.RLock()
    return _both(count, _pair(lock.acquire, lock.release), _pair(peer.acquire, peer.release))


def _gate(count: int) -> dict[str, float]:
    with accel.open_accelerator("kvm") as kvm, kvm.create_vm() as vm:
        gate, peer = vm.create_vcpu(0).gate, threading.Lock()
        return _both(count, _pair(gate.enter, gate.leave), _pair(peer.acquire, peer.release))


def _port_dispatch(count: int) -> dict[str, float]:
    with accel.Machine.create("kvm", memory="1M") as machine:
        serial = Serial(guests.SERIAL_PORT)
        machine.attach(serial)
        ports = PortDispatch(machine.io, machine.vm.vcpus[0].backend.io_data, machine.vm.big_lock)
        word = pack_io(is_out=True, size=1, port=guests.SERIAL_PORT)
        handlers, io = ports.handlers, machine.io
        ports.build(word)
        write = serial.write

        def dispatch(count: int) -> float:
            started = time.perf_counter()
            for _ in range(count):
                if ports.view is not io.view:
                    ports.clear()
                (handlers.get(word) or ports.build(word))()
            return time.perf_counter() - started

        def direct(count: int) -> float:
            started = time.perf_counter()
            for _ in range(count):
                write(0, 46, 1)
            return time.perf_counter() - started

        return _both(count, dispatch, direct)


def _null_transaction(count: int) -> dict[str, float]:
    with accel.open_accelerator("kvm") as kvm, kvm.create_vm() as vm:
        peer = threading.RLock()

        def transaction(count: int) -> float:
            started = time.perf_counter()
            for _ in range(count):
                with vm.transaction():
                    pass
            return time.perf_counter() - started

        def lock(count: int) -> float:
            started = time.perf_counter()
            for _ in range(count):
                with peer:
                    pass
            return time.perf_counter() - started

        return _both(count, transaction, lock)


def _resize(count: int) -> dict[str, float]:
    """Grow and shrink RAM, each in a commit of its own, with no vCPU."""
    with accel.open_accelerator("kvm") as kvm, kvm.create_vm() as vm:
        extra = accel.MemoryRegion.ram("extra", "1M", max_size="2M")
        vm.memory.add(extra, at=_EXTRA)
        started = time.perf_counter()
        for _ in range(count):
            extra.resize("2M")
            extra.resize("1M")
        return {"seconds": time.perf_counter() - started}


def _both(count: int, side: Callable[[int], float], peer: Callable[[int], float]) -> dict[str, float]:
    """Measure both in small pieces that take turns, so that neither has the quieter moment."""
    pieces, seconds, peer_seconds = 10, 0.0, 0.0
    for _ in range(pieces):
        seconds += side(max(1, count // pieces))
        peer_seconds += peer(max(1, count // pieces))
    done = pieces * max(1, count // pieces)
    return {"seconds": seconds * count / done, "peer_seconds": peer_seconds * count / done}


def _pair(first: Callable[[], object], second: Callable[[], object]) -> Callable[[int], float]:
    def measure(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            first()
            second()
        return time.perf_counter() - started

    return measure


_JOBS: dict[str, Callable[[int], dict[str, float]]] = {
    "lock-pair": _lock_pair,
    "gate": _gate,
    "port-dispatch": _port_dispatch,
    "null-transaction": _null_transaction,
    "resize": _resize,
}
